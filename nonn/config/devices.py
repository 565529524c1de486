"""The devices of an experiment: a number of equal devices or classes of devices, and what each of them sees.

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

The limits of each device follow in ``nonn.students.devices``, what it sees in ``nonn.bundle.views``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from nonn.config.models import ModelName
from nonn.reliability.counted import MOST_DEVICES
from nonn.toml.constraints import Count, NotEmpty, NotNegative, Probability, Range, Rules, Whole

__all__ = ["BudgetConfig", "DeviceClassConfig", "DevicesConfig", "ViewConfig"]


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """Limits of one device's student; 0 is no limit."""

    params: Annotated[Whole, "parameters"] = 0
    macs: Annotated[Whole, "multiply-accumulates of one answer"] = 0
    peak_bytes: Annotated[Whole, "fp32 weights and the largest pair of neighbouring activations of one answer"] = 0


@dataclass(frozen=True, kw_only=True)
class DeviceClassConfig:
    """Devices of one kind; 0 is no limit, or unknown."""

    name: Annotated[str, NotEmpty(), "unique name of the class"]
    count: Annotated[Count, "number of devices"] = 1
    model: Annotated[str, ModelName("student", empty=True), "network of its students; empty: student.model"] = ""
    params: Annotated[Whole, "limit of a student's parameters"] = 0
    macs: Annotated[Whole, "limit of the multiply-accumulates of one answer"] = 0
    ram_bytes: Annotated[
        Whole, "limit of fp32 weights and the largest pair of neighbouring activations of one answer"
    ] = 0
    macs_per_s: Annotated[NotNegative, "measured speed of the device"] = 0.0
    link_bytes_per_s: Annotated[NotNegative, "bandwidth of its link"] = 0.0
    link_latency_s: Annotated[NotNegative, "round-trip time of its link"] = 0.0
    joule_per_mac: Annotated[NotNegative, "energy of a multiply-accumulate, above rest"] = 0.0
    joule_per_byte: Annotated[NotNegative, "energy of a byte that it receives or sends, above rest"] = 0.0
    p_fail: Annotated[Probability, "probability that a device does not answer"] = 0.1


@dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """The part of the input that one device sees; a list of numbers is short for its channels."""

    channels: Annotated[tuple[Whole, ...], "numbers of its channels, ascending; empty: all"] = ()
    crop: Annotated[tuple[Whole, ...], "pictures: top, left, height and width of a box in pixels; empty: all"] = ()
    resolution: Annotated[Whole, "pictures: height to which the box is reduced; 0: devices.resolution"] = 0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "channels", list(self.channels) == sorted(set(self.channels)), "list each channel once and ascending"
        yield "crop", len(self.crop) in (0, 4), "must be top, left, height and width"


@dataclass(frozen=True, kw_only=True)
class DevicesConfig:
    """The devices."""

    count: Annotated[
        int,
        Range(ge=1, le=MOST_DEVICES, why="beyond, a second cluster costs less than the table of subsets"),
        "number of devices N; leave it out if there are classes or views. Beyond 16 the table has a sample of the "
        "subsets",
    ] = 8
    budget: Annotated[BudgetConfig, "Limits of every device's student; 0 is no limit. Classes have their own."] = field(
        default_factory=BudgetConfig
    )
    p_fail: Annotated[
        Probability, "probability that a device does not answer, for the report; classes have their own"
    ] = 0.1
    classes: Annotated[tuple[DeviceClassConfig, ...], "Devices of one kind, numbered class by class."] = ()
    answer_s: Annotated[NotNegative, "classes: every device must answer within this time; 0 is no limit"] = 0.0
    goal: Annotated[
        Probability, "classes: the fastest placement of this expected accuracy wins; 0: the most accurate one wins"
    ] = 0.0
    view: Annotated[
        Literal["all", "split"], "all: every device sees the whole input; split: equal runs of its channels"
    ] = "all"
    resolution: Annotated[
        Whole, "pictures: height to which every device reduces what it sees, the width in proportion; 0: as it is"
    ] = 0
    views: Annotated[
        tuple[ViewConfig, ...], "What each device sees, in their order, instead of devices.view: a table, or channels."
    ] = ()

    @staticmethod
    def complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Adds ``count``, if it is left out and follows from classes or views; lists of channels become views."""
        classes, views = values.get("classes"), values.get("views")
        if _list(views):
            views = [{"channels": view} if isinstance(view, list | tuple) and view else view for view in _list(views)]
            values = {**values, "views": views}
        counts = [kind.get("count", 1) if isinstance(kind, dict) else 0 for kind in _list(classes)]
        if counts and all(isinstance(count, int) and count > 0 for count in counts):
            return {"count": sum(counts), **values}
        return {"count": len(_list(views)), **values} if _list(views) else values

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        names = [kind.name for kind in self.classes]
        for number, name in enumerate(names):
            yield "", name not in names[:number], f"class {number} ('{name}'): give every class a unique name"
        total = sum(kind.count for kind in self.classes)
        yield "count", not self.classes or total == self.count, f"the classes have {total} devices; leave count out"
        yield (
            "",
            not self.classes or self.budget == BudgetConfig(),
            "every class has its own limits; leave budget out",
        )
        for key in ("answer_s", "goal"):
            rule = "is for device classes; list them as [[devices.classes]]"
            yield key, self.classes or not getattr(self, key), rule
        yield "view", not self.views or self.view == "all", "devices.views has the channels already; leave view out"
        yield (
            "views",
            not self.views or len(self.views) == self.count,
            f"{len(self.views)} views for {self.count} devices; give one per device",
        )


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
