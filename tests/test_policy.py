from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.latencies import WINDOW, Latencies
from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.policy_file import load_policy, write_policy
from nonn.errors import ConfigError

NODES = ("a", "b", "c")
ONE_EACH = {"a": 0, "b": 1, "c": 2}
# a alone is poor, b and c are replicas of one part: either is worth ten points, the second of them one.
TABLE = [0.0, 0.7, 0.6, 0.8, 0.6, 0.8, 0.61, 0.81]


def policy_of(nodes=ONE_EACH, accuracy=TABLE, **config):
    return Policy(nodes, PolicyConfig(**config), accuracy)


def silent(policy: Policy, node: str, now: float, waited_s: float = 1.0) -> None:
    policy.nodes[node].pending += 1
    policy.record(node, False, waited_s, now, timed_out=True)


def refused(policy: Policy, node: str, now: float) -> None:
    policy.nodes[node].pending += 1
    policy.record(node, False, 0.0, now)


def practise(policy: Policy, node: str, latencies_s, now: float = 0.0) -> None:
    """The node answers requests with these latencies."""
    for latency_s in latencies_s:
        policy.nodes[node].pending += 1
        policy.record(node, True, latency_s, now)


def test_all_nodes_are_asked_until_the_deadline_while_nothing_is_known():
    session = policy_of(deadline_s=0.5).session(3.0)
    assert session.ask == NODES
    assert (session.deadline_at, session.look_at, session.done) == (3.5, 3.5, False)


def test_the_clients_deadline_shortens_the_wait_by_what_fusing_takes():
    policy = policy_of(deadline_s=1.0, fusion_budget_s=0.01)
    assert policy.session(0.0, 0.25).deadline_at == pytest.approx(0.24)
    assert policy.session(0.0, 60.0).deadline_at == 1.0


def test_a_client_whose_deadline_leaves_no_time_makes_no_work():
    policy = policy_of(fusion_budget_s=0.01)
    session = policy.session(0.0, 0.01)
    assert (session.ask, session.done) == ((), True)
    assert [record.pending for record in policy.nodes.values()] == [0, 0, 0]


def test_a_request_is_done_when_everybody_has_answered_or_failed():
    session = policy_of().session(0.0)
    assert session.tell("a", True)
    assert not session.tell("b", False)
    assert session.decide(0.1) == ()
    assert not session.done
    assert session.tell("c", True)
    assert session.done
    assert (session.answered, session.early) == (0b101, False)


def test_at_the_deadline_the_wait_is_over():
    session = policy_of(deadline_s=1.0).session(0.0)
    session.tell("a", True)
    session.decide(0.9)
    assert not session.done
    session.decide(1.0)
    assert session.done
    assert session.timed_out(1.0)
    assert set(session.waiting) == {"b", "c"}


@given(st.integers(1, 5), st.integers(5, 30), st.floats(0.1, 3.0))
def test_a_node_that_hangs_costs_one_deadline_in_all(failures, requests, every_s):
    """Requests come one every so often, also while others wait; only one of them may wait for the deadline."""
    policy = policy_of(breaker_failures=failures, deadline_s=1.0, breaker_reset_s=0.5)
    now, waited, open_sessions = 0.0, [], []
    policy.record("b", True, 0.01, 0.0)
    times = sorted([(k * every_s, "ask", None) for k in range(requests)], key=lambda item: item[0])
    while times:
        now, what, thing = times.pop(0)
        if what == "ask":
            session = policy.session(now)
            for node in set(session.ask) - {"b"}:
                session.tell(node, True)
                policy.record(node, True, 0.001, now)
            if not session.done:
                open_sessions.append(session)
                times.append((session.deadline_at, "deadline", session))
        elif what == "deadline":
            if not thing.done:
                thing.decide(now)
                waited.append(thing)
            policy.record("b", False, 1.0, now, timed_out=True)
            for session in open_sessions:
                session.leave_out("b")
        else:  # a probe hangs too, but no request waits for it
            policy.record("b", False, 1.0, now, timed_out=True, probe=True)
        times += [(now + 1.0, "probe", None) for _ in policy.probes(now)]
        times.sort(key=lambda item: item[0])
    assert len(waited) == 1
    assert all(session.done for session in open_sessions)
    assert policy.state("b") == "out"


def test_nobody_waits_for_a_node_that_another_request_has_found_to_hang():
    policy = policy_of()
    session = policy.session(0.5)
    session.tell("a", True)
    session.tell("c", True)
    silent(policy, "b", now=1.0)
    session.leave_out("b")
    assert session.done
    assert session.answered == 0b101


def test_but_a_request_that_needs_it_for_the_quorum_waits_on():
    policy = policy_of(quorum=3)
    session = policy.session(0.5)
    session.tell("a", True)
    session.tell("c", True)
    session.leave_out("b")
    assert not session.done
    assert session.tell("b", True)
    assert session.done
    assert session.answered == 0b111


def test_whom_nobody_waits_for_is_fused_all_the_same_if_it_answers_before_the_others():
    session = policy_of().session(0.0)
    session.leave_out("b")
    assert not session.done
    assert session.tell("b", True)
    assert session.tell("a", True)
    assert session.tell("c", True)
    assert session.answered == 0b111


def test_a_node_that_failed_is_probed_at_once_and_then_once_in_every_reset_time():
    policy = policy_of(breaker_reset_s=2.0)
    policy.record("b", True, 0.1, 9.0)
    assert policy.next_probe_s(9.0) is None
    silent(policy, "b", now=10.0)
    assert policy.next_probe_s(10.0) == 0.0
    assert policy.probes(10.0) == ("b",)
    assert policy.probes(10.0) == ()
    assert policy.next_probe_s(10.0) is None
    policy.record("b", False, 1.0, 11.0, timed_out=True, probe=True)
    assert policy.probes(12.9) == ()
    assert policy.next_probe_s(12.5) == pytest.approx(0.5)
    assert policy.probes(13.0) == ("b",)


def test_a_node_that_answers_probes_but_no_request_is_not_asked_again_and_again():
    policy = policy_of(breaker_reset_s=2.0)
    policy.record("b", True, 0.1, 9.0)
    silent(policy, "b", now=10.0)
    assert policy.probes(10.0) == ("b",)
    policy.record("b", True, 0.1, 10.1, probe=True)
    silent(policy, "b", now=11.2)
    assert policy.probes(11.2) == ()
    assert policy.probes(13.2) == ("b",)


def test_one_good_reply_brings_a_node_back():
    policy = policy_of()
    silent(policy, "b", 1.0)
    assert policy.session(1.0).ask == ("a", "c")
    assert policy.probes(2.0) == ("b",)
    policy.record("b", True, 0.1, 2.1, probe=True)
    assert policy.session(2.1).ask == NODES
    assert policy.next_probe_s(2.1) is None


def test_refusals_leave_a_node_out_only_when_they_come_in_a_row():
    policy = policy_of(breaker_failures=2)
    for now in range(1, 20, 2):
        refused(policy, "b", float(now))
        assert policy.state("b") == "suspect"
        assert policy.session(now).ask == NODES
        policy.record("b", True, 0.1, now + 1.0)
    refused(policy, "b", 30.0)
    refused(policy, "b", 31.0)
    assert policy.state("b") == "out"


def test_a_request_from_before_a_node_came_back_does_not_count_against_it():
    policy = policy_of()
    silent(policy, "b", now=5.0)
    policy.record("b", True, 0.01, 6.0, probe=True)
    silent(policy, "b", now=6.5)  # asked at 5.5, while it hung
    assert policy.state("b") == "up"
    silent(policy, "b", now=7.1)
    assert policy.state("b") == "out"


def test_a_client_in_a_hurry_cannot_switch_a_slow_node_off():
    policy = policy_of(deadline_s=1.0)
    policy.record("b", True, 0.2, 1.0)
    for now in range(2, 10):
        silent(policy, "b", float(now), waited_s=0.05)
    assert policy.state("b") == "up"


def test_silence_counts_against_a_node_that_usually_answers_ten_times_faster():
    policy = policy_of(deadline_s=1.0)
    practise(policy, "b", [0.002] * 20)
    silent(policy, "b", 2.0, waited_s=0.05)
    assert policy.state("b") == "out"


def test_below_the_quorum_everybody_is_asked_since_there_is_nothing_to_lose():
    policy = policy_of(quorum=2)
    silent(policy, "a", now=1.0)
    assert policy.session(1.0).ask == ("b", "c")
    silent(policy, "b", now=1.0)
    assert policy.session(1.0).ask == NODES


def test_ready_means_that_the_quorum_is_up():
    policy = policy_of(quorum=2)
    assert policy.ready
    silent(policy, "a", now=1.0)
    assert policy.ready
    silent(policy, "b", now=1.0)
    assert not policy.ready
    policy.record("a", True, 0.1, 2.0)
    assert policy.ready


def test_replicas_of_one_student_make_no_quorum():
    policy = policy_of({"a": 0, "a2": 0, "b": 1}, quorum=2)
    silent(policy, "b", now=1.0)
    assert not policy.ready


def test_requests_are_counted_and_probes_are_not():
    policy = policy_of()
    policy.record("a", True, 0.2, 1.0)
    policy.record("a", True, 0.1, 2.0)
    silent(policy, "a", now=3.0)
    policy.record("a", True, 0.18, 4.0, probe=True)
    policy.record("a", True, 0.3, 5.0, late=True)
    record = policy.nodes["a"]
    assert (record.asked, record.answered) == (4, 2)
    assert record.latency_s == pytest.approx(0.2)


def test_nodes_come_and_go_while_requests_are_under_way():
    policy = policy_of()
    session = policy.session(0.0)
    policy.add("d", 0)
    policy.remove("b")
    assert set(policy.session(0.1).ask) == {"a", "c"} or set(policy.session(0.1).ask) == {"d", "c"}
    policy.record("b", True, 0.1, 0.1)
    assert not session.tell("b", True)
    assert session.tell("a", True)
    assert session.tell("c", True)
    assert session.done


@given(st.lists(st.tuples(st.sampled_from(NODES), st.booleans(), st.booleans(), st.floats(0, 2)), max_size=60))
def test_whatever_happens_requests_can_reach_the_quorum_and_failed_nodes_are_probed(outcomes):
    policy = policy_of(quorum=2)
    now = 0.0
    for node, ok, timed_out, step in outcomes:
        now += step
        policy.record(node, ok, min(step, 1.0), now, timed_out=timed_out and not ok)
        assert len(policy.session(now).ask) >= 2
    down = {node for node in NODES if policy.state(node) != "up"}
    assert set(policy.probes(now + policy.config.breaker_reset_s)) == down


# Hedging

PAIR = {"a": 0, "a2": 0, "b": 1}


def test_of_two_replicas_the_faster_one_is_asked_and_the_other_after_its_95th_percentile():
    policy = policy_of(PAIR, deadline_s=1.0)
    practise(policy, "a", [0.02] * 19 + [0.5])
    practise(policy, "a2", [0.03] * 20)
    practise(policy, "b", [0.01] * 20)
    session = policy.session(10.0)
    assert set(session.ask) == {"a", "b"}
    session.tell("b", True)
    assert session.decide(10.01) == ()
    assert session.look_at == pytest.approx(10.02)
    assert session.decide(10.02) == ("a2",)
    assert session.hedges == 1
    assert session.tell("a2", True)
    session.decide(10.03)
    assert session.done
    assert not session.tell("a", True)  # too late: one reply a student is fused
    assert session.answered == 0b11


def test_a_replica_is_asked_at_once_when_the_first_one_fails():
    policy = policy_of(PAIR)
    practise(policy, "a", [0.01])
    practise(policy, "a2", [0.02])
    session = policy.session(0.0)
    assert "a" in session.ask
    session.tell("a", False)
    policy.record("a", False, 0.0, 0.0)
    assert session.decide(0.0) == ("a2",)
    assert policy.nodes["a2"].pending == 1
    session.tell("b", True)
    session.tell("a2", False)
    assert session.decide(0.1) == ()
    assert session.done
    assert session.answered == 0b10


def test_a_replica_that_is_out_is_no_spare_and_one_that_is_up_goes_first():
    policy = policy_of(PAIR)
    practise(policy, "a", [0.01])
    practise(policy, "a2", [0.02])
    refused(policy, "a", 1.0)
    assert set(policy.session(1.0).ask) == {"a2", "b"}
    refused(policy, "a", 1.1)
    session = policy.session(1.1)
    session.tell("a2", False)
    assert session.decide(1.1) == ()


def test_requests_under_way_are_shared_among_replicas():
    policy = policy_of(PAIR)
    for node in PAIR:
        practise(policy, node, [0.01] * 5)
    first = [policy.session(0.0).ask for _ in range(10)]
    assert sum("a" in ask for ask in first) == 5


@given(st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_every_student_is_fused_once_whatever_order_replies_and_failures_come_in(seed, p_ok):
    rng = random.Random(seed)
    nodes = {f"n{i}": i % 3 for i in range(7)}
    policy = policy_of(nodes, deadline_s=1.0, quorum=rng.randint(1, 3), hedge_quantile=0.5)
    for node in nodes:
        practise(policy, node, [rng.uniform(0.01, 0.3) for _ in range(10)])
    session, now, fused, asked = policy.session(0.0), 0.0, [], []
    asked += session.ask
    while not session.done:
        now = min(now + rng.expovariate(20), max(session.look_at, now))
        if session.waiting and rng.random() < 0.7:
            node, ok = rng.choice(sorted(session.waiting)), rng.random() < p_ok
            policy.record(node, ok, now - session.waiting[node], now)
            if session.tell(node, ok):
                fused.append(nodes[node])
        asked += session.decide(now)
        assert session.look_at > now or session.done
        assert now <= 1.0 + 1e-6
    assert len(asked) == len(set(asked))
    assert len(fused) == len(set(fused))
    assert session.answered == sum(1 << student for student in fused)


# Early fusion


def early(accuracy_per_ms, quorum=1):
    policy = policy_of(accuracy_per_ms=accuracy_per_ms, quorum=quorum, deadline_s=1.0)
    practise(policy, "a", [0.010] * WINDOW)
    practise(policy, "b", [0.020] * WINDOW)
    practise(policy, "c", [0.200] * WINDOW)
    return policy.session(0.0)


def test_without_a_price_of_time_everybody_is_waited_for():
    session = early(0.0)
    session.tell("a", True)
    session.tell("b", True)
    session.decide(0.02)
    assert (session.done, session.look_at) == (False, 1.0)


def test_a_device_whose_gain_cannot_pay_for_the_wait_is_not_waited_for():
    # c is worth one point beside a and b, and takes 180 ms longer than b: 0.000055 a millisecond.
    for price, waits in ((0.00005, True), (0.00006, False)):
        session = early(price)
        session.tell("a", True)
        session.decide(0.010)
        assert not session.done  # b is worth ten points and comes within 10 ms
        session.tell("b", True)
        session.decide(0.020)
        assert (session.done, session.early) == (not waits, not waits)
        assert session.answered == 0b011


def test_a_device_that_is_silent_for_longer_than_ever_has_no_chance_left():
    session = early(0.00005)
    session.tell("a", True)
    session.tell("b", True)
    session.decide(0.020)
    assert session.look_at == pytest.approx(0.2)
    session.decide(0.2)
    assert session.done
    assert session.early


def test_early_fusion_never_goes_below_the_quorum():
    session = early(1.0, quorum=3)
    session.tell("a", True)
    session.tell("b", True)
    session.decide(0.9)
    assert not session.done


def test_two_devices_that_are_worth_nothing_alone_are_waited_for_together():
    table = [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
    policy = policy_of(accuracy=table, accuracy_per_ms=0.001)
    for node in NODES:
        practise(policy, node, [0.01] * WINDOW)
    session = policy.session(0.0)
    session.tell("a", True)
    session.decide(0.005)
    assert not session.done


def test_early_fusion_needs_a_table():
    with pytest.raises(ConfigError, match="needs the accuracy of every answering set"):
        Policy(ONE_EACH, PolicyConfig(accuracy_per_ms=0.1))


@given(st.integers(0, 2**32), st.floats(1e-6, 0.1))
def test_a_request_always_ends_and_never_after_its_deadline(seed, price):
    rng = random.Random(seed)
    nodes = {f"n{i}": i for i in range(5)}
    table = [0.0, *sorted(rng.random() for _ in range(31))]
    policy = policy_of(nodes, table, accuracy_per_ms=price, deadline_s=1.0)
    for node in nodes:
        practise(policy, node, [rng.lognormvariate(-4, 1) for _ in range(rng.randint(0, 100))])
    session, now, looks = policy.session(0.0), 0.0, 0
    replies = sorted((rng.lognormvariate(-3, 1.5), node) for node in nodes)
    while not session.done:
        at = replies[0][0] if replies else 2.0
        now = min(at, session.look_at)
        if now == at:
            session.tell(replies.pop(0)[1], True)
        session.decide(now)
        looks += 1
        assert session.done or session.look_at > now
        assert looks < 200
    assert now <= 1.0 + 1e-6


# Latencies


@given(st.lists(st.floats(0, 10), max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_that_of_the_last_64_up_to_a_quarter_of_them(values, q):
    import numpy as np

    latencies = Latencies()
    for value in values:
        latencies.add(value)
    if not values:
        assert latencies.quantile(q) == 0.0
        return
    assert latencies.quantile(q) == np.quantile(values[-WINDOW:], q, method="inverted_cdf")


def test_what_is_left_to_expect_of_a_silent_node_is_counted():
    latencies = Latencies()
    assert latencies.rest(0.2, 1.0) == (0.5, 0.4)
    for tenth in range(1, 10):
        latencies.add(tenth / 10)
    p_answers, wait_s = latencies.rest(0.55, 1.0)  # 0.6 to 0.9 are left, and one beyond
    assert p_answers == 4 / 5
    assert wait_s == pytest.approx(0.8 - 0.55)
    assert latencies.rest(0.55, 0.65) == (1 / 5, pytest.approx(0.05))
    assert latencies.rest(0.95, 2.0) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"deadline_s": 0.0}, "deadline_s = 0.0"),
        ({"deadline_s": float("nan")}, "deadline_s = nan"),
        ({"breaker_reset_s": -1.0}, "breaker_reset_s = -1.0"),
        ({"quorum": 0}, "quorum = 0"),
        ({"breaker_failures": 0}, "breaker_failures = 0"),
        ({"fusion_budget_s": -0.1}, "fusion_budget_s = -0.1"),
        ({"accuracy_per_ms": -0.1}, "accuracy_per_ms = -0.1"),
        ({"accuracy_per_ms": float("nan")}, "accuracy_per_ms = nan"),
        ({"hedge_quantile": 0.0}, "hedge_quantile = 0.0"),
        ({"hedge_quantile": 1.1}, "hedge_quantile = 1.1"),
    ],
)
def test_an_impossible_policy_is_an_error_that_names_the_value(values, text):
    with pytest.raises(ConfigError, match=text):
        PolicyConfig(**values)


def test_a_policy_is_read_as_it_was_written(tmp_path):
    config = PolicyConfig(deadline_s=0.25, quorum=3, breaker_failures=7, breaker_reset_s=2.0, accuracy_per_ms=1e-5)
    write_policy(tmp_path / "policy.toml", config)
    assert load_policy(tmp_path / "policy.toml") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[policy]\ndeadline = 1.0", "unknown key 'policy.deadline'; did you mean 'policy.deadline_s'?"),
        ("[policy]\nquorum = 1.5", "'policy.quorum' must be a whole number, not 1.5"),
        ("[policy]\nquorum = 0", "[policy] quorum = 0: must be at least 1"),
        ("deadline_s = 1.0", "unknown key 'deadline_s'; a policy is one table, [policy]"),
        ("", "no [policy] table"),
        ("policy = 3", "no [policy] table"),
    ],
)
def test_a_wrong_policy_file_is_an_error_that_names_file_and_key(tmp_path, text, message):
    file = tmp_path / "policy.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_policy(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert message in str(caught.value)
