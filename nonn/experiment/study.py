"""``nonn study``: which idea buys what, at equal student architecture, epochs, data and number of devices.

A row is a method; each is trained for every seed and evaluated with every fusion head on the same students, so that
the gain of training and the gain of the head are told apart. What a method's paper serves is marked as its own head.

===========  ==================================================================================================
row          what it is
===========  ==================================================================================================
``nonn``     NoNN as published: Louvain on its own graph, one student a part, its loss, no failout
``jeong-4``  Jeong et al. 2021 with M = N/2 parts: balanced eigenvector cut, replicas averaged; NoNN's loss
``jeong-2``  the same with M = N/4 parts
``rocoin``   shared replicas (RoCoIn, arXiv 2406.14185): the devices of a part run one and the same student
``copies``   M = 1: every device a copy for the whole task, trained by itself with the experiment's objectives; logits
             averaged. The control
``units``    every device a classifier by itself, trained on labels alone; logits averaged. The control for devices that
             see different things (``devices.view``)
``ours-cut`` the experiment with N parts, each device taught half of the filters (every filter to N/2 devices), and
             its answers averaged: what a cut costs or saves
``ours``     the experiment file as it is
===========  ==================================================================================================

With ``study.folds`` every row is trained for each fold, whose groups (people, say) are the test split.

Every (row, fold, seed) is a folder of stages of its own; a study that was killed goes on at the last epoch of the
last row.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.cli.console import say
from nonn.config import Experiment
from nonn.config.objectives import ObjectivesConfig
from nonn.data import Dataset
from nonn.distill import Students
from nonn.distill.heads import KINDS, fit_heads
from nonn.experiment.pilot import settle
from nonn.experiment.run import Run
from nonn.experiment.stages import exclusive, open_stage
from nonn.files import atomic_file, write_json
from nonn.fusion import Head
from nonn.fusion.calibration import expected_calibration_error
from nonn.provenance import code_version, machine
from nonn.reliability.bias import class_bias
from nonn.reliability.subsets import SubsetTable, all_masks, mask_of, members, membership
from nonn.students import measure_cost
from nonn.teacher import Teacher
from nonn.toml import from_mapping, override
from nonn.trainer import batches

__all__ = ["ROWS", "Row", "evaluate_head", "run_study", "summarise", "to_csv"]

FORMAT = 2
P_FAIL = (0.1, 0.3, 0.5)  # laws of the expected accuracy: every device fails independently

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Row:
    """A method of the study.

    Attributes:
        title: in tables.
        overrides: what it changes in the experiment file; ``{N}``, ``{N/2}`` and ``{N/4}`` stand for numbers.
        own_head: the head that the method serves; empty for the experiment's own.
        shared: the devices of a part run one and the same student.
    """

    title: str
    overrides: tuple[str, ...] = ()
    own_head: str = ""
    shared: bool = False


_NO_OBJECTIVES = tuple(f"distill.objectives.{spec.name}.weight=0" for spec in dataclasses.fields(ObjectivesConfig))
# The weights of NoNN's code: 1e4 on a mean over the 256 filters of its teacher is 39 on the sum over them.
_PUBLISHED_LOSS = (
    *_NO_OBJECTIVES,
    "distill.objectives.ce={weight=0.1}",
    "distill.objectives.kd={weight=1.8}",
    "distill.objectives.transfer={weight=39.0, joint=true}",
)
_JEONG = (
    *_PUBLISHED_LOSS,
    "graph.kind=co-activation",
    "partition.method=balanced-eigenvector",
    "partition.overlap=1",
    "fusion.train=replica-average",
    "distill.failout=none",
)

ROWS: Mapping[str, Row] = {
    "nonn": Row(
        "NoNN",
        (
            "graph.kind=nonn",
            "partition.method=louvain",
            "partition.parts={N}",
            "partition.overlap=1",
            "fusion.train=zero-fill",
            "distill.failout=none",
            *_PUBLISHED_LOSS,
        ),
        own_head="trained",
    ),
    "jeong-4": Row("Jeong, M = N/2", ("partition.parts={N/2}", *_JEONG), own_head="trained"),
    "jeong-2": Row("Jeong, M = N/4", ("partition.parts={N/4}", *_JEONG), own_head="trained"),
    "rocoin": Row("shared replicas", ("partition.parts={N/2}", *_JEONG), own_head="trained", shared=True),
    "copies": Row(
        "copies, M = 1",
        (
            "partition.parts=1",
            "partition.overlap=1",
            "fusion.train=logit-average",
            "distill.failout=none",
            *(f"distill.objectives.{name}.on='own'" for name in ("ce", "kd", "dkd")),
            "distill.objectives.mutual.weight=0",
        ),
        own_head="trained",
    ),
    "units": Row(
        "units by themselves",
        (
            "fusion.train=logit-average",
            "distill.failout=none",
            "distill.generations=1",
            "distill.assistants=[]",
            *_NO_OBJECTIVES,
            "distill.objectives.ce={weight=1.0, on='own'}",
        ),
        own_head="trained",
    ),
    "ours-cut": Row(
        "ours, cut in N parts", ("partition.parts={N}", "partition.overlap={N/2}", "fusion.train=logit-average")
    ),
    "ours": Row("ours"),
}


def run_study(experiment: Experiment, runs: Path) -> dict[str, Any]:
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
    root = runs / experiment.experiment.name
    folder = root / "study"
    done: list[dict[str, Any]] = []
    with exclusive(root):
        folds = experiment.study.folds or (experiment.data.test_groups,)
        for seed, fold in itertools.product(experiment.study.seeds, folds):
            data: Dataset | None = None
            for name in experiment.study.rows:
                run = _run_of(experiment, name, seed, fold, runs, data)
                data = run.data
                done.append(_evaluated(run, name, seed, experiment.devices.count) | {"fold": list(fold)})
                complete = len(done) == len(experiment.study.seeds) * len(folds) * len(experiment.study.rows)
                study = summarise(experiment, done, complete=complete)
                write_json(folder / "study.json", study)
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
    experiment: Experiment, name: str, seed: int, fold: tuple[int, ...], runs: Path, data: Dataset | None
) -> Run:
    """The stages of one row, seed and fold."""
    row, count = ROWS[name], experiment.devices.count
    numbers = {"{N}": count, "{N/2}": max(1, count // 2), "{N/4}": max(1, count // 4)}
    tree = dataclasses.asdict(experiment)
    tree["experiment"]["seed"] = seed
    tree["data"]["test_groups"] = fold
    for text in row.overrides:
        for symbol, number in numbers.items():
            text = text.replace(symbol, str(number))
        override(tree, text)
    if row.shared:  # one student a part is trained; its copies are made when the row is evaluated
        tree["devices"]["count"] = tree["partition"]["parts"]
    changed = from_mapping(Experiment, tree, source=f"row '{name}' of the study")
    place = f"study/{name}-{seed}" + "-".join(["-fold", *map(str, fold)] if experiment.study.folds else [])
    return Run(settle(changed, runs, place, data), runs, place=place, dataset=data)


def _evaluated(run: Run, name: str, seed: int, num_devices: int) -> dict[str, Any]:
    """Result of one row and seed, trained and evaluated unless that is done."""
    row, config = ROWS[name], run.experiment
    run.check()
    students, partition, before = run.students()
    inputs = {"format": FORMAT, "students": before.key, "fusion": dataclasses.asdict(config.fusion), "row": name}
    stage = open_stage(run.folder, "evaluation", inputs)
    file = stage.folder / "result.json"
    if not stage.done:
        say(f"study: {row.title}, seed {seed}: every head over all subsets")
        teacher, _ = run.teacher()
        data = run.data
        heads = fit_heads(
            config.fusion,
            teacher,
            students,
            data.train,
            data.held_out,
            kinds=KINDS,
            seed=run.seed,
            augment=run.augment,
            device=run.device,
        )
        features, teacher_accuracy = _test_features(run, students, teacher)
        # Which student each device runs: its own, or the one that it shares with the others of its part.
        student_of = [i % len(students.students) for i in range(num_devices)]
        costs = [measure_cost(student, student.input_shape) for student in students.apart()]
        result = {
            "row": name,
            "seed": seed,
            "teacher_accuracy": teacher_accuracy,
            "input_bytes": run.data.test.inputs[0].nbytes,
            "part_sizes": list(partition.sizes),
            "params": [costs[i].params for i in student_of],
            "macs": [costs[i].macs for i in student_of],
            "feature_bytes": [4 * students.fusion.widths[i] for i in student_of],
            "heads": {
                kind: evaluate_head(head, features, data.test.labels, student_of) for kind, head in heads.items()
            },
        }
        write_json(file, result)
        stage.finish()
    loaded: dict[str, Any] = json.loads(file.read_text())
    return loaded


def _test_features(run: Run, students: Students, teacher: Teacher) -> tuple[list[NDArray[np.float32]], float]:
    """Features of each student over the test split [n, d_i], and the teacher's accuracy on it."""
    students.to(run.device).eval()
    teacher.to(run.device).eval()
    with torch.no_grad():
        pairs = [(students.features(x), teacher(x)[1].argmax(dim=1)) for x in batches(run.data.test.inputs, run.device)]
    features = [torch.cat(f).cpu().numpy() for f in zip(*(p[0] for p in pairs), strict=True)]
    predicted = torch.cat([p[1] for p in pairs]).cpu().numpy()
    return features, float((predicted == run.data.test.labels).mean())


def evaluate_head(
    head: Head, features: Sequence[NDArray[np.float32]], labels: NDArray[np.int64], student_of: Sequence[int]
) -> dict[str, Any]:
    """Accuracy, calibration and class-level bias of a head over every set of surviving devices.

    Args:
        head: over M students.
        features: of each student over the test split, M arrays [n, d_i].
        labels: [n].
        student_of: the student that each device runs [N].

    Returns:
        ``samples``; ``correct`` of each of the 2^N device sets; ``by_failures``: rows with ``failed``, ``mean``,
        ``worst``, ``best``, and means over the sets of ``ece``, ``cev`` and ``sde``; ``expected``: accuracy when every
        device fails with the probability that is its key.
    """
    num_devices, full = len(student_of), (1 << head.num_devices) - 1
    intact = head.logits(dict(enumerate(features))).argmax(axis=1)
    measured: dict[int, tuple[int, float, float, float]] = {0: (0, 0.0, 0.0, 0.0)}
    for mask in range(1, full + 1):
        logits = head.logits({i: features[i] for i in members(mask)}).astype(np.float32)
        predicted = logits.argmax(axis=1)
        confidence = head.probabilities(logits, mask).max(axis=1)
        bias = class_bias(intact, predicted, labels, head.num_classes)
        ece = expected_calibration_error(confidence, predicted == labels)
        measured[mask] = (int((predicted == labels).sum()), ece, bias.cev, bias.sde)
    sets = [measured[mask_of(student_of[i] for i in members(mask))] for mask in all_masks(num_devices).tolist()]
    values = np.array(sets, dtype=float)
    table = SubsetTable(values[:, 0].astype(np.int64), len(labels))
    survivors = membership(num_devices).sum(axis=1)
    rows = []
    for row in table.by_failures():
        of_size = values[survivors == num_devices - row["failed"]]
        ece, cev, sde = of_size[:, 1:].mean(axis=0).tolist()
        accuracy = {key: row[key] for key in ("failed", "mean", "worst", "best")}
        rows.append(accuracy | {"ece": ece, "cev": cev, "sde": sde})
    return {
        "samples": len(labels),
        "correct": table.correct.tolist(),
        "by_failures": rows,
        "expected": {str(p): table.expected(np.full(num_devices, p)) for p in P_FAIL},
    }


def summarise(experiment: Experiment, results: Sequence[Mapping[str, Any]], *, complete: bool) -> dict[str, Any]:
    """The study as one document: means over seeds with standard deviations.

    Args:
        experiment: that was studied.
        results: of rows and seeds.
        complete: whether these are all that the experiment asks for.

    Returns:
        ``config``, ``seeds``, ``machine``, ``code_version``, ``complete``, ``teacher`` and ``rows``; a row for each
        method and head, ``own`` where it is the head that the method serves. ``sd`` is over seeds, 0 with one seed.
    """
    rows = []
    for name in dict.fromkeys(result["row"] for result in results):
        mine = [result for result in results if result["row"] == name]
        own = ROWS[name].own_head or experiment.fusion.head
        for head in mine[0]["heads"]:
            tables = [result["heads"][head] for result in mine]
            means = [[row["mean"] for row in table["by_failures"]] for table in tables]
            rows.append(
                {
                    "method": name,
                    "title": ROWS[name].title,
                    "head": head,
                    "own": head == own,
                    "parts": len(mine[0]["part_sizes"]),
                    "part_sizes": mine[0]["part_sizes"],
                    "student": experiment.student.model,
                    "params": max(mine[0]["params"]),
                    "macs": max(mine[0]["macs"]),
                    "feature_bytes": max(mine[0]["feature_bytes"]),
                    "bytes_per_answer": sum(mine[0]["feature_bytes"]),
                    "input_bytes": mine[0]["input_bytes"],
                    "seeds": [result["seed"] for result in mine],
                    "accuracy_by_failures": _mean_rows([table["by_failures"] for table in tables]),
                    "expected": {p: _mean([table["expected"][p] for table in tables]) for p in tables[0]["expected"]},
                    "sd": [_sd(of_seeds) for of_seeds in zip(*means, strict=True)],
                    "by_run": means,
                }
            )
    return {
        "experiment": experiment.experiment.name,
        "complete": complete,
        "config": dataclasses.asdict(experiment),
        "seeds": list(experiment.study.seeds),
        "folds": [list(fold) for fold in experiment.study.folds],
        "machine": machine(),
        "code_version": code_version(),
        "teacher": {
            "model": experiment.teacher.model,
            "accuracy": _mean([result["teacher_accuracy"] for result in results]),
        },
        "rows": rows,
    }


def to_csv(study: Mapping[str, Any]) -> str:
    """The study's rows flat: a line for each method, head and number of failures."""
    keys = ("failed", "mean", "sd", "worst", "best", "ece", "cev", "sde")
    named = ("method", "head", "own", "parts", "params", "feature_bytes", "bytes_per_answer")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*named, *keys])
    for row in study["rows"]:
        for line, sd in zip(row["accuracy_by_failures"], row["sd"], strict=True):
            writer.writerow([*(row[key] for key in named), *((line | {"sd": sd})[key] for key in keys)])
    return text.getvalue()


def _mean_rows(seeds: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Rows by failures, every value averaged over seeds; ``worst`` and ``best`` are averages of those of each seed."""
    return [
        {key: (_mean([row[key] for row in rows]) if key != "failed" else rows[0][key]) for key in rows[0]}
        for rows in zip(*seeds, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _sd(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
