"""Skewed training data, and the samples that heads are fitted to when some classes are rare."""

from __future__ import annotations

import numpy as np
import pytest

from nonn.config import DataConfig
from nonn.data import Dataset, Split, load_data
from nonn.data.source import Source
from nonn.data.splits import skew
from nonn.distill.rebalance import balanced_order, head_to_tail
from nonn.errors import DataError


def test_imbalance_gives_the_training_data_a_long_tail_and_leaves_the_test_data() -> None:
    plain, skewed = (load_data(DataConfig(imbalance=ratio), 0) for ratio in (1.0, 20.0))

    def learned(data: Dataset) -> list[int]:
        labels = np.concatenate([data.train.labels, data.held_out.labels])
        counts: list[int] = np.bincount(labels).tolist()
        return counts

    largest = max(learned(plain))
    expected = [min(n, round(largest * 20 ** (-k / 9))) for k, n in enumerate(learned(plain))]
    assert learned(skewed) == expected
    assert expected[0] > 19 * expected[9]
    np.testing.assert_array_equal(skewed.test.inputs, plain.test.inputs)
    assert set(skewed.train.labels) == set(range(10))
    again = load_data(DataConfig(imbalance=20.0), 0)
    assert again.fingerprint() == skewed.fingerprint() != plain.fingerprint()


def test_skewed_samples_keep_their_groups_and_every_class_two_samples() -> None:
    labels = np.repeat(np.arange(3), 10)
    train = Split(np.arange(30, dtype=np.float32).reshape(30, 1, 1), labels)
    source = Source("toy", train, train, ("a", "b", "c"), groups=np.arange(30))
    found = skew(source, 1000.0, 0)
    assert np.bincount(found.train.labels).tolist() == [10, 2, 2]
    np.testing.assert_array_equal(found.train.inputs[:, 0, 0], found.groups)
    assert found.test is train
    assert skew(source, 1.0, 0) is source
    alone = Source("one", Split(train.inputs, np.zeros(30, dtype=np.int64)), train, ("a",))
    with pytest.raises(DataError, match=r"data\.imbalance = 2"):
        skew(alone, 2.0, 0)


def test_a_balanced_order_draws_all_classes_equally_often() -> None:
    labels = np.repeat(np.arange(3), [2000, 200, 20])
    order = balanced_order(labels, np.random.default_rng(0))
    assert len(order) == len(labels)
    np.testing.assert_allclose(np.bincount(labels[order]) / len(order), 1 / 3, atol=0.04)


def test_rare_classes_get_a_share_of_the_features_of_frequent_ones() -> None:
    labels = np.array([0, 0, 1, 2, 2])
    features = labels[:, None].repeat(10, axis=1).astype(np.float32)
    counts = np.array([100, 50, 5])
    mixed = head_to_tail(features, labels, counts, 0.3, np.random.default_rng(0))
    np.testing.assert_array_equal(mixed[:3], features[:3])  # classes at the median and above
    assert ((mixed[3:] != 2).sum(axis=1) == 3).all()
    assert set(mixed[3:].ravel()) <= {0, 1, 2}
    assert features.max() == 2  # not changed in place
    assert head_to_tail(features[3:], labels[3:], counts, 0.3, np.random.default_rng(0)) is not mixed
    np.testing.assert_array_equal(head_to_tail(features[3:], labels[3:], counts, 0.3, np.random.default_rng(0)), 2)
