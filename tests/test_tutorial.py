"""The tutorials and the notebooks: every block and cell runs, in order, as a reader would run them.

With fewer samples, epochs and a weaker promise. Commands run in this process, servers and nodes in their own. `nonn up`
and the program that starts a cluster share one, since nine processes take seconds to start.
"""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nonn_sim.cli
import pytest

import nonn
import nonn.cli
from nonn.cluster import LocalCluster
from tests.fleets import Running
from tests.serving import TIMEOUT_S

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(python|sh|toml)\n(.*?)```", re.DOTALL)
SMALLER = {
    "tutorial": (
        (r'"train": \d+, "test": \d+', '"train": 24, "test": 8'),
        (r"\bepochs = \d+", "epochs = 1"),
        (r"accuracy>=0\.\d+", "accuracy>=0.01"),
        (r"wrn-10-0\.5", "wrn-10-0.25"),
    ),
    "tutorial-sensors": (
        (r"people, seconds = 6, 40", "people, seconds = 3, 8"),
        (r"\bepochs = \d+", "epochs = 1"),
        (r"person-5", "person-2"),
        (r"--count 3", "--count 1"),
    ),
}
ADDRESS = "127.0.0.1:50051"


class Reader:
    """Someone who does what the tutorial says, in one folder."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.open = contextlib.ExitStack()
        self.cluster: LocalCluster | None = None
        self.address = ADDRESS
        self.processes: dict[str, Running] = {}

    def python(self, text: str) -> None:
        """A file, if its first line names one; else a program that goes on from the one before."""
        text = text.replace(ADDRESS, self.address)
        if named := re.match(r"# (\w+\.\w+)\n", text):
            Path(named[1]).write_text(text)
        else:
            exec(compile(text, "tutorial", "exec"), self.names)

    toml = python

    def sh(self, text: str) -> None:
        """The commands, without those that install."""
        started = []
        for line in text.splitlines():
            line = line.replace(ADDRESS, self.address)
            program, *arguments = shlex.split(line, comments=True)
            if ">" in arguments or "|" in arguments:
                for name in [name for name in self.processes if name in arguments]:
                    self.processes.pop(name).end()  # the line starts this node anew
                line = line.replace("nonn-device", f"{sys.executable} -m nonn_device")
                subprocess.run(line, shell=True, check=True, timeout=TIMEOUT_S, stdout=subprocess.DEVNULL)
            elif program == "nonn-device":
                started.append(self.start(arguments[arguments.index("--id") + 1], "nonn_device", *arguments))
            elif program == "nonn" and arguments[0] == "serve":
                port = arguments.index("--port")
                self.address = self.start("serve", "nonn", *arguments[:port]).ready["address"]
            elif program == "python":
                runpy.run_path(arguments[0], run_name="__main__")
            elif program == "nonn" and arguments[0] == "up":
                assert nonn.cli.build_parser().parse_args(arguments)
                self.cluster = self.open.enter_context(LocalCluster(arguments[1]))
                self.address = self.cluster.address
            elif program == "nonn" and arguments[:2] == ["runs", "diff"]:
                (kept,) = Path("runs/mine/bundles").iterdir()
                assert nonn.cli.main([*arguments[:3], f"mine@{kept.name[:6]}"]) == 0
            elif program == "nonn":
                assert nonn.cli.main(arguments) == 0, line
            elif program == "nonn-sim":
                assert nonn_sim.cli.main(arguments) == 0, line
            else:
                assert program == "pip"
        assert all(process.ready["event"] == "ready" for process in started)

    def start(self, name: str, *command: str) -> Running:
        """A process that ends with the reader."""
        self.processes[name] = running = Running(Path(f"{name}.log").absolute(), *command)
        self.open.callback(running.close)
        return running


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    reader = Reader()
    monkeypatch.setattr(nonn, "LocalCluster", lambda bundle: contextlib.nullcontext(reader.cluster))
    with reader.open:
        yield reader
    sys.modules.pop("mynet", None)


def do(reader: Reader, document: str) -> None:
    text = (ROOT / "docs" / f"{document}.md").read_text()
    for pattern, smaller in SMALLER[document]:
        text, count = re.subn(pattern, smaller, text)
        assert count, pattern
    for language, block in BLOCK.findall(text):
        getattr(reader, language)(block)


@pytest.mark.slow
def test_every_block_of_the_tutorial_runs(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    do(reader, "tutorial")
    shown = capsys.readouterr().out
    assert "earlier bundles" in shown
    assert ["fusion.head", "mean-fill", "ridge"] in [line.split() for line in shown.splitlines()]
    assert reader.names["answer"].answered.tolist() == [False, True, True, False, True, False, False, True]


@pytest.mark.slow
def test_every_block_of_the_tutorial_for_sensors_runs(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    do(reader, "tutorial-sensors")
    assert reader.names["answer"].bundle == reader.names["bundle"].hash
    assert "accuracy" in capsys.readouterr().out


@pytest.mark.parametrize("notebook", sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")), ids=lambda p: p.stem)
def test_every_cell_of_a_notebook_runs(notebook: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(plt, "show", lambda: None)
    content, names = json.loads(notebook.read_text()), dict[str, Any]()
    cells = ["".join(cell["source"]) for cell in content["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] for cell in content["cells"] if cell["cell_type"] == "code")
    try:
        for number, cell in enumerate(cells):
            exec(compile(cell, f"{notebook.name}[{number}]", "exec"), names)
        assert plt.get_fignums()
    finally:
        plt.close("all")
    last = eval(cells[-1].splitlines()[-1], names)  # what the notebook shows at its end
    assert "missing: 3, 5" in last._repr_html_()
