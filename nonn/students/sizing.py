"""Sizing: the largest student that fits each device, and the sizes of the parts.

``auto`` chooses among wide residual networks, ``auto:FAMILY`` among the members of a family, ``auto:FAMILY,FAMILY``
among those of several. A candidate fits if its parameters, multiply-accumulates, memory and latency are within the
limits of the device. The largest is the one with the most parameters, among equals the one with the fewest
multiply-accumulates. In published results wide residual networks are the most accurate per millisecond and dense ones
per parameter: ``auto:densenet-bc`` suits devices whose memory is short and whose time is not. ``nonn bench students``
measures both. Candidates are built on torch's meta device (shapes without values), so that trying all of them is fast.

The sizes of parts depend on the students, and the bridge to its part counts towards a student. So students are first
sized with equal parts, then the parts are sized to those students, and then each device gets the largest student that
fits with its own part.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from nonn.config.models import SEARCHED
from nonn.errors import BudgetError, ConfigError
from nonn.partition.redundancy import Design
from nonn.students.budget import Cost, check_budget, measure_cost
from nonn.students.devices import Device, apportion_filters
from nonn.students.student import Student
from nonn.teacher.zoo import family_named

__all__ = [
    "FAMILY",
    "SEARCH",
    "Sizing",
    "check_device",
    "check_model",
    "feature_bytes",
    "models_named",
    "searched_depth",
    "size_students",
]

AUTO, SEARCH = "auto", "search:"
FAMILY: Sequence[str] = family_named("wrn").members

Build = Callable[[int, str, int], Student]  # (device, model, filters) → an untrained student


@dataclass(frozen=True)
class Sizing:
    """The students of all devices.

    Attributes:
        models: model of each device [N].
        params: parameters of each device's student [N].
        sizes: filters of each part [M] where students differ; None leaves them to the partitioner.
    """

    models: tuple[str, ...]
    params: tuple[int, ...]
    sizes: tuple[int, ...] | None


def feature_bytes(student: Student, dtype: str) -> int:
    """Size of the features that a student sends for one answer, bytes."""
    return student.width * np.dtype(dtype).itemsize


def check_device(device: Device, model: str, cost: Cost, sent_bytes: int) -> None:
    """Checks a student against the budget of its device and the latency limit.

    Raises:
        BudgetError: a limit is exceeded; the message names device, student, costs and limits.
    """
    check_budget(device.title, model, cost, device.budget)
    latency_s = device.latency_s(cost.macs, sent_bytes)
    if device.answer_s and latency_s > device.answer_s:
        raise BudgetError(
            f"device {device.title}: student '{model}' answers in {1000 * latency_s:.3g} ms, devices.answer_s allows "
            f"{1000 * device.answer_s:.3g} ms; choose a smaller student.model, or raise devices.answer_s"
        )


def size_students(
    devices: Sequence[Device],
    shapes: Sequence[tuple[int, ...]],
    design: Design,
    num_filters: int,
    model: str,
    build: Build,
    dtype: str,
) -> Sizing:
    """Chooses every device's student and the sizes of the parts.

    Args:
        devices: devices with their limits [N].
        shapes: of one sample as each device sees it [N].
        design: which device learns which of the M parts.
        num_filters: C of the teacher.
        model: model of every device that names none; a model, ``auto`` or ``auto:FAMILY``.
        build: creates an untrained student.
        dtype: type of the sent features.

    Raises:
        BudgetError: a student is over its device's budget, or even the smallest model of the family is.
        ConfigError: there is no such family.
    """
    learned = design.parts_of_device(len(devices))
    equal = [math.ceil(num_filters / design.num_parts)] * design.num_parts
    measured: dict[tuple[str, tuple[int, ...], int], list[_Candidate]] = {}

    def largest(device: Device, sizes: Sequence[int]) -> tuple[str, Cost]:
        filters = min(sum(sizes[j] for j in learned[device.number]), num_filters)
        wanted = device.model or model
        alike = (wanted, shapes[device.number], filters)  # all that a student's size depends on
        if alike not in measured:
            names = models_named(wanted)
            measured[alike] = [_candidate(build, device.number, name, filters, dtype) for name in names]
        return _largest(device, measured[alike])

    chosen = [largest(device, equal) for device in devices]
    sizes = None
    if len({name for name, _ in chosen}) > 1:
        holders = design.devices_of_part(len(devices))
        sizes = apportion_filters(
            num_filters, [float(np.mean([chosen[i][1].params for i in part])) for part in holders]
        )
        chosen = [largest(device, sizes) for device in devices]
    return Sizing(tuple(name for name, _ in chosen), tuple(cost.params for _, cost in chosen), sizes)


def check_model(device: Device, model: str, filters: int, build: Build, dtype: str) -> None:
    """Checks a model, without creating its weights, against the budget of its device and the latency limit.

    Raises:
        BudgetError: see ``check_device``.
    """
    candidate = _candidate(build, device.number, model, filters, dtype)
    check_device(device, model, candidate.cost, candidate.sent_bytes)


def searched_depth(model: str) -> int:
    """DEPTH of ``search:wrn-DEPTH``.

    Raises:
        ConfigError: it has another form, or there is no such depth.
    """
    match = SEARCHED.fullmatch(model)
    if match is None:
        raise ConfigError(f"student.model = '{model}': write search:wrn-DEPTH, for example search:wrn-10")
    family_named("wrn").parse(f"wrn-{match[1]}-1")
    return int(match[1])


def models_named(wanted: str) -> Sequence[str]:
    """The models among which one is chosen.

    Raises:
        ConfigError: there is no such family, or the model is still to be searched.
    """
    if wanted.startswith(SEARCH):
        raise ConfigError(f"student.model = '{wanted}': no network is chosen yet; `nonn run` searches one, or set it")
    auto, _, families = wanted.partition(":")
    if auto != AUTO:
        return (wanted,)
    return [name for f in families.split(",") for name in family_named(f.strip()).members] if families else FAMILY


@dataclass(frozen=True)
class _Candidate:
    model: str
    cost: Cost
    sent_bytes: int


def _candidate(build: Build, device: int, model: str, filters: int, dtype: str) -> _Candidate:
    """Measures a student without creating its weights."""
    with torch.device("meta"):
        student = build(device, model, filters)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.forward = lambda x: x  # type: ignore[assignment]  # not counted, and slow on meta
    return _Candidate(model, measure_cost(student, student.input_shape), feature_bytes(student, dtype))


def _largest(device: Device, candidates: Sequence[_Candidate]) -> tuple[str, Cost]:
    """The largest model that fits a device, and its cost.

    Raises:
        BudgetError: none fits; the message explains why the smallest does not.
    """
    problem: BudgetError | None = None
    for candidate in sorted(candidates, key=lambda c: (-c.cost.params, c.cost.macs)):
        try:
            check_device(device, candidate.model, candidate.cost, candidate.sent_bytes)
        except BudgetError as exc:
            problem = exc
            continue
        return candidate.model, candidate.cost
    assert problem is not None
    raise problem if len(candidates) == 1 else BudgetError(f"no student is small enough; the smallest: {problem}")
