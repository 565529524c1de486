"""The training loop of teacher and students, its steps on a CPU or as a CUDA graph, and its checkpoints."""

from nonn.trainer.loop import (
    Progress,
    autocast,
    batch_size,
    batches,
    epoch_generator,
    fit,
    learning_rate,
    tune_allocator,
    use_bf16,
)
from nonn.trainer.step import Augmentation, Replay, Target, Task

__all__ = ["Augmentation", "Progress", "Replay", "Target", "Task", "autocast", "batch_size", "batches",
           "epoch_generator", "fit", "learning_rate", "tune_allocator", "use_bf16"]  # fmt: skip
