"""The training loop of teacher and students.

SGD with Nesterov momentum, one-cycle or step schedule, bf16 autocast, EMA of the weights, a checkpoint after every
epoch (on a GPU every 20 s) and exact resume: all randomness of an epoch comes from a generator seeded by (seed, epoch),
so a run that was killed and resumed gives the same weights, bit for bit, as an uninterrupted one. This requires the
same number of threads (``OMP_NUM_THREADS``; all cores by default), since another number splits sums differently. The
load of the machine changes only the time (``nonn.threads``). Checkpoints are safetensors files; there is no pickle. The
whole split is in memory as one tensor and augmented in batches: a loader with workers is the bottleneck for small
images.
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nonn.config import TrainingConfig
from nonn.errors import DataError
from nonn.threads import pinned_threads
from nonn.trainer import checkpoint
from nonn.trainer.curriculum import Ranking
from nonn.trainer.step import Augmentation, CapturedStep, Replay, Step, Task, autocast, use_bf16

__all__ = [
    "Progress",
    "autocast",
    "batch_size",
    "batches",
    "epoch_generator",
    "fit",
    "learning_rate",
    "tune_allocator",
    "use_bf16",
]

_LEAST_BATCH = 16
_CHECKPOINT_S = 20.0  # least time between two checkpoints on a GPU

Progress = Callable[[int, int, dict[str, float]], None]  # finished epochs, all epochs, mean losses of the last one


def fit(
    task: Task,
    inputs: NDArray[Any],
    labels: NDArray[np.int64],
    config: TrainingConfig,
    folder: Path,
    *,
    seed: int,
    augment: Augmentation,
    replay: Replay | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> list[dict[str, float]]:
    """Trains, or resumes from the last checkpoint in ``folder``.

    Args:
        task: the task; afterwards its module has the weights of the last epoch (their EMA if it is on).
        inputs: raw training inputs [n, C, …].
        labels: labels [n].
        config: optimiser and schedule.
        folder: folder of the checkpoint, one file that is replaced after every epoch.
        seed: seed of the order, the augmentation and the random draws of the task.
        augment: augmentation of every batch.
        replay: stored augmentations and answers of the teacher; None augments anew and asks the teacher.
        device: torch device name.
        progress: called after every epoch.

    Returns:
        Mean losses of each epoch.

    Raises:
        DataError: there are fewer samples than batch norm needs, the loss is not finite, or the checkpoint is damaged.
    """
    if len(inputs) < 2:
        raise DataError(f"{len(inputs)} training samples; at least 2 are needed")
    tune_allocator()
    module = task.module.to(device).train()
    x, y = torch.from_numpy(inputs).to(device), torch.from_numpy(labels).to(device)
    batch = batch_size(config, len(x))
    per_epoch = len(x) // batch
    total = per_epoch * config.epochs
    on_gpu = torch.device(device).type == "cuda"
    if on_gpu:
        torch.backends.cudnn.benchmark = True  # the same shapes in every step
        torch.set_float32_matmul_precision("high")
    captured = config.captured and on_gpu
    optimizer = _optimizer(module, config, device, captured)
    ema = {k: v.detach().clone() for k, v in module.state_dict().items()} if config.ema else {}
    history = checkpoint.resume(folder / checkpoint.FILE, module, optimizer, ema)
    stored = None if replay is None else replay.to(device)
    plain = Step(task, x, y, augment, optimizer, config, device, stored)
    step = CapturedStep(plain) if captured else plain
    saved = time.monotonic()
    for epoch in range(len(history), config.epochs):
        generator = epoch_generator(seed, epoch)
        sums: dict[str, Tensor] = {}  # on the device, since reading a loss at every step would wait for it
        order = _order(task, x, y, config, epoch, per_epoch * batch, generator).to(device)
        with _pinned(device) as check_threads:
            for number, index in enumerate(torch.split(order, batch), start=epoch * per_epoch):
                check_threads()
                draws = step.draw(batch, generator)
                losses = step(index, draws, learning_rate(config, number, total), number / total)
                _average(ema, module, config.ema, number)
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0.0) + loss.double()
        history.append({name: float(value) / per_epoch for name, value in sums.items()})
        if not all(math.isfinite(v) for v in history[-1].values()):
            raise DataError(f"epoch {epoch + 1}: the loss is not finite ({history[-1]}); lower the learning rate")
        # An epoch on a GPU may take as long as its checkpoint.
        if not on_gpu or epoch + 1 == config.epochs or time.monotonic() > saved + _CHECKPOINT_S:
            checkpoint.save(folder / checkpoint.FILE, module, optimizer, ema, history)
            saved = time.monotonic()
        if progress is not None:
            progress(epoch + 1, config.epochs, history[-1])
    if ema:
        module.load_state_dict(ema)
    module.eval()
    return history


def _optimizer(module: nn.Module, config: TrainingConfig, device: str, captured: bool) -> torch.optim.SGD:
    """SGD; in a captured step the learning rate is a tensor, which a replay reads."""
    return torch.optim.SGD(
        module.parameters(),
        lr=torch.tensor(config.lr, device=device) if captured else config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=config.momentum > 0,
        fused=captured,
    )


def _order(
    task: Task, x: Tensor, y: Tensor, config: TrainingConfig, epoch: int, count: int, generator: torch.Generator
) -> Tensor:
    """Numbers of the samples of an epoch [count], on the CPU."""
    curriculum = task.curriculum if isinstance(task, Ranking) else None
    if curriculum is None:
        return torch.randperm(len(x), generator=generator)[:count]
    if curriculum.starts(epoch, config.epochs):
        task.module.eval()
        phase, size = curriculum.phase(epoch, config.epochs), 128 if x.device.type == "cpu" else 512
        with torch.no_grad(), autocast(config, str(x.device)):
            pairs = zip(torch.split(x, size), torch.split(y, size), strict=True)
            losses = torch.cat([task.difficulty(inputs, labels, phase) for inputs, labels in pairs])  # type: ignore[attr-defined]
        curriculum.order.copy_(losses.argsort(stable=True))
        task.module.train()
    return curriculum.draw(epoch, config.epochs, count, generator)


def batch_size(config: TrainingConfig, samples: int) -> int:
    """Samples per step: ``batch``, or fewer where an epoch would have less than ``epoch_steps`` steps.

    Batch normalisation needs some samples, hence at least 16 of them. 216 images in batches of 128 are one step an
    epoch, and 30 epochs train nothing.
    """
    return min(config.batch, samples, max(_LEAST_BATCH, samples // config.epoch_steps))


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """The CPU generator of all randomness of an epoch."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


def learning_rate(config: TrainingConfig, step: int, total: int) -> float:
    """Learning rate of one step of ``total``; a pure function, so that resuming needs no state.

    ``one-cycle``: linear warm-up over the first 20 % of the steps, then a cosine to zero (Smith & Topin 2017, arXiv
    1708.07120, without the momentum cycle). ``step``: × 0.1 at each milestone.
    """
    done = step / total
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(done >= m for m in config.milestones)
    warm_up = 0.2
    if done < warm_up:
        return config.lr * (0.04 + 0.96 * done / warm_up)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (done - warm_up) / (1 - warm_up)))


def batches(inputs: NDArray[Any], device: str = "cpu") -> Iterator[Tensor]:
    """The inputs in order as raw tensors [B, C, …], in batches that suit the device."""
    tune_allocator()
    # On a CPU, batches small enough that feature maps stay in the cache.
    size = 128 if device == "cpu" else 512
    with _pinned(device) as check_threads:
        for start in range(0, len(inputs), size):
            check_threads()
            yield torch.from_numpy(inputs[start : start + size]).to(device)


def tune_allocator() -> None:
    """Lets glibc keep freed memory; otherwise it returns large blocks to the kernel, which zeroes them for every batch.

    Does nothing without glibc.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    m_trim_threshold, m_top_pad, m_mmap_max = -1, -2, -4
    mallopt(m_mmap_max, 0)
    mallopt(m_trim_threshold, 2**31 - 1)
    mallopt(m_top_pad, 512 << 20)


def _pinned(device: str) -> AbstractContextManager[Callable[[], None]]:
    """``pinned_threads`` when training on the CPU."""
    return pinned_threads(torch.get_num_threads() if torch.device(device).type == "cpu" else 1)


def _average(ema: dict[str, Tensor], module: nn.Module, decay: float, step: int) -> None:
    """One step of the exponential moving average, with a shorter memory in the first steps.

    ``torch.optim.swa_utils.AveragedModel`` is not used: it starts from the weights of the first step, its wrapper
    renames the tensors of checkpoints, and its decay needs a function as long as this one.
    """
    if not ema:
        return
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                ema[name].lerp_(value, 1 - decay)
            else:
                ema[name].copy_(value)
