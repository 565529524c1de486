"""``python benchmarks/lease.py --minutes N``: trains students within a fixed time on a rented GPU.

A machine that is rented by the minute starts without data, accepts files of limited size only, and may end at any time.
The work is therefore a plan (``lease.toml``), the most important part first. This program

- packs the data, on the local machine, into parts of limited size (``--pack``): images as lossless WebP, with splits;
- decodes the parts on the rented machine and stores the teacher's answers once for all methods and students;
- measures an epoch of each way to train students (grouped or one by one) and takes the fastest;
- runs short pilots of the variants that the plan lists, and uses the one that is best on the held-out split;
- trains the groups of methods in order, with as many epochs as their share of the remaining time allows;
- writes students and results after every method, in files of limited size; the same command with these files in
  ``--out`` goes on with the methods that are missing.

Without a GPU the same command trains on the CPU; there a method is resumed at its last epoch, from ``--runs``.

The students are files for ``student.weights``: on the local machine ``nonn study`` evaluates them without training
(``distill.epochs = 0``). The test split is never packed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nonn.config import load_experiment
from nonn.data import Dataset, load_data
from nonn.data.parts import pack, unpack
from nonn.distill import DistillTask, Students
from nonn.enumeration import enumerate_subsets
from nonn.errors import ConfigError, DataError, NonnError
from nonn.experiment.methods import METHODS
from nonn.experiment.teachers import TrainedTeacher, stored_answers, train_teacher
from nonn.experiment.training import Cut, Trained, cut_filters, train
from nonn.experiment.weights import save_students
from nonn.experiment.workspace import Workspace
from nonn.files import write_json
from nonn.partition.redundancy import filters_of_device
from nonn.provenance import code_version, machine
from nonn.toml import parse_toml
from nonn.trainer import fit

PLAN = Path(__file__).with_name("lease.toml")
# Options of [distill] for each way to train students, and for those without a CUDA graph, in case none runs as one.
WAYS: Mapping[str, Mapping[str, bool]] = {"grouped": {"grouped": True}, "separate": {"grouped": False}}
PLAIN_WAYS = {f"{way}, no graph": {**options, "captured": False} for way, options in WAYS.items()}
MARGIN = 0.97  # share of the remaining time that is planned for
OVERHEAD_S = 5.0  # of a method, for its cut, its files and its accuracy


# ---- plan ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Methods with one student and equal epochs.

    Attributes:
        name: name of the group.
        share: share of the time of all groups.
        rows: methods, in order.
        set: overrides of the experiment.
        seeds: seeds, each for all rows.
        epochs: a fixed number; 0 fits them to the time.
    """

    name: str
    share: float
    rows: tuple[str, ...]
    set: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    epochs: int = 0


@dataclass(frozen=True)
class Plan:
    """The content of ``lease.toml``.

    Attributes:
        experiment: experiment file.
        set: overrides for everything.
        groups: the work, the most important first.
        pilots: overrides of each variant of the method "ours", by name.
        pilot_set: overrides of the pilots.
        pilot_share: share of the time that pilots may take; those that do not fit are left out.
    """

    experiment: str
    set: tuple[str, ...] = ()
    groups: tuple[Group, ...] = ()
    pilots: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    pilot_set: tuple[str, ...] = ()
    pilot_share: float = 0.25


def read_plan(path: Path) -> Plan:
    """Reads a plan.

    Raises:
        ConfigError: the file is missing, not TOML, or a key or method is unknown.
    """
    tree = parse_toml(path)
    try:
        groups = tuple(
            Group(**{k: tuple(v) if isinstance(v, list) else v for k, v in g.items()}) for g in tree["groups"]
        )
        pilots = {name: tuple(values) for name, values in tree.get("pilots", {}).items()}
        options = {k: tuple(v) if isinstance(v, list) else v for k, v in tree.items() if k not in ("groups", "pilots")}
        plan = Plan(**options, groups=groups, pilots=pilots)
    except (TypeError, KeyError) as exc:
        raise ConfigError(f"{path}: not a plan: {exc}") from exc
    for row in (row for group in groups for row in group.rows):
        if row not in METHODS:
            raise ConfigError(f"{path}: '{row}' is not a method; choose of {', '.join(METHODS)}")
    return plan


# ---- results ---------------------------------------------------------------------------------------------------------


class Outbox:
    """Files to copy back, small ones together in archives, each at most ``limit`` bytes."""

    def __init__(self, folder: Path, limit: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._limit, self._number = folder, limit, 0

    def add(self, name: str, path: Path) -> None:
        """Adds a file to the current archive, or to a new one if it does not fit.

        Raises:
            DataError: an archive of an earlier run is damaged.
        """
        size = path.stat().st_size + 4096
        while (archive := self._folder / f"students-{self._number}.zip").exists():
            if archive.stat().st_size + size <= self._limit and name not in _names(archive):
                break
            self._number += 1
        if size > self._limit:
            print(f"{path}: {size:,} bytes are more than a file may have ({self._limit:,}); it stays here", flush=True)
            return
        with zipfile.ZipFile(archive, "a") as target:
            target.write(path, name)

    def write(self, name: str, document: Any) -> None:
        """Writes a JSON document."""
        write_json(self._folder / name, document)


def _names(archive: Path) -> list[str]:
    """The files in an archive.

    Raises:
        DataError: it is damaged.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            return content.namelist()
    except zipfile.BadZipFile as exc:
        raise DataError(f"{archive}: not a readable archive ({exc}); copy it again, or remove it") from exc


def accuracy_by_failures(space: Workspace, students: Students) -> list[float]:
    """Mean accuracy of the trained fusion on the held-out split over all subsets with 0 … N − 1 failed devices."""
    features = space.heads.held_out_features(students.to(space.device).eval())
    table = enumerate_subsets(students.fusion.head(), features, space.data.held_out.labels)
    return [row.mean for row in table.by_failures()]


# ---- the lease -------------------------------------------------------------------------------------------------------


class Lease:
    """One run on a rented machine.

    Args:
        plan: the work.
        data: the data.
        overrides: further overrides for everything.
        runs: folder of the runs.
        outbox: results.
        seconds: length of the run, from now.
    """

    def __init__(
        self, plan: Plan, data: Dataset, overrides: Sequence[str], runs: Path, outbox: Outbox, seconds: float
    ) -> None:
        self.plan, self.data, self.overrides, self.runs, self.outbox = plan, data, tuple(overrides), runs, outbox
        self._start, self._seconds = time.monotonic(), seconds
        self.chosen: tuple[str, ...] = ()
        self.failed: list[str] = []
        self.results: dict[str, Any] = {
            "machine": machine(),
            "code_version": code_version(),
            "train": len(data.train),
            "held_out": len(data.held_out),
            "image_us": {},
            "pilots": {},
            "rows": {},
        }

    def say(self, text: str) -> None:
        """Prints a line with the seconds since the start."""
        print(f"{time.monotonic() - self._start:7.1f}  {text}", flush=True)

    @contextmanager
    def bar(self, title: str, total: int, unit: str = "") -> Iterator[Callable[[int, str], None]]:
        """Shows some epochs of a training."""
        last = [time.monotonic(), 0.0]

        def tick(done: int, note: str) -> None:
            now = time.monotonic()
            if done in (1, 2, 3, total) or done % 10 == 0:
                self.say(f"{title}: {done}/{total} {unit}, {(now - last[0]) / (done - last[1]):.2f} s each  {note}")
                last[:] = [now, done]

        yield tick

    @property
    def left(self) -> float:
        """Remaining seconds."""
        return self._seconds - (time.monotonic() - self._start)

    def workspace(self, method: str, seed: int, changes: Sequence[str], place: str) -> Workspace:
        """The workspace of one method."""
        plan = self.plan
        base = load_experiment(Path(plan.experiment), (*plan.set, *self.overrides, *changes))
        experiment = METHODS[method].applied_to(base, seed, base.data.test_groups)
        return Workspace(experiment, self.runs, place, self.data, self)

    def run(self, done: Mapping[str, Any], only: Sequence[str] = (), variant: str = "") -> None:
        """Works through the plan.

        Args:
            done: results of an earlier run; what is in them is not done again.
            only: names of the groups to train; empty is all of them.
            variant: the pilot to use for "ours"; empty is the best one.
        """
        self.results["image_us"] |= done.get("image_us", {})
        if done.get("train") == len(self.data.train):  # accuracy after fewer images is not comparable
            self.results["rows"] |= done["rows"]
            self.results["pilots"] |= done["pilots"]
        for group in self.plan.groups:
            self.fastest(self.workspace("ours", group.seeds[0], group.set, f"lease/{group.name}/probe"))
        self._pilots(variant)
        groups = [group for group in self.plan.groups if not only or group.name in only]
        for number, group in enumerate(groups):
            todo = [(s, r) for s in group.seeds for r in group.rows if _title(group, r, s) not in self.results["rows"]]
            share = group.share / sum(g.share for g in groups[number:])
            end = self.left - MARGIN * share * self.left
            for position, (seed, row) in enumerate(todo):
                if self.left < 10:
                    self.say(f"no time for {_title(group, row, seed)}")
                    break
                try:
                    self._row(group, row, seed, (self.left - end) / (len(todo) - position))
                except Exception as exc:
                    self._failed(_title(group, row, seed), exc)
        self.say("done")

    def _failed(self, title: str, exc: Exception) -> None:
        """Reports what could not be trained; the rest of the plan is still worth its time."""
        traceback.print_exception(exc)
        self.say(f"{title} failed: {exc}")
        self.failed.append(title)

    def _row(self, group: Group, row: str, seed: int, seconds: float) -> None:
        changes = (*group.set, *(self.chosen if row == "ours" else ()))
        probe = self.workspace(row, seed, changes, f"lease/{group.name}/probe")
        way, epoch_s = self.fastest(probe)
        known = [r["epochs"] for r in self.results["rows"].values() if r["group"] == group.name]
        epochs = group.epochs or (known[0] if known else max(1, int((seconds - OVERHEAD_S) / epoch_s)))
        changes = (*changes, f"distill.epochs={epochs}")
        space = _trained_by(self.workspace(row, seed, changes, f"lease/{group.name}/{row}-{seed}"), way)
        start = time.monotonic()
        trained = train(space)
        trained_s = time.monotonic() - start
        levels = self._keep(space, trained, _title(group, row, seed))
        self.results["rows"][_title(group, row, seed)] = {
            "group": group.name,
            "row": row,
            "seed": seed,
            "epochs": epochs,
            "seconds": trained_s,
            "way": way,
            "set": [*self.plan.set, *changes],
            "held_out_by_failures": levels,
        }
        self.outbox.write("lease.json", self.results)
        self.say(f"{_title(group, row, seed)}: held out " + " ".join(f"{100 * level:.1f}" for level in levels))

    def _keep(self, space: Workspace, trained: Trained, name: str) -> list[float]:
        """Adds the students, as float16, to the files to copy back; returns their ``accuracy_by_failures``."""
        students = trained.students
        file = students.stage.folder / "half.safetensors"
        save_students(students.network, trained.cut.partition, file, half=True)
        self.outbox.add(f"{name}.safetensors", file)
        return accuracy_by_failures(space, students.network)

    def _pilots(self, variant: str) -> None:
        """Tries the variants of "ours" that are not known yet, and chooses the named one or the best held out."""
        if variant:
            self.chosen = self.plan.pilots[variant]
            return
        known, end = self.results["pilots"], self.left - self.plan.pilot_share * self.left
        for name, overrides in self.plan.pilots.items():
            changes = (*self.plan.pilot_set, *overrides)
            probe = self.workspace("ours", 0, changes, "lease/pilots/probe")
            way, epoch_s = self.fastest(probe)
            if name in known or epoch_s * probe.experiment.distill.epochs > self.left - end:
                continue
            space = _trained_by(self.workspace("ours", 0, changes, f"lease/pilots/{name}"), way)
            try:
                known[name] = self._keep(space, train(space), f"pilots/{name}")
            except Exception as exc:
                self._failed(f"pilot {name}", exc)
                continue
            self.say(f"pilot {name}: " + " ".join(f"{100 * level:.1f}" for level in known[name]))
            self.outbox.write("lease.json", self.results)
        usable = [name for name in self.plan.pilots if name in known]
        if usable:
            best = max(usable, key=lambda name: float(np.mean(known[name])))
            self.say(f"pilots: {best} is best over all numbers of failures")
            self.chosen = self.plan.pilots[best]

    def fastest(self, space: Workspace) -> tuple[str, float]:
        """The fastest way to train the students of a workspace, and the seconds of an epoch; measured once a model."""
        model, known = space.experiment.student.model, self.results["image_us"]
        if model not in known:
            known[model] = self._times(space)
            self.outbox.write("lease.json", self.results)
        best = min(known[model], key=lambda way: float(known[model][way]))
        return best, 1e-6 * known[model][best] * len(self.data.train)

    def _times(self, space: Workspace) -> dict[str, float]:
        """Microseconds of a training image for each way that works."""
        model = space.experiment.student.model
        teacher = train_teacher(space)
        cut = cut_filters(space, teacher)
        times: dict[str, float] = {}
        for ways in (WAYS, PLAIN_WAYS) if space.device == "cuda" else ({"separate": WAYS["separate"]},):
            for way in ways if not times else ():
                try:
                    times[way] = self._image_us(_trained_by(space, way), teacher, cut, way)
                except Exception as exc:
                    traceback.print_exc()
                    self.say(f"{model} {way}: {type(exc).__name__}: {str(exc)[:300]}")
        if not times:
            raise ConfigError(f"{model}: cannot be trained in any way")
        return times

    def _image_us(self, space: Workspace, teacher: TrainedTeacher, cut: Cut, way: str) -> float:
        """Microseconds of a training image, from the second and third epoch over a part of the data."""
        config, data = space.experiment, self.data.train
        samples = min(len(data), 24 * config.distill.batch)
        students = space.networks.students(cut.partition, 0)
        filters = filters_of_device(space.networks.design(cut.partition), cut.partition, config.devices.count)
        task = DistillTask(teacher.network, students, filters, config.distill)
        marks = [time.monotonic()]

        def tick(done: int, total: int, losses: Mapping[str, float]) -> None:
            if space.device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.monotonic())

        folder = self.runs / "timing" / f"{config.student.model}-{way}-{len(list(self.runs.glob('timing/*')))}"
        folder.mkdir(parents=True)
        fit(
            task, data.inputs[:samples], data.labels[:samples], replace(config.distill, epochs=3), folder,
            seed=0, augment=space.augment, replay=stored_answers(space, teacher), device=space.device, progress=tick,
        )  # fmt: skip
        seconds = (marks[3] - marks[1]) / 2
        self.say(
            f"{config.student.model} {way}: first {marks[1] - marks[0]:.1f} s, then "
            f"{seconds * len(data) / samples:.2f} s an epoch of {len(data):,} images"
        )
        return 1e6 * seconds / samples


def _trained_by(space: Workspace, way: str) -> Workspace:
    """The workspace, with students trained in one of the ways."""
    options: dict[str, Any] = dict((WAYS | PLAIN_WAYS)[way])
    return space.changed(replace(space.experiment, distill=replace(space.experiment.distill, **options)))


def _title(group: Group, row: str, seed: int) -> str:
    return f"{group.name}/{row}-{seed}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Packs the data, or works through a plan."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--minutes", type=float, default=15.0, help="length of the run, from the start of this program")
    parser.add_argument("--plan", type=Path, default=PLAN)
    parser.add_argument("--parts", type=Path, nargs="+", default=(), help="parts of the data; else data.path is read")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--runs", type=Path, default=Path("runs/lease"))
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/lease/out"),
        help="folder of the results; what is there already is not done again",
    )
    parser.add_argument("--limit-mb", type=float, default=16.0, help="largest file in the folder of the results")
    parser.add_argument("--only", nargs="+", default=(), help="groups to train; none: only the pilots")
    parser.add_argument("--variant", default="", help="pilot to use for 'ours' (default: the best)")
    parser.add_argument("--pack", type=Path, help="only write the parts of the data to this folder")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.4, 0.6), help="pack: share of each part")
    args = parser.parse_args(arguments)
    start = time.monotonic()
    try:
        plan = read_plan(args.plan)
        unknown = {*args.only} - {"none", *(group.name for group in plan.groups)}
        if unknown or (args.variant and args.variant not in plan.pilots):
            raise ConfigError(f"{args.plan}: no group or pilot {', '.join(sorted(unknown) or [args.variant])}")
        if args.pack:
            base = load_experiment(Path(plan.experiment), (*plan.set, *args.set))
            pack(load_data(base.data, base.experiment.seed), args.pack, args.shares)
            return 0
        if args.parts:
            data = unpack(args.parts)
        else:
            base = load_experiment(Path(plan.experiment), (*plan.set, *args.set))
            data = load_data(base.data, base.experiment.seed)
        done = _done(args.out / "lease.json")
        outbox = Outbox(args.out, int(args.limit_mb * 2**20))
        seconds = 60 * args.minutes - (time.monotonic() - start)
        lease = Lease(plan, data, args.set, args.runs, outbox, seconds)
        lease.say(f"{len(data.train):,} training images read in {time.monotonic() - start:.1f} s")
        lease.run(done, args.only, args.variant)
        return int(bool(lease.failed))
    except NonnError as exc:
        print(f"lease: {exc}", file=sys.stderr)
        return 2


def _done(path: Path) -> dict[str, Any]:
    """The results of an earlier run; empty if there are none.

    Raises:
        DataError: the file is damaged.
    """
    try:
        results: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError as exc:
        raise DataError(f"{path}: not readable results ({exc}); copy them again, or remove them") from exc
    return results


if __name__ == "__main__":
    sys.exit(main())
