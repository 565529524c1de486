"""Tables of the experiment file about networks and their training: teacher, students, distillation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from nonn.config.models import ModelName
from nonn.config.objectives import ObjectivesConfig, SoftTargetConfig
from nonn.toml.constraints import Count, NotNegative, Positive, Probability, Range, Rules, Share, Whole

__all__ = ["DistillConfig", "StudentConfig", "TeacherConfig", "TrainingConfig"]

Epochs = Annotated[Count, "passes over the training split"]


# Objectives that compare something with the labels.
_LABELLED = frozenset({"ce", "dkd", "cwtm", "gcl", "crd", "sokd"})


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
    model: Annotated[str, ModelName("teacher"), "its network"] = "wrn-16-2"
    features: Annotated[str, "dotted path: name of the submodule whose output is the final convolutional stage"] = ""
    args: Annotated[Mapping[str, Any], "dotted path: keyword arguments of the factory"] = field(default_factory=dict)
    branches: Annotated[
        Whole,
        "this many networks of teacher.model for each different view of the devices, whose logits are averaged; 0: one "
        "network that sees the whole input",
    ] = 0
    modality_dropout: Annotated[
        Probability,
        "branches: probability that a view is left out of a training sample's averaged logits; one always stays",
    ] = 0.0
    branch_weight: Annotated[
        NotNegative, "branches: weight of the mean cross entropy of each branch alone, next to that of all of them"
    ] = 1.0
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
        yield "modality_dropout", self.branches or not self.modality_dropout, "drops branches: set teacher.branches"
        yield "normalise", self.normalise == "data" or not self.mean, "leave it out: teacher.mean is in place of it"


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The student that each device runs."""

    model: Annotated[
        str,
        ModelName("student"),
        "its network; auto: the largest wrn that fits each device; auto:FAMILY,FAMILY, such as auto:densenet-bc: the "
        "largest of these families; search:wrn-DEPTH: widths of stages are searched",
    ] = "wrn-10-1"
    search_epochs: Annotated[Count, "search: epochs of each network that is tried"] = 5
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
    branch_share: Annotated[
        Share,
        "a teacher with branches: share of the logits of a device's branch in the target of its separate answer (kd, "
        "dkd and others with on = 'device'); the rest are the mean logits of all branches",
    ] = 0.0
    picture: Annotated[
        str,
        "single-image distillation: a picture whose patches replace the training data of students and heads",
    ] = ""
    patches: Annotated[Count, "picture: number of patches"] = 5000
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
        tuple[Annotated[str, ModelName("teacher")], ...],
        "teacher assistants, each distilled from the previous one",
    ] = ()
    generations: Annotated[
        Count, "born again: students are trained this many times, each time from the logits of the last"
    ] = 1

    curriculum: Annotated[
        Whole,
        "curriculum by instance: phases, each with a larger share of the samples, the easiest first; 0: all samples",
    ] = 0
    blockwise: Annotated[
        Whole, "progressive blockwise distillation: epochs for each stage of the students before all others; 0: none"
    ] = 0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield (
            "curriculum",
            self.curriculum <= max(self.epochs, 1),
            "has more phases than distill.epochs; a phase takes one",
        )
        grouped = [device for group in self.failout_groups for device in group]
        labelled = [name for name, options in self.objectives.weighted().items() if name in _LABELLED]
        labelled += [
            name
            for name, options in self.objectives.weighted().items()
            if isinstance(options, SoftTargetConfig) and (options.label_revision or options.selection)
        ]
        yield (
            "picture",
            not self.picture or not labelled,
            f"patches have no labels, which objectives.{labelled[0] if labelled else ''} needs: set its weight to 0",
        )
        for name in ("vrkd", "umts"):
            wanted = getattr(self.objectives, name).weight
            yield (
                "teacher_views",
                not wanted or self.teacher_views > 1,
                f"objectives.{name} needs several views of each sample: store at least 2, with data.noise = 0",
            )
        yield (
            "failout_groups",
            grouped or self.failout != "groups",
            "list the groups that fail together, for example [[0, 1], [2, 3]]",
        )
        yield "failout_groups", len(set(grouped)) == len(grouped), "list each device at most once"
