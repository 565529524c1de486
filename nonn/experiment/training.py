"""The training stages: teacher → teacher assistants → partition → students, each from the result of the previous one.

A stage is a function: it opens its folder, runs unless the folder is finished, and returns its result. The key of a
folder depends on all inputs of its result, including the key of the previous stage.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from nonn.config import TrainingConfig
from nonn.distill import DistillTask, Students
from nonn.distill.blockwise import STAGES, BlockTask
from nonn.distill.schedule import DistillStep, plan
from nonn.documents import to_json
from nonn.errors import DataError
from nonn.experiment.keys import distillation_inputs
from nonn.experiment.seeds import seed_of
from nonn.experiment.stages import Stage
from nonn.experiment.teachers import (
    FORMAT,
    STUDENTS_FORMAT,
    TrainedTeacher,
    class_counts,
    stored_answers,
    train_assistants,
    train_teacher,
)
from nonn.experiment.weights import given_students, partition_of, save_network, save_students
from nonn.experiment.workspace import Workspace
from nonn.files import atomic_file, sha256_file, write_json
from nonn.partition import Partition, make_partition
from nonn.partition.graph import build_graph, correlation
from nonn.partition.measures import measure
from nonn.partition.redundancy import filters_of_device
from nonn.students import grouping_pays
from nonn.teacher import load_weights
from nonn.trainer import batches

__all__ = ["Cut", "Trained", "TrainedStudents", "cut_filters", "train", "train_students"]

_SAMPLE = 256  # inputs for objectives that look at the teacher before the training


@dataclass(frozen=True)
class Cut:
    """The teacher's filters in parts.

    Attributes:
        partition: the parts.
        graph: weights of the filter graph that was cut [C, C].
        measures: quality measures of the partition.
        stage: the stage that computed it.
    """

    partition: Partition
    graph: NDArray[np.float32]
    measures: dict[str, Any]
    stage: Stage


@dataclass(frozen=True)
class TrainedStudents:
    """The students of one generation with the fusion used in training, and the stage that trained them."""

    network: Students
    stage: Stage


@dataclass(frozen=True)
class Trained:
    """The inputs of a bundle.

    Attributes:
        teacher: the original teacher, even if the students learned from an assistant.
        cut: its filters in parts.
        students: the last generation of students.
    """

    teacher: TrainedTeacher
    cut: Cut
    students: TrainedStudents


def train(space: Workspace) -> Trained:
    """Runs every unfinished stage up to the students.

    Raises:
        NonnError: something is wrong with the configuration, the data or a file; finished work is kept.
    """
    space.check()
    teacher = train_teacher(space)
    distillation_teacher = train_assistants(space, teacher)
    cut = cut_filters(space, distillation_teacher)
    students = train_students(space, distillation_teacher, cut)
    return Trained(teacher, cut, students)


def cut_filters(space: Workspace, distillation_teacher: TrainedTeacher) -> Cut:
    """The filters of the teaching network, cut into parts.

    Raises:
        PartitionError: they cannot be cut as the experiment asks.
        DataError: the files of an earlier run are damaged.
    """
    config, sizes = space.experiment, space.networks.sizing.sizes
    weights = given_students(config.student)
    stage = space.stage(
        "partition",
        {
            "format": FORMAT + (config.partition.method == "louvain"),  # whose resolution has changed
            "teacher": distillation_teacher.stage.key,
            "graph": dataclasses.asdict(config.graph),
            "partition": {"method": config.partition.method, "parts": config.partition.parts},
            "sizes": sizes,
            "seed": space.seed,
            **({"weights": sha256_file(weights)} if weights else {}),
        },
    )
    if not stage.done:
        teacher = distillation_teacher.network.to(space.device)
        with torch.no_grad():
            chunks = [teacher.activations(x).cpu() for x in batches(space.data.held_out.inputs, space.device)]
        activations = torch.cat(chunks).numpy()
        graph = build_graph(config.graph, activations)
        made = partition_of(weights) if weights else None
        made = made or make_partition(config.partition, graph, space.seed, sizes)
        measures = measure(made, graph, correlation(activations))
        write_json(stage.folder / "partition.json", made.to_json() | {"measures": to_json(measures)})
        with atomic_file(stage.folder / "graph.npz") as file, file.open("wb") as target:
            np.savez_compressed(target, weights=graph.weights.astype(np.float32))
        stage.finish()
        space.progress.say(f"partition {made.method}: sizes {', '.join(map(str, made.sizes))}")
    try:
        values = json.loads((stage.folder / "partition.json").read_text())
        with np.load(stage.folder / "graph.npz") as arrays:
            return Cut(Partition.from_json(values), arrays["weights"], values["measures"], stage)
    except (OSError, ValueError, KeyError, BadZipFile) as exc:
        raise DataError(f"{stage.folder}: not a readable partition ({exc}); remove the folder and run again") from exc


def train_students(space: Workspace, distillation_teacher: TrainedTeacher, cut: Cut) -> TrainedStudents:
    """The distilled students: the last of ``distill.generations``, each of which learns from the previous one."""
    generations = [step for step in plan(space.experiment.distill) if not step.model]
    students: TrainedStudents | None = None
    for number, step in enumerate(generations):
        students = _generation(space, number, step, distillation_teacher, cut, students)
    assert students is not None
    return students


def _generation(
    space: Workspace,
    number: int,
    step: DistillStep,
    teacher: TrainedTeacher,
    cut: Cut,
    previous: TrainedStudents | None,
) -> TrainedStudents:
    """One generation of students; answers of the previous generation, if any, replace those of the teacher."""
    config, networks = space.experiment, space.networks
    weights = given_students(config.student)
    stage = space.stage(
        step.name,
        {
            "format": STUDENTS_FORMAT,
            "before": (previous or cut).stage.key,
            "students": networks.sizing.models,
            **({"args": config.student.args} if config.student.args else {}),  # 0.1 has none
            "views": [view.to_json() for view in networks.views],
            "sends": [config.student.sends, config.student.send_width],
            "overlap": config.partition.overlap,
            "distill": distillation_inputs(config.distill),
            "fusion": config.fusion.train,
            "seed": space.seed,
            **({"weights": sha256_file(weights)} if weights else {}),
        },
    )
    students = networks.students(cut.partition, number)
    file = stage.folder / "students.safetensors"
    if stage.done:
        load_weights(students, file)
        return TrainedStudents(students.eval(), stage)
    filters = filters_of_device(networks.design(cut.partition), cut.partition, config.devices.count)
    grouped = config.distill.grouped and grouping_pays(space.device, max(networks.input_shapes, key=math.prod))
    distill = dataclasses.replace(config.distill, grouped=grouped)
    earlier = None if previous is None else previous.network
    seed = seed_of(space.seed, 5, number)
    if weights:
        load_weights(students, weights)
    elif distill.blockwise and previous is None:
        _train_blocks(space, teacher, cut, students)
    counts = class_counts(space)
    task = DistillTask(
        teacher.network,
        students,
        filters,
        distill,
        previous=earlier,
        class_counts=counts,
        sample=_sample(space),
        seed=seed,
    )
    title = f"{step.name} {config.devices.count} × {'/'.join(dict.fromkeys(networks.sizing.models))}"
    if distill.epochs:
        space.fit(task, distill, stage, 3 + 1000 * number, title, stored_answers(space, teacher), space.lessons)
        task.finish()
    save_students(students, cut.partition, file)
    stage.finish()
    return TrainedStudents(students.eval(), stage)


def _train_blocks(space: Workspace, teacher: TrainedTeacher, cut: Cut, students: Students) -> None:
    """Trains the stages of the students inside the teacher, one after the other; see ``nonn.distill.blockwise``."""
    config = dataclasses.replace(space.experiment.distill, epochs=space.experiment.distill.blockwise)
    training = {spec.name: getattr(config, spec.name) for spec in dataclasses.fields(TrainingConfig)}
    before, student = cut.stage.key, space.experiment.student
    for number in range(1, STAGES + 1):
        inputs: dict[str, Any] = {
            "before": before,
            "students": space.networks.sizing.models,
            "views": [view.to_json() for view in space.networks.views],
        }
        inputs |= {"sends": [student.sends, student.send_width], "training": training, "seed": space.seed}
        stage = space.stage(f"block-{number}", inputs)
        file, before = stage.folder / "students.safetensors", stage.key
        if stage.done:
            load_weights(students, file)
            continue
        task = BlockTask(teacher.network, students, number, seed_of(space.seed, 9, number))
        space.fit(task, config, stage, 200 + number, f"stage {number} of the students inside the teacher")
        save_network(students, file)
        stage.finish()


def _sample(space: Workspace) -> torch.Tensor:
    """Some raw training inputs, for objectives that look at the teacher before the training."""
    return torch.from_numpy(space.data.train.inputs[:_SAMPLE]).to(space.device)
