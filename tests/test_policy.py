from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.errors import ConfigError

NODES = ("a", "b", "c")


def silent(policy: Policy, node: str, now: float, waited_s: float = 1.0) -> None:
    policy.record(node, False, waited_s, now, timed_out=True)


def test_all_nodes_are_asked_until_the_deadline_while_nothing_is_known():
    plan = Policy(NODES, PolicyConfig(deadline_s=0.5)).plan()
    assert plan.ask == NODES
    assert plan.deadline_s == 0.5


def test_the_clients_deadline_shortens_the_wait_by_what_fusing_takes():
    policy = Policy(NODES, PolicyConfig(deadline_s=1.0, fusion_budget_s=0.01))
    assert policy.plan(0.25).deadline_s == pytest.approx(0.24)
    assert policy.plan(60.0).deadline_s == 1.0
    assert policy.plan(0.001).deadline_s == 0.0


@given(st.integers(1, 5), st.integers(5, 30))
def test_a_node_that_hangs_costs_at_most_as_many_deadlines_as_the_breaker_allows(failures, requests):
    policy = Policy(NODES, PolicyConfig(breaker_failures=failures))
    now, waits = 0.0, 0
    for _ in range(requests):
        for node in policy.probes(now):  # a probe hangs too, but no request waits for it
            policy.record(node, False, 1.0, now + 1.0, timed_out=True, probe=True)
        ask = policy.plan().ask
        now += 1.0 if "b" in ask else 0.001
        waits += "b" in ask
        for node in ask:
            if node == "b":
                silent(policy, node, now)
            else:
                policy.record(node, True, 0.001, now)
    assert waits == min(failures, requests)
    assert policy.state("b") == "out"


def test_a_node_that_failed_is_probed_once_in_every_reset_time():
    policy = Policy(NODES, PolicyConfig(breaker_reset_s=2.0))
    assert policy.next_probe_s(0.0) is None
    silent(policy, "b", now=10.0)
    assert policy.probes(11.9) == ()
    assert policy.next_probe_s(11.5) == pytest.approx(0.5)
    assert policy.probes(12.0) == ("b",)
    assert policy.probes(12.0) == ()
    assert policy.next_probe_s(12.0) is None
    policy.record("b", False, 1.0, 13.0, timed_out=True, probe=True)
    assert policy.probes(14.9) == ()
    assert policy.probes(15.0) == ("b",)


def test_one_good_reply_brings_a_node_back():
    policy = Policy(NODES, PolicyConfig())
    for now in (1.0, 2.0):
        silent(policy, "b", now)
    assert policy.plan().ask == ("a", "c")
    assert policy.probes(3.0) == ("b",)
    policy.record("b", True, 0.1, 3.1, probe=True)
    assert policy.plan().ask == NODES
    assert policy.next_probe_s(3.1) is None


def test_a_failure_between_good_replies_leaves_nobody_out():
    policy = Policy(NODES, PolicyConfig(breaker_failures=2))
    for now in range(1, 20, 2):
        silent(policy, "b", float(now))
        policy.record("b", True, 0.1, now + 1.0)
    assert policy.plan().ask == NODES


def test_a_request_from_before_a_node_came_back_does_not_count_against_it():
    policy = Policy(NODES, PolicyConfig(breaker_failures=1))
    silent(policy, "b", now=5.0)
    policy.record("b", True, 0.01, 6.0, probe=True)
    silent(policy, "b", now=6.5)  # asked at 5.5, while it hung
    assert policy.state("b") == "up"
    silent(policy, "b", now=7.1)
    assert policy.state("b") == "out"


def test_a_client_in_a_hurry_cannot_switch_a_slow_node_off():
    policy = Policy(NODES, PolicyConfig(deadline_s=1.0))
    policy.record("b", True, 0.2, 1.0)
    for now in range(2, 10):
        silent(policy, "b", float(now), waited_s=0.05)
    assert policy.state("b") == "up"


def test_silence_counts_against_a_node_that_usually_answers_ten_times_faster():
    policy = Policy(NODES, PolicyConfig(deadline_s=1.0))
    policy.record("b", True, 0.002, 1.0)
    for now in (2.0, 3.0):
        silent(policy, "b", now, waited_s=0.05)
    assert policy.state("b") == "out"


def test_below_the_quorum_everybody_is_asked_since_there_is_nothing_to_lose():
    policy = Policy(NODES, PolicyConfig(quorum=2, breaker_failures=1))
    silent(policy, "a", now=1.0)
    assert policy.plan().ask == ("b", "c")
    silent(policy, "b", now=1.0)
    assert policy.plan().ask == NODES


def test_ready_means_that_the_quorum_is_up():
    policy = Policy(NODES, PolicyConfig(quorum=2))
    assert policy.ready
    silent(policy, "a", now=1.0)
    assert policy.ready
    silent(policy, "b", now=1.0)
    assert not policy.ready
    policy.record("a", True, 0.1, 2.0)
    assert policy.ready


def test_requests_are_counted_and_probes_are_not():
    policy = Policy(NODES, PolicyConfig())
    policy.record("a", True, 0.2, 1.0)
    policy.record("a", True, 0.1, 2.0)
    silent(policy, "a", now=3.0)
    policy.record("a", True, 0.18, 4.0, probe=True)
    record = policy.nodes["a"]
    assert (record.asked, record.answered) == (3, 2)
    assert record.latency_s == pytest.approx(0.18)


@given(st.lists(st.tuples(st.sampled_from(NODES), st.booleans(), st.booleans(), st.floats(0, 2)), max_size=60))
def test_whatever_happens_plans_can_reach_the_quorum_and_failed_nodes_are_probed(outcomes):
    policy = Policy(NODES, PolicyConfig(quorum=2))
    now = 0.0
    for node, ok, timed_out, step in outcomes:
        now += step
        policy.record(node, ok, min(step, 1.0), now, timed_out=timed_out and not ok)
        assert len(policy.plan().ask) >= 2
    down = {node for node in NODES if policy.state(node) != "up"}
    assert set(policy.probes(now + policy.config.breaker_reset_s)) == down


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"deadline_s": 0.0}, "deadline_s = 0.0"),
        ({"deadline_s": float("nan")}, "deadline_s = nan"),
        ({"breaker_reset_s": -1.0}, "breaker_reset_s = -1.0"),
        ({"quorum": 0}, "quorum = 0"),
        ({"breaker_failures": 0}, "breaker_failures = 0"),
        ({"fusion_budget_s": -0.1}, "fusion_budget_s = -0.1"),
    ],
)
def test_an_impossible_policy_is_an_error_that_names_the_value(values, text):
    with pytest.raises(ConfigError, match=text):
        PolicyConfig(**values)


def test_a_quorum_of_more_nodes_than_there_are_is_an_error():
    with pytest.raises(ConfigError, match="quorum = 4: there are only 3 nodes"):
        Policy(NODES, PolicyConfig(quorum=4))
