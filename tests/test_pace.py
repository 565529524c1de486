"""What a sample costs a node: the slope of its latency, without the part that batches of any size have."""

from __future__ import annotations

import random
from itertools import cycle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.policy.pace import Pace
from tests.policies import policy_of, practise


@given(st.floats(0, 1), st.floats(0, 0.1), st.lists(st.integers(1, 64), min_size=2, max_size=50))
def test_latencies_on_a_line_have_its_slope(base_s: float, sample_s: float, sizes: list[int]) -> None:
    pace = Pace()
    for size in sizes:
        pace.add(size, base_s + sample_s * size)
    assert pace.sample_s == pytest.approx(sample_s if len(set(sizes)) > 1 else 0.0, rel=1e-3, abs=1e-6)


def test_a_constant_delay_is_not_the_batchs_and_a_change_is_followed() -> None:
    rng, pace = random.Random(0), Pace()
    for _ in range(200):
        pace.add(rng.randint(1, 64), 0.9 + rng.gauss(0, 0.02))
    assert 64 * pace.sample_s < 0.05
    for _ in range(200):
        size = rng.randint(1, 64)
        pace.add(size, 0.9 + 0.005 * size)
    assert pace.sample_s == pytest.approx(0.005, rel=0.1)


def test_while_all_batches_have_one_size_the_estimate_stays() -> None:
    pace = Pace()
    for size in range(1, 33):
        pace.add(size, 0.01 + 0.002 * size)
    for jitter in (cycle((-0.003, 0.003)), cycle((0.001,))):
        for _ in range(500):
            pace.add(32, 0.074 + next(jitter))
    assert pace.sample_s == pytest.approx(0.002, rel=0.2)


def test_a_node_that_turns_slow_while_batches_are_large_does_not_seem_to_pay_for_the_samples() -> None:
    pace = Pace()
    for _ in range(32):
        pace.add(4, 0.005)
    for _ in range(4):
        pace.add(60, 0.9)
    assert pace.sample_s < 0.002  # the slope alone says 0.016


def test_a_device_that_gets_hot_is_followed() -> None:
    pace = Pace()
    for sample_s in (0.001, 0.01):
        for size in range(1, 65):
            pace.add(size, sample_s * size)
    assert pace.sample_s == pytest.approx(0.01, rel=0.2)


# In the policy


def test_the_slowest_node_decides_unless_answers_lose_little_without_it() -> None:
    policy = policy_of(early_loss=0.02)
    for node, sample_s in (("a", 0.001), ("b", 0.002), ("c", 0.05)):
        for size in (1, 2, 4, 8):
            policy.nodes[node].pending += 1
            policy.on_success(node, 0.01 + sample_s * size, 0.0, num_samples=size)
    assert policy.sample_s(1.0) == pytest.approx(0.05)
    assert policy.sample_s(0.01) == pytest.approx(0.002)  # c is worth one point after a and b
    assert policy.sample_s(0.0001) == pytest.approx(0.002)  # b is worth ten after a
    policy.fell_behind("b")
    assert policy.sample_s(1.0) == pytest.approx(0.05)


def test_silence_to_a_request_that_takes_as_long_is_one_failure_and_not_a_hung_node() -> None:
    for num_samples, state in ((1, "out"), (50, "out"), (150, "suspect")):
        policy = policy_of(deadline_s=1.0)
        practise(policy, "b", [0.01] * 3)
        for size in (1, 8):
            policy.nodes["b"].pending += 1
            policy.on_success("b", 0.01 * size, 0.0, num_samples=size)
        policy.nodes["b"].pending += 1
        policy.on_failure("b", 1.0, 2.0, silent=True, num_samples=num_samples)
        assert policy.state("b") == state
