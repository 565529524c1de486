"""Data sets, splits and the choice of a reader."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nonn.config import DataConfig
from nonn.data import Dataset, Split, load_data
from nonn.data.source import Source, number_classes
from nonn.data.splits import choose_groups, hold_out, stratified
from nonn.errors import ConfigError, DataError, MissingExtraError


def images(num: int, num_classes: int = 2, seed: int = 0) -> Split:
    """Random images [num, 3, 4, 5], labels in turn; the first two bytes number the sample."""
    pixels = np.random.default_rng(seed).integers(0, 256, (num, 3, 4, 5), dtype=np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 0, 1] = np.arange(num) % 256, np.arange(num) // 256
    return Split(pixels, np.arange(num) % num_classes)


def windows(num: int, seed: int = 0) -> Split:
    values = np.random.default_rng(seed).normal(size=(num, 2, 7)).astype(np.float32)
    return Split(values, np.arange(num) % 2)


def rows(split: Split) -> set[bytes]:
    return {sample.tobytes() for sample in split.inputs}


def test_the_digits_have_the_sizes_of_the_default_experiment() -> None:
    data = load_data(DataConfig(), 0)
    assert (len(data.train), len(data.held_out), len(data.test)) == (1293, 144, 360)
    assert (data.name, data.input_shape, data.dtype, data.num_classes) == ("digits", (1, 8, 8), "uint8", 10)
    assert data.classes == tuple("0123456789")
    assert (data.train.inputs.min(), data.train.inputs.max()) == (0, 255)


def test_a_seed_fixes_the_splits_and_another_seed_draws_others() -> None:
    first, again, other = (load_data(DataConfig(), seed) for seed in (3, 3, 4))
    assert first.fingerprint() == again.fingerprint()
    assert rows(first.test) != rows(other.test)
    source = Source("toy", images(500), images(40), ("a", "b"))  # its files fix the test split
    assert rows(hold_out(source, 0.1, 3).held_out) != rows(hold_out(source, 0.1, 4).held_out)


def test_no_sample_is_lost_or_in_two_splits() -> None:
    source = Source("toy", images(500), images(40, seed=1), ("a", "b"))
    data = hold_out(source, 0.1, 0)
    assert not rows(data.train) & rows(data.held_out)
    assert rows(data.train) | rows(data.held_out) == rows(source.train)
    assert len(data.held_out) == 50


def test_labels_stay_with_their_inputs() -> None:
    source = Source("toy", images(500), images(40), ("a", "b"))
    label_of = dict(zip(map(bytes, source.train.inputs), source.train.labels, strict=True))
    data = hold_out(source, 0.3, 0)
    for split in (data.train, data.held_out):
        assert all(label_of[bytes(x)] == y for x, y in zip(split.inputs, split.labels, strict=True))


@given(
    st.lists(st.integers(0, 5), min_size=2, max_size=80),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
@example([0, 1, 1, 1, 1], 0.5, 0)  # the single sample stays out, so the other class gives one more than its half
def test_a_stratified_draw_gives_each_class_its_share(labels: list[int], share: float, seed: int) -> None:
    array = np.asarray(labels, dtype=np.int64)
    counts = np.bincount(array)
    if counts.max() == 1:
        with pytest.raises(DataError, match="no class has two samples"):
            stratified(array, share, np.random.default_rng(seed), "data.test")
        return
    left, drawn = stratified(array, share, np.random.default_rng(seed), "data.test")
    assert sorted([*left, *drawn]) == list(range(len(array)))
    got = np.bincount(array[drawn], minlength=len(counts))
    assert (np.abs(got - counts * share) <= 1 + 1e-9).all()
    assert (got[counts > 0] < counts[counts > 0]).all()
    if (counts[counts > 0] > 1 / (1 - share)).all():  # every class can give one more than its floor
        assert len(drawn) == np.ceil(round(share * len(array), 9))


def test_the_largest_remainder_gets_the_sample_that_is_left() -> None:
    labels = np.asarray([0] * 3 + [1] * 4)  # shares of 1.2 and 1.6, together ⌈2.8⌉
    _, drawn = stratified(labels, 0.4, np.random.default_rng(0), "data.test")
    assert np.bincount(labels[drawn]).tolist() == [1, 2]


def test_groups_of_the_test_split_are_whole() -> None:
    groups = np.asarray([1, 2, 3, 1, 2, 3, 9])
    named = choose_groups(groups, (2, 9), 0.5, 0, "subject")
    assert groups[named].tolist() == [2, 2, 9]
    drawn = choose_groups(groups, (), 0.5, 0, "subject")
    assert len(set(groups[drawn])) == 2
    assert not set(groups[drawn]) & set(groups[~drawn])


def test_unknown_groups_and_groups_that_leave_nothing_are_errors() -> None:
    groups = np.asarray([1, 2, 2])
    with pytest.raises(DataError, match="subject: no group 7; there are: 1, 2"):
        choose_groups(groups, (2, 7), 0.5, 0, "subject")
    with pytest.raises(DataError, match="none is left to train on"):
        choose_groups(groups, (1, 2), 0.5, 0, "subject")


@pytest.mark.parametrize("make", [images, windows])
def test_statistics_are_those_of_the_training_split_per_channel(make: type) -> None:
    data = hold_out(Source("toy", make(60), make(10), ("a", "b")), 0.2, 0)
    values = data.train.inputs.astype(np.float64)
    axes = (0, *range(2, values.ndim))
    np.testing.assert_allclose(data.mean, values.mean(axes), rtol=1e-6)
    np.testing.assert_allclose(data.std, values.std(axes), rtol=1e-6)
    assert data.mean.dtype == data.std.dtype == np.float32


def test_the_test_split_changes_nothing_but_itself() -> None:
    first = hold_out(Source("toy", images(60), images(10, seed=1), ("a", "b")), 0.2, 0)
    other = hold_out(Source("toy", images(60), images(30, seed=2), ("a", "b")), 0.2, 0)
    for name in ("mean", "std"):
        np.testing.assert_array_equal(getattr(first, name), getattr(other, name))
    for name in ("train", "held_out"):
        np.testing.assert_array_equal(getattr(first, name).inputs, getattr(other, name).inputs)


def test_a_constant_channel_has_std_one() -> None:
    split = windows(20)
    split.inputs[:, 1] = 0.1  # not a binary fraction: rounding could leave a variance of 1e-34
    data = Dataset.of("toy", split, split, split, ("a", "b"))
    assert data.std[1] == 1.0
    assert data.std[0] != 1.0


def test_the_fingerprint_follows_every_part_of_the_contents() -> None:
    base = Dataset.of("toy", images(6), images(4), images(2), ("a", "b"))
    brighter = images(2)
    brighter.inputs[1, 2, 3, 4] ^= 1
    variants = [
        dataclasses.replace(base, test=brighter),
        dataclasses.replace(base, held_out=Split(base.held_out.inputs, 1 - base.held_out.labels)),
        dataclasses.replace(base, classes=("a", "c")),
        dataclasses.replace(base, classes=("a", "b", "c")),
        dataclasses.replace(base, train=images(4), held_out=images(6)),
    ]
    assert len({data.fingerprint() for data in [base, *variants]}) == 6
    assert dataclasses.replace(base, name="other").fingerprint() == base.fingerprint()
    assert len(base.fingerprint()) == 64


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((2, 3, 4, 4), np.float32), np.zeros(2, np.int64), r"\[2, 3, 4, 4\] of float32"),
        (np.zeros((2, 3, 4), np.uint8), np.zeros(2, np.int64), r"\[2, 3, 4\] of uint8"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(3, np.int64), "2 inputs need as many labels"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.float32), "labels .* of float32"),
        (np.zeros((0, 3, 4, 4), np.uint8), np.zeros(0, np.int64), "the split is empty"),
        (np.zeros((2, 3, 4, 4), np.uint8), np.asarray([0, -1]), "label -1"),
        (np.asarray([[[0.0]], [[np.nan]]], np.float32), np.zeros(2, np.int64), "input 1: contains NaN"),
        (np.asarray([[[np.inf]], [[0.0]]], np.float32), np.zeros(2, np.int64), "input 0: contains NaN"),
    ],
)
def test_a_split_refuses_what_it_cannot_be(inputs: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Split(inputs, labels)


def test_splits_that_do_not_fit_each_other_are_refused() -> None:
    small = Split(np.zeros((2, 3, 4, 4), np.uint8), np.zeros(2, np.int64))
    with pytest.raises(DataError, match=r"toy: test inputs are \[3, 4, 4\].*\[3, 4, 5\]"):
        Dataset.of("toy", images(4), images(4), small, ("a", "b"))
    with pytest.raises(DataError, match="toy: label 1, but only 1 classes"):
        Dataset.of("toy", images(4), images(4), images(4), ("a",))


def test_labels_of_any_values_become_classes_in_ascending_order() -> None:
    numbers, classes = number_classes([np.asarray([30, 10]), np.asarray([20], np.uint64)], None, "file")
    assert ([n.tolist() for n in numbers], classes) == ([[2, 0], [1]], ("10", "20", "30"))
    numbers, classes = number_classes([np.asarray(["walk", "run", "walk"])], None, "file")
    assert (numbers[0].tolist(), classes) == ([1, 0, 1], ("run", "walk"))


@pytest.mark.parametrize("labels", [[-1, 0], [0, 2]])
def test_labels_without_a_name_are_an_error(labels: list[int]) -> None:
    with pytest.raises(DataError, match="there are 2 class names"):
        number_classes([np.asarray(labels)], ["a", "b"], "file")


@pytest.mark.parametrize("labels", [[np.asarray([0.5])], [np.asarray([[1]])], [np.asarray([1]), np.asarray(["one"])]])
def test_labels_that_are_no_classes_are_an_error(labels: list[np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"file: labels .* must be \[n\] integers, or strings"):
        number_classes(labels, None, "file")


@pytest.mark.parametrize("reader", ["parquet", "cifar", "imagefolder", "npz"])
def test_a_missing_path_says_what_is_needed_and_how_to_get_it(reader: str) -> None:
    with pytest.raises(DataError, match=rf"the {reader} reader needs .*--set data.path=PATH"):
        load_data(DataConfig(reader=reader), 0)
    with pytest.raises(DataError, match=rf"/no/where: no such .*the {reader} reader needs .*--set data.path="):
        load_data(DataConfig(reader=reader, path="/no/where"), 0)


def test_impossible_arguments_are_configuration_errors() -> None:
    with pytest.raises(ConfigError, match="'cvs': unknown; did you mean 'csv'"):
        load_data(DataConfig(reader="cvs"), 0)
    with pytest.raises(ConfigError, match="seed = -1"):
        load_data(DataConfig(), -1)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    monkeypatch.delitem(sys.modules, "nonn.data.digits", raising=False)
    with pytest.raises(MissingExtraError, match=r"sklearn is not installed.*nonn\[train\]"):
        load_data(DataConfig(), 0)


def test_importing_the_package_loads_no_optional_dependency() -> None:
    code = "import sys, nonn.data; print({'torch', 'sklearn', 'pyarrow', 'PIL'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
