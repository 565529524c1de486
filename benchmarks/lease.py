"""``python benchmarks/lease.py --minutes N``: trains students within a fixed time on a rented GPU.

A machine that is rented by the minute starts without data, accepts files of limited size only, and may end at any time.
The work is therefore a plan (``lease.toml``), the most important part first. This program

- packs the data, on the local machine, into parts of limited size (``--pack``): images as lossless WebP, with splits;
- decodes the parts on the rented machine and stores the teacher's answers once for all methods and students;
- measures an epoch of every way to train a student (compiled, grouped, one by one) and takes the fastest;
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
import io
import itertools
import json
import sys
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from nonn.config import Experiment, load_experiment
from nonn.data import Dataset, Split, load_data
from nonn.distill import DistillTask
from nonn.distill.failout import all_subsets
from nonn.errors import ConfigError, DataError, NonnError
from nonn.experiment.methods import METHODS
from nonn.experiment.training import (
    Cut,
    TrainedStudents,
    TrainedTeacher,
    cut_filters,
    stored_answers,
    train_students,
    train_teacher,
)
from nonn.experiment.weights import save_students
from nonn.experiment.workspace import Workspace
from nonn.files import atomic_file, write_json
from nonn.partition.redundancy import filters_of_device
from nonn.provenance import code_version, machine
from nonn.toml import parse_toml
from nonn.trainer import batches, fit

PLAN = Path(__file__).with_name("lease.toml")
WAYS: Mapping[str, tuple[str, ...]] = {
    "compiled": ("distill.compiled=true",),
    "grouped": ("distill.grouped=true",),
    "separate": ("distill.grouped=false",),
}
# Where no way runs as a CUDA graph.
PLAIN_WAYS: Mapping[str, tuple[str, ...]] = {
    f"{way}, no graph": (*changes, "distill.captured=false") for way, changes in WAYS.items() if way != "compiled"
}
ALL_WAYS = {**WAYS, **PLAIN_WAYS}
MARGIN = 0.97  # share of the remaining time that is planned for
OVERHEAD_S = 5.0  # of a method, for its cut, its files and its accuracy


# ---- data ------------------------------------------------------------------------------------------------------------


def pack(data: Dataset, folder: Path, shares: Sequence[float]) -> None:
    """Writes the training and held-out splits as parts.

    Args:
        data: the data set.
        folder: folder of the parts.
        shares: share of the training split in each part; the held-out split is in the first.

    Raises:
        DataError: these are not images with three channels.
    """
    if data.train.inputs.shape[1:2] != (3,):
        raise DataError(f"{data.name}: inputs {list(data.input_shape)}: only images with three channels can be packed")
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(0).permutation(len(data.train))
    edges = np.round(np.cumsum([0, *shares]) / sum(shares) * len(order)).astype(int)
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        index = np.sort(order[start:end])
        splits = {"train": data.train.take(index)} | ({"held_out": data.held_out} if number == 0 else {})
        arrays: dict[str, Any] = {"index": index, "mean": data.mean, "std": data.std, "classes": np.array(data.classes)}
        for name, split in splits.items():
            with ProcessPoolExecutor() as pool:
                encoded = list(pool.map(_encode, split.inputs, chunksize=256))
            arrays[f"{name}.images"] = np.frombuffer(b"".join(encoded), np.uint8)
            arrays[f"{name}.lengths"] = np.array([len(image) for image in encoded])
            arrays[f"{name}.labels"] = split.labels
        path = folder / f"part-{number}.npz"
        with atomic_file(path) as file, file.open("wb") as target:
            np.savez(target, **arrays)
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB, {len(index):,} training images", flush=True)


def unpack(paths: Sequence[Path]) -> Dataset:
    """Reads parts; with some of them only, a data set with fewer training samples. The test split is the held-out one.

    Raises:
        DataError: a part cannot be read, or the first one is missing.
    """
    arrays: list[Mapping[str, NDArray[Any]]] = []
    for path in paths:
        try:
            with path.open("rb") as source, np.load(source) as file:
                arrays.append(dict(file))
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as exc:
            raise DataError(f"{path}: not a readable part ({exc}); send it again") from exc
    first = next((a for a in arrays if "held_out.images" in a), None)
    if first is None:
        raise DataError(f"{', '.join(map(str, paths))}: part-0.npz, which has the held-out split, is missing")
    with ProcessPoolExecutor() as pool:
        parts = [_decoded(a, "train", pool) for a in arrays]
        held_out = _decoded(first, "held_out", pool)
    index = np.argsort(np.concatenate([a["index"] for a in arrays]))
    inputs, labels = (np.concatenate([getattr(p, name) for p in parts])[index] for name in ("inputs", "labels"))
    classes = tuple(map(str, first["classes"]))
    return Dataset("leased", Split(inputs, labels), held_out, held_out, classes, first["mean"], first["std"])


def _decoded(arrays: Mapping[str, NDArray[Any]], name: str, pool: ProcessPoolExecutor) -> Split:
    ends = np.cumsum(arrays[f"{name}.lengths"])
    content = arrays[f"{name}.images"].tobytes()
    encoded = [content[end - length : end] for end, length in zip(ends, arrays[f"{name}.lengths"], strict=True)]
    return Split(np.stack(list(pool.map(_decode, encoded, chunksize=512))), arrays[f"{name}.labels"])


def _encode(image: NDArray[np.uint8]) -> bytes:
    target = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(target, "WEBP", lossless=True, quality=100, method=4, exact=True)
    return target.getvalue()


def _decode(content: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).transpose(2, 0, 1)


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
        """Adds a file to the current archive, or to a new one if it does not fit."""
        size = path.stat().st_size + 4096
        while (archive := self._folder / f"students-{self._number}.zip").exists():
            with zipfile.ZipFile(archive) as content:
                present = name in content.namelist()  # of a run that ended before its result was written
            if archive.stat().st_size + size <= self._limit and not present:
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


def accuracy_by_failures(space: Workspace, students: Any) -> list[float]:
    """Mean accuracy of the trained fusion on the held-out split over all subsets with 0 … N − 1 failed devices."""
    students.to(space.device).eval()
    labels = torch.from_numpy(space.data.held_out.labels).to(space.device)
    with torch.no_grad():
        chunks = [students.features(raw) for raw in batches(space.data.held_out.inputs, space.device)]
        features = [torch.cat(f) for f in zip(*chunks, strict=True)]
        subsets = all_subsets(len(features)).to(space.device)
        right = [
            float((students.fusion(features, row.expand(len(labels), -1)).argmax(1) == labels).float().mean())
            for row in subsets
        ]
    survivors = subsets.sum(dim=1).tolist()
    return [
        float(np.mean([r for r, s in zip(right, survivors, strict=True) if s == size]))
        for size in range(len(features), 0, -1)
    ]


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
        for name in ("rows", "pilots", "image_us"):
            self.results[name] |= done.get(name, {})
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
                except Exception as exc:  # one row that fails must not cost the others
                    traceback.print_exc()
                    self.say(f"{_title(group, row, seed)} failed: {exc}")
        self.say("done")

    def _row(self, group: Group, row: str, seed: int, seconds: float) -> None:
        changes = (*group.set, *(self.chosen if row == "ours" else ()))
        probe = self.workspace(row, seed, changes, f"lease/{group.name}/probe")
        way, epoch_s = self.fastest(probe)
        known = [r["epochs"] for r in self.results["rows"].values() if r["group"] == group.name]
        epochs = group.epochs or (known[0] if known else max(1, int((seconds - OVERHEAD_S) / epoch_s)))
        changes = (*changes, *ALL_WAYS[way], f"distill.epochs={epochs}")
        space = self.workspace(row, seed, changes, f"lease/{group.name}/{row}-{seed}")
        start = time.monotonic()
        trained, cut = self._trained(space)
        trained_s = time.monotonic() - start
        self._keep(trained, cut, _title(group, row, seed))
        levels = accuracy_by_failures(space, trained.network)
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

    def _keep(self, trained: TrainedStudents, cut: Cut, name: str) -> None:
        """Students to copy back, as float16."""
        file = trained.stage.folder / "half.safetensors"
        save_students(trained.network, cut.partition, file, half=True)
        self.outbox.add(f"{name}.safetensors", file)

    def _trained(self, space: Workspace) -> tuple[TrainedStudents, Cut]:
        teacher = train_teacher(space)
        cut = cut_filters(space, teacher)
        return train_students(space, teacher, cut), cut

    def _pilots(self, variant: str) -> None:
        """Tries the variants of "ours" that are not known yet, and chooses the named one or the best held out."""
        known, end = self.results["pilots"], self.left - self.plan.pilot_share * self.left
        for name, overrides in self.plan.pilots.items():
            changes = (*self.plan.pilot_set, *overrides)
            probe = self.workspace("ours", 0, changes, "lease/pilots/probe")
            way, epoch_s = self.fastest(probe)
            if name in known or variant or epoch_s * probe.experiment.distill.epochs > self.left - end:
                continue
            space = self.workspace("ours", 0, (*changes, *ALL_WAYS[way]), f"lease/pilots/{name}")
            try:
                trained, cut = self._trained(space)
                self._keep(trained, cut, f"pilots/{name}")
                known[name] = accuracy_by_failures(space, trained.network)
            except Exception as exc:
                traceback.print_exc()
                self.say(f"pilot {name} failed: {exc}")
                continue
            self.say(f"pilot {name}: " + " ".join(f"{100 * level:.1f}" for level in known[name]))
            self.outbox.write("lease.json", self.results)
        usable = [name for name in self.plan.pilots if name in known]
        if usable:
            best = max(usable, key=lambda name: float(np.mean(known[name])))
            self.say(f"pilots: {best} is best over all numbers of failures")
            self.chosen = self.plan.pilots[best]
        if variant:
            self.chosen = self.plan.pilots[variant]

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
                    times[way] = self._image_us(space, teacher, cut, way)
                except Exception as exc:
                    traceback.print_exc()
                    self.say(f"{model} {way}: {type(exc).__name__}: {str(exc)[:300]}")
        if not times:
            raise ConfigError(f"{model}: cannot be trained in any way")
        return times

    def _image_us(self, space: Workspace, teacher: TrainedTeacher, cut: Cut, way: str) -> float:
        """Microseconds of a training image, from the second and third epoch over a part of the data."""
        config, data = _with(space.experiment, ALL_WAYS[way]), self.data.train
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


def _with(experiment: Experiment, changes: Sequence[str]) -> Experiment:
    values = dict(change.removeprefix("distill.").split("=") for change in changes)
    options: dict[str, Any] = {key: value == "true" for key, value in values.items()}
    return replace(experiment, distill=replace(experiment.distill, **options))


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
        results = args.out / "lease.json"
        done = json.loads(results.read_text()) if results.exists() else {}
        outbox = Outbox(args.out, int(args.limit_mb * 2**20))
        seconds = 60 * args.minutes - (time.monotonic() - start)
        lease = Lease(plan, data, args.set, args.runs, outbox, seconds)
        lease.say(f"{len(data.train):,} training images read in {time.monotonic() - start:.1f} s")
        lease.run(done, args.only, args.variant)
    except NonnError as exc:
        print(f"lease: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
