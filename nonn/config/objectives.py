"""The objectives of distillation, as selected and weighted by an experiment file.

A table for each objective under ``[distill.objectives]``; every one has a weight and may warm up. Weight 0 leaves it
out, and the defaults leave out all but cross entropy, KD and activation transfer::

    [distill.objectives]
    kd = { weight = 0.9, temperature = 2.0, standardise = true }
    srrl = { weight = 0.01, warm_up = 0.1 }

``--set distill.objectives.kd.weight=0.5`` overrides one value. What each objective computes, and its source, is in
``nonn.distill.objectives``; its options have the same names there.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from nonn.toml.constraints import Choice, Count, NotNegative, Positive, Probability, Range, Rules, Share, Whole
from nonn.toml.registry import installed, is_path

__all__ = ["LogitConfig", "ObjectiveConfig", "ObjectivesConfig", "OtherConfig", "SoftTargetConfig"]

Weight = Annotated[NotNegative, "0 leaves it out"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """Options of every objective."""

    weight: Weight = 0.0
    warm_up: Annotated[Share, "share of all steps over which the weight rises linearly from 0"] = 0.0


@dataclass(frozen=True, kw_only=True)
class LogitConfig(ObjectiveConfig):
    """An objective on logits; summed over devices unless it is on the fused ones."""

    on: Annotated[
        Literal["fused", "device", "both", "partial"],
        "fused: logits of a sampled subset of devices; device: of each device alone; both: the sum of these two; "
        "partial: the contribution of a device's part of the teacher's filters to the teacher's logits",
    ] = "fused"
    device_weight: Annotated[NotNegative, "both, device: weight of the logits of each device alone"] = 1.0

    @staticmethod
    def complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The table with ``on = "device"`` where it has the old spelling, ``on = "own"``."""
        if values.get("on") != "own":
            return values
        warnings.warn(
            "distill.objectives: on = 'own' is called on = 'device' now; the old spelling will be removed",
            FutureWarning,
            stacklevel=2,
        )
        return {**values, "on": "device"}


@dataclass(frozen=True, kw_only=True)
class SoftTargetConfig(LogitConfig):
    """An objective whose target is the teacher's softened output."""

    temperature: Annotated[Positive, "τ of the softened distributions"] = 4.0
    label_revision: Annotated[Share, "η of label revision; 0 uses the teacher's output unchanged"] = 0.0
    only_wrong: Annotated[
        bool, "label_revision revises only the answers that the teacher gets wrong, as in the public code"
    ] = False
    top_k: Annotated[
        Whole, "KD top-k: only this many of the teacher's largest probabilities differ, the others are equal; 0: all do"
    ] = 0
    selection: Annotated[
        Share, "data selection: share of each batch without this objective, where the teacher is most wrong; 0: none"
    ] = 0.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        for key in ("top_k", "selection"):
            whole = self.on != "partial" or not getattr(self, key)
            yield key, whole, "is for whole answers; choose on = 'fused', 'device' or 'both'"
        yield (
            "label_revision",
            not self.label_revision or self.on != "partial",
            "revises whole answers; choose on = 'fused', 'device' or 'both'",
        )
        yield "only_wrong", not self.only_wrong or self.label_revision, "set label_revision, which it restricts"


@dataclass(frozen=True, kw_only=True)
class CeConfig(LogitConfig):
    """Cross entropy with the labels."""

    weight: Weight = 0.1


@dataclass(frozen=True, kw_only=True)
class KdConfig(SoftTargetConfig):
    """Knowledge distillation."""

    weight: Weight = 0.9
    standardise: Annotated[
        bool, "standardise logits to mean 0 and deviation 1; the paper then uses temperature 2 and weight 9"
    ] = False


@dataclass(frozen=True, kw_only=True)
class DkdConfig(SoftTargetConfig):
    """Decoupled knowledge distillation."""

    tckd_weight: Annotated[NotNegative, "weight of the target class against the rest"] = 1.0
    nckd_weight: Annotated[NotNegative, "weight of the distribution among the other classes"] = 8.0


def _whole(config: LogitConfig) -> Rules:
    yield "on", config.on != "partial", "a part's logits are no probabilities; choose 'fused', 'device' or 'both'"


@dataclass(frozen=True, kw_only=True)
class BkdConfig(SoftTargetConfig):
    """Balanced knowledge distillation, for data with rare classes."""

    temperature: Annotated[Positive, "τ of the softened distributions"] = 2.0
    beta: Annotated[Probability, "β of the weight (1 − β) / (1 − β^n) of a class with n training samples"] = 0.9999

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield from super().rules()
        yield from _whole(self)


@dataclass(frozen=True, kw_only=True)
class DkppConfig(SoftTargetConfig):
    """Dark knowledge with permuted predictions: KD of answers whose lesser classes are permuted."""

    temperature: Annotated[Positive, "τ of the softened distributions"] = 1.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield from super().rules()
        yield from _whole(self)


@dataclass(frozen=True, kw_only=True)
class CwtmConfig(LogitConfig):
    """Cross entropy with the labels, each sample weighted by the teacher's largest probability."""

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield from _whole(self)


@dataclass(frozen=True, kw_only=True)
class DtdConfig(SoftTargetConfig):
    """Dynamic temperature distillation: KD at a temperature for each sample."""

    temperature: Annotated[Positive, "τ₀, mean of the temperatures"] = 8.0
    gamma: Annotated[Positive, "γ, exponent of 1 − cos between the answers of student and teacher"] = 2.0
    beta: Annotated[NotNegative, "β, how far temperatures differ; 0 is KD"] = 1.0


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ObjectiveConfig):
    """Activation transfer."""

    weight: Weight = 1.0
    joint: Annotated[bool, "normalise all parts jointly, as NoNN does, instead of each one separately"] = False
    pooled: Annotated[bool, "compare spatial means, as NoNN does, instead of feature maps"] = False


@dataclass(frozen=True, kw_only=True)
class RkdConfig(ObjectiveConfig):
    """Relational knowledge distillation."""

    distance_weight: Annotated[NotNegative, "weight of distances between two samples"] = 25.0
    angle_weight: Annotated[NotNegative, "weight of angles between three samples"] = 50.0


@dataclass(frozen=True, kw_only=True)
class VidConfig(ObjectiveConfig):
    """Variational information distillation."""

    variance: Annotated[Positive, "initial σ² of every filter"] = 5.0


@dataclass(frozen=True, kw_only=True)
class CrdConfig(ObjectiveConfig):
    """Contrastive representation distillation: a variant with in-batch negatives."""

    temperature: Annotated[Positive, "τ of the contrast"] = 0.07
    dim: Annotated[Count, "dimensions of the space in which student and teacher are compared"] = 128


@dataclass(frozen=True, kw_only=True)
class SrrlConfig(ObjectiveConfig):
    """Partial logits, and the features from which they are computed."""

    feature_weight: Annotated[NotNegative, "weight of ‖GAP(T) − GAP(S)‖², added to partial logits; 0 omits it"] = 1.0


@dataclass(frozen=True, kw_only=True)
class SrmConfig(ObjectiveConfig):
    """Sparse representation matching: a variant that learns the dictionary in the same steps."""

    atoms: Annotated[Positive, "atoms of the dictionary for each filter of the part"] = 2.0
    sparsity: Annotated[float, Range(gt=0, le=1), "share of the atoms that a sparse code uses"] = 0.05


@dataclass(frozen=True, kw_only=True)
class LckdConfig(ObjectiveConfig):
    """Lipschitz continuity guided knowledge distillation."""

    iterations: Annotated[Count, "iterations of the power method; each one doubles the steps"] = 5


@dataclass(frozen=True, kw_only=True)
class SimregConfig(ObjectiveConfig):
    """Regression of the teacher's features through an MLP."""

    hidden: Annotated[Positive, "width of the MLP's hidden layer for each filter of the part"] = 2.0
    teachers: Annotated[
        tuple[str, ...], "files of weights of further teachers of the same model, such as teacher.safetensors of a run"
    ] = ()


@dataclass(frozen=True, kw_only=True)
class MutualConfig(ObjectiveConfig):
    """Deep mutual learning between the devices' own logits."""

    temperature: Annotated[Positive, "τ of the softened distributions"] = 1.0


@dataclass(frozen=True, kw_only=True)
class PclConfig(ObjectiveConfig):
    """Peer collaborative learning from the ensemble and the devices' moving averages, which are then deployed."""

    temperature: Annotated[Positive, "τ of the softened distributions"] = 3.0
    ramp_up: Annotated[Share, "share of all steps over which the weight rises as exp(−5 (1 − s)²); 0: at once"] = 0.27


@dataclass(frozen=True, kw_only=True)
class SokdConfig(ObjectiveConfig):
    """Semi-online KD: the students learn from a copy of the teacher's last block that learns with them; needs a wrn."""

    temperature: Annotated[Positive, "τ of the softened distributions"] = 4.0


@dataclass(frozen=True, kw_only=True)
class IeKdConfig(ObjectiveConfig):
    """Inheritance and exploration: half of the filters are like the teacher's, the others unlike."""

    explore: Annotated[
        Literal["teacher", "replicas"], "what the second half of the filters differs from; replicas: two devices a part"
    ] = "teacher"


@dataclass(frozen=True, kw_only=True)
class AfdConfig(ObjectiveConfig):
    """Adversarial distillation of feature maps."""

    against: Annotated[
        Literal["teacher", "replicas"],
        "whose maps a student imitates; replicas: the next device of its part, in a cycle",
    ] = "teacher"
    maps: Annotated[Literal["features", "attention"], "what a discriminator sees"] = "features"


@dataclass(frozen=True, kw_only=True)
class MimkdConfig(ObjectiveConfig):
    """Mutual information maximisation between features of student and teacher, pooled and at each position."""

    dim: Annotated[Count, "dimensions of the critics"] = 32


@dataclass(frozen=True, kw_only=True)
class RtkConfig(ObjectiveConfig):
    """Representative teacher keys: a substitute, attention transfer from the teacher's layers that are alike."""

    temperature: Annotated[Positive, "τ of the attention to layers; small: to the most similar one"] = 0.1


@dataclass(frozen=True, kw_only=True)
class VrkdConfig(SoftTargetConfig):
    """KD from the teacher's answers to all stored views of a sample; needs distill.teacher_views."""

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield from super().rules()
        yield from _whole(self)


@dataclass(frozen=True, kw_only=True)
class GclConfig(LogitConfig):
    """Gaussian clouded logits, for data with rare classes: cross entropy with noise on the logits of rare classes."""

    scale: Annotated[NotNegative, "largest noise on a logit"] = 15.0

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield from _whole(self)


@dataclass(frozen=True, kw_only=True)
class HintPointsConfig(ObjectiveConfig):
    """Hints at the layers of the teacher that stand for clusters of similar ones; needs wide residual networks."""

    points: Annotated[Count, "clusters of the teacher's blocks, and hints"] = 2


@dataclass(frozen=True, kw_only=True)
class OtherConfig(ObjectiveConfig):
    """An objective outside of nonn."""

    args: Annotated[Mapping[str, Any], "keyword arguments of the function"] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The objectives of the students, a table for each."""

    ce: CeConfig = field(default_factory=CeConfig)
    kd: KdConfig = field(default_factory=KdConfig)
    dkd: DkdConfig = field(default_factory=DkdConfig)
    bkd: BkdConfig = field(default_factory=BkdConfig)
    dkpp: DkppConfig = field(default_factory=DkppConfig)
    cwtm: CwtmConfig = field(default_factory=CwtmConfig)
    dtd: DtdConfig = field(default_factory=DtdConfig)
    mutual: MutualConfig = field(default_factory=MutualConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    hint: Annotated[ObjectiveConfig, "Distance to the teacher's feature maps."] = field(default_factory=ObjectiveConfig)
    at: Annotated[ObjectiveConfig, "Attention transfer."] = field(default_factory=ObjectiveConfig)
    srrl: SrrlConfig = field(default_factory=SrrlConfig)
    sp: Annotated[ObjectiveConfig, "Similarity-preserving distillation."] = field(default_factory=ObjectiveConfig)
    rkd: RkdConfig = field(default_factory=RkdConfig)
    pkt: Annotated[ObjectiveConfig, "Probabilistic knowledge transfer."] = field(default_factory=ObjectiveConfig)
    fsp: Annotated[ObjectiveConfig, "Flow of the solution procedure."] = field(default_factory=ObjectiveConfig)
    lckd: LckdConfig = field(default_factory=LckdConfig)
    vid: VidConfig = field(default_factory=VidConfig)
    crd: CrdConfig = field(default_factory=CrdConfig)
    srm: SrmConfig = field(default_factory=SrmConfig)
    simreg: SimregConfig = field(default_factory=SimregConfig)
    pcl: PclConfig = field(default_factory=PclConfig)
    sokd: SokdConfig = field(default_factory=SokdConfig)
    ie_kd: IeKdConfig = field(default_factory=IeKdConfig)
    afd: AfdConfig = field(default_factory=AfdConfig)
    mimkd: MimkdConfig = field(default_factory=MimkdConfig)
    rtk: RtkConfig = field(default_factory=RtkConfig)
    vrkd: VrkdConfig = field(default_factory=VrkdConfig)
    umts: Annotated[
        ObjectiveConfig, "The mean of the teacher's features for all stored views, with a predicted uncertainty."
    ] = field(default_factory=ObjectiveConfig)
    gcl: GclConfig = field(default_factory=GclConfig)
    hint_points: HintPointsConfig = field(default_factory=HintPointsConfig)
    pixel: Annotated[
        ObjectiveConfig,
        "Pixel distillation: a student of a smaller picture draws the one of the teacher; needs devices.resolution.",
    ] = field(default_factory=ObjectiveConfig)
    others: Annotated[
        Mapping[str, OtherConfig],
        "objectives outside of nonn, by package.module:name or the name of an installed package; a table such as "
        '[distill.objectives."losses:cosine"] is here, too',
    ] = field(default_factory=dict)

    @staticmethod
    def complete(values: Mapping[str, Any]) -> Mapping[str, Any]:
        """The table with objectives outside of nonn under ``others``."""
        unknown = values.keys() - {spec.name for spec in dataclasses.fields(ObjectivesConfig)}
        if not unknown:
            return values
        known = installed("nonn.objectives")
        foreign = {name: values[name] for name in values if name in unknown and (is_path(name) or name in known)}
        kept = {name: value for name, value in values.items() if name not in foreign}
        return {**kept, "others": {**kept.get("others", {}), **foreign}} if foreign else values

    def weighted(self) -> dict[str, ObjectiveConfig]:
        """The options of every objective whose weight is not 0, by name."""
        own = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self) if spec.name != "others"}
        return {name: options for name, options in {**own, **self.others}.items() if options.weight}

    def rules(self) -> Rules:
        """Rules that relate several fields."""
        yield "", self.weighted(), "every weight is 0; there is nothing to train for"
        for name in self.others:  # the registry imports torch
            broken = Choice("nonn.distill.objectives.registry:OBJECTIVES").broken(name)
            yield "", not broken, f"'{name}': {broken}"
