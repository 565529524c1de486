from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.errors import ShapeError
from nonn.reliability.subsets import all_masks, mask_of, members, membership, probabilities, sets_by_survivors
from nonn.reliability.table import SubsetTable

tables = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.integers(0, 50), min_size=2**n, max_size=2**n).map(
        lambda counts: SubsetTable(np.array(counts, dtype=np.int64), 50)
    )
)


@given(st.sets(st.integers(0, 15)))
def test_a_mask_and_its_members_are_the_same_thing(devices: set[int]) -> None:
    assert set(members(mask_of(devices))) == devices


def test_membership_lists_every_subset_once() -> None:
    rows = membership(4)
    assert len({tuple(r) for r in rows.tolist()}) == 16
    assert all(members(m) == tuple(np.flatnonzero(rows[m])) for m in all_masks(4).tolist())


@given(tables)
def test_accuracy_by_failures_equals_a_loop_over_combinations(table: SubsetTable) -> None:
    n = table.num_devices
    for row in table.by_failures():
        values = {s: table.correct[mask_of(s)] / 50 for s in combinations(range(n), n - row.failed)}
        assert row.subsets == len(values)
        assert row.mean == pytest.approx(np.mean(list(values.values())))
        assert (row.worst, row.best) == (min(values.values()), max(values.values()))
        if row.failed:
            assert values[row.worst_subset] == row.worst
        else:
            assert row.worst_subset == ()
    assert [row.failed for row in table.by_failures()] == list(range(n))


@given(tables, st.data())
def test_expected_accuracy_is_the_sum_over_subsets(table: SubsetTable, data: st.DataObject) -> None:
    n = table.num_devices
    p = np.array(data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n)))
    total = 0.0
    for mask in range(2**n):
        weight = np.prod([1 - p[i] if mask >> i & 1 else p[i] for i in range(n)])
        total += weight * table.correct[mask] / 50
    assert table.expected(p) == pytest.approx(total)
    assert probabilities(p).sum() == pytest.approx(1)


def test_importance_is_the_accuracy_that_hangs_on_a_device() -> None:
    # Device 0 alone decides: right whenever it answers. Device 1 never matters.
    table = SubsetTable(np.array([0, 10, 0, 10]), 10)
    assert table.importance(np.array([0.3, 0.3])) == pytest.approx([1.0, 0.0])
    # Either is enough: each matters when the other is down.
    table = SubsetTable(np.array([0, 10, 10, 10]), 10)
    assert table.importance(np.array([0.1, 0.2])) == pytest.approx([0.2, 0.1])


@pytest.mark.parametrize(
    ("counts", "samples", "words"),
    [
        ([0, 1, 2], 2, "2\\^N"),
        ([0], 2, "2\\^N"),
        ([0, 3], 2, "outside"),
        ([-1, 1], 2, "outside"),
        ([0, 0], 0, "outside"),
    ],
)
def test_an_impossible_table_is_refused(counts: list[int], samples: int, words: str) -> None:
    with pytest.raises(ShapeError, match=words):
        SubsetTable(np.array(counts), samples)


def test_bad_laws_and_too_many_devices_are_refused() -> None:
    table = SubsetTable(np.array([0, 1, 1, 2]), 2)
    with pytest.raises(ShapeError, match="failure probabilities for 2 devices"):
        table.expected(np.array([0.1]))
    with pytest.raises(ShapeError, match="between 0 and 1"):
        table.expected(np.array([0.1, 1.5]))
    with pytest.raises(ShapeError, match="17 devices"):
        all_masks(17)


def test_a_sample_of_subsets_has_every_number_of_survivors() -> None:
    levels = sets_by_survivors(6, 8, seed=0)
    assert [count for count, _ in levels] == [6, 5, 4, 3, 2, 1]
    for count, masks in levels:
        assert len(set(masks)) == len(masks) == min(8, math.comb(6, count))
        assert all(mask.bit_count() == count for mask in masks)
    assert levels == sets_by_survivors(6, 8, seed=0)
    assert levels != sets_by_survivors(6, 8, seed=1)
