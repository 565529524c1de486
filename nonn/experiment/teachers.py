"""The training stages of the networks that teach: the teacher, its assistants, and their stored answers.

``nonn.experiment.training`` runs them before those of the students, and describes what a stage is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.distill.answers import TeacherAnswers, ask
from nonn.distill.schedule import AssistantTask, plan
from nonn.errors import DataError
from nonn.experiment.contract import contract_warnings
from nonn.experiment.keys import distillation_inputs, stage_inputs
from nonn.experiment.seeds import seed_of
from nonn.experiment.stages import Stage, open_stage
from nonn.experiment.weights import save_network
from nonn.experiment.workspace import Workspace
from nonn.files import sha256_file, write_json
from nonn.teacher import Teacher, TeacherTask, load_weights, measure_accuracy, measure_outcomes

__all__ = [
    "FORMAT",
    "STUDENTS_FORMAT",
    "TrainedTeacher",
    "class_counts",
    "stored_answers",
    "teacher_accuracy",
    "teacher_outcomes",
    "train_assistants",
    "train_teacher",
]

FORMAT = 1  # increased when a stage's files change so that older ones must not be used again
STUDENTS_FORMAT = 2  # the same, for results of distillation


@dataclass(frozen=True)
class TrainedTeacher:
    """A trained teacher or teacher assistant, and the stage that trained it."""

    network: Teacher
    stage: Stage


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
    if config.branches:
        inputs["views"] = [view.to_json() for view in space.networks.views]
    if config.weights:
        inputs["weights"] = sha256_file(weights)
    stage = open_stage(space.common, "teacher", inputs)
    file = stage.folder / "teacher.safetensors"
    if stage.done:
        load_weights(teacher, file)
        return TrainedTeacher(teacher.eval(), stage)
    if not config.weights:
        space.fit(TeacherTask(teacher, config), config, stage, 1, f"teacher {config.model}")
    save_network(teacher, file)
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
            save_network(assistant, file)
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


def class_counts(space: Workspace) -> list[int]:
    """Number of training samples of each class [K]."""
    counts: list[int] = np.bincount(space.data.train.labels, minlength=space.data.num_classes).tolist()
    return counts
