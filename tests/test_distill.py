from __future__ import annotations

import copy
import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from nonn.config import DistillConfig, FusionConfig
from nonn.data import Split
from nonn.distill import DistillTask, FusionLayer, Students, sample_answering
from nonn.distill.heads import HeadFitter, choose_ridge
from nonn.distill.objectives import activation_transfer, build_terms, cross_entropy, joint_activation_transfer, kd
from nonn.errors import ConfigError, ShapeError
from nonn.fusion import RidgePerSet, ZeroFill
from nonn.reliability.subsets import members
from nonn.teacher import Teacher
from nonn.trainer import batches
from tests.objectives import PARTS, distill, make_students, make_teacher, normalise, raw
from tests.toys import toy_data
from tests.training import losses_of

# ---- objectives ------------------------------------------------------------------------------------------------


def test_objectives_vanish_where_student_and_teacher_agree() -> None:
    x, logits = torch.rand(5, 6, 2, 2), torch.randn(5, 10)
    assert float(activation_transfer(x, x)) == pytest.approx(0, abs=1e-6)
    assert float(activation_transfer(3 * x, x)) == pytest.approx(0, abs=1e-5)
    assert float(kd(logits, logits, 4.0)) == pytest.approx(0, abs=1e-5)


def test_objectives_equal_their_formula_in_numpy() -> None:
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(5, 6, 2, 2)), rng.normal(size=(5, 6, 2, 2))

    def unit(v: NDArray[np.float64]) -> NDArray[np.float64]:
        flat = v.reshape(len(v), -1)
        return np.asarray(flat / np.linalg.norm(flat, axis=1, keepdims=True))

    expected = ((unit(s) - unit(t)) ** 2).sum(1).mean()
    assert float(activation_transfer(torch.from_numpy(s), torch.from_numpy(t))) == pytest.approx(expected, rel=1e-4)
    joint = joint_activation_transfer(
        [torch.from_numpy(s[:, :2]), torch.from_numpy(s[:, 2:])],
        [torch.from_numpy(t[:, :2]), torch.from_numpy(t[:, 2:])],
    )
    assert float(joint) == pytest.approx(expected, rel=1e-4)

    zs, zt, tau = rng.normal(size=(5, 10)), rng.normal(size=(5, 10)), 4.0
    log_p = zt / tau - np.log(np.exp(zt / tau).sum(1, keepdims=True))
    log_q = zs / tau - np.log(np.exp(zs / tau).sum(1, keepdims=True))
    expected = tau**2 * (np.exp(log_p) * (log_p - log_q)).sum(1).mean()
    assert float(kd(torch.from_numpy(zs), torch.from_numpy(zt), tau)) == pytest.approx(expected, rel=1e-4)


def test_objectives_do_not_depend_on_the_batch_size() -> None:
    s, t, zs, zt, y = (
        torch.rand(4, 6, 2, 2),
        torch.rand(4, 6, 2, 2),
        torch.randn(4, 10),
        torch.randn(4, 10),
        torch.arange(4),
    )
    for once, twice in [
        (activation_transfer(s, t), activation_transfer(s.repeat(2, 1, 1, 1), t.repeat(2, 1, 1, 1))),
        (kd(zs, zt, 4.0), kd(zs.repeat(2, 1), zt.repeat(2, 1), 4.0)),
        (cross_entropy(zs, y), cross_entropy(zs.repeat(2, 1), y.repeat(2))),
    ]:
        torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_collapsed_and_huge_features_have_finite_losses_and_gradients(dtype: torch.dtype, scale: float) -> None:
    s = torch.full((3, 6, 2, 2), scale, dtype=dtype, requires_grad=True)
    t = torch.zeros(3, 6, 2, 2, dtype=dtype)
    loss = activation_transfer(s, t) + kd(s.flatten(1), t.flatten(1), 4.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss)
    assert s.grad is not None
    assert torch.isfinite(s.grad).all()


def test_no_gradient_reaches_a_teachers_tensor() -> None:
    s, t = torch.rand(3, 6, requires_grad=True), torch.rand(3, 6, requires_grad=True)
    (activation_transfer(s, t) + kd(s, t, 4.0)).backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert s.grad.abs().sum() > 0
    assert t.grad is None


def test_shapes_that_differ_are_refused() -> None:
    with pytest.raises(ShapeError, match="activation transfer"):
        activation_transfer(torch.rand(2, 3), torch.rand(2, 4))
    with pytest.raises(ShapeError, match="kd"):
        kd(torch.rand(2, 3), torch.rand(2, 4), 4.0)


def test_terms_of_weight_zero_are_left_out() -> None:
    config = distill(ce=0.1, transfer=2.0)
    assert list(build_terms(config)) == ["ce", "transfer"]


# ---- failout ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["none", "independent", "stratified"])
def test_an_answering_set_is_never_empty_and_a_seed_repeats_it(law: str) -> None:
    first, second = (sample_answering(law, 500, 8, 0.95, torch.Generator().manual_seed(3)) for _ in range(2))
    assert first.shape == (500, 8)
    assert first.any(dim=1).all()
    assert torch.equal(first, second)


def test_stratified_failout_gives_every_number_of_survivors_and_every_device_the_same_weight() -> None:
    answered = sample_answering("stratified", 16_000, 8, 0.0, torch.Generator().manual_seed(0))
    share = torch.bincount(answered.sum(dim=1), minlength=9)[1:] / 16_000
    assert share.min() > 0.11
    assert share.max() < 0.14
    assert (answered.float().mean(dim=0) - 4.5 / 8).abs().max() < 0.02


def test_independent_failout_drops_at_its_rate() -> None:
    answered = sample_answering("independent", 20_000, 8, 0.3, torch.Generator().manual_seed(0))
    assert float(answered.float().mean()) == pytest.approx(0.7, abs=0.01)
    assert sample_answering("none", 3, 8, 0.5, torch.Generator()).all()
    with pytest.raises(ConfigError, match="failout"):
        sample_answering("sometimes", 3, 8, 0.5, torch.Generator())


# ---- fusion trained through ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "parts"), [("zero-fill", (0, 1, 2)), ("replica-average", (0, 1, 0))])
def test_the_torch_fusion_and_its_numpy_head_give_the_same_logits_for_every_set(
    kind: str, parts: tuple[int, ...]
) -> None:
    layer = FusionLayer(kind, [4, 5, 4], parts, 10)
    features = [torch.randn(6, w) for w in (4, 5, 4)]
    head = layer.head()
    assert head.kind == kind
    for mask in range(1, 8):
        answered = torch.tensor([[bool(mask >> i & 1) for i in range(3)]] * 6)
        expected = head.logits({i: features[i].numpy() for i in members(mask)})
        np.testing.assert_allclose(layer(features, answered).detach().numpy(), expected, atol=1e-5)


def test_every_sample_has_an_answering_set_of_its_own() -> None:
    layer = FusionLayer("zero-fill", [4, 5], (0, 1), 10)
    features = [torch.randn(2, 4), torch.randn(2, 5)]
    mixed = layer(features, torch.tensor([[True, False], [False, True]]))
    torch.testing.assert_close(mixed[0], layer(features, torch.tensor([[True, False]] * 2))[0])
    torch.testing.assert_close(mixed[1], layer(features, torch.tensor([[False, True]] * 2))[1])


def test_only_linear_fusions_can_be_trained_through() -> None:
    with pytest.raises(ShapeError, match="'ridge' cannot be trained through"):
        FusionLayer("ridge", [4], (0,), 10)


# ---- the task --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize(("kind", "parts"), [("zero-fill", (0, 1, 2, 3)), ("replica-average", (0, 1, 0, 1))])
def test_the_gradient_reaches_every_student_and_nothing_of_the_teacher(
    kind: str, parts: tuple[int, ...], grouped: bool
) -> None:
    teacher, students = make_teacher(), make_students(kind, parts)
    task = DistillTask(teacher, students, [PARTS[p] for p in parts], DistillConfig(grouped=grouped))
    losses = losses_of(task, raw(), torch.arange(12) % 10, torch.Generator().manual_seed(0))
    assert set(losses) == {"ce", "kd", "transfer"}
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    for name, parameter in task.module.named_parameters():
        assert parameter.grad is not None, name
        of_students = parameter.grad.chunk(len(parts)) if "grouped" in name else [parameter.grad]
        assert all(gradient.abs().sum() > 0 for gradient in of_students), name
    assert all(p.grad is None for p in teacher.parameters())
    assert not any("teacher" in n for n, _ in task.module.named_parameters())


def test_students_trained_together_become_what_they_become_apart() -> None:
    teacher, results = make_teacher(), []
    for grouped in (False, True):
        students = make_students()
        task = DistillTask(teacher, students, PARTS, DistillConfig(grouped=grouped))
        optimizer = torch.optim.SGD(task.module.parameters(), lr=0.01, momentum=0.9)
        for step in range(2):
            losses = losses_of(task, raw(), torch.arange(12) % 10, torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        task.finish()
        results.append((losses, students.state_dict()))
    (losses_apart, apart), (losses_together, together) = results
    for name in losses_apart:
        torch.testing.assert_close(losses_together[name], losses_apart[name], rtol=1e-3, atol=1e-5)
    for name, value in apart.items():
        torch.testing.assert_close(together[name], value, rtol=1e-3, atol=1e-4)


def test_students_share_no_storage_and_start_differently() -> None:
    students = make_students()
    pointers = [t.data_ptr() for t in [*students.parameters(), *students.buffers()]]
    assert len(set(pointers)) == len(pointers)
    starts = [student.state_dict()["bridge.0.weight"] for student in students.students]
    assert all(not torch.equal(starts[0], other) for other in starts[1:])


def test_the_teacher_runs_once_a_batch_and_keeps_its_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher, calls = make_teacher(), []
    task = DistillTask(teacher, make_students(), PARTS, DistillConfig())
    teacher.register_forward_hook(lambda *_: calls.append(1))
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    losses_of(task, raw(), torch.zeros(12, dtype=torch.int64), torch.Generator())
    assert len(calls) == 1
    assert all(torch.equal(before[k], v) for k, v in teacher.state_dict().items())


def test_each_student_is_compared_with_its_own_part() -> None:
    teacher, students = make_teacher(), make_students()
    config = distill(transfer=1.0)
    task = DistillTask(teacher, students, PARTS, config)
    with torch.no_grad():
        got = float(losses_of(task, raw(), torch.zeros(12, dtype=torch.int64), torch.Generator())["transfer"])
        maps = teacher(raw())[0]
        pairs = zip(students.maps(raw()), PARTS, strict=True)
        expected = sum(float(activation_transfer(m, maps[:, p])) for m, p in pairs)
    assert got == pytest.approx(expected, rel=1e-4)


def test_a_student_learns_from_its_own_share_as_it_would_alone() -> None:
    """A mean over devices would divide what each of them learns by their number."""
    teacher, students = make_teacher(), make_students("logit-average")
    first: Any = students.students[:1]
    alone = Students(copy.deepcopy(list(first)), FusionLayer("logit-average", [16], (0,), 10))
    assert alone.fusion.biases is not None
    assert students.fusion.biases is not None
    with torch.no_grad():
        alone.fusion.linear.weight.copy_(students.fusion.linear.weight[:, :16])
    own = {"on": "device"}
    config = distill(ce=own, kd=own, dkd=own, transfer=1.0, hint=1.0, at=1.0, sp=1.0, rkd=1.0, pkt=1.0, srrl=1.0)
    for made, parts in ((students, PARTS), (alone, PARTS[:1])):
        losses = losses_of(DistillTask(teacher, made, parts, config), raw(), torch.arange(12) % 10, torch.Generator())
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    for beside, by_itself in zip(students.students[0].parameters(), alone.students[0].parameters(), strict=True):
        torch.testing.assert_close(beside.grad, by_itself.grad, rtol=1e-4, atol=1e-6)


def test_maps_of_another_resolution_are_averaged_to_the_students() -> None:
    class Coarse(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stage = torch.nn.Conv2d(1, 64, 1)
            self.head = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.head(self.stage(x).mean((2, 3)))
            return result

    teacher = Teacher(Coarse(), "stage", normalise())
    task = DistillTask(teacher, make_students(), PARTS, DistillConfig())
    assert torch.isfinite(losses_of(task, raw(), torch.zeros(12, dtype=torch.int64), torch.Generator())["transfer"])


# ---- heads -----------------------------------------------------------------------------------------------------


def split(n: int, seed: int) -> Split:
    return Split(*toy_data(n, seed))


def test_a_ridge_head_repeats_the_teacher_better_than_an_untrained_layer() -> None:
    teacher, students = make_teacher().eval(), make_students().eval()
    config = FusionConfig(passes=1)

    def fitted(head: Literal["ridge", "trained"]) -> float:
        chosen = dataclasses.replace(config, head=head)
        fitter = HeadFitter(chosen, split(400, 1), split(100, 2), seed=0, augment=lambda x, _: x.float())
        made = fitter.fit(teacher, students)
        test = split(100, 3)
        with torch.no_grad():
            (x,) = batches(test.inputs)
            logits = made.logits({i: f.numpy() for i, f in enumerate(students.features(x))})
            return float(np.square(logits - teacher(x)[1].numpy()).mean())

    assert fitted("ridge") < 0.5 * fitted("trained")


def test_the_ridge_is_chosen_by_held_out_accuracy_and_the_largest_of_equals() -> None:
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(300, 3)) for _ in range(3)]
    labels = (features[0][:, 0] > 0).astype(np.int64)
    x = np.concatenate(features, axis=1)
    targets = np.stack([-x[:, 0], x[:, 0]], axis=1)
    phi = np.concatenate([x, np.ones((300, 1))], axis=1)
    head = RidgePerSet(phi.T @ phi, phi.T @ targets, 1.0, (3, 3, 3))
    recorded = [f.astype(np.float32) for f in features]
    assert choose_ridge(head, recorded, labels, [1e-6, 1e-3, 1e-2], seed=0) == 1e-2
    assert isinstance(ZeroFill(np.ones((9, 2)), np.zeros(2), (3, 3, 3)), ZeroFill)
