"""The three parts of the ridge enumeration: exact plans, float32 margins, bounds on their rounding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from nonn.enumeration.cell import CellRun, Peaks, margin_bounds
from nonn.enumeration.elimination import CellPlan, Prefix, plan_cell, prefixes
from nonn.fusion import RidgePerSet, gram

WIDTHS, LOW, CLASSES, SAMPLES = (2, 3, 1, 2), 2, 5, 60


@dataclass(frozen=True)
class Problem:
    """A ridge head as ``count_ridge`` lays it out: columns from the last device to the first."""

    head: RidgePerSet
    columns: NDArray[np.int64]
    system: NDArray[np.float64]
    centred: NDArray[np.float64]  # [D, n]
    target_mean: NDArray[np.float64]
    labels: NDArray[np.int64]

    @property
    def bottom(self) -> slice:
        """Columns of the low devices."""
        return slice(len(self.columns) - sum(WIDTHS[:LOW]), None)

    def plan(self, prefix: Prefix) -> CellPlan:
        return plan_cell(WIDTHS[:LOW], prefix.system, prefix.solution)

    def prefixes(self) -> list[Prefix]:
        return list(prefixes(self.system, WIDTHS, LOW))


@pytest.fixture(scope="module")
def problem() -> Problem:
    rng = np.random.default_rng(0)
    features = [rng.normal(1, 1, (SAMPLES, width)).astype(np.float32) for width in WIDTHS]
    labels = rng.integers(0, CLASSES, SAMPLES)
    whole = np.concatenate(features, axis=1)
    head = RidgePerSet(*gram(whole, np.eye(CLASSES)[labels]), ridge=1e-2, widths=list(WIDTHS))
    columns = np.concatenate([head.rows(1 << i) for i in reversed(range(len(WIDTHS)))])
    covariance, target, mean, target_mean = head.normal_equations()
    system = np.concatenate([covariance[np.ix_(columns, columns)], target[columns]], axis=1)
    centred = (whole[:, columns] - mean[columns]).T
    return Problem(head, columns, system, centred, target_mean, labels)


def whole(prefix: Prefix, chosen: NDArray[np.int64], low: NDArray[np.float64]) -> NDArray[np.float64]:
    """W_S of a completion, the prefix's rows first, from its rows for the residuals of the low features."""
    features = prefix.system.shape[0]
    return np.concatenate([prefix.solution[:, features:] - prefix.solution[:, chosen] @ low, low])


def exact_margins(problem: Problem, weights: NDArray[np.float64], rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Best wrong logit less the true one, in float64 [n]."""
    logits = weights.T @ problem.centred[rows] + problem.target_mean[:, None]
    true = logits[problem.labels, np.arange(SAMPLES)]
    logits[problem.labels, np.arange(SAMPLES)] = -np.inf
    found: NDArray[np.float64] = logits.max(axis=0) - true
    return found


def run_of(problem: Problem, prefix: Prefix, blocks: int = 1) -> tuple[CellRun, NDArray[np.float32]]:
    run = CellRun(problem.plan(prefix))
    margins = np.empty((1 << LOW, SAMPLES), np.float32)
    centred = problem.centred.astype(np.float32)
    for block in np.array_split(np.arange(SAMPLES), blocks):
        own = problem.labels[block] * len(block) + np.arange(len(block))
        features, place = np.ascontiguousarray(centred[:, block]), slice(block[0], block[-1] + 1)
        run.run(features[prefix.columns], features[problem.bottom], problem.target_mean, own, margins[:, place])
    return run, margins


def test_prefixes_are_all_sets_of_the_high_devices(problem: Problem) -> None:
    found = problem.prefixes()
    assert sorted(prefix.mask for prefix in found) == list(range(1 << (len(WIDTHS) - LOW)))
    for prefix in found:
        assert set(problem.columns[prefix.columns].tolist()) == set(problem.head.rows(prefix.mask << LOW).tolist())


def test_a_plan_has_the_weights_that_the_head_solves_for_every_set(problem: Problem) -> None:
    bottom = np.arange(len(problem.columns))[problem.bottom]
    for prefix in problem.prefixes():
        for low, (chosen, rows_of_low) in enumerate(problem.plan(prefix).weights):
            mask, weights = prefix.mask << LOW | low, whole(prefix, chosen, rows_of_low)
            columns = problem.columns[np.concatenate([prefix.columns, bottom[chosen]])]
            if mask:
                expected = problem.head.weights(mask)[0]
                order = np.argsort(columns)
                np.testing.assert_array_equal(columns[order], np.sort(problem.head.rows(mask)))
                np.testing.assert_allclose(weights[order], expected[np.argsort(problem.head.rows(mask))], atol=1e-9)


def test_margins_are_those_of_the_exact_weights_within_the_bounds(problem: Problem) -> None:
    bottom = np.arange(len(problem.columns))[problem.bottom]
    peaks = np.abs(problem.centred).max(axis=1)
    for prefix in problem.prefixes():
        run, margins = run_of(problem, prefix)
        plan = problem.plan(prefix)
        bounds = margin_bounds(
            plan, run.peaks, peaks[prefix.columns], peaks[problem.bottom], np.abs(problem.target_mean)
        )
        for low, (chosen, weights) in enumerate(plan.weights):
            rows = np.concatenate([prefix.columns, bottom[chosen]])
            errors = np.abs(margins[low] - exact_margins(problem, whole(prefix, chosen, weights), rows))
            assert errors.max() <= bounds[low]
            assert bounds[low] < 1e-3  # small enough to decide nearly all samples


def test_blocks_give_the_margins_and_the_peaks_of_the_whole(problem: Problem) -> None:
    prefix = problem.prefixes()[-1]
    (whole, margins), (parts, in_parts) = run_of(problem, prefix), run_of(problem, prefix, blocks=3)
    np.testing.assert_allclose(in_parts, margins, atol=1e-5)
    np.testing.assert_allclose(parts.peaks.root, whole.peaks.root, rtol=1e-5)
    for peak, in_part in zip(whole.peaks.steps, parts.peaks.steps, strict=True):
        np.testing.assert_allclose(in_part, peak, rtol=1e-5)


def test_peaks_are_the_largest_residuals_of_the_regression_on_what_was_taken(problem: Problem) -> None:
    prefix = problem.prefixes()[-1]  # all high devices
    run, _ = run_of(problem, prefix)
    kept = problem.centred[prefix.columns]
    covariance = problem.system[:, : len(problem.columns)]
    coefficients = np.linalg.solve(
        covariance[np.ix_(prefix.columns, prefix.columns)], covariance[prefix.columns][:, problem.bottom]
    )
    residuals = problem.centred[problem.bottom] - coefficients.T @ kept
    np.testing.assert_allclose(run.peaks.root, np.abs(residuals).max(axis=1), rtol=1e-4)


def test_bounds_grow_with_the_residuals(problem: Problem) -> None:
    prefix = problem.prefixes()[-1]
    plan, peaks = problem.plan(prefix), np.abs(problem.centred).max(axis=1)
    arguments = (peaks[prefix.columns], peaks[problem.bottom], np.abs(problem.target_mean))
    run, _ = run_of(problem, prefix)
    larger = Peaks(100 * run.peaks.root, [100 * peak for peak in run.peaks.steps])
    small, large = margin_bounds(plan, run.peaks, *arguments), margin_bounds(plan, larger, *arguments)
    assert (large[1:] > small[1:]).all()
    assert large[0] == small[0]  # no low device: nothing is taken after the prefix
