"""Sections of report.json about what runs: data, teacher, devices, their precision, the head, the report itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, Difference, Share, Whole

__all__ = [
    "DataReport",
    "DeviceReport",
    "Drop",
    "HeadReport",
    "Made",
    "Precision",
    "TeacherReport",
]


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
        input_bytes: size of the part of one sample that it receives, bytes; less than the sample with a view.
        accuracy_alone: accuracy when no other device answers.
        value: Birnbaum importance, expected accuracy with the device up less that with it down, under the failure law
            of `expected_accuracy`; in [−1, 1] up to rounding. Where not all subsets were evaluated: given that fewer
            than `sampling.counted_failed` other devices have failed.
        shapley: Shapley value, the mean gain in accuracy when the device joins, over all orders of joining; the sum of
            all devices is the accuracy with all of them; in [−1, 1] up to rounding. Over the chains of `sampling`, if
            there is one.
        accuracy_alone_interval: of `accuracy_alone`.
        value_interval: of `value`; the subsets with and without the device are compared on the same samples.
        shapley_interval: of `shapley`, likewise.
        joules: energy of one answer above rest, joules: its multiply-accumulates, and the bytes that it receives and
            sends, by `joule_per_mac` and `joule_per_byte` of the class of the device; absent where they are unknown.
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
    input_bytes: Whole | None = field(default=None, metadata=OPTIONAL)
    accuracy_alone_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    value_interval: tuple[Difference, ...] | None = field(default=None, metadata=OPTIONAL)
    shapley_interval: tuple[Difference, ...] | None = field(default=None, metadata=OPTIONAL)
    joules: float | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Drop:
    """Accuracy that fewer bits cost at one number of failures.

    Attributes:
        failed: devices that have failed.
        drop: mean accuracy in float less that of this bundle.
        interval: of `drop`, on the same samples; from the counts, and too wide, for bundles of older versions; absent
            in their reports.
    """

    failed: Whole
    drop: Difference
    interval: tuple[Difference, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Size and accuracy compared with the same students in float.

    Attributes:
        model_bytes: all model files of this bundle, bytes.
        float32_model_bytes: all model files in float, bytes.
        size_ratio: `model_bytes` ÷ `float32_model_bytes`.
        drop_by_failures: drop of the mean accuracy for 0 to N − 1 failed devices.
        drop_alone: accuracy of each device alone in float less that of this bundle [N].
        drop_alone_intervals: of each, likewise.
    """

    model_bytes: Whole
    float32_model_bytes: Whole
    size_ratio: float
    drop_by_failures: tuple[Drop, ...]
    drop_alone: tuple[Difference, ...]
    drop_alone_intervals: tuple[tuple[Difference, ...], ...] | None = field(default=None, metadata=OPTIONAL)


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
class Made:
    """Where and how the report was made.

    Attributes:
        date: day in UTC, as 2026-01-31.
        command: the command line.
        code_version: version of nonn, with the commit.
        machine: processor and versions of packages.
    """

    date: str
    command: str
    code_version: str
    machine: Mapping[str, str]
