"""The experiment file: frozen, typed objects from TOML.

Every field declares its default, allowed values and meaning; ``nonn config`` prints them. The defaults are the digits
experiment, and a file lists the differences. Unknown keys are errors that name the nearest known key.
``--set distill.epochs=3`` overrides one value, which is parsed as TOML, or else used as a bare string.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from nonn.config.devices import BudgetConfig, DeviceClassConfig, DevicesConfig
from nonn.config.objectives import ObjectivesConfig
from nonn.errors import ConfigError
from nonn.toml import from_mapping, override, parse_toml
from nonn.toml.constraints import (
    Choice,
    Count,
    Matches,
    NotEmpty,
    NotNegative,
    Positive,
    Probability,
    Range,
    Rules,
    Share,
    Whole,
)

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
    "SensingConfig",
    "StudentConfig",
    "StudyConfig",
    "TeacherConfig",
    "TrainingConfig",
    "load_experiment",
]

AUTO: Final = "auto"  # partition.parts: pilots choose the design

Inside = Annotated[float, Range(gt=0, lt=1)]
Epochs = Annotated[Count, "passes over the training split"]


@dataclass(frozen=True, kw_only=True)
class ExperimentConfig:
    """Identifies the experiment."""

    name: Annotated[
        str,
        Matches(r"\w[\w.-]*", "letters, digits, '.', '_' and '-', with a letter, digit or '_' first"),
        "name of its folder under runs/",
    ] = "digits"
    seed: Annotated[Whole, "seed of all random numbers"] = 0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The data, their splits and the augmentation of training inputs."""

    reader: Annotated[str, Choice("nonn.data:READERS"), "format of the data"] = "digits"
    path: Annotated[str, "file or folder; digits needs none"] = ""
    held_out: Annotated[Inside, "share of train held out for selection: statistics of filters, regularisation"] = 0.1
    held_out_by: Annotated[
        Literal["class", "group"], "the held-out split is that share of each class, or of whole groups"
    ] = "class"
    test: Annotated[Inside, "share of the test split, for readers whose files have none"] = 0.2
    size: Annotated[Count, "imagefolder: images become [3, size, size]"] = 32
    inputs: Annotated[str, "npz: name of the array of inputs [n, channels, time]"] = "windows"
    labels: Annotated[str, "npz: name of the array of labels [n]; parquet, csv: column"] = "labels"
    scale: Annotated[str, "npz: name of an array [channels] that inputs are multiplied by"] = ""
    columns: Annotated[tuple[str, ...], "csv: columns of the channels, in their order"] = ()
    rate_hz: Annotated[Positive, "csv: samples per second of the windows; files are resampled to it"] = 25.0
    window_s: Annotated[Positive, "csv: duration of a window in seconds"] = 5.0
    hop_s: Annotated[NotNegative, "csv: seconds between the ends of two windows; 0: the duration of one"] = 0.0
    group: Annotated[
        str,
        "npz: name of the array [n], csv: column, or 'file', to split by: no group is on both sides",
    ] = ""
    test_groups: Annotated[
        tuple[int, ...], "npz, csv: groups that are the test split; of text or files, their numbers in order"
    ] = ()
    crop: Annotated[Whole, "augmentation: shift by up to this many pixels or time steps"] = 0
    flip: Annotated[bool, "augmentation: mirror left-right at random"] = False
    noise: Annotated[NotNegative, "augmentation: Gaussian noise, in standard deviations of the data"] = 0.2
    rotate: Annotated[
        NotNegative, "augmentation of windows: rotate each body-worn unit by this many degrees (standard deviation)"
    ] = 0.0
    unit: Annotated[
        int,
        Range(ge=3, multiple_of=3, why="x, y, z of each sensor"),
        "rotate: channels of one rigid unit, x y z of each of its sensors",
    ] = 9
    cutout: Annotated[Whole, "augmentation of images: side of a random square set to the mean"] = 0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield (
            "held_out_by",
            self.held_out_by == "class" or self.group,
            "data.group must name the array of groups, such as persons",
        )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Options of the trainer, for the teacher and for the students."""

    epochs: Epochs = 30
    batch: Annotated[int, Range(ge=2, why="batch normalisation needs two"), "samples per step"] = 128
    epoch_steps: Annotated[
        Count, "least steps of an epoch: with few samples, batches are smaller than batch, down to 16 samples"
    ] = 8
    lr: Annotated[Positive, "highest learning rate"] = 0.1
    momentum: Annotated[NotNegative, "Nesterov momentum"] = 0.9
    weight_decay: Annotated[NotNegative, "weight decay of all weights"] = 5e-4
    schedule: Annotated[Literal["one-cycle", "step"], "course of the learning rate"] = "one-cycle"
    milestones: Annotated[tuple[float, ...], "step: learning rate × 0.1 at these shares of all steps"] = (
        0.625,
        0.75,
        0.875,
    )
    label_smoothing: Annotated[Share, "share of the target that is spread over all classes"] = 0.0
    ema: Annotated[Probability, "decay per step of the exponential moving average of the weights; 0 is off"] = 0.0
    bf16: Annotated[Literal["auto", "on", "off"], "bfloat16 autocast; auto: if the processor supports it"] = "auto"
    captured: Annotated[bool, "on a GPU, steps are recorded once as a CUDA graph and replayed"] = True


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainingConfig):
    """The teacher and its training."""

    epochs: Epochs = 20
    model: Annotated[str, "a name as student.model has it, or package.module:factory"] = "wrn-16-2"
    features: Annotated[str, "dotted path: name of the submodule whose output is the final convolutional stage"] = ""
    args: Annotated[Mapping[str, Any], "dotted path: keyword arguments of the factory"] = field(default_factory=dict)
    weights: Annotated[str, "safetensors file to load instead of training"] = ""
    normalise: Annotated[
        Literal["data", "imagenet", "unit", "none"],
        "what its first layer does to raw values: data: subtracts the mean of the training split and divides by its "
        "standard deviation, per channel; imagenet: the same with ImageNet's; unit: bytes become 0 … 1; none: nothing",
    ] = "data"
    mean: Annotated[
        tuple[float, ...], "mean per channel in place of normalise; images: in units of 0 … 1, as ToTensor has them"
    ] = ()
    std: Annotated[tuple[Positive, ...], "standard deviation per channel, in the units of mean"] = ()

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield (
            "mean",
            len(self.mean) == len(self.std),
            "give teacher.mean and teacher.std, both with a value per channel",
        )
        yield "normalise", self.normalise == "data" or not self.mean, "leave it out: teacher.mean is in place of it"


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """The graph of the teacher's filters."""

    kind: Annotated[
        str,
        Choice("nonn.partition.graph:GRAPHS"),
        "edges between filters that are active on the same images, or those of NoNN: unequally active",
    ] = "co-activation"
    top: Annotated[
        int, Range(ge=2, why="an edge has two ends"), "nonn: number of most active filters of an image that form edges"
    ] = 50
    percentile: Annotated[
        Annotated[float, Range(ge=0, le=100)] | Literal["equal-degree"],
        "nonn: edges below this percentile of the non-zero ones are dropped; equal-degree: 100 − 256 / C, which keeps "
        "as many edges per filter as 99 does on 256 filters",
    ] = 99.0


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """The partition of the filters into parts."""

    method: Annotated[str, Choice("nonn.partition:METHODS"), "partitioner; docs/accuracy.md compares them"] = (
        "balanced-eigenvector"
    )
    parts: Annotated[
        Count | Literal["auto"],
        "number of parts M, at most devices.count; device i learns part i mod M; auto: pilots choose parts and overlap",
    ] = 8
    overlap: Annotated[Count, "consecutive parts that a device learns: 2 adds part i + 1 mod M, M is every filter"] = 1
    pilot_epochs: Annotated[Count, "parts = auto: epochs that each design is distilled for before one is chosen"] = 5

    @property
    def num_parts(self) -> int:
        """M.

        Raises:
            ConfigError: it is ``auto``, and pilots have not chosen it yet.
        """
        if self.parts == AUTO:
            raise ConfigError(
                "partition.parts = 'auto': a run needs a number; nonn.experiment.pilot.choose_design chooses one"
            )
        return self.parts


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student that each device runs."""

    model: Annotated[
        str,
        "wrn-, se-wrn-, inverted-, se-inverted- or strided-DEPTH-WIDTH, densenet-bc-DEPTH-GROWTH, or "
        "package.module:factory; auto: the largest wrn that fits each device; auto:FAMILY,FAMILY, such as "
        "auto:densenet-bc: the largest of these families",
    ] = "wrn-10-1"
    args: Annotated[
        Mapping[str, Any], "dotted path: keyword arguments of the factory, which is called with in_channels as well"
    ] = field(default_factory=dict)
    sends: Annotated[
        Literal["bridge", "penultimate"],
        "bridge: the filters of its part; penultimate: the backbone's own features, 64 · width",
    ] = "bridge"
    send_width: Annotated[Whole, "penultimate: features are reduced to this many; 0 sends all"] = 0
    weights: Annotated[
        str,
        "students.safetensors of an earlier run, to start from (distill.epochs = 0: to use as they are); {row} and "
        "{seed} stand for the row and seed of a study",
    ] = ""

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield (
            "send_width",
            not self.send_width or self.sends == "penultimate",
            "a bridge sends one feature for each filter of its part; set student.sends = 'penultimate'",
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig(TrainingConfig):
    """Objectives and failout of the joint training of all students."""

    epochs: Annotated[Whole, "passes over the training split; 0 needs student.weights"] = 30
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    grouped: Annotated[
        bool, "students train as one network of grouped convolutions if that is faster; false: never"
    ] = True
    teacher_views: Annotated[
        Whole,
        "augmentations stored for each training sample with the teacher's answers, so that the teacher runs once for "
        "all epochs and methods; 0: new augmentations, and the teacher in every step",
    ] = 0
    failout_draws: Annotated[Count, "subsets drawn for every sample of a batch; the loss is their mean"] = 1
    failout: Annotated[
        Literal["none", "independent", "stratified", "groups"],
        "devices dropped in training: none, each one independently, to a uniform number of survivors (stratified), or "
        "whole groups",
    ] = "stratified"
    p_failout: Annotated[Probability, "independent, groups: probability that a single device is dropped"] = 0.3
    failout_groups: Annotated[tuple[tuple[Whole, ...], ...], "groups: devices that fail together"] = ()
    p_group: Annotated[Probability, "groups: probability that a group is dropped as a whole"] = 0.1
    assistants: Annotated[
        tuple[str, ...], "teacher assistants, wrn-DEPTH-WIDTH, each distilled from the previous one"
    ] = ()
    generations: Annotated[
        Count, "born again: students are trained this many times, each time from the logits of the last"
    ] = 1

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        grouped = [device for group in self.failout_groups for device in group]
        yield (
            "failout_groups",
            grouped or self.failout != "groups",
            "list the groups that fail together, for example [[0, 1], [2, 3]]",
        )
        yield "failout_groups", len(set(grouped)) == len(grouped), "list each device at most once"


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """The fusion of features into one answer."""

    train: Annotated[
        Literal["zero-fill", "rescale", "replica-average", "logit-average"],
        "fusion that students are trained through: absent devices count as zeros (zero-fill), as zeros with the sum "
        "scaled by N/|S| (rescale), as their replicas; or every device has a classifier (logit-average)",
    ] = "zero-fill"
    head: Annotated[
        str,
        Choice("nonn.fusion:HEADS", besides=("best",)),
        "fusion that is served: that of the training (trained); the same weights with zeros, scaled, or with the mean "
        "of absent features; a ridge or logistic regression for every subset; one network for all subsets with their "
        "mask as input (masked); or of all these the most accurate on the held-out split (best)",
    ] = "ridge"
    target: Annotated[
        Literal["teacher", "labels"], "what the ridge is fitted to: the teacher's logits or one-hot labels"
    ] = "teacher"
    passes: Annotated[Count, "augmented passes over the training split that heads are fitted to"] = 4
    ridge: Annotated[tuple[Positive, ...], NotEmpty(), "candidates for λ, chosen on the held-out split"] = (
        1e-6,
        1e-5,
        1e-4,
        1e-3,
        1e-2,
        1e-1,
    )
    steps: Annotated[
        tuple[Count, ...], NotEmpty(), "logistic: candidates for the L-BFGS steps from the ridge, chosen like ridge"
    ] = (2, 5, 10, 20)
    hidden: Annotated[Count, "masked: hidden units"] = 512
    updates: Annotated[Count, "masked: optimiser steps, each with 512 samples"] = 1000
    samples: Annotated[Count, "logistic, masked: samples of the passes that they are fitted to"] = 50_000
    stored_mb: Annotated[
        NotNegative, "logistic: limit of the size of its stored subsets; the others fall back to their ridge"
    ] = 8.0
    temperature: Annotated[
        str,
        Choice("nonn.fusion.calibration:SCOPES", besides=("none",)),
        "calibration of the confidence on the held-out split: a temperature for every subset (set), for each number of "
        "answering devices (survivors), or what the samples suffice for (auto)",
    ] = "auto"


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The formats of the students and of their replies."""

    weights: Annotated[Literal["float32", "int8"], "type of weights; int8 is a quarter of the size"] = "float32"
    features: Annotated[
        str, Choice("nonn.bundle.features:FEATURE_DTYPES"), "type of sent features; int8 is one byte per feature"
    ] = "float32"
    calibration: Annotated[Count, "training inputs from which the ranges of int8 are measured"] = 512
    originals: Annotated[
        bool, "a bundle of int8 students also contains the float32 ones, for other runtimes; nodes do not need them"
    ] = True
    recorded: Annotated[bool, "the bundle contains its test features, for the simulator; nodes do not need them"] = True


@dataclass(frozen=True, kw_only=True)
class SensingConfig:
    """What nodes measure themselves (`nonn-device join --source`); written into the bundle."""

    rate_hz: Annotated[NotNegative, "samples per second of each channel; 0: nodes of this bundle do not sense"] = 0.0
    hop_s: Annotated[NotNegative, "seconds between the ends of two windows; 0: the duration of one window"] = 0.0
    channels: Annotated[
        tuple[str, ...], "names of the channels: all of them, or those of one unit, which are the same for every unit"
    ] = ()
    units: Annotated[tuple[str, ...], "unit of each of these channels, such as m/s2, g, rad/s, deg/s, uT"] = ()
    scale: Annotated[tuple[float, ...], "factor from that unit to the input of the students, of each channel"] = ()

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "channels", self.channels or not self.rate_hz, "name them: a node finds its columns or sensors by name"
        for key in ("units", "scale"):
            given = getattr(self, key)
            yield key, len(given) in (0, len(self.channels)), f"give one for each of the {len(self.channels)} channels"


@dataclass(frozen=True, kw_only=True)
class GuaranteesConfig:
    """Promises that a bundle must keep to be written; the forms are those of `nonn-sim enumerate --guarantee`."""

    require: Annotated[
        tuple[str, ...],
        'promises such as "accuracy>=0.70 failed<=4" or "P(accuracy>=0.70)>=0.999", with or without confidence=0.95',
    ] = ()
    law: Annotated[
        str, "failure law of promises with P( ) or expected; empty: devices fail independently with their p_fail"
    ] = ""


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """The comparison of `nonn study`."""

    seeds: Annotated[tuple[Whole, ...], NotEmpty(), "seeds; every row is trained with each"] = (0,)
    rows: Annotated[
        tuple[Annotated[str, Choice("nonn.experiment.methods:METHODS")], ...],
        NotEmpty(),
        "methods; nonn/experiment/methods.py describes them",
    ] = ("nonn", "jeong-4", "jeong-2", "rocoin", "parity", "imputation", "synthesised", "best-single", "copies", "ours")
    heads: Annotated[
        tuple[Annotated[str, Choice("nonn.fusion:HEADS")], ...],
        "fusion heads to evaluate besides that of each row; empty is all of them",
    ] = ()
    folds: Annotated[
        tuple[Annotated[tuple[int, ...], NotEmpty()], ...],
        "data.test_groups of each fold; every row is trained for each fold; empty: a single fold",
    ] = ()


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
    sensing: SensingConfig = field(default_factory=SensingConfig)
    guarantees: GuaranteesConfig = field(default_factory=GuaranteesConfig)
    study: StudyConfig = field(default_factory=StudyConfig)

    def rules(self) -> Rules:
        """Rules that relate several tables."""
        devices, partition, distill = self.devices, self.partition, self.distill
        yield (
            "student.model",
            self.student.model.partition(":")[0] != "auto" or devices.classes,
            "auto sizes students to device classes; list them as [[devices.classes]]",
        )
        if partition.parts == AUTO:
            yield "partition.overlap", partition.overlap == 1, "leave it out: partition.parts = 'auto' chooses it"
        else:
            yield (
                "partition.parts",
                partition.parts <= devices.count,
                f"more parts than devices ({devices.count}); a part without a device contributes to no answer",
            )
            yield (
                "partition.overlap",
                partition.overlap <= partition.parts,
                f"must be between 1 and the number of parts ({partition.parts})",
            )
        grouped = [device for group in distill.failout_groups for device in group]
        yield (
            "distill.failout_groups",
            max(grouped, default=0) < devices.count,
            f"devices are numbered from 0 to {devices.count - 1}",
        )
        yield (
            "devices.count",
            not distill.objectives.mutual.weight or devices.count > 1,
            "distill.objectives.mutual needs at least two devices",
        )
        yield (
            "distill.epochs",
            distill.epochs or self.student.weights,
            "0 epochs train nothing; name trained students with student.weights",
        )
        yield "study.folds", not self.study.folds or self.data.group, "data.group must name the array of groups"


def load_experiment(path: Path | None = None, overrides: Sequence[str] = ()) -> Experiment:
    """Reads an experiment file and applies overrides.

    Args:
        path: a TOML file; None is the digits experiment with every default.
        overrides: ``section.key=value``, applied in order.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value has the wrong type or is invalid.
    """
    tree = parse_toml(path) if path is not None else {}
    for text in overrides:
        override(tree, text)
    return from_mapping(Experiment, tree, source=str(path) if path is not None else "--set")
