"""Threads keep apart and stop spinning, and results stay the same."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nonn import threads
from nonn.cli import main
from nonn.config import TrainingConfig
from nonn.threads import assign_cores, limit_spinning, pinned_threads
from nonn.trainer import Target, batches, fit
from tests.toys import toy_data
from tests.training import Unchanged

CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
several_cores = pytest.mark.skipif(CPUS < 2, reason="needs Linux and two processors")

WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT")


def _cores(*processors: set[int]) -> list[frozenset[int]]:
    return [frozenset(core) for core in processors]


@pytest.fixture
def all_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    for name in ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY"):
        monkeypatch.delenv(name, raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(CPUS)
    yield CPUS
    torch.set_num_threads(before)


_placed: set[int] = set()  # threads that were placed before the test, such as those of a session of ONNX Runtime


def _processors() -> list[frozenset[int]]:
    """What each thread of this process may run on, but for those that another library has placed."""
    threads = {int(task.name) for task in Path("/proc/self/task").iterdir()} - _placed
    return [frozenset(os.sched_getaffinity(thread)) for thread in threads]


class TestCores:
    def test_a_thread_for_each_core_gets_that_core_with_all_its_logical_processors(self) -> None:
        assert assign_cores(2, _cores({0, 2}, {1, 3})) == _cores({0, 2}, {1, 3})

    def test_a_thread_for_each_logical_processor_gets_that_one(self) -> None:
        assert assign_cores(4, _cores({0, 2}, {1, 3})) == _cores({0}, {2}, {1}, {3})

    @pytest.mark.parametrize("threads", [1, 3, 5])
    def test_any_other_number_of_threads_stays_free(self, threads: int) -> None:
        assert assign_cores(threads, _cores({0, 2}, {1, 3})) == []

    def test_one_thread_on_one_core_stays_free(self) -> None:
        assert assign_cores(1, _cores({0})) == []


class TestSpinning:
    def test_it_is_limited_in_openmp_and_in_blas(self) -> None:
        environment: dict[str, str] = {}
        limit_spinning(environment)
        assert int(environment["GOMP_SPINCOUNT"]) < 300_000
        assert int(environment["OPENBLAS_THREAD_TIMEOUT"]) < 26

    @pytest.mark.parametrize("name", ["GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT"])
    def test_what_the_user_has_set_stays(self, name: str) -> None:
        environment = {name: "7"}
        limit_spinning(environment)
        assert environment[name] == "7"

    def test_a_wait_policy_of_the_user_is_not_overruled(self) -> None:
        environment = {"OMP_WAIT_POLICY": "ACTIVE"}
        limit_spinning(environment)
        assert "GOMP_SPINCOUNT" not in environment

    def test_the_command_line_limits_it_for_its_commands(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in WAITING:
            monkeypatch.setenv(name, "")  # so that it is as before after the test
            monkeypatch.delenv(name)
        with pytest.raises(SystemExit):
            main(["--version"])
        assert {"GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT"} <= os.environ.keys()


@several_cores
class TestPinned:
    @pytest.fixture(autouse=True)
    def _threads_of_others(self) -> None:
        threads = {int(task.name) for task in Path("/proc/self/task").iterdir()}
        everything = os.sched_getaffinity(0)
        _placed.clear()
        _placed.update(thread for thread in threads if os.sched_getaffinity(thread) != everything)

    def test_threads_have_disjoint_processors_inside_and_all_of_them_afterwards(self, all_threads: int) -> None:
        everything = frozenset(os.sched_getaffinity(0))
        with pinned_threads(all_threads):
            pinned = [processors for processors in _processors() if processors != everything]
            assert len(pinned) == all_threads
            assert frozenset.union(*pinned) == everything
            assert sum(map(len, pinned)) == len(everything)
        assert set(_processors()) == {everything}

    def test_an_error_inside_frees_them_too(self, all_threads: int) -> None:
        everything = set(_processors())
        with pytest.raises(KeyError), pinned_threads(all_threads):
            raise KeyError
        assert set(_processors()) == everything

    def test_placed_by_the_user_they_stay_there(self, all_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OMP_PROC_BIND", "false")
        everything = set(_processors())
        with pinned_threads(all_threads):
            assert set(_processors()) == everything

    def test_inside_another_context_nothing_changes(self, all_threads: int) -> None:
        with pinned_threads(all_threads):
            outer = sorted(map(sorted, _processors()))
            with pinned_threads(all_threads):
                assert sorted(map(sorted, _processors())) == outer
            assert sorted(map(sorted, _processors())) == outer

    def test_a_thread_that_starts_meanwhile_frees_them_at_the_next_check(self, all_threads: int) -> None:
        everything, stop = frozenset(os.sched_getaffinity(0)), threading.Event()
        with pinned_threads(all_threads) as check:
            check()
            assert frozenset(os.sched_getaffinity(0)) != everything
            thread = threading.Thread(target=stop.wait)
            thread.start()
            assert thread.native_id is not None
            assert frozenset(os.sched_getaffinity(thread.native_id)) != everything
            check()
            assert frozenset(os.sched_getaffinity(0)) == everything
            assert frozenset(os.sched_getaffinity(thread.native_id)) == everything
            stop.set()
            thread.join()

    def test_a_pool_that_has_replaced_threads_is_freed_at_the_next_check(
        self, all_threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second, *_ = sorted(os.sched_getaffinity(0))
        monkeypatch.setattr("nonn.threads._cores", lambda _: _cores({first}, {second}, {first}, {second}))
        everything = frozenset(os.sched_getaffinity(0))
        torch.set_num_threads(4)
        with pinned_threads(4) as check:
            for threads in (2, 4):  # libgomp ends two threads and starts two others
                torch.set_num_threads(threads)
                torch.ones(1 << 20).add_(1)
            assert _processors().count(frozenset({first})) > 2  # the others are on the first thread's core
            check()
            assert set(_processors()) == {everything}


class _ConvolutionTask:
    """A small convolutional network; notes the processors of the training thread at each step."""

    def __init__(self) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.module = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)
            )
        self.progress = 0.0
        self.processors: set[frozenset[int]] = set()

    def draw(self, batch: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def losses(
        self, inputs: Tensor, labels: Tensor, draws: Mapping[str, Tensor], target: Target | None = None
    ) -> dict[str, Tensor]:
        self.processors.add(frozenset(os.sched_getaffinity(0)))
        return {"ce": functional.cross_entropy(self.module(inputs), labels)}


def _train(folder: Path) -> _ConvolutionTask:
    task, (inputs, labels) = _ConvolutionTask(), toy_data(128, seed=1)
    config = TrainingConfig(epochs=2, batch=32, bf16="off")
    fit(task, inputs, labels, config, folder, seed=0, augment=Unchanged())
    return task


@several_cores
class TestTraining:
    def test_each_step_runs_pinned(self, all_threads: int, tmp_path: Path) -> None:
        everything = frozenset(os.sched_getaffinity(0))
        (processors,) = _train(tmp_path).processors
        assert processors < everything
        assert frozenset(os.sched_getaffinity(0)) == everything

    def test_the_weights_are_those_of_free_threads(
        self, all_threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pinned = _train(tmp_path / "pinned")
        monkeypatch.setenv("OMP_PROC_BIND", "false")
        free = _train(tmp_path / "free")
        assert pinned.processors != free.processors
        for ours, theirs in zip(pinned.module.state_dict().values(), free.module.state_dict().values(), strict=True):
            assert torch.equal(ours, theirs)

    def test_a_pass_without_training_runs_pinned(self, all_threads: int) -> None:
        everything = frozenset(os.sched_getaffinity(0))
        inputs = np.zeros((300, 1, 8, 8), np.float32)
        during = [frozenset(os.sched_getaffinity(0)) for _ in batches(inputs)]
        assert len(during) == 3
        assert all(processors < everything for processors in during)
        assert frozenset(os.sched_getaffinity(0)) == everything


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_arrives_while_threads_are_placed_is_not_lost(number: signal.Signals) -> None:
    reached = []

    def handler(*_: object) -> None:
        raise KeyboardInterrupt

    def place() -> None:
        with threads._deferred_signals():
            signal.raise_signal(number)
            reached.append(number)

    before = signal.signal(number, handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            place()
        assert reached == [number]
        assert signal.getsignal(number) is handler
    finally:
        signal.signal(number, before)
