"""Is a method of distillation worth anything here? Each one alone, and the best three together; see docs/methods.md.

Every row trains the same eight students for as many epochs on the same data: cross entropy with the labels, plus one
method (``benchmarks.method_rows``). The row ``labels`` has nothing else, so a row is worth its difference from it, or
from the row with labels alone on the same data and parts. Accuracy is that of the ridge head over all subsets of
devices, on the test split. The three methods of the row ``together`` are those with the highest accuracy on the
held-out split, over subsets of all sizes and all seeds, of the rows with the same data and devices.

    python -m benchmarks.methods                       # all rows on digits; finished ones are skipped
    python -m benchmarks.methods labels kd --seeds 0   # some rows, some seeds
    python -m benchmarks.methods --set distill.epochs=30 --out longer.json
    python -m benchmarks.methods --data cifar100-20 --set data.path=FOLDER

Limits: 538 training images of 8×8 in the classes of digits, and tiny students; what helps here need not help elsewhere.
A difference below the standard deviation of the seeds means nothing. Weights are those of the papers where the paper's
scale is that of the sums here, otherwise such that the term is of the size of the cross entropy; none was tuned.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.method_rows import DATA, NEXT_TO, ROWS, Data, composes, filled
from nonn.config import Experiment, load_experiment
from nonn.distill.heads import held_out_accuracy
from nonn.errors import NonnError
from nonn.experiment.evaluation import evaluate_head
from nonn.experiment.search import search_widths
from nonn.experiment.stages import exclusive
from nonn.experiment.study import features_of_test
from nonn.experiment.teachers import teacher_accuracy, train_teacher
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace
from nonn.files import digest, write_json
from nonn.provenance import code_version, machine

FOLDER = Path(__file__).parent / "results"
TOGETHER, BEST = "together", 3


def main() -> int:
    """Trains what is missing and writes the results after every row; 1 if a row could not be trained."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all by default: {', '.join([*ROWS, TOGETHER])}")
    parser.add_argument("--data", choices=DATA, default="digits", help="data set, with the experiment of all rows")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the stages")
    parser.add_argument("--out", type=Path, help="results, read and extended; by default in benchmarks/results")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="changes the experiment")
    args = parser.parse_args()
    unknown = [name for name in args.rows if name not in ROWS and name != TOGETHER]
    if unknown:
        parser.error(f"no row {', '.join(unknown)}; there are: {', '.join([*ROWS, TOGETHER])}")
    torch.set_num_threads(1)
    data = DATA[args.data]
    try:
        study = Study(data, (*data.base, *args.set), args.runs, args.out or FOLDER / data.results)
        with exclusive(study.folder):
            return measure_all(study, args.rows, args.seeds)
    except NonnError as exc:
        parser.error(str(exc))


def measure_all(study: Study, rows: Sequence[str], seeds: Sequence[int]) -> int:
    """Measures the rows, or all of them and the best ones together; 1 if a row could not be trained."""
    failed = False
    for seed in seeds:
        for name in [name for name in rows or ROWS if name != TOGETHER]:
            try:
                study.measure(name, ROWS[name], seed)
            except NonnError as exc:  # such as a loss that is not finite: the other rows are measured all the same
                failed = True
                print(f"{name}, seed {seed}: {exc}", file=sys.stderr, flush=True)
    if not rows or TOGETHER in rows:
        chosen = best_of(study.found["rows"], seeds)
        study.found["together"] = chosen
        for seed in seeds:
            study.measure(TOGETHER, tuple(change for name in chosen for change in ROWS[name]), seed)
    return int(failed)


def best_of(rows: Mapping[str, Any], seeds: Sequence[int], count: int = BEST) -> list[str]:
    """The methods with the highest accuracy on the held-out split among those that have all seeds.

    Of two methods that change the same option only the better one is taken.
    """
    complete = {
        name: statistics.mean(row["runs"][str(seed)]["held_out"] for seed in seeds)
        for name, row in rows.items()
        if name in ROWS and composes(name) and all(str(seed) in row["runs"] for seed in seeds)
    }
    chosen: list[str] = []
    for name in sorted(complete, key=lambda name: -complete[name]):
        keys = {change.partition("=")[0] for change in ROWS[name]}
        if len(chosen) < count and not any(keys & {c.partition("=")[0] for c in ROWS[other]} for other in chosen):
            chosen.append(name)
    return chosen


class Study:
    """The rows of one data set and their results.

    Args:
        data: the data set.
        base: changes of its experiment file for all rows.
        runs: folder of all runs; ``folder`` is that of the stages of this study.
        out: file of the results.
    """

    def __init__(self, data: Data, base: Sequence[str], runs: Path, out: Path) -> None:
        self.data, self.base, self.runs, self.out = data, tuple(base), runs, out
        stated = [change for change in base if not change.startswith("data.path=")]  # a path is of one machine
        self.found: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        if self.found and self.found["base"] != stated:
            raise SystemExit(f"{out}: results of another experiment; remove the file, or name another one with --out")
        self.found = self.found or {"base": stated, "rows": {}}
        self.folder = runs / self._experiment().experiment.name

    def measure(self, name: str, changes: Sequence[str], seed: int) -> None:
        """Adds one row and seed to the results, unless they have it."""
        rows, key = self.found["rows"], digest(list(changes))
        row = rows.get(name)
        if row is None or row["key"] != key:
            row = rows[name] = {"changes": list(changes), "key": key, "runs": {}}
        if name in NEXT_TO:
            row["next_to"] = NEXT_TO[name]
        if str(seed) in row["runs"]:
            return
        start = time.monotonic()
        experiment = self._experiment(*self._filled(changes, seed), f"experiment.seed={seed}")
        run = measure(experiment, self.runs)
        row["runs"][str(seed)] = run | {"seconds": round(time.monotonic() - start, 1), "code_version": code_version()}
        self.found |= {"machine": machine(), "rows": {one: rows[one] for one in [*ROWS, TOGETHER] if one in rows}}
        write_json(self.out, self.found)
        levels = [f"{100 * run['accuracy_by_failures'][failed]:.1f}" for failed in (0, 4, 7)]
        print(f"{name}, seed {seed}: {' / '.join(levels)} %", flush=True)

    def _experiment(self, *changes: str) -> Experiment:
        return load_experiment(self.data.file, [*self.base, *changes])

    def _filled(self, changes: Sequence[str], seed: int) -> list[str]:
        """The changes of a row with the files that they need."""
        values = dict(self.data.values)
        if any("{picture}" in change for change in changes):
            import sklearn.datasets

            values["picture"] = Path(sklearn.datasets.__file__).parent / "images" / "china.jpg"
        if any("{teacher}" in change for change in changes):
            other = self._experiment("experiment.name=methods-teacher", "teacher.batch=64", f"experiment.seed={seed}")
            values["teacher"] = train_teacher(Workspace(other, self.runs)).stage.folder / "teacher.safetensors"
        return filled(changes, values)


def measure(experiment: Experiment, runs: Path) -> dict[str, Any]:
    """Trains an experiment and evaluates its head: accuracy by the number of failed devices, and held out."""
    space = search_widths(Workspace(experiment, runs))
    trained = train(space)
    students, data = trained.students.network, space.data
    head = space.heads.fit(trained.teacher.network, students)
    devices = experiment.devices.count
    result = evaluate_head(head, features_of_test(space, students), data.test.labels, range(devices))
    held_out = space.heads.held_out_features(students)
    return {
        "teacher": teacher_accuracy(space, trained.teacher),
        "params": max(space.networks.sizing.params),
        "held_out": held_out_accuracy(head, held_out, data.held_out.labels, space.seed),
        "accuracy_by_failures": [level.mean for level in result.by_failures],
        "worst": [level.worst for level in result.by_failures],
        "cev": [level.cev for level in result.by_failures],
    }


if __name__ == "__main__":
    raise SystemExit(main())
