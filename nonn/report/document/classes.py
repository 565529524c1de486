"""Sections of report.json about classes and calibration by number of failures."""

from __future__ import annotations

from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Difference, Share, Whole

__all__ = [
    "ClassReport",
    "ClassRow",
    "SampledSets",
]


@dataclass(frozen=True, kw_only=True)
class SampledSets:
    """Calibration and bias between classes at one number of failures, means over the evaluated subsets.

    Attributes:
        failed: devices that have failed.
        subsets: number of subsets of devices with that many failures.
        sets: how many of them were evaluated.
        accuracy: mean accuracy over all subsets.
        confidence: mean probability of the answered class; where not all subsets were evaluated, `accuracy` plus its
            mean difference from the accuracy of the evaluated ones.
        ece: mean expected calibration error.
        cev: mean combined error variance against the answers of all devices; 0 when no class changes.
        sde: mean symmetric distance error against the answers of all devices; 0 when no class changes.
        cka: mean linear CKA of the features of the surviving devices with those of all devices; 1 when none failed.
        ece_worst: expected calibration error of the worst set.
        accuracy_interval: of `accuracy`.
        ece_perfect: mean expected calibration error of perfectly calibrated answers with these confidences, on as many
            samples: never 0 on a finite test set.
        ece_perfect_high: what perfectly calibrated answers of one subset exceed in 1 of 20 test sets.
    """

    failed: Whole
    subsets: Whole
    sets: Whole
    accuracy: Share
    confidence: Share
    ece: Share
    cev: float
    sde: float
    ece_worst: Share
    cka: Share | None = field(default=None, metadata=OPTIONAL)
    accuracy_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    ece_perfect: Share | None = field(default=None, metadata=OPTIONAL)
    ece_perfect_high: Share | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """What failures cost one class.

    Attributes:
        class_: number of the class.
        name: name of the class.
        samples: samples of this class.
        intact: accuracy of the class with all devices.
        degraded: its mean accuracy over the evaluated subsets with `failed` devices failed.
        train_samples: training and held-out samples of this class; absent in older bundles.
        loss: `intact` less `degraded`.
        intact_interval: of `intact`.
        degraded_interval: of `degraded`.
        loss_interval: of `loss`, on the same samples.
    """

    class_: Whole
    name: str
    samples: Whole
    intact: Share
    degraded: Share
    loss: Difference
    train_samples: Whole | None = field(default=None, metadata=OPTIONAL)
    intact_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    degraded_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    loss_interval: tuple[Difference, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class ClassReport:
    """Classes and calibration by number of failures, from the recorded test features.

    Attributes:
        samples: recorded samples.
        sets_at_most: most subsets evaluated for one number of failures; all of them where there are no more.
        seed: seed of the choice of subsets.
        by_failures: one row each for 0 to N − 1 failed devices.
        failed: failed devices for `classes`: half of them, rounded down.
        classes: the classes that have samples, the lowest `degraded` first.
        cka_cev: rank correlation of `cka` and `cev` among evaluated subsets with as many failures, mean over the
            numbers of failures; negative where similar features mean less bias.
        cka_sde: the same with `sde`.
    """

    samples: Whole
    sets_at_most: Whole
    seed: Whole
    by_failures: tuple[SampledSets, ...]
    failed: Whole
    classes: tuple[ClassRow, ...]
    cka_cev: Difference | None = field(default=None, metadata=OPTIONAL)
    cka_sde: Difference | None = field(default=None, metadata=OPTIONAL)
