"""docs/tutorial.md and the notebooks: every block and cell runs, in order, as a reader would run them.

With fewer pictures, epochs and a weaker promise. Programs run in this process. `nonn up` and the program that starts a
cluster share one, since nine processes take seconds to start.
"""

from __future__ import annotations

import contextlib
import json
import re
import runpy
import shlex
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

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"```(python|sh|toml)\n(.*?)```", re.DOTALL)
SMALLER = (
    (r'"train": \d+, "test": \d+', '"train": 24, "test": 8'),
    (r"\bepochs = \d+", "epochs = 1"),
    (r"accuracy>=0\.\d+", "accuracy>=0.01"),
    (r"wrn-10-0\.5", "wrn-10-0.25"),
)
ADDRESS = "127.0.0.1:50051"


class Reader:
    """Someone who does what the tutorial says, in one folder."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.open = contextlib.ExitStack()
        self.cluster: LocalCluster | None = None

    def python(self, text: str) -> None:
        """A file, if its first line names one; else a program that goes on from the one before."""
        if named := re.match(r"# (\w+\.\w+)\n", text):
            Path(named[1]).write_text(text)
        else:
            exec(compile(text, "tutorial", "exec"), self.names)

    toml = python

    def sh(self, text: str) -> None:
        """The commands, without those that install."""
        for line in text.splitlines():
            address = self.cluster.address if self.cluster else ADDRESS
            program, *arguments = shlex.split(line.replace(ADDRESS, address), comments=True)
            if program == "python":
                runpy.run_path(arguments[0], run_name="__main__")
            elif program == "nonn" and arguments[0] == "up":
                assert nonn.cli.build_parser().parse_args(arguments)
                self.cluster = self.open.enter_context(LocalCluster(arguments[1]))
            elif program == "nonn":
                assert nonn.cli.main(arguments) == 0, line
            elif program == "nonn-sim":
                assert nonn_sim.cli.main(arguments) == 0, line
            else:
                assert program == "pip"


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    reader = Reader()
    monkeypatch.setattr(nonn, "LocalCluster", lambda bundle: contextlib.nullcontext(reader.cluster))
    with reader.open:
        yield reader
    sys.modules.pop("mynet", None)


def test_every_block_of_the_tutorial_runs(reader: Reader, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    for pattern, smaller in SMALLER:
        text, count = re.subn(pattern, smaller, text)
        assert count, pattern
    for language, block in BLOCK.findall(text):
        getattr(reader, language)(block)
    assert reader.names["answer"].answered.tolist() == [False, True, True, False, True, False, False, True]
    assert "earlier bundles" in capsys.readouterr().out


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
