"""Intervals for a finite test set, against SciPy, a bootstrap and known truths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from nonn.bundle import Bundle
from nonn.errors import BundleError, ShapeError
from nonn.reliability import outcomes as outcomes_module
from nonn.reliability.evidence import Evidence, failure_weights, shapley_weights, value_weights
from nonn.reliability.importance import shapley_values
from nonn.reliability.intervals import difference_interval, mean_interval, unpaired_difference, wilson
from nonn.reliability.outcomes import Outcomes, kept_samples
from nonn.reliability.subsets import membership, probabilities
from nonn.reliability.table import SubsetTable
from tests.reports import rewritten
from tests.toys import toy_bundle

N = 4
SURVIVORS = membership(N).sum(axis=1)


def population(samples: int, seed: int) -> NDArray[np.bool_]:
    """Outcomes of samples of unequal difficulty: subsets err on the same samples, larger ones less often."""
    rng = np.random.default_rng(seed)
    seen = 1.1 + rng.normal(size=(samples, 1)) + 0.6 * rng.normal(size=(samples, N))
    right: NDArray[np.bool_] = seen @ membership(N).T > -0.3 * SURVIVORS**1.5 + 0.3
    right[:, 0] = False
    return right


def evidence_of(right: NDArray[np.bool_]) -> Evidence:
    return Evidence(SubsetTable(right.sum(axis=0), len(right)), Outcomes.of(right))


def test_the_interval_of_one_accuracy_is_that_of_scipy_and_holds_the_accuracy() -> None:
    for samples in (1, 7, 360, 10_000):
        correct = np.unique(np.linspace(0, samples, 9).round().astype(int))
        low, high = wilson(correct, samples)
        for k, *ends in zip(correct.tolist(), low.tolist(), high.tolist(), strict=True):
            theirs = stats.binomtest(k, samples).proportion_ci(0.95, method="wilson")
            assert ends == pytest.approx([theirs.low, theirs.high], abs=1e-12)
            assert ends[0] <= k / samples <= ends[1]
    with pytest.raises(ShapeError, match="at least one sample"):
        wilson(0, 0)


def test_scores_of_nought_and_one_give_the_interval_of_their_count() -> None:
    for right in (0, 3, 199, 200):
        scores = np.arange(200) < right
        assert mean_interval(scores) == pytest.approx(wilson(right, 200))


def test_a_difference_without_any_is_not_certain() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    low, high = difference_interval(np.zeros(360))
    assert (float(low), float(high)) == pytest.approx((-z2 / (360 + z2), z2 / (360 + z2)))


def test_with_many_samples_intervals_are_those_of_a_bootstrap() -> None:
    right = population(4000, 1)
    weights = failure_weights(N)
    scores = Outcomes.of(right).scores(weights)
    drawn = np.random.default_rng(2).multinomial(4000, np.full(4000, 1 / 4000), 1000) / 4000
    wanted = np.quantile(drawn @ scores.T, [0.025, 0.975], axis=0)
    width = wanted[1] - wanted[0]
    for found, ends in zip(mean_interval(scores), wanted, strict=True):
        assert np.abs(found - ends).max() < 0.12 * width.min()
    lost = scores[0] - scores[1:]
    wanted = np.quantile(drawn @ lost.T, [0.025, 0.975], axis=0)
    found = np.array(difference_interval(lost))
    assert (found[1] - found[0]) == pytest.approx(wanted[1] - wanted[0], rel=0.15)
    # Paired: separate samples would give a much wider interval.
    ends = [(mean, (low, high)) for mean, low, high in zip(scores.mean(axis=1), *mean_interval(scores), strict=True)]
    apart = unpaired_difference(*ends[0], *ends[1])
    assert apart[1] - apart[0] > 1.5 * (found[1, 0] - found[0, 0])


@pytest.mark.parametrize("samples", [60, 360])
def test_intervals_hold_the_truth_at_least_about_as_often_as_they_say(samples: int) -> None:
    everyone, rng = population(100_000, 3), np.random.default_rng(4)
    law = probabilities(np.full(N, 0.1))
    means = np.vstack([failure_weights(N), law])
    plus, minus = (np.vstack(pair) for pair in zip(value_weights(law), shapley_weights(N), strict=True))
    truth = means @ everyone.mean(axis=0), (plus - minus) @ everyone.mean(axis=0)
    held = np.zeros(len(means)), np.zeros(len(plus))
    for _ in range(300):
        evidence = evidence_of(everyone[rng.integers(0, len(everyone), samples)])
        for number, found in enumerate((evidence.mean(means), evidence.difference(plus, minus))):
            low, high = np.array(found).T
            held[number][:] += (low <= truth[number]) & (truth[number] <= high)
    # 300 trials: 92 % is 2.4 standard errors below 95 %.
    assert min(held[0].min(), held[1].min()) / 300 > 0.915


def test_weights_give_the_figures_whose_interval_they_are_for() -> None:
    table = evidence_of(population(50, 5)).table
    p = np.array([0.1, 0.3, 0.2, 0.5])
    plus, minus = value_weights(probabilities(p))
    assert (plus - minus) @ table.accuracy == pytest.approx(table.importance(p))
    plus, minus = shapley_weights(N)
    assert (plus - minus) @ table.accuracy == pytest.approx(shapley_values(table))
    assert failure_weights(N) @ table.accuracy == pytest.approx([row.mean for row in table.by_failures()])


def test_outcomes_are_packed_without_loss() -> None:
    for devices in (1, 2, 3, 5):
        right = np.random.default_rng(devices).random((37, 1 << devices)) < 0.5
        outcomes = Outcomes.of(right)
        assert outcomes.packed.nbytes == 37 * max(1, (1 << devices) // 8)
        assert all((outcomes.right(mask) == right[:, mask]).all() for mask in range(1 << devices))
        assert (outcomes.correct() == right.sum(axis=0)).all()
        halves = outcomes.halves(0)
        assert (halves[0] + halves[1] == outcomes.correct()).all()


def test_resampled_accuracies_follow_the_posterior_and_stay_paired() -> None:
    right = population(80, 6)
    drawn = Outcomes.of(right).resampled(4000)
    for mask in (1, 5, 15):
        k = int(right[:, mask].sum())
        assert stats.kstest(drawn[:, mask], stats.beta(k + 0.5, 80 - k + 0.5).cdf).pvalue > 1e-3
    lost = drawn[:, 15] - drawn[:, 7]
    assert lost.std() < 0.7 * np.hypot(drawn[:, 15].std(), drawn[:, 7].std())


def test_beyond_the_limit_the_outcomes_of_some_samples_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outcomes_module, "LIMIT_BITS", 16 * 500)
    right = population(2000, 7)
    kept = kept_samples(N, 2000)
    assert len(kept) == len(set(kept.tolist())) == 500
    whole, part = evidence_of(right), Evidence(SubsetTable(right.sum(axis=0), 2000), Outcomes.of(right[kept], 2000))
    for full, some in zip(whole.mean(failure_weights(N)), part.mean(failure_weights(N)), strict=True):
        assert np.diff(some) == pytest.approx(np.diff(full), rel=0.3)
        assert np.mean(some) == pytest.approx(np.mean(full), abs=0.01)
    assert part.draws[:, 15].std() == pytest.approx(float(whole.draws[:, 15].std()), rel=0.3)


def test_the_worst_that_is_chosen_and_measured_on_the_same_samples_looks_worse_than_it_is() -> None:
    """Subsets of equal accuracy: all of the difference between worst and best is chance."""
    rng = np.random.default_rng(8)
    right = rng.random((200, 16)) < 0.8
    right[:, 0] = False
    row = evidence_of(right).by_failures()[2]
    assert row.worst < row.mean - 0.03
    assert row.best > row.mean + 0.03
    assert row.worst_apart == pytest.approx(row.mean, abs=0.015)
    assert row.worst_apart is not None
    assert row.worst_apart_interval is not None
    assert row.worst_apart_interval[0] < row.worst_apart < row.worst_apart_interval[1]
    assert row.best_apart == pytest.approx(row.mean, abs=0.015)


def test_outcomes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    right = population(30, 9)
    with pytest.raises(ShapeError, match="add up"):
        Evidence(
            SubsetTable(right.sum(axis=0) - np.eye(16, dtype=int)[3] * (right[:, 3].sum() > 0), 30), Outcomes.of(right)
        )
    with pytest.raises(ShapeError, match="30 samples"):
        Evidence(SubsetTable(right.sum(axis=0), 31), Outcomes.of(right))
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    assert bundle.evidence.outcomes is not None
    assert bundle.teacher_right is not None
    assert bundle.teacher_right.all()
    wrong = {"right": np.zeros((200, 1), np.uint8)}
    other: Bundle = rewritten(bundle, tmp_path / "other", {"outcomes.npz": wrong})
    with pytest.raises(BundleError, match=r"outcomes\.npz: the outcomes .* build the bundle again"):
        _ = other.evidence
