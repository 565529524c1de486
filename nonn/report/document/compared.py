"""Sections of report.json that compare: with the teacher, other bundles and a running cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from nonn.documents import OPTIONAL, REST, Difference, Share, Whole
from nonn.reliability.table import FailureRow
from nonn.report.document.devices import HeadReport

__all__ = [
    "Comparison",
    "LiveMeasurement",
    "MethodRow",
]


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
        teacher_interval: of `teacher_accuracy`; absent where the bundle does not record it.
    """

    method: str
    bundle: str
    devices: Whole
    teacher_accuracy: Share
    accuracy_by_failures: tuple[FailureRow, ...]
    bytes_per_answer: Whole | None = field(default=None, metadata=OPTIONAL)
    head: HeadReport | None = field(default=None, metadata=OPTIONAL)
    against_first: tuple[Comparison, ...] = ()
    teacher_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


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
