"""Heads that are learned in steps, without students: logistic regressions, one network for all subsets."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from nonn.distill.heads import held_out_accuracy
from nonn.distill.logistic import fit_logistic, refine, stored_levels
from nonn.distill.masked import MaskedNetwork, fit_masked
from nonn.fusion import (
    Head,
    LinearHead,
    LogisticPerSet,
    LogitAverage,
    ReplicaAverage,
    Rescale,
    RidgePerSet,
    ZeroFill,
    gram,
    softmax,
)
from nonn.reliability.subsets import members

Array = NDArray[np.float64]


def task(samples: int, seed: int, scale: float = 1.0) -> tuple[list[NDArray[np.float32]], NDArray[np.int64], Array]:
    """Features of three devices that see three classes through noise, labels, and a teacher's logits."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, samples)
    clean = np.eye(3)[labels] * 2
    features = [(scale * (clean + rng.normal(0, s, clean.shape)) + 5).astype(np.float32) for s in (0.8, 1.2, 1.6)]
    # The teacher is unsure about class 2: squared error to its logits is not what decides.
    return features, labels.astype(np.int64), np.eye(3)[labels] * np.array([8.0, 8.0, 1.0])


def ridge_of(features: list[NDArray[np.float32]], targets: Array) -> RidgePerSet:
    return RidgePerSet(*gram(np.concatenate(features, axis=1), targets), 1e-3, [3, 3, 3])


# ---- logistic regression ---------------------------------------------------------------------------------------


def mean_nll(head: Head, mask: int, features: list[NDArray[np.float32]], labels: NDArray[np.int64]) -> float:
    p = softmax(head.logits({i: features[i] for i in members(mask)}))
    return float(-np.log(p[np.arange(len(labels)), labels]).mean())


@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
@pytest.mark.parametrize("steps", [(1,), (3, 10), (200,)])
def test_a_logistic_head_is_never_worse_in_training_than_the_ridge_it_started_from(
    steps: tuple[int, ...], scale: float
) -> None:
    features, labels, targets = task(400, 0, scale)
    held_out, held_out_labels, _ = task(400, 1, scale)
    ridge = ridge_of(features, targets)
    head = fit_logistic(
        ridge,
        np.concatenate(features, axis=1),
        labels,
        held_out,
        held_out_labels,
        steps=steps,
        limit_bytes=10**6,
    )
    assert len(head.masks) > 3
    for mask in range(1, 8):
        before, after = (mean_nll(h, mask, features, labels) for h in (ridge, head))
        assert after < before if mask in head.masks else after == before
    gain = held_out_accuracy(head, held_out, held_out_labels, 0) - held_out_accuracy(
        ridge, held_out, held_out_labels, 0
    )
    assert gain > 0.02


def test_many_steps_reach_the_optimum_that_scipy_finds() -> None:
    features, labels, _ = task(300, 2)
    x = np.concatenate([features[1] - 5, np.ones((300, 1))], axis=1)

    def loss(flat: Array) -> tuple[float, Array]:
        p = softmax(x @ flat.reshape(4, 3))
        gradient = x.T @ (p - np.eye(3)[labels]) / 300
        return float(-np.log(p[np.arange(300), labels]).mean()), gradient.ravel()

    lowest = minimize(loss, np.zeros(12), jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-13}).fun
    start = (np.zeros((3, 3)), np.zeros(3))
    ((weight, bias),) = refine(torch.from_numpy(x[:, :3].astype(np.float32)), torch.from_numpy(labels), start, [300])
    assert loss(np.concatenate([weight, bias[None]]).ravel())[0] == pytest.approx(lowest, rel=1e-4)


def test_steps_are_taken_from_where_the_last_candidate_stopped() -> None:
    features, labels, _ = task(300, 3)
    x = torch.from_numpy(np.concatenate(features, axis=1) - 5)
    start = (np.zeros((9, 3)), np.ones(3))
    stages = refine(x, torch.from_numpy(labels), start, [0, 2, 6])

    def loss(solution: tuple[Array, Array]) -> float:
        p = softmax(x.numpy() @ solution[0] + solution[1])
        return float(-np.log(p[np.arange(300), labels]).mean())

    np.testing.assert_array_equal(stages[0][1], start[1])
    assert loss(stages[0]) > loss(stages[1]) > loss(stages[2])


def test_a_level_that_no_step_helps_on_the_held_out_split_keeps_its_ridge() -> None:
    features, labels, targets = task(400, 4)
    held_out, held_out_labels, _ = task(300, 5)
    ridge = ridge_of(features, targets)
    answers = ridge.logits(dict(enumerate(held_out))).argmax(axis=1)  # held-out labels with which the ridge is right
    head = fit_logistic(
        ridge, np.concatenate(features, axis=1), labels, held_out, answers, steps=[10], limit_bytes=10**6
    )
    assert 7 not in head.masks
    assert not np.array_equal(answers, held_out_labels)


def test_stored_are_whole_levels_from_the_fewest_failures_on_as_far_as_they_fit() -> None:
    head = ZeroFill(np.zeros((12, 5)), np.zeros(5), [4, 4, 4])
    everyone, pairs, singles = 2 * 12 * 5, 2 * 3 * 8 * 5, 2 * 3 * 4 * 5
    assert stored_levels(head, everyone - 1) == []
    assert stored_levels(head, everyone) == [[7]]
    assert stored_levels(head, everyone + pairs - 1) == [[7]]
    assert stored_levels(head, everyone + pairs + singles) == [[7], [3, 5, 6], [1, 2, 4]]
    wide = ZeroFill(np.zeros((16, 2)), np.zeros(2), [1] * 16)
    # The next level would be 4,368 sets more.
    assert [len(level) for level in stored_levels(wide, 10**9)] == [1, 16, 120, 560, 1820]


def test_sets_the_number_of_steps_was_not_chosen_on_take_as_many_steps_as_the_others() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    features = [(np.eye(3)[labels] + rng.normal(0, 1.5, (200, 3))).astype(np.float32) for _ in range(7)]
    x = np.concatenate(features, axis=1)
    # A teacher that is no help: logistic regression gains at every level.
    ridge = RidgePerSet(*gram(x, rng.normal(size=(200, 3))), 1e-3, [3] * 7)
    head = fit_logistic(ridge, x, labels, features, labels, steps=[4], limit_bytes=10**6)
    assert len(head.masks) == 127
    for mask in (0b1010101, 0b0001011, 0b1100000):
        weight, bias = ridge.weights(mask)
        std, mean = x.std(axis=0)[ridge.rows(mask)], x.mean(axis=0)[ridge.rows(mask)]
        scaled = torch.from_numpy((x[:, ridge.rows(mask)] - mean) / std)
        ((w, b),) = refine(scaled, torch.from_numpy(labels), (weight * std[:, None], bias + mean @ weight), [4])
        got = head.logits({i: features[i] for i in members(mask)})
        np.testing.assert_allclose(got, scaled.numpy() @ w + b, atol=0.02)


def test_what_does_not_fit_is_left_to_the_ridge_and_the_file_stays_below_the_limit() -> None:
    features, labels, targets = task(400, 6)
    held_out, held_out_labels, _ = task(200, 7)
    ridge = ridge_of(features, targets)
    head = fit_logistic(
        ridge,
        np.concatenate(features, axis=1),
        labels,
        held_out,
        held_out_labels,
        steps=[5],
        limit_bytes=2 * 3 * (9 + 3 * 6),
    )
    assert isinstance(head, LogisticPerSet)
    assert set(head.masks.tolist()) <= {7, 3, 5, 6}
    assert len(head.masks)
    assert head.to_arrays()["weights"].nbytes <= 2 * 3 * (9 + 3 * 6)
    np.testing.assert_array_equal(head.weights(2)[0], ridge.weights(2)[0])


# ---- one network for all subsets -------------------------------------------------------------------------------


def masked_task() -> tuple[LinearHead, NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    features, labels, targets = task(600, 8)
    x = np.concatenate(features, axis=1)
    weight, bias = ridge_of(features, targets).weights(7)
    return ZeroFill(weight, bias, [3, 3, 3]), x, labels, targets.astype(np.float32)


def test_an_untrained_masked_head_is_the_trained_fusion_where_everyone_answers() -> None:
    trained, x, labels, targets = masked_task()
    x[:, 4] = 3.0  # a dead feature
    head = fit_masked(trained, x, labels, targets, hidden=16, updates=0)
    arrived = dict(enumerate(np.split(x, 3, axis=1)))
    np.testing.assert_allclose(head.logits(arrived), trained.logits(arrived), atol=0.02)


@pytest.mark.parametrize("kind", [Rescale, LogitAverage, ReplicaAverage])
def test_an_untrained_masked_head_averages_the_devices_that_the_trained_fusion_averages(kind: type[LinearHead]) -> None:
    zero_fill, x, labels, targets = masked_task()
    weight, bias = zero_fill.weights(7)
    x -= x.mean(axis=0)  # then the mean of absent devices is zero
    trained: LinearHead
    if kind is LogitAverage:
        trained = LogitAverage(weight, np.tile(bias, (3, 1)), zero_fill.widths)
    elif kind is ReplicaAverage:
        trained = ReplicaAverage(weight[:6], bias, zero_fill.widths, (0, 1, 0))
    else:
        trained = Rescale(weight, bias, zero_fill.widths)
    head = fit_masked(trained, x, labels, targets, hidden=16, updates=0)
    for mask in range(1, 8):
        arrived = {i: x[:, 3 * i : 3 * i + 3] for i in members(mask)}
        np.testing.assert_allclose(head.logits(arrived), trained.logits(arrived), atol=0.02)


def test_the_served_network_is_the_one_that_was_trained_to_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, x, labels, targets = masked_task()
    kept: list[tuple[MaskedNetwork, NDArray[np.float32]]] = []

    def train(
        network: MaskedNetwork, widths: object, groups: object, features: NDArray[np.float32], *rest: object
    ) -> None:
        torch.manual_seed(3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        kept.append((network, features))

    monkeypatch.setattr("nonn.distill.masked._train", train)
    head = fit_masked(trained, x, labels, targets, hidden=16, updates=1)
    ((network, features),) = kept
    for mask in range(1, 8):
        answered = torch.tensor([[float(mask >> i & 1) for i in range(3)]])
        masked = torch.from_numpy(features) * answered.repeat_interleave(3, dim=1)
        with torch.no_grad():
            expected = network(masked, answered, torch.zeros(len(x), dtype=torch.long)).numpy()
        got = head.logits({i: x[:, 3 * i : 3 * i + 3] for i in members(mask)})
        np.testing.assert_allclose(got, expected, atol=0.02 * np.abs(expected).max())


def test_a_masked_head_is_better_than_its_start_where_few_devices_answer() -> None:
    trained, x, labels, targets = masked_task()
    held_out, held_out_labels, _ = task(1000, 9)
    before, after = (
        held_out_accuracy(head, held_out, held_out_labels, 0)
        for head in (trained, fit_masked(trained, x, labels, targets, hidden=16, updates=300))
    )
    assert after > before + 0.05
    alone = fit_masked(trained, x, labels, None, hidden=16, updates=300)  # to labels, without a teacher
    assert held_out_accuracy(alone, held_out, held_out_labels, 0) > before + 0.05


def test_masked_heads_of_one_seed_are_equal_and_leave_the_random_numbers_of_torch_alone() -> None:
    trained, x, labels, targets = masked_task()
    torch.manual_seed(5)
    state = torch.random.get_rng_state()
    first, second, other = (
        fit_masked(trained, x, labels, targets, hidden=16, updates=5, seed=seed).to_arrays() for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["weight"], other["weight"])
