"""Objectives of mutual information, teacher keys, several shots and rare classes, against short NumPy references."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from nonn.config import load_experiment
from nonn.distill import DistillTask
from nonn.distill.objectives import Batch
from nonn.distill.objectives.information import mimkd, rtk
from nonn.distill.objectives.logits import cross_entropy, kd
from nonn.distill.objectives.several import SimregTeachers
from nonn.distill.objectives.shots import Umts, average_views, umts
from nonn.distill.objectives.tails import clouds, gcl
from nonn.errors import ConfigError, ShapeError
from nonn.trainer import Target
from tests.objectives import (
    COUNTS,
    LABELS,
    PARTS,
    RNG,
    S1,
    T1,
    ZS,
    ZT,
    Array,
    B,
    C,
    K,
    S,
    T,
    distill,
    make_students,
    make_teacher,
    raw,
    tensor,
)
from tests.training import losses_of


def softplus(x: Array) -> Array:
    return np.asarray(np.log1p(np.exp(x)))


def test_the_bound_of_mutual_information_equals_its_formula() -> None:
    s, t = RNG.normal(size=(2, B, 3, 4))
    positive = [softplus(-(t[i] * s[i]).sum(1)).mean() for i in range(B)]
    negative = [softplus((t[i] * s[j]).sum(1)).mean() for i in range(B) for j in range(B) if i != j]
    expected = np.mean(positive) + np.mean(negative)
    assert float(mimkd(tensor(s), tensor(t))) == pytest.approx(expected, rel=1e-4)
    nothing = torch.zeros(B, 1, 4)
    assert float(mimkd(nothing, nothing)) == pytest.approx(2 * np.log(2))
    assert torch.isfinite(mimkd(tensor(s[:1]), tensor(t[:1])))


def attention(x: Array) -> Array:
    q = (x**2).sum(1).reshape(B, -1)
    return np.asarray(q / np.linalg.norm(q, axis=1, keepdims=True))


def coarse(x: Array) -> Array:
    return np.asarray(x.reshape(B, 4, 3, 2, 2, 2).mean(axis=(3, 5)))


def test_a_layer_attends_to_the_teachers_layers_that_resemble_it() -> None:
    near, far = attention(T), attention(coarse(T1))
    q = attention(S)
    cosines = np.stack([(q * far).sum(1), (q * near).sum(1)], axis=1)
    weight = np.exp(cosines / 0.2) / np.exp(cosines / 0.2).sum(1, keepdims=True)
    distance = np.stack([((q - far) ** 2).sum(1), ((q - near) ** 2).sum(1)], axis=1)
    expected = (weight * distance).sum(1).mean()
    assert float(rtk([tensor(S)], [tensor(T1), tensor(T)], 0.2)) == pytest.approx(expected, rel=1e-3)
    both = rtk([tensor(S1), tensor(S)], [tensor(T1), tensor(T)], 0.2)
    assert float(both) > expected
    assert float(rtk([tensor(T)], [tensor(T1), tensor(T)], 1e-3)) == pytest.approx(0, abs=1e-4)
    with pytest.raises(ShapeError, match="one position"):
        rtk([torch.rand(B, C, 1, 1)], [tensor(T)], 0.2)


def test_the_mean_of_several_views_has_the_gradient_of_their_mean_divergence() -> None:
    views, tau = RNG.normal(size=(B, 3, K)), 4.0
    s = tensor(ZS).requires_grad_()
    kd(s, average_views(tensor(views), tau), tau).backward()  # type: ignore[no-untyped-call]
    whole, s.grad = s.grad, None
    torch.stack([kd(s, tensor(views[:, v]), tau) for v in range(3)]).mean().backward()  # type: ignore[no-untyped-call]
    assert whole is not None
    assert s.grad is not None
    torch.testing.assert_close(whole, s.grad, rtol=1e-3, atol=1e-6)
    one = average_views(tensor(ZT)[:, None], tau)
    assert float(kd(tensor(ZS), one, tau)) == pytest.approx(float(kd(tensor(ZS), tensor(ZT), tau)), rel=1e-4)


def test_the_likelihood_of_several_shots_is_largest_at_the_true_variance() -> None:
    s, shots, log_v = RNG.normal(size=(B, C)), RNG.normal(size=(B, 4, C)), RNG.normal(size=B)
    squares = ((shots.mean(1) - s) ** 2).sum(1)
    expected = (0.5 * squares / np.exp(log_v) + 0.5 * C * log_v).mean()
    assert float(umts(tensor(s), tensor(shots), tensor(log_v))) == pytest.approx(expected, rel=1e-4)
    best = tensor(np.log(squares / C)).requires_grad_()
    umts(tensor(s), tensor(shots), best).backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None
    assert float(best.grad.abs().max()) < 1e-6


def test_logits_of_rare_classes_are_clouded() -> None:
    counts = torch.tensor([100, 100, 50, 20, 10, 1, 0])
    cloud = clouds(counts, torch.rand(5000, K, generator=torch.Generator().manual_seed(0))).numpy()
    rarity = np.log(100 / np.array([100, 100, 50, 20, 10, 1, 1])) / np.log(100)
    half_normal = np.sqrt(2 / np.pi) / 3  # mean of |ε|
    np.testing.assert_allclose(cloud.mean(0), half_normal * rarity, rtol=0.05)
    assert cloud.max() <= 1
    assert not clouds(torch.full((K,), 7), torch.rand(B, K)).any()
    seen = torch.from_numpy(cloud[:B])
    expected = cross_entropy(tensor(ZS) - 3 * seen, LABELS, 0.0)
    assert float(gcl(tensor(ZS), seen, LABELS, 3.0)) == pytest.approx(float(expected), rel=1e-5)
    assert torch.isfinite(clouds(counts, torch.zeros(1, K))).all()


def test_all_stored_views_reach_the_objectives() -> None:
    config = dataclasses.replace(distill(vrkd=1.0, umts=1.0), teacher_views=2)
    task = DistillTask(make_teacher(), make_students(), PARTS, config, class_counts=COUNTS)
    answers = torch.randn(12, 2, 10), torch.rand(12, 2, 64)
    seen = [
        losses_of_target(task, Target(logits[:, 0], pooled[:, 0], logits, pooled))
        for logits, pooled in (answers, (answers[0] + torch.randn(12, 2, 10), answers[1] + 1))
    ]
    assert seen[0]["vrkd"] != seen[1]["vrkd"]
    assert seen[0]["umts"] != seen[1]["umts"]
    assert isinstance(task.terms["umts"].compute, Umts)
    one = losses_of(task, raw(), LABELS.repeat(2), torch.Generator().manual_seed(0))  # the teacher's only shot
    assert all(torch.isfinite(value) for value in one.values())


def losses_of_target(task: DistillTask, target: Target) -> dict[str, float]:
    draws = task.draw(12, torch.Generator().manual_seed(0))
    return {name: float(loss.detach()) for name, loss in task.losses(raw(), LABELS.repeat(2), draws, target).items()}


def test_several_views_must_be_stored() -> None:
    for name in ("vrkd", "umts"):
        views = [f"distill.objectives.{name}.weight=1", "distill.teacher_views=2", "data.noise=0"]
        assert load_experiment(None, views).distill.teacher_views == 2
        with pytest.raises(ConfigError, match=r"distill\.teacher_views.*at least 2"):
            load_experiment(None, views[:1])


def test_simreg_regresses_the_features_of_further_teachers(tmp_path: Path) -> None:
    torch.manual_seed(5)
    other = make_teacher()
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    file = tmp_path / "teacher.safetensors"
    save_file({name: value.contiguous() for name, value in other.state_dict().items()}, file)
    config = distill(simreg={"teachers": (str(file), str(file))})
    task = DistillTask(make_teacher(), make_students(), PARTS, config)
    term = task.terms["simreg"].compute
    assert isinstance(term, SimregTeachers)
    assert not any(name.startswith("auxiliaries.simreg._") for name in task.module.state_dict())
    loss = losses_of(task, raw(), LABELS.repeat(2), torch.Generator().manual_seed(0))["simreg"]
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in term.parameters())
    with torch.no_grad():
        maps, _ = task.students.maps_and_features(raw())
        batch = Batch(LABELS, raw(), raw(), maps, [m.roll(1, 0) for m in maps], inputs=raw())
        expected = float(term.first(batch))
        seen = other.eval().activations(raw()).numpy()
        for heads in term.heads:
            assert isinstance(heads, torch.nn.ModuleList)
            for head, student in zip(heads, maps, strict=True):
                h = head(student.mean(dim=(2, 3))).numpy()
                cosine = (h * seen).sum(1) / np.linalg.norm(h, axis=1) / np.linalg.norm(seen, axis=1)
                expected += float((2 - 2 * cosine).mean())
        assert float(term(batch)) == pytest.approx(expected, rel=1e-3)
    with pytest.raises(ConfigError, match="no such weights file"):
        DistillTask(make_teacher(), make_students(), PARTS, distill(simreg={"teachers": ("none.safetensors",)}))
