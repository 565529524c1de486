"""``nonn study``: compares methods at equal student architecture, epochs, data and number of devices.

A row is a method of ``nonn.experiment.methods``; each is trained for every seed and evaluated with every fusion head
on the same students, which separates the gain of training from the gain of the head. The head of a method's paper is
marked. A rival whose fusion is none of the heads is evaluated with its fusion only. Where it uses the students of
another method, they are trained once for both.

With ``study.folds`` every row is trained for each fold, whose groups (for example people) are the test split.

Every (row, fold, seed) has a separate folder of stages; a killed study resumes at the last epoch of the last row.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from nonn import documents
from nonn.config import Experiment
from nonn.data import Dataset
from nonn.distill import Students
from nonn.distill.heads import KINDS
from nonn.errors import ConfigError
from nonn.experiment.evaluation import Evaluated, Evaluation, evaluate_head
from nonn.experiment.keys import stage_inputs
from nonn.experiment.methods import METHODS, Method
from nonn.experiment.paired import digests
from nonn.experiment.pilot import choose_design
from nonn.experiment.progress import Progress, Silent
from nonn.experiment.rival import SubsetFunction
from nonn.experiment.search import search_widths
from nonn.experiment.stages import exclusive
from nonn.experiment.summary import summarise, to_csv
from nonn.experiment.training import Trained, teacher_accuracy, train
from nonn.experiment.workspace import Workspace, resolve
from nonn.files import atomic_file
from nonn.reliability.subsets import MAX_DEVICES
from nonn.report.study import study_markdown
from nonn.report.study_document import Study
from nonn.report.study_plot import study_plot
from nonn.students import measure_cost
from nonn.trainer import batches

__all__ = ["features_of_test", "study"]

FORMAT = 4


def study(
    experiment: str | Path | Experiment,
    *,
    runs: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    tensorboard: bool = False,
) -> Study:
    """Trains and evaluates every row for every seed, except finished ones.

    ::

        result = study("examples/digits.toml", overrides=["study.rows=['copies', 'ours']", "study.seeds=[0, 1, 2]"])
        for row in result.rows:
            print(row.title, row.head, row.accuracy_by_failures[2].mean)

    Args:
        experiment: file or loaded experiment; ``[study]`` names rows and seeds, the rest is the row ``ours``.
        runs: folder of all runs.
        overrides: ``section.key=value``, as for ``--set``.
        progress: receives the progress; None shows nothing.
        tensorboard: write the losses of each training into its folder for TensorBoard too.

    Returns:
        Content of ``runs/<experiment>/study/study.json``; it is written after every row, marked as partial until all
        are done. ``study.csv``, ``study.md`` and ``study.svg`` are next to it.

    Raises:
        NonnError: a row cannot be trained; finished work is kept.
    """
    config = resolve(experiment, overrides)
    if config.devices.count > MAX_DEVICES:
        raise ConfigError(
            f"devices.count = {config.devices.count}: a study evaluates all subsets of at most {MAX_DEVICES} devices"
        )
    space = Workspace(config, Path(runs), progress=progress or Silent(), tensorboard=tensorboard)
    methods = [METHODS.load(name, "study.rows") for name in config.study.rows]
    for method in methods:  # one by package.module:name is known by its own name from here on
        METHODS.setdefault(method.name, method)
    folds = config.study.folds or (config.data.test_groups,)
    folder = space.root / "study"
    done: list[Evaluation] = []
    total, skipped = len(config.study.seeds) * len(folds) * len(methods), 0
    with exclusive(space.root):
        for seed, fold in itertools.product(config.study.seeds, folds):
            data: Dataset | None = None
            for method in methods:
                row = _workspace(space, method, seed, fold, data)
                data = row.data
                evaluation, earlier = _evaluated(row, method, config.devices.count)
                done.append(evaluation)
                skipped += earlier
                complete = len(done) == total
                space.progress.say(
                    f"study: {method.title}, seed {seed}{f', fold {list(fold)}' if config.study.folds else ''}: "
                    f"{'finished earlier' if earlier else 'done'}; {len(done)} of {total} rows "
                    f"({skipped} finished earlier), {total - len(done)} left"
                )
                result = summarise(config, done, complete=complete)
                documents.write(folder / "study.json", result)
    for name, text in {
        "study.csv": to_csv(result),
        "study.md": study_markdown(result),
        "study.svg": study_plot(result),
    }.items():
        with atomic_file(folder / name) as file:
            file.write_text(text)
    return result


def _workspace(space: Workspace, method: Method, seed: int, fold: tuple[int, ...], data: Dataset | None) -> Workspace:
    """The workspace of one row, seed and fold."""
    folds = space.experiment.study.folds
    place = f"study/{method.trained_as.name}-{seed}" + "-".join(["-fold", *map(str, fold)] if folds else [])
    changed = method.applied_to(space.experiment, seed, fold)
    return dataclasses.replace(space, experiment=changed, place=place, dataset=data)


def _evaluated(space: Workspace, method: Method, num_devices: int) -> tuple[Evaluation, bool]:
    """Result of one row and seed, trained and evaluated unless it is done, and whether it was."""
    space = choose_design(search_widths(space))
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
