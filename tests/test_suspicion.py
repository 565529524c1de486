"""Evidence over requests: liars are quarantined soon, honest nodes never, and what is one input counts once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.reliability.suspicion import KNOWN_BELOW, LEAST, Suspicion, evidence

NODES = tuple("abcdefgh")


def novel(number: int) -> Any:
    return np.random.default_rng(number).normal(size=10).astype(np.float32)


def requests_until(found: Any, limit: int = 2000) -> int | None:
    """Requests until a node lands in quarantine; ``found`` gives the surprise of each request's nodes."""
    suspicion = Suspicion()
    for number in range(limit):
        if suspicion.observe(found(number), novel(number), ()):
            return number + 1
    return None


def test_evidence_is_a_likelihood_ratio() -> None:
    """Its mean for an honest node, whose surprise is uniform, is at most 1, which bounds the CUSUM's false alarms."""
    below = np.geomspace(LEAST, KNOWN_BELOW, 10_001)
    ratios = np.exp([evidence(q) for q in below])
    mean = ratios[0] * LEAST + np.trapezoid(ratios, below) + np.exp(evidence(0.5)) * (1 - KNOWN_BELOW)
    assert 0.97 < mean <= 1.0


@given(st.floats(0, 1), st.floats(0, 1))
def test_less_surprise_is_never_more_evidence(one: float, other: float) -> None:
    assert (evidence(one) >= evidence(other)) == (max(one, LEAST) <= max(other, LEAST)) or evidence(one) == evidence(
        other
    )


def test_no_honest_node_is_quarantined_in_a_million_requests() -> None:
    """Surprise uniform on [0, 1], as for honest nodes; the CUSUM of each of eight nodes over 10⁶ requests, all at once.

    ``observe`` walks the first part and the one with the highest score too: it has the same scores.
    """
    threshold = Suspicion.threshold(len(NODES))
    for number, node in enumerate(NODES):
        q = np.random.default_rng(number).random(1_000_000)
        steps = np.full(len(q), evidence(1.0))
        low = q < KNOWN_BELOW
        steps[low] = [evidence(value) for value in q[low]]
        walk = np.concatenate([[0.0], np.cumsum(steps)])
        scores = walk - np.minimum.accumulate(walk)
        highest = int(scores.argmax())
        assert scores[highest] < threshold
        assert highest > 0
        last_zero = int(np.flatnonzero(scores[:highest] == 0)[-1])
        for part in (slice(500), slice(last_zero, highest)):
            suspicion, observed = Suspicion(), list[float]()
            for request, value in enumerate(q[part]):
                surprise = dict.fromkeys(NODES, 1.0) | {node: float(value)}
                assert suspicion.observe(surprise, novel(request), ()) == []
                observed.append(suspicion.scores[node])
            np.testing.assert_allclose(observed, scores[1:][part], atol=1e-6)


def test_a_blatant_liar_is_quarantined_after_a_few_requests_but_not_after_one() -> None:
    found = requests_until(lambda _: dict.fromkeys(NODES, 0.5) | {"c": 0.0})
    assert found is not None
    assert 3 <= found <= 5


def test_two_liars_are_both_quarantined() -> None:
    suspicion, quarantined = Suspicion(), set[str]()
    for number in range(20):
        surprise = {node: 0.5 for node in NODES if node not in quarantined}
        surprise |= {node: 1e-7 for node in ("b", "g") if node not in quarantined}
        quarantined |= set(suspicion.observe(surprise, novel(number), quarantined))
    assert quarantined == {"b", "g"}


def test_a_node_that_lies_in_one_request_of_twenty_is_quarantined() -> None:
    rng = np.random.default_rng(1)
    found = requests_until(lambda _: dict.fromkeys(NODES, 0.5) | {"c": 0.0 if rng.random() < 0.05 else 0.5})
    assert found is not None
    assert found < 400


def test_the_same_input_again_and_again_is_no_further_evidence() -> None:
    suspicion, picture = Suspicion(), novel(0)
    for number in range(1000):
        noise = 0.01 * novel(number)
        assert not suspicion.observe(dict.fromkeys(NODES, 0.5) | {"c": 1e-5}, picture + noise, ())
    assert suspicion.scores["c"] == pytest.approx(evidence(1e-5))


def test_inputs_that_surprise_most_nodes_quarantine_none() -> None:
    assert requests_until(lambda _: dict.fromkeys(NODES, 0.001), 200) is None


def test_a_minority_only_is_ever_in_quarantine() -> None:
    suspicion, quarantined = Suspicion(), set[str]()
    for number in range(200):
        liars = [node for node in NODES[:5] if node not in quarantined]
        surprise = {node: 0.5 for node in NODES if node not in quarantined} | dict.fromkeys(liars[:1], 1e-7)
        quarantined |= set(suspicion.observe(surprise, novel(number), quarantined))
    assert len(quarantined) == 3


def test_a_node_that_left_is_forgotten() -> None:
    suspicion = Suspicion()
    suspicion.observe({"a": 1e-6, "b": 0.5}, novel(0), ())
    suspicion.forget("a")
    suspicion.forget("never seen")
    assert set(suspicion.scores) == {"b"}
