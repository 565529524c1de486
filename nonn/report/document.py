"""report.json as dataclasses: the accuracy of a bundle under failures.

``nonn.report.build_report`` makes a ``Report``. Tables, figures and page read only it and the filter graph, which is
too big for it. ``scripts/tables.py`` makes ``report.schema.json`` and the fields in docs/report.md from these classes
and their docstrings. A new field gets a default, so that older reports can be read.

An ``interval`` is a pair [low, high] with a confidence of 95 % for the finite test set (``nonn.reliability.evidence``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nonn.bundle.traffic import Traffic
from nonn.documents import OPTIONAL, REST, Difference, Share, Whole
from nonn.errors import InputError, MissingExtraError
from nonn.reliability.subsets import FailureRow

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = [
    "SCHEMA",
    "Availability",
    "AvailabilityCurve",
    "ClassReport",
    "ClassRow",
    "Comparison",
    "DataReport",
    "DeviceReport",
    "Drop",
    "ExpectedAccuracy",
    "HeadReport",
    "LevelShare",
    "LiveMeasurement",
    "MethodRow",
    "Precision",
    "Report",
    "SampledSets",
    "TeacherReport",
]

SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class DataReport:
    """The samples that accuracies were counted on.

    Attributes:
        name: name of the data set.
        split: the split that was evaluated.
        samples: samples in that split.
        classes: number of classes.
        class_names: their names, by class number.
        fingerprint: SHA-256 of the data as hex; empty where the bundle does not record it.
        points_per_sample: points of accuracy that one sample is worth, 100 ÷ `samples`: no figure is finer.
        outcomes: samples whose outcome with each subset is recorded; with 0, intervals come from counts.
    """

    name: str
    split: str
    samples: Whole
    classes: Whole
    class_names: tuple[str, ...] = ()
    fingerprint: str = ""
    points_per_sample: float | None = field(default=None, metadata=OPTIONAL)
    outcomes: Whole | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class TeacherReport:
    """The network that the students were distilled from.

    Attributes:
        model: its name.
        params: number of its parameters.
        macs: multiply-accumulates of one answer.
        accuracy: its accuracy on the same samples.
        interval: of this accuracy.
    """

    model: str
    params: Whole
    macs: Whole
    accuracy: Share
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class DeviceReport:
    """What one device runs, sends and contributes.

    Attributes:
        node: number of the device.
        part: number of its part.
        filters: filters of the teacher that its student learns.
        params: number of parameters of its student.
        macs: multiply-accumulates of one answer.
        model_bytes: size of its model file, bytes.
        weights: type of its weights.
        features: type of the features that it sends.
        feature_bytes: size of the features that it sends for one answer, bytes.
        accuracy_alone: accuracy when no other device answers.
        value: Birnbaum importance, expected accuracy with the device up less that with it down, under the failure law
            of `expected_accuracy`; in [−1, 1] up to rounding.
        shapley: Shapley value, the mean gain in accuracy when the device joins, over all orders of joining; the sum of
            all devices is the accuracy with all of them; in [−1, 1] up to rounding.
        accuracy_alone_interval: of `accuracy_alone`.
        value_interval: of `value`; the subsets with and without the device are compared on the same samples.
        shapley_interval: of `shapley`, likewise.
    """

    node: Whole
    part: Whole
    filters: Whole
    params: Whole
    macs: Whole
    model_bytes: Whole
    weights: str
    features: str
    feature_bytes: Whole
    accuracy_alone: Share
    value: float
    shapley: float
    accuracy_alone_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    value_interval: tuple[Difference, ...] | None = field(default=None, metadata=OPTIONAL)
    shapley_interval: tuple[Difference, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy that fewer bits cost at one number of failures.

    Attributes:
        failed: devices that have failed.
        drop: mean accuracy in float less that of this bundle.
    """

    failed: Whole
    drop: Difference


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Size and accuracy compared with the same students in float.

    Attributes:
        model_bytes: all model files of this bundle, bytes.
        float32_model_bytes: all model files in float, bytes.
        size_ratio: `model_bytes` ÷ `float32_model_bytes`.
        drop_by_failures: drop of the mean accuracy for 0 to N − 1 failed devices.
        drop_alone: accuracy of each device alone in float less that of this bundle [N].
    """

    model_bytes: Whole
    float32_model_bytes: Whole
    size_ratio: float
    drop_by_failures: tuple[Drop, ...]
    drop_alone: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class ExpectedAccuracy:
    """Accuracy over all subsets of devices, weighted with their probability.

    Attributes:
        law: the failure law as text.
        value: the expected accuracy, in [0, 1] up to rounding; where no device answers, it counts as wrong.
        p_fail: probability that a device does not answer: one number for all devices, or one for each [N].
        interval: of `value`.
    """

    law: str
    value: float
    p_fail: Share | tuple[Share, ...]
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class LevelShare:
    """Availability of one level, with its interval.

    Attributes:
        level: level of accuracy.
        share: probability that accuracy is at least the level.
        interval: of `share`: from resampled test sets, the same samples for all subsets.
    """

    level: Share
    share: Share
    interval: tuple[Share, ...]


@dataclass(frozen=True, kw_only=True)
class AvailabilityCurve:
    """Availability under one failure law.

    Attributes:
        p_fail: probability that a device does not answer: one number for all devices, or one for each [N].
        share: probability that accuracy is at least the level, for each of the levels.
        stated: the levels of the table, at which the laws differ, with intervals.
    """

    p_fail: Share | tuple[Share, ...]
    share: tuple[Share, ...]
    stated: tuple[LevelShare, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Share of the time in which accuracy reaches a level.

    Attributes:
        levels: levels of accuracy: 0, 0.001 … 1 [1001].
        curves: one for each failure law, the bundle's own first.
    """

    levels: tuple[Share, ...]
    curves: tuple[AvailabilityCurve, ...]


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
    """

    samples: Whole
    sets_at_most: Whole
    seed: Whole
    by_failures: tuple[SampledSets, ...]
    failed: Whole
    classes: tuple[ClassRow, ...]


@dataclass(frozen=True, kw_only=True)
class HeadReport:
    """The cost of the fusion head.

    Attributes:
        kind: kind of the head.
        bytes: size of its file in the bundle, bytes.
        bundle_bytes: all files of the bundle, bytes.
        solve_ms: longest time until a new subset of devices can be fused, on the machine that made the report, ms;
            absent where it was not measured.
    """

    kind: str
    bytes: Whole
    bundle_bytes: Whole
    solve_ms: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Difference of two accuracies at one number of failures.

    Attributes:
        failed: devices that have failed.
        difference: mean accuracy of all subsets less that of what it is compared with.
        interval: of `difference`.
        paired: whether both were compared sample by sample; else the interval is as of separate test sets, and wider.
    """

    failed: Whole
    difference: Difference
    interval: tuple[Difference, ...]
    paired: bool


@dataclass(frozen=True, kw_only=True)
class MethodRow:
    """One of the compared bundles.

    Attributes:
        method: experiment and kind of fusion, with the hash where several bundles share both.
        bundle: SHA-256 of the manifest as hex.
        devices: number of its devices.
        teacher_accuracy: accuracy of its teacher; 0 where the bundle does not record it.
        accuracy_by_failures: one row each for 0 to N − 1 failed devices.
        bytes_per_answer: features of all students for one answer, bytes; absent in reports of older versions.
        head: cost of the fusion head; absent in reports of older versions.
        against_first: mean accuracy less that of the first method; empty for the first, or for another test set.
    """

    method: str
    bundle: str
    devices: Whole
    teacher_accuracy: Share
    accuracy_by_failures: tuple[FailureRow, ...]
    bytes_per_answer: Whole | None = field(default=None, metadata=OPTIONAL)
    head: HeadReport | None = field(default=None, metadata=OPTIONAL)
    against_first: tuple[Comparison, ...] = ()


@dataclass(frozen=True, kw_only=True)
class LiveMeasurement:
    """What a running cluster measured at one number of failures.

    Attributes:
        failed: devices that had failed.
        answered: numbers of the devices that answered, ascending.
        accuracy: measured accuracy.
        predicted: accuracy of the same devices in the bundle's table.
        requests: requests sent.
        lost: requests without an answer.
        mismatched: answers whose class differs from the offline fusion of the reported devices; absent where answers
            were not compared.
        interval: of `accuracy`, for the distinct samples that were answered.
        predicted_interval: of `predicted`, for the test set.
        more: further keys of the measurement.
    """

    failed: Whole
    answered: tuple[Whole, ...]
    accuracy: Share
    predicted: Share
    requests: Whole
    lost: Whole
    mismatched: Whole | None = field(default=None, metadata=OPTIONAL)
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    predicted_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    more: Mapping[str, object] = field(default_factory=dict, metadata=REST)


@dataclass(frozen=True, kw_only=True)
class Report:
    """report.json: the accuracy of a bundle under failures.

    Attributes:
        schema: version of this document.
        experiment: name of the experiment.
        bundle: SHA-256 of the bundle's manifest as hex.
        data: the samples that accuracies were counted on.
        teacher: the network that the students were distilled from.
        devices: one entry for each device [N].
        traffic: size of one answer on the network.
        precision: size and accuracy compared with float; null for a bundle in float.
        fusion: kind of the fusion head.
        head: cost of the fusion head; absent in reports of older versions.
        accuracy_by_failures: accuracy over all subsets of devices, for 0 to N − 1 failed devices.
        expected_accuracy: accuracy under the bundle's failure law.
        against_teacher: mean accuracy less that of the teacher, for 0 to N − 1 failed devices; empty in reports of
            older versions.
        pair_losses: accuracy when exactly two devices have failed, on the diagonal when one has [N, N].
        pair_intervals: of the accuracy of each pair [N, N]; empty in reports of older versions.
        pair_loss_intervals: of the accuracy of all devices less that without each pair [N, N].
        availability: share of the time in which accuracy reaches a level.
        by_class: classes and calibration; null for a bundle without recorded test features.
        methods: this bundle and those compared with it; empty without a comparison.
        measured_live: measurements of a running cluster; empty without one.
        provenance: the bundle's record of its origin: configuration, code version, measures of the partition.
    """

    schema: Whole
    experiment: str
    bundle: str
    data: DataReport
    teacher: TeacherReport
    devices: tuple[DeviceReport, ...]
    traffic: Traffic
    precision: Precision | None = None
    fusion: str
    head: HeadReport | None = field(default=None, metadata=OPTIONAL)
    accuracy_by_failures: tuple[FailureRow, ...]
    expected_accuracy: ExpectedAccuracy
    against_teacher: tuple[Comparison, ...] = ()
    pair_losses: tuple[tuple[Share, ...], ...]
    pair_intervals: tuple[tuple[tuple[Share, ...], ...], ...] = ()
    pair_loss_intervals: tuple[tuple[tuple[Difference, ...], ...], ...] = ()
    availability: Availability
    by_class: ClassReport | None = None
    methods: tuple[MethodRow, ...] = ()
    measured_live: tuple[LiveMeasurement, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)

    def frame(self, table: str = "failures") -> DataFrame:
        """One of the tables as a pandas ``DataFrame``, a line for each row of it.

        Args:
            table: ``failures``, ``availability``, ``devices``, ``pairs``, ``live``, ``methods``, ``classes``, ``bias``
                or ``calibration``, where the report has it.

        Raises:
            InputError: the report has no such table.
            MissingExtraError: pandas is not installed.
        """
        from nonn.report.text import records, whole_tables  # tables are made of this class

        tables = whole_tables(self)
        if table not in tables:
            raise InputError(f"table '{table}': this report has {', '.join(tables)}")
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as exc:
            raise MissingExtraError("pandas", extra="notebook") from exc
        return DataFrame(records(tables[table]))

    def _repr_html_(self) -> str:
        """Headline and accuracy against failures, for notebooks."""
        from nonn.report.table import as_html, failure_table, headline  # tables are made of this class

        return as_html(failure_table(self), headline(self))
