from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from nonn.errors import ShapeError
from nonn.students import GroupedStudents, Student, grouping_pays
from nonn.students.grouped import group
from nonn.teacher import Normalise

WIDTHS = [(16, 16, 16), (5, 6, 5)]


def students(widths: tuple[int, ...], dims: int = 2) -> list[Student]:
    torch.manual_seed(0)
    shape = (2, 8, 8) if dims == 2 else (2, 25)
    return [Student("wrn-10-1", shape, w, Normalise([1.0, 2.0], [3.0, 4.0], dims)).double() for w in widths]


def batch(dims: int = 2) -> torch.Tensor:
    return 5 * torch.randn(6, 2, 8, 8) if dims == 2 else 5 * torch.randn(6, 2, 25)


def to_double(module: nn.Module) -> None:
    """Float64 all the way: the normalisation casts to float32, which would hide small differences."""
    module.register_forward_hook(lambda _m, _i, out: out.double())


def loss(maps: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack([((i + 1) * m.sin()).sum() for i, m in enumerate(maps)]).sum()


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("widths", WIDTHS)
def test_two_sgd_steps_of_the_group_are_those_of_separate_students(widths: tuple[int, ...], dims: int) -> None:
    separate = students(widths, dims)
    trained = copy.deepcopy(separate)
    grouped = GroupedStudents(trained).double()
    for module in [*(s.normalise for s in separate), grouped.normalise]:
        to_double(module)
    options = {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": True}
    for parameters, maps in [
        (
            [p for s in separate for p in s.parameters()],
            lambda x: [s.bridge(s.backbone(s.normalise(x))) for s in separate],
        ),
        (list(grouped.parameters()), lambda x: _maps(grouped, x)),
    ]:
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(parameters, **options)  # type: ignore[arg-type]
        for _ in range(2):
            optimizer.zero_grad()
            loss(maps(batch(dims))).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    grouped.copy_to(trained)
    for one, two in zip(separate, trained, strict=True):
        for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")  # type: ignore[misc]


def _maps(grouped: GroupedStudents, x: torch.Tensor) -> list[torch.Tensor]:
    """``grouped.maps`` before its cast to float32."""
    count = len(grouped.filters)
    features = grouped.backbone(grouped.normalise(x).repeat(1, count, *(1,) * (x.ndim - 2)))
    if len(grouped.bridges) == 1:
        return list(grouped.bridges[0](features).chunk(count, dim=1))
    return [b(p) for b, p in zip(grouped.bridges, features.chunk(count, dim=1), strict=True)]


@pytest.mark.parametrize("widths", WIDTHS)
def test_grouped_students_give_the_same_maps(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    made = [Student("wrn-10-1", (1, 8, 8), w, Normalise([100.0], [50.0], 2)).eval() for w in widths]
    x = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    for grouped, student in zip(GroupedStudents(made).eval().maps(x), made, strict=True):
        torch.testing.assert_close(grouped, student.maps(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("send_width", [0, 12])
@pytest.mark.parametrize("dims", [1, 2])
def test_grouped_students_send_the_same_penultimate_features(send_width: int, dims: int) -> None:
    torch.manual_seed(0)
    shape = (2, 8, 8) if dims == 2 else (2, 25)
    made = [
        Student("wrn-10-1", shape, 5 + i, Normalise([1.0, 2.0], [3.0, 4.0], dims), "penultimate", send_width).eval()
        for i in range(3)
    ]
    grouped, x = GroupedStudents(made).eval(), batch(dims)
    maps, features = grouped.maps_and_features(x)
    for student, m, f in zip(made, maps, features, strict=True):
        assert f.shape == (6, send_width or 64)
        torch.testing.assert_close(f, student(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(m, student.maps(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(student.maps_and_features(x)[1], student(x))
    with torch.no_grad():
        for parameter in grouped.parameters():
            parameter.add_(0.1)
    grouped.copy_to(made)
    for student, f in zip(made, grouped.maps_and_features(x)[1], strict=True):
        torch.testing.assert_close(f, student(x), rtol=1e-4, atol=1e-4)


def test_a_group_shares_no_storage_with_the_students_it_was_made_from() -> None:
    made = students((4, 4))
    pointers = {t.data_ptr() for s in made for t in s.state_dict().values()}
    assert not pointers & {t.data_ptr() for t in GroupedStudents(made).state_dict().values()}


def test_what_cannot_be_grouped_is_refused() -> None:
    with pytest.raises(ShapeError, match="one architecture"):
        group([nn.Sequential(nn.ReLU()), nn.Sequential(nn.ReLU(), nn.ReLU())])
    with pytest.raises(ShapeError, match=r"layer '1' \(Linear\)"):
        group([nn.Sequential(nn.Flatten(), nn.Linear(3, 4)) for _ in range(2)])


def test_grouping_is_for_gpus_and_for_small_maps() -> None:
    assert grouping_pays("cuda", (3, 224, 224))
    assert grouping_pays("cpu", (1, 8, 8))
    assert grouping_pays("cpu", (9, 125))
    assert not grouping_pays("cpu", (3, 32, 32))
