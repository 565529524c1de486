"""Rows of a study on a Ray cluster: seeds, folds and rows at the same time, each row on one worker.

The teachers come first, one for each seed and fold. A row then has a copy of its teacher in its own folder, so that no
two workers write to one stage; rows that share students run on one worker. All else is that of
``nonn.experiment.rows``: results are in the same folders, finished rows are not trained again, and an interrupted one
resumes.

Limits: every machine of the cluster needs this version of nonn with the extras ``train`` and ``ray``, and the data and
the folder of runs under the same paths, for example on a network file system. A worker has one GPU if the cluster has
any.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from nonn.config import Experiment
from nonn.data import Dataset
from nonn.experiment.methods import Method
from nonn.experiment.rows import Row, evaluated, methods_of, runs_of, workspace_of
from nonn.experiment.stages import STAGE
from nonn.experiment.teachers import train_teacher
from nonn.experiment.workspace import Workspace
from nonn.files import atomic_folder
from nonn.jobs.backends import on_ray

__all__ = ["rows_on_ray"]


@dataclass(frozen=True)
class _Job:
    """Rows of one seed and fold that use the same students."""

    experiment: Experiment
    runs: Path
    names: tuple[str, ...]  # in ``study.rows``
    seed: int
    fold: tuple[int, ...]
    tensorboard: bool

    @property
    def teacher(self) -> str:
        """Place of the teacher of its seed and fold."""
        return "study/" + "-".join(["teacher", str(self.seed), *map(str, self.fold)])


def rows_on_ray(space: Workspace, methods: Sequence[Method]) -> Iterator[Row]:
    """The rows in the order of seeds and folds, those of one worker when it has finished.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    config, groups = space.experiment, dict[str, list[str]]()
    for name, method in zip(config.study.rows, methods, strict=True):
        groups.setdefault(method.trained_as.name, []).append(name)
    jobs = [
        _Job(config, space.runs.resolve(), tuple(names), seed, fold, space.tensorboard)
        for (seed, fold), names in itertools.product(runs_of(config), groups.values())
    ]
    space.progress.say(f"study: {len(jobs)} jobs on a Ray cluster, after the teachers of all seeds and folds")
    for _ in on_ray(_train_teacher, jobs[:: len(groups)], gpu=True):
        pass
    for rows in on_ray(_train_rows, jobs, gpu=True):
        yield from rows


def _train_teacher(job: _Job) -> None:
    """The teacher of one seed and fold, or that of an earlier run."""
    (method, *_), space = methods_of(job.names), Workspace(job.experiment, job.runs, tensorboard=job.tensorboard)
    row = dataclasses.replace(workspace_of(space, method, job.seed, job.fold), shared=job.teacher)
    if not row.common.exists():
        _copy(row.root / "teacher", row.common / "teacher")
    train_teacher(row)


def _train_rows(job: _Job) -> list[Row]:
    """The rows of one job."""
    space, rows = Workspace(job.experiment, job.runs, tensorboard=job.tensorboard), list[Row]()
    data: Dataset | None = None
    for method in methods_of(job.names):
        row = workspace_of(space, method, job.seed, job.fold, data)
        row, data = dataclasses.replace(row, shared=row.place), row.data
        _copy(row.root / job.teacher / "teacher", row.common / "teacher")
        evaluation, earlier = evaluated(row, method, job.experiment.devices.count)
        rows.append(Row(evaluation, job.fold, earlier))
    return rows


def _copy(source: Path, target: Path) -> None:
    """Copies a stage, unless it is there already."""
    stage = source / STAGE
    if stage.exists() and not ((target / STAGE).exists() and (target / STAGE).read_text() == stage.read_text()):
        with atomic_folder(target) as folder:
            shutil.copytree(source, folder, dirs_exist_ok=True)
