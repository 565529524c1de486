"""``nonn study``: which idea buys what, at equal student architecture, epochs, data and number of devices.

A row is a method of ``nonn.experiment.methods``; each is trained for every seed and evaluated with every fusion head
on the same students, so that the gain of training and the gain of the head are told apart. What a method's paper
serves is marked as its own head. With ``study.folds`` every row is trained for each fold, whose groups (people, say)
are the test split.

Every (row, fold, seed) has a separate folder of stages; a study that was killed goes on at the last epoch of the
last row.
"""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nonn import documents
from nonn.cli.console import say
from nonn.config import Experiment
from nonn.data import Dataset
from nonn.distill import Students
from nonn.experiment.evaluation import Evaluation, evaluate_head
from nonn.experiment.methods import METHODS, Method
from nonn.experiment.pilot import settle
from nonn.experiment.run import Run
from nonn.experiment.stages import exclusive, open_stage
from nonn.experiment.summary import summarise, to_csv
from nonn.files import atomic_file
from nonn.report.study_document import Study
from nonn.students import measure_cost
from nonn.teacher import Teacher
from nonn.trainer import batches

__all__ = ["run_study"]

FORMAT = 2


def run_study(experiment: Experiment, runs: Path) -> Study:
    """Trains and evaluates every row for every seed that is not done yet.

    Args:
        experiment: ``[study]`` names rows and seeds; the rest is the row ``ours``.
        runs: folder of all runs.

    Returns:
        What ``runs/<experiment>/study/study.json`` holds; it is written after every row, marked as partial until all
        are done.

    Raises:
        NonnError: a row cannot be trained; what was done is kept.
    """
    methods = [METHODS[name] for name in experiment.study.rows]
    root = runs / experiment.experiment.name
    folder = root / "study"
    done: list[Evaluation] = []
    with exclusive(root):
        folds = experiment.study.folds or (experiment.data.test_groups,)
        for seed, fold in itertools.product(experiment.study.seeds, folds):
            data: Dataset | None = None
            for method in methods:
                run = _run_of(method, experiment, seed, fold, runs, data)
                data = run.data
                done.append(_evaluated(run, method, seed, experiment.devices.count))
                complete = len(done) == len(experiment.study.seeds) * len(folds) * len(methods)
                study = summarise(experiment, done, complete=complete)
                documents.write(folder / "study.json", study)
    with atomic_file(folder / "study.csv") as file:
        file.write_text(to_csv(study))
    from nonn.report.plots import study_plot
    from nonn.report.study import study_markdown

    with atomic_file(folder / "study.md") as file:
        file.write_text(study_markdown(study))
    with atomic_file(folder / "study.svg") as file:
        file.write_text(study_plot(study))
    return study


def _run_of(
    method: Method, experiment: Experiment, seed: int, fold: tuple[int, ...], runs: Path, data: Dataset | None
) -> Run:
    """The stages of one row, seed and fold."""
    changed = method.applied_to(experiment, seed, fold)
    place = f"study/{method.name}-{seed}" + "-".join(["-fold", *map(str, fold)] if experiment.study.folds else [])
    return Run(settle(changed, runs, place, data), runs, place=place, dataset=data)


def _evaluated(run: Run, method: Method, seed: int, num_devices: int) -> Evaluation:
    """Result of one row and seed, trained and evaluated unless that is done."""
    run.check()
    students, partition, before = run.students()
    fusion = dataclasses.asdict(run.experiment.fusion)
    inputs = {"format": FORMAT, "students": before.key, "fusion": fusion, "row": method.name}
    stage = open_stage(run.folder, "evaluation", inputs)
    file = stage.folder / "result.json"
    if not stage.done:
        say(f"study: {method.title}, seed {seed}: every head over all subsets")
        teacher, _ = run.teacher()
        heads = run.heads.fit_all(teacher, students)
        features, teacher_accuracy = _test_features(run, students, teacher)
        labels = run.data.test.labels
        # Which student each device runs: its own, or the one that it shares with the others of its part.
        student_of = [i % len(students.students) for i in range(num_devices)]
        costs = [measure_cost(student, student.input_shape) for student in students.apart()]
        result = Evaluation(
            row=method.name,
            seed=seed,
            teacher_accuracy=teacher_accuracy,
            input_bytes=run.data.test.inputs[0].nbytes,
            part_sizes=partition.sizes,
            params=tuple(costs[i].params for i in student_of),
            macs=tuple(costs[i].macs for i in student_of),
            feature_bytes=tuple(4 * students.fusion.widths[i] for i in student_of),
            heads={kind: evaluate_head(head, features, labels, student_of) for kind, head in heads.items()},
        )
        documents.write(file, result)
        stage.finish()
    return documents.read(Evaluation, file)


def _test_features(run: Run, students: Students, teacher: Teacher) -> tuple[list[NDArray[np.float32]], float]:
    """Features of each student over the test split [n, d_i], and the teacher's accuracy on it."""
    students.to(run.device).eval()
    teacher.to(run.device).eval()
    with torch.no_grad():
        pairs = [(students.features(x), teacher(x)[1].argmax(dim=1)) for x in batches(run.data.test.inputs, run.device)]
    features = [torch.cat(f).cpu().numpy() for f in zip(*(p[0] for p in pairs), strict=True)]
    predicted = torch.cat([p[1] for p in pairs]).cpu().numpy()
    return features, float((predicted == run.data.test.labels).mean())
