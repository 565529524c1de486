"""CONTRIBUTING.md lists every package, in the order that the import contract keeps."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

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


def test_every_subpackage_is_in_the_row_of_its_package() -> None:
    rows = dict(re.findall(r"^\| `nonn/([a-z_]+)/` \| (.*) \|$", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE))
    found = [path.parent.relative_to(ROOT / "nonn") for path in (ROOT / "nonn").glob("*/*/__init__.py")]
    assert found
    assert [str(path) for path in found if f"`{path.name}/`" not in rows[path.parent.name]] == []


def test_every_folder_at_the_top_is_on_the_map() -> None:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git repository")
    folders = {name.partition("/")[0] for name in listing.stdout.splitlines() if "/" in name}
    assert {"nonn", "docs"} <= folders
    named = re.findall(r"`(\w+)/[\w/.]*`", (ROOT / "CONTRIBUTING.md").read_text())
    assert {name for name in folders if not name.startswith(".")} - set(named) == set()


def _maps() -> dict[Path, list[str]]:
    """The modules that docstrings of packages list: a literal block, or a table without a header, a line for each."""
    found = {}
    for folder in ("nonn", "devices", "simulator"):
        for file in (ROOT / folder).rglob("__init__.py"):
            text = ast.get_docstring(ast.parse(file.read_text()), clean=False) or ""
            names = re.findall(r"^    ([a-z_]+/?) {2,}\S", text, re.MULTILINE)
            if len(re.findall(r"^=+ +=", text, re.MULTILINE)) == 2:
                names += re.findall(r"^``([a-z_]+)`` {2,}\S", text, re.MULTILINE)
            if names:
                found[file.parent] = names
    return found


@pytest.mark.parametrize("package", _maps(), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_map_of_a_package_has_all_of_its_modules(package: Path) -> None:
    modules = {path.stem for path in package.glob("*.py") if not path.name.startswith("_")}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert sorted(_maps()[package]) == sorted(modules | packages)


def test_every_path_on_the_map_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:nonn|devices|simulator|proto|benchmarks|tests|scripts)/[\w/.]*)`", text)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_a_module_with_an_underscore_is_imported_in_its_package_only() -> None:
    imported, wrong = 0, []
    for package in (ROOT / "nonn", ROOT / "devices" / "nonn_device", ROOT / "simulator" / "nonn_sim"):
        for path in package.rglob("*.py"):
            for module in re.findall(r"^ *(?:from|import) (nonn[\w.]*)\._[a-z]", path.read_text(), re.MULTILINE):
                imported += 1
                place = ".".join(path.relative_to(package.parent).parent.parts)
                if not f"{place}.".startswith(f"{module}."):
                    wrong.append(f"{path.relative_to(ROOT)}: a helper of {module}")
    assert imported
    assert wrong == []


def test_at_most_ten_modules_lie_loose_at_the_top_of_nonn() -> None:
    assert len([path for path in (ROOT / "nonn").glob("*.py") if path.name != "__init__.py"]) <= 10


def test_a_class_name_stands_for_one_thing_in_all_three_packages() -> None:
    packages = [ROOT / name for name in ("nonn", "devices/nonn_device", "simulator/nonn_sim")]
    files = [path for package in packages for path in package.rglob("*.py") if path.parent.name != "v1"]
    names = [name for path in files for name in re.findall(r"^class ([A-Z]\w*)", path.read_text(), re.MULTILINE)]
    assert len(names) > 300
    assert sorted({name for name in names if names.count(name) > 1}) == []
