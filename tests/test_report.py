"""The report of a bundle: numbers, tables and command."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import sys
import time
from itertools import combinations
from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.cli import report as command
from nonn.documents import to_json, write
from nonn.errors import BundleError, ConfigError, InputError, MissingExtraError
from nonn.fusion import ZeroFill
from nonn.reliability.intervals import wilson
from nonn.reliability.subsets import membership
from nonn.report import build_report, write_report
from nonn.report.document import Report
from nonn.report.heads import solving_ms
from nonn.report.methods import methods_table
from nonn.report.overview import failure_table
from nonn.report.sentences import headline
from nonn.report.table import as_text, percent, points
from nonn.report.text import markdown_report, text_report
from tests.reports import LIVE, by_hand, rewritten
from tests.toys import CLASSES, WIDTH, toy_bundle


def sixteen(toy: Bundle, path: Path) -> Bundle:
    """Sixteen devices that hold eight parts twice, right about as many thousandths as the sum of who answers."""
    students = tuple(
        dataclasses.replace(toy.manifest.students[i % 8], device=i, file=f"students/student-{i}.onnx")
        for i in range(16)
    )
    correct = membership(16) @ np.arange(1, 17)
    head = ZeroFill(np.ones((16 * WIDTH, CLASSES)), np.zeros(CLASSES), [WIDTH] * 16)
    table = {"correct": correct, "samples": np.array(1000)}
    recorded, labels = toy.features
    features: dict[str, NDArray[Any]] = {"labels": labels, **{f"device_{i}": recorded[i % 8] for i in range(16)}}
    arrays: dict[str, dict[str, NDArray[Any]]] = {
        "fusion.npz": head.to_arrays(),
        "accuracy.npz": table,
        "features.npz": features,
    }
    return rewritten(toy, path, arrays, students=students)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def of_sixteen(toy: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    """A report of sixteen devices and its folder."""
    folder = tmp_path_factory.mktemp("sixteen")
    return write_report(sixteen(toy, folder / "bundle"), folder), folder


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return by_hand(tmp_path_factory.mktemp("three"))


def test_the_report_keeps_its_contract(toy: Bundle) -> None:
    report = to_json(build_report(toy))
    wanted: dict[str, dict[str, type]] = {
        "data": {"name": str, "split": str, "samples": int, "classes": int},
        "teacher": {"model": str, "params": int, "macs": int, "accuracy": float},
        "expected_accuracy": {"law": str, "value": float},
    }
    for section, keys in wanted.items():
        assert {key: type(report[section][key]) for key in keys} == keys
    counts = ("node", "part", "filters", "params", "macs", "model_bytes", "feature_bytes")
    for device in report["devices"]:
        assert {type(device[key]) for key in counts} == {int}
        assert {type(device[key]) for key in ("accuracy_alone", "value")} == {float}
    for row in report["accuracy_by_failures"]:
        assert list(row)[:6] == ["failed", "subsets", "mean", "worst", "best", "worst_subset"]
        assert {type(row[key]) for key in ("mean", "worst", "best")} == {float}
    assert (report["schema"], report["experiment"], report["bundle"]) == (1, "toy", toy.hash)
    assert (report["fusion"], report["measured_live"]) == ("ridge", [])
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_numbers_are_those_of_a_table_computed_by_hand(three: Bundle) -> None:
    report = build_report(three)
    assert report.data.points_per_sample == 10
    rows = [dict(list(row.items())[:6]) for row in to_json(report.accuracy_by_failures)]
    assert rows == [
        {"failed": 0, "subsets": 1, "mean": 0.9, "worst": 0.9, "best": 0.9, "worst_subset": []},
        {"failed": 1, "subsets": 3, "mean": pytest.approx(19 / 30), "worst": 0.6, "best": 0.7, "worst_subset": [0, 2]},
        {"failed": 2, "subsets": 3, "mean": pytest.approx(0.4), "worst": 0.3, "best": 0.5, "worst_subset": [2]},
    ]
    assert report.expected_accuracy.law == "independent p=0.5"
    assert report.expected_accuracy.value == pytest.approx(40 / 80)
    assert [device.accuracy_alone for device in report.devices] == [0.5, 0.4, 0.3]
    # With p = ½: the mean over the four sets with the device, less that over the four without.
    value = [(5 + 7 + 6 + 9 - 4 - 3 - 6) / 40, (4 + 7 + 6 + 9 - 5 - 3 - 6) / 40, (3 + 6 + 6 + 9 - 5 - 4 - 7) / 40]
    assert [device.value for device in report.devices] == pytest.approx(value)
    assert to_json(report.teacher) == {"model": "prototypes", "params": 640, "macs": 640} | {
        "accuracy": 1.0,
        "interval": pytest.approx([*wilson(10, 10)]),
    }
    assert report.data.samples == 10


def test_devices_carry_what_the_manifest_says(toy: Bundle) -> None:
    for device, student in zip(build_report(toy).devices, toy.manifest.students, strict=True):
        assert device.model_bytes == toy.student_path(student.device).stat().st_size
        assert device.feature_bytes == 4 * student.width
        assert device.filters == len(toy.manifest.parts[student.part])


def test_a_bundle_that_names_no_failure_law_gets_the_default(toy: Bundle) -> None:
    expected = build_report(toy).expected_accuracy
    answered = np.array([bin(mask).count("1") for mask in range(256)])
    assert expected.law == "independent p=0.1"
    assert expected.value == pytest.approx(float((0.9**answered * 0.1 ** (8 - answered)) @ toy.table.accuracy))


@pytest.mark.parametrize("p_fail", [1.5, "half", float("nan")])
def test_a_failure_law_that_is_none_is_an_error(toy: Bundle, p_fail: object) -> None:
    wrong = dataclasses.replace(toy.manifest, provenance={"config": {"devices": {"p_fail": p_fail}}})
    with pytest.raises(BundleError, match=r"devices\.p_fail"):
        build_report(dataclasses.replace(toy, manifest=wrong))


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ([{"count": 7, "p_fail": 0.1}], "7 devices, not 8"),
        ([{"p_fail": 0.1}], "cannot be read"),
        ([{"count": 8, "p_fail": 2}], "p_fail = 2"),
    ],
)
def test_device_classes_that_cannot_be_are_an_error(toy: Bundle, classes: object, message: str) -> None:
    wrong = dataclasses.replace(toy.manifest, provenance={"config": {"devices": {"classes": classes}}})
    with pytest.raises(BundleError, match=message):
        build_report(dataclasses.replace(toy, manifest=wrong))


def test_a_manifest_without_what_the_report_needs_is_an_error(toy: Bundle) -> None:
    teacherless = dataclasses.replace(toy.manifest, teacher={"model": "x", "macs": 1})
    with pytest.raises(BundleError, match="'teacher' lacks params, accuracy"):
        build_report(dataclasses.replace(toy, manifest=teacherless))
    partless = dataclasses.replace(toy.manifest, parts=toy.manifest.parts[:7])
    with pytest.raises(BundleError, match="device 7 has part 7"):
        build_report(dataclasses.replace(toy, manifest=partless))


@pytest.mark.parametrize("num_devices", [1, 3, 16])
def test_every_number_of_devices_makes_a_whole_report(
    of_sixteen: tuple[Report, Path], tmp_path: Path, num_devices: int
) -> None:
    report, folder = of_sixteen
    if num_devices != 16:
        report, folder = write_report(toy_bundle(tmp_path / "bundle", num_devices), tmp_path), tmp_path
    rows = report.accuracy_by_failures
    assert [row.failed for row in rows] == list(range(num_devices))
    assert [row.subsets for row in rows] == [comb(num_devices, failed) for failed in range(num_devices)]
    assert [device.part for device in report.devices] == [i % 8 for i in range(num_devices)]
    sentence = "With its only device" if num_devices == 1 else f"With {num_devices // 2} of {num_devices} devices gone"
    assert headline(report).startswith(sentence)
    assert sentence in (folder / "report.html").read_text(encoding="utf-8")


def test_sixteen_devices_are_counted_exactly(of_sixteen: tuple[Report, Path]) -> None:
    report, _ = of_sixteen
    half = report.accuracy_by_failures[8]
    assert (half.worst, half.best, half.worst_subset) == (0.036, 0.1, tuple(range(8)))
    assert half.mean == pytest.approx(0.068)
    assert [device.value for device in report.devices] == pytest.approx([(i + 1) / 1000 for i in range(16)])
    assert report.expected_accuracy.value == pytest.approx(0.9 * 0.136)
    assert report.fusion == "zero-fill"


def test_live_rows_get_what_was_predicted_for_exactly_these_devices(three: Bundle) -> None:
    first, second = build_report(three, LIVE).measured_live
    ends = wilson(9, 10)
    assert to_json(first) == {
        "failed": 0,
        "answered": [0, 1, 2],
        "accuracy": 0.9,
        "predicted": 0.9,
        "requests": 10,
        "lost": 0,
        "interval": pytest.approx([*ends]),
        "predicted_interval": pytest.approx([*ends]),
    }
    assert second.answered == (0, 2)
    assert (second.failed, second.predicted) == (1, 0.6)
    assert to_json(second)["seconds"] == 1.5
    given = [{**LIVE[0], "failed": 0, "predicted": 0.75}]
    assert build_report(three, given).measured_live[0].predicted == 0.75


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answered": [0, 3]}, r"not a set of devices 0 to 2"),
        ({"answered": [1, 1]}, r"not a set of devices"),
        ({"accuracy": float("nan")}, "accuracy = nan"),
        ({"accuracy": 90.0}, r"accuracy = 90\.0"),
    ],
)
def test_live_rows_that_cannot_be_are_errors(three: Bundle, change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_report(three, [{**LIVE[0], **change}])


def test_a_live_row_that_lacks_a_key_names_it(three: Bundle) -> None:
    with pytest.raises(InputError, match="lacks requests, lost"):
        build_report(three, [{"answered": [0], "accuracy": 0.5}])


def test_the_headline_is_one_plain_sentence(three: Bundle, toy: Bundle) -> None:
    assert headline(build_report(three)) == (
        "With 1 of 3 devices gone, answers are right 63 % (34 to 85 %) of the time on average, 60 % (31 to 83 %) in "
        "the worst case; the teacher: 100 % (72 to 100 %)"
    )
    assert headline(build_report(toy)).startswith("With 4 of 8 devices gone")


def test_nothing_short_of_perfect_is_rounded_up_to_perfect() -> None:
    assert [percent(1.0), percent(0.99999), percent(0.99999, 1)] == ["100.00 %", "99.99 %", "99.9 %"]
    assert [percent(0.0), percent(0.98765), percent(0.98765, 1)] == ["0.00 %", "98.77 %", "98.8 %"]
    assert [points(-0.00001), points(-0.0123), points(0.5)] == ["0.00", "-1.23", "50.00"]


def test_the_text_table_lines_up_and_says_what_report_json_says(three: Bundle) -> None:
    text = as_text(failure_table(build_report(three)))
    assert text.splitlines() == [
        "failed  subsets  mean  95 %        worst  95 %        best  95 %        answering in the worst case",
        "──────  ───────  ────  ──────────  ─────  ──────────  ────  ──────────  ───────────────────────────",
        "     0        1  90 %  60 to 98 %   90 %  60 to 98 %  90 %  60 to 98 %  0 1 2",
        "     1        3  63 %  34 to 85 %   60 %  31 to 83 %  70 %  40 to 89 %  0 2",
        "     2        3  40 %  17 to 69 %   30 %  11 to 60 %  50 %  24 to 76 %  2",
    ]


def test_live_measurements_stand_next_to_the_prediction(three: Bundle) -> None:
    assert "cluster" not in text_report(build_report(three))
    text = text_report(build_report(three, LIVE))
    assert re.search(r"1 +1,234 +3 +50 % +24 to 76 % +60 % +31 to 83 % +0 2\n", text)


def test_markdown_tables_have_a_rule_and_as_many_cells_in_every_row(three: Bundle) -> None:
    blocks = markdown_report(build_report(three, LIVE)).split("\n\n")
    tables = [block.splitlines() for block in blocks if block.startswith("|")]
    assert len(tables) == 8
    assert [len({line.count("|") for line in table}) for table in tables] == [1] * 8
    assert {table[1].strip("|-: ") for table in tables} == {""}
    lines = tables[0]
    assert lines[1] == "| ---: | ---: | ---: | :--- | ---: | :--- | ---: | :--- | :--- |"
    assert "| 1 | 3 | 63 % | 34 to 85 % | 60 % | 31 to 83 % | 70 % | 40 to 89 % | 0 2 |" in lines


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named_with_its_install_command(
    three: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"{module} is not installed.*nonn\[train\]"):
        write_report(three, tmp_path)


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_the_command_prints_json_alone_on_stdout(
    three: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonn.report.heads.solving_ms", lambda head: 1.5)
    assert run_command(str(three.path), "--json", "--html", str(tmp_path / "new" / "page.html")) == 0
    assert json.loads(capsys.readouterr().out) == to_json(build_report(three, timed=True))
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_the_command_prints_tables_without_the_extras(
    three: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("matplotlib", "jinja2", "rich", "torch"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr("nonn.report.heads.solving_ms", lambda head: 1.5)
    assert run_command(str(three.path)) == 0
    assert capsys.readouterr().out == text_report(build_report(three, timed=True))


def test_the_command_names_a_page_that_cannot_be_written(three: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--html"):
        run_command(str(three.path), "--html", str(tmp_path))


def test_the_mean_is_over_all_subsets_of_the_real_table(toy: Bundle) -> None:
    for row in build_report(toy).accuracy_by_failures:
        kept = list(combinations(range(8), 8 - row.failed))
        accuracy = [toy.table.correct[sum(1 << i for i in subset)] / 200 for subset in kept]
        assert (row.subsets, row.worst, row.best) == (len(kept), min(accuracy), max(accuracy))
        assert row.mean == pytest.approx(np.mean(accuracy))


@pytest.mark.usefixtures("no_pages")
def test_a_report_written_again_keeps_the_live_rows_of_the_same_bundle_only(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "one", num_devices=2)
    live = [{"answered": [0, 1], "accuracy": 0.5, "requests": 10, "lost": 0}]
    (tmp_path / "report").mkdir()
    write(tmp_path / "report" / "report.json", build_report(bundle, live))
    assert write_report(bundle, tmp_path / "report").measured_live[0].accuracy == 0.5
    other = toy_bundle(tmp_path / "two", num_devices=3)
    assert write_report(other, tmp_path / "report").measured_live == ()
    (tmp_path / "report" / "report.json").write_text("half")
    assert write_report(bundle, tmp_path / "report").measured_live == ()


def test_the_cost_of_the_head_is_that_of_its_file_and_of_solving_a_subset(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = build_report(toy, timed=True)
    assert report.head is not None
    assert report.head.kind == report.fusion
    assert report.head.bytes == (toy.path / "fusion.npz").stat().st_size
    assert report.head.bundle_bytes == sum(file.stat().st_size for file in toy.path.rglob("*") if file.is_file())
    assert report.head.solve_ms is not None
    assert f"{report.head.bytes:,} of the bundle's {report.head.bundle_bytes:,} bytes" in text_report(report)
    assert f"at most {report.head.solve_ms:.2f} ms to solve" in text_report(report)
    assert "to solve" not in text_report(build_report(toy))
    solve, slow = type(toy.head).solve, 0.02

    def slowly(head: Any, mask: int) -> None:
        time.sleep(slow * (mask.bit_count() == 2))
        solve(head, mask)

    monkeypatch.setattr(type(toy.head), "solve", slowly)
    assert solving_ms(toy.head) >= 1e3 * slow  # the worst subset counts


def test_compared_bundles_show_what_their_answers_and_heads_cost(three: Bundle, toy: Bundle) -> None:
    report = build_report(three, others=[toy], timed=True)
    shown = methods_table(report).values()
    for bundle, row in zip((three, toy), shown, strict=True):
        sent = sum(student.feature_bytes for student in bundle.manifest.students)
        assert row[-4:-2] == [sent, (bundle.path / "fusion.npz").stat().st_size]
    old = dataclasses.replace(report, methods=tuple(dataclasses.replace(row, head=None) for row in report.methods))
    assert all(cells[-3:] == ["–"] * 3 for cells in methods_table(old).cells())
