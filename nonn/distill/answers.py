"""Stored answers of the teacher: its outputs for augmentations of every training sample that are drawn once.

A student learns best from the teacher's answer to the very input that it sees, for many epochs (Beyer et al. 2022,
arXiv 2106.05237). With V stored augmentations of each sample the teacher runs V times over the training split instead
of once in every epoch of every method and student family. Logits and mean activations are stored as float16.

Limit: objectives that compare feature maps or earlier layers of the teacher see mean activations only, or are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from nonn.config import DistillConfig
from nonn.data.augment import Augment
from nonn.errors import ConfigError, DataError
from nonn.files import atomic_file
from nonn.teacher import Teacher, pool
from nonn.trainer import Target, autocast

__all__ = ["TeacherAnswers", "ask"]

_DRAW = "draw."


@dataclass(frozen=True)
class TeacherAnswers:
    """V augmentations of n samples and the teacher's answers.

    Attributes:
        draws: random numbers of the augmentation by option, [n, V, …].
        logits: [n, V, K] of float16.
        pooled: mean activation of each filter of the final convolutional stage [n, V, C_T] of float16.
    """

    draws: Mapping[str, Tensor]
    logits: Tensor
    pooled: Tensor

    @property
    def views(self) -> int:
        """V."""
        return self.logits.shape[1]

    def to(self, device: str) -> TeacherAnswers:
        """The same on another device."""
        draws = {name: value.to(device) for name, value in self.draws.items()}
        return TeacherAnswers(draws, self.logits.to(device), self.pooled.to(device))

    def __call__(self, index: Tensor, view: Tensor) -> tuple[dict[str, Tensor], Target]:
        """Draws of the augmentation, and the answers, for the given view [B] of the given samples [B]."""
        draws = {name: value[index, view] for name, value in self.draws.items()}
        seen = self.logits[index, view].float(), self.pooled[index, view].float()
        return draws, Target(*seen, self.logits[index], self.pooled[index])

    def save(self, path: Path) -> None:
        """Writes a safetensors file."""
        tensors = {f"{_DRAW}{name}": value.cpu().contiguous() for name, value in self.draws.items()}
        tensors |= {"logits": self.logits.cpu().contiguous(), "pooled": self.pooled.cpu().contiguous()}
        with atomic_file(path) as temporary:
            temporary.write_bytes(save(tensors))  # not save_file, for the reason in nonn.trainer.checkpoint

    @staticmethod
    def load(path: Path, samples: int, views: int) -> TeacherAnswers:
        """Reads a file.

        Args:
            path: file to read.
            samples: expected number of samples n.
            views: expected number of views V.

        Raises:
            DataError: it is damaged, or has answers for another number of samples or views.
        """
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            draws = {k.removeprefix(_DRAW): v for k, v in tensors.items() if k.startswith(_DRAW)}
            answers = TeacherAnswers(draws, tensors["logits"], tensors["pooled"])
        except Exception as exc:  # safetensors raises its own error class for a truncated or foreign file
            raise DataError(f"{path}: not readable stored answers ({exc}); remove the folder and run again") from exc
        if any(value.shape[:2] != (samples, views) for value in (*draws.values(), answers.logits, answers.pooled)):
            raise DataError(
                f"{path}: answers to {list(answers.logits.shape[:2])} samples and views, not [{samples}, {views}]; "
                "remove the folder and run again"
            )
        return answers


@torch.no_grad()
def ask(
    teacher: Teacher, inputs: NDArray[Any], augment: Augment, config: DistillConfig, *, seed: int, device: str
) -> TeacherAnswers:
    """Augments every sample ``config.teacher_views`` times and stores the teacher's answers.

    Args:
        teacher: the teacher.
        inputs: raw training inputs [n, C, …].
        augment: the augmentation.
        config: number of views and precision.
        seed: seed of the augmentation.
        device: torch device name.

    Returns:
        Draws, logits and mean activations of V = ``config.teacher_views`` augmentations of each of the n inputs.

    Raises:
        ConfigError: the augmentation adds noise, which is as large as the inputs and is not stored.
    """
    if augment.noise:
        raise ConfigError(
            f"data.noise = {augment.noise}: distill.teacher_views cannot store noise; set data.noise = 0, or "
            "distill.teacher_views = 0"
        )
    teacher = teacher.to(device).eval()
    generator = torch.Generator().manual_seed(seed)
    size = 128 if device == "cpu" else 1024
    views: list[tuple[dict[str, Tensor], Tensor, Tensor]] = []
    for _ in range(config.teacher_views):
        draws = augment.draw(inputs.shape, generator)
        logits, pooled = [], []
        for start in range(0, len(inputs), size):
            raw = torch.from_numpy(inputs[start : start + size]).to(device)
            part = {name: value[start : start + size].to(device) for name, value in draws.items()}
            with autocast(config, device):
                maps, answer = teacher(augment.apply(raw, part))
            logits.append(answer.half().cpu())
            pooled.append(pool(maps).half().cpu())
        views.append((draws, torch.cat(logits), torch.cat(pooled)))
    draws = {name: torch.stack([view[0][name] for view in views], dim=1) for name in views[0][0]}
    return TeacherAnswers(draws, torch.stack([v[1] for v in views], 1), torch.stack([v[2] for v in views], 1))
