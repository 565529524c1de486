"""Readers of CSV recordings and of IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonn.config import DataConfig
from nonn.data import load_data
from nonn.errors import ConfigError, DataError


def recording(path: Path, person: str, seconds: int = 40, rate: int = 50) -> None:
    """Ten seconds of each of two activities in turn, with a gap in the last one."""
    times = np.arange(seconds * rate) / rate
    lines = ["time,acc_x,acc_y,what,who"]
    for t in times:
        what = "walk" if int(t) // 10 % 2 else "sit"
        if not 34 < t < 35:
            lines.append(f"{t:.3f},{np.sin(t):.6f},{np.cos(t):.6f},{what},{person}")
    path.write_text("\n".join(lines) + "\n")


def config(path: Path, **more: Any) -> DataConfig:
    fields: dict[str, Any] = {"columns": ("acc_y", "acc_x"), "labels": "what", "rate_hz": 10.0, "window_s": 2.0}
    return DataConfig(reader="csv", path=str(path), **(fields | more))


def test_recordings_become_windows_of_one_label_and_of_whole_persons(tmp_path: Path) -> None:
    for person in ("ann", "bob", "eve"):
        recording(tmp_path / f"{person}.csv", person)
    for group in ("who", "file"):
        data = load_data(config(tmp_path, group=group, test_groups=(1,), held_out=0.2), 0)
        assert data.classes == ("sit", "walk")
        # Twenty windows, less the one across the gap; windows end where the label changes, to a sample.
        assert 16 <= len(data.test) <= 19
        assert data.test.places is not None
        assert data.train.places is not None
        assert set(data.test.places[:, 0]) == {1}
        assert set(data.train.places[:, 0]) == {0, 2}
        steps = np.diff(data.test.places[:, 1])
        assert (steps > 0).all()
        assert steps.max() > 1  # across the gap
        assert len(data.train) + len(data.held_out) == 2 * len(data.test)
        assert data.input_shape == (2, 20)
        window = data.test.inputs[0]
        np.testing.assert_allclose(window[1], np.sin(np.arange(20) / 10), atol=0.03)
        np.testing.assert_allclose(window[0], np.cos(np.arange(20) / 10), atol=0.03)


def test_one_recording_is_split_by_class(tmp_path: Path) -> None:
    recording(tmp_path / "a.csv", "1")
    data = load_data(config(tmp_path / "a.csv", hop_s=0.5, test=0.25), 0)
    assert len(data.test) > 10


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"columns": ()}, ConfigError, r"data\.columns: name the columns"),
        ({"columns": ("gyr_x",)}, DataError, r"a\.csv: no column 'gyr_x'"),
        ({"labels": "activity"}, DataError, r"a\.csv: no column 'activity'; the columns are time, acc_x"),
        ({"window_s": 15.0}, DataError, r"no window of 15 s with one label.*shorten"),
        ({"test_groups": (1,)}, DataError, r"name the column of groups"),
    ],
)
def test_a_recording_that_does_not_fit_is_refused(tmp_path: Path, more: Any, error: Any, message: str) -> None:
    recording(tmp_path / "a.csv", "1")
    with pytest.raises(error, match=message):
        load_data(config(tmp_path, **more), 0)


def test_a_folder_without_recordings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file \*\.csv"):
        load_data(config(tmp_path), 0)


def idx(values: Any) -> bytes:
    shape = b"".join(side.to_bytes(4, "big") for side in values.shape)
    return bytes([0, 0, 8, values.ndim]) + shape + bytes(values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(tmp_path: Path) -> Path:
    """Forty images of four classes, as MNIST has them, one half compressed."""
    rng = np.random.default_rng(0)
    for split, number in (("train", 40), ("t10k", 8)):
        images, labels = rng.integers(0, 256, (number, 6, 5)), np.arange(number) % 4
        (tmp_path / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{split}-labels-idx1-ubyte").write_bytes(idx(labels))
    return tmp_path


def test_the_files_of_the_mnist_family_are_read(mnist: Path) -> None:
    data = load_data(DataConfig(reader="idx", path=str(mnist)), 0)
    assert data.input_shape == (1, 6, 5)
    assert (len(data.train) + len(data.held_out), len(data.test)) == (40, 8)
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    expected = np.random.default_rng(0).integers(0, 256, (40, 6, 5))
    assert data.train.inputs.sum() + data.held_out.inputs.sum() == expected.sum()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-labels-idx1-ubyte", b"\0\0\x08\x01\0\0\0\x28abc", "3 values for \\[40\\]; it is truncated"),
        ("train-labels-idx1-ubyte", b"<html>", "not an IDX file of uint8 with 1 axes"),
        ("train-images-idx3-ubyte.gz", b"not compressed", "cannot be read"),
        ("t10k-labels-idx1-ubyte", None, "no file t10k-labels-idx"),
    ],
)
def test_a_broken_idx_file_is_named(mnist: Path, name: str, content: bytes | None, message: str) -> None:
    if content is None:
        (mnist / name).unlink()
    else:
        (mnist / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_data(DataConfig(reader="idx", path=str(mnist)), 0)
