"""Objectives that change or weigh the teacher's answer, against short NumPy references."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nonn.distill import DistillTask
from nonn.distill.objectives.logits import dkd, kd
from nonn.distill.objectives.soft import cwtm, dtd
from nonn.distill.targets import balance, keep_top, leave_out, permute_others
from tests.objectives import (
    COUNTS,
    LABELS,
    PARTS,
    ZS,
    ZT,
    Array,
    B,
    K,
    Y,
    distill,
    make_students,
    make_teacher,
    raw,
    tensor,
)
from tests.training import losses_of


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def kl(p: Array, q: Array) -> Array:
    return np.asarray((p * np.log(p / q)).sum(axis=1))


@pytest.mark.parametrize("k", [1, 3, K - 1, K, 50])
def test_top_k_keeps_the_largest_probabilities_and_levels_the_others(k: int) -> None:
    p = softmax(ZT / 4)
    expected = p.copy()
    for row, order in zip(expected, (-p).argsort(axis=1), strict=True):
        row[order[k:]] = row[order[k:]].mean() if k < K else 0
    np.testing.assert_allclose(softmax(keep_top(tensor(ZT), k, 4.0).double().numpy() / 4), expected, atol=1e-6)


def test_a_balanced_answer_weighs_classes_by_their_effective_number() -> None:
    counts, beta, tau = np.array([1000, 500, 100, 50, 10, 1, 0]), 0.999, 2.0
    w = (1 - beta) / (1 - beta ** np.maximum(counts, 1))
    q = softmax(ZT / tau) * w / w.sum() * K
    expected = tau**2 * kl(q / q.sum(1, keepdims=True), softmax(ZS / tau)).mean()
    target = balance(tensor(ZT), torch.from_numpy(counts), tau, beta)
    assert float(kd(tensor(ZS), target, tau)) == pytest.approx(expected, rel=1e-4)
    torch.testing.assert_close(balance(tensor(ZT), torch.from_numpy(counts), tau, 0.0), tensor(ZT))


def test_permuted_answers_keep_their_largest_class_and_all_values() -> None:
    noise = torch.rand(B, K, generator=torch.Generator().manual_seed(3))
    permuted, z = permute_others(tensor(ZT), noise), tensor(ZT)
    assert torch.equal(permuted.argmax(1), z.argmax(1))
    assert torch.equal(permuted.sort(1).values, z.sort(1).values)
    assert (permuted != z).sum(dim=1).gt(1).all()
    counts = torch.zeros(K)
    for seed in range(300):  # each of the other classes comes to each place
        noise = torch.rand(1, K, generator=torch.Generator().manual_seed(seed))
        counts += permute_others(torch.arange(K, 0, -1.0)[None], noise)[0] == 2.0
    assert counts[0] == 0
    assert counts[1:].min() > 25


def test_samples_that_the_teacher_gets_most_wrong_have_no_soft_target() -> None:
    wrong = -np.log(softmax(ZT)[np.arange(B), Y])
    left = np.argsort(-wrong)[:2]
    kept = np.setdiff1d(np.arange(B), left)
    student = tensor(ZS).requires_grad_()
    target = leave_out(tensor(ZT), student, tensor(ZT), LABELS, 2 / B)
    loss = kd(student, target, 4.0) + dkd(student, target, LABELS, 4.0)
    some = kd(tensor(ZS)[kept], tensor(ZT)[kept], 4.0) + dkd(tensor(ZS)[kept], tensor(ZT)[kept], LABELS[kept], 4.0)
    assert loss.item() == pytest.approx(some.item() * len(kept) / B, rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert float(student.grad[left].abs().max()) < 1e-6
    assert float(student.grad[kept].abs().min(dim=1).values.min()) > 0


def test_confidence_weighs_cross_entropies() -> None:
    sure = softmax(ZT).max(1)
    ce = -np.log(softmax(ZS)[np.arange(B), Y])
    assert float(cwtm(tensor(ZS), tensor(ZT), LABELS)) == pytest.approx((sure / sure.sum() * ce).sum(), rel=1e-4)


def test_a_sample_that_differs_from_the_teacher_has_a_lower_temperature() -> None:
    cosine = (ZS * ZT).sum(1) / np.linalg.norm(ZS, axis=1) / np.linalg.norm(ZT, axis=1)
    w = (1 - cosine) ** 2
    tau = (3 + 1.5 * (w.mean() - w)).clip(1)[:, None]
    expected = (tau[:, 0] ** 2 * kl(softmax(ZT / tau), softmax(ZS / tau))).mean()
    assert float(dtd(tensor(ZS), tensor(ZT), 3.0, 2.0, 1.5)) == pytest.approx(expected, rel=1e-3)
    plain = kd(tensor(ZS), tensor(ZT), 3.0)
    torch.testing.assert_close(dtd(tensor(ZS), tensor(ZT), 3.0, 2.0, 0.0), plain, rtol=1e-4, atol=0)


def test_options_of_a_soft_target_reach_the_objective() -> None:
    def loss(options: dict[str, object], **changes: object) -> float:
        config = distill(kd=options | changes)
        task = DistillTask(make_teacher(), make_students(), PARTS, config, class_counts=COUNTS)
        return losses_of(task, raw(), torch.arange(12) % 10, torch.Generator().manual_seed(0))["kd"].item()

    plain = loss({})
    assert loss({"top_k": 10, "selection": 0.01}) == plain
    assert loss({"selection": 1.0}) == pytest.approx(0, abs=1e-6)
    assert loss({"top_k": 1}) != pytest.approx(plain, rel=1e-4)
