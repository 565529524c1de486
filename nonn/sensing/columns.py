"""Tables of samples, in a file or line by line: which columns are the channels, in which units, and the time.

A name may have its unit in brackets: ``acc_x [g]``. A column ``time``, ``timestamp`` or ``t`` has the time, in seconds
unless it says otherwise.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path

from nonn.errors import DataError
from nonn.sensing import SensingSpec
from nonn.sensing.spec import to_unit

__all__ = ["Columns", "is_header", "rows"]

TIME = ("time", "timestamp", "t")


@dataclass(frozen=True)
class Columns:
    """The columns of the channels.

    Attributes:
        places: column of each channel [C].
        factors: from the unit of the column to that of the bundle [C].
        time: column of the time; None if there is none.
        time_factor: from its unit to seconds.
        width: number of columns.
    """

    places: tuple[int, ...]
    factors: tuple[float, ...]
    time: int | None
    time_factor: float
    width: int

    @classmethod
    def named(cls, header: Sequence[str], spec: SensingSpec, what: str, key: str = "sensing.channels") -> Columns:
        """From a header.

        Args:
            header: cells of the first row.
            spec: the channels.
            what: the file, for messages.
            key: option of the experiment file that names the channels, for messages.

        Raises:
            DataError: a channel has no column, or a name occurs twice.
            ConfigError: a unit does not fit.
        """
        names, units = [], []
        for cell in header:
            match = re.fullmatch(r"\s*(.*?)\s*(?:\[(.*)\])?\s*", cell)
            assert match is not None
            names.append(match[1].lower())
            units.append(match[2] or "")
        for name in {name for name in names if names.count(name) > 1}:
            raise DataError(f"{what}: two columns are called '{name}'")
        missing = [channel for channel in spec.channels if channel.lower() not in names]
        if missing:
            raise DataError(
                f"{what}: no column '{missing[0]}'; the channels are {', '.join(spec.channels)}, the columns "
                f"are {', '.join(names)}; rename the columns, or give these names in {key} of the experiment file"
            )
        places = tuple(names.index(channel.lower()) for channel in spec.channels)
        factors = tuple(
            to_unit(units[place], wanted, f"{what}, column '{channel}'")
            for place, wanted, channel in zip(places, spec.units, spec.channels, strict=True)
        )
        time = next((names.index(name) for name in TIME if name in names), None)
        factor = 1.0 if time is None else to_unit(units[time], "s", f"{what}, column '{names[time]}'")
        return cls(places, factors, time, factor, len(names))

    @classmethod
    def unnamed(cls, width: int, spec: SensingSpec, what: str) -> Columns:
        """Without a header: the channels in the order of the bundle, with or without the time before them.

        Raises:
            DataError: the number of columns fits neither.
        """
        channels = len(spec.channels)
        if width not in (channels, channels + 1):
            raise DataError(
                f"{what}: {width} values; the unit has {channels} channels ({', '.join(spec.channels)}), with or "
                "without a time before them"
            )
        timed = width > channels
        return cls(tuple(range(timed, width)), (1.0,) * channels, 0 if timed else None, 1.0, width)

    def read(self, cells: Sequence[str]) -> tuple[float | None, list[float]]:
        """Time in seconds, None without one, and values of one row; a cell that is no number is NaN.

        Raises:
            ValueError: the time is not a number.
        """
        values = [_number(cells[place]) * factor for place, factor in zip(self.places, self.factors, strict=True)]
        return None if self.time is None else float(cells[self.time]) * self.time_factor, values


def is_header(cells: Sequence[str]) -> bool:
    """Whether a first row has names: a cell that is neither empty nor a number."""
    return any(cell.strip() and _number(cell) != _number(cell) and cell.strip().lower() != "nan" for cell in cells)


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return nan


def rows(
    path: Path, spec: SensingSpec, further: Sequence[str] = (), key: str = "sensing.channels"
) -> Iterator[tuple[float, list[float], tuple[str, ...]]]:
    """Time since the first sample, values, and the text of further columns, of each row of a recording.

    Args:
        path: a CSV file whose first row names the columns.
        spec: the channels; without a column of time the rows have its rate.
        further: names of further columns, such as labels.
        key: see ``Columns.named``.

    Raises:
        DataError: the file cannot be read, a column is missing, a row is too short, or time goes backwards.
        ConfigError: a unit does not fit.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, None)
            if not header:
                raise DataError(f"{path}: empty; its first row must name the columns")
            columns = Columns.named(header, spec, str(path), key)
            names = [re.sub(r"\[.*", "", cell).strip().lower() for cell in header]
            if lacking := [name for name in further if name.lower() not in names]:
                raise DataError(f"{path}: no column '{lacking[0]}'; the columns are {', '.join(names)}")
            places = [names.index(name.lower()) for name in further]
            first, last = None, -1.0
            for number, cells in enumerate(reader):
                if not cells:
                    continue
                where = f"{path}, line {reader.line_num}"
                if len(cells) < columns.width:
                    raise DataError(f"{where}: {len(cells)} columns, the header has {columns.width}")
                try:
                    stamp, values = columns.read(cells)
                except ValueError as exc:
                    raise DataError(f"{where}: the time is not a number ({exc})") from exc
                stamp = number / spec.rate_hz if stamp is None else stamp
                first = stamp if first is None else first
                if stamp - first <= last:
                    raise DataError(
                        f"{where}: time goes backwards, from {first + last:g} to {stamp:g} s; sort the rows by time, "
                        "or split the recording where the clock was set"
                    )
                last = stamp - first
                yield last, values, tuple(cells[place].strip() for place in places)
    except (OSError, UnicodeDecodeError, csv.Error) as exc:
        raise DataError(f"{path}: cannot be read as CSV ({exc})") from exc
