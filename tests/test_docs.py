"""The fenced examples of README and docs/ hold: Python runs, command lines parse, TOML loads.

- ``python``: runs in a separate process, where 127.0.0.1:50051 is a live cluster and ``runs/digits`` a small run. One
  that trains runs in this process, which has torch, and on two devices. A fragment, which has a line ``...``, is only
  compiled. A block that needs a package that is not installed is skipped.
- ``sh``: each nonn, nonn-device and nonn-sim command goes through the program's own parser, ``--set`` through the
  experiment's loader; make targets, extras and files of the repository must exist. Nothing is run.
- ``toml``: the loader of that kind of file reads it; its keys say which kind.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import runpy
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import nonn_device.cli
import nonn_sim.cli
import pytest
from nonn_sim.placement_file import load_devices
from nonn_sim.scenario_file import load_scenario

import nonn.cli
import nonn.fleet.hosts
from nonn.aggregator.inventory import load_inventory
from nonn.aggregator.policy.file import load_policy
from nonn.bundle import Bundle
from nonn.config import load_experiment
from nonn.errors import NonnError
from nonn.experiment.methods import METHODS
from tests.serving import TIMEOUT_S, running_aggregator, running_node

NUM_DEVICES = 1
ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The blocks of these documents belong together; a test of its own runs them.
WHOLE = {
    "docs/extending.md": ("python", "toml"),
    "docs/tutorial.md": ("python", "toml"),
    "docs/tutorial-sensors.md": ("python", "toml"),
}
ADDRESS = "127.0.0.1:50051"
# In the block that trains: two devices instead of four, and small networks.
SMALLER = {
    '"devices.count=4", "partition.parts=4"': '"devices.count=2", "partition.parts=2"',
    '"teacher.epochs=1"': '"teacher.epochs=1", "teacher.model=wrn-10-0.25", "student.model=wrn-10-0.25"',
}
PROGRAMS = {"nonn": nonn.cli, "nonn-device": nonn_device.cli, "nonn-sim": nonn_sim.cli}
FENCE = re.compile(
    r"^(?P<indent> *)(?P<fence>`{3,})(?P<language>\w+)[^\n]*\n(?P<text>.*?)^ *(?P=fence) *$", re.M | re.S
)
TRACKED = ("benchmarks", "devices", "docs", "examples", "proto", "scripts", "simulator")


@dataclass(frozen=True)
class Block:
    """A fenced block; ``line`` is that of its first line of text."""

    document: str
    line: int
    text: str


def blocks(language: str) -> list[Any]:
    found = []
    for path in DOCUMENTS:
        markdown, name = path.read_text(), path.relative_to(ROOT).as_posix()
        for match in FENCE.finditer(markdown):
            if match["language"] == language and language not in WHOLE.get(name, ()):
                line = markdown[: match.start("text")].count("\n") + 1
                text = re.sub(rf"^{match['indent']}", "", match["text"], flags=re.M)
                found.append(pytest.param(Block(name, line, text), id=f"{name}:{line}"))
    return found


def commands(line: str) -> Iterator[list[str]]:
    """The commands of a line of shell, without comments, redirections and assignments."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|;&<>()")
    lexer.whitespace_split, lexer.commenters = True, "#"
    command: list[str] = []
    redirected = False
    for token in [*lexer, ";"]:
        if set(token) <= set("|;&()"):
            if command:
                yield command
            command = []
        elif set(token) <= set("<>"):
            redirected = True
        elif redirected or (not command and re.match(r"\w+=", token)):
            redirected = False
        else:
            command.append(token)


def problem(command: list[str]) -> str | None:
    program, arguments = command[0], command[1:]
    if program in PROGRAMS:
        PROGRAMS[program].build_parser()  # its modules must not be imported while the function is replaced
        said = io.StringIO()
        try:
            with (
                contextlib.redirect_stderr(said),
                contextlib.redirect_stdout(io.StringIO()),
                mock.patch("nonn.arguments.is_missing", return_value=False),  # documents name files of their readers
            ):
                parsed = PROGRAMS[program].build_parser().parse_args(arguments)
            if getattr(parsed, "overrides", None):
                file = ROOT / parsed.experiment if getattr(parsed, "experiment", None) else None
                load_experiment(file if file and file.exists() else None, parsed.overrides)
        except SystemExit as exc:
            return said.getvalue().strip().rpartition("\n")[2] if exc.code else None
        except NonnError as exc:
            return str(exc)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        return next((f"no target {name}" for name in arguments if name not in targets and "=" not in name), None)
    if program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        asked = re.findall(r"\[([\w,]+)\]", " ".join(arguments))
        return next((f"no extra {name}" for names in asked for name in names.split(",") if name not in extras), None)
    for argument in arguments:
        if argument.partition("/")[0] in TRACKED and "/" in argument and not (ROOT / argument).exists():
            return f"no file {argument}"
    return None


@pytest.mark.parametrize("block", blocks("sh"))
def test_the_commands_of_a_document_parse(block: Block) -> None:
    problems, start, line = [], block.line, ""
    for number, text in enumerate(block.text.splitlines(), block.line):
        start, line = (start, line) if line else (number, "")
        line += text.removesuffix("\\")
        if not text.endswith("\\"):
            found = [(command, problem(command)) for command in commands(line)]
            problems += [f"{block.document}:{start}: {shlex.join(x)}: {wrong}" for x, wrong in found if wrong]
            line = ""
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(
    ("line", "wrong"),
    [
        ("nonn fly", "invalid choice: 'fly'"),
        ("nonn-device serve BUNDLE  # of which student?", "--student"),
        ("X=1 nonn-sim run --bundel=b --bundle b scenario.toml | head", "--bundel"),
        ("nonn run examples/digits.toml --set distill.epoch=1", "did you mean 'distill.epochs'"),
        ("nonn run examples/no.toml > log; make tset", "no target tset"),
        ("pip install 'nonn[train,fun]'", "no extra fun"),
        ("cp devices/pi/none.toml .", "no file devices/pi/none.toml"),
    ],
)
def test_a_wrong_command_is_found(line: str, wrong: str) -> None:
    assert wrong in " ".join(filter(None, map(problem, commands(line))))


def load(path: Path) -> None:
    tree = tomllib.loads(path.read_text())
    loaders = {
        "scenario": load_scenario,
        "node": lambda path: load_inventory(path, 1 + max(node["student"] for node in tree["node"])),
        "device": load_devices,
        "aggregators": nonn.fleet.hosts.load_hosts,
        "policy": load_policy,  # a scenario may have this table too
    }
    next((loader for key, loader in loaders.items() if key in tree), load_experiment)(path)


@pytest.mark.parametrize("block", blocks("toml"))
def test_the_configuration_of_a_document_loads(block: Block, tmp_path: Path) -> None:
    (tmp_path / "example.toml").write_text(block.text)
    try:
        load(tmp_path / "example.toml")
    except (NonnError, tomllib.TOMLDecodeError) as exc:
        pytest.fail(f"{block.document}:{block.line}: {exc}")


@pytest.mark.parametrize("text", ["[policy]\ndeadline = 1", "[distill]\nepoch = 1", "[[node]]\nstudent = 0", "x ="])
def test_a_wrong_configuration_is_found(text: str, tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"README\.md:7: "):
        test_the_configuration_of_a_document_loads(Block("README.md", 7, text), tmp_path)


@pytest.fixture(scope="module")
def address(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_node(bundle.path, 0) as (_, node):
        folder = tmp_path_factory.mktemp("aggregator")
        with running_aggregator(bundle.path, [node["address"]], folder, "--reflection") as ready:
            yield ready["address"]


@pytest.mark.parametrize("block", blocks("python"))
def test_the_program_of_a_document_runs(
    block: Block, address: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile(block.text, block.document, "exec")
    for name in re.findall(r"^ *(?:import|from) (\w+)", block.text, re.M):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    if "..." in block.text.split():
        return
    trains, text = "nonn.study(" in block.text, block.text.replace(ADDRESS, address)
    for written, smaller in SMALLER.items() if trains else ():
        assert written in text
        text = text.replace(written, smaller)
    program = tmp_path / block.document.replace("/", "_")
    program.write_text("\n" * (block.line - 1) + text)  # a traceback names the line
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    if "runs/digits" in block.text:
        (tmp_path / "runs").mkdir()
        (tmp_path / "runs/digits").symlink_to(request.getfixturevalue("tiny_runs") / "tiny")
    if trains:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(METHODS, "_own", dict(METHODS._own))  # it adds methods
        runpy.run_path(program.name, run_name="__main__")
        return
    done = subprocess.run(
        [sys.executable, program.name], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, f"{block.document}:{block.line}:\n{done.stderr}"
