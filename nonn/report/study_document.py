"""study.json as dataclasses: the results of ``nonn study``, for its tables and figure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nonn.documents import OPTIONAL, Share, Whole
from nonn.errors import MissingExtraError
from nonn.report.document.compared import Comparison

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["LevelRow", "Study", "StudyRow", "StudyTeacher"]


@dataclass(frozen=True, kw_only=True)
class LevelRow:
    """A head at one number of failures: accuracy, calibration and bias between classes.

    Attributes:
        failed: devices that have failed.
        mean: mean accuracy over all subsets of devices.
        worst: accuracy of the worst set.
        best: accuracy of the best set.
        ece: mean expected calibration error.
        cev: mean combined error variance against the answers of all devices; 0 when no class changes.
        sde: mean symmetric distance error against the answers of all devices; 0 when no class changes.
        interval: of `mean`, 95 %, for new test samples; the standard deviation over seeds is `sd` of the row. Absent in
            older studies.
        worst_interval: of `worst`, likewise, as if the subset had not been chosen on these samples.
    """

    failed: Whole
    mean: Share
    worst: Share
    best: Share
    ece: Share
    cev: float
    sde: float
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)
    worst_interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class StudyRow:
    """One method with one fusion head, means over its runs: one for each seed and fold.

    Attributes:
        method: its key in the experiment file.
        title: its name in tables.
        head: kind of the fusion head.
        own: whether the method serves this head.
        parts: parts of the first run.
        part_sizes: filters of each part of the first run.
        student: network of the students.
        params: parameters of the largest student.
        macs: multiply-accumulates of the costliest student, for one answer.
        feature_bytes: features of the widest student for one answer, bytes.
        bytes_per_answer: features of all students for one answer, bytes.
        input_bytes: one input, bytes.
        seeds: seed of each run.
        accuracy_by_failures: means over runs for 0 to N − 1 failed devices; worst and best are means of those of each
            run.
        expected: expected accuracy by the probability with which every device fails, independently.
        sd: standard deviation of the mean accuracy over runs, for 0 to N − 1 failed devices; 0 for a single run.
        by_run: mean accuracy of each run, for 0 to N − 1 failed devices.
        disagreement: share of samples that two devices answer differently by themselves, with this head; mean over all
            pairs and runs. None in older studies.
        error_correlation: correlation of the errors of two devices by themselves, in the same way.
        expected_intervals: of each of `expected`, 95 %, for new test samples; absent in older studies.
        against_first: mean accuracy less that of the first row that a method serves, on the same samples; absent for
            that row, rows before it, and in older studies.
    """

    method: str
    title: str
    head: str
    own: bool
    parts: Whole
    part_sizes: tuple[Whole, ...]
    student: str
    params: Whole
    macs: Whole
    feature_bytes: Whole
    bytes_per_answer: Whole
    input_bytes: Whole
    seeds: tuple[Whole, ...]
    accuracy_by_failures: tuple[LevelRow, ...]
    expected: Mapping[str, float]
    sd: tuple[float, ...]
    by_run: tuple[tuple[Share, ...], ...]
    disagreement: Share | None = field(default=None, metadata=OPTIONAL)
    error_correlation: float | None = field(default=None, metadata=OPTIONAL)
    expected_intervals: Mapping[str, tuple[Share, ...]] | None = field(default=None, metadata=OPTIONAL)
    against_first: tuple[Comparison, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class StudyTeacher:
    """The teacher of all methods.

    Attributes:
        model: its name.
        accuracy: its mean accuracy over the runs.
        interval: of `accuracy`, 95 %, for new test samples; absent in older studies.
    """

    model: str
    accuracy: Share
    interval: tuple[Share, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True, kw_only=True)
class Study:
    """study.json: every method with every head, on the test split after the last epoch.

    Attributes:
        experiment: name of the experiment.
        complete: whether all rows, seeds and folds are there.
        config: the experiment file, resolved: a table for each section.
        seeds: seeds that the experiment asks for.
        folds: test groups of each fold; empty without folds.
        machine: processor and versions.
        code_version: version of nonn, with the commit.
        teacher: the teacher of all methods.
        rows: one for each method and head.
    """

    experiment: str
    complete: bool
    config: Mapping[str, Mapping[str, object]]
    seeds: tuple[Whole, ...]
    folds: tuple[tuple[int, ...], ...] = ()
    machine: Mapping[str, str]
    code_version: str
    teacher: StudyTeacher
    rows: tuple[StudyRow, ...]

    def frame(self) -> DataFrame:
        """A pandas ``DataFrame`` with a line for each method, head and number of failed devices.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ModuleNotFoundError as exc:
            raise MissingExtraError("pandas", extra="notebook") from exc
        return DataFrame(self.records())

    def records(self) -> list[dict[str, object]]:
        """The lines of ``frame`` and of ``study.csv``: one for each method, head and number of failed devices."""
        of_row = ("method", "head", "own", "parts", "params", "feature_bytes", "bytes_per_answer")
        of_line = ("mean", "sd", "worst", "best", "ece", "cev", "sde")
        of_pair = ("disagreement", "error_correlation")
        return [
            {key: getattr(row, key) for key in of_row}
            | {"failed": line.failed}
            | {key: sd if key == "sd" else getattr(line, key) for key in of_line}
            | dict(zip(("mean_low", "mean_high"), line.interval or (None, None), strict=True))
            | dict(zip(("worst_low", "worst_high"), line.worst_interval or (None, None), strict=True))
            | {key: getattr(row, key) for key in of_pair}
            for row in self.rows
            for line, sd in zip(row.accuracy_by_failures, row.sd, strict=True)
        ]

    def _repr_html_(self) -> str:
        """The short table, for notebooks."""
        from nonn.report.study import short_table  # tables are made of this class
        from nonn.report.table import as_html

        return as_html(short_table(self), self.experiment)
