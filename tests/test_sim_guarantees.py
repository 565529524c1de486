from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from nonn.errors import ConfigError, GuaranteeError
from nonn.reliability.guarantees import check_guarantees, judge
from nonn.reliability.intervals import wilson
from nonn.reliability.laws import parse_law
from nonn.reliability.subsets import members
from nonn.reliability.table import SubsetTable

# Three devices; 0 alone is good, 1 and 2 are weak.
TABLE = SubsetTable(np.array([0, 80, 40, 90, 30, 85, 60, 95]), 100)


@pytest.mark.parametrize(
    ("text", "value", "breaking"),
    [
        ("accuracy>=0.95 failed<=0", 0.95, None),
        ("accuracy>=0.60 failed<=1", 0.60, None),
        ("accuracy >= 0.61  failed <= 1", 0.60, (1, 2)),
        ("accuracy>=0.31 failed<=2", 0.30, (2,)),
        ("accuracy>=0.1 failed<=3", 0.0, ()),
    ],
)
def test_worst_case_is_over_all_sets_with_no_more_failures(
    text: str, value: float, breaking: tuple[int, ...] | None
) -> None:
    verdict = judge(TABLE, None, text)
    assert (verdict.value, verdict.breaking) == (value, breaking)
    assert verdict.holds == (breaking is None)


def test_a_promise_under_a_law_names_the_likeliest_set_below_the_level() -> None:
    law = parse_law("independent p=[0.2, 0.1, 0.1]", 3)
    verdict = judge(TABLE, law, "P(accuracy>=0.80)>=0.9")
    assert verdict.value == pytest.approx(0.8)
    assert verdict.breaking == (1, 2)
    assert verdict.accuracy == 0.6
    assert judge(TABLE, law, "P( accuracy >= 0.8 ) >= 0.8").holds


def test_a_promised_expectation_names_the_set_that_costs_most() -> None:
    law = parse_law("independent p=[0.2, 0.1, 0.1]", 3)
    value = float(law.probabilities() @ TABLE.accuracy)
    assert judge(TABLE, law, f"expected>={value}").holds
    verdict = judge(TABLE, law, "expected>=0.9")
    assert verdict.value == pytest.approx(value)
    assert verdict.breaking == (1, 2)


def test_a_promise_with_a_confidence_is_about_new_samples() -> None:
    verdict = judge(TABLE, None, "accuracy>=0.5 failed<=1 confidence=0.95")
    wanted = stats.binomtest(60, 100, alternative="greater").proportion_ci(0.95, method="exact").low
    assert verdict.value == pytest.approx(wanted)
    assert verdict.holds
    verdict = judge(TABLE, None, "accuracy>=0.60 failed<=1 confidence=0.95")
    assert (verdict.holds, verdict.breaking, verdict.accuracy) == (False, (1, 2), 0.6)
    assert "at least 0.512976 with a confidence of 0.95 instead of 0.6; when only devices 1, 2 answer, measured" in str(
        verdict
    )
    law = parse_law("independent p=0.05", 3)
    for promise in ("expected>={}", "P(accuracy>=0.80)>={}"):
        measured = judge(TABLE, law, promise.format(0.5)).value
        bound = judge(TABLE, law, promise.format(0.5) + " confidence=0.95")
        assert bound.value < measured
        assert not judge(TABLE, law, promise.format(measured) + "  confidence = 0.95").holds
        assert judge(TABLE, law, promise.format(0.5) + " confidence=0.99").value <= bound.value
    expected = float(law.probabilities() @ TABLE.accuracy)
    assert judge(TABLE, law, "expected>=0.5 confidence=0.975").value == pytest.approx(
        float(wilson(100 * expected, 100)[0])
    )


def test_the_worst_case_is_below_its_bound_as_rarely_as_the_confidence_says() -> None:
    """Fifteen subsets with nearly the same accuracy: the bound of the worst needs no correction for the choice."""
    rng, truth = np.random.default_rng(0), np.linspace(0.9, 0.91, 15)
    wrong = 0
    for _ in range(400):
        table = SubsetTable(np.array([0, *rng.binomial(200, truth)]), 200)
        wrong += judge(table, None, "accuracy>=0.5 failed<=3 confidence=0.9").value > truth.min()
    assert wrong / 400 < 0.1


@given(st.lists(st.integers(0, 100), min_size=16, max_size=16), st.integers(0, 4), st.integers(0, 100))
def test_the_set_that_is_named_does_break_the_promise(counts: list[int], failed: int, percent: int) -> None:
    table = SubsetTable(np.array(counts), 100)
    verdict = judge(table, None, f"accuracy>={percent / 100} failed<={failed}")
    lowest = min(counts[m] for m in range(16) if 4 - len(members(m)) <= failed)
    assert verdict.holds == (lowest >= percent)
    if not verdict.holds:
        assert verdict.breaking is not None
        assert counts[sum(1 << i for i in verdict.breaking)] == lowest
        assert 4 - len(verdict.breaking) <= failed


def test_promises_that_hold_return_and_others_raise_with_every_broken_one() -> None:
    kept = ["accuracy>=0.6 failed<=1", "expected>=0.9"]
    law = parse_law("independent p=0.01", 3)
    assert [verdict.text for verdict in check_guarantees(TABLE, law, kept)] == kept
    assert check_guarantees(TABLE, None, []) == []
    with pytest.raises(GuaranteeError) as caught:
        check_guarantees(TABLE, law, ["accuracy>=0.7 failed<=1", *kept, "accuracy>=0.2 failed<=3"])
    message = str(caught.value)
    assert "when only devices 1, 2 answer, accuracy is 0.6" in message
    assert "no device answers" in message
    assert "expected" not in message
    assert GuaranteeError.exit_code == 7
    assert GuaranteeError.grpc_status == "FAILED_PRECONDITION"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("accuracy>0.7", "write 'accuracy>=0.70 failed<=4'"),
        ("accuracy>=0.7", "write 'accuracy>=0.70 failed<=4'"),
        ("accuracy>=70 failed<=1", "must be between 0 and 1"),
        ("accuracy>=. failed<=1", "'.' is not a number"),
        ("accuracy>=0.7 failed<=4", "only 3 devices"),
        ("P(accuracy>=0.7)>=1.5", "must be between 0 and 1"),
        ("P(accuracy>=0.7)>=0.9", "needs a failure law"),
        ("expected>=0.7", "needs a failure law"),
        ("accuracy>=0.7 failed<=1 confidence=1", "at least 0.5 and below 1"),
        ("confidence=0.9", "write 'accuracy>=0.70 failed<=4'"),
    ],
)
def test_a_promise_that_cannot_be_checked_says_why(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        judge(TABLE, None, text)
    # Impossible numbers are reported before a missing law only where no law is needed.
    if "1.5" in text:
        with pytest.raises(ConfigError) as caught:
            judge(TABLE, parse_law("k-of-n k=1", 3), text)
    assert words in str(caught.value)


def test_a_law_for_other_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="law of 4 devices for 3"):
        judge(TABLE, parse_law("k-of-n k=1", 4), "expected>=0.5")
