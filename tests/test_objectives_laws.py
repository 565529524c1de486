"""The laws that all objectives keep."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nonn.distill.objectives.activations import activation_transfer, at, hint, srrl
from nonn.distill.objectives.adversarial import Discriminator, afd, attention
from nonn.distill.objectives.flow import fsp, lckd
from nonn.distill.objectives.information import Mimkd, rtk
from nonn.distill.objectives.learned import Crd, Simreg, Srm, Vid
from nonn.distill.objectives.logits import dkd, kd, mutual, standardise
from nonn.distill.objectives.online import ie_kd, pcl
from nonn.distill.objectives.relations import pkt, rkd, sp
from nonn.distill.objectives.shots import average_views, umts
from nonn.distill.objectives.soft import cwtm, dtd
from nonn.distill.objectives.tails import clouds, gcl
from nonn.distill.targets import balance, keep_top, leave_out, permute_others, revise_labels
from nonn.errors import ShapeError
from nonn.teacher import pool
from tests.objectives import LABELS, ZS, ZT, Array, B, C, S, T, W, tensor

Objective = Callable[[Tensor, Tensor], Tensor]


def auxiliary(make: Callable[[], torch.nn.Module]) -> Objective:
    torch.manual_seed(0)
    module = make()
    return lambda s, t: module(s, t, LABELS[: len(s)])


torch.manual_seed(0)
JUDGE, OF_ATTENTION = Discriminator(2, C), Discriminator(2, 1)
NOISE = torch.rand(B // 2, 7, generator=torch.Generator().manual_seed(0)).repeat(2, 1)  # both halves of a batch alike
# Objectives on maps [B, C, H, W] and on logits [B, K], each with what it is where student == teacher.
ON_MAPS: dict[str, Objective] = {
    "transfer": activation_transfer,
    "hint": hint,
    "at": at,
    "srrl": lambda s, t: srrl(s, t, tensor(W)),
    "partial logits": lambda s, t: srrl(s, t, tensor(W), 0.0),
    "sp": sp,
    "rkd": rkd,
    "pkt": pkt,
    "fsp": lambda s, t: fsp((s[:, :2], s), (t[:, :2], t)),
    "lckd": lambda s, t: lckd([s[:, :2], s[:, 1:4], s], [t[:, :2], t[:, 1:4], t]),
    "ie_kd": ie_kd,
    "vid": auxiliary(lambda: Vid(C, 0.7)),
    "crd": auxiliary(lambda: Crd(C, 8, 0.07)),
    "srm": auxiliary(lambda: Srm(C, 10, 2)),
    "simreg": auxiliary(lambda: Simreg(C, 10)),
    "mimkd": auxiliary(lambda: Mimkd(C, 4)),
    "rtk": lambda s, t: rtk([s], [t, t[:, :2]], 0.3),
    "afd": lambda s, t: afd(JUDGE, s, t),
    "afd of attention": lambda s, t: afd(OF_ATTENTION, attention(s), attention(t)),
    "umts": lambda s, t: umts(pool(s), pool(t)[:, None], torch.zeros(len(s))),
}
ON_LOGITS: dict[str, Objective] = {
    "kd": lambda s, t: kd(s, t, 4.0),
    "standardised kd": lambda s, t: kd(standardise(s), standardise(t), 2.0),
    "dkd": lambda s, t: dkd(s, t, LABELS[: len(s)], 4.0),
    "pcl": lambda s, t: pcl([s, s], t, [t, t], 3.0),
    "mutual": lambda s, t: mutual([s, t.detach()], 2.0),
    "balanced kd": lambda s, t: kd(s, balance(t, torch.tensor([9, 8, 7, 3, 2, 1, 0]), 2.0, 0.9), 2.0),
    "top-k kd": lambda s, t: kd(s, keep_top(t, 2, 4.0), 4.0),
    "permuted kd": lambda s, t: kd(s, permute_others(t, NOISE[: len(t)]), 1.0),
    "selected kd": lambda s, t: kd(s, leave_out(t, s, t, LABELS[: len(t)], 0.4), 4.0),
    "cwtm": lambda s, t: cwtm(s, t, LABELS[: len(s)]),
    "gcl": lambda s, t: gcl(s, clouds(torch.tensor([9, 8, 7, 3, 2, 1, 0]), NOISE[: len(s)]), LABELS[: len(s)], 3.0),
    "kd of two views": lambda s, t: kd(s, average_views(torch.stack([t, t + 1, 0.5 * t], dim=1), 4.0), 4.0),
    "dtd": lambda s, t: dtd(s, t, 3.0, 2.0, 1.5),
    "kd of revised labels": lambda s, t: kd(s, revise_labels(t, LABELS[: len(t)], 4.0, 0.8), 4.0),
}
VANISH = {*ON_MAPS, *ON_LOGITS} - {
    *("ie_kd", "vid", "crd", "srm", "simreg"),
    *(
        "kd of revised labels",
        "balanced kd",
        "top-k kd",
        "permuted kd",
        "cwtm",
        "gcl",
        "kd of two views",
        "mimkd",
        "rtk",
        "afd",
        "afd of attention",
    ),
}
# Relations between the samples of a batch, weights over them, or a choice among them.
IN_BATCH = {"sp", "rkd", "pkt", "crd", "cwtm", "dtd", "selected kd", "mimkd"}
# Where a student is a teacher, too, sets its temperature, or trains its discriminator, it is a constant.
CONSTANT = {"mutual", "dtd", "rtk", "afd", "afd of attention"}
ALL = [(name, f, S, T) for name, f in ON_MAPS.items()] + [(name, f, ZS, ZT) for name, f in ON_LOGITS.items()]
every = pytest.mark.parametrize(("name", "objective", "student", "teacher"), ALL, ids=[a[0] for a in ALL])


@every
def test_it_vanishes_where_student_and_teacher_agree_and_only_there(
    name: str, objective: Objective, student: Array, teacher: Array
) -> None:
    apart = float(objective(tensor(student), tensor(teacher)).detach())
    if name in VANISH:
        assert float(objective(tensor(teacher), tensor(teacher))) == pytest.approx(0, abs=2e-6)
        assert apart > 1e-3
    assert np.isfinite(apart)


@every
def test_the_gradient_reaches_the_student_and_never_the_teacher(
    name: str, objective: Objective, student: Array, teacher: Array
) -> None:
    s, t = tensor(student).requires_grad_(), tensor(teacher).requires_grad_()
    objective(s, t).backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert float(s.grad.abs().sum()) > 0
    assert t.grad is None


@pytest.mark.parametrize(("name", "objective", "student", "teacher"), [a for a in ALL if a[0] not in CONSTANT])
def test_gradients_are_those_of_finite_differences(
    name: str, objective: Objective, student: Array, teacher: Array
) -> None:
    s, t = tensor(student).requires_grad_(), tensor(teacher)
    objective(s, t).backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    direction = s.grad / s.grad.norm()
    step = 1e-2
    with torch.no_grad():
        slope = (objective(s + step * direction, t) - objective(s - step * direction, t)) / (2 * step)
    assert float(slope) == pytest.approx(float(s.grad.norm()), rel=0.05)


@every
@torch.no_grad()
def test_a_batch_is_the_mean_of_its_samples_except_for_relations(
    name: str, objective: Objective, student: Array, teacher: Array
) -> None:
    s, t = tensor(student), tensor(teacher)
    whole, halves = objective(s, t), [objective(s[:3], t[:3]), objective(s[3:], t[3:])]
    mean = float(torch.stack(halves).mean())
    if name in IN_BATCH:
        assert float(whole) != pytest.approx(mean, rel=2e-3)
    else:
        assert float(whole) == pytest.approx(mean, rel=1e-4)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1.0, 300.0])
def test_a_collapsed_batch_has_finite_losses_and_gradients(
    name: str, objective: Objective, student: Array, teacher: Array, dtype: torch.dtype, scale: float
) -> None:
    for same in (torch.full(student.shape, scale, dtype=dtype), tensor(student)[:1].expand(*student.shape) * scale):
        for target in (tensor(teacher).to(dtype), torch.zeros(student.shape, dtype=dtype)):
            s = same.clone().to(dtype).requires_grad_()
            loss = objective(s, target)
            loss.backward()  # type: ignore[no-untyped-call]
            assert torch.isfinite(loss)
            assert s.grad is not None
            assert torch.isfinite(s.grad).all()


@every
@torch.no_grad()
def test_autocast_does_not_change_it(name: str, objective: Objective, student: Array, teacher: Array) -> None:
    plain = objective(tensor(student), tensor(teacher))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = objective(tensor(student), tensor(teacher))
    assert mixed.dtype == torch.float32
    if name in {"crd", "srm", "simreg", "mimkd"}:  # their linear layers may run in bfloat16; what follows does not
        assert float(mixed) == pytest.approx(float(plain), rel=0.05)
    else:
        assert torch.equal(mixed, plain)


@every
def test_half_precision_does_not_overflow(name: str, objective: Objective, student: Array, teacher: Array) -> None:
    s, t = tensor(student * 60).half(), tensor(teacher * 60).half()
    assert torch.isfinite(objective(s, t))


@pytest.mark.parametrize("name", ["transfer", "hint", "srrl", "vid", "ie_kd"])
def test_another_width_than_the_parts_is_refused(name: str) -> None:
    with pytest.raises(ShapeError, match=r"\[6, 4, 3, 2\].*\[6, 5, 3, 2\]"):
        ON_MAPS[name](tensor(S[:, :4]), tensor(T))


@pytest.mark.parametrize("name", ["at", "sp", "rkd", "pkt"])
def test_relations_and_attention_need_no_common_width(name: str) -> None:
    assert torch.isfinite(ON_MAPS[name](tensor(S[:, :4]), tensor(T)))


@pytest.mark.parametrize("name", [n for n in ON_MAPS if n not in {"at", "rtk"} and not n.startswith("afd")])
def test_pooled_features_and_windows_are_maps_too(name: str) -> None:
    for shape in ((B, C), (B, C, 4)):
        s, t = torch.rand(shape), torch.rand(shape)
        if name in {"fsp", "lckd"} and len(shape) == 2:
            continue
        assert torch.isfinite(ON_MAPS[name](s, t))
