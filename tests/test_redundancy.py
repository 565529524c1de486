"""Which device learns what: the designs of the papers, and what an experiment file takes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.config import load_experiment
from nonn.errors import ConfigError, PartitionError
from nonn.partition import Partition
from nonn.partition.redundancy import Design, filters_of_device


def cut(num_parts: int, num_filters: int = 19) -> Partition:
    chunks = np.array_split(np.random.default_rng(0).permutation(num_filters), num_parts)
    return Partition(tuple(tuple(chunk.tolist()) for chunk in chunks), num_filters, "test")


designs = st.integers(1, 8).flatmap(lambda m: st.tuples(st.just(m), st.integers(1, m), st.integers(m, 10)))


def test_without_overlap_device_i_learns_part_i_mod_m() -> None:
    partition = cut(3)
    assert Design(3).parts_of_device(7) == ((0,), (1,), (2,), (0,), (1,), (2,), (0,))
    assert filters_of_device(Design(3), partition, 7) == tuple(partition.parts[i % 3] for i in range(7))
    assert Design(3).devices_of_part(7) == ((0, 3, 6), (1, 4), (2, 5))


def test_an_overlap_adds_the_parts_that_follow() -> None:
    partition = cut(4)
    assert Design(4, 2).parts_of_device(4) == ((0, 1), (1, 2), (2, 3), (3, 0))
    last = filters_of_device(Design(4, 2), partition, 4)[3]
    assert last == tuple(sorted(partition.parts[3] + partition.parts[0]))


@pytest.mark.parametrize("design", [Design(1), Design(5, 5)])
def test_full_task_copies_learn_every_filter(design: Design) -> None:
    assert filters_of_device(design, cut(design.num_parts), 6) == (tuple(range(19)),) * 6
    assert design.group_of_device(6) == (0,) * 6


@given(designs)
def test_devices_are_of_one_group_exactly_when_they_learn_the_same(values: tuple[int, int, int]) -> None:
    num_parts, overlap, num_devices = values
    design = Design(num_parts, overlap)
    filters, group = filters_of_device(design, cut(num_parts), num_devices), design.group_of_device(num_devices)
    for i, j in combinations(range(num_devices), 2):
        assert (group[i] == group[j]) == (filters[i] == filters[j])
    assert sorted(set(group)) == list(range(len(set(group))))


@given(designs)
def test_every_filter_is_taught_to_r_devices_for_each_round_of_the_parts(values: tuple[int, int, int]) -> None:
    num_parts, overlap, num_devices = values
    learners = [len(d) for d in Design(num_parts, overlap).devices_of_part(num_devices)]
    assert sum(learners) == overlap * num_devices
    if num_devices % num_parts == 0:
        assert set(learners) == {overlap * num_devices // num_parts}


def test_impossible_designs_are_refused() -> None:
    with pytest.raises(PartitionError, match="parts = 0"):
        Design(0)
    with pytest.raises(PartitionError, match=r"overlap = 4: .* \(3\)"):
        Design(3, 4)
    with pytest.raises(PartitionError, match="overlap = 0"):
        Design(3, 0)
    with pytest.raises(PartitionError, match="4 devices with overlap 2 leave part 5 without a device"):
        Design(8, 2).parts_of_device(4)
    with pytest.raises(PartitionError, match="has 3 parts and the design 4"):
        filters_of_device(Design(4), cut(3), 4)


def test_the_experiment_file_takes_the_overlaps_that_a_design_takes() -> None:
    assert load_experiment(None).partition.overlap == 1
    assert load_experiment(None, ["partition.parts=4", "partition.overlap=4"]).partition.overlap == 4
    with pytest.raises(ConfigError, match=r"partition.overlap = 9: must be between 1 and the number of parts \(8\)"):
        load_experiment(None, ["partition.overlap=9"])
    with pytest.raises(ConfigError, match=r"partition.overlap = 0: must be at least 1"):
        load_experiment(None, ["partition.overlap=0"])
