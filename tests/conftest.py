from __future__ import annotations

import fcntl
import functools
import gc
import itertools
import logging
import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from numpy.typing import NDArray

from nonn.bundle import Bundle
from nonn.cluster import LocalCluster
from nonn.config import Experiment, load_experiment
from nonn.experiment import bundling
from nonn.experiment.run import run
from nonn.export import onnx_file
from nonn.security.authority import Authority
from tests.pairing import fleet
from tests.reports import without_pages
from tests.toys import TINY, toy_bundle, toy_data

# The terminal and the network in which tests are started decide nothing, here or in the processes that they start.
os.environ["COLUMNS"] = "160"
for name in ("FORCE_COLOR", "NO_COLOR", "PYTHON_COLORS", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)
for name in ("no_proxy", "NO_PROXY"):
    os.environ[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1", "localhost", "10.0.0.0/8")))

# A shell that runs tests in the background ignores Ctrl-C and hang-ups for them; the processes of tests must not.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

# Tests have more architectures than a run, and to trace one takes seconds.
onnx_file._KEPT = 64
_trace = onnx_file._trace


def _trace_with_one_registry(network: Any, input_shape: Any) -> Any:
    """As ``onnx_file`` traces; the exporter's table of operators, a fifth of the time, is made once a process."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    if not hasattr(ONNXRegistry.from_torchlib, "cache_info"):
        ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore
    return _trace(network, input_shape)


onnx_file._trace = _trace_with_one_registry

# A busy machine is no failure.
settings.register_profile("nonn", deadline=None)
settings.load_profile("nonn")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leaves modules without a test that is marked alone unread where only such tests run: it saves seconds."""
    if config.option.markexpr == "alone" and collection_path.suffix == ".py":
        return True if "mark.alone" not in collection_path.read_text(encoding="utf-8") else None
    return None


def pytest_configure(config: pytest.Config) -> None:
    """Workers get files in the order of ``pytest_collection_modifyitems``."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test first, then by number of tests: at the end no worker waits long for another one."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    tests = Counter(item.path for item in items)
    items.sort(key=lambda item: (item.path not in slow, -tests[item.path]))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Keeps the garbage collector from searching modules and collected tests again and again: it took a twelfth."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(autouse=True)
def no_log_of_an_earlier_test() -> Iterator[None]:
    """Removes a log handler that a test has set up: it writes to that test's standard error, which is closed."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [h for h in root.handlers if type(h) is logging.StreamHandler and h not in before]:
        root.removeHandler(handler)
        root.setLevel(level)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """An authority and the certificate of its aggregator."""
    return fleet(tmp_path)


@pytest.fixture(scope="session")
def tiny() -> Experiment:
    return load_experiment(None, TINY)


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory: pytest.TempPathFactory, tiny: Experiment) -> Path:
    """A folder of runs in which the tiny experiment is finished. Copy it before changing it.

    The first worker that needs it trains it; every worker has a copy.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with (shared / "tiny.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "tiny-runs").exists():
            run(tiny, runs=shared / "tiny-unfinished")
            (shared / "tiny-unfinished").rename(shared / "tiny-runs")
    return shutil.copytree(shared / "tiny-runs", tmp_path_factory.mktemp("runs") / "runs")


@pytest.fixture(scope="session")
def tiny_bundle(tiny_runs: Path) -> Bundle:
    from nonn.bundle import load_bundle

    return load_bundle(tiny_runs / "tiny" / "bundle")


@pytest.fixture
def exported_before(monkeypatch: pytest.MonkeyPatch, tiny_bundle: Bundle) -> None:
    """Takes the ONNX files of the tiny bundle for the same students, where the export is not what is tested."""
    files = itertools.cycle(tiny_bundle.student_path(i).read_bytes() for i in range(4))
    monkeypatch.setattr(bundling, "export_onnx", lambda *_: next(files))


@pytest.fixture
def no_pages() -> Iterator[None]:
    """Reports have no page, where the page is not what is tested."""
    with without_pages():
        yield


@pytest.fixture(scope="module")
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A toy bundle of as many devices as ``NUM_DEVICES`` of the test's module says."""
    return toy_bundle(tmp_path_factory.mktemp("toy") / "bundle", num_devices=request.module.NUM_DEVICES)


@pytest.fixture(scope="module")
def inputs() -> NDArray[Any]:
    """The test split of a toy bundle, whose features it has."""
    return toy_data(200, seed=3)[0]


@pytest.fixture(scope="module")
def cluster(bundle: Bundle) -> Iterator[LocalCluster]:
    """Real processes that serve the bundle."""
    with LocalCluster(bundle.path) as cluster:
        yield cluster
