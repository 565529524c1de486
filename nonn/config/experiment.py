"""The experiment file: frozen, typed objects from TOML.

Every field has a default that makes the digits experiment; a file names what differs. Unknown keys are errors that
name the nearest known key. ``--set distill.epochs=3`` overrides one value; it is read as a TOML value, and as a bare
string where it is none.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nonn.config.devices import BudgetConfig, DeviceClassConfig, DevicesConfig, check_devices, count_devices
from nonn.config.objectives import ObjectivesConfig, check_objectives
from nonn.errors import ConfigError
from nonn.toml import from_mapping, override, parse_toml

__all__ = [
    "AUTO",
    "BudgetConfig",
    "DataConfig",
    "DeviceClassConfig",
    "DevicesConfig",
    "DistillConfig",
    "Experiment",
    "ExperimentConfig",
    "ExportConfig",
    "FusionConfig",
    "GraphConfig",
    "GuaranteesConfig",
    "PartitionConfig",
    "StudentConfig",
    "StudyConfig",
    "TeacherConfig",
    "TrainingConfig",
    "load_experiment",
]


AUTO = -1  # what partition.parts = "auto" is read as


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Who this experiment is: its name is its folder under runs/."""

    name: str = "digits"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which data, how it is split and how training inputs are varied."""

    reader: str = "digits"  # digits | parquet | cifar | imagefolder | npz
    path: str = ""  # file or folder; digits needs none
    held_out: float = 0.1  # share of train kept for choosing (statistics of filters, regularisation)
    held_out_by: str = "class"  # class | group: that share of each class, or of the groups as wholes
    test: float = 0.2  # share that is the test split, for readers whose files have none
    size: int = 32  # imagefolder: images become [3, size, size]
    inputs: str = "windows"  # npz: name of the array of inputs [n, channels, time]
    labels: str = "labels"  # npz: name of the array of labels [n]; parquet: column
    scale: str = ""  # npz: name of an array [channels] that inputs are multiplied by
    group: str = ""  # npz: name of the array [n] to split by (a person), so that no group is on both sides
    test_groups: tuple[int, ...] = ()  # npz: groups that are the test split
    crop: int = 0  # augmentation: shift by up to this many pixels or time steps
    flip: bool = False  # augmentation: mirror left-right at random
    noise: float = 0.2  # augmentation: Gaussian noise, in standard deviations of the data
    rotate: float = 0.0  # augmentation: windows: turn each body-worn unit by so many degrees (standard deviation)
    unit: int = 9  # rotate: channels of one rigid unit, x y z of each of its sensors
    cutout: int = 0  # augmentation: side of a random square set to the mean


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What the one trainer needs, for the teacher as for the students."""

    epochs: int = 30
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"  # one-cycle | step
    milestones: tuple[float, ...] = (0.625, 0.75, 0.875)  # step: lr ×0.1 at these shares of all steps
    label_smoothing: float = 0.0
    ema: float = 0.0  # decay of the exponential moving average of the weights per step; 0 is off
    bf16: str = "auto"  # auto | on | off: bfloat16 autocast


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """The teacher and its training."""

    epochs: int = 20
    model: str = "wrn-16-2"  # wrn-DEPTH-WIDTH, strided-DEPTH-WIDTH, or package.module:factory
    features: str = ""  # dotted path: name of the submodule whose output is the final convolutional stage
    args: Mapping[str, Any] = field(default_factory=dict)  # dotted path: keyword arguments of the factory
    weights: str = ""  # safetensors file to load instead of training


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """The graph of the teacher's filters."""

    kind: str = "co-activation"  # co-activation | nonn
    top: int = 50  # nonn: only this many most active filters an image count
    percentile: float = 99.0  # nonn: edges below this percentile of the non-zero ones are dropped


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """How the filters are cut into parts."""

    method: str = "balanced-eigenvector"  # or dealt-eigenvector | louvain | metis | random | spectral
    parts: int = 8  # M ≤ devices.count; device i learns part i mod M; "auto" tries the designs
    overlap: int = 1  # and so many parts in a row: 2 adds part i + 1 mod M, M is every filter
    pilot_epochs: int = 5  # parts = "auto": epochs that each design is distilled for before one is chosen


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student each device runs."""

    model: str = "wrn-10-1"  # of the same families; auto: the largest wrn that each device takes
    sends: str = "bridge"  # bridge: the filters of its part; penultimate: the backbone's own features, 64 · width
    send_width: int = 0  # penultimate: squeezed to so many features; 0 sends all


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingConfig):
    """Objectives and failout of the joint training of all students."""

    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)  # nonn/config/objectives.py
    grouped: bool = True  # students train as one network of grouped convolutions where that is faster; false: never
    failout: str = "stratified"  # none | independent | stratified | groups: whole devices dropped in training
    p_failout: float = 0.3  # independent, groups: probability that a device is dropped by itself
    failout_groups: tuple[tuple[int, ...], ...] = ()  # groups: devices that fail together
    p_group: float = 0.1  # groups: probability that a group is dropped as a whole
    assistants: tuple[str, ...] = ()  # teacher assistants, wrn-DEPTH-WIDTH, each distilled from the one before
    generations: int = 1  # born again: students are trained so many times, each from the answers of the last


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How answers are fused."""

    train: str = "zero-fill"  # zero-fill | rescale | replica-average | logit-average: what students are trained through
    head: str = "ridge"  # trained | zero-fill | rescale | mean-fill | ridge | logistic | best (on the held-out split)
    target: str = "teacher"  # teacher | labels: what the ridge is fitted to, the teacher's logits or one-hot labels
    passes: int = 4  # augmented passes over the training split that heads are fitted to
    ridge: tuple[float, ...] = (
        1e-6,
        1e-5,
        1e-4,
        1e-3,
        1e-2,
        1e-1,
    )  # candidates for λ, chosen on the held-out split
    steps: tuple[int, ...] = (2, 5, 10, 20)  # logistic: candidates for the L-BFGS steps from the ridge, chosen likewise
    samples: int = 50_000  # logistic: samples of the passes that it is fitted to
    stored_mb: float = 8.0  # logistic: size of its stored sets at most; the others fall back to their ridge
    temperature: str = "auto"  # none | auto | set | survivors: calibration of the confidence on the held-out split


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What devices run and send."""

    weights: str = "float32"  # float32 | int8: a quarter of the size (nonn/export/quantise.py)
    features: str = "float32"  # float32 | float16 | int8: one byte a feature (nonn/bundle/features.py)
    calibration: int = 512  # training inputs that the ranges of int8 are taken from
    recorded: bool = True  # the bundle holds its test features, which the simulator asks for; nodes need them not


@dataclass(frozen=True, kw_only=True)
class GuaranteesConfig:
    """What a bundle must promise before it is written; the forms are those of `nonn-sim enumerate --guarantee`."""

    require: tuple[str, ...] = ()  # such as "accuracy>=0.70 failed<=4" or "P(accuracy>=0.70)>=0.999"
    law: str = ""  # for those with P( ) or expected; empty is independent failures with each device's p_fail


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """What `nonn study` compares; see nonn/experiment/methods.py for the rows."""

    seeds: tuple[int, ...] = (0,)
    rows: tuple[str, ...] = ("nonn", "jeong-4", "jeong-2", "rocoin", "copies", "ours")
    folds: tuple[tuple[int, ...], ...] = ()  # data.test_groups of each fold, every row is trained for each; none is one


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A whole experiment file."""

    experiment: ExperimentConfig = field(default_factory=ExperimentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    graph: GraphConfig = field(default_factory=GraphConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    devices: DevicesConfig = field(default_factory=DevicesConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    guarantees: GuaranteesConfig = field(default_factory=GuaranteesConfig)
    study: StudyConfig = field(default_factory=StudyConfig)


_CHOICES: dict[str, tuple[str, ...]] = {
    "data.reader": ("digits", "parquet", "cifar", "imagefolder", "npz"),
    "teacher.schedule": ("one-cycle", "step"),
    "teacher.bf16": ("auto", "on", "off"),
    "graph.kind": ("co-activation", "nonn"),
    "student.sends": ("bridge", "penultimate"),
    "partition.method": ("balanced-eigenvector", "dealt-eigenvector", "louvain", "metis", "random", "spectral"),
    "distill.schedule": ("one-cycle", "step"),
    "distill.bf16": ("auto", "on", "off"),
    "distill.failout": ("none", "independent", "stratified", "groups"),
    "fusion.train": ("zero-fill", "rescale", "replica-average", "logit-average"),
    "fusion.target": ("teacher", "labels"),
    "data.held_out_by": ("class", "group"),
    "fusion.head": ("trained", "zero-fill", "rescale", "mean-fill", "ridge", "logistic", "best"),
    "export.weights": ("float32", "int8"),
    "export.features": ("float32", "float16", "int8"),
    "fusion.temperature": ("none", "auto", "set", "survivors"),
}


def load_experiment(path: Path | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file and applies overrides.

    Args:
        path: a TOML file; None is the digits experiment with every default.
        overrides: ``section.key=value``, applied in order.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, a value has the wrong type or is impossible.
    """
    tree = parse_toml(path) if path is not None else {}
    for text in overrides:
        override(tree, text)
    partition = tree.get("partition")
    if isinstance(partition, dict) and partition.get("parts") in ("auto", AUTO):
        # The number itself is not for users: 'auto' is how one says it.
        partition["parts"] = AUTO if partition["parts"] == "auto" else 0
    count_devices(tree.get("devices"))
    experiment = from_mapping(Experiment, tree, source=str(path) if path is not None else "--set")
    _validate(experiment)
    return experiment


def _validate(experiment: Experiment) -> None:
    """Checks what types cannot say.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """

    def need(condition: bool, key: str, rule: str) -> None:
        if not condition:
            section, _, name = key.partition(".")
            raise ConfigError(f"{key} = {getattr(getattr(experiment, section), name)!r}: {rule}")

    for key, choices in _CHOICES.items():
        section, _, name = key.partition(".")
        value = getattr(getattr(experiment, section), name)
        if value not in choices:
            near = difflib.get_close_matches(value, choices, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(choices)}"
            raise ConfigError(f"{key} = {value!r}: unknown; {hint}")
    e = experiment
    safe = e.experiment.name and all(c.isalnum() or c in "._-" for c in e.experiment.name)
    need(
        bool(safe) and e.experiment.name[0] not in ".-",
        "experiment.name",
        "use letters, digits, '.', '_' and '-'",
    )
    need(e.experiment.seed >= 0, "experiment.seed", "must not be negative")
    need(e.graph.top >= 2, "graph.top", "must be at least 2: an edge has two ends")
    need(0 <= e.graph.percentile <= 100, "graph.percentile", "must lie between 0 and 100")
    need(0 < e.data.held_out < 1, "data.held_out", "must lie between 0 and 1")
    need(0 < e.data.test < 1, "data.test", "must lie between 0 and 1")
    need(
        e.data.held_out_by == "class" or bool(e.data.group),
        "data.held_out_by",
        "data.group names the array of groups, a person say",
    )
    need(e.data.unit >= 3 and e.data.unit % 3 == 0, "data.unit", "must be a multiple of 3: x, y, z of each sensor")
    check_devices(e.devices)
    need(
        e.student.model != "auto" or bool(e.devices.classes),
        "student.model",
        "auto sizes students to device classes; list them as [[devices.classes]]",
    )
    auto = e.partition.parts == AUTO
    need(auto or e.partition.parts >= 1, "partition.parts", "must be at least 1, or 'auto'")
    need(e.partition.pilot_epochs >= 1, "partition.pilot_epochs", "must be at least 1")
    need(
        e.partition.parts <= e.devices.count,
        "partition.parts",
        f"more parts than devices ({e.devices.count}); a part that nobody learns cannot be answered for",
    )
    need(
        e.partition.overlap == 1 if auto else 1 <= e.partition.overlap <= e.partition.parts,
        "partition.overlap",
        "leave it out: partition.parts = 'auto' chooses it"
        if auto
        else f"must lie between 1 and the number of parts ({e.partition.parts})",
    )
    need(e.student.send_width >= 0, "student.send_width", "must not be negative; 0 sends all features")
    need(
        not e.student.send_width or e.student.sends == "penultimate",
        "student.send_width",
        "a bridge sends one feature a filter of its part; set student.sends = 'penultimate'",
    )
    need(0 <= e.distill.p_failout < 1, "distill.p_failout", "must be a probability below 1")
    need(0 <= e.distill.p_group < 1, "distill.p_group", "must be a probability below 1")
    grouped = [device for group in e.distill.failout_groups for device in group]
    need(
        all(0 <= device < e.devices.count for device in grouped) and len(set(grouped)) == len(grouped),
        "distill.failout_groups",
        f"name each device from 0 to {e.devices.count - 1} once at most",
    )
    need(
        bool(grouped) or e.distill.failout != "groups",
        "distill.failout_groups",
        "name the groups that fail together, for example [[0, 1], [2, 3]]",
    )
    need(e.distill.generations >= 1, "distill.generations", "must be at least 1")
    check_objectives(e.distill.objectives)
    need(
        not e.distill.objectives.mutual.weight or e.devices.count > 1,
        "devices.count",
        "distill.objectives.mutual needs two devices at least",
    )
    need(e.fusion.passes >= 1, "fusion.passes", "must be at least 1")
    need(bool(e.fusion.ridge) and min(e.fusion.ridge) > 0, "fusion.ridge", "must be positive numbers")
    need(bool(e.fusion.steps) and min(e.fusion.steps) > 0, "fusion.steps", "must be positive whole numbers")
    need(e.fusion.samples >= 1, "fusion.samples", "must be at least 1")
    need(e.fusion.stored_mb >= 0, "fusion.stored_mb", "must not be negative")
    need(e.export.calibration >= 1, "export.calibration", "must be at least 1")
    need(
        not e.study.folds or (bool(e.data.group) and all(e.study.folds)),
        "study.folds",
        "a fold is a list of test groups, and data.group names the array of groups",
    )
    need(bool(e.study.seeds) and min(e.study.seeds) >= 0, "study.seeds", "name at least one seed, none negative")
    for name in ("teacher", "distill"):
        need(getattr(e, name).epochs >= 1, f"{name}.epochs", "must be at least 1")
        need(getattr(e, name).batch >= 2, f"{name}.batch", "must be at least 2: batch normalisation needs two")
        need(getattr(e, name).lr > 0, f"{name}.lr", "must be positive")
        need(0 <= getattr(e, name).ema < 1, f"{name}.ema", "must lie in [0, 1)")
