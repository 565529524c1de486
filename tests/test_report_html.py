"""The page of a report and its figures: what it shows, what it loads, and how it is written."""

from __future__ import annotations

import dataclasses
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest

from nonn.bundle import Bundle
from nonn.documents import read, write
from nonn.errors import BundleError
from nonn.report import build_report, write_report
from nonn.report.build import filter_graph
from nonn.report.document import Report
from nonn.report.html import render_page
from nonn.report.sentences import headline
from nonn.report.table import percent, points
from nonn.report.text import report_tables
from tests.reports import LIVE, Page, by_hand, rewritten
from tests.toys import toy_bundle

HOSTILE = '<script>alert("x")</script>&{{ 7 * 7 }}'


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return by_hand(tmp_path_factory.mktemp("three"))


@pytest.fixture(scope="module")
def page(three: Bundle) -> str:
    return render_page(build_report(three, LIVE), filter_graph(three), three.manifest.parts)


def test_the_page_shows_the_numbers_of_report_json(three: Bundle, page: str) -> None:
    report, read = build_report(three, LIVE), Page(page)
    tables = report_tables(report)
    assert set(read.tables) == {f"table-{name}" for name in tables}
    for name, table in tables.items():
        rows = read.tables[f"table-{name}"][1 : 1 + len(table.rows)]  # between head and foot
        assert [[text for _, text in row] for row in rows] == table.cells()
        for row, source in zip(rows, table.values(), strict=True):
            for (value, _), column, exact in zip(row, table.columns, source, strict=True):
                assert value == (exact if column.is_number else None)
    footer = read.tables["table-devices"][-1]
    assert [value for value, _ in footer if value is not None] == [640, 640, 1.0]


def test_tiles_and_sentences_of_the_page_agree_with_report_json(three: Bundle, page: str) -> None:
    report = build_report(three, LIVE)
    row = report.accuracy_by_failures
    tiles = re.findall(r'<dd><data value="([^"]+)">([^<]+)</data><small>', page)[:5]
    wanted = [row[1].mean, row[1].worst, row[0].mean, report.expected_accuracy.value, 1.0]
    assert [float(value) for value, _ in tiles] == wanted
    assert [unescape(text).replace("\xa0", " ") for _, text in tiles] == [percent(value, 0) for value in wanted]
    assert f"<h1>{headline(report)}.</h1>" in page.replace("\xa0", " ")
    assert "independent p=0.5" in page
    assert three.hash in page
    assert report.data.fingerprint in page
    assert "1.2.3" in page


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    read = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(read.tags)
    assert read.tags.count("svg") == 8
    assert all(
        load.startswith(("#", "data:image/png;base64,", "data:image/svg+xml,", "data:text/csv;base64,"))
        for load in read.loads
    )
    assert re.findall(r"url\((?!#)", page) == []
    assert set(re.findall(r'(?<!\S)(\S+)="https?:', page)) <= {"xmlns", "xmlns:xlink"}
    assert re.search(r" on\w+=", page) is None
    assert "default-src 'none'" in page
    assert 'name="viewport"' in page


def test_the_figures_of_a_page_share_no_id(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(set(ids)) == len(ids)
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', page)) <= set(ids)


def test_hostile_names_stay_text(toy: Bundle, tmp_path: Path) -> None:
    provenance = {"config": {"experiment": {"name": HOSTILE}}, "code_version": HOSTILE}
    bundle = rewritten(
        toy,
        tmp_path / "bundle",
        classes=(HOSTILE,) * 10,
        data={**toy.manifest.data, "name": HOSTILE, "split": HOSTILE},
        teacher={**toy.manifest.teacher, "model": HOSTILE},
        provenance=provenance,
    )
    report = write_report(bundle, tmp_path)
    assert report.data.name == HOSTILE
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    assert "script" not in Page(text).tags
    assert HOSTILE in unescape(text)


def test_what_is_written_is_what_is_returned_and_always_the_same(three: Bundle, page: str, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "report"
    report = write_report(three, folder, LIVE)
    assert read(Report, folder / "report.json") == report == build_report(three, LIVE)
    write(tmp_path / "again.json", build_report(three, LIVE))
    assert (tmp_path / "again.json").read_bytes() == (folder / "report.json").read_bytes()
    assert (folder / "report.html").read_text(encoding="utf-8") == page
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


def test_a_page_that_cannot_be_made_leaves_the_older_one(three: Bundle, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_bytes(before := b"an older page")
    broken = rewritten(three, tmp_path / "bundle", {"graph.npz": {"weights": np.ones((3, 3))}})
    with pytest.raises(BundleError, match=r"graph\.npz"):
        write_report(broken, tmp_path)
    assert (tmp_path / "report.html").read_bytes() == before


def test_a_bundle_without_a_graph_says_so_instead_of_the_picture(toy: Bundle, page: str) -> None:
    assert filter_graph(toy) is None
    without = render_page(build_report(toy))
    assert without.count("<svg") == 7
    assert "has no filter graph" in without
    assert "has no filter graph" not in page


def test_the_filters_of_a_part_stand_together_in_the_picture() -> None:
    """A block graph in scrambled order must look like the same graph in order."""
    from nonn.report.plots import graph_plot

    order = np.random.default_rng(1).permutation(12)
    blocks = np.kron(np.eye(3), np.ones((4, 4)))
    scrambled = np.empty_like(blocks)
    scrambled[np.ix_(order, order)] = blocks
    parts = [order[start : start + 4].tolist() for start in (0, 4, 8)]
    straight = [list(range(start, start + 4)) for start in (0, 4, 8)]
    assert graph_plot(scrambled, parts) == graph_plot(blocks, straight)
    assert graph_plot(scrambled, straight) != graph_plot(blocks, straight)


def test_figures_stand_extremes(three: Bundle) -> None:
    """Worthless and harmful devices, a graph without edges, and a cluster of which nobody answered."""
    from nonn.report import plots

    report = build_report(three, [{"answered": [], "accuracy": 0.0, "requests": 5, "lost": 5}])
    assert "measured live" in plots.accuracy_plot(report)
    for value in (0.0, -0.02):
        devices = tuple(dataclasses.replace(device, value=value) for device in report.devices)
        picture = plots.value_plot(dataclasses.replace(report, devices=devices))
        assert f">{points(value, 0)}<" in picture.replace("\N{MINUS SIGN}", "-")
    assert "<image" in plots.graph_plot(np.zeros((4, 4)), [[0, 1], [2, 3]])
