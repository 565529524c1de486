from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.reliability.laws import parse_law
from nonn.reliability.marginal import marginal_values, pair_losses, shapley_values
from nonn.reliability.subsets import mask_of
from nonn.reliability.table import SubsetTable

tables = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.integers(0, 50), min_size=2**n, max_size=2**n).map(
        lambda counts: SubsetTable(np.array(counts, dtype=np.int64), 50)
    )
)


@given(tables)
def test_shapley_value_is_the_mean_gain_over_all_orders(table: SubsetTable) -> None:
    n, accuracy = table.num_devices, table.accuracy
    gains = np.zeros(n)
    orders = list(permutations(range(n)))
    for order in orders:
        for place, device in enumerate(order):
            gains[device] += accuracy[mask_of(order[: place + 1])] - accuracy[mask_of(order[:place])]
    values = shapley_values(table)
    np.testing.assert_allclose(values, gains / len(orders), atol=1e-12)
    assert values.sum() == pytest.approx(accuracy[-1] - accuracy[0])


def test_shapley_value_is_fair() -> None:
    # Devices 0 and 1 are copies of each other, device 2 never helps.
    table = SubsetTable(np.array([0, 8, 8, 10, 0, 8, 8, 10]), 10)
    assert shapley_values(table) == pytest.approx([0.5, 0.5, 0.0])


@given(tables, st.data())
def test_marginal_value_is_birnbaums_where_devices_fail_independently(table: SubsetTable, data: st.DataObject) -> None:
    n = table.num_devices
    p = data.draw(st.lists(st.floats(0, 1), min_size=n, max_size=n))
    law = parse_law(f"independent p={p}", n)
    np.testing.assert_allclose(marginal_values(table, law.probabilities()), table.importance(np.array(p)), atol=1e-9)


def test_marginal_value_knows_common_causes() -> None:
    # Either device is enough. Independent failures make each nearly worthless, a common cause makes neither help.
    table = SubsetTable(np.array([0, 10, 10, 10]), 10)
    together = parse_law("groups [[0,1]] p_group=0.1", 2).probabilities()
    assert marginal_values(table, together) == pytest.approx([0.1, 0.1])


def test_pair_losses_are_the_sets_without_the_two() -> None:
    table = SubsetTable(np.arange(16), 15)
    losses = pair_losses(table)
    assert losses.shape == (4, 4)
    for i in range(4):
        for j in range(4):
            assert losses[i, j] == table.accuracy[mask_of(set(range(4)) - {i, j})]
