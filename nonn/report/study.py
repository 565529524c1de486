"""A study as tables: accuracy of each method with its served head, and of every head on the same students."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from nonn.report.study_document import LevelRow, Study, StudyRow
from nonn.report.table import (
    Column,
    IntervalColumn,
    Table,
    TextColumn,
    as_markdown,
    as_text,
    percent,
    points,
    show_interval,
)

__all__ = [
    "heads_markdown",
    "heads_table",
    "ladder_table",
    "short_markdown",
    "short_table",
    "study_markdown",
    "study_text",
]


def study_text(study: Study) -> str:
    """The short table of every method and head, for a terminal."""
    return f"\n{_title(study)}; * the head that the method serves\n\n{as_text(heads_table(study))}\n"


def study_markdown(study: Study) -> str:
    """Both tables with their provenance, for a document."""
    machine = ", ".join(f"{key} {study.machine[key]}" for key in sorted(study.machine))
    config = study.config
    epochs = f"teacher {_training(config, 'teacher')}, students {_training(config, 'student')}"
    state = "" if study.complete else "\n\n**Not complete: rows or seeds are missing.**"
    return (
        f"# Study: {study.experiment}\n\n{_title(study)}; {epochs}. Last epoch, test split, means over all sets of "
        f"surviving devices and over seeds.{state}\n\n"
        f"## Each method with the head that it serves\n\nDisagreement and error correlation are those of two "
        f"devices that answer by themselves, through the ridge head or the method's fusion if it has none; mean over "
        f"all pairs.\n\n{as_markdown(ladder_table(study))}\n\n"
        f"## Every head on the same students\n\nA star marks the head that the method serves.\n\n"
        f"{as_markdown(heads_table(study))}\n\nCode version {study.code_version}; {machine}.\n"
    )


def short_markdown(study: Study) -> str:
    """The short table with its provenance, for a document."""
    return f"{_origin(study)}\n\n{as_markdown(short_table(study))}"


def heads_markdown(study: Study) -> str:
    """The table of every head with its provenance, for a document."""
    return f"{_origin(study)}\n\n{as_markdown(heads_table(study))}"


def short_table(study: Study) -> Table:
    """Each method with its served head and with the experiment's served head, columns up to the accuracies."""
    same = study.config["fusion"]["head"]
    shown = heads_table(replace(study, rows=tuple(row for row in study.rows if row.own or row.head == same)))
    keys = [column.key for column in shown.columns]
    return Table(shown.columns[: keys.index("last_interval" if "last_interval" in keys else "last") + 1], shown.rows)


def ladder_table(study: Study) -> Table:
    """Accuracy by the number of failed devices, mean and worst subset, and the cost of an answer."""
    own = [row for row in study.rows if row.own]
    # The answers of single devices: of the ridge head, which is fitted to single devices in every row that has it.
    alone = {row.method: row for row in study.rows if row.own} | {r.method: r for r in study.rows if r.head == "ridge"}
    count = len(study.rows[0].sd)
    rows = []
    for row in own:
        cells = {f"failed {line.failed}": (line, sd) for line, sd in zip(row.accuracy_by_failures, row.sd, strict=True)}
        flat = {"method": row.title, "head": row.head, "params": row.params, "bytes": row.bytes_per_answer}
        rows.append(flat | cells | _pairs(alone[row.method]))
    several = len(study.rows[0].by_run) > 1
    ends = " [95 %]" if study.rows[0].accuracy_by_failures[0].interval else ""

    def between(ends: tuple[float, ...] | None) -> str:
        return "" if ends is None else f" [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"

    def cell(value: tuple[LevelRow, float]) -> str:
        line, sd = value
        spread = f" ± {100 * sd:.1f}" if several else ""
        worst = f"{100 * line.worst:.1f}{between(line.worst_interval)}"
        return f"{100 * line.mean:.1f}{spread}{between(line.interval)} ({worst})"

    return Table(
        (
            TextColumn("method", "method", str),
            TextColumn("head", "head", str),
            Column("params", "params"),
            Column("bytes/answer", "bytes"),
            *(TextColumn(f"{k} failed: mean{ends} (worst{ends})", f"failed {k}", cell) for k in range(count)),
            *_pair_columns(study),
        ),
        rows,
    )


def heads_table(study: Study) -> Table:
    """Every method with every head: accuracy with none, half and all but one failed and under laws, and calibration."""
    levels = len(study.rows[0].sd)
    half, laws = levels // 2, list(study.rows[0].expected)
    columns = (
        TextColumn("method", "method", str),
        TextColumn("head", "head", str),
        Column("params", "params"),
        Column("bytes/answer", "bytes"),
        *_with_interval(study, "0 failed", "none"),
        *_with_interval(study, f"{half} failed", "half"),
        *_with_interval(study, "worst", "worst"),
        *_with_interval(study, f"{levels - 1} failed", "last"),
        *_against_columns(study, half),
        *(column for p in laws for column in _with_interval(study, f"expected, p={p}", p)),
        Column(f"ECE at {half}", "ece", percent),
        Column(f"CEV at {half}", "cev", lambda value: f"{value:.3f}"),
        Column(f"SDE at {half}", "sde", lambda value: f"{value:.3f}"),
        *_pair_columns(study),
    )
    return Table(columns, list(_head_rows(study, half)))


def _head_rows(study: Study, half: int) -> Iterator[dict[str, object]]:
    method = ""
    for row in study.rows:
        lines = row.accuracy_by_failures
        against = next((c for c in row.against_first or () if c.failed == half), None)
        yield {
            "method": row.title if row.method != method else "",
            "head": row.head + (" *" if row.own else ""),
            "params": row.params,
            "bytes": row.bytes_per_answer,
            "none": lines[0].mean,
            "none_interval": lines[0].interval,
            "half": lines[half].mean,
            "half_interval": lines[half].interval,
            "worst": lines[half].worst,
            "worst_interval": lines[half].worst_interval,
            "last": lines[-1].mean,
            "last_interval": lines[-1].interval,
            **row.expected,
            **{f"{p}_interval": (row.expected_intervals or {}).get(p) for p in row.expected},
            "against": against and against.difference,
            "against_interval": against and against.interval,
            "ece": lines[half].ece,
            "cev": lines[half].cev,
            "sde": lines[half].sde,
            **_pairs(row),
        }
        method = row.method


def _has_intervals(study: Study) -> bool:
    """Whether any row has intervals for new test samples; older studies have none."""
    return any(row.accuracy_by_failures[0].interval is not None for row in study.rows)


def _with_interval(study: Study, title: str, key: str) -> tuple[Column, ...]:
    """A column of accuracies, and one of their intervals if the study has them."""
    ends = (IntervalColumn("95 %", f"{key}_interval", show_interval(percent)),) if _has_intervals(study) else ()
    return Column(title, key, percent), *ends


def _against_columns(study: Study, half: int) -> tuple[Column, ...]:
    """Differences from the first row with half of the devices failed; no columns for an older study without them."""
    if not _has_intervals(study):
        return ()
    less = Column(f"{half} failed, less the first, points", "against", points)
    return less, IntervalColumn("95 %", "against_interval", show_interval(points))


def _pairs(row: StudyRow) -> dict[str, object]:
    return {"disagreement": row.disagreement, "error_correlation": row.error_correlation}


def _pair_columns(study: Study) -> tuple[Column, ...]:
    """Diversity of the devices; no columns for an older study without it."""
    if all(row.disagreement is None for row in study.rows):
        return ()
    return (
        Column("disagreement", "disagreement", percent),
        Column("error correlation", "error_correlation", lambda value: f"{value:.2f}"),
    )


def _origin(study: Study) -> str:
    """Teacher, students, epochs, seeds, machine and version, with a note if the study is incomplete."""
    config = study.config
    seeds = f"seed{'s' * (len(study.seeds) > 1)} {', '.join(map(str, study.seeds))}"
    return (
        ("" if study.complete else "**Not complete: rows or seeds are missing.** ")
        + f"Teacher {study.teacher.model}, {_training(config, 'teacher')}: "
        f"{_of_teacher(study)}. {config['devices']['count']} students {config['student']['model']}, "
        f"{_training(config, 'student')}; {seeds}; last epoch, test split, all sets of survivors; "
        f"{study.machine['processor']}; version {study.code_version}. A star marks the head "
        "that the method serves."
    )


def _of_teacher(study: Study) -> str:
    """Accuracy of the teacher, with its interval if the study has it."""
    ends = study.teacher.interval
    return percent(study.teacher.accuracy) + (f" (95 %: {show_interval(percent)(ends)})" if ends else "")


def _training(config: Mapping[str, Mapping[str, object]], network: str) -> str:
    """The epochs that a network was trained for, or that its weights were given."""
    weights = config[network].get("weights", "")
    epochs = config["teacher" if network == "teacher" else "distill"]["epochs"]
    if not epochs or (weights and network == "teacher"):
        return "given weights"
    return f"{epochs} epochs" + (" from given weights" if weights else "")


def _title(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    teacher = f"Teacher {study.teacher.model}: {_of_teacher(study)}"
    folds = f"; test groups {', '.join(str(list(fold)) for fold in study.folds)}" if study.folds else ""
    sent = f"; an input is {study.rows[0].input_bytes:,} bytes"
    return f"{teacher}; students {study.config['student']['model']}; seeds {seeds}{folds}{sent}"
