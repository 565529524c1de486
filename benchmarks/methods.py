"""Is a method of distillation worth anything here? Each one alone, and the best three together; see docs/methods.md.

Every row trains the same eight students for as many epochs on the same data: cross entropy with the labels, plus one
method. The row ``labels`` has nothing else, so a row is worth its difference from it. Accuracy is that of the ridge
head over all subsets of devices, on the test split. The three methods of the row ``together`` are those with the
highest accuracy on the held-out split, over subsets of all sizes and all seeds.

    python -m benchmarks.methods                       # all rows; finished ones are skipped
    python -m benchmarks.methods labels kd --seeds 0   # some rows, some seeds
    python -m benchmarks.methods --set distill.epochs=30 --out longer.json

Limits: 538 training images of 8×8 in the classes of digits, and tiny students; what helps here need not help elsewhere.
A difference below the standard deviation of the seeds means nothing. Weights are those of the papers where the paper's
scale is that of the sums here, otherwise such that the term is of the size of the cross entropy; none was tuned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nonn.config import Experiment, load_experiment
from nonn.distill.heads import held_out_accuracy
from nonn.experiment.evaluation import evaluate_head
from nonn.experiment.study import features_of_test
from nonn.experiment.training import teacher_accuracy, train
from nonn.experiment.workspace import Workspace
from nonn.files import digest, write_json
from nonn.provenance import code_version, machine

RESULTS = Path(__file__).parent / "results" / "methods.json"
TOGETHER, BEST = "together", 3

# The experiment of all rows.
BASE = (
    "experiment.name=methods",
    "data.test=0.5",
    "data.held_out=0.4",
    "student.model=wrn-10-0.25",
    "distill.epochs=10",
    "fusion.passes=2",
    "distill.objectives.ce={weight=1.0, on='both'}",
    "distill.objectives.kd.weight=0",
    "distill.objectives.transfer.weight=0",
)


def _term(name: str, weight: float, **options: Any) -> tuple[str, ...]:
    """One objective next to cross entropy."""
    key = f"distill.objectives.{name}"
    return (f"{key}.weight={weight}", *(f"{key}.{k}={json.dumps(v)}" for k, v in options.items()))


_SMALLER = ("devices.resolution=4",)  # a quarter of the pixels
_VIEWS = ("distill.teacher_views=4", "data.noise=0", "data.crop=1")

# The methods, as changes of the experiment. FSP compares layers of equal width only, which these students do not have.
ROWS: Mapping[str, tuple[str, ...]] = {
    "labels": (),
    "kd": _term("kd", 0.9, on="both"),
    "kd standardised": _term("kd", 9.0, on="both", temperature=2.0, standardise=True),
    "dkd": _term("dkd", 1.0, on="both"),
    "label revision": _term("kd", 0.9, on="both", label_revision=0.8),
    "label revision, only wrong": _term("kd", 0.9, on="both", label_revision=0.8, only_wrong=True),
    "data selection": _term("kd", 0.9, on="both", selection=0.1),
    "kd top-k": _term("kd", 0.9, on="both", top_k=5),
    "bkd": _term("bkd", 0.9, on="both"),
    "dtd": _term("dtd", 0.9, on="both"),
    "cwtm": _term("cwtm", 1.0, on="both"),
    "dkpp": _term("dkpp", 0.9, on="both"),
    "mutual": _term("mutual", 0.5),
    "born again": (*_term("kd", 0.9, on="both"), "distill.generations=2"),
    "assistant": (*_term("kd", 0.9, on="both"), "distill.assistants=['wrn-10-2']"),
    "transfer (NoNN)": _term("transfer", 1.0),
    "hint": _term("hint", 0.01),
    "at": _term("at", 1.0),
    "srrl": _term("srrl", 0.1),
    "sp": _term("sp", 1.0),
    "rkd": _term("rkd", 0.02),
    "pkt": _term("pkt", 1.0),
    "lckd": _term("lckd", 0.001),
    "vid": _term("vid", 0.01),
    "crd": _term("crd", 0.1),
    "srm": _term("srm", 0.1, warm_up=0.2),
    "simreg": _term("simreg", 1.0),
    "mimkd": _term("mimkd", 0.5),
    "rtk": _term("rtk", 1.0),
    "gcl": _term("gcl", 1.0, on="both"),
    "pcl": _term("pcl", 0.5),
    "sokd": _term("sokd", 0.5),
    "ie-kd": _term("ie_kd", 1.0),
    "afd": _term("afd", 0.1),
    "afd, attention": _term("afd", 0.1, maps="attention"),
    "kd, stored views": (*_term("kd", 0.9, on="both"), *_VIEWS),
    "vrkd": (*_term("vrkd", 0.9, on="both"), *_VIEWS),
    "umts": (*_term("umts", 0.01), *_VIEWS),
    "labels, 4×4 pixels": _SMALLER,
    "kd, 4×4 pixels": (*_term("kd", 0.9, on="both"), *_SMALLER),
    "pixel distillation": (*_term("kd", 0.9, on="both"), *_term("pixel", 1.0), *_SMALLER),
}


def main() -> int:
    """Trains what is missing and writes the results after every row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all by default: {', '.join([*ROWS, TOGETHER])}")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the stages")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, read and extended")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the experiment")
    args = parser.parse_args()
    unknown = [name for name in args.rows if name not in ROWS and name != TOGETHER]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join([*ROWS, TOGETHER])}")
    torch.set_num_threads(1)
    base = (*BASE, *args.set)
    found = _read(args.out, base)
    for seed in args.seeds:
        for name in [name for name in args.rows or ROWS if name != TOGETHER]:
            _measure(found, name, ROWS[name], seed, base, args)
    if not args.rows or TOGETHER in args.rows:
        chosen = best_of(found["rows"], args.seeds)
        found["together"] = chosen
        for seed in args.seeds:
            _measure(found, TOGETHER, tuple(change for name in chosen for change in ROWS[name]), seed, base, args)
    return 0


def best_of(rows: Mapping[str, Any], seeds: Sequence[int], count: int = BEST) -> list[str]:
    """The methods with the highest accuracy on the held-out split among those that have all seeds.

    Of two methods that change the same option only the better one is taken.
    """
    complete = {
        name: statistics.mean(row["runs"][str(seed)]["held_out"] for seed in seeds)
        for name, row in rows.items()
        if name in ROWS and ROWS[name] and all(str(seed) in row["runs"] for seed in seeds)
    }
    chosen: list[str] = []
    for name in sorted(complete, key=lambda name: -complete[name]):
        keys = {change.partition("=")[0] for change in ROWS[name]}
        if len(chosen) < count and not any(keys & {c.partition("=")[0] for c in ROWS[other]} for other in chosen):
            chosen.append(name)
    return chosen


def _read(path: Path, base: Sequence[str]) -> dict[str, Any]:
    """The results so far, if they are of the same experiment."""
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if found and found["base"] != list(base):
        raise SystemExit(f"{path}: results of another experiment; remove the file, or name another one with --out")
    return found or {"base": list(base), "rows": {}}


def _measure(
    found: dict[str, Any], name: str, changes: Sequence[str], seed: int, base: Sequence[str], args: argparse.Namespace
) -> None:
    """Adds one row and seed to the results, unless they have it."""
    key = digest(list(changes))
    row = found["rows"].get(name)
    if row is None or row["key"] != key:
        row = found["rows"][name] = {"changes": list(changes), "key": key, "runs": {}}
    if str(seed) in row["runs"]:
        return
    start = time.monotonic()
    run = measure(load_experiment(None, [*base, f"experiment.seed={seed}", *changes]), args.runs)
    row["runs"][str(seed)] = run | {"seconds": round(time.monotonic() - start, 1), "code_version": code_version()}
    found["machine"] = machine()
    write_json(args.out, found)
    levels = run["accuracy_by_failures"]
    print(f"{name}, seed {seed}: {100 * levels[0]:.1f} / {100 * levels[4]:.1f} / {100 * levels[7]:.1f} %", flush=True)


def measure(experiment: Experiment, runs: Path) -> dict[str, Any]:
    """Trains an experiment and evaluates its head: accuracy by the number of failed devices, and held out."""
    space = Workspace(experiment, runs)
    trained = train(space)
    students, data = trained.students.network, space.data
    head = space.heads.fit(trained.teacher.network, students)
    devices = experiment.devices.count
    result = evaluate_head(head, features_of_test(space, students), data.test.labels, range(devices))
    held_out = space.heads.held_out_features(students)
    return {
        "teacher": teacher_accuracy(space, trained.teacher),
        "held_out": held_out_accuracy(head, held_out, data.held_out.labels, space.seed),
        "accuracy_by_failures": [level.mean for level in result.by_failures],
        "worst": [level.worst for level in result.by_failures],
        "cev": [level.cev for level in result.by_failures],
    }


if __name__ == "__main__":
    raise SystemExit(main())
