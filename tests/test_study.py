from __future__ import annotations

import csv
import dataclasses
import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import wrap
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from nonn.cli import main
from nonn.config import Experiment, GraphConfig, StudyConfig, load_experiment
from nonn.distill.heads import KINDS, HeadFitter
from nonn.documents import read, to_json
from nonn.errors import ConfigError, MissingExtraError
from nonn.experiment import workspace
from nonn.experiment.evaluation import Evaluation, HeadResult, evaluate_head
from nonn.experiment.methods import METHODS, Method
from nonn.experiment.paired import compared, digests, scores_of
from nonn.experiment.progress import Silent
from nonn.experiment.study import study
from nonn.experiment.summary import summarise
from nonn.fusion import RidgePerSet, gram
from nonn.reliability.intervals import difference_interval
from nonn.reliability.subsets import members
from nonn.report.study import heads_markdown, ladder_table, short_markdown, short_table, study_text
from nonn.report.study_document import Study, StudyRow
from nonn.report.study_plot import study_plot
from nonn.report.table import percent
from scripts import figures, tables
from tests.toys import TINY, write_few_digits

SETS = (
    *TINY,
    "experiment.name=ladder",
    "data.reader=npz",
    "data.inputs=images",
    "teacher.epochs=2",
    "teacher.batch=32",
    "distill.batch=32",
    "distill.epochs=2",
    "partition.parts=4",
    "graph.percentile=50",
    "study.seeds=[0, 1]",
)


RIVALS = ("parity", "imputation", "synthesised", "best-single")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting that names the data."""
    return f"data.path='{write_few_digits(tmp_path_factory.mktemp('data') / 'digits.npz')}'"


@pytest.fixture(scope="module")
def ladder(data: str) -> Experiment:
    return load_experiment(None, [*SETS, data])


@pytest.fixture(scope="module")
def finished(ladder: Experiment, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Study]:
    runs = tmp_path_factory.mktemp("study")
    return runs, study(ladder, runs=runs)


@pytest.mark.slow
def test_a_study_has_every_row_with_every_head_and_marks_the_one_each_method_serves(
    finished: tuple[Path, Study],
) -> None:
    result, names = finished[1], StudyConfig().rows
    assert result.complete
    assert result.seeds == (0, 1)
    assert {row.method for row in result.rows} == set(names)
    for name in names:
        rows = [row for row in result.rows if row.method == name]
        if name in RIVALS:  # with a fusion of their own
            assert [(row.head, row.own) for row in rows] == [(name, True)]
        else:
            assert {row.head for row in rows} == set(KINDS)
            assert [row.head for row in rows if row.own] == ["ridge" if name == "ours" else "trained"]
        for row in rows:
            assert [line.failed for line in row.accuracy_by_failures] == [0, 1, 2, 3]
            assert set(row.expected) == {"0.1", "0.3", "0.5"}
            assert len(row.sd) == 4
            assert 0 <= (row.disagreement or -1) <= 1
            assert -1 <= (row.error_correlation or -2) <= 1


def test_every_mean_and_expected_accuracy_of_a_study_is_inside_its_interval(finished: tuple[Path, Study]) -> None:
    for row in finished[1].rows:
        for line in row.accuracy_by_failures:
            assert line.interval is not None
            assert line.interval[0] <= line.mean <= line.interval[1]
        assert row.expected_intervals is not None
        for p, value in row.expected.items():
            assert row.expected_intervals[p][0] < value < row.expected_intervals[p][1]


def test_every_row_is_compared_with_the_first(finished: tuple[Path, Study]) -> None:
    rows = finished[1].rows
    first, *others = [row for row in rows if row.own]
    assert first.against_first is None
    assert [len(row.against_first or ()) for row in others] == [4] * (len(StudyConfig().rows) - 1)
    for row in rows:
        for less, mine, other in zip(
            row.against_first or (), row.accuracy_by_failures, first.accuracy_by_failures, strict=False
        ):
            assert less.difference == pytest.approx(mine.mean - other.mean)
            assert less.interval[0] <= less.difference <= less.interval[1]


def test_a_study_writes_its_result_a_plot_and_a_page(finished: tuple[Path, Study]) -> None:
    folder, result = finished[0] / "ladder" / "study", finished[1]
    assert read(Study, folder / "study.json") == result
    plot, page = (folder / "study.svg").read_text(), (folder / "study.md").read_text()
    for title in {row.title for row in result.rows} | {"teacher"}:
        assert all(f">{line}" in plot for line in wrap(title, 22)), title
    for row in result.rows:
        line = row.accuracy_by_failures[2]
        assert percent(line.mean) in page
        if row.own:
            mean, sd, worst = 100 * line.mean, 100 * row.sd[2], 100 * line.worst
            assert line.interval is not None
            assert line.worst_interval is not None
            assert line.worst_interval[0] < line.worst < line.worst_interval[1]
            ends, of_worst = (
                f"[{100 * low:.1f}, {100 * high:.1f}]" for low, high in (line.interval, line.worst_interval)
            )
            assert f"{mean:.1f} ± {sd:.1f} {ends} ({worst:.1f} {of_worst})" in page
    assert result.teacher.interval is not None
    assert result.teacher.interval[0] < result.teacher.accuracy < result.teacher.interval[1]
    assert f"(95 %: {percent(result.teacher.interval[0]).removesuffix(' %')} to" in page


def test_a_study_is_a_csv_file_a_data_frame_and_a_table_in_a_notebook(finished: tuple[Path, Study]) -> None:
    result = finished[1]
    lines = list(csv.DictReader((finished[0] / "ladder" / "study" / "study.csv").read_text().splitlines()))
    assert len(lines) == 4 * len(result.rows)
    assert float(lines[0]["error_correlation"]) == result.rows[0].error_correlation
    assert float(lines[0]["mean"]) == result.rows[0].accuracy_by_failures[0].mean
    frame = result.frame()
    assert [str(column) for column in frame.columns] == list(lines[0])
    assert frame["worst"].tolist() == [float(line["worst"]) for line in lines]
    assert f"<td>{result.rows[0].title}</td>" in result._repr_html_()


def test_the_plot_of_a_study_has_a_line_for_each_row_there_is(finished: tuple[Path, Study]) -> None:
    served = next(row for row in finished[1].rows if row.own)
    rows = tuple(dataclasses.replace(served, method=name, title=f"title of {name}") for name in METHODS)
    plot = study_plot(dataclasses.replace(finished[1], rows=rows))
    assert [name for name in METHODS if f">title of {name}<" not in plot] == []


def test_the_short_table_tells_the_gain_of_training_from_that_of_the_head(
    finished: tuple[Path, Study],
) -> None:
    result = finished[1]
    shown = short_table(result).cells()
    served = [row for row in shown if row[1].endswith("*")]
    assert [row[0] for row in served] == list(dict.fromkeys(row.title for row in result.rows))
    assert sum(row[1] == "ridge" for row in shown) == len(served) - len(RIVALS) - 1  # it is what ours serves
    titles = [column.title for column in short_table(result).columns][-8:]
    assert titles == [text for title in ("0 failed", "2 failed", "worst", "3 failed") for text in (title, "95 %")]
    older = dataclasses.replace(result, rows=tuple(map(_without_intervals, result.rows)))
    assert [column.title for column in short_table(older).columns][-4:] == titles[::2]
    assert served[-1][6] in short_markdown(result)
    assert heads_markdown(result).count("\n| ") == 2 + len(result.rows)


def _without_intervals(row: StudyRow) -> StudyRow:
    """A row as older studies have it."""
    lines = tuple(dataclasses.replace(line, interval=None, worst_interval=None) for line in row.accuracy_by_failures)
    return dataclasses.replace(row, accuracy_by_failures=lines, expected_intervals=None, against_first=None)


@pytest.mark.parametrize("name", ["cifar100-small", "wearables", "wearables-unturned"])
def test_a_shipped_study_read_and_written_again_is_the_same_text(name: str) -> None:
    file = Path(__file__).parent.parent / "benchmarks" / "results" / f"{name}.json"
    assert json.dumps(to_json(read(Study, file)), indent=2, ensure_ascii=False) + "\n" == file.read_text()


def test_documents_show_the_results_that_are_in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    for script in (tables, figures):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script.__name__, "--check"])
            assert script.main() == 0, script.__name__


def test_rows_have_the_parts_and_budgets_their_methods_say(finished: tuple[Path, Study]) -> None:
    rows = {row.method: row for row in finished[1].rows if row.own}
    assert {name: row.parts for name, row in rows.items()} == {
        "nonn": 4, "jeong-4": 2, "jeong-2": 1, "rocoin": 2, "copies": 1, "ours": 4,
        "parity": 3, "imputation": 2, "synthesised": 2, "best-single": 1,
    }  # fmt: skip
    assert rows["copies"].part_sizes == (64,)
    assert rows["ours"].part_sizes == (16,) * 4
    assert len({row.student for row in rows.values()}) == 1
    # The bridge to a wider part is all that differs between students.
    assert rows["copies"].params - rows["ours"].params == 64 * 48 + 2 * 48
    assert rows["copies"].bytes_per_answer == 4 * 4 * 64


def test_published_methods_have_their_own_loss_and_copies_share_nothing() -> None:
    sets = ["hint.weight=1.0", "mutual.weight=1.0", "kd={weight=0.7, on='both', temperature=2.0}"]
    experiment = load_experiment(None, [*SETS, *(f"distill.objectives.{text}" for text in sets)])

    def objectives(row: str) -> dict[str, dict[str, Any]]:
        config = METHODS[row].applied_to(experiment, 0, ()).distill.objectives
        return {name: values for name, values in dataclasses.asdict(config).items() if values.get("weight")}

    for row in ("nonn", "jeong-4", "jeong-2", "rocoin"):
        published = objectives(row)
        assert {name: values["weight"] for name, values in published.items()} == {"ce": 0.1, "kd": 1.8, "transfer": 39}
        assert published["transfer"]["joint"]
        assert published["transfer"]["pooled"]
        assert published["kd"]["on"] == "fused"
        assert published["kd"]["temperature"] == 4.0
    assert METHODS["nonn"].applied_to(experiment, 0, ()).graph == GraphConfig(kind="nonn", percentile="equal-degree")
    copies, ours = objectives("copies"), objectives("ours")
    assert copies.keys() == ours.keys() - {"mutual"}
    assert copies["hint"] == ours["hint"]
    assert copies["kd"] == ours["kd"] | {"on": "device"}
    assert copies["ce"]["on"] == "device"


def test_a_cut_gives_every_device_half_of_the_filters(ladder: Experiment) -> None:
    cut = METHODS["ours-cut"].applied_to(ladder, 0, ())
    assert (cut.partition.parts, cut.partition.overlap, cut.fusion.train) == (4, 2, "logit-average")
    assert cut.distill == ladder.distill


def test_a_finished_study_trains_and_evaluates_nothing_again(
    finished: tuple[Path, Study], ladder: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(HeadFitter, "fit_all", lambda *a, **k: pytest.fail("fitted again"))
    said: list[str] = []

    class Lines(Silent):
        def say(self, text: str, /) -> None:
            said.append(text)

    assert study(ladder, runs=finished[0], progress=Lines()).rows == finished[1].rows
    rows = [line for line in said if line.startswith("study: ")]
    assert all("finished earlier; " in row for row in rows)
    assert rows[-1].endswith(f"{len(rows)} of {len(rows)} rows ({len(rows)} finished earlier), 0 left")


class RayOfThisProcess(ModuleType):
    """Ray as a study uses it: tasks run at once, here, with jobs and outcomes as they come out of a pickle."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.tasks: list[str] = []

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def remote(self, function: Callable[[Any], Any]) -> Any:
        def submit(job: Any) -> bytes:
            self.tasks.append(function.__name__)
            return pickle.dumps(function(pickle.loads(pickle.dumps(job))))

        return SimpleNamespace(remote=submit)

    def get(self, outcome: bytes) -> Any:
        return pickle.loads(outcome)


def test_rows_of_a_ray_cluster_are_those_of_this_process(
    finished: tuple[Path, Study], ladder: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished[0] / "ladder", tmp_path / "ladder")
    trained_again = tmp_path / "ladder" / "study" / "jeong-4-1"
    shutil.rmtree(trained_again)
    rows = ("copies", "imputation", "jeong-4")
    few = dataclasses.replace(ladder, study=dataclasses.replace(ladder.study, seeds=(1,), rows=rows))
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nonn\[ray\]'"):
        study(few, runs=tmp_path, backend="ray")
    ray = RayOfThisProcess()
    monkeypatch.setitem(sys.modules, "ray", ray)
    found = study(few, runs=tmp_path, backend="ray")
    # A teacher, then one worker for each method that has students of its own.
    assert ray.tasks == ["_train_teacher", "_train_rows", "_train_rows"]
    stages = ("copies-1/evaluation", "jeong-4-1/evaluation-imputation", "jeong-4-1/evaluation")
    results = [read(Evaluation, finished[0] / "ladder" / "study" / stage / "result.json") for stage in stages]
    assert found.rows == summarise(few, results, complete=True).rows
    assert (trained_again / "teacher" / "teacher.safetensors").exists()
    with pytest.raises(ConfigError, match="backend 'cloud': unknown; choose one of: local, ray"):
        study(few, runs=tmp_path, backend="cloud")


def test_rivals_on_the_students_of_another_row_train_nothing_and_answer_from_as_many_devices(
    finished: tuple[Path, Study],
) -> None:
    study_folder = finished[0] / "ladder" / "study"
    assert not any((study_folder / f"{name}-0").exists() for name in ("imputation", "synthesised", "best-single"))
    rows = {row.method: row for row in finished[1].rows if row.own}
    for name, base in {"imputation": "jeong-4", "synthesised": "jeong-4", "best-single": "copies"}.items():
        rival, other = rows[name], rows[base]
        assert (rival.params, rival.bytes_per_answer) == (other.params, other.bytes_per_answer)
        # All devices together: the trained fusion, except for the best single student.
        if name != "best-single":
            assert rival.accuracy_by_failures[0].mean == pytest.approx(other.accuracy_by_failures[0].mean)
    result = read(Evaluation, study_folder / "parity-0" / "evaluation" / "result.json")
    assert len(result.params) == len(result.feature_bytes) == 4
    assert max(result.params) == result.params[-1]
    best = rows["best-single"].accuracy_by_failures
    assert best[0].mean >= max(line.worst for line in best[1:])


def test_diversity_is_that_of_the_answers_of_single_devices(finished: tuple[Path, Study]) -> None:
    shared = next(row for row in finished[1].rows if row.method == "rocoin" and row.own)
    alone = next(row for row in finished[1].rows if row.method == "jeong-4" and row.own)
    assert shared.disagreement is not None
    assert alone.disagreement is not None
    assert shared.disagreement < alone.disagreement  # two of six pairs run the same student
    assert "disagreement" in study_text(finished[1])
    ridge = next(row for row in finished[1].rows if row.method == "jeong-4" and row.head == "ridge")
    line = next(line for line in ladder_table(finished[1]).cells() if line[0] == alone.title)
    assert line[-2:] == [percent(ridge.disagreement or 0), f"{ridge.error_correlation:.2f}"]
    older = dataclasses.replace(
        finished[1],
        rows=tuple(dataclasses.replace(row, disagreement=None, error_correlation=None) for row in finished[1].rows),
    )
    assert "disagreement" not in study_text(older)


def test_a_killed_study_keeps_the_rows_it_had_and_says_that_it_is_partial(
    finished: tuple[Path, Study], ladder: Experiment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    calls: list[int] = []
    original = HeadFitter.fit_all

    def fit_all(*args: Any, **kwargs: Any) -> Any:
        if calls:
            raise KilledError
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(HeadFitter, "fit_all", fit_all)
    few = dataclasses.replace(ladder, study=dataclasses.replace(ladder.study, seeds=(0,), rows=("ours", "copies")))
    with pytest.raises(KilledError):
        study(few, runs=tmp_path)
    partial = read(Study, tmp_path / "ladder" / "study" / "study.json")
    assert not partial.complete
    assert {row.method for row in partial.rows} == {"ours"}


def test_shared_replicas_answer_alike_whichever_copy_survives() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(50, 3)).astype(np.float32) for _ in range(2)]
    labels = rng.integers(0, 3, 50)
    head = RidgePerSet(*gram(np.concatenate(features, axis=1), rng.normal(size=(50, 3))), 1e-2, (3, 3))
    shared = evaluate_head(head, features, labels, [0, 1, 0, 1])
    for mask in range(1, 16):
        arrived = {i % 2: features[i % 2] for i in members(mask)}
        assert shared.correct[mask] == (head.logits(arrived).argmax(axis=1) == labels).sum()
    assert shared.by_failures[0].cev == shared.by_failures[0].sde == 0
    assert shared.by_failures[2].cev > 0


def test_means_and_deviations_are_over_seeds(ladder: Experiment, finished: tuple[Path, Study]) -> None:
    folder = finished[0] / "ladder" / "study"
    results = [read(Evaluation, folder / f"ours-{s}" / "evaluation" / "result.json") for s in (0, 1)]
    row = next(r for r in summarise(ladder, results, complete=True).rows if r.own)
    values = [r.heads["ridge"].by_failures[2].mean for r in results]
    assert row.accuracy_by_failures[2].mean == pytest.approx(np.mean(values))
    assert row.sd[2] == pytest.approx(np.std(values, ddof=1))


def test_the_command_prints_a_table_or_json_alone(
    finished: tuple[Path, Study], data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ladder.toml").write_text("")
    runs = shutil.copytree(finished[0], tmp_path / "runs")
    arguments = ["study", str(tmp_path / "ladder.toml"), "--runs", str(runs)]
    arguments += [a for item in (*SETS, data, "study.rows=['copies', 'ours']") for a in ("--set", item)]
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert "ridge *" in out
    assert "copies, M = 1" in out
    assert "ECE at 2" in out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["experiment"] == "ladder"


@pytest.mark.parametrize("text", ["study.seeds=[]", "study.seeds=[-1]"])
def test_seeds_that_do_not_exist_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"study\.seeds"):
        load_experiment(None, [text])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("['ours', 'theirs']", r"study\.rows\[1\] = 'theirs': unknown; choose one of: nonn, jeong-4.*ours"),
        ("['our']", r"study\.rows\[0\] = 'our': unknown; did you mean 'ours'"),
        ("[]", r"study\.rows = \[\]: must not be empty"),
    ],
)
def test_rows_that_do_not_exist_are_refused(rows: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(None, [f"study.rows={rows}"])


def test_one_entry_adds_a_method_to_the_study(
    ladder: Experiment, finished: tuple[Path, Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves = Method("halves", "two halves", lambda devices: (f"partition.parts={devices // 2}",), head="rescale")
    monkeypatch.setitem(METHODS, "halves", halves)
    shutil.copytree(finished[0] / "ladder" / "teacher", tmp_path / "ladder" / "teacher")
    few = dataclasses.replace(ladder, study=dataclasses.replace(ladder.study, seeds=(0,), rows=("halves",)))
    rows = {row.head: row for row in study(few, runs=tmp_path).rows}
    assert {row.title for row in rows.values()} == {"two halves"}
    assert rows["ridge"].parts == 2
    assert [head for head, row in rows.items() if row.own] == ["rescale"]


def test_a_method_with_fewer_devices_takes_the_failout_groups_of_all() -> None:
    groups = ["distill.failout=groups", "distill.failout_groups=[[0, 1], [6, 7]]"]
    changed = METHODS["rocoin"].applied_to(load_experiment(None, groups), 0, ())
    assert changed.devices.count == 4
    assert changed.distill.failout_groups == ((0, 1), (6, 7))


def test_runs_are_averaged_on_the_samples_that_they_share_and_rows_compared_on_those_alone() -> None:
    def run(test: list[int], right: list[list[int]]) -> Evaluation:
        head = HeadResult(samples=len(test), correct=(), by_failures=(), expected={}, right=tuple(map(tuple, right)))
        costs = {"params": (), "macs": (), "feature_bytes": (), "part_sizes": (), "input_bytes": 1}
        values: dict[str, Any] = {"row": "r", "seed": 0, "teacher_accuracy": 1.0, **costs}
        return Evaluation(**values, heads={"h": head}, test=tuple(test))

    # Two devices: with none failed one subset, with one failed two of them.
    both = [run([7, 5], [[1, 0], [2, 1]]), run([5, 9], [[1, 1], [0, 2]])]
    found = scores_of(both, "h")
    assert found is not None
    assert found[0].tolist() == [5, 7, 9]
    assert found[1].tolist() == [[0.5, 1, 1], [0.25, 1, 1]]
    other = scores_of([run([9, 11], [[0, 1], [1, 2]])], "h")
    assert other is not None
    rows = compared(found, [0.8, 0.7], other, [0.5, 0.75])
    assert [row.difference for row in rows] == pytest.approx([0.3, -0.05])
    ends = difference_interval(np.array([[1.0], [0.5]]), mean=np.subtract([0.8, 0.7], [0.5, 0.75]))
    assert [row.interval for row in rows] == list(zip(*(end.tolist() for end in ends), strict=True))
    assert compared(found, [0.8, 0.7], (np.array([1]), np.ones((2, 1))), [1.0, 1.0]) == []
    assert scores_of([run([], [])], "h") is None
    assert len({*digests(np.arange(12).reshape(4, 3) % 6, np.array([0, 0, 0, 1]))}) == 3
