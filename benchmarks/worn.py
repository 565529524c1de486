"""Body-worn units that are worn wrongly: how soon the others find them, and what it costs until then.

::

    python -m benchmarks.worn runs/wearables/bundle --json benchmarks/results/worn.json

A unit is turned about one of its axes, worn in place of another one, or worn by another person. Its recording is
changed in the test windows of the bundle's data, which must be where they were in training, and its student runs on
that. The windows pass one by one through the test of the aggregator's streams (``nonn.aggregator.screening``). In
service a unit that is quarantined is left out for a while; here all windows are tested.

Limits: windows come in random order, so that each is a new activity; the next window of a stream is less of a surprise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from nonn_sim.samples import own_samples
from numpy.typing import NDArray

from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.screening import Screen
from nonn.bundle import Bundle, load_bundle
from nonn.bundle.prediction import open_session, run_session
from nonn.bundle.views import select_view
from nonn.files import write_json
from nonn.provenance import code_version, machine

Windows = NDArray[Any]
WINDOWS = 400


def turned(windows: Windows, axes: tuple[int, int, int], signs: tuple[int, int, int]) -> Windows:
    """Windows [n, 3 k, T] of a unit whose sensors, x y z each, are turned together."""
    n, channels, steps = windows.shape
    sensors = windows.reshape(n, channels // 3, 3, steps)
    result: Windows = sensors[:, :, list(axes)] * np.array(signs, np.float32)[:, None]
    return result.reshape(windows.shape)


# What each unit measures [N of n, C, T] if one of them is worn wrongly.
FAULTS: dict[str, Callable[[list[Windows], int], Windows]] = {
    "as trained": lambda own, unit: own[unit],
    "turned by a quarter": lambda own, unit: turned(own[unit], (1, 0, 2), (1, -1, 1)),
    "upside down": lambda own, unit: turned(own[unit], (0, 1, 2), (-1, -1, 1)),
    "worn in place of another": lambda own, unit: own[(unit + 1) % len(own)],
    "on a person who does something else": lambda own, unit: np.roll(own[unit], 1, axis=0),
}


def measured(bundle: Bundle, features: list[Windows], labels: NDArray[np.int64], unit: int) -> dict[str, Any]:
    """Passes windows through the test of a stream, until the unit is quarantined."""
    screen, names = (
        Screen(bundle.consistency, PolicyConfig().exclusion_rate),
        [f"unit-{i}" for i in range(len(features))],
    )
    left_out, others, right, blind, found = 0, 0, 0, 0, None
    for k, label in enumerate(labels):
        sent = {i: f[k : k + 1] for i, f in enumerate(features)}
        screened = screen.examine(sent, dict(enumerate(names)))
        left_out += unit in screened.excluded
        others += any(other != unit for other in screened.excluded)
        right += int(bundle.head.logits(screened.features).argmax()) == label
        blind += int(bundle.head.logits(sent).argmax()) == label
        suspected = screen.suspects(screened)
        if found is None and names[unit] in suspected:
            found = k + 1
    shares = {"left_out": left_out, "others_left_out": others, "accuracy": right, "accuracy_without_the_test": blind}
    return {**{key: count / len(labels) for key, count in shares.items()}, "windows_to_quarantine": found}


def rows(bundle: Bundle, windows: int) -> list[dict[str, Any]]:
    """One row for each fault, the mean over all units."""
    samples = own_samples(bundle)
    assert samples.labels is not None
    order = np.random.default_rng(0).permutation(len(samples.labels))[:windows]
    inputs, labels, students = samples.inputs[order], samples.labels[order], bundle.manifest.students
    own = [select_view(inputs, student.view) for student in students]
    sessions = [open_session(bundle.student_path(i)) for i in range(len(students))]

    def features(unit: int, seen: Windows) -> Windows:
        return students[unit].code.roundtrip(run_session(sessions[unit], seen))

    usual, result = [features(i, seen) for i, seen in enumerate(own)], []
    for fault, change in FAULTS.items():
        units = [
            measured(bundle, [*usual[:i], features(i, change(own, i)), *usual[i + 1 :]], labels, i)
            for i in range(len(students))
        ]
        found = [row["windows_to_quarantine"] for row in units if row["windows_to_quarantine"]]
        everyone = (1 << len(students)) - 1
        without = [float(bundle.table.accuracy[everyone & ~(1 << i)]) for i in range(len(students))]
        result.append(
            {
                "fault": fault,
                "windows": len(labels),
                **{key: mean(row[key] for row in units) for key in units[0] if key != "windows_to_quarantine"},
                "quarantined_units": len(found),
                "windows_to_quarantine_median": median(found) if found else None,
                "table_without_the_unit": mean(without),
            }
        )
    return result


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("bundle", type=Path, help="a bundle of body-worn units")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="test windows (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    found = rows(bundle, args.windows)
    for row in found:
        print(json.dumps(row))
    if args.json:
        write_json(
            args.json, {"bundle": bundle.hash, "rows": found, "machine": machine(), "code_version": code_version()}
        )


if __name__ == "__main__":
    main()
