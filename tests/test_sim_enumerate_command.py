from __future__ import annotations

import csv
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_sim.cli import COMMANDS, main
from nonn_sim.summary import _class_text

from nonn.bundle import Bundle, write_bundle
from nonn.documents import to_json
from nonn.reliability.intervals import wilson
from nonn.reliability.subsets import mask_of
from tests.light import BLOCKER
from tests.serving import TIMEOUT_S
from tests.toys import toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return toy_bundle(tmp_path_factory.mktemp("enumerate") / "bundle", num_devices=4, num_parts=2)


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["enumerate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {name}\b", shown, re.MULTILINE) for name in COMMANDS)


def test_json_holds_the_exact_figures(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, str(bundle.path), "--law", "independent p=0.2", "--level", "0.5", "--per-class")
    table = bundle.table
    assert found["method"] == "exact"
    assert found["accuracy_by_failures"] == to_json(bundle.evidence.by_failures())
    p = [0.2] * 4
    assert found["law"]["expected"] == pytest.approx(table.expected(np.array(p)))
    assert found["law"]["levels"][0]["first_fall"] is None
    assert [d["marginal"] for d in found["devices"]] == pytest.approx(table.importance(np.array(p)).tolist())
    assert sum(d["shapley"] for d in found["devices"]) == pytest.approx(table.accuracy[-1])
    assert found["pair_losses"][0][3] == table.accuracy[mask_of([1, 2])]
    assert found["pair_intervals"][0][3] == pytest.approx(bundle.evidence.accuracy(mask_of([1, 2])))
    for row in found["per_class"]:
        for mean, (low, high) in zip(row["accuracy_by_failures"], row["intervals"], strict=True):
            assert low <= mean <= high
    # Classes weighted by their samples give the whole again, at every number of failures.
    for row in found["accuracy_by_failures"]:
        right = sum(c["samples"] * c["accuracy_by_failures"][row["failed"]] for c in found["per_class"])
        assert right / table.samples == pytest.approx(row["mean"])
    best = found["one_more_device"]["students"][0]
    with_it = np.array(p)
    with_it[best["student"]] = 0.04
    assert best["expected"] == pytest.approx(table.expected(with_it))


def test_recounting_gives_the_stored_table(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert as_json(capsys, str(bundle.path)) == as_json(capsys, str(bundle.path), "--recount")


def test_text_shows_what_the_json_holds(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    machines = tmp_path / "machines.toml"
    machines.write_text('[[device]]\nname = "pi"\np_fail = 0.1\nmacs_per_s = 1e6\n')
    options = [str(bundle.path), "--law", "markov mtbf_s=86400 mttr_s=600", "--level", "0.5", "--per-class"]
    options += ["--guarantee", "accuracy>=0.1 failed<=1", "--place", str(machines)]
    found = as_json(capsys, *options)
    assert main(["enumerate", *options]) == 0
    shown = capsys.readouterr().out
    for row in found["accuracy_by_failures"]:
        assert f"{100 * row['worst']:.1f} %" in shown
    assert found["guarantees"][0]["holds"]
    assert "holds: " in shown
    days = found["law"]["levels"][0]["first_fall"]["mean_s"] / 86400
    assert re.search(r"first missed after [\d.]+ (days|years) on average", shown)
    assert days > 1
    assert f"{found['placement']['latency_ms']:.2f} ms" in shown
    assert "classes with the lowest accuracy with 2 failed" in shown
    assert "Shapley" in shown
    share, ends = found["law"]["quantiles"][0]["share"], found["law"]["quantiles"][0]["interval"]
    assert f"{100 * share:g} % of the time" in shown
    assert f"(95 %: {100 * ends[0]:.1f} to " in shown
    i, j = np.unravel_index(np.argmin(found["pair_losses"]), (4, 4))
    assert f"(95 %: {100 * found['pair_intervals'][i][j][0]:.1f} to " in shown


def test_a_class_that_is_never_right_suffers_most() -> None:
    known: dict[str, Any] = {"samples": 40, "intervals": [(0.0, 0.09)] * 2}
    kept = [{"class": f"kept {k}", "accuracy_by_failures": [1.0, 0.9], **known} for k in range(6)]
    lines = _class_text([*kept, {"class": "never", "accuracy_by_failures": [0.0, 0.0], **known}], 1).splitlines()
    assert re.split(r"  +", lines[3].strip()) == ["never", "0 %", "0 to 9 %", "0 %", "0 to 9 %"]


def test_csv_has_a_line_for_every_set(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sets.csv"
    assert main(["enumerate", str(bundle.path), "--csv", str(path)]) == 0
    capsys.readouterr()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["correct"]) for row in rows] == bundle.table.correct.tolist()
    assert rows[5]["answered"] == "0 2"
    assert rows[5]["failed"] == "2"
    assert sum(float(row["probability"]) for row in rows) == pytest.approx(1)


def test_a_broken_guarantee_has_its_own_exit_code_and_names_the_set(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["enumerate", str(bundle.path), "--json", "--guarantee", "accuracy>=0.99 failed<=2"]
    assert main(arguments) == 7
    shown = capsys.readouterr()
    worst = bundle.table.by_failures()[2].worst_subset
    assert f"when only devices {worst[0]}, {worst[1]} answer" in shown.err
    assert json.loads(shown.out)["guarantees"][0]["breaking"] == list(worst)


def test_a_broken_guarantee_is_told_once_and_a_kept_one_beside_the_rest(
    bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, kept = "accuracy>=0.99 failed<=2", "accuracy>=0.01 failed<=1"
    assert main(["enumerate", str(bundle.path), "--guarantee", broken, "--guarantee", kept]) == 7
    shown = capsys.readouterr()
    assert f"'{kept}' holds" in shown.out
    assert broken not in shown.out
    assert shown.err.count(broken) == 1


def test_sampling_shows_intervals(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    found = as_json(capsys, str(bundle.path), "--samples", "3", "--counted", "1", "--seed", "4", "--level", "0.3")
    assert found["method"] == "sampled"
    assert found["seed"] == 4
    middle = found["accuracy_by_failures"][2]
    assert middle["sampled"] == 3 < middle["subsets"]
    assert middle["mean_low"] < middle["mean"] < middle["mean_high"]
    for key in ("worst", "best"):
        assert middle[f"{key}_interval"][0] < middle[key] < middle[f"{key}_interval"][1]
    assert found["law"]["levels"][0]["availability"]["low"] <= found["law"]["levels"][0]["availability"]["estimate"]
    low, high = found["law"]["expected_bound"]
    assert low < bundle.table.expected(np.full(4, 0.1)) < high == pytest.approx(low + found["law"]["unseen"])
    assert main(["enumerate", str(bundle.path), "--samples", "3"]) == 0
    assert "95 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--law", "independant p=0.1"], 2, "did you mean 'independent'"),
        (["--law", "groups [[7]] p_group=0.1"], 2, "unknown node 7"),
        (["--guarantee", "be good"], 2, "guarantee 'be good'"),
        (["--csv", "/dev/null/x.csv"], 3, "--csv /dev/null/x.csv"),
    ],
)
def test_bad_input_has_a_message_and_its_exit_code(
    bundle: Bundle, options: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enumerate", str(bundle.path), *options]) == code
    shown = capsys.readouterr()
    assert words in shown.err
    assert not shown.out


def test_a_bundle_without_features_serves_its_table_but_no_classes(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    students = {i: bundle.student_path(i).read_bytes() for i in range(4)}
    arrays = {name: bundle.arrays(name) for name in ("fusion.npz", "accuracy.npz")}
    bare = write_bundle(tmp_path / "bare", bundle.manifest, students, arrays)
    rows = as_json(capsys, str(bare.path))["accuracy_by_failures"]
    assert [row["mean"] for row in rows] == [row.mean for row in bundle.table.by_failures()]
    low, high = wilson(rows[2]["mean"] * 200, 200)  # without outcomes, as of one subset
    assert rows[2]["interval"] == pytest.approx([float(low), float(high)])
    for option in ("--per-class", "--recount"):
        assert main(["enumerate", str(bare.path), option]) == 3
        assert "has no features.npz" in capsys.readouterr().err


def test_a_level_that_is_no_accuracy_is_a_usage_error(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["enumerate", str(bundle.path), "--level", "70"])
    assert caught.value.code == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_it_runs_without_torch_and_networkx(bundle: Bundle) -> None:
    allowed = BLOCKER.replace("'scipy', ", "").replace("'rich', ", "")
    program = "from nonn_sim.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", allowed + program, "enumerate", str(bundle.path), "--recount", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["method"] == "exact"
