"""Nodes that measure themselves, and fail one after another: streamed accuracy compared with the bundle's table.

One process per unit replays its channels of the test people, on a clock that is wrong; the aggregator aligns, fuses and
streams. Then the units fail: their samples come in bursts with losses, their sensor hangs, their process is killed. For
each set of units the streamed accuracy stands next to the table's, and every mask is compared with what really worked.

::

    python examples/sensing/demo.py                                        # makes a recording and trains, a minute
    python examples/sensing/demo.py --bundle runs/wearables/bundle         # a bundle of yours, with its data in place

Windows are replayed in random order: otherwise each set of units would see other activities than the next. Exit code 7:
the streamed accuracy of a set differs from the table's (99 % over all sets together), a mask is wrong, or an answer is
missing while a unit senses.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from nonn import Client, load
from nonn.bundle.views import select_view
from nonn.config import load_experiment
from nonn.data import load_data
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.reliability.intervals import unpaired_difference, wilson

HERE = Path(__file__).parent
LEAD_S = 10.0  # until all processes are up
LOSS = 0.2  # of the windows of a unit that loses samples, in bursts
BURST = 3  # windows
ALPHA = 0.01  # a set that agrees is called different in one of a hundred runs


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


def plan(number: int, units: int, seed: int) -> tuple[np.ndarray, dict[int, int]]:
    """Which windows of each unit have data [number, units], and from which window on a unit is killed.

    Unit by unit fails: the first loses samples in bursts, the next hangs, the next is killed, and so on; the last one
    works until the end.
    """
    works, killed, rng = np.ones((number, units), bool), {}, np.random.default_rng(seed)
    for unit in range(units - 1):
        since = (unit + 1) * number // units
        if unit % 3 == 2:
            killed[unit] = since
            works[since:, unit] = False
        elif unit % 3 == 1:
            works[since:, unit] = False
        for start in range(number):
            if unit % 3 == 0 and rng.random() < LOSS / BURST:
                works[start : start + BURST, unit] = False
    return works, killed


def write_unit(path: Path, windows: np.ndarray, works: np.ndarray, unit: int, spec: Any) -> None:
    """Writes the recording of one unit; windows without data are missing (bursts) or constant (a sensor that hangs)."""
    scale = np.array(spec.scale)[:, None]
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["time", *spec.channels])
        for k, window in enumerate(windows):
            if not works[k] and unit % 3 == 0 and k:
                continue
            values = (
                window / scale if works[k] or unit % 3 != 1 else np.repeat(windows[0][:, :1] / scale, spec.samples, 1)
            )
            for j, row in enumerate(values.T):
                at = k * spec.window_s + (j + 1) / spec.rate_hz
                writer.writerow([f"{at:.4f}", *(f"{v:.6g}" for v in row)])


def start(*arguments: Any, log: Path) -> subprocess.Popen[bytes]:
    """Starts a process that ends with this one."""
    command = [sys.executable, "-m", *map(str, arguments), "--watch-stdin"]
    with log.open("wb") as stderr:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)


def usage(pid: int) -> tuple[float, float]:
    """Resident megabytes and processor seconds of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))
    ticks = sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return resident / 1e3, ticks / 100


def replay(bundle: Any, windows: np.ndarray, works: np.ndarray, killed: dict[int, int], speed: float) -> dict[str, Any]:
    """Runs the processes; returns the answer to each window and what the nodes used."""
    units, hop_s = bundle.num_devices, bundle.manifest.sensing.hop_s
    answers: dict[int, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        token = folder / "join.token"
        token.write_text("a-token-of-this-demonstration")
        security, children = ("--join-token-file", token), []
        try:
            serve = (
                "nonn",
                "serve",
                bundle.path,
                "--joins",
                *security,
                "--replay-speed",
                speed,
                "--window-wait",
                hop_s,
            )
            aggregator = start(*serve, log=folder / "aggregator.log")
            children.append(aggregator)
            address = json.loads(aggregator.stdout.readline())["address"]
            begin = np.ceil((time.time() + LEAD_S) * speed / hop_s) * hop_s / speed
            nodes = []
            for unit in range(units):
                spec, view = bundle.sensing_of(unit), bundle.manifest.students[unit].view
                write_unit(folder / f"{unit}.csv", select_view(windows, view), works[:, unit], unit, spec)
                first = begin + 1 / spec.rate_hz / speed
                wrong = f"offset={4 * unit / max(1, units - 1) - 2:g}&drift={100 * (-1) ** unit}"
                source = f"csv:{folder / f'{unit}.csv'}?speed={speed:g}&start={first:.6f}&{wrong}"
                joining = (
                    "nonn_device",
                    "join",
                    address,
                    "--id",
                    f"unit-{unit}",
                    "--data",
                    folder / str(unit),
                    *security,
                )
                nodes.append(start(*joining, "--student", unit, "--source", source, log=folder / f"{unit}.log"))
            children += nodes
            used, before = {}, {}
            with Client(address) as client:
                for answer in client.watch():
                    k = round((answer.time - begin) * speed / hop_s) - 1
                    if k < 0:
                        continue
                    answers[k] = answer
                    if k == 5:
                        before = {u: (time.time(), usage(nodes[u].pid)[1]) for u in range(units)}
                    if k == len(windows) // units - 1 and before:
                        now = {u: usage(nodes[u].pid) for u in range(units)}
                        used = {
                            "node_rss_mb": max(rss for rss, _ in now.values()),
                            "node_cpu_percent": max(
                                100 * (cpu - before[u][1]) / (time.time() - before[u][0]) for u, (_, cpu) in now.items()
                            ),
                        }
                    for unit, since in killed.items():
                        if k == since - 1:
                            nodes[unit].kill()
                    if k % 25 == 0:
                        print(f"window {k}: {answer.label or 'no answer'}, units {answer.devices}", file=sys.stderr)
                    if k >= len(windows) - 2:
                        break
        finally:
            for child in children:
                child.kill()
                child.wait()
                child.stdin.close()
                child.stdout.close()
    return {"answers": answers, **used}


def compare(
    bundle: Any, labels: np.ndarray, order: np.ndarray, works: np.ndarray, answers: dict[int, Any]
) -> dict[str, Any]:
    """Streamed accuracy of every set of units next to the table's, and every mask next to what worked."""
    by_mask, wrong, missing, same, absent = defaultdict(list), 0, 0, 0, 0
    features, _ = bundle.features
    # The last window may lack the sample after it, and a kill takes effect somewhere inside of one.
    for k in range(1, len(order) - 1):
        answer = answers.get(k)
        mask = answer.mask if answer else 0
        if mask == 0 and works[k].any():
            missing += 1
            print(f"window {k} has no answer: {dict(answer.missing) if answer else 'not received'}", file=sys.stderr)
        wrong += any(mask >> u & 1 and not works[k, u] for u in range(works.shape[1]))
        absent += sum(bool(works[k, u]) and not mask >> u & 1 for u in range(works.shape[1]))
        if mask:
            by_mask[mask].append(bool(answer.label == bundle.manifest.classes[labels[order[k]]]))
            offline = bundle.head.logits({i: features[i][order[k]][None] for i in answer.devices})
            same += answer.class_number == int(offline.argmax())
    rows, level = [], 1 - ALPHA / max(1, len(by_mask))
    for mask, correct in sorted(by_mask.items(), key=lambda item: (-item[0].bit_count(), item[0])):
        expected, samples = int(bundle.table.correct[mask]), bundle.table.samples
        streamed, table = sum(correct) / len(correct), expected / samples
        ends = wilson(sum(correct), len(correct), level), wilson(expected, samples, level)
        low, high = unpaired_difference(streamed, ends[0], table, ends[1])
        row = {"units": [u for u in range(works.shape[1]) if mask >> u & 1], "windows": len(correct)}
        row |= {"streamed": streamed, "table": table, "agrees": bool(low <= 0 <= high)}
        rows.append(row)
    number = sum(row["windows"] for row in rows)
    delays = np.array([1e3 * a.delay_s for k, a in answers.items() if a.mask and 1 <= k < len(order) - 1])
    sent, raw = (np.array([getattr(a, name) for a in answers.values() if a.mask]) for name in ("bytes", "raw_bytes"))
    return {
        "windows": len(order) - 2,
        "answers_missing": missing,
        "masks_with_a_unit_that_did_not_sense": wrong,
        "unit_windows_lost": absent,
        "equal_to_offline": same / max(1, number),
        "delay_p50_ms": float(np.median(delays)),
        "delay_p95_ms": float(np.quantile(delays, 0.95)),
        "bytes_per_answer": float(sent.mean()),
        "raw_bytes_per_answer": float(raw.mean()),
        "raw_over_sent": float((raw / sent).mean()),
        "rows": rows,
    }


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
    config = bundle.manifest.provenance["config"]
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in config["data"].items()]
    experiment = load_experiment(None, overrides)
    test = load_data(experiment.data, config["experiment"]["seed"]).test
    order = np.random.default_rng(1).permutation(len(test.labels))[: args.windows]
    works, killed = plan(len(order), bundle.num_devices, seed=2)
    found = replay(bundle, test.inputs[order], works, killed, args.speed)
    answers = found.pop("answers")
    result = {"speed": args.speed, **compare(bundle, test.labels, order, works, answers), **found}
    print(f"{'units':<16}{'windows':>8}{'streamed':>10}{'table':>8}")
    for row in result["rows"]:
        units = ",".join(map(str, row["units"]))
        said = "" if row["agrees"] else "  differs"
        print(f"{units:<16}{row['windows']:>8}{row['streamed']:>10.1%}{row['table']:>8.1%}{said}")
    print(json.dumps({key: value for key, value in result.items() if key != "rows"}))
    if args.json:
        write_json(
            args.json,
            {"command": "examples/sensing/demo.py", **result, "machine": machine(), "code_version": code_version()},
        )
    bad = result["answers_missing"] or result["masks_with_a_unit_that_did_not_sense"]
    return 7 if bad or not all(row["agrees"] for row in result["rows"]) else 0


if __name__ == "__main__":
    sys.exit(main())
