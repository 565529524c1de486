"""The comparison of partitioners: its probe against regressions by hand, its table, figure and command."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from nonn.cli import main
from nonn.config import GraphConfig
from nonn.documents import read, to_json
from nonn.errors import PartitionError
from nonn.partition import METHODS, Partition
from nonn.partition.compare import (
    GRAPHS,
    Outputs,
    PartitionComparison,
    PartitionRow,
    compare,
    missing_levels,
    probe,
    stability,
)
from nonn.report.comparison import comparison_plot, comparison_table
from nonn.report.table import as_text


def outputs(samples: int, seed: int, num_filters: int = 12, classes: int = 4) -> Outputs:
    """A teacher whose filters come in groups of three that say nearly the same."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, samples)
    mixing = np.random.default_rng(0).random((classes, num_filters // 3)).repeat(3, axis=1)
    activations = np.maximum(mixing[labels] + rng.normal(0, 0.25, (samples, num_filters)), 0)
    logits = activations @ np.random.default_rng(1).normal(size=(num_filters, classes)) + 6 * np.eye(classes)[labels]
    return Outputs(activations.astype(np.float32), logits.astype(np.float32), labels.astype(np.int64))


FIT, HELD_OUT = outputs(400, 2), outputs(150, 3)


@pytest.fixture(scope="module")
def none_left() -> list[PartitionRow]:
    """The comparison at a percentile that leaves the graph of NoNN no edge."""
    return compare(FIT, HELD_OUT, GraphConfig(percentile=100), 4, seed=0)


def test_the_probe_is_a_ridge_to_the_teachers_logits_on_the_filters_that_are_left() -> None:
    parts = ((0, 4, 8), (1, 5), (2, 3, 6, 7), (9, 10, 11))
    rows = probe(Partition(parts, 12, "test"), FIT, HELD_OUT, seed=0)
    assert [(row.missing, row.subsets) for row in rows] == [(0, 1), (2, 6), (3, 4)]
    variance = FIT.activations.astype(np.float64).var(axis=0).mean()
    for row in rows:
        accuracies = []
        for left in combinations(parts, 4 - row.missing):
            filters = [c for part in left for c in part]
            model = Ridge(1e-3 * variance * len(FIT.labels)).fit(FIT.activations[:, filters].astype(float), FIT.logits)
            predicted = model.predict(HELD_OUT.activations[:, filters].astype(float)).argmax(axis=1)
            accuracies.append((predicted == HELD_OUT.labels).mean())
        assert row.mean == pytest.approx(np.mean(accuracies), abs=1e-9)
        assert row.worst == pytest.approx(min(accuracies), abs=1e-9)


def test_what_a_method_drops_is_missing_for_its_probe_even_with_every_part() -> None:
    whole = probe(Partition(((0, 3), (6, 9)), 12, "test", (1, 2, 4, 5, 7, 8, 10, 11)), FIT, HELD_OUT, seed=0)[0]
    blind = Outputs(FIT.activations.copy(), FIT.logits, FIT.labels)
    blind.activations[:, [1, 2, 4, 5, 7, 8, 10, 11]] = 0
    every = probe(Partition((tuple(range(6)), tuple(range(6, 12))), 12, "test"), blind, HELD_OUT, seed=0)[0]
    assert whole.mean == pytest.approx(every.mean, abs=0.02)
    full = probe(Partition((tuple(range(6)), tuple(range(6, 12))), 12, "test"), FIT, HELD_OUT, seed=0)[0]
    assert full.mean > whole.mean


def test_many_sets_are_sampled_and_a_seed_repeats_them() -> None:
    partition = Partition(tuple((c,) for c in range(12)), 12, "test")
    first, second = (probe(partition, FIT, HELD_OUT, seed=4) for _ in range(2))
    assert first == second
    assert [row.subsets for row in first] == [1, 256, 12]


@pytest.mark.parametrize(("parts", "levels"), [(1, (0,)), (2, (0, 1)), (5, (0, 2, 4)), (8, (0, 4, 7))])
def test_levels_are_none_half_and_all_but_one(parts: int, levels: tuple[int, ...]) -> None:
    assert missing_levels(parts) == levels


def test_more_parts_than_sets_are_enumerated_for_are_refused() -> None:
    with pytest.raises(PartitionError, match="at most 16"):
        probe(Partition(tuple((c,) for c in range(17)), 17, "test"), FIT, HELD_OUT, seed=0)


def test_stability_is_one_for_the_same_parts_and_near_zero_for_chance() -> None:
    first = Partition(((0, 1), (2, 3)), 5, "test", (4,))
    renamed = Partition(((2, 3), (0, 1)), 5, "test", (4,))
    other = Partition(((0, 2), (1, 3)), 5, "test", (4,))
    assert stability([first, renamed, first]) == 1.0
    assert stability([first, renamed, other]) == pytest.approx((1 + 2 * stability([first, other])) / 3)
    rng = np.random.default_rng(0)
    chance = [Partition(tuple(map(tuple, rng.permutation(40).reshape(4, 10))), 40, "test") for _ in range(10)]
    assert abs(stability(chance)) < 0.05


def test_every_method_is_compared_on_every_graph_and_what_cannot_be_cut_says_why(
    none_left: list[PartitionRow],
) -> None:
    rows = compare(FIT, HELD_OUT, GraphConfig(percentile=80), 4, seed=0)
    assert [(row.graph, row.method) for row in rows] == [(g, m) for g in GRAPHS for m in METHODS]
    whole = {row.method: row for row in rows if row.graph == "co-activation"}
    assert whole["balanced-eigenvector"].measures is not None
    assert whole["balanced-eigenvector"].measures.sizes == (3, 3, 3, 3)
    assert whole["random"].stability < 0.3
    assert all(row.seconds > 0 for row in rows if not row.error)
    failed = [row for row in none_left if row.error]
    # Louvain at NoNN's resolution leaves every filter of this dense graph single, too.
    assert [(row.graph, row.method) for row in failed] == [("co-activation", "louvain"), ("nonn", "louvain")]
    assert "filters share" in failed[0].error
    assert failed[0].measures is None


def test_dealt_parts_lose_less_than_correlated_ones_when_most_are_missing() -> None:
    fit, held_out = outputs(2000, 2), outputs(1000, 3)
    rows = {r.method: r for r in compare(fit, held_out, GraphConfig(), 4, seed=0) if r.graph == "co-activation"}
    together, dealt = rows["balanced-eigenvector"], rows["dealt-eigenvector"]
    assert together.measures is not None
    assert dealt.measures is not None
    assert together.measures.kept_correlation > dealt.measures.kept_correlation
    assert dealt.probe[2].mean > together.probe[2].mean


def test_the_command_prints_a_table_and_writes_comparison_and_figure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "quick.toml").write_text("")
    values = ("experiment.name=quick", "teacher.model=wrn-10-0.5", "teacher.epochs=1", "partition.parts=4")
    sets = [word for value in values for word in ("--set", value)]
    command = ["partition", str(tmp_path / "quick.toml"), "--runs", str(tmp_path), "--compare", *sets]
    assert main(command) == 0
    text = capsys.readouterr().out
    trained = (tmp_path / "quick" / "teacher" / "teacher.safetensors").stat().st_mtime_ns
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (tmp_path / "quick" / "teacher" / "teacher.safetensors").stat().st_mtime_ns == trained
    folder = tmp_path / "quick" / "partition"
    assert json.loads((folder / "compare.json").read_text()) == printed
    assert len(printed["rows"]) == len(METHODS) * len(GRAPHS)
    assert printed["data"]["split"] == "held-out"
    # Every column of every row is there, whatever could not be cut.
    assert all(text.count(method) >= 2 for method in METHODS)
    assert "2 missing" in text
    assert "3 missing" in text
    assert str(folder / "compare.json") in text
    svg = (folder / "compare.svg").read_text()
    written = read(PartitionComparison, folder / "compare.json")
    assert svg == comparison_plot(written.rows, written.teacher_accuracy)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert all(method in svg for method in METHODS)


def test_a_method_that_cut_nothing_is_a_row_of_dashes(none_left: list[PartitionRow]) -> None:
    cells = {(line[0], line[1]): line[2:] for line in comparison_table(none_left).cells()}
    assert set(cells["louvain", "nonn"]) == {"–"}
    assert "–" not in cells["metis", "co-activation"]
    text = as_text(comparison_table(none_left)).splitlines()
    assert len({len(line) for line in text[2:]}) == 1
    assert "louvain" in comparison_plot(none_left, 0.9)


def test_the_shipped_comparison_read_and_written_again_is_the_same_text() -> None:
    file = Path(__file__).parent.parent / "benchmarks" / "results" / "cifar100-small-partitioners.json"
    assert json.dumps(to_json(read(PartitionComparison, file)), indent=2, ensure_ascii=False) + "\n" == file.read_text()
