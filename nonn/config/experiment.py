"""The experiment file: frozen, typed objects from TOML.

Every field declares its default, allowed values and meaning; ``nonn config`` prints them. The defaults are the digits
experiment, and a file lists the differences. Unknown keys are errors that name the nearest known key.
``--set distill.epochs=3`` overrides one value, which is parsed as TOML, or else used as a bare string.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isclose
from pathlib import Path
from typing import Annotated

from nonn.config.data import DataConfig, SensingConfig
from nonn.config.devices import DevicesConfig
from nonn.config.fusion import ExportConfig, FusionConfig
from nonn.config.partition import AUTO, GraphConfig, PartitionConfig
from nonn.config.training import DistillConfig, StudentConfig, TeacherConfig
from nonn.fusion.head import OF_LABELS
from nonn.reliability.subsets import MAX_DEVICES
from nonn.sensing.smoothing import DEVICES
from nonn.toml import from_mapping, override, parse_toml
from nonn.toml.constraints import Choice, Matches, NotEmpty, Rules, Whole

__all__ = ["Experiment", "ExperimentConfig", "GuaranteesConfig", "StudyConfig", "load_experiment"]


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
        yield from self._sizes()
        yield from self._parts()
        yield from self._heads()
        yield from self._objectives()
        yield from self._windows()

    def _sizes(self) -> Rules:
        """Students that are sized to their devices."""
        devices, student = self.devices, self.student
        yield (
            "student.model",
            student.model.partition(":")[0] != "auto" or devices.classes,
            "auto sizes students to device classes; list them as [[devices.classes]]",
        )
        kinds = [(k.model or student.model, k.params or k.macs) for k in devices.classes]
        for model, limit in kinds or [(student.model, devices.budget.params or devices.budget.macs)]:
            if model.startswith("search:"):
                yield (
                    "student.model",
                    limit,
                    "search needs a limit: set params or macs of devices.budget or of the class",
                )
                yield (
                    "partition.parts",
                    self.partition.parts != AUTO,
                    "student.model = 'search:…' needs a number of parts",
                )

    def _parts(self) -> Rules:
        """Parts, overlap and groups of devices."""
        partition, count = self.partition, self.devices.count
        if partition.parts == AUTO:
            yield "partition.overlap", partition.overlap == 1, "leave it out: partition.parts = 'auto' chooses it"
        else:
            yield (
                "partition.parts",
                partition.parts <= count,
                f"more parts than devices ({count}); a part without a device contributes to no answer",
            )
            yield (
                "partition.overlap",
                partition.overlap <= partition.parts,
                f"must be between 1 and the number of parts ({partition.parts})",
            )
        grouped = [device for group in self.distill.failout_groups for device in group]
        yield "distill.failout_groups", max(grouped, default=0) < count, f"devices are numbered from 0 to {count - 1}"

    def _heads(self) -> Rules:
        """Heads that need labels, or all subsets of the devices."""
        fusion, sampled = self.fusion, self.devices.count > MAX_DEVICES
        fitted = fusion.head == "best" or fusion.head in OF_LABELS  # best fits all heads
        labels = fitted or fusion.target == "labels" or fusion.balanced or fusion.head_to_tail
        yield (
            "distill.picture",
            not (self.distill.picture and labels),
            "patches have no labels: choose fusion.head = 'ridge' or 'trained' and fusion.target = 'teacher', without "
            "fusion.balanced and fusion.head_to_tail",
        )
        yield (
            "fusion.head",
            not (sampled and fitted),
            f"'{fusion.head}' fits to all subsets of at most {MAX_DEVICES} devices; choose 'ridge' or 'trained'",
        )
        yield (
            "fusion.temperature",
            not sampled or fusion.temperature != "set",
            f"'set' is for at most {MAX_DEVICES} devices; choose 'survivors' or 'auto'",
        )
        yield (
            "devices.classes",
            not (sampled and self.devices.classes),
            f"students are placed on at most {MAX_DEVICES} unequal devices; leave classes out",
        )

    def _objectives(self) -> Rules:
        """Objectives that need several devices, and trainings that train something."""
        objectives, count, parts = self.distill.objectives, self.devices.count, self.partition.parts
        for name in ("mutual", "pcl"):
            alone = getattr(objectives, name).weight and count < 2
            yield "devices.count", not alone, f"distill.objectives.{name} needs at least two devices"
        single = parts != AUTO and count < 2 * parts
        for key, wanted in (
            ("ie_kd.explore", objectives.ie_kd.weight and objectives.ie_kd.explore == "replicas"),
            ("afd.against", objectives.afd.weight and objectives.afd.against == "replicas"),
        ):
            yield (
                f"distill.objectives.{key}",
                not (wanted and single),
                f"needs two devices for each part; set partition.parts to {max(1, count // 2)} or fewer",
            )
        yield (
            "distill.epochs",
            self.distill.epochs or self.student.weights,
            "0 epochs train nothing; name trained students with student.weights",
        )
        yield (
            "distill.branch_share",
            not self.distill.branch_share or (self.teacher.branches and not self.distill.assistants),
            "needs a teacher with branches, without assistants: set teacher.branches",
        )

    def _windows(self) -> Rules:
        """Smoothing over windows, and folds of their groups."""
        data, sensing = self.data, self.sensing
        if sensing.smoothing != "none":
            yield "sensing.smoothing", data.group, "needs windows in their order: data.group must name the recordings"
            yield "sensing.smoothing", self.devices.count <= DEVICES, f"is measured for up to {DEVICES} devices"
            hop_s = data.hop_s or data.window_s
            yield (
                "sensing.hop_s",
                data.reader != "csv" or isclose(hop_s, sensing.hop_s or data.window_s),
                f"smoothing is measured at data.hop_s, {hop_s:g} s: give both the same",
            )
        yield "study.folds", not self.study.folds or data.group, "data.group must name the array of groups"


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
