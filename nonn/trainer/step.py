"""One training step: from the numbers of its samples and its random numbers to changed weights.

A step reads everything from tensors on the device, and its random numbers are drawn before it, on the CPU. So it can be
recorded once as a CUDA graph and replayed: a step of eight small students launches thousands of short kernels, and
launching them one by one takes longer than running them. The losses and weights are those of the same step without a
graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from nonn.config import TrainingConfig

__all__ = ["Augmentation", "CapturedStep", "Replay", "Step", "Target", "Task", "autocast", "use_bf16"]


@dataclass(frozen=True)
class Target:
    """Stored answers of a teacher to the augmented inputs of one batch.

    Attributes:
        logits: [B, K].
        pooled: mean activation of each filter of the final convolutional stage [B, C_T].
        view_logits: logits for all V stored augmentations of each sample [B, V, K].
        view_pooled: mean activations for all of them [B, V, C_T].
    """

    logits: Tensor
    pooled: Tensor
    view_logits: Tensor | None = None
    view_pooled: Tensor | None = None


class Task(Protocol):
    """The interface of a training task.

    Attributes:
        progress: share of finished steps, in [0, 1); set before every step, for objectives that warm up. A tensor on
            the device if the steps are a CUDA graph.
    """

    progress: Any

    @property
    def module(self) -> nn.Module:
        """Contains every trained parameter, and no other state that changes."""
        ...

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers for the losses of one batch, on the CPU, by name."""
        ...

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        """Named losses of a batch; their sum is minimised.

        Args:
            inputs: raw values [B, C, …].
            labels: [B].
            draws: result of ``draw`` on the device of the inputs.
            target: stored answers of the teacher; None if it must be asked.
        """
        ...


class Augmentation(Protocol):
    """The interface of an augmentation; see ``nonn.data.augment``."""

    def draw(self, shape: Sequence[int], generator: torch.Generator) -> dict[str, Tensor]:
        """Random numbers for a batch of this shape, on the CPU, by name."""
        ...

    def apply(self, inputs: Tensor, draws: Mapping[str, Tensor]) -> Tensor:
        """Raw batch [B, C, …] → varied raw batch."""
        ...


class Replay(Protocol):
    """Stored augmentations of every training sample, with the teacher's answers to them."""

    @property
    def views(self) -> int:
        """Number of augmentations stored for each sample."""
        ...

    def to(self, device: str) -> Replay:
        """The same on another device."""
        ...

    def __call__(self, index: Tensor, view: Tensor) -> tuple[Mapping[str, Tensor], Target]:
        """Draws of the augmentation, and the answers, for the given view [B] of the given samples [B]."""
        ...


@dataclass
class Step:
    """A step of a training.

    Attributes:
        task: what is trained.
        inputs: all raw training inputs [n, C, …] on the device.
        labels: [n].
        augment: augmentation of a batch.
        optimizer: of the parameters of the task.
        config: precision.
        device: torch device name.
        replay: stored augmentations to use in place of new ones, on the device.
    """

    task: Task
    inputs: Tensor
    labels: Tensor
    augment: Augmentation
    optimizer: torch.optim.Optimizer
    config: TrainingConfig
    device: str
    replay: Replay | None = None

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """All random numbers of a step but the choice of its samples, on the CPU."""
        if self.replay is not None:
            drawn = {"view": torch.randint(self.replay.views, (batch,), generator=generator)}
        else:
            shape = (batch, *self.inputs.shape[1:])
            drawn = {f"augment.{k}": v for k, v in self.augment.draw(shape, generator).items()}
        return drawn | {f"task.{k}": v for k, v in self.task.draw(batch, generator).items()}

    def __call__(self, index: Tensor, draws: Mapping[str, Tensor], rate: float, progress: float) -> dict[str, Tensor]:
        """Changes the weights once.

        Args:
            index: numbers of the samples [B], on the device.
            draws: result of ``draw``.
            rate: learning rate.
            progress: share of finished steps.

        Returns:
            The losses, scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.task.progress = progress
        return self.run(index, {name: value.to(self.device) for name, value in draws.items()})

    def run(self, index: Tensor, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Forward and backward pass and the change of the weights; everything is on the device."""
        target: Target | None = None
        if self.replay is not None:
            augmentation, target = self.replay(index, draws["view"])
        else:
            augmentation = _of("augment.", draws)
        varied = self.augment.apply(self.inputs[index], augmentation)
        with autocast(self.config, self.device):
            losses = self.task.losses(varied, self.labels[index], _of("task.", draws), target)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return {name: loss.detach() for name, loss in losses.items()}


class CapturedStep:
    """A step that is recorded as a CUDA graph after some ordinary ones.

    Args:
        step: the step; its optimiser must accept a learning rate that is a tensor on the device.
    """

    _WARM_UP = 3  # ordinary steps, in which kernels are chosen and compiled, and buffers are created

    def __init__(self, step: Step) -> None:
        self._step = step
        self._left = self._WARM_UP
        self._graph: torch.cuda.CUDAGraph | None = None
        self._rate = torch.zeros((), device=step.device)
        self._progress = torch.zeros((), device=step.device)
        self._index = torch.zeros(0)
        self._draws: dict[str, Tensor] = {}
        self._losses: dict[str, Tensor] = {}
        for group in step.optimizer.param_groups:
            group["lr"] = self._rate
        step.task.progress = self._progress

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        """See ``Step.draw``."""
        return self._step.draw(batch, generator)

    def __call__(self, index: Tensor, draws: Mapping[str, Tensor], rate: float, progress: float) -> dict[str, Tensor]:
        """See ``Step``; the losses are overwritten by the next step."""
        if not self._draws:
            self._index = torch.empty_like(index)
            self._draws = {name: torch.empty_like(value, device=self._step.device) for name, value in draws.items()}
        self._index.copy_(index)
        for name, value in draws.items():
            self._draws[name].copy_(value)
        self._rate.fill_(rate)
        self._progress.fill_(progress)
        if self._left:
            self._left -= 1
            return self._aside()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._losses = self._step.run(self._index, self._draws)
            self._graph = graph
        self._graph.replay()
        return self._losses

    def _aside(self) -> dict[str, Tensor]:
        """An ordinary step in a separate stream, as capturing requires of the steps before it."""
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            losses = self._step.run(self._index, self._draws)
        torch.cuda.current_stream().wait_stream(stream)
        return losses


def _of(prefix: str, draws: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in draws.items() if name.startswith(prefix)}


def autocast(config: TrainingConfig, device: str) -> AbstractContextManager[Any]:
    """bfloat16 autocast if it is on, or ``auto`` and fast on this device."""
    kind = torch.device(device).type
    return torch.autocast(kind, torch.bfloat16, enabled=use_bf16(config.bf16, kind))


def use_bf16(choice: str, kind: str) -> bool:
    """Whether to compute in bfloat16; ``auto`` checks for native bfloat16 multiplication."""
    if choice != "auto":
        return choice == "on"
    return kind == "cuda" or bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
