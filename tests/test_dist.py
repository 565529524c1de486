"""The parts of ``make dist`` that need no network; installing the wheel is left to the command itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from nonn import __version__
from scripts.dist import DistError, build, check_sdist, check_wheel, package_files

METADATA = f"nonn-{__version__}.dist-info/METADATA"


@pytest.fixture(scope="module")
def files() -> set[str]:
    return package_files()


@pytest.fixture(scope="module")
def in_sdist(files: set[str]) -> list[str]:
    folders = {"nonn": "nonn", "nonn_device": "devices/nonn_device", "nonn_sim": "simulator/nonn_sim"}
    sources = [f"{folders[name.partition('/')[0]]}/{name.partition('/')[2]}" for name in files]
    more = [
        "pyproject.toml",
        "constraints.txt",
        "Makefile",
        "README.md",
        "LICENSE",
        "CHANGELOG.md",
        "devices/pi/site.yml",
    ]
    more += [f"{folder}/x" for folder in ("benchmarks", "docs", "examples", "proto", "scripts", "tests")]
    return [f"nonn-{__version__}/{name}" for name in [*sources, *more]]


def test_the_packages_have_types_templates_pages_and_stubs_and_no_tests(files: set[str]) -> None:
    check_wheel([*files, METADATA], files)
    assert not [name for name in files if Path(name).name.startswith(("test_", "conftest"))]


@pytest.mark.parametrize("lost", ["nonn/py.typed", "nonn_device/cli.py", "nonn_sim/__init__.py"])
def test_a_wheel_that_lacks_a_file_is_refused(files: set[str], lost: str) -> None:
    with pytest.raises(DistError, match=f"the wheel lacks {lost}"):
        check_wheel([*files - {lost}, METADATA], files)


def test_a_wheel_of_a_tree_without_a_template_is_refused(files: set[str]) -> None:
    without = {name for name in files if not name.endswith(".j2")}
    with pytest.raises(DistError, match=r"lacks \.html\.j2"):
        check_wheel(without, without)


@pytest.mark.parametrize("name", ["tests/conftest.py", "nonn/old.py", "nonn-9.9.dist-info/METADATA"])
def test_a_wheel_with_a_file_of_nothing_is_refused(files: set[str], name: str) -> None:
    with pytest.raises(DistError, match=f"should not have {name}"):
        check_wheel([*files, name], files)


@pytest.mark.parametrize("lost", ["constraints.txt", "tests/x", "devices/nonn_device/cli.py"])
def test_an_sdist_that_lacks_a_file_is_refused(files: set[str], in_sdist: list[str], lost: str) -> None:
    check_sdist(in_sdist, files)
    with pytest.raises(DistError, match="the sdist lacks"):
        check_sdist([name for name in in_sdist if name != f"nonn-{__version__}/{lost}"], files)


@pytest.mark.slow
def test_wheel_and_sdist_are_built_and_have_what_they_should(tmp_path: Path) -> None:
    (tmp_path / "nonn-0.0.1.tar.gz").touch()
    wheel, sdist = build(tmp_path)
    assert {path.name for path in tmp_path.glob("nonn-*")} == {wheel.name, sdist.name}
    assert wheel.name == f"nonn-{__version__}-py3-none-any.whl"
