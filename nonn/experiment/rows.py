"""The rows of a study: the students of a method, trained, and every fusion head on them over all subsets of devices."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from nonn import documents
from nonn.config import Experiment
from nonn.data import Dataset
from nonn.distill import Students
from nonn.distill.heads import KINDS
from nonn.experiment.evaluation import Evaluated, Evaluation, evaluate_head
from nonn.experiment.keys import stage_inputs
from nonn.experiment.methods import METHODS, Method
from nonn.experiment.paired import digests
from nonn.experiment.pilot import designed
from nonn.experiment.rival import SubsetFunction
from nonn.experiment.teachers import teacher_accuracy
from nonn.experiment.training import Trained, train
from nonn.experiment.workspace import Workspace
from nonn.students import measure_cost
from nonn.trainer import batches

__all__ = ["Row", "evaluated", "features_of_test", "methods_of", "rows_here", "runs_of", "workspace_of"]

FORMAT = 4


@dataclass(frozen=True)
class Row:
    """A finished row.

    Attributes:
        evaluation: its result.
        fold: its test groups.
        earlier: whether an earlier study had finished it.
    """

    evaluation: Evaluation
    fold: tuple[int, ...]
    earlier: bool


def methods_of(names: Sequence[str]) -> list[Method]:
    """The methods of ``study.rows``."""
    methods = [METHODS.load(name, "study.rows") for name in names]
    for method in methods:  # one by package.module:name is known by its own name from here on
        METHODS.setdefault(method.name, method)
    return methods


def runs_of(config: Experiment) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Every seed with every fold."""
    return itertools.product(config.study.seeds, config.study.folds or (config.data.test_groups,))


def rows_here(space: Workspace, methods: Sequence[Method]) -> Iterator[Row]:
    """One row after another in this process."""
    for seed, fold in runs_of(space.experiment):
        data: Dataset | None = None
        for method in methods:
            row = workspace_of(space, method, seed, fold, data)
            data = row.data
            evaluation, earlier = evaluated(row, method, space.experiment.devices.count)
            yield Row(evaluation, fold, earlier)


def workspace_of(
    space: Workspace, method: Method, seed: int, fold: tuple[int, ...], data: Dataset | None = None
) -> Workspace:
    """The workspace of one row, seed and fold."""
    folds = space.experiment.study.folds
    place = f"study/{method.trained_as.name}-{seed}" + "-".join(["-fold", *map(str, fold)] if folds else [])
    changed = method.applied_to(space.experiment, seed, fold)
    return dataclasses.replace(space, experiment=changed, place=place, dataset=data)


def evaluated(space: Workspace, method: Method, num_devices: int) -> tuple[Evaluation, bool]:
    """Result of one row and seed, trained and evaluated unless it is done, and whether it was."""
    space = designed(space)
    trained = train(space)
    fusion = stage_inputs(space.experiment.fusion)
    key = trained.students.stage.key
    name = f"evaluation-{method.name}" if method.base else "evaluation"
    stage = space.stage(name, {"format": FORMAT, "students": key, "fusion": fusion, "row": method.name})
    file = stage.folder / "result.json"
    earlier = stage.done
    if not earlier:
        heads = "its fusion" if method.build else "every head"
        space.progress.say(f"study: {method.title}, seed {space.seed}: {heads} over all subsets")
        documents.write(file, _evaluation(space, trained, method, num_devices))
        stage.finish()
    return documents.read(Evaluation, file), earlier


def _evaluation(space: Workspace, trained: Trained, method: Method, num_devices: int) -> Evaluation:
    """Results of every head over all subsets of devices, and the cost of the students."""
    students, test = trained.students.network, space.data.test
    heads: Mapping[str, Evaluated]
    if method.build:
        rival = method.rival(space, trained)
        students = rival.students.to(space.device).eval()
        fusion = SubsetFunction(len(students.students), space.data.num_classes, rival.answer)
        heads = {method.name: fusion.calibrated(space, students)}
    else:
        config = space.experiment
        wanted = {*(config.study.heads or KINDS), method.head or config.fusion.head}
        kinds = [*(kind for kind in KINDS if kind in wanted), *sorted(wanted - set(KINDS))]
        heads = space.heads.fit_all(trained.teacher.network, students, kinds)
    features = features_of_test(space, students)
    # The student of each device: a separate one, or the one that the devices of its part share.
    student_of = [i % len(students.students) for i in range(num_devices)]
    costs = [measure_cost(student, student.input_shape) for student in students.individual()]
    return Evaluation(
        row=method.name,
        seed=space.seed,
        teacher_accuracy=teacher_accuracy(space, trained.teacher),
        input_bytes=test.inputs[0].nbytes,
        part_sizes=trained.cut.partition.sizes,
        params=tuple(costs[i].params for i in student_of),
        macs=tuple(costs[i].macs for i in student_of),
        feature_bytes=tuple(4 * features[i].shape[1] for i in student_of),
        heads={kind: evaluate_head(head, features, test.labels, student_of) for kind, head in heads.items()},
        test=digests(test.inputs, test.labels),
    )


def features_of_test(space: Workspace, students: Students) -> list[NDArray[np.float32]]:
    """Features of each student over the test split [n, d_i]."""
    with torch.no_grad():
        chunks = [students.features(x) for x in batches(space.data.test.inputs, space.device)]
    return [torch.cat(f).cpu().numpy() for f in zip(*chunks, strict=True)]
