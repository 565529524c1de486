"""``nonn init`` and ``nonn runs``: experiment files for own data, and what runs leave."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from pathlib import Path

import pytest

from nonn.bundle import Bundle, load_bundle
from nonn.cli import main
from nonn.cli.init import guess_reader
from nonn.cli.serve import next_steps
from nonn.config import load_experiment
from nonn.errors import UsageError
from nonn.experiment.kept import set_aside
from nonn.experiment.stages import open_stage
from nonn.files import write_json
from tests.toys import toy_bundle

NUM_DEVICES = 2


@pytest.fixture
def runs(bundle: Bundle, tmp_path: Path) -> Path:
    """A run with a bundle, an earlier one of another seed, a finished stage and one that was set aside."""
    root = tmp_path / "runs" / "toy"
    toy_bundle(root / "bundle", num_devices=2, width=3)
    manifest = json.loads((root / "bundle" / "manifest.json").read_text())
    manifest["provenance"] = {"config": {"experiment": {"seed": 1}, "fusion": {"head": "ridge"}}}
    write_json(root / "bundle" / "manifest.json", manifest)
    assert set_aside(root / "bundle") is not None
    shutil.copytree(bundle.path, root / "bundle", dirs_exist_ok=True)
    manifest = dataclasses.asdict(bundle.manifest) | {"provenance": {"config": {"experiment": {"seed": 2}}}}
    write_json(root / "bundle" / "manifest.json", manifest)
    open_stage(root, "teacher", {"seed": 1})
    open_stage(root, "teacher", {"seed": 2}).finish()
    return root.parent


def earlier(runs: Path) -> Path:
    (folder,) = (path for path in (runs / "toy" / "bundles").iterdir() if path.is_dir())
    return folder


def test_runs_are_listed_with_their_bundles(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "list", "--runs", str(runs), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    current = load_bundle(runs / "toy" / "bundle")
    assert (row["name"], row["bundle"], row["unfinished"]) == ("toy", current.hash, [])
    assert row["accuracy"] == current.accuracy()
    assert row["accuracy_half_failed"] == current.accuracy(failed=1)
    assert row["earlier"] == [load_bundle(earlier(runs)).hash]
    assert main(["runs", "list", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert current.hash[:12] in shown
    assert earlier(runs).name in shown


def test_two_bundles_are_compared_by_options_and_accuracy(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "diff", "toy", f"toy@{earlier(runs).name[:6]}", "--runs", str(runs)]) == 0
    shown = capsys.readouterr().out
    assert ["experiment.seed", "2", "1"] in [line.split() for line in shown.splitlines()]
    assert ["fusion.head", "–", "ridge"] in [line.split() for line in shown.splitlines()]
    assert f"{100 * load_bundle(earlier(runs)).accuracy(failed=1):.2f} %" in shown
    assert main(["runs", "diff", "toy", "toy@ffff", "--runs", str(runs)]) == 2
    assert "no bundles have that hash" in capsys.readouterr().err
    assert main(["runs", "diff", "toy", "other", "--runs", str(runs)]) == 2
    assert "runs there: toy" in capsys.readouterr().err


def test_clean_removes_what_no_mark_protects(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, stage = earlier(runs), next((runs / "toy").glob("teacher.*"))
    assert main(["runs", "clean", "--runs", str(runs)]) == 0
    assert "add --yes" in capsys.readouterr().out
    assert old.exists()
    assert stage.exists()
    assert main(["runs", "keep", f"toy@{old.name}", "--runs", str(runs)]) == 0
    assert main(["runs", "clean", "toy", "--yes", "--runs", str(runs)]) == 0
    assert old.exists()
    assert not stage.exists()
    (runs / "toy" / "bundles" / f"{old.name}.keep").unlink()
    assert main(["runs", "clean", "--yes", "--runs", str(runs)]) == 0
    assert not old.exists()
    assert (runs / "toy" / "teacher").exists()
    load_bundle(runs / "toy" / "bundle")
    capsys.readouterr()
    assert main(["runs", "clean", "--runs", str(runs)]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_a_written_experiment_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = tmp_path / "it's mine"
    (pictures / "cat").mkdir(parents=True)
    file = tmp_path / "mine.toml"
    assert main(["init", str(file), "--data", str(pictures), "--devices", "4"]) == 0
    experiment = load_experiment(file)
    expected = ["experiment.name=mine", "devices.count=4", "partition.parts=4", "data.reader=imagefolder"]
    assert experiment == load_experiment(None, [*expected, f'data.path="{pictures}"'])
    assert "[data]" in file.read_text()
    assert "size = 32" in file.read_text()
    assert "guarantees" in file.read_text()
    assert main(["init", str(file)]) == 2
    (tmp_path / "walk.csv").touch()
    assert main(["init", str(tmp_path / "walk.toml"), "--data", str(tmp_path / "walk.csv")]) == 0
    assert all(key in (tmp_path / "walk.toml").read_text() for key in ("columns = []", "window_s = 5.0", "group = "))


def test_a_terminal_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stdin", Terminal("\nwrn-10-1\n\n"))
    assert main(["init", str(tmp_path / "asked.toml")]) == 0
    assert load_experiment(tmp_path / "asked.toml") == load_experiment(
        None, ["experiment.name=asked", "teacher.model=wrn-10-1"]
    )


@pytest.mark.parametrize(
    ("files", "reader"),
    [
        (["data.npz"], "npz"),
        (["one.csv"], "csv"),
        (["train-labels-idx1-ubyte.gz"], "idx"),
        (["a.parquet"], "parquet"),
        (["data_batch_1"], "cifar"),
        (["dog/1.png"], "imagefolder"),
        (["1.png"], "--reader"),
        ([], "no such file"),
    ],
    ids=["npz", "csv", "idx", "parquet", "cifar", "imagefolder", "flat", "missing"],
)
def test_the_reader_follows_from_the_form_of_the_data(tmp_path: Path, files: list[str], reader: str) -> None:
    folder = tmp_path / "data"
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    if reader.isalpha():
        assert guess_reader(folder / files[0] if reader == "npz" else folder) == reader
    else:
        with pytest.raises(UsageError, match=reader):
            guess_reader(folder)


def test_an_inventory_is_written_for_the_devices_of_a_bundle(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from nonn.aggregator.inventory import load_inventory

    file = tmp_path / "nodes.toml"
    assert main(["serve", str(bundle.path), "--write-inventory", str(file), "--node-hosts", "pi-1"]) == 0
    assert [node.address for node in load_inventory(file, 2)] == ["pi-1:50061", "pi-1:50062"]
    assert f"nonn-device serve {bundle.path} --student 1 --port 50062 --host pi-1 --tls DIR" in capsys.readouterr().out
    assert main(["serve", str(bundle.path), "--write-inventory", str(file)]) == 2


def test_an_aggregator_says_what_to_try_next() -> None:
    shown = next_steps("127.0.0.1:1", "http://127.0.0.1:2", tls=True)
    assert "nonn predict 127.0.0.1:1 IMAGE --tls CLIENT_FOLDER" in shown
    assert shown.endswith("dashboard: http://127.0.0.1:2/")
