"""The devices, as an experiment file names them: so many alike, or classes of them, and what each of them sees.

::

    [devices]
    answer_s = 0.05

    [[devices.classes]]                  # `nonn doctor --device` measures a device into such an entry
    name = "watch"
    count = 4
    params = 50_000
    macs_per_s = 4e8
    link_bytes_per_s = 60_000
    link_latency_s = 0.01
    p_fail = 0.2

What a device needs of it is worked out in ``nonn.students.devices`` and ``nonn.bundle.views``.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from nonn.errors import ConfigError

__all__ = ["BudgetConfig", "DeviceClassConfig", "DevicesConfig", "check_devices", "count_devices"]

MAX_DEVICES = 16  # the table holds all 2^N subsets


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What one device can take; 0 is no limit."""

    params: int = 0
    macs: int = 0  # multiply-accumulates of one answer
    peak_bytes: int = 0  # fp32 weights and the largest pair of neighbouring activations of one answer


@dataclass(frozen=True, kw_only=True)
class DeviceClassConfig:
    """Devices of one kind; 0 is no limit, or not known."""

    name: str
    count: int = 1
    params: int = 0  # limit of a student's parameters
    macs: int = 0  # limit of the multiply-accumulates of one answer
    ram_bytes: int = 0  # limit of fp32 weights and the largest pair of neighbouring activations of one answer
    macs_per_s: float = 0.0  # that it really reaches
    link_bytes_per_s: float = 0.0
    link_latency_s: float = 0.0  # there and back
    p_fail: float = 0.1  # probability that it is away


@dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """The devices."""

    count: int = 8  # with classes the sum of theirs, with views their number
    budget: BudgetConfig = field(default_factory=BudgetConfig)  # of every device, where there are no classes
    p_fail: float = 0.1  # failure law of the report: probability that a device is away; where there are classes, theirs
    classes: tuple[DeviceClassConfig, ...] = ()  # devices are numbered class by class
    answer_s: float = 0.0  # classes: every device must answer within this time; 0 is no limit
    goal: float = 0.0  # classes: expected accuracy of a placement, of which the fastest wins; 0: the most accurate wins
    view: str = "all"  # all: every device sees the whole input; split: equal runs of its channels, one a device
    views: tuple[tuple[int, ...], ...] = ()  # channels of each device, in place of view


def count_devices(tree: Any) -> None:
    """Sets ``count`` in the raw section from classes or views, unless it is there; what is wrong is found later."""
    if not isinstance(tree, dict) or "count" in tree:
        return
    classes, views = tree.get("classes"), tree.get("views")
    if isinstance(classes, list) and classes and all(isinstance(kind, dict) for kind in classes):
        counts = [kind.get("count", 1) for kind in classes]
        if all(isinstance(count, int) for count in counts):
            tree["count"] = sum(counts)
    elif isinstance(views, list) and views:
        tree["count"] = len(views)


def check_devices(devices: DevicesConfig) -> None:
    """Checks what types cannot say.

    Raises:
        ConfigError: names the key, class or device, and what it may be.
    """
    _check_classes(devices)
    if not 1 <= devices.count <= MAX_DEVICES:
        raise ConfigError(
            f"devices.count = {devices.count}: must lie between 1 and {MAX_DEVICES}: the table holds all 2^N subsets"
        )
    if not 0 <= devices.p_fail < 1:
        raise ConfigError(f"devices.p_fail = {devices.p_fail}: must be a probability below 1")
    _check_views(devices)


def _check_classes(devices: DevicesConfig) -> None:
    for number, kind in enumerate(devices.classes):
        what = f"devices.classes: class {number} ('{kind.name}')"
        if not kind.name or kind.name in [other.name for other in devices.classes[:number]]:
            raise ConfigError(f"{what}: give every class a name of its own")
        if kind.count < 1:
            raise ConfigError(f"{what}: count = {kind.count}: must be at least 1")
        for key, value in dataclasses.asdict(kind).items():
            if key != "name" and not 0 <= value < math.inf:
                raise ConfigError(f"{what}: {key} = {value}: must be finite and not negative; 0 is no limit")
        if kind.p_fail >= 1:
            raise ConfigError(f"{what}: p_fail = {kind.p_fail}: must be a probability below 1")
    total = sum(kind.count for kind in devices.classes)
    if devices.classes and total != devices.count:
        raise ConfigError(f"devices.count = {devices.count}: the classes have {total} devices; leave count out")
    if devices.classes and devices.budget != BudgetConfig():
        raise ConfigError("devices.budget: every class has limits of its own; leave budget out")
    for key in ("answer_s", "goal"):
        value = getattr(devices, key)
        if not 0 <= value < math.inf or (key == "goal" and value >= 1):
            raise ConfigError(f"devices.{key} = {value}: must not be negative" + ", and below 1" * (key == "goal"))
        if value and not devices.classes:
            raise ConfigError(f"devices.{key}: is for device classes; list them as [[devices.classes]]")


def _check_views(devices: DevicesConfig) -> None:
    if devices.view not in ("all", "split"):
        raise ConfigError(f"devices.view = {devices.view!r}: unknown; choose one of: all, split")
    if not devices.views:
        return
    if devices.view != "all":
        raise ConfigError("devices.view: devices.views names the channels already; leave view out")
    if len(devices.views) != devices.count:
        raise ConfigError(f"devices.views: {len(devices.views)} views for {devices.count} devices; name one a device")
    for device, view in enumerate(devices.views):
        if not view or list(view) != sorted(set(view)) or view[0] < 0:
            raise ConfigError(f"devices.views: device {device}: name at least one channel, each once and ascending")
