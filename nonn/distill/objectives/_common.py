"""Shared code of the objectives: precision, norms and spatial sizes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import torch
from torch import Tensor
from torch.nn import functional

from nonn.errors import ShapeError

__all__ = ["EPS", "full_precision", "matched", "pool_to", "root", "same_shape", "unit"]

EPS = 1e-6  # added to squares before a root: a collapsed feature has a zero gradient instead of an infinite one

P = ParamSpec("P")


def full_precision(objective: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Makes an objective compute in float32, for any input dtype and under any autocast.

    Casting the arguments is not enough: autocast would multiply matrices in bfloat16 again. Squared distances of
    relational losses overflow in half precision.
    """

    @functools.wraps(objective)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        kind = next((t.device.type for t in map(_tensor, args) if t is not None), "cpu")
        with torch.autocast(kind, enabled=False):
            named: dict[str, Any] = {name: _float(value) for name, value in kwargs.items()}
            return objective(*map(_float, args), **named)

    return wrapped


def _tensor(value: Any) -> Tensor | None:
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _float(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.float() if value.is_floating_point() else value
    return [_float(v) for v in value] if isinstance(value, (list, tuple)) else value


def root(square: Tensor) -> Tensor:
    """√(x + 1e-6), with a finite gradient at 0."""
    return (square + EPS).sqrt()


def unit(x: Tensor) -> Tensor:
    """Rows of [B, D] at unit norm; a row of zeros stays one."""
    return x * (x.square().sum(dim=1, keepdim=True) + EPS).rsqrt()


def pool_to(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Averages maps [B, C, …] to another spatial size of as many axes."""
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    if len(size) == 1:
        return functional.adaptive_avg_pool1d(maps, size[0])
    return functional.adaptive_avg_pool2d(maps, (size[0], size[1]))


def matched(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Maps of two layers [B, C_1, …] and [B, C_2, …] at the coarser resolution of both, as [B, C, positions]."""
    size = [min(a, b) for a, b in zip(first.shape[2:], second.shape[2:], strict=True)]
    return pool_to(first, size).flatten(2), pool_to(second, size).flatten(2)


def same_shape(name: str, student: Tensor, teacher: Tensor) -> None:
    """Checks that two tensors can be compared.

    Raises:
        ShapeError: shapes differ; the message names the objective and both shapes.
    """
    if student.shape != teacher.shape:
        raise ShapeError(f"{name}: student {list(student.shape)} and teacher {list(teacher.shape)} must agree")
