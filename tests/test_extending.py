"""docs/extending.md: its modules and files work, by path and as an installed package."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

import nonn
from nonn.config import load_experiment
from nonn.data import READERS
from nonn.distill.objectives.registry import objective_named
from nonn.errors import BundleError, ConfigError, PartitionError
from nonn.experiment.keys import stage_inputs
from nonn.fusion import HEADS, Head, ZeroFill, head_from_arrays
from nonn.partition import METHODS, load_partitioner
from nonn.reliability.laws import parse_law
from nonn.teacher.dotted import from_factory

PAGE = (Path(__file__).parent.parent / "docs" / "extending.md").read_text()
MODULES = {match[1]: match[2] for match in re.finditer(r"```python\n(# (?:\w+)\.py.*?\n)(.*?)```", PAGE, re.DOTALL)}
EXPERIMENT, PACKAGE = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, with the modules and files of the page; they are forgotten afterwards."""
    names = []
    for head, text in MODULES.items():
        names.append(head.removeprefix("# ").partition(".py")[0])
        (tmp_path / f"{names[-1]}.py").write_text(text)
    digits = load_digits()
    rows = np.column_stack([digits.target, digits.images.reshape(-1, 64) * 15])[:500]
    np.savetxt(tmp_path / "pixels.csv", rows, fmt="%d", delimiter=",")
    (tmp_path / "extended.toml").write_text(EXPERIMENT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in names:
        sys.modules.pop(name, None)


def test_an_experiment_of_nothing_but_own_parts_runs(folder: Path) -> None:
    result = nonn.run("extended.toml")
    manifest = result.bundle.manifest
    assert manifest.data["name"] == "pixels"
    assert [part[:3] for part in manifest.parts] == [(0, 2, 4), (1, 3, 5)]
    assert manifest.provenance["config"]["distill"]["objectives"]["others"]["losses:cosine"]["args"] == {"power": 2}
    small, bridge = 8 * 10 + 8 * 73, (8 + 2) * 32
    assert {student.params for student in manifest.students} == {small + bridge}
    assert isinstance(result.bundle.head, ZeroFill)
    history = (folder / "runs/extended/students/stage.json").read_text()
    assert "losses:cosine" in history


def test_the_same_names_of_an_installed_package_are_found(folder: Path) -> None:
    points = tomllib.loads(PACKAGE)["project"]["entry-points"]
    info = folder / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    lines = [f"[{group}]\n" + "\n".join(f"{k} = {v}" for k, v in names.items()) for group, names in points.items()]
    (info / "entry_points.txt").write_text("\n".join(lines))
    sys.path.append(str(folder))
    experiment = load_experiment(
        None,
        [
            "data.reader=pixels",
            "partition.method=stripes",
            "fusion.head=dropped",
            "distill.objectives.cosine={weight=1}",
        ],
    )
    assert READERS.load("pixels", "data.reader").__module__ == "pixels"
    assert load_partitioner("stripes").__module__ == "cuts"
    assert "stripes" in METHODS
    assert HEADS.load("dropped", "fusion.head").__module__ == "heads"
    assert objective_named("cosine", experiment.distill).needs == ()
    assert sum(p.numel() for p in from_factory("student", "small", {"in_channels": 1}).parameters()) == 160 + 2320
    law = parse_law("rain p_rain=0.5 wet=1 dry=0", 2)
    assert law.probabilities().tolist() == [0.5, 0, 0, 0.5]


def test_a_head_of_a_new_class_is_loaded_by_its_entry_point_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Head, "_heads", dict(Head._heads))
    (folder / "far.py").write_text("from nonn.fusion import ZeroFill\nclass Far(ZeroFill):\n    kind = 'far'\n")
    arrays = {"kind": np.array("far"), "widths": np.array([1]), "weight": np.ones((1, 2)), "bias": np.ones(2)}
    with pytest.raises(BundleError, match="unknown kind 'far'"):
        head_from_arrays(arrays)
    with pytest.raises(BundleError, match="unknown kind 'far:Far'"):
        head_from_arrays(arrays | {"kind": np.array("far:Far")})
    info = folder / "far-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[nonn.heads]\nfar = far:Far\n")
    sys.path.append(str(folder))
    assert head_from_arrays(arrays).kind == "far"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("partition.method=nowhere:stripes", "No module named 'nowhere'"),
        ("partition.method=cuts:strips", "module 'cuts' has no attribute 'strips'"),
        ("data.reader=pixel", r"unknown; choose one of: digits, .* \(or package.module:name\)"),
        ("fusion.head=ridg", "did you mean 'ridge'"),
        ("distill.objectives.losses:cosin={weight=1}", "'losses:cosin': .* no attribute 'cosin'"),
        ("distill.objectives.losses:cosine={wait=1}", "did you mean 'distill.objectives.others.losses:cosine.weight'"),
        ("distill.objectives.cosin={weight=1}", "unknown key 'distill.objectives.cosin'"),
    ],
)
def test_a_wrong_name_is_found_when_the_file_is_read(folder: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_experiment(None, [override])


def test_what_is_not_a_partition_is_refused(folder: Path) -> None:
    from nonn.partition import make_partition
    from nonn.partition.graph import FilterGraph

    (folder / "cuts.py").write_text("def nothing(graph, parts, seed):\n    return [[0]]\n")
    config = load_experiment(None, ["partition.method=cuts:nothing", "partition.parts=2"]).partition
    with pytest.raises(PartitionError, match="'cuts:nothing': gave a list, not a Partition"):
        make_partition(config, FilterGraph(np.zeros((4, 4)), "none"), 0)


def test_a_changed_file_is_a_changed_input(folder: Path) -> None:
    config: Any = load_experiment(None, ["partition.method=cuts:stripes"]).partition
    before = stage_inputs(config)
    assert stage_inputs(config) == before
    with (folder / "cuts.py").open("a") as file:
        file.write("# changed\n")
    assert stage_inputs(config) != before
    assert "code" not in stage_inputs(load_experiment(None).partition)
