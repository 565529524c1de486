"""benchmarks/lease.py from end to end on the CPU, with a few images: packed, trained, taken home, and resumed."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import lease
from nonn.config import load_experiment
from nonn.data import load_data
from nonn.data.parts import unpack
from nonn.errors import ConfigError, DataError
from nonn.experiment.training import Trained, train
from nonn.experiment.weights import partition_of
from nonn.experiment.workspace import Workspace

PLAN = """
experiment = "examples/cifar100.toml"
set = [
    "data.held_out=0.2", "data.crop=1", "distill.teacher_views=2", "distill.batch=16", "devices.count=2",
    "teacher.model='wrn-10-0.25'", "teacher.epochs=1", "student.model='wrn-10-0.25'",
]
pilot_set = ["distill.epochs=1"]
pilot_share = 0.9

[pilots]
as-it-is = []
alone = ["distill.objectives.ce.on='device'"]

[[groups]]
name = "small"
share = 1.0
rows = ["ours", "copies"]
epochs = 1
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan and 80 + 10 images of 8×8 in four classes."""
    folder = tmp_path_factory.mktemp("lease")
    rng = np.random.default_rng(0)
    for split, number in (("train", 80), ("test", 10)):
        rows = []
        for pixels in rng.integers(0, 256, (number, 8, 8, 3), dtype=np.uint8):
            target = io.BytesIO()
            Image.fromarray(pixels).save(target, "PNG")
            rows.append({"bytes": target.getvalue(), "path": ""})
        labels = pa.array([i % 4 for i in range(number)], pa.int64())
        pq.write_table(pa.table({"img": rows, "fine_label": labels}), folder / f"{split}.parquet")
    (folder / "plan.toml").write_text(PLAN)
    return folder


def command(place: Path, *arguments: str) -> int:
    return lease.main(["--plan", str(place / "plan.toml"), "--set", f"data.path={place}", *arguments])


@pytest.fixture(scope="module")
def parts(place: Path) -> Sequence[Path]:
    assert command(place, "--pack", str(place / "parts"), "--shares", "1", "2", "1") == 0
    return sorted((place / "parts").glob("*.npz"))


def test_unpacked_parts_are_the_data_in_any_order(place: Path, parts: Sequence[Path]) -> None:
    plan = lease.read_plan(place / "plan.toml")
    data = load_data(load_experiment(Path(plan.experiment), [*plan.set, f"data.path={place}"]).data, 0)
    again = unpack(parts[::-1])
    for name in ("train", "held_out"):
        assert np.array_equal(getattr(again, name).inputs, getattr(data, name).inputs)
        assert np.array_equal(getattr(again, name).labels, getattr(data, name).labels)
    assert np.array_equal(again.mean, data.mean)
    assert again.classes == data.classes


def test_some_parts_are_fewer_images_with_the_statistics_of_all(parts: Sequence[Path]) -> None:
    some, everything = unpack(parts[:1]), unpack(parts)
    assert (len(some.train), len(everything.train)) == (16, 64)
    assert np.array_equal(some.mean, everything.mean)


def test_the_first_part_is_needed(parts: Sequence[Path]) -> None:
    with pytest.raises(DataError, match=r"part-0\.npz, which has the held-out split, is missing"):
        unpack(parts[1:])


def test_a_part_that_was_cut_off_is_named(parts: Sequence[Path], tmp_path: Path) -> None:
    (tmp_path / "part-1.npz").write_bytes(parts[1].read_bytes()[:500])
    with pytest.raises(DataError, match=r"part-1\.npz: not a readable part .*; send it again"):
        unpack([parts[0], tmp_path / "part-1.npz"])


@pytest.fixture(scope="module")
def out(place: Path, parts: Sequence[Path]) -> Path:
    folder = place / "out"
    arguments = ["--parts", *map(str, parts), "--minutes", "30", "--runs", str(place / "runs"), "--out", str(folder)]
    assert command(place, *arguments) == 0
    return folder


def test_every_row_comes_home_with_its_students(out: Path) -> None:
    results = json.loads((out / "lease.json").read_text())
    assert results["rows"].keys() == {"small/ours-0", "small/copies-0"}
    assert results["pilots"].keys() == {"as-it-is", "alone"}
    assert all(len(row["held_out_by_failures"]) == 2 for row in results["rows"].values())
    with zipfile.ZipFile(out / "students-0.zip") as archive:
        assert {*archive.namelist()} >= {"small/ours-0.safetensors", "small/copies-0.safetensors"}
        archive.extract("small/ours-0.safetensors", out)
    assert partition_of(out / "small" / "ours-0.safetensors") is not None


def test_every_pilot_of_the_plan_trains_from_what_is_stored_of_the_teacher(place: Path, parts: Sequence[Path]) -> None:
    plan = Path(lease.__file__).with_suffix(".toml").read_text()
    pilots = plan[plan.index("[pilots]") : plan.index("[[groups]]")]
    start, end = PLAN.index("[pilots]"), PLAN.index("[[groups]]")
    (place / "pilots.toml").write_text(PLAN[:start] + pilots + PLAN[end:].replace(', "copies"', ""))
    arguments = ["--parts", *map(str, parts), "--runs", str(place / "pilots"), "--out", str(place / "pilots-out")]
    assert command(place, "--plan", str(place / "pilots.toml"), *arguments) == 0
    found = json.loads((place / "pilots-out" / "lease.json").read_text())["pilots"]
    assert found.keys() == lease.read_plan(place / "pilots.toml").pilots.keys() > {"srrl"}


def test_the_next_stay_does_only_what_is_missing(
    place: Path, parts: Sequence[Path], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = json.loads((out / "lease.json").read_text())
    del results["rows"]["small/copies-0"]
    (out / "lease.json").write_text(json.dumps(results))
    fresh = place / "fresh"
    assert command(place, "--parts", *map(str, parts), "--runs", str(fresh), "--out", str(out)) == 0
    printed = capsys.readouterr().out
    assert "small/copies-0: held out" in printed
    assert "small/ours-0: held out" not in printed
    assert "pilot as-it-is:" not in printed


def test_results_of_fewer_images_are_not_compared(
    place: Path, parts: Sequence[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = {"train": 16, "rows": {"small/ours-0": {}}, "pilots": {"alone": [1.0, 1.0]}, "image_us": {}}
    (tmp_path / "lease.json").write_text(json.dumps(done))
    arguments = ["--parts", *map(str, parts), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path)]
    assert command(place, *arguments) == 0
    results = json.loads((tmp_path / "lease.json").read_text())
    assert results["pilots"]["alone"] != [1.0, 1.0]
    assert results["rows"]["small/ours-0"]["epochs"] == 1


def test_a_row_that_fails_costs_neither_the_others_nor_the_exit_code(
    place: Path,
    parts: Sequence[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def failing(space: Workspace) -> Trained:
        if "/ours-0" in space.place:
            raise DataError("a damaged disk")
        return train(space)

    monkeypatch.setattr("benchmarks.lease.train", failing)
    arguments = ["--parts", *map(str, parts), "--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "out")]
    assert command(place, *arguments) == 1
    results = json.loads((tmp_path / "out" / "lease.json").read_text())
    assert results["rows"].keys() == {"small/copies-0"}
    assert "small/ours-0 failed: a damaged disk" in capsys.readouterr().out


def test_damaged_results_and_archives_are_named(place: Path, parts: Sequence[Path], tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text("{")
    with pytest.raises(DataError, match=r"lease\.json: not readable results"):
        lease._done(tmp_path / "lease.json")
    (tmp_path / "students-0.zip").write_bytes(b"PK cut off")
    (tmp_path / "x").write_bytes(b"x")
    with pytest.raises(DataError, match=r"students-0\.zip: not a readable archive"):
        lease.Outbox(tmp_path, 10_000).add("x", tmp_path / "x")


def test_without_time_nothing_is_begun(place: Path, parts: Sequence[Path], tmp_path: Path) -> None:
    done = {
        "train": 64,
        "rows": {},
        "image_us": {"wrn-10-0.25": {"separate": 10.0}},
        "pilots": {"as-it-is": [0.5, 0.5], "alone": [0.4, 0.4]},
    }
    (tmp_path / "lease.json").write_text(json.dumps(done))
    arguments = ["--parts", *map(str, parts), "--minutes", "0.01", "--out", str(tmp_path)]
    assert command(place, *arguments, "--runs", str(tmp_path / "runs")) == 0
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"copies"]', '"copie"]', "'copie' is not a method"),
        ("share = 1.0", "shares = 1.0", "not a plan"),
        ("experiment = ", "experimant = ", "not a plan"),
    ],
)
def test_a_plan_with_a_mistake_is_refused(place: Path, tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in PLAN
    (tmp_path / "plan.toml").write_text(PLAN.replace(old, new))
    with pytest.raises(ConfigError, match=message):
        lease.read_plan(tmp_path / "plan.toml")


def test_an_unknown_group_is_refused(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(place, "--only", "smal") == 2
    assert "no group or pilot smal" in capsys.readouterr().err


def test_archives_stay_below_the_limit(tmp_path: Path) -> None:
    box = lease.Outbox(tmp_path / "out", 20_000)
    for name, size in (("a", 9_000), ("b", 9_000), ("c", 3_000), ("huge", 30_000)):
        (tmp_path / name).write_bytes(np.random.default_rng(0).bytes(size))
        box.add(name, tmp_path / name)
    archives = sorted((tmp_path / "out").glob("*.zip"))
    names = [zipfile.ZipFile(archive).namelist() for archive in archives]
    assert all(archive.stat().st_size <= 20_000 for archive in archives)
    assert sorted(name for inside in names for name in inside) == ["a", "b", "c"]
