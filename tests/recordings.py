"""A bundle of sensing nodes, and a recording whose windows have known answers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.bundle.manifest import SMOOTHING
from nonn.bundle.smoothed import SmoothedTable
from nonn.enumeration.smoothed import measure_smoothed
from nonn.reliability.table import SubsetTable
from nonn.sensing import SensingSpec
from nonn.sensing.smoothing import learn
from tests.reports import rewritten
from tests.toys import toy_bundle, toy_data

RATE, SHAPE = 8.0, (2, 8)  # windows of one second
CHANNELS = ("acc_x", "acc_y")


def sensing_bundle(path: Path, num_devices: int = 3, *, tested: bool = False) -> Bundle:
    """Each unit measures the same two channels; windows follow each other without a gap."""
    spec = SensingSpec(RATE, SHAPE[1], 1.0, CHANNELS, ("m/s2",) * 2, (1.0,) * 2, (0.0,) * 2, (255.0,) * 2, (10.0,) * 2)
    return toy_bundle(path, num_devices, tested=tested, shape=SHAPE, sensing=spec)


def camera_bundle(path: Path, num_devices: int = 2) -> Bundle:
    """Each unit is a camera that sees the whole picture, eight times a second."""
    frame = (8, 8)
    spec = SensingSpec(RATE, 1, 1.0, ("grey",), ("",), (1.0,), quiet=(10.0,), frame=frame, tolerance_s=0.1)
    return toy_bundle(path, num_devices, shape=(1, *frame), sensing=spec)


def smoothing_bundle(bundle: Bundle, path: Path, kind: str = "hmm") -> Bundle:
    """The same bundle with smoothing, learned and measured on its test windows as two recordings."""
    features, labels = bundle.features
    places = np.stack([np.arange(len(labels)) // 100, np.arange(len(labels)) % 100], axis=1)
    smoothing = learn(kind, labels, places, len(bundle.manifest.classes), 0.5)
    found = measure_smoothed(bundle.head, features, labels, places, smoothing)
    table = SubsetTable(found.correct, len(labels))
    return rewritten(
        bundle, path, {SMOOTHING: SmoothedTable(smoothing, table, found.effective, found.runs, found.lag).to_arrays()}
    )


def windows(number: int, seed: int = 5) -> tuple[Any, Any]:
    """Windows [n, 2, 8] as float32, and their labels."""
    inputs, labels = toy_data(number, seed, SHAPE)
    return inputs.astype(np.float32), labels


def write_recording(path: Path, found: Any, header: Any = ("time", *CHANNELS)) -> Path:
    """Windows one after another as CSV; the first sample is at 1/8 s, so that the first window ends at 1 s."""
    rows = found.transpose(0, 2, 1).reshape(-1, found.shape[1])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for i, row in enumerate(rows):
            writer.writerow(([(i + 1) / RATE] if header[0] == "time" else []) + [f"{v:g}" for v in row])
    return path
