"""CONTRIBUTING.md lists every package, in the order that the import contract keeps."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def _listed() -> list[str]:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    return re.findall(r"^\| `nonn/([a-z_]+)(?:/|\.py)` \|", text, re.MULTILINE)


def _layers() -> list[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (contract,) = [c for c in contracts if c.get("containers") == ["nonn"]]
    return [name for layer in contract["layers"] for name in layer.split(" | ")]


def test_the_map_has_the_order_of_the_import_contract() -> None:
    assert _listed() == _layers()


def test_every_package_and_module_at_the_top_is_on_the_map() -> None:
    found = {
        path.stem for path in (ROOT / "nonn").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }
    assert found - {"__init__"} == set(_listed())


def test_every_path_on_the_map_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:nonn|devices|simulator|proto|benchmarks|tests|scripts)/[\w/.]*)`", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_at_most_ten_modules_lie_loose_at_the_top_of_nonn() -> None:
    assert len([path for path in (ROOT / "nonn").glob("*.py") if path.name != "__init__.py"]) <= 10


def test_a_class_name_of_nonn_stands_for_one_thing() -> None:
    files = [path for path in (ROOT / "nonn").rglob("*.py") if path.parent.name != "v1"]
    names = [name for path in files for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(), re.MULTILINE)]
    assert len(names) > 300
    assert sorted({name for name in names if names.count(name) > 1}) == []
