"""The report's later sections: value and pairs, availability, classes, calibration, several bundles, CSV."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.cli import report as command
from nonn.documents import read, to_json
from nonn.errors import BundleError, ConfigError, InputError
from nonn.fusion import ZeroFill
from nonn.reliability.bias import class_bias
from nonn.reliability.evidence import Evidence
from nonn.reliability.laws import parse_law
from nonn.reliability.subsets import mask_of, probabilities
from nonn.reliability.table import SubsetTable
from nonn.report import build_report, class_evaluation, write_report
from nonn.report.class_evaluation import class_report
from nonn.report.classes import class_plot, class_table
from nonn.report.document import Report
from nonn.report.drawing import INK, Name, floor_without_outliers, name_lines, spread, svg
from nonn.report.html import render_page
from nonn.report.methods import check_same_task, methods_table
from nonn.report.overview import device_table
from nonn.report.risk import availability, availability_plot, availability_table, pair_plot, pair_table
from nonn.report.text import csv_report, markdown_report, report_tables, text_report, whole_tables, wide_csv
from tests.calibration import calibration
from tests.reports import CORRECT, Page, rewritten
from tests.toys import CLASSES, WIDTH, toy_bundle

THREE = SubsetTable(np.array(CORRECT), 10)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("three")
    table = {"correct": THREE.correct, "samples": np.array(10)}
    config = {"devices": {"count": 3, "p_fail": 0.5}}
    provenance = {"code_version": "1", "config": config}
    toy = toy_bundle(folder / "toy", num_devices=3)
    return rewritten(toy, folder / "bundle", {"accuracy.npz": table}, provenance=provenance)


@pytest.fixture(scope="module")
def halves(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Device 0 knows the classes 0 and 1, device 1 knows 2 and 3; who knows nothing says class 0."""
    folder = tmp_path_factory.mktemp("halves")
    weight = np.tile(np.eye(WIDTH, CLASSES), (2, 1))
    known = np.eye(WIDTH, dtype=np.float32)
    features = {"device_0": known * [[1], [1], [0], [0]], "device_1": known * [[0], [0], [1], [1]]}
    arrays: dict[str, dict[str, NDArray[Any]]] = {
        "fusion.npz": ZeroFill(weight, np.zeros(CLASSES), [WIDTH] * 2).to_arrays(),
        "accuracy.npz": {"correct": np.array([0, 2, 3, 4]), "samples": np.array(4)},
        "features.npz": {"labels": np.arange(4), **{k: v.astype(np.float32) for k, v in features.items()}},
    }
    return rewritten(toy_bundle(folder / "toy", num_devices=2), folder / "bundle", arrays)


@pytest.fixture(scope="module")
def both(three: Bundle, toy: Bundle) -> Report:
    """The report of three devices with the toy bundle beside it."""
    return build_report(three, others=[toy])


@pytest.fixture(scope="module")
def page(both: Report) -> str:
    return render_page(both)


def test_bundles_of_other_classes_are_not_compared_and_other_data_are_a_warning(three: Bundle, toy: Bundle) -> None:
    assert check_same_task([three, toy]) == []
    other = dataclasses.replace(toy, manifest=dataclasses.replace(toy.manifest, data={"fingerprint": "1" * 64}))
    assert "was measured on other data" in check_same_task([three, other])[0]
    foreign = dataclasses.replace(toy, manifest=dataclasses.replace(toy.manifest, classes=("cat", "dog")))
    with pytest.raises(InputError, match=r"other classes \(2: cat, dog\) than .* \(10: zero, one, two …\)"):
        build_report(three, others=[foreign])


def test_shapley_values_and_pairs_are_those_computed_by_hand(three: Bundle) -> None:
    report = build_report(three)
    # First in line with weight 1/3, second with 1/6 each, last with 1/3.
    shapley = [
        (5 / 3 + (3 + 3) / 6 + 3 / 3) / 10,
        (4 / 3 + (2 + 3) / 6 + 3 / 3) / 10,
        (3 / 3 + (1 + 2) / 6 + 2 / 3) / 10,
    ]
    assert [device.shapley for device in report.devices] == pytest.approx(shapley)
    assert sum(shapley) == pytest.approx(0.9)
    assert report.pair_losses == ((0.6, 0.3, 0.4), (0.3, 0.6, 0.5), (0.4, 0.5, 0.7))
    rows = pair_table(report).values()
    assert [row[:3] for row in rows] == [[0, 1, 0.3], [0, 2, 0.4], [1, 2, 0.5]]
    assert [row[4] for row in rows] == pytest.approx([0.6, 0.5, 0.4])


def test_availability_is_that_computed_by_hand(three: Bundle) -> None:
    result = build_report(three).availability
    half, together, third = result.curves  # the bundle's own law comes first, and only once
    assert (half.p_fail, together.p_fail, third.p_fail) == (0.5, 0.5, 0.3)
    # Causes of ¼ for the devices 0 and 1, and for 2; each device fails alone with ⅓ of the rest: ½ in all.
    assert (half.common, together.common) == (None, 0.5)
    assert together.share[900] == pytest.approx((3 / 4) ** 2 * (2 / 3) ** 3)
    assert together.share[1] == pytest.approx(1 - (1 / 4 + 3 / 4 / 9) * (1 / 4 + 3 / 4 / 3))
    wanted = {0.0: 8, 0.01: 7, 0.3: 7, 0.31: 6, 0.5: 5, 0.6: 4, 0.7: 2, 0.71: 1, 0.9: 1, 0.91: 0, 1.0: 0}
    found = {level: half.share[result.levels.index(level)] for level in wanted}
    assert found == pytest.approx({level: sets / 8 for level, sets in wanted.items()})
    assert third.share[700] == pytest.approx(0.7**3 + 0.7**2 * 0.3)


@pytest.mark.parametrize("p_fail", [0.0, 0.1, 1.0])
def test_availability_is_the_probability_of_the_sets_that_reach_the_level(toy: Bundle, p_fail: float) -> None:
    result = availability(toy.evidence, [p_fail] * 8)
    law = probabilities(np.full(8, p_fail))
    wanted = [law[toy.table.accuracy >= level].sum() for level in result.levels]
    assert result.curves[0].share == pytest.approx(wanted)
    assert all(np.diff(curve.share).max() <= 0 for curve in result.curves)
    assert max(max(curve.share) for curve in result.curves) == 1.0


def test_devices_of_unlike_reliability_have_a_law_each(three: Bundle) -> None:
    kinds = [{"count": 1, "p_fail": 0.5}, {"count": 2, "p_fail": 0.25}]
    provenance = {"config": {"devices": {"count": 3, "p_fail": 0.1, "classes": kinds}}}
    report = build_report(
        dataclasses.replace(three, manifest=dataclasses.replace(three.manifest, provenance=provenance))
    )
    law, by_hand = np.array([0.5, 0.25, 0.25]), 0.0
    for mask, accuracy in enumerate(three.table.accuracy.tolist()):
        by_hand += accuracy * np.prod([1 - p if mask >> i & 1 else p for i, p in enumerate(law)])
    expected = report.expected_accuracy
    assert (expected.law, expected.p_fail) == ("independent p=[0.5, 0.25, 0.25]", tuple(law))
    assert expected.value == pytest.approx(by_hand)
    assert [curve.p_fail for curve in report.availability.curves] == [tuple(law), tuple(law), 0.3, 0.5]
    together = parse_law(report.availability.curves[1].law or "", 3).probabilities()
    down = [together[[mask for mask in range(8) if not mask >> i & 1]].sum() for i in range(3)]
    assert down == pytest.approx(law)
    assert "each its own p" in availability_table(report.availability).columns[1].title
    assert "<svg" in availability_plot(report.availability)


def test_classes_are_those_counted_by_hand(halves: Bundle) -> None:
    found = class_report(halves)
    assert found is not None
    assert (found.samples, found.failed) == (4, 1)
    rows = [(row.class_, row.name, row.samples, row.intact, row.degraded) for row in found.classes]
    assert rows == [(1, "one", 1, 1, 0.5), (2, "two", 1, 1, 0.5), (3, "three", 1, 1, 0.5), (0, "zero", 1, 1, 1)]
    assert [row.loss for row in found.classes] == [0.5, 0.5, 0.5, 0]
    whole, half = found.by_failures
    assert (whole.accuracy, half.accuracy) == (1.0, (2 / 4 + 3 / 4) / 2)
    sure = np.e / (np.e + CLASSES - 1)
    assert whole.confidence == pytest.approx(sure)
    assert whole.ece == pytest.approx(1 - sure)
    assert half.confidence == pytest.approx((sure + 0.1) / 2)
    assert (whole.cev, whole.sde) == (0, 0)
    labels = np.arange(4)
    biases = [class_bias(labels, np.array(said), labels, CLASSES) for said in ([0, 1, 0, 0], [0, 0, 2, 3])]
    assert whole.cka == pytest.approx(1)
    assert found.cka_cev is None  # two subsets have no rank correlation
    assert half.cka is not None
    assert 0 < half.cka < 1
    assert half.cev == pytest.approx(np.mean([bias.cev for bias in biases]))
    assert half.sde == pytest.approx(np.mean([bias.sde for bias in biases]))


def test_calibration_is_that_of_the_calibration_module(tmp_path: Path) -> None:
    """Seven devices, so that both look at all sets; temperatures, so that they matter."""
    toy = toy_bundle(tmp_path / "toy", num_devices=7)
    head = toy.head.with_temperatures(np.linspace(0.5, 3, 128))
    bundle = rewritten(toy, tmp_path / "bundle", {"fusion.npz": head.to_arrays()})
    found = class_report(bundle)
    assert found is not None
    features, labels = bundle.features
    assert [row.failed for row in found.by_failures] == list(range(7))
    for row in found.by_failures:
        masks = [mask_of(kept) for kept in combinations(range(7), 7 - row.failed)]
        sets = [calibration(head, features, labels, mask) for mask in masks]
        assert row.subsets == len(sets)
        assert row.ece == pytest.approx(np.mean([one.ece for one in sets]))
        assert row.ece_worst == pytest.approx(max(one.ece for one in sets))
        assert row.confidence == pytest.approx(np.mean([one.confidence for one in sets]))
        assert row.accuracy == pytest.approx(np.mean([one.accuracy for one in sets]))
    means = [row.mean for row in toy.table.by_failures()]
    assert [row.accuracy for row in found.by_failures] == pytest.approx(means)
    answers = np.stack(
        [
            head.logits({i: features[i] for i in kept}).argmax(axis=1) == labels
            for kept in combinations(range(7), 7 - found.failed)
        ]
    )
    for each in found.classes:
        assert each.degraded == pytest.approx(answers[:, labels == each.class_].mean())


def test_too_many_sets_are_sampled_with_a_seed_and_the_page_says_so(
    toy: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = class_report(toy)
    assert first is not None
    assert [row.sets for row in first.by_failures] == [1, 8, 28, 56, 70, 56, 28, 8]
    assert first == class_report(toy)
    monkeypatch.setattr(class_evaluation, "_LOGITS", 8 * 200 * CLASSES * 5)
    report = build_report(toy)
    assert report.by_class is not None
    assert [row.sets for row in report.by_class.by_failures] == [1, *[5] * 7]
    assert [row.subsets for row in report.by_class.by_failures] == [1, 8, 28, 56, 70, 56, 28, 8]
    # Every mean for a number of failures is that over all subsets, and confidence keeps its distance from it.
    for row, drawn, every in zip(
        report.by_class.by_failures, first.by_failures, report.accuracy_by_failures, strict=True
    ):
        assert row.accuracy == drawn.accuracy == every.mean
        assert row.confidence == pytest.approx(drawn.confidence, abs=0.02)
    text = re.sub(r"<[^>]+>|\s+", " ", render_page(report))
    assert re.search(r"all subsets, or +5 +of them drawn with seed +0 +, on +200 +recorded samples", text)


def test_a_class_without_a_test_sample_is_left_out(toy: Bundle, tmp_path: Path) -> None:
    features = toy.arrays("features.npz")
    kept = features["labels"] != 3
    bundle = rewritten(toy, tmp_path / "bundle", {"features.npz": {k: v[kept] for k, v in features.items()}})
    found = class_report(bundle)
    assert found is not None
    assert sorted(row.class_ for row in found.classes) == [0, 1, 2, 4, 5, 6, 7, 8, 9]
    assert found.samples == int(kept.sum())


def test_features_that_do_not_fit_the_bundle_are_an_error(toy: Bundle, tmp_path: Path) -> None:
    good = toy.arrays("features.npz")
    for number, change in enumerate(
        [
            {"device_7": good["device_7"][:, :3]},
            {"device_8": good["device_7"]},
            {"device_0": good["device_0"][:5]},
            {"labels": good["labels"] + 1},
        ]
    ):
        bundle = rewritten(toy, tmp_path / str(number), {"features.npz": {**good, **change}})
        with pytest.raises(BundleError, match=r"features\.npz"):
            build_report(bundle)


def test_a_bundle_without_features_says_so_instead(three: Bundle, page: str) -> None:
    files = {name: digest for name, digest in three.manifest.files.items() if name != "features.npz"}
    bare = dataclasses.replace(three, manifest=dataclasses.replace(three.manifest, files=files))
    report = build_report(bare)
    assert report.by_class is None
    without = render_page(report)
    assert "has no recorded test features" in without
    assert not {"table-classes", "table-bias", "table-calibration"} & set(Page(without).tables)
    assert "has no recorded test features" not in page
    assert "calibration" not in markdown_report(report)


def test_several_bundles_stand_side_by_side(both: Report, three: Bundle, toy: Bundle) -> None:
    first, second = both.methods
    assert (first.bundle, second.bundle) == (three.hash, toy.hash)
    assert first.method != second.method  # both are called toy, so the hash tells them apart
    assert first.accuracy_by_failures == both.accuracy_by_failures
    assert second.accuracy_by_failures == toy.evidence.by_failures()
    shown = methods_table(both)
    levels = [k for k, column in enumerate(shown.columns) if column.key.startswith(("mean_", "interval_"))]
    cells = [[line[k] for k in levels] for line in shown.cells()]
    assert cells[0] == ["90 %", "60 to 98 %", "63 %", "34 to 85 %", "40 %", "17 to 69 %", *["–"] * 10]
    assert "–" not in cells[1]
    assert [column.title for column in methods_table(both, [1]).columns[2:4]] == ["1 failed", "95 %"]
    assert (first.teacher_interval, second.teacher_interval) == (
        both.teacher.interval,
        build_report(toy).teacher.interval,
    )
    assert second.against_first == ()  # another number of test samples
    assert text_report(both).endswith("\n")
    assert second.method in text_report(both)
    assert build_report(three).methods == ()


def test_every_table_of_the_page_equals_report_json(both: Report, page: str) -> None:
    read = Page(page)
    tables = report_tables(both)
    assert set(tables) == {
        *("failures", "availability", "devices", "pairs", "methods"),
        *("classes", "bias", "calibration"),
    }
    for name, table in tables.items():
        rows = read.tables[f"table-{name}"][1 : 1 + len(table.rows)]
        assert [[text for _, text in row] for row in rows] == table.cells()
        for row, source in zip(rows, table.values(), strict=True):
            wanted = [exact if c.is_number else None for exact, c in zip(source, table.columns, strict=True)]
            assert [value for value, _ in row] == wanted
    share = both.availability.curves[0].share
    stated = both.availability.curves[0].stated
    assert [row[:2] for row in availability_table(both.availability).values()] == [[s.level, s.share] for s in stated]
    assert [s.share for s in stated] == [share[round(1000 * s.level)] for s in stated]


def test_every_table_scrolls_by_itself_and_every_figure_shrinks_on_a_phone(both: Report, page: str) -> None:
    assert page.count("<table") == len(report_tables(both))
    assert len(re.findall(r'<div class="scroll"[^>]*>\s*<table', page)) == page.count("<table")
    assert len(re.findall(r"<figure[^>]*>\s*<svg", page)) == page.count("<svg") == 8
    assert re.search(r"figure svg \{[^}]*width: 100%; height: auto", page)
    assert re.search(r"\.scroll \{[^}]*overflow-x: auto", page)


def test_figures_name_no_colour_that_a_dark_page_cannot_swap(page: str) -> None:
    """Two methods have the page's own colours; from the third on they bring fixed ones."""
    figures = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert re.findall(r"(?:fill|stroke): (#\w+)", "".join(figures)) == []
    assert all("var(--ink, #1d2126)" in figure for figure in figures)


def test_csv_holds_every_number_with_all_its_digits(both: Report) -> None:
    lines = list(csv.DictReader(csv_report(both).splitlines()))
    found = {(line["table"], int(line["row"]), line["quantity"]): line["value"] or line["text"] for line in lines}
    assert len(found) == len(lines)
    # A reader of tables takes the column for numbers if every field is one or empty.
    assert all(line["value"] == "" or np.isfinite(float(line["value"])) for line in lines)
    for place, level in enumerate(both.availability.levels):
        assert float(found["availability", place, "level"]) == level
        assert float(found["availability", place, "share_0"]) == both.availability.curves[0].share[place]
    for number, row in enumerate(both.accuracy_by_failures):
        assert float(found["failures", number, "mean"]) == row.mean
    assert found["failures", 1, "worst_subset"] == "0 2"
    for number, device in enumerate(both.devices):
        assert float(found["devices", number, "shapley"]) == device.shapley
    assert both.by_class is not None
    for number, each in enumerate(both.by_class.classes):
        assert found["classes", number, "name"] == each.name
        assert float(found["classes", number, "degraded"]) == each.degraded
    assert found["methods", 0, "mean_7"] == ""


def test_each_table_is_a_wide_csv_file_and_a_frame(both: Report, toy: Bundle, tmp_path: Path) -> None:
    for name, table in whole_tables(both).items():
        lines = list(csv.DictReader(wide_csv(table).splitlines()))
        frame = both.frame(name)
        assert [str(column) for column in frame.columns] == list(lines[0])
        assert len(frame) == len(lines) == len(table.rows)
    frame = toy.report.frame("devices")
    lows = [device.value_interval[0] for device in toy.report.devices if device.value_interval]
    assert frame["value_interval_low"].tolist() == lows
    assert toy.report.frame("failures")["worst_apart"].dtype == float
    assert len(both.frame("availability")) == 1001
    with pytest.raises(InputError, match="table 'moods': this report has failures, availability"):
        both.frame("moods")
    assert run_command(str(toy.path), "--tables", str(tmp_path / "tables")) == 0
    assert (tmp_path / "tables" / "devices.csv").read_text() == wide_csv(device_table(toy.report))


def test_csv_holds_all_pairs_of_which_tables_show_the_worst(toy: Bundle) -> None:
    report = build_report(toy)
    assert len(pair_table(report).rows) == 10
    assert sum(line.startswith("pairs,") and ",accuracy," in line for line in csv_report(report).splitlines()) == 28
    accuracy = [row[2] for row in pair_table(report, None).values()]
    assert accuracy == sorted(toy.table.accuracy[255 - (1 << i) - (1 << j)] for i, j in combinations(range(8), 2))


def test_a_name_is_text_in_a_markdown_table_and_in_a_figure(halves: Bundle, tmp_path: Path) -> None:
    names = ("a|b<i>&", "$c$", *(f"a rather long name of class {i}" for i in range(8)))
    bundle = rewritten(halves, tmp_path / "bundle", classes=names)
    report = build_report(bundle)
    assert (
        r"| a\|b&lt;i&gt;&amp; | 1 | 100 % | 21 to 100 % | 100 % | 21 to 100 % | 0 | -79 to 79 |"
        in markdown_report(report).splitlines()
    )
    assert report.by_class is not None
    picture = class_plot(report.by_class)
    assert ">$c$<" in picture
    assert ">a rather long nam…<" in picture
    assert len(class_table(report.by_class).rows) == 4
    line = svg("x", "a line", (3, 2), lambda axes: name_lines(axes, [Name("$c$", 0.5, INK)], 1.0))
    assert ">$c$<" in line


def test_figures_stand_extremes(both: Report) -> None:
    """Devices whose loss costs nothing, and devices that never fail or never answer."""
    level = dataclasses.replace(both, pair_losses=((0.9,) * 3,) * 3)
    assert "90.0" in pair_plot(level)
    for p_fail in (0.0, 1.0):
        assert "<svg" in availability_plot(availability(Evidence(THREE), [p_fail] * 3))
    flat = SubsetTable(np.array([0, 10]), 10)
    assert "<svg" in availability_plot(availability(Evidence(flat), [0.0]))


def test_one_outlier_does_not_halve_the_scale_of_the_others_and_names_do_not_overlap() -> None:
    assert floor_without_outliers([10, 60, 64, 65], 75) == 60
    assert floor_without_outliers([50, 60, 64, 65], 75) == 50
    assert floor_without_outliers([10, 60], 75) == 10  # one of two lines is no outlier
    for places in ([1.0, 1.1, 1.2], [9.8, 9.9, 10.0], [3.0, 5.0, 7.0]):
        found = spread(places, [1.0, 2.0, 1.0], 0.0, 10.0)
        assert np.diff(found).min() >= 1.5 - 1e-12
        assert max(found) <= 10
    assert found == places


def run_command(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args(arguments))


def test_the_command_takes_several_bundles_and_writes_every_form(
    three: Bundle, toy: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nonn.report.heads.solving_ms", lambda head: 1.5)
    both = build_report(three, others=[toy], timed=True)
    files = {option: tmp_path / "new" / f"report.{option}" for option in ("html", "markdown", "csv")}
    options = [word for option, file in files.items() for word in (f"--{option}", str(file))]
    assert run_command(str(three.path), str(toy.path), "--json", *options) == 0
    assert json.loads(capsys.readouterr().out) == to_json(both)
    assert files["html"].read_text(encoding="utf-8") == render_page(both)
    assert files["markdown"].read_text(encoding="utf-8") == markdown_report(both)
    assert files["csv"].read_text(encoding="utf-8") == csv_report(both)


@pytest.mark.parametrize("option", ["--csv", "--markdown"])
def test_the_command_names_a_file_that_cannot_be_written(three: Bundle, tmp_path: Path, option: str) -> None:
    with pytest.raises(ConfigError, match=option):
        run_command(str(three.path), option, str(tmp_path))


def test_the_pipelines_report_takes_other_bundles_too(three: Bundle, toy: Bundle, both: Report, tmp_path: Path) -> None:
    assert write_report(three, tmp_path, others=[toy]) == both
    assert read(Report, tmp_path / "report.json") == both
    assert "Comparison of methods" in (tmp_path / "report.html").read_text(encoding="utf-8")
