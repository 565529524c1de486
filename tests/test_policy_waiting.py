"""Whom a policy asks and for how long it waits: deadlines, hedging, early fusion, and the latencies behind them."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.policy.latencies import WINDOW, Latencies
from nonn.errors import ConfigError
from tests.policies import NODES, ONE_EACH, PAIR, policy_of, practise, refused, silent


def test_all_nodes_are_asked_until_the_deadline_while_nothing_is_known() -> None:
    session = policy_of(deadline_s=0.5).session(3.0)
    assert session.ask == NODES
    assert (session.deadline_at, session.look_at, session.done) == (3.5, 3.5, False)


def test_the_clients_deadline_shortens_the_wait_by_what_fusing_takes() -> None:
    policy = policy_of(deadline_s=1.0, fusion_budget_s=0.01)
    assert policy.session(0.0, 0.25).deadline_at == pytest.approx(0.24)
    assert policy.session(0.0, 60.0).deadline_at == 1.0


def test_a_client_whose_deadline_leaves_no_time_makes_no_work() -> None:
    policy = policy_of(fusion_budget_s=0.01)
    session = policy.session(0.0, 0.01)
    assert (session.ask, session.done) == ((), True)
    assert [record.pending for record in policy.nodes.values()] == [0, 0, 0]


def test_a_request_is_done_when_everybody_has_answered_or_failed() -> None:
    session = policy_of().session(0.0)
    assert session.tell("a", True)
    assert not session.tell("b", False)
    assert session.decide(0.1) == ()
    assert not session.done
    assert session.tell("c", True)
    assert session.done
    assert (session.answered, session.early) == (0b101, False)


def test_at_the_deadline_the_wait_is_over() -> None:
    session = policy_of(deadline_s=1.0).session(0.0)
    session.tell("a", True)
    session.decide(0.9)
    assert not session.done
    session.decide(1.0)
    assert session.done
    assert session.timed_out(1.0)
    assert set(session.waiting) == {"b", "c"}


def test_nobody_waits_for_a_node_that_another_request_has_found_to_hang() -> None:
    policy = policy_of()
    session = policy.session(0.5)
    session.tell("a", True)
    session.tell("c", True)
    silent(policy, "b", now=1.0)
    session.leave_out("b")
    assert session.done
    assert session.answered == 0b101


def test_but_a_request_that_needs_it_for_the_quorum_waits_on() -> None:
    policy = policy_of(quorum=3)
    session = policy.session(0.5)
    session.tell("a", True)
    session.tell("c", True)
    session.leave_out("b")
    assert not session.done
    assert session.tell("b", True)
    assert session.done
    assert session.answered == 0b111


def test_whom_nobody_waits_for_is_fused_all_the_same_if_it_answers_before_the_others() -> None:
    session = policy_of().session(0.0)
    session.leave_out("b")
    assert not session.done
    assert session.tell("b", True)
    assert session.tell("a", True)
    assert session.tell("c", True)
    assert session.answered == 0b111


def test_nodes_come_and_go_while_requests_are_under_way() -> None:
    policy = policy_of()
    session = policy.session(0.0)
    policy.add("d", 0)
    policy.remove("b")
    assert set(policy.session(0.1).ask) == {"a", "c"} or set(policy.session(0.1).ask) == {"d", "c"}
    policy.on_success("b", 0.1, 0.1)
    assert not session.tell("b", True)
    assert session.tell("a", True)
    assert session.tell("c", True)
    assert session.done


# Hedging


def test_of_two_replicas_the_faster_one_is_asked_and_the_other_after_its_95th_percentile() -> None:
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


def test_a_replica_is_asked_at_once_when_the_first_one_fails() -> None:
    policy = policy_of(PAIR)
    practise(policy, "a", [0.01])
    practise(policy, "a2", [0.02])
    session = policy.session(0.0)
    assert "a" in session.ask
    session.tell("a", False)
    policy.on_failure("a", 0.0, 0.0)
    assert session.decide(0.0) == ("a2",)
    assert policy.nodes["a2"].pending == 1
    session.tell("b", True)
    session.tell("a2", False)
    assert session.decide(0.1) == ()
    assert session.done
    assert session.answered == 0b10


def test_a_replica_that_is_out_is_no_spare_and_one_that_is_up_goes_first() -> None:
    policy = policy_of(PAIR)
    practise(policy, "a", [0.01])
    practise(policy, "a2", [0.02])
    refused(policy, "a", 1.0)
    assert set(policy.session(1.0).ask) == {"a2", "b"}
    refused(policy, "a", 1.1)
    session = policy.session(1.1)
    session.tell("a2", False)
    assert session.decide(1.1) == ()


def test_requests_under_way_are_shared_among_replicas() -> None:
    policy = policy_of(PAIR)
    for node in PAIR:
        practise(policy, node, [0.01] * 5)
    first = [policy.session(0.0).ask for _ in range(10)]
    assert sum("a" in ask for ask in first) == 5


@given(st.integers(0, 2**32), st.floats(0.01, 0.99))
def test_every_student_is_fused_once_whatever_order_replies_and_failures_come_in(seed: Any, p_ok: Any) -> None:
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
            (policy.on_success if ok else policy.on_failure)(node, now - session.waiting[node], now)
            if session.tell(node, ok):
                fused.append(nodes[node])
        asked += session.decide(now)
        assert session.look_at > now or session.done
        assert now <= 1.0 + 1e-6
    assert len(asked) == len(set(asked))
    assert len(fused) == len(set(fused))
    assert session.answered == sum(1 << student for student in fused)


# Early fusion


def early(accuracy_per_ms: Any, quorum: int = 1, early_loss: float = 0.0) -> Any:
    policy = policy_of(accuracy_per_ms=accuracy_per_ms, quorum=quorum, early_loss=early_loss, deadline_s=1.0)
    practise(policy, "a", [0.010] * WINDOW)
    practise(policy, "b", [0.020] * WINDOW)
    practise(policy, "c", [0.200] * WINDOW)
    return policy.session(0.0)


def test_without_a_price_of_time_everybody_is_waited_for() -> None:
    session = early(0.0)
    session.tell("a", True)
    session.tell("b", True)
    session.decide(0.02)
    session.decide(0.9)
    assert (session.done, session.look_at) == (False, 1.0)


def test_a_device_whose_gain_cannot_pay_for_the_wait_is_not_waited_for() -> None:
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


def test_a_device_that_is_silent_for_longer_than_ever_has_no_chance_left() -> None:
    session = early(0.00005)
    session.tell("a", True)
    session.tell("b", True)
    session.decide(0.020)
    session.decide(0.12)
    assert session.look_at == pytest.approx(0.2)
    session.decide(0.2)
    assert session.done
    assert session.early


def test_early_fusion_never_goes_below_the_quorum() -> None:
    session = early(1.0, quorum=3)
    session.tell("a", True)
    session.tell("b", True)
    session.decide(0.9)
    assert not session.done


def test_two_devices_that_are_worth_nothing_alone_are_waited_for_together() -> None:
    table = [0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
    policy = policy_of(accuracy=table, accuracy_per_ms=0.001)
    for node in NODES:
        practise(policy, node, [0.01] * WINDOW)
    session = policy.session(0.0)
    session.tell("a", True)
    session.decide(0.005)
    assert not session.done


def test_early_fusion_needs_a_table() -> None:
    with pytest.raises(ConfigError, match="needs the accuracy of every subset of devices"):
        Policy(ONE_EACH, PolicyConfig(accuracy_per_ms=0.1))


@given(st.integers(0, 2**32), st.floats(1e-6, 0.1))
def test_a_request_always_ends_and_never_after_its_deadline(seed: Any, price: Any) -> None:
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


# Stragglers: by the table, c is worth one point after a and b, and a is worth 20 after b and c.


def asked(policy: Any, now: float, *replies: Any) -> Any:
    """A session in which nodes answer at these times after its start."""
    session = policy.session(now)
    for node, after_s in replies:
        lag_s = now + after_s - session.prompt_at if session.prompt_done else 0.0
        session.tell(node, True)
        policy.on_success(node, after_s, now + after_s, lag_s=lag_s)
        session.decide(now + after_s)
    return session


def test_a_node_that_is_a_tenth_of_the_deadline_later_than_the_others_is_not_waited_for_if_it_is_worth_little() -> None:
    policy = policy_of(early_loss=0.02, deadline_s=1.0)
    session = asked(policy, 0.0, ("a", 0.010), ("b", 0.020))
    assert (session.done, session.look_at) == (False, pytest.approx(0.12))
    session.decide(0.12)
    assert (session.done, session.early, session.answered) == (True, True, 0b011)
    assert policy.stragglers == {"c"}


def test_a_node_that_is_a_little_less_late_is_no_straggler_and_in_every_answer() -> None:
    policy = policy_of(early_loss=0.02, deadline_s=1.0)
    for now in range(20):
        session = asked(policy, float(now), ("a", 0.01), ("b", 0.02))
        session.decide(now + 0.02 + 0.09)
        assert (session.done, session.prompt_done) == (False, False)
        session.tell("c", True)
        policy.on_success("c", 0.11, now + 0.11)
        session.decide(now + 0.11)
        assert (session.done, session.early, session.answered) == (True, False, 0b111)
        assert policy.stragglers == set()


def test_a_straggler_costs_its_patience_once_and_is_waited_for_again_after_a_reply_in_time() -> None:
    policy = policy_of(early_loss=0.02, deadline_s=1.0)
    asked(policy, 0.0, ("a", 0.01), ("b", 0.02)).decide(0.2)
    late = asked(policy, 1.0, ("a", 0.01), ("b", 0.02))
    assert (late.done, late.prompt_at) == (True, pytest.approx(1.02))
    policy.on_success("c", 0.3, 1.3, late=True, lag_s=0.28)
    assert asked(policy, 2.0, ("a", 0.01), ("b", 0.02)).done
    assert asked(policy, 3.0, ("a", 0.01), ("c", 0.015), ("b", 0.02)).answered == 0b111
    assert not asked(policy, 4.0, ("a", 0.01), ("b", 0.02)).done


def test_a_node_that_failed_and_answers_a_probe_is_no_straggler_any_more() -> None:
    policy = policy_of(early_loss=0.02, deadline_s=1.0)
    asked(policy, 0.0, ("a", 0.01), ("b", 0.02)).decide(0.12)
    assert policy.stragglers == {"c"}
    silent(policy, "c", 1.0)
    assert policy.stragglers == {"c"}
    policy.on_probe("c", True, 0.01, 2.0)
    assert (policy.state("c"), policy.stragglers) == ("up", set())


def test_a_straggler_that_is_worth_more_than_the_loss_is_waited_for_but_holds_up_no_batch() -> None:
    policy = policy_of(early_loss=0.02, deadline_s=1.0)
    first = asked(policy, 0.0, ("b", 0.01), ("c", 0.02))
    first.decide(0.12)
    assert (first.done, first.prompt_done, first.prompt_at) == (False, True, pytest.approx(0.02))
    second = asked(policy, 1.0, ("b", 0.01), ("c", 0.02))
    assert (second.done, second.prompt_done, second.look_at) == (False, True, 2.0)
    assert asked(policy, 3.0, ("b", 0.01), ("c", 0.02), ("a", 0.5)).answered == 0b111
    assert policy.stragglers == {"a"}


def test_one_of_two_nodes_can_be_a_straggler_but_not_half_of_four() -> None:
    for num_nodes, prompt in ((2, 1), (4, 3), (5, 3), (8, 5)):
        nodes = {f"n{i}": i for i in range(num_nodes)}
        for count in range(1, num_nodes):
            policy = policy_of(nodes, [0.9] * 2**num_nodes, early_loss=0.02, deadline_s=1.0)
            session = asked(policy, 0.0, *((f"n{i}", 0.01) for i in range(count)))
            session.decide(0.5)
            assert session.done is (count >= prompt), (num_nodes, count)


def test_a_node_that_another_request_has_found_to_hang_is_no_straggler() -> None:
    policy = policy_of({f"n{i}": i for i in range(5)}, [0.9] * 32, early_loss=0.02, deadline_s=1.0)
    session = asked(policy, 0.0, *((f"n{i}", 0.01) for i in range(3)))
    session.leave_out("n3")
    session.decide(0.5)
    assert (session.done, policy.stragglers) == (True, {"n4"})


def test_stragglers_never_leave_an_answer_below_the_quorum() -> None:
    policy = policy_of(early_loss=0.02, quorum=3, deadline_s=1.0)
    session = asked(policy, 0.0, ("a", 0.01), ("b", 0.02))
    session.decide(0.9)
    assert not session.done


def test_a_straggler_with_four_open_requests_is_not_asked_if_it_is_worth_little() -> None:
    policy = policy_of(early_loss=0.02, deadline_s=1.0)
    for now in range(4):
        asked(policy, float(now), ("a", 0.01), ("b", 0.02)).decide(now + 0.2)
    assert policy.session(4.0).ask == ("a", "b")
    policy.on_success("c", 4.0, 4.1, late=True, lag_s=3.9)
    assert policy.session(4.2).ask == NODES
    policy = policy_of(early_loss=0.005, deadline_s=1.0)
    for now in range(9):
        asked(policy, float(now), ("a", 0.01), ("b", 0.02)).decide(now + 0.2)
    assert policy.session(9.0).ask == NODES


# Latencies


@given(st.lists(st.floats(0, 10), max_size=200), st.floats(0.01, 1))
def test_a_quantile_is_that_of_the_last_64_up_to_a_quarter_of_them(values: Any, q: Any) -> None:
    latencies = Latencies()
    for value in values:
        latencies.add(value)
    if not values:
        assert latencies.quantile(q) == 0.0
        return
    assert latencies.quantile(q) == np.quantile(values[-WINDOW:], q, method="inverted_cdf")


def test_what_is_left_to_expect_of_a_silent_node_is_counted() -> None:
    latencies = Latencies()
    assert latencies.rest(0.2, 1.0) == (0.5, 0.4)
    for tenth in range(1, 10):
        latencies.add(tenth / 10)
    p_answers, wait_s = latencies.rest(0.55, 1.0)  # 0.6 to 0.9 are left, and one beyond
    assert p_answers == 4 / 5
    assert wait_s == pytest.approx(0.8 - 0.55)
    p_answers, wait_s = latencies.rest(0.55, 0.65)
    assert p_answers == 1 / 5
    assert wait_s == pytest.approx(0.05)
    assert latencies.rest(0.95, 2.0) == (0.0, 0.0)
