"""``nonn/__init__.py``: the names that programs use, and how light it is."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nonn
from nonn import errors

# The promise of docs/api.md: a name leaves this list only after a release in which it warns.
PUBLIC = {
    *errors.__all__,
    "Answer",
    "AsyncClient",
    "Bundle",
    "Client",
    "Experiment",
    "LocalCluster",
    "Prediction",
    "Report",
    "Result",
    "Study",
    "__version__",
    "build_report",
    "load",
    "load_experiment",
    "run",
    "study",
}
TRAINING = {"Result", "run", "study"}


def _python(program: str) -> str:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_the_document_lists_the_public_names() -> None:
    text = (Path(__file__).parent.parent / "docs" / "api.md").read_text().partition("## What is stable")[0]
    rows = "".join(line for line in text.splitlines() if line.startswith("|"))
    named = set(re.findall(r"`nonn\.(\w+)", rows))
    assert named == PUBLIC - {"__version__", *errors.__all__} | {"NonnError"}


def test_the_list_of_public_names_is_pinned() -> None:
    assert set(nonn.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(nonn, name)
    assert isinstance(value, str) or inspect.getdoc(value)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'nonn' has no attribute 'loads'"):
        _ = nonn.loads


def test_dir_lists_what_is_not_imported_yet() -> None:
    assert _python("import nonn; print('LocalCluster' in dir(nonn))") == "True\n"


def test_a_bare_import_loads_no_dependency() -> None:
    program = "import nonn, sys; print(sorted({'numpy', 'grpc', 'torch', 'onnxruntime', 'rich'} & set(sys.modules)))"
    assert _python(program) == "[]\n"


@pytest.mark.parametrize("name", ["Client", "LocalCluster"])
def test_grpc_logs_errors_only(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it prints a line when a server closes an idle connection. It reads the variable when it is imported."""
    program = (
        "import os, sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'grpc': print(os.environ.get('GRPC_VERBOSITY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        f"import nonn; nonn.{name}"
    )
    monkeypatch.delenv("GRPC_VERBOSITY", raising=False)
    assert _python(program) == "ERROR\n"


def test_nothing_public_loads_torch_but_training() -> None:
    names = sorted(PUBLIC - TRAINING)
    program = f"import nonn, sys; [getattr(nonn, name) for name in {names}]; print('torch' in sys.modules)"
    assert _python(program) == "False\n"


def test_a_bare_import_takes_less_than_30_ms() -> None:
    program = "import time; before = time.process_time(); import nonn; print(time.process_time() - before)"
    assert min(float(_python(program)) for _ in range(5)) < 0.030
