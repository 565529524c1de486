"""SIGKILL in the middle of writes of state: what ``make soak`` does many times, and that it finds a torn write."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from benchmarks.kills import Step, kill_at_random, steps
from nonn.files import write_json
from tests.toys import toy_bundle


def test_a_change_that_is_not_one_step_is_found(tmp_path: Path) -> None:
    def write(folder: Path, number: int) -> None:
        folder.mkdir(exist_ok=True)
        for name in ("a", "b"):
            write_json(folder / name, number)

    def same(folder: Path) -> None:
        a, b = (json.loads((folder / name).read_text()) for name in ("a", "b"))
        assert a == b, "torn"

    step = Step(lambda folder: write(folder, 1), lambda folder: write(folder, 2), same)
    lines, wrong = kill_at_random(step, tmp_path, 12, random.Random(0))
    assert lines > 0
    assert wrong
    assert all("torn" in text for text in wrong)


@pytest.mark.parametrize("name", ["state", "store", "certs", "files"])
def test_a_kill_leaves_the_state_before_or_after_a_change(tmp_path: Path, name: str) -> None:
    old, new = (toy_bundle(tmp_path / f"bundle-{width}", 2, width=width) for width in (4, 5))
    lines, wrong = kill_at_random(steps(old, new)[name], tmp_path / name, 2, random.Random(1))
    assert lines > 0
    assert wrong == []
