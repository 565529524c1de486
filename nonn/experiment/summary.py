"""The result document of a study: means over seeds and folds, with standard deviations."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Sequence

import numpy as np

from nonn.config import Experiment
from nonn.documents import to_json
from nonn.experiment.evaluation import Evaluation
from nonn.experiment.methods import METHODS
from nonn.experiment.paired import Scores, compared, expected_intervals, intervals, scores_of
from nonn.provenance import code_version, machine
from nonn.reliability.intervals import share_interval
from nonn.report.study_document import LevelRow, Study, StudyRow, StudyTeacher

__all__ = ["summarise", "to_csv"]


def summarise(experiment: Experiment, results: Sequence[Evaluation], *, complete: bool) -> Study:
    """The study as one document.

    Args:
        experiment: the experiment.
        results: results of rows and seeds.
        complete: whether these are all results of the study.
    """
    rows: list[StudyRow] = []
    first: tuple[Scores, list[float]] | None = None
    teacher = _mean([result.teacher_accuracy for result in results])
    tested = {sample for result in results for sample in result.test}
    for name in dict.fromkeys(result.row for result in results):
        mine = [result for result in results if result.row == name]
        own = METHODS[name].served(experiment)
        for head in mine[0].heads:
            row, scores = _row(experiment, mine, head, is_own=head == own), scores_of(mine, head)
            if scores is not None:
                row, first = _with_intervals(row, scores, first)
            rows.append(row)
    return Study(
        experiment=experiment.experiment.name,
        complete=complete,
        config=to_json(dataclasses.asdict(experiment)),
        seeds=experiment.study.seeds,
        folds=experiment.study.folds,
        machine=machine(),
        code_version=code_version(),
        teacher=StudyTeacher(
            model=experiment.teacher.model,
            accuracy=teacher,
            interval=share_interval(teacher, len(tested)) if tested else None,
        ),
        rows=tuple(rows),
    )


def _row(experiment: Experiment, results: Sequence[Evaluation], head: str, *, is_own: bool) -> StudyRow:
    """One method with one head, over its runs."""
    first, tables = results[0], [result.heads[head] for result in results]
    means = tuple(tuple(row.mean for row in table.by_failures) for table in tables)
    return StudyRow(
        method=first.row,
        title=METHODS[first.row].title,
        head=head,
        own=is_own,
        parts=len(first.part_sizes),
        part_sizes=first.part_sizes,
        student=experiment.student.model,
        params=max(first.params),
        macs=max(first.macs),
        feature_bytes=max(first.feature_bytes),
        bytes_per_answer=sum(first.feature_bytes),
        input_bytes=first.input_bytes,
        seeds=tuple(result.seed for result in results),
        accuracy_by_failures=_mean_rows([table.by_failures for table in tables]),
        expected={p: _mean([table.expected[p] for table in tables]) for p in tables[0].expected},
        sd=tuple(_sd(of_runs) for of_runs in zip(*means, strict=True)),
        by_run=means,
        disagreement=_mean_of_known([table.disagreement for table in tables]),
        error_correlation=_mean_of_known([table.error_correlation for table in tables]),
    )


def _with_intervals(
    row: StudyRow, scores: Scores, first: tuple[Scores, list[float]] | None
) -> tuple[StudyRow, tuple[Scores, list[float]] | None]:
    """The row with intervals and its differences from the first served row, and that row: this one if none yet."""
    means = [line.mean for line in row.accuracy_by_failures]
    samples, ends = len(scores[0]), intervals(scores, means)
    lines = [
        dataclasses.replace(line, interval=end, worst_interval=share_interval(line.worst, samples))
        for line, end in zip(row.accuracy_by_failures, ends, strict=True)
    ]
    against = None if first is None else tuple(compared(scores, means, *first))
    if first is None and row.own:
        first = scores, means
    row = dataclasses.replace(
        row,
        accuracy_by_failures=tuple(lines),
        against_first=against,
        expected_intervals=expected_intervals(scores, row.expected),
    )
    return row, first


def to_csv(study: Study) -> str:
    """The rows of the study as a flat table: one line for each method, head and number of failures."""
    records = study.records()
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _mean_rows(runs: Sequence[Sequence[LevelRow]]) -> tuple[LevelRow, ...]:
    """Rows by failures, every value averaged over runs; ``worst`` and ``best`` are averages of those of each run."""
    averaged = ("mean", "worst", "best", "ece", "cev", "sde")
    return tuple(
        dataclasses.replace(rows[0], **{key: _mean([getattr(row, key) for row in rows]) for key in averaged})
        for rows in zip(*runs, strict=True)
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _mean_of_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _mean(known) if known else None


def _sd(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
