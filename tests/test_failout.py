from __future__ import annotations

import math

import pytest
import torch

from nonn.distill.failout import LAWS, sample_answering
from nonn.errors import ConfigError

N, DRAWS = 8, 40_000
GROUPS = ((0, 1), (2, 3, 4))


def draw(law: str, p: float = 0.3, seed: int = 0, draws: int = DRAWS, n: int = N, **options: object) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sample_answering(law, draws, n, p, generator, **options)  # type: ignore[arg-type]


def close(share: float, probability: float, draws: int = DRAWS) -> bool:
    """Within five standard errors: a right law fails once in two million tries."""
    return abs(share - probability) < 5 * math.sqrt(max(probability * (1 - probability), 1e-9) / draws) + 1e-9


@pytest.mark.parametrize("law", LAWS)
def test_no_answering_set_is_empty_however_likely_a_failure_and_one_seed_gives_one_draw(law: str) -> None:
    first, second = (draw(law, 0.97, groups=GROUPS, p_group=0.97, draws=2000) for _ in range(2))
    assert first.dtype == torch.bool
    assert first.shape == (2000, N)
    assert first.any(dim=1).all()
    assert torch.equal(first, second)
    if law != "none":
        assert not torch.equal(first, draw(law, 0.97, seed=1, groups=GROUPS, p_group=0.97, draws=2000))


def test_independent_failout_drops_every_device_at_its_rate_and_without_regard_to_the_others() -> None:
    answered = draw("independent").float()
    assert all(close(float(share), 0.7) for share in answered.mean(dim=0))
    survivors = torch.bincount(answered.sum(dim=1).long(), minlength=N + 1) / DRAWS
    for k in range(2, N + 1):  # no failure of all eight is likely enough to tell
        assert close(float(survivors[k]), math.comb(N, k) * 0.7**k * 0.3 ** (N - k))
    for i in range(N - 1):
        assert close(float((answered[:, i] * answered[:, i + 1]).mean()), 0.49)


def test_a_set_that_would_be_empty_is_one_device_and_each_as_often() -> None:
    answered = draw("independent", p=0.9, n=3)
    alone = answered.sum(dim=1) == 1
    expected = 3 * 0.1 * 0.9**2 + 0.9**3
    assert close(float(alone.float().mean()), expected)
    assert all(close(float(share), 1 / 3, int(alone.sum())) for share in answered[alone].float().mean(dim=0))


def test_stratified_failout_gives_every_number_of_survivors_and_then_every_set_the_same_weight() -> None:
    answered = draw("stratified", n=4)
    survivors = answered.sum(dim=1)
    for k in range(1, 5):
        assert close(float((survivors == k).float().mean()), 1 / 4)
    codes = (answered.long() * torch.tensor([1, 2, 4, 8])).sum(dim=1)
    for mask in range(1, 16):
        assert close(float((codes == mask).float().mean()), 1 / 4 / math.comb(4, mask.bit_count()))


def test_groups_fail_as_one() -> None:
    answered = draw("groups", p=0.0, groups=GROUPS, p_group=0.4)
    for group in GROUPS:
        members = answered[:, list(group)]
        assert (members.all(dim=1) == members.any(dim=1)).all()
        assert close(float(members[:, 0].float().mean()), 0.6)
    assert answered[:, 5:].all()
    both = answered[:, 0] & answered[:, 2]
    assert close(float(both.float().mean()), 0.36)


def test_devices_in_groups_also_fail_by_themselves() -> None:
    answered = draw("groups", p=0.3, groups=GROUPS, p_group=0.4).float()
    assert all(close(float(share), 0.6 * 0.7) for share in answered[:, :5].mean(dim=0))
    assert all(close(float(share), 0.7) for share in answered[:, 5:].mean(dim=0))
    together = answered[:, 0] * answered[:, 1]
    assert close(float(together.mean()), 0.6 * 0.7**2)


def test_all_devices_in_one_group_still_leave_one() -> None:
    answered = draw("groups", p=0.0, n=4, groups=[[0, 1, 2, 3]], p_group=0.5)
    survivors = answered.sum(dim=1)
    assert set(survivors.tolist()) == {1, 4}
    assert close(float((survivors == 4).float().mean()), 0.5)


def test_without_groups_the_group_law_is_the_independent_one() -> None:
    assert torch.equal(draw("groups", draws=500), draw("independent", draws=500))


def test_no_failout_drops_nobody() -> None:
    assert draw("none", p=0.9, draws=5).all()


def test_a_law_or_group_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sometimes': unknown; choose one of: none, independent, stratified, groups"):
        draw("sometimes")
    with pytest.raises(ConfigError, match=r"\[7, 8\] names a device not among 8"):
        draw("groups", groups=[[7, 8]])
