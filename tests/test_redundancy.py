"""Which device learns what: the designs of the papers, what losses they stand, and the parts they cover."""

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
from nonn.reliability.subsets import mask_of, membership, probabilities


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
    assert design.tolerated_losses(6) == 5
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


@given(designs)
def test_tolerated_losses_are_those_that_no_set_of_lost_devices_refutes(values: tuple[int, int, int]) -> None:
    num_parts, overlap, num_devices = values
    design, everyone = Design(num_parts, overlap), range(num_devices)
    taught = design.parts_of_device(num_devices)

    def all_kept(lost: tuple[int, ...]) -> bool:
        return len(set().union(*(taught[i] for i in everyone if i not in lost))) == num_parts

    tolerated = design.tolerated_losses(num_devices)
    assert all(all_kept(lost) for lost in combinations(everyone, tolerated))
    assert not all(all_kept(lost) for lost in combinations(everyone, tolerated + 1))


def test_coverage_is_the_share_of_parts_that_the_survivors_learned() -> None:
    coverage = Design(4, 2).coverage(4)
    assert coverage.shape == (16,)
    assert [coverage[mask_of(s)] for s in [(), (1,), (0, 1), (0, 2), (0, 1, 2, 3)]] == [0, 0.5, 0.75, 1, 1]


@pytest.mark.parametrize(("num_parts", "share"), [(8, 0.0), (4, 0.229), (2, 0.971), (1, 1.0)])
def test_half_of_eight_devices_keep_every_part_as_often_as_counted(num_parts: int, share: float) -> None:
    half = Design(num_parts).coverage(8)[membership(8).sum(axis=1) == 4]
    assert (half == 1).mean() == pytest.approx(share, abs=5e-4)


def test_overlap_keeps_as_much_as_replicas_on_average_and_more_in_the_worst_case() -> None:
    half = membership(8).sum(axis=1) == 4
    overlap, replicas = Design(8, 2).coverage(8), Design(4).coverage(8)
    law = probabilities(np.full(8, 0.3))
    assert law @ overlap == pytest.approx(law @ replicas)
    assert overlap[half].min() == 5 / 8
    assert replicas[half].min() == 1 / 2


def test_impossible_designs_are_refused() -> None:
    with pytest.raises(PartitionError, match="parts = 0"):
        Design(0)
    with pytest.raises(PartitionError, match=r"overlap = 4: .* \(3\)"):
        Design(3, 4)
    with pytest.raises(PartitionError, match="overlap = 0"):
        Design(3, 0)
    with pytest.raises(PartitionError, match="4 devices with overlap 2 leave part 5 to nobody"):
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
