"""The training stages: teacher → teacher assistants → partition → students, each from the result of the previous one.

A stage is a function: it opens its folder, runs unless the folder is finished, and returns its result. The key of a
folder depends on all inputs of its result, including the key of the previous stage.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from nonn.config import TrainingConfig
from nonn.distill import DistillTask, Students
from nonn.distill.answers import TeacherAnswers, ask
from nonn.distill.blockwise import STAGES, BlockTask
from nonn.distill.schedule import AssistantTask, DistillStep, plan
from nonn.documents import to_json
from nonn.errors import DataError
from nonn.experiment.contract import contract_warnings
from nonn.experiment.keys import distillation_inputs, stage_inputs
from nonn.experiment.seeds import seed_of
from nonn.experiment.stages import Stage, open_stage
from nonn.experiment.weights import given_students, partition_of, save_students
from nonn.experiment.workspace import Workspace
from nonn.files import atomic_file, sha256_file, write_json
from nonn.partition import Partition, make_partition
from nonn.partition.graph import build_graph, correlation
from nonn.partition.measures import measure
from nonn.partition.redundancy import filters_of_device
from nonn.students import grouping_pays
from nonn.teacher import Teacher, TeacherTask, load_weights, measure_accuracy, measure_outcomes
from nonn.trainer import batches

__all__ = [
    "Cut",
    "Trained",
    "TrainedStudents",
    "TrainedTeacher",
    "class_counts",
    "cut_filters",
    "stored_answers",
    "teacher_accuracy",
    "teacher_outcomes",
    "train",
    "train_assistants",
    "train_students",
    "train_teacher",
]

FORMAT = 1  # increased when a stage's files change so that older ones must not be used again
STUDENTS_FORMAT = 2  # the same, for results of distillation
_SAMPLE = 256  # inputs for objectives that look at the teacher before the training


@dataclass(frozen=True)
class TrainedTeacher:
    """A trained teacher or teacher assistant, and the stage that trained it."""

    network: Teacher
    stage: Stage


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


def train_teacher(space: Workspace) -> TrainedTeacher:
    """The teacher, trained or with weights from a file.

    Raises:
        ConfigError: the file of ``teacher.weights`` does not exist or does not fit.
    """
    config, weights = space.experiment.teacher, Path(space.experiment.teacher.weights)
    teacher = space.networks.teacher()
    if config.weights:
        load_weights(teacher.network, weights)
    inputs: dict[str, Any] = {
        "format": FORMAT,
        "seed": space.seed,
        "data": space.data.fingerprint(),
        "augment": stage_inputs(space.experiment.data, "path"),
        "teacher": stage_inputs(config, "weights"),
    }
    if config.weights:
        inputs["weights"] = sha256_file(weights)
    stage = open_stage(space.common, "teacher", inputs)
    file = stage.folder / "teacher.safetensors"
    if stage.done:
        load_weights(teacher, file)
        return TrainedTeacher(teacher.eval(), stage)
    if not config.weights:
        space.fit(TeacherTask(teacher, config.label_smoothing), config, stage, 1, f"teacher {config.model}")
    _save(teacher, file)
    accuracy = measure_accuracy(teacher, space.data.held_out, space.device)
    space.progress.say(f"teacher {config.model}: {100 * accuracy:.2f} % on the held-out split")
    if config.weights:
        for warning in contract_warnings(teacher, space.data, space.device):
            space.progress.say(f"warning: {warning}")
    write_json(stage.folder / "teacher.json", {"model": config.model, "held_out_accuracy": accuracy})
    stage.finish()
    return TrainedTeacher(teacher.eval(), stage)


def teacher_accuracy(space: Workspace, teacher: TrainedTeacher) -> float:
    """Accuracy of a teacher on the test split, in [0, 1]; see ``teacher_outcomes``."""
    return float(teacher_outcomes(space, teacher).mean())


def teacher_outcomes(space: Workspace, teacher: TrainedTeacher) -> NDArray[np.bool_]:
    """Whether a teacher classifies each test sample correctly [n]; measured once for a bundle and all rows of a study.

    Raises:
        DataError: the file of an earlier measurement is damaged.
    """
    file = teacher.stage.folder / f"outcomes-{space.data.fingerprint()[:12]}.json"
    if not file.exists():
        right = measure_outcomes(teacher.network, space.data.test, space.device)
        write_json(file, {"accuracy": float(right.mean()), "right": np.packbits(right).tobytes().hex()})
    try:
        packed = np.frombuffer(bytes.fromhex(json.loads(file.read_text())["right"]), dtype=np.uint8)
        if len(packed) != -(-len(space.data.test) // 8):
            raise ValueError(f"{len(packed)} bytes for {len(space.data.test)} samples")
        return np.unpackbits(packed, count=len(space.data.test)).astype(bool)
    except (ValueError, KeyError, TypeError) as exc:
        raise DataError(f"{file}: not readable outcomes ({exc}); remove it and run again") from exc


def train_assistants(space: Workspace, teacher: TrainedTeacher) -> TrainedTeacher:
    """The network that teaches the students: the last teacher assistant, or the teacher if there is none."""
    config = space.experiment.distill
    for number, step in enumerate(step for step in plan(config) if step.model):
        assistant = space.networks.assistant(step.model, number)
        inputs = {"mentor": teacher.stage.key, "model": step.model, "distill": distillation_inputs(config)}
        stage = space.stage(step.name, inputs | {"format": STUDENTS_FORMAT, "seed": space.seed})
        file = stage.folder / "assistant.safetensors"
        if stage.done:
            load_weights(assistant, file)
        else:
            task = AssistantTask(teacher.network, assistant, config, class_counts(space))
            answers = stored_answers(space, teacher)
            space.fit(task, config, stage, 100 + number, f"{step.name} {step.model}", answers, space.lessons)
            _save(assistant, file)
            stage.finish()
        teacher = TrainedTeacher(assistant.eval(), stage)
    return teacher


def stored_answers(space: Workspace, teacher: TrainedTeacher) -> TeacherAnswers | None:
    """The teacher's answers to ``distill.teacher_views`` augmentations of each training sample; None for 0.

    Every method, seed and student family reads the same ones.

    Raises:
        ConfigError: the augmentation cannot be stored.
        DataError: the file is damaged.
    """
    config, train = space.experiment.distill, space.lessons
    if not config.teacher_views:
        return None
    inputs = {
        "format": FORMAT,
        "teacher": teacher.stage.key,
        "data": space.data.fingerprint(),
        **{k: v for k, v in distillation_inputs(config).items() if k in ("picture", "patches")},
        "augment": stage_inputs(space.experiment.data, "path"),
        "views": config.teacher_views,
        "bf16": config.bf16,
    }
    stage = open_stage(space.common, "answers", inputs)
    file = stage.folder / "answers.safetensors"
    if not stage.done:
        seed = seed_of(space.seed, 7)
        answers = ask(teacher.network, train.inputs, space.augment, config, seed=seed, device=space.device)
        answers.save(file)
        stage.finish()
        space.progress.say(f"teacher's answers to {config.teacher_views} views of {len(train):,} samples stored")
    return TeacherAnswers.load(file, len(train), config.teacher_views)


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
        _save(students, file)
        stage.finish()


def _sample(space: Workspace) -> torch.Tensor:
    """Some raw training inputs, for objectives that look at the teacher before the training."""
    return torch.from_numpy(space.data.train.inputs[:_SAMPLE]).to(space.device)


def class_counts(space: Workspace) -> list[int]:
    """Number of training samples of each class [K]."""
    counts: list[int] = np.bincount(space.data.train.labels, minlength=space.data.num_classes).tolist()
    return counts


def _save(module: torch.nn.Module, path: Path) -> None:
    with atomic_file(path) as file:
        file.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))
