"""The objectives of distillation, as an experiment file names and weighs them.

A table for each objective under ``[distill.objectives]``; every one has a weight and may warm up. Weight 0 leaves it
out, and the defaults leave out all but cross entropy, KD and activation transfer::

    [distill.objectives]
    kd = { weight = 0.9, temperature = 2.0, standardise = true }
    srrl = { weight = 0.01, warm_up = 0.1 }

One value is overridden by ``--set distill.objectives.kd.weight=0.5``. What each objective computes, and its source,
is in ``nonn.distill.objectives``; its options have the same names there.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field

from nonn.errors import ConfigError

__all__ = ["LogitConfig", "ObjectiveConfig", "ObjectivesConfig", "SoftTargetConfig", "check_objectives"]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """What every objective has."""

    weight: float = 0.0  # 0 leaves it out
    warm_up: float = 0.0  # share of all steps over which the weight rises linearly from 0


@dataclass(frozen=True, kw_only=True)
class LogitConfig(ObjectiveConfig):
    """An objective on answers; summed over devices unless it is on the fused one."""

    # fused: the answer of a sampled answering set; own: of each device alone; both: the sum of these two; partial:
    # what a device's part of the teacher's filters adds to the teacher's logits.
    on: str = "fused"


@dataclass(frozen=True, kw_only=True)
class SoftTargetConfig(LogitConfig):
    """An objective whose target is the teacher's softened answer."""

    temperature: float = 4.0
    label_revision: float = 0.0  # η of label revision in (0, 1]; 0 takes the teacher's answer as it is


@dataclass(frozen=True, kw_only=True)
class CeConfig(LogitConfig):
    """Cross entropy with the labels."""

    weight: float = 0.1


@dataclass(frozen=True, kw_only=True)
class KdConfig(SoftTargetConfig):
    """Knowledge distillation."""

    weight: float = 0.9
    standardise: bool = False  # logits to mean 0 and deviation 1 first; the paper then takes τ = 2 and weight 9


@dataclass(frozen=True, kw_only=True)
class DkdConfig(SoftTargetConfig):
    """Decoupled knowledge distillation."""

    tckd_weight: float = 1.0  # target class against the rest
    nckd_weight: float = 8.0  # among the rest


@dataclass(frozen=True, kw_only=True)
class TransferConfig(ObjectiveConfig):
    """Activation transfer."""

    weight: float = 1.0
    joint: bool = False  # normalise all parts jointly (the NoNN paper) instead of each by itself


@dataclass(frozen=True, kw_only=True)
class RkdConfig(ObjectiveConfig):
    """Relational knowledge distillation."""

    distance_weight: float = 25.0
    angle_weight: float = 50.0


@dataclass(frozen=True, kw_only=True)
class VidConfig(ObjectiveConfig):
    """Variational information distillation."""

    variance: float = 5.0  # σ² that every filter starts with


@dataclass(frozen=True, kw_only=True)
class CrdConfig(ObjectiveConfig):
    """Contrastive representation distillation with in-batch negatives."""

    temperature: float = 0.07
    dim: int = 128  # of the space in which student and teacher are compared


@dataclass(frozen=True, kw_only=True)
class SrrlConfig(ObjectiveConfig):
    """Partial logits, and the features they are made of."""

    feature_weight: float = 1.0  # of ‖GAP(T) − GAP(S)‖² beside the logits; 0 leaves partial logits alone


@dataclass(frozen=True, kw_only=True)
class SrmConfig(ObjectiveConfig):
    """Sparse representation matching."""

    atoms: float = 2.0  # atoms of the dictionary for each filter of the part
    sparsity: float = 0.05  # share of the atoms that a sparse code uses


@dataclass(frozen=True, kw_only=True)
class LckdConfig(ObjectiveConfig):
    """Lipschitz continuity guided knowledge distillation."""

    iterations: int = 5  # of the power method, each one doubles its steps


@dataclass(frozen=True, kw_only=True)
class SimregConfig(ObjectiveConfig):
    """Regression of the teacher's features through an MLP."""

    hidden: float = 2.0  # width of the MLP's hidden layer for each filter of the part


@dataclass(frozen=True, kw_only=True)
class MutualConfig(ObjectiveConfig):
    """Deep mutual learning between the devices' own answers."""

    temperature: float = 1.0


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """All objectives."""

    ce: CeConfig = field(default_factory=CeConfig)
    kd: KdConfig = field(default_factory=KdConfig)
    dkd: DkdConfig = field(default_factory=DkdConfig)
    mutual: MutualConfig = field(default_factory=MutualConfig)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    hint: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    at: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    srrl: SrrlConfig = field(default_factory=SrrlConfig)
    sp: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    rkd: RkdConfig = field(default_factory=RkdConfig)
    pkt: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    fsp: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    lckd: LckdConfig = field(default_factory=LckdConfig)
    vid: VidConfig = field(default_factory=VidConfig)
    crd: CrdConfig = field(default_factory=CrdConfig)
    srm: SrmConfig = field(default_factory=SrmConfig)
    simreg: SimregConfig = field(default_factory=SimregConfig)


_ON = ("fused", "own", "both", "partial")
_POSITIVE = ("temperature", "variance", "dim", "atoms", "iterations", "hidden")
_NOT_NEGATIVE = ("weight", "tckd_weight", "nckd_weight", "distance_weight", "angle_weight", "feature_weight")
_SHARE = ("warm_up", "label_revision")


def check_objectives(objectives: ObjectivesConfig, prefix: str = "distill.objectives") -> None:
    """Checks what types cannot say.

    Raises:
        ConfigError: names the key, its value and what it may be.
    """
    for spec in dataclasses.fields(objectives):
        objective = getattr(objectives, spec.name)
        for name, value in dataclasses.asdict(objective).items():
            key = f"{prefix}.{spec.name}.{name} = {value!r}"
            if isinstance(value, int | float) and not math.isfinite(value):
                raise ConfigError(f"{key}: must be finite")
            if name in _POSITIVE and value <= 0:
                raise ConfigError(f"{key}: must be positive")
            if name in _NOT_NEGATIVE and value < 0:
                raise ConfigError(f"{key}: must not be negative")
            if name in _SHARE and not 0 <= value <= 1:
                raise ConfigError(f"{key}: must lie between 0 and 1")
            if name == "sparsity" and not 0 < value <= 1:
                raise ConfigError(f"{key}: must lie between 0 and 1, and not be 0")
            if name == "on" and value not in _ON:
                near = difflib.get_close_matches(value, _ON, n=1)
                raise ConfigError(f"{key}: unknown; " + (f"did you mean '{near[0]}'?" if near else " | ".join(_ON)))
        if isinstance(objective, SoftTargetConfig) and objective.label_revision and objective.on == "partial":
            raise ConfigError(
                f"{prefix}.{spec.name}.label_revision: revises whole answers; choose on = 'fused', 'own' or 'both'"
            )
    if not any(getattr(objectives, spec.name).weight for spec in dataclasses.fields(objectives)):
        raise ConfigError(f"{prefix}: every weight is 0; there is nothing to train for")
