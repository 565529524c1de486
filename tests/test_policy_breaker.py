"""Which nodes a policy leaves out, how it probes them, and when it takes them back."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.policies import NODES, policy_of, practise, refused, silent


@given(st.integers(1, 5), st.integers(5, 30), st.floats(0.1, 3.0))
def test_a_node_that_hangs_costs_one_deadline_in_all(failures: Any, requests: Any, every_s: Any) -> None:
    """Requests come one every so often, also while others wait; only one of them may wait for the deadline."""
    policy = policy_of(breaker_failures=failures, deadline_s=1.0, breaker_reset_s=0.5)
    now, open_sessions = 0.0, []
    waited: list[Any] = []
    policy.on_success("b", 0.01, 0.0)
    times: list[tuple[Any, str, Any]] = [(k * every_s, "ask", None) for k in range(requests)]
    while times:
        now, what, thing = times.pop(0)
        if what == "ask":
            session = policy.session(now)
            for node in set(session.ask) - {"b"}:
                session.tell(node, True)
                policy.on_success(node, 0.001, now)
            if not session.done:
                open_sessions.append(session)
                times.append((session.deadline_at, "deadline", session))
        elif what == "deadline":
            if not thing.done:
                thing.decide(now)
                waited.append(thing)
            policy.on_failure("b", 1.0, now, silent=True)
            for session in open_sessions:
                session.leave_out("b")
        else:  # a probe hangs too, but no request waits for it
            policy.on_probe("b", False, 1.0, now)
        times += [(now + 1.0, "probe", None) for _ in policy.probes(now)]
        times.sort(key=lambda item: item[0])
    assert len(waited) == 1
    assert all(session.done for session in open_sessions)
    assert policy.state("b") == "out"


def test_a_node_that_failed_is_probed_at_once_and_then_once_in_every_reset_time() -> None:
    policy = policy_of(breaker_reset_s=2.0)
    policy.on_success("b", 0.1, 9.0)
    assert policy.next_probe_s(9.0) is None
    silent(policy, "b", now=10.0)
    assert policy.next_probe_s(10.0) == 0.0
    assert policy.probes(10.0) == ("b",)
    assert policy.probes(10.0) == ()
    assert policy.next_probe_s(10.0) is None
    policy.on_probe("b", False, 1.0, 11.0)
    assert policy.probes(12.9) == ()
    assert policy.next_probe_s(12.5) == pytest.approx(0.5)
    assert policy.probes(13.0) == ("b",)


def test_a_node_that_answers_probes_but_no_request_is_not_asked_again_and_again() -> None:
    policy = policy_of(breaker_reset_s=2.0)
    policy.on_success("b", 0.1, 9.0)
    silent(policy, "b", now=10.0)
    assert policy.probes(10.0) == ("b",)
    policy.on_probe("b", True, 0.1, 10.1)
    silent(policy, "b", now=11.2)
    assert policy.probes(11.2) == ()
    assert policy.probes(13.2) == ("b",)


def test_a_node_that_answers_probes_and_hangs_on_requests_costs_a_deadline_ever_more_rarely() -> None:
    policy, now, hung_at = policy_of(breaker_reset_s=0.5, deadline_s=1.0), 0.0, list[float]()
    policy.on_success("b", 0.01, 0.0)
    while now < 3600.0:
        if policy.state("b") == "up":
            now += 1.01
            hung_at.append(now)
            silent(policy, "b", now)
        wait_s = policy.next_probe_s(now)
        now += wait_s
        assert policy.probes(now) == ("b",)
        now += 0.01
        policy.on_probe("b", True, 0.01, now)
    pauses = np.diff(hung_at)
    assert pauses[:4] == pytest.approx([1.02, 1.52, 2.02, 3.02])  # at once, 0.5, 1, 2 s
    assert pauses.max() == pytest.approx(61.02)
    assert len(hung_at) < 70  # 2,400 without back-off
    policy.on_success("b", 0.01, now)
    silent(policy, "b", now + 2.0)
    assert policy.next_probe_s(now + 2.0) == 0.0  # it has answered a request


def test_many_requests_that_fail_at_once_are_one_relapse() -> None:
    policy = policy_of(breaker_reset_s=0.5)
    for _ in range(20):
        silent(policy, "b", 1.0)
    assert policy.next_probe_s(1.0) == pytest.approx(0.5)


def test_one_good_reply_brings_a_node_back() -> None:
    policy = policy_of()
    silent(policy, "b", 1.0)
    assert policy.session(1.0).ask == ("a", "c")
    assert policy.probes(2.0) == ("b",)
    policy.on_probe("b", True, 0.1, 2.1)
    assert policy.session(2.1).ask == NODES
    assert policy.next_probe_s(2.1) is None


def test_refusals_leave_a_node_out_only_when_they_come_in_a_row() -> None:
    policy = policy_of(breaker_failures=2)
    for now in range(1, 20, 2):
        refused(policy, "b", float(now))
        assert policy.state("b") == "suspect"
        assert policy.session(now).ask == NODES
        policy.on_success("b", 0.1, now + 1.0)
    refused(policy, "b", 30.0)
    refused(policy, "b", 31.0)
    assert policy.state("b") == "out"


def test_a_request_from_before_a_node_came_back_does_not_count_against_it() -> None:
    policy = policy_of()
    silent(policy, "b", now=5.0)
    policy.on_probe("b", True, 0.01, 6.0)
    silent(policy, "b", now=6.5)  # asked at 5.5, while it hung
    assert policy.state("b") == "up"
    silent(policy, "b", now=7.1)
    assert policy.state("b") == "out"


def test_a_client_in_a_hurry_cannot_switch_a_slow_node_off() -> None:
    policy = policy_of(deadline_s=1.0)
    policy.on_success("b", 0.2, 1.0)
    for now in range(2, 10):
        silent(policy, "b", float(now), waited_s=0.05)
    assert policy.state("b") == "up"


def test_silence_counts_against_a_node_that_usually_answers_ten_times_faster() -> None:
    policy = policy_of(deadline_s=1.0)
    practise(policy, "b", [0.002] * 20)
    silent(policy, "b", 2.0, waited_s=0.05)
    assert policy.state("b") == "out"


def test_below_the_quorum_everybody_is_asked_since_there_is_nothing_to_lose() -> None:
    policy = policy_of(quorum=2)
    silent(policy, "a", now=1.0)
    assert policy.session(1.0).ask == ("b", "c")
    silent(policy, "b", now=1.0)
    assert policy.session(1.0).ask == NODES


def test_ready_means_that_the_quorum_is_up() -> None:
    policy = policy_of(quorum=2)
    assert policy.ready
    silent(policy, "a", now=1.0)
    assert policy.ready
    silent(policy, "b", now=1.0)
    assert not policy.ready
    policy.on_success("a", 0.1, 2.0)
    assert policy.ready


def test_replicas_of_one_student_make_no_quorum() -> None:
    policy = policy_of({"a": 0, "a2": 0, "b": 1}, quorum=2)
    silent(policy, "b", now=1.0)
    assert not policy.ready


def test_requests_are_counted_and_probes_are_not() -> None:
    policy = policy_of()
    policy.on_success("a", 0.2, 1.0)
    policy.on_success("a", 0.1, 2.0)
    silent(policy, "a", now=3.0)
    policy.on_probe("a", True, 0.18, 4.0)
    policy.on_success("a", 0.3, 5.0, late=True)
    record = policy.nodes["a"]
    assert (record.asked, record.answered) == (4, 2)
    assert record.latency_s == pytest.approx(0.2)


@given(st.lists(st.tuples(st.sampled_from(NODES), st.booleans(), st.booleans(), st.floats(0, 2)), max_size=60))
def test_whatever_happens_requests_can_reach_the_quorum_and_failed_nodes_are_probed(outcomes: Any) -> None:
    policy = policy_of(quorum=2)
    now = 0.0
    for node, ok, hangs, step in outcomes:
        now += step
        if ok:
            policy.on_success(node, min(step, 1.0), now)
        else:
            policy.on_failure(node, min(step, 1.0), now, silent=hangs)
        assert len(policy.session(now).ask) >= 2
    down = {node for node in NODES if policy.state(node) != "up"}
    assert set(policy.probes(now + policy.config.breaker_reset_s)) == down


def test_a_quarantined_node_comes_back_only_through_its_test_and_waits_longer_each_time() -> None:
    policy = policy_of(quarantine_s=10.0)
    assert policy.on_contradiction("b", 100.0)
    assert not policy.on_contradiction("b", 100.0)
    assert policy.state("b") == "out"
    assert policy.session(100.0).ask == ("a", "c")
    assert not policy.on_success("b", 0.1, 101.0), "a reply to an earlier request"
    assert not policy.on_failure("b", 0.1, 101.0)
    waits, now = [], 100.0
    for _ in range(4):
        waits.append(policy.next_probe_s(now))
        now += waits[-1]
        assert policy.probes(now) == ("b",)
        policy.on_probe("b", False, 0.1, now)
        assert policy.state("b") == "out"
    assert waits == [10.0, 20.0, 40.0, 80.0]
    now += 160.0
    assert policy.probes(now) == ("b",)
    assert policy.on_probe("b", True, 0.1, now)
    assert policy.state("b") == "up"
    policy.on_contradiction("b", now + 1.0)
    assert policy.next_probe_s(now + 1.0) == 320.0


def test_quarantines_are_forgiven_after_a_long_time_and_last_an_hour_at_most() -> None:
    policy = policy_of(quarantine_s=10.0)
    policy.on_contradiction("b", 0.0)
    now = 0.0
    for _ in range(20):
        wait = policy.next_probe_s(now)
        assert wait <= 3600.0
        now += wait
        policy.probes(now)
        policy.on_probe("b", False, 0.0, now)
    now += 3600.0
    policy.probes(now)
    policy.on_probe("b", True, 0.0, now)
    policy.on_contradiction("b", now + 3600.0 * 10.1)
    assert policy.next_probe_s(now + 3600.0 * 10.1) == 10.0


def test_a_quarantined_node_is_not_asked_below_the_quorum() -> None:
    policy = policy_of(quorum=2)
    policy.on_contradiction("b", 0.0)
    silent(policy, "a", 1.0)
    silent(policy, "c", 1.0)
    assert policy.session(1.0).ask == ("a", "c")


def test_leaving_does_not_end_a_quarantine() -> None:
    policy = policy_of(quarantine_s=10.0)
    policy.on_contradiction("b", 0.0)
    policy.remove("b")
    policy.add("b", 1)
    assert policy.state("b") == "out"
    assert policy.next_probe_s(1.0) == 9.0
    policy.add("d", 1)
    assert policy.state("d") == "up"


def test_the_nodes_that_left_in_quarantine_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonn.aggregator.policy.policy.EXPELLED", 1)
    policy = policy_of()
    for node in ("b", "c"):
        policy.on_contradiction(node, 0.0)
        policy.remove(node)
    for student, node in enumerate(("b", "c"), start=1):
        policy.add(node, student)
    assert (policy.state("b"), policy.state("c")) == ("up", "out")
