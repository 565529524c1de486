"""Accuracy of several devices for each student, against an enumeration of all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from nonn_sim.cli import main

from nonn.bundle import Bundle
from nonn.errors import ShapeError
from nonn.reliability.replicas import failures_with_replicas, replica_weights
from nonn.reliability.subsets import mask_of, membership, probabilities
from nonn.reliability.table import SubsetTable

NUM_DEVICES = 3


@pytest.mark.parametrize(("students", "replicas"), [(3, 2), (2, 3), (4, 1), (1, 4)])
def test_all_subsets_of_devices_are_counted_as_if_enumerated(students: int, replicas: int) -> None:
    table = SubsetTable(np.random.default_rng(0).integers(0, 100, 1 << students), 100)
    total = students * replicas
    of_students = [mask_of({int(i) % students for i in np.flatnonzero(up)}) for up in membership(total)]
    every = SubsetTable(table.correct[of_students], 100)
    rows = failures_with_replicas(table, replicas)
    for row, wanted in zip(rows, every.by_failures(), strict=True):
        assert (row.failed, row.subsets) == (wanted.failed, wanted.subsets)
        assert row.mean == pytest.approx(wanted.mean)
        assert (row.worst, row.best) == (wanted.worst, wanted.best)
        if row.failed:
            assert len(row.worst_subset) == total - row.failed
            assert every.accuracy[mask_of(row.worst_subset)] == row.worst
    for weights, wanted in zip(replica_weights(students, replicas), every.by_failures(), strict=True):
        assert weights.sum() == pytest.approx(1)
        assert weights @ table.accuracy == pytest.approx(wanted.mean)
    p = np.linspace(0.1, 0.3, students)
    assert table.expected(p**replicas) == pytest.approx(probabilities(np.tile(p, replicas)) @ every.accuracy)


def test_sixty_four_devices_take_no_longer_than_sixteen_students() -> None:
    table = SubsetTable(np.arange(1 << 16) % 1000, 1000)
    rows = failures_with_replicas(table, 4)
    assert len(rows) == 64
    assert all(0 <= row.worst <= row.mean <= row.best <= 1 for row in rows)
    with pytest.raises(ShapeError, match="0 replicas"):
        failures_with_replicas(table, 0)


def test_the_command_adds_them(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["enumerate", str(bundle.path), "--law", "independent p=0.2", "--replicas", "2"]
    assert main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["replicated"]
    assert (found["replicas"], found["devices"], len(found["accuracy_by_failures"])) == (2, 6, 6)
    assert found["expected"] == pytest.approx(bundle.table.expected(np.full(3, 0.04)))
    assert found["expected_interval"][0] < found["expected"] < found["expected_interval"][1]
    for row in found["accuracy_by_failures"]:
        for key, ends in (("mean", "interval"), ("worst", "worst_interval"), ("best", "best_interval")):
            assert row[ends][0] <= row[key] <= row[ends][1]
    assert main(options) == 0
    assert "with 2 devices of each student, 6 in all, exact" in capsys.readouterr().out
    assert main([*options, "--samples", "4"]) == 2
