from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from nonn.bundle import load_bundle
from nonn.cli import main
from nonn.experiment.demo import kill_one_by_one
from tests.reports import check_report
from tests.toys import TINY, toy_bundle, toy_data

SETS = [argument for item in TINY for argument in ("--set", item)]


@pytest.mark.slow
def test_the_demo_measures_live_what_the_table_predicts(tiny_runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--runs", str(tiny_runs), "--json", *SETS]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report == json.loads((tiny_runs / "tiny" / "report" / "report.json").read_text())
    assert len(check_report(tiny_runs / "tiny" / "report" / "report.json").measured_live) == 4
    rows = report["measured_live"]
    assert [row["failed"] for row in rows] == [0, 1, 2, 3]
    for row in rows:
        assert len(row["answered"]) == 4 - row["failed"]
        assert row["accuracy"] == row["predicted"]
        assert (row["lost"], row["mismatched"]) == (0, 0)
        assert row["requests"] >= 360
    assert "measured" in (tiny_runs / "tiny" / "report" / "report.html").read_text()
    assert not _children_left()


def test_a_live_answer_that_differs_from_the_bundle_is_counted(tmp_path: Path) -> None:
    """The comparison can fail: here the cluster gets other inputs than the recorded ones."""
    bundle = load_bundle(toy_bundle(tmp_path / "toy", num_devices=2).path)
    inputs, _ = toy_data(200, seed=99)
    (row,) = kill_one_by_one(bundle, inputs, [])
    assert row.mismatched is not None
    assert row.mismatched > 100
    assert row.accuracy < 0.5 < row.predicted


def _children_left() -> list[str]:
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if "nonn_device" in command and "tiny" in command:
                found.append(command)
    return found
