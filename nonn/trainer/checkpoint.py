"""Checkpoints of a training: weights, momentum, average of the weights and history, in one safetensors file."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from nonn.errors import DataError
from nonn.files import atomic_file

__all__ = ["FILE", "resume", "save"]

FILE = "checkpoint.safetensors"


def save(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: dict[str, Tensor],
    history: list[dict[str, float]],
) -> None:
    """Writes a checkpoint, in place of the previous one.

    Args:
        path: file to write.
        module: trained module.
        optimizer: its SGD, with a momentum buffer for each parameter after the first step.
        ema: average of each tensor of the module's state; empty without one.
        history: mean losses of each finished epoch.
    """
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.items()}
    for name, parameter in module.named_parameters():
        buffer = optimizer.state[parameter].get("momentum_buffer")
        if buffer is not None:
            tensors[f"momentum.{name}"] = buffer
    with atomic_file(path) as temporary:
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        # Not save_file: its error for a full disk is not an OSError and names no file.
        temporary.write_bytes(to_bytes(contiguous, metadata={"history": json.dumps(history)}))


def resume(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: dict[str, Tensor]
) -> list[dict[str, float]]:
    """Reads a checkpoint if there is one; returns the history of the finished epochs.

    Raises:
        DataError: it is damaged.
    """
    if not path.exists():
        return []
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  (not a dict)
            history: list[dict[str, float]] = json.loads(file.metadata()["history"])
    except Exception as exc:  # safetensors raises its own error class for a truncated or foreign file
        raise DataError(f"{path}: not a readable checkpoint ({exc}); remove it, and training starts again") from exc
    module.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for name in ema:
        ema[name].copy_(tensors[f"ema.{name}"])
    for name, parameter in module.named_parameters():
        if f"momentum.{name}" in tensors:
            like = torch.empty_like(parameter)
            optimizer.state[parameter]["momentum_buffer"] = like.copy_(tensors[f"momentum.{name}"])
    return history
