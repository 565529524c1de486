from __future__ import annotations

import pytest
import torch
from torch import nn

from nonn.config import BudgetConfig
from nonn.errors import BudgetError, ConfigError
from nonn.students import Cost, Student, check_budget, measure_cost
from nonn.teacher import Normalise


def student(width: int = 16) -> Student:
    return Student("wrn-10-1", (1, 8, 8), width, Normalise([100.0], [50.0], 2))


def test_a_student_sends_the_pooled_output_of_its_bridge() -> None:
    s = student().eval()
    raw = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    assert s.maps(raw).shape == (3, 16, 2, 2)
    torch.testing.assert_close(s(raw), s.maps(raw).mean((2, 3)))
    assert (s(raw) >= 0).all()


@pytest.mark.parametrize("send_width", [0, 8])
def test_a_student_can_send_its_penultimate_features_and_leaves_its_bridge_at_home(send_width: int) -> None:
    bridged = student()
    s = Student("wrn-10-1", (1, 8, 8), 16, Normalise([100.0], [50.0], 2), "penultimate", send_width).eval()
    raw = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8)
    pooled = s.backbone(s.normalise(raw)).float().mean((2, 3))
    expected = pooled if s.squeeze is None else pooled @ s.squeeze.get_parameter("weight")[:, :, 0, 0].T
    assert s.width == (send_width or 64) == s(raw).shape[1]
    torch.testing.assert_close(s(raw), expected)
    without = measure_cost(bridged, (1, 8, 8)).params - sum(p.numel() for p in bridged.bridge.parameters())
    assert measure_cost(s, (1, 8, 8)).params == without + 64 * send_width


def test_a_student_cannot_send_more_features_than_it_has() -> None:
    with pytest.raises(ConfigError, match="has 64 penultimate features"):
        Student("wrn-10-1", (1, 8, 8), 16, Normalise([100.0], [50.0], 2), "penultimate", 65)


def test_sensor_windows_have_students_too() -> None:
    s = Student("wrn-10-1", (9, 125), 12, Normalise([0.0] * 9, [1.0] * 9, 1)).eval()
    assert s(torch.randn(2, 9, 125)).shape == (2, 12)


def test_an_unknown_student_is_refused() -> None:
    with pytest.raises(ConfigError, match="write wrn-DEPTH-WIDTH"):
        Student("mobilenet", (1, 8, 8), 16, Normalise([0.0], [1.0], 2))


def test_cost_counts_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 25, 7))
    cost = measure_cost(network, (3, 5, 5))
    params = (3 * 4 * 9 + 4) + (100 * 7 + 7)
    assert cost == Cost(params, 3 * 4 * 9 * 25 + 700, 4 * (params + 3 * 25 + 4 * 25))
    assert network.training


def test_counting_leaves_batch_statistics_alone() -> None:
    s = student()
    before = {k: v.clone() for k, v in s.state_dict().items()}
    measure_cost(s, (1, 8, 8))
    assert all(torch.equal(before[k], v) for k, v in s.state_dict().items())
    assert not any(m._forward_hooks for m in s.modules())


@pytest.mark.parametrize("limit", ["params", "macs", "peak_bytes"])
def test_a_student_over_its_budget_is_refused_with_the_numbers(limit: str) -> None:
    cost = Cost(1000, 2000, 3000)
    check_budget(0, "wrn-10-1", cost, BudgetConfig())
    check_budget(0, "wrn-10-1", cost, BudgetConfig(**{limit: getattr(cost, limit)}))
    with pytest.raises(BudgetError) as caught:
        check_budget(3, "wrn-10-1", cost, BudgetConfig(**{limit: getattr(cost, limit) - 1}))
    assert "device 3" in str(caught.value)
    assert f"{limit} {getattr(cost, limit):,}" in str(caught.value)
