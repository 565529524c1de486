"""Nodes that read sensors, and fail one after another: streamed accuracy compared with the bundle's table.

One process per unit replays its channels of the test people, or its pictures, on a clock that is wrong; the aggregator
aligns, fuses and streams. Then the units fail: their samples come in bursts with losses, their sensor hangs, their
process is killed. For each set of units the streamed accuracy stands next to the table's, and every mask is compared
with what really worked. A second replay, without failures, has an accuracy goal: the units beyond it rest.

::

    python examples/sensing/demo.py                                        # makes a recording and trains, two minutes
    python examples/sensing/demo.py --bundle runs/wearables/bundle         # a bundle of yours, with its data in place

Exit code 7: the streamed accuracy of a set differs from the table's (99 % over all sets together), a mask is wrong, or
an answer is missing while a unit senses.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from nonn_sim.recorded import SensingFaults
from nonn_sim.samples import own_samples
from nonn_sim.sensing_compared import compared
from nonn_sim.sensing_live import replay

from nonn import load
from nonn.files import write_json
from nonn.provenance import code_version, machine

HERE = Path(__file__).parent
LOSS = 0.2  # of the windows of a unit that loses samples, in bursts
BURST = 3  # windows
GOAL = 0.5  # of the way from the best single unit to all units
PERIODS = 4  # choices of the units that work, during the replay with a goal


def make_recording(path: Path, people: int = 8, activities: int = 4, windows: int = 30) -> None:
    """Writes made windows [n, 15, 50] of five units: an activity has a rhythm on each unit, a person an offset."""
    rng, units, steps = np.random.default_rng(0), 5, 50
    rhythm = rng.uniform(1, 5, (activities, units, 1, 1))
    size = rng.uniform(0.5, 2.0, (activities, units, 3, 1))
    at, made, activity, person = np.arange(steps) / 25, [], [], []
    for who in range(1, people + 1):
        pace, lean = rng.normal(1, 0.1), rng.normal(0, 0.3, (units, 3, 1))
        for what in range(activities):
            for _ in range(windows):
                turn = rng.uniform(0, 2 * np.pi, (units, 3, 1))
                clean = size[what] * np.sin(2 * np.pi * pace * rhythm[what] * at + turn) + lean
                made.append((clean + rng.normal(0, 1.0, (units, 3, steps))).reshape(units * 3, steps))
                activity.append(what)
                person.append(who)
    names = np.array(["walking", "rowing", "jumping", "cycling"])
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {"activity": np.array(activity), "person": np.array(person), "classes": names}
    np.savez(path, windows=np.array(made, np.float32), **arrays)


def plan(number: int, units: int, seed: int) -> SensingFaults:
    """Unit by unit fails: the first loses samples in bursts, the next hangs, the next is killed, and so on.

    The last one works until the end. Clocks are wrong by up to two seconds and 100 ppm.
    """
    lost, flat, killed = np.zeros((number, units), bool), np.zeros((number, units), bool), dict[int, int]()
    rng = np.random.default_rng(seed)
    for unit in range(units - 1):
        since = (unit + 1) * number // units
        if unit % 3 == 2:
            killed[unit] = since
        elif unit % 3 == 1:
            flat[since:, unit] = True
        else:
            for start in np.flatnonzero(rng.random(number) < LOSS / BURST):
                lost[start : start + BURST, unit] = True
    offsets = tuple(4 * unit / max(1, units - 1) - 2 for unit in range(units))
    return SensingFaults(lost, flat, killed, offsets, tuple(100.0 * (-1) ** unit for unit in range(units)))


def with_goal(
    bundle: Any, inputs: Any, labels: Any, order: Any, failing: SensingFaults, speed: float
) -> dict[str, Any]:
    """The first half of the windows on the same clocks, without failures; units beyond an accuracy goal rest."""
    accuracy, units = bundle.table.accuracy, bundle.num_devices
    single, everyone = max(accuracy[1 << unit] for unit in range(units)), accuracy[-1]
    goal = round(float(single + GOAL * (everyone - single)), 3)
    none = np.zeros((len(order), units), bool)
    calm = SensingFaults(none, none, {}, failing.offset_s, failing.drift_ppm)
    period_s = len(order) * bundle.manifest.sensing.hop_s / PERIODS
    found = replay(bundle, inputs, calm, speed, goal=goal, duty_period_s=period_s, say=say)
    return {"accuracy_goal": goal, **compared(bundle, labels, order, calm.works, found.answers)}


def say(line: str) -> None:
    """Prints progress."""
    print(line, file=sys.stderr)


def show(result: dict[str, Any]) -> bool:
    """Prints one replay; returns whether all of it is as it should be."""
    print(f"{'units':<16}{'windows':>8}{'streamed':>10}{'table':>8}")
    for row in result["rows"]:
        units = ",".join(map(str, row["units"]))
        said = "" if row["agrees"] else "  differs"
        print(f"{units:<16}{row['windows']:>8}{row['streamed']:>10.1%}{row['table']:>8.1%}{said}")
    print(json.dumps({key: value for key, value in result.items() if key not in ("rows", "goal")}))
    bad = result["answers_missing"] or result["masks_with_a_unit_that_did_not_sense"]
    return not bad and all(row["agrees"] for row in result["rows"])


def main() -> int:
    """Runs the demonstration; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, help="a bundle with [sensing] (default: train one on a made recording)")
    parser.add_argument("--speed", type=float, default=4.0, help="times the speed of life (default: %(default)s)")
    parser.add_argument("--windows", type=int, default=120, help="windows to replay (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    if args.bundle is None:
        from nonn import run

        data = Path("runs/sensing/made.npz")
        make_recording(data)
        bundle = run(HERE / "sensing.toml", overrides=[f"data.path='{data}'"]).bundle
        bundle = load(bundle) if isinstance(bundle, str | Path) else bundle
    else:
        bundle = load(args.bundle)
    test = own_samples(bundle)
    order = np.random.default_rng(1).permutation(len(test.labels))[: args.windows]
    inputs, failing = test.inputs[order], plan(len(order), bundle.num_devices, seed=2)
    found = replay(bundle, inputs, failing, args.speed, say=say)
    measured = compared(bundle, test.labels, order, failing.works, found.answers)
    result = {"speed": args.speed, **measured, **found.used}
    good = show(result)
    half = len(order) // 2
    goal = with_goal(bundle, inputs[:half], test.labels, order[:half], failing, args.speed)
    result["goal"] = goal
    working = f"{goal['units_mean']:.1f} of {bundle.num_devices} units work"
    print(f"\nwith --accuracy-goal {goal['accuracy_goal']:g}, {working}:")
    good = show(goal) and good
    if args.json:
        write_json(
            args.json,
            {"command": "examples/sensing/demo.py", **result, "machine": machine(), "code_version": code_version()},
        )
    return 0 if good else 7


if __name__ == "__main__":
    sys.exit(main())
