"""Failure laws from text and from TOML tables.

::

    independent p=0.1                       independent p=[0.1, 0.2, …]
    groups [[0, 1], [2, 3]] p_group=0.05 p=0.02
    k-of-n k=2
    markov mtbf_s=86400 mttr_s=600
    markov mtbf_s=86400 mttr_s=600 groups=[[0, 1], [2, 3]] group_mtbf_s=1e6 group_mttr_s=3600
    battery hours=[8, 10, …] sd_hours=1 horizon_hours=24
    gilbert-elliott p=0.01 r=0.2 loss_good=0.001 loss_bad=0.5
    trace FILE.csv

Values are TOML; a number in place of a list of N applies to every device. In a file the same law is a table:
``law = { kind = "independent", p = 0.1 }``, with ``groups = [[0, 1], …]`` and ``file = "FILE.csv"`` by name.
"""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from nonn.errors import ConfigError
from nonn.reliability.laws.base import FloatArray, Law
from nonn.reliability.laws.battery import Battery
from nonn.reliability.laws.markov import Markov, MarkovGroups
from nonn.reliability.laws.requests import GilbertElliott, Groups, Independent, KOfN
from nonn.reliability.laws.trace import Trace, read_trace
from nonn.toml import Registry, did_you_mean

__all__ = ["LAWS", "LawValues", "law_from_mapping", "parse_law"]

_KEY = re.compile(r"(?:^|\s)([A-Za-z_]\w*)\s*=(?!=)")
_BARE = {"groups": "groups", "trace": "file"}  # the key of a law's value without a name


class LawValues:
    """The values of one law, read one at a time by its function; keys that remain are unknown.

    Attributes:
        num_devices: N.
    """

    def __init__(self, values: Mapping[str, Any], num_devices: int, source: str) -> None:
        self.values, self.num_devices, self.source = dict(values), num_devices, source
        self.known: list[str] = []

    def error(self, key: str, rule: str) -> ConfigError:
        """The error of a value that breaks a rule."""
        return ConfigError(f"{self.source}: {key} = {self.values.get(key)!r}: {rule}")

    def get(self, key: str, default: Any = None) -> Any:
        """Any value; required without a default."""
        self.known.append(key)
        if key not in self.values and default is None:
            given = f"; given: {', '.join(self.values)}" if self.values else ""
            raise ConfigError(f"{self.source}: '{key}' is missing{given}")
        return self.values.get(key, default)

    def number(self, key: str, default: float | None = None, *, low: float, open_low: bool = False) -> float:
        """A number of at least ``low``, or above it."""
        value = self.get(key, default)
        if not _is_number(value) or value < low or (open_low and value == low):
            raise self.error(key, f"must be a number {'above' if open_low else 'of at least'} {low:g}")
        return float(value)

    def whole(self, key: str, default: int | None, low: int, high: int | None = None) -> int:
        """A whole number between ``low`` and ``high``."""
        value = self.get(key, default)
        if type(value) is not int or value < low or (high is not None and value > high):
            raise self.error(
                key, f"must be a whole number of at least {low}" + ("" if high is None else f", at most {high}")
            )
        return value

    def each(
        self, key: str, count: int, default: float | None = None, *, probability: bool = False, positive: bool = False
    ) -> FloatArray:
        """A number for each of ``count`` items, from a list or a single number [count]."""
        value = self.get(key, default)
        items = value if isinstance(value, list | tuple) else [value] * count
        if not all(_is_number(v) for v in items):
            raise self.error(key, "must be a number or a list of numbers")
        if len(items) != count:
            raise self.error(key, f"has {len(items)} values for {count}")
        numbers = np.array(items, dtype=float)
        if (numbers < 0).any() or (positive and (numbers == 0).any()):
            raise self.error(key, "must be positive" if positive else "must not be negative")
        if probability and (numbers > 1).any():
            raise self.error(key, "a probability must not exceed 1")
        return numbers

    def done(self) -> None:
        """Rejects unknown keys."""
        for key in self.values:
            if key not in self.known:
                raise ConfigError(f"{self.source}: unknown key '{key}'; {did_you_mean(key, self.known, 'it has')}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _independent(v: LawValues, text: str) -> Law:
    return Independent(v.each("p", v.num_devices, probability=True), text)


def _checked_groups(v: LawValues) -> list[list[int]]:
    """The lists of nodes of ``groups``."""
    groups = v.get("groups")
    if not isinstance(groups, list | tuple) or not all(isinstance(g, list | tuple) for g in groups) or not groups:
        raise v.error("groups", "must be a list of lists of node numbers, for example [[0, 1], [2, 3]]")
    for number, group in enumerate(groups):
        if not group:
            raise v.error("groups", f"group {number} is empty")
        for node in group:
            if type(node) is not int or not 0 <= node < v.num_devices:
                raise v.error("groups", f"unknown node {node!r}; there are nodes 0 to {v.num_devices - 1}")
    return [list(group) for group in groups]


def _groups(v: LawValues, text: str) -> Law:
    groups = _checked_groups(v)
    p_group = v.each("p_group", len(groups), probability=True)
    return Groups(groups, p_group, v.each("p", v.num_devices, 0.0, probability=True), text)


def _k_of_n(v: LawValues, text: str) -> Law:
    return KOfN(v.whole("k", None, 0, v.num_devices), v.num_devices, text)


def _markov(v: LawValues, text: str) -> Law:
    times = v.each("mtbf_s", v.num_devices, positive=True), v.each("mttr_s", v.num_devices, positive=True)
    if not v.get("groups", ()):
        return Markov(*times, text)
    groups = _checked_groups(v)
    strikes_s, passes_s = (v.each(f"group_{key}", len(groups), positive=True) for key in ("mtbf_s", "mttr_s"))
    return MarkovGroups(*times, groups, strikes_s, passes_s, text)


def _battery(v: LawValues, text: str) -> Law:
    hours = v.each("hours", v.num_devices, positive=True)
    sd_hours = v.each("sd_hours", v.num_devices, 0.0)
    horizon = v.number("horizon_hours", float(hours.max()), low=0, open_low=True)
    return Battery(hours * 3600, sd_hours * 3600, horizon * 3600, v.whole("seed", 0, 0), text)


def _gilbert_elliott(v: LawValues, text: str) -> Law:
    n = v.num_devices
    p, r = v.each("p", n, probability=True), v.each("r", n, probability=True)
    if (p + r == 0).any():
        raise v.error("r", "p and r are both 0: a link that never changes has no long-run average")
    good, bad = v.each("loss_good", n, 0.0, probability=True), v.each("loss_bad", n, 1.0, probability=True)
    return GilbertElliott(p, r, good, bad, text)


def _trace(v: LawValues, text: str) -> Law:
    return Trace(*read_trace(Path(str(v.get("file"))), v.num_devices), text)


LAWS: Registry[Callable[[LawValues, str], Law]] = Registry(
    "nonn.laws",
    {
        "independent": _independent,
        "groups": _groups,
        "k-of-n": _k_of_n,
        "markov": _markov,
        "battery": _battery,
        "gilbert-elliott": _gilbert_elliott,
        "trace": _trace,
    },
)


def parse_law(text: str, num_devices: int) -> Law:
    """Parses a law in the form of the command line.

    Raises:
        ConfigError: unknown law or key, unknown node, a negative rate, or an empty group.
    """
    kind, _, rest = text.strip().partition(" ")
    rest, source = rest.strip(), f"law '{text.strip()}'"
    starts = list(_KEY.finditer(rest))
    bare = rest[: starts[0].start()].strip() if starts else rest
    if kind == "trace":
        starts, bare = [], rest  # a file name may contain anything
    values: dict[str, Any] = {}
    if bare:
        if kind in LAWS and kind not in _BARE:
            raise ConfigError(f"{source}: '{bare}' has no name; write KEY=VALUE")
        values[_BARE.get(kind, "")] = bare if kind == "trace" else _value(bare, source)
    ends = [*(start.start() for start in starts[1:]), len(rest)]
    for this, end in zip(starts, ends, strict=False):
        value = rest[this.end() : end]
        if this[1] in values:
            raise ConfigError(f"{source}: '{this[1]}' is given twice")
        values[this[1]] = _value(value.strip(), source)
    return law_from_mapping({"kind": kind, **values}, num_devices, source=source, text=text.strip())


def law_from_mapping(values: Mapping[str, Any], num_devices: int, *, source: str, text: str = "") -> Law:
    """Makes a law from a TOML table with its ``kind``.

    Args:
        values: the table.
        num_devices: N.
        source: the file, for error messages.
        text: the law as shown to users; made from the values if empty.

    Raises:
        ConfigError: as ``parse_law``.
    """
    rest = dict(values)
    kind = rest.pop("kind", None)
    build = LAWS.load(str(kind), f"{source}: failure law")
    reader = LawValues(rest, num_devices, source)
    law: object = build(reader, text or " ".join([str(kind), *(f"{k}={v}" for k, v in rest.items())]))
    if not isinstance(law, Law):
        raise ConfigError(f"{source}: {kind} gave a {type(law).__name__}, not a nonn.reliability.laws.Law")
    reader.done()
    return law


def _value(text: str, source: str) -> Any:
    """A TOML value."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(f"{source}: '{text}' is not a number or a list") from None
