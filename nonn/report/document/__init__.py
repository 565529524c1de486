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
from nonn.documents import OPTIONAL, Difference, Share, Whole
from nonn.errors import InputError, MissingExtraError
from nonn.reliability.table import FailureRow
from nonn.report.document.availability import Availability, AvailabilityCurve, ExpectedAccuracy, LevelShare, Sampling
from nonn.report.document.classes import ClassReport, ClassRow, SampledSets
from nonn.report.document.compared import Comparison, LiveMeasurement, MethodRow
from nonn.report.document.devices import DataReport, DeviceReport, Drop, HeadReport, Made, Precision, TeacherReport
from nonn.report.document.sensing import SensingReport, SmoothedRow, SmoothingReport

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
    "Made",
    "MethodRow",
    "Precision",
    "Report",
    "SampledSets",
    "Sampling",
    "SensingReport",
    "SmoothedRow",
    "SmoothingReport",
    "TeacherReport",
]

SCHEMA = 1


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
        sensing: nodes that read sensors; absent without them.
        precision: size and accuracy compared with float; null for a bundle in float.
        fusion: kind of the fusion head.
        head: cost of the fusion head; absent in reports of older versions.
        accuracy_by_failures: accuracy over all subsets of devices, for 0 to N − 1 failed devices.
        sampling: the subsets that were evaluated, if these are not all; absent up to 16 devices.
        expected_accuracy: accuracy under the bundle's failure law.
        expected_correlated: the same when devices fail as often, but half of the failures have a cause that takes one
            half of the devices down; absent in reports of older versions.
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
        made: date, machine, command and version of this report; absent in reports of older versions.
    """

    schema: Whole
    experiment: str
    bundle: str
    data: DataReport
    teacher: TeacherReport
    devices: tuple[DeviceReport, ...]
    traffic: Traffic
    sensing: SensingReport | None = field(default=None, metadata=OPTIONAL)
    precision: Precision | None = None
    fusion: str
    head: HeadReport | None = field(default=None, metadata=OPTIONAL)
    accuracy_by_failures: tuple[FailureRow, ...]
    sampling: Sampling | None = field(default=None, metadata=OPTIONAL)
    expected_accuracy: ExpectedAccuracy
    expected_correlated: ExpectedAccuracy | None = field(default=None, metadata=OPTIONAL)
    against_teacher: tuple[Comparison, ...] = ()
    pair_losses: tuple[tuple[Share, ...], ...]
    pair_intervals: tuple[tuple[tuple[Share, ...], ...], ...] = ()
    pair_loss_intervals: tuple[tuple[tuple[Difference, ...], ...], ...] = ()
    availability: Availability
    by_class: ClassReport | None = None
    methods: tuple[MethodRow, ...] = ()
    measured_live: tuple[LiveMeasurement, ...] = ()
    provenance: Mapping[str, object] = field(default_factory=dict)
    made: Made | None = field(default=None, metadata=OPTIONAL)

    def frame(self, table: str = "failures") -> DataFrame:
        """One of the tables as a pandas ``DataFrame``, a line for each row of it.

        Args:
            table: ``failures``, ``availability``, ``devices``, ``pairs``, ``live``, ``methods``, ``classes``, ``bias``
                ``calibration`` or ``smoothing``, where the report has it.

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
        from nonn.report.overview import failure_table  # tables are made of this class
        from nonn.report.sentences import headline  # tables are made of this class
        from nonn.report.table import as_html  # tables are made of this class

        return as_html(failure_table(self), headline(self))
