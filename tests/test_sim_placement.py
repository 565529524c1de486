from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nonn_sim.placement_file import load_devices, placement_summary

from nonn.errors import ConfigError, ShapeError
from nonn.reliability import placement
from nonn.reliability.placement import Machine, Work, expected_accuracy, place, price_of_one_more
from nonn.reliability.table import SubsetTable
from tests.toys import toy_bundle

LIGHT = Work(macs=1000, model_bytes=100, feature_bytes=10)


def random_table(rng: np.random.Generator, n: int, *, grows: bool) -> SubsetTable:
    """A random table; one that grows never loses accuracy by a further device."""
    correct = rng.integers(0, 101, 1 << n)
    correct[0] = 0
    if grows:
        sets = np.arange(1 << n)
        for i in range(n):
            correct = np.maximum(correct, correct[sets & ~(1 << i)])
    return SubsetTable(correct, 100)


def random_problem(rng: np.random.Generator, students: int, machines: int) -> tuple[list[Work], list[Machine], float]:
    works = [
        Work(macs=int(rng.integers(1, 10)) * 1000, model_bytes=int(rng.integers(1, 10)), feature_bytes=100)
        for _ in range(students)
    ]
    devices = [
        Machine(
            name=f"m{q}",
            p_fail=float(rng.choice([0.0, 0.05, 0.1, 0.3, 0.6, 1.0])),
            macs_per_s=float(rng.choice([1e6, 2e5])),
            memory_bytes=float(rng.integers(3, 12)),
            link_latency_s=float(rng.choice([0.0, 0.01])),
            link_bytes_per_s=1e4,
        )
        for q in range(machines)
    ]
    return works, devices, 0.045


def brute_force(table: SubsetTable, works: list[Work], devices: list[Machine], limit_s: float) -> float:
    best = 0.0
    choices = [[None, *(s for s, w in enumerate(works) if w.fits(d, limit_s))] for d in devices]
    for students in product(*choices):
        down = np.ones(len(works))
        for student, device in zip(students, devices, strict=True):
            if student is not None:
                down[student] *= device.p_fail
        best = max(best, table.expected(down))
    return best


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_small_placements_are_as_good_as_any(seed: int, grows: bool) -> None:
    rng = np.random.default_rng(seed)
    students, machines = int(rng.integers(1, 4)), int(rng.integers(1, 5))
    table = random_table(rng, students, grows=grows)
    works, devices, limit_s = random_problem(rng, students, machines)
    try:
        found = place(table, works, devices, latency_limit_s=limit_s)
    except ConfigError:
        assert not any(w.fits(d, limit_s) for w in works for d in devices)
        return
    assert found.exact
    assert found.expected == pytest.approx(brute_force(table, works, devices, limit_s))
    down = np.ones(students)
    for student, device in zip(found.students, devices, strict=True):
        if student is not None:
            assert works[student].fits(device, limit_s)
            down[student] *= device.p_fail
    assert found.expected == pytest.approx(table.expected(down))
    assert found.latency_s <= limit_s


def test_local_search_reaches_the_exact_placement_almost_always(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, same = np.random.default_rng(0), 0
    for _ in range(20):
        table = random_table(rng, 4, grows=True)
        works, devices, limit_s = random_problem(rng, 4, 4)
        monkeypatch.setattr(placement, "EXACT_CHOICES", 300_000)
        exact = place(table, works, devices, latency_limit_s=limit_s)
        monkeypatch.setattr(placement, "EXACT_CHOICES", 0)
        found = place(table, works, devices, latency_limit_s=limit_s)
        assert exact.exact
        assert not found.exact
        assert found.expected <= exact.expected + 1e-12
        same += found.expected == pytest.approx(exact.expected)
    assert same >= 18


def test_twelve_students_on_fourteen_machines_are_placed_better_than_in_order() -> None:
    rng = np.random.default_rng(3)
    worth = rng.integers(1, 40, 12)
    members = np.arange(1 << 12)[:, None] >> np.arange(12) & 1
    table = SubsetTable(members @ worth, int(worth.sum()))
    devices = [Machine(name=str(q), p_fail=float(p)) for q, p in enumerate(rng.uniform(0.01, 0.6, 14))]
    found = place(table, [LIGHT] * 12, devices)
    assert not found.exact
    p_fail = np.array([d.p_fail for d in devices])
    # Additive worth without replicas: the best machines for the worthiest students, which a replica can only better.
    sorted_up = 1 - np.sort(p_fail)[:12]
    assert found.expected >= np.sort(worth)[::-1] @ sorted_up / worth.sum() - 1e-12
    assert found.expected > table.expected(p_fail[:12])


def test_latency_memory_and_speed_decide_what_fits() -> None:
    work = Work(macs=10**6, model_bytes=1000, feature_bytes=500)
    device = Machine(
        name="pi", p_fail=0.1, macs_per_s=1e8, memory_bytes=1000, link_latency_s=0.003, link_bytes_per_s=1e5
    )
    assert work.latency_s(device) == pytest.approx(0.01 + 0.005 + 0.003)
    assert work.fits(device, 0.0181)
    assert not work.fits(device, 0.0179)
    assert not Work(macs=1, model_bytes=1001, feature_bytes=1).fits(device, 1)
    with pytest.raises(ConfigError, match=r"no student fits any of the 1 devices within 0\.01 s"):
        place(random_table(np.random.default_rng(0), 1, grows=True), [work], [device], latency_limit_s=0.01)


def test_the_price_of_one_more_device_is_the_expected_accuracy_with_it() -> None:
    rng = np.random.default_rng(2)
    table, p_up = random_table(rng, 3, grows=True), np.array([0.9, 0.5, 0.7])
    extra = Machine(name="spare", p_fail=0.2)
    rows = price_of_one_more(table, p_up, extra)
    assert [row.gain for row in rows] == sorted((row.gain for row in rows), reverse=True)
    for row in rows:
        down = 1 - p_up
        down[row.student] *= 0.2
        assert row.expected == pytest.approx(table.expected(down))
        assert row.gain == pytest.approx(row.expected - table.expected(1 - p_up))
    heavy = Work(macs=10**9, model_bytes=10**9, feature_bytes=1)
    small = Machine(name="small", p_fail=0.2, memory_bytes=1e6)
    assert {r.student for r in price_of_one_more(table, p_up, small, [LIGHT, heavy, LIGHT])} == {0, 2}


@given(st.integers(0, 10**6))
def test_expected_accuracy_is_that_of_the_table(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 6))
    table, p_up = random_table(rng, n, grows=False), rng.random(n)
    assert expected_accuracy(table, p_up) == pytest.approx(table.expected(1 - p_up))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"p_fail": 1.5}, "between 0 and 1"),
        ({"p_fail": math.nan}, "between 0 and 1"),
        ({"p_fail": 0.1, "macs_per_s": 0.0}, "device 'x': macs_per_s = 0.0: must be above 0"),
        ({"p_fail": 0.1, "link_bytes_per_s": -1.0}, "must be above 0"),
        ({"p_fail": 0.1, "link_latency_s": -1.0}, "must be at least 0"),
    ],
)
def test_an_impossible_device_is_refused(values: dict[str, float], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Machine(name="x", **values)


def test_works_must_be_one_a_student() -> None:
    with pytest.raises(ShapeError, match="1 works for a table of 2"):
        place(random_table(np.random.default_rng(0), 2, grows=True), [LIGHT], [Machine(name="a", p_fail=0.1)])


def test_machines_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "machines.toml"
    path.write_text('[[device]]\nname = "a"\np_fail = 0.5\n[[device]]\nname = "b"\np_fail = 0.01\nmacs_per_s = 1e6\n')
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    found = placement_summary(bundle, bundle.table, load_devices(path), math.inf)
    assert found["exact"]
    assert found["one_more"]["like"] == "b"
    assert found["devices"][1]["student"] == int(bundle.table.accuracy[1:3].argmax())
    assert found["devices"][1]["latency_ms"] == pytest.approx(1000 * 64 * 4 / 1e6)
    for text, words in (
        ("", r"must contain only \[\[device\]\]"),
        ("device = [1]", r"must contain only \[\[device\]\]"),
        ("other = 1\n[[device]]\nname='a'\np_fail=0.1", "not \\['other'\\]"),
        ("[[device]]\nname='a'", r"'device\[0\]\.p_fail' is missing"),
        ("[[device]]\nname='a'\np_fail=0.1\nspeed=3", r"unknown key 'device\[0\]\.speed'"),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_devices(path)
