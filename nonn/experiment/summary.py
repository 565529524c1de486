"""The result document of a study: means over seeds and folds, with standard deviations."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nonn.config import Experiment
from nonn.experiment.methods import METHODS
from nonn.provenance import code_version, machine

__all__ = ["summarise", "to_csv"]


def summarise(experiment: Experiment, results: Sequence[Mapping[str, Any]], *, complete: bool) -> dict[str, Any]:
    """The study as one document: means over seeds with standard deviations.

    Args:
        experiment: that was studied.
        results: of rows and seeds.
        complete: whether these are all that the experiment asks for.

    Returns:
        ``config``, ``seeds``, ``machine``, ``code_version``, ``complete``, ``teacher`` and ``rows``; a row for each
        method and head, ``own`` where it is the head that the method serves. ``sd`` is over seeds, 0 with one seed.
    """
    rows = []
    for name in dict.fromkeys(result["row"] for result in results):
        mine = [result for result in results if result["row"] == name]
        own = METHODS[name].head or experiment.fusion.head
        for head in mine[0]["heads"]:
            tables = [result["heads"][head] for result in mine]
            means = [[row["mean"] for row in table["by_failures"]] for table in tables]
            rows.append(
                {
                    "method": name,
                    "title": METHODS[name].title,
                    "head": head,
                    "own": head == own,
                    "parts": len(mine[0]["part_sizes"]),
                    "part_sizes": mine[0]["part_sizes"],
                    "student": experiment.student.model,
                    "params": max(mine[0]["params"]),
                    "macs": max(mine[0]["macs"]),
                    "feature_bytes": max(mine[0]["feature_bytes"]),
                    "bytes_per_answer": sum(mine[0]["feature_bytes"]),
                    "input_bytes": mine[0]["input_bytes"],
                    "seeds": [result["seed"] for result in mine],
                    "accuracy_by_failures": _mean_rows([table["by_failures"] for table in tables]),
                    "expected": {p: _mean([table["expected"][p] for table in tables]) for p in tables[0]["expected"]},
                    "sd": [_sd(of_seeds) for of_seeds in zip(*means, strict=True)],
                    "by_run": means,
                }
            )
    return {
        "experiment": experiment.experiment.name,
        "complete": complete,
        "config": dataclasses.asdict(experiment),
        "seeds": list(experiment.study.seeds),
        "folds": [list(fold) for fold in experiment.study.folds],
        "machine": machine(),
        "code_version": code_version(),
        "teacher": {
            "model": experiment.teacher.model,
            "accuracy": _mean([result["teacher_accuracy"] for result in results]),
        },
        "rows": rows,
    }


def to_csv(study: Mapping[str, Any]) -> str:
    """The study's rows flat: a line for each method, head and number of failures."""
    keys = ("failed", "mean", "sd", "worst", "best", "ece", "cev", "sde")
    named = ("method", "head", "own", "parts", "params", "feature_bytes", "bytes_per_answer")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*named, *keys])
    for row in study["rows"]:
        for line, sd in zip(row["accuracy_by_failures"], row["sd"], strict=True):
            writer.writerow([*(row[key] for key in named), *((line | {"sd": sd})[key] for key in keys)])
    return text.getvalue()


def _mean_rows(seeds: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Rows by failures, every value averaged over seeds; ``worst`` and ``best`` are averages of those of each seed."""
    return [
        {key: (_mean([row[key] for row in rows]) if key != "failed" else rows[0][key]) for key in rows[0]}
        for rows in zip(*seeds, strict=True)
    ]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _sd(values: Sequence[float]) -> float:
    """Standard deviation of a sample; 0 for a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
