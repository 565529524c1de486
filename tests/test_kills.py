"""SIGKILL in the middle of writes of state: what ``make soak`` does many times, and that it finds a torn write."""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from benchmarks.kills import Step, kill_at_random, steps
from nonn.files import write_json
from tests.toys import toy_bundle


@pytest.fixture(scope="module")
def small() -> Iterator[ProcessPoolExecutor]:
    """A process without threads and torch, which forks in milliseconds."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        yield pool


def kill_between_two_files(folder: Path) -> tuple[int, list[str]]:
    def write(folder: Path, number: int) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("a", "b"):
            write_json(folder / name, number)

    def same(folder: Path) -> None:
        a, b = (json.loads((folder / name).read_text()) for name in ("a", "b"))
        assert a == b, "torn"

    step = Step(lambda folder: write(folder, 1), lambda folder: write(folder, 2), same)
    return kill_at_random(step, folder, 12, random.Random(0))


def kill_in(name: str, folder: Path) -> tuple[int, list[str]]:
    old, new = (toy_bundle(folder / f"bundle-{width}", 2, width=width) for width in (4, 5))
    return kill_at_random(steps(old, new)[name], folder / name, 2, random.Random(1))


@pytest.mark.slow
def test_a_change_that_is_not_one_step_is_found(small: ProcessPoolExecutor, tmp_path: Path) -> None:
    lines, wrong = small.submit(kill_between_two_files, tmp_path).result()
    assert lines > 0
    assert wrong
    assert all("torn" in text for text in wrong)


@pytest.mark.parametrize("name", ["state", "store", "certs", "files"])
def test_a_kill_leaves_the_state_before_or_after_a_change(
    small: ProcessPoolExecutor, tmp_path: Path, name: str
) -> None:
    lines, wrong = small.submit(kill_in, name, tmp_path).result()
    assert lines > 0
    assert wrong == []
