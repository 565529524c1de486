"""Recordings as CSV files: windows of the columns that ``data.columns`` names.

``data.path`` is a file, or a folder of them. The files are cut into windows with the code that a node uses for its own
sensor (``nonn.sensing.windows``), so resampling and gaps are the same in training and in service. A window whose rows
have different labels, or none, is left out, and so is one with a gap or a value that is not a number.

Groups are the values of the column ``data.group``, or with ``data.group = "file"`` the files. They are numbered from 0
in sorted order, unless they are integers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.config import DataConfig
from nonn.data.dataset import Split
from nonn.data.source import Source, find, number_classes
from nonn.data.splits import choose_groups, split_by_share
from nonn.errors import ConfigError, DataError
from nonn.sensing import SensingSpec
from nonn.sensing.columns import rows
from nonn.sensing.windows import Windower

__all__ = ["read"]


def read(config: DataConfig, seed: int) -> Source:
    """Reads the recordings; ``seed`` draws the test split unless ``data.test_groups`` names it.

    Raises:
        ConfigError: no columns are named.
        DataError: a file cannot be read, lacks a column, or no window is left; the message names it.
    """
    path = find(config, "a CSV file, or a folder of them", "record some")
    if not config.columns:
        raise ConfigError("data.columns: name the columns of the channels, for example data.columns=['acc_x', 'acc_y']")
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no file *.csv in this folder")
    num = len(config.columns)
    spec = SensingSpec(
        config.rate_hz,
        max(2, round(config.window_s * config.rate_hz)),
        config.hop_s or config.window_s,
        config.columns,
        ("",) * num,
        (1.0,) * num,
    )
    windows, labels, groups = list[NDArray[np.float32]](), list[str](), list[str]()
    places = list[tuple[int, int]]()
    for number, file in enumerate(files):
        found = _add(file, config, spec, windows, labels, groups)
        places += [(number, place) for place in found]
    if not windows:
        raise DataError(
            f"{path}: no window of {config.window_s:g} s with one label in column '{config.labels}'; shorten "
            "data.window_s, or look for gaps"
        )
    numbers, classes = number_classes([np.array(labels)], None, f"{path}, column '{config.labels}'")
    # Without groups the test split is drawn window by window: nothing in it follows anything.
    data = Split(np.stack(windows), numbers[0], np.array(places, np.int64) if config.group else None)
    if not config.group:
        if config.test_groups:
            raise DataError(f"{path}: data.test_groups is set, so name the column of groups: --set data.group=NAME")
        train, test = split_by_share(data, config.test, seed, str(path))
        return Source(path.stem, train, test, classes)
    numbered = _numbered(groups)
    tested = choose_groups(numbered, config.test_groups, config.test, seed, f"{path}, groups by '{config.group}'")
    train, test = data.take(np.flatnonzero(~tested)), data.take(np.flatnonzero(tested))
    return Source(path.stem, train, test, classes, numbered[~tested])


def _add(
    file: Path, config: DataConfig, spec: SensingSpec, windows: list[Any], labels: list[str], groups: list[str]
) -> list[int]:
    """Adds the windows of one file, with their labels and groups; returns the place of each in the recording."""
    by_file = config.group == "file"
    further = (config.labels, *([config.group] if config.group and not by_file else []))
    found = list(rows(file, spec, further, "data.columns"))
    if not found:
        return []
    places = list[int]()
    times, values, texts = np.array([r[0] for r in found]), np.array([r[1] for r in found]), [r[2] for r in found]
    windower = Windower(spec)
    windower.aim(float(times[0]) + spec.window_s - 1 / spec.rate_hz)
    for place, window in enumerate(windower.add(times, values)):
        first, last = np.searchsorted(times, [window.end_s - spec.window_s, window.end_s], side="right")
        kinds = set(texts[first:last])
        if window.values is not None and len(kinds) == 1 and (kind := kinds.pop())[0]:
            places.append(place)
            windows.append(window.values)
            labels.append(kind[0])
            groups.append(file.stem if by_file else kind[1] if config.group else "")
    return places


def _numbered(groups: list[str]) -> NDArray[np.int64]:
    """Groups as numbers: their own if they are integers, else by their order."""
    try:
        return np.array(groups, np.int64)
    except ValueError:
        order = {name: number for number, name in enumerate(sorted(set(groups)))}
        return np.array([order[name] for name in groups], np.int64)
