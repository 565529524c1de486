"""Files as inputs: what training did to its files is recorded in the bundle and done again when it serves."""

from __future__ import annotations

import dataclasses
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from nonn.bundle import load_bundle
from nonn.bundle.inputs import InputReader, expand
from nonn.bundle.manifest import MANIFEST
from nonn.bundle.preprocess import Preprocess, recorded
from nonn.config import DataConfig
from nonn.data import load_data
from nonn.errors import BundleError, DataError, InputError, NonnError
from tests.toys import toy_bundle

GREY = InputReader((1, 8, 8), "uint8")


def photographs(folder: Path) -> Path:
    """Photographs of two classes, of different sizes and orientations, some grey."""
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for i in range(4):
            height, width = rng.integers(9, 30, 2)
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
            image.convert("L" if i == 1 else "RGB").save(folder / name / f"{i}.png", exif=exif if i == 2 else None)
    return folder


def test_a_photograph_becomes_the_input_that_training_saw(tmp_path: Path) -> None:
    folder = photographs(tmp_path / "photos")
    data = load_data(DataConfig(reader="imagefolder", path=str(folder), size=8, held_out=0.25, test=0.25), 0)
    reader = InputReader(data.input_shape, data.dtype, data.preprocess)
    trained = {x.tobytes() for split in (data.train, data.held_out, data.test) for x in split.inputs}
    files = list(expand([folder]))
    assert len(files) == 8
    assert {batch.tobytes() for file in files for batch in reader.read(file)} == trained


def test_windows_of_the_readers_array_are_scaled_as_it_scaled_them(tmp_path: Path) -> None:
    raw = np.random.default_rng(0).integers(-99, 99, (24, 3, 10), dtype=np.int16)
    file = tmp_path / "data.npz"
    np.savez(file, windows=raw, labels=np.arange(24) % 2, scale=np.array([0.5, 1, 2]), wide=np.zeros((2, 3, 11)))
    data = load_data(DataConfig(reader="npz", path=str(file), scale="scale", held_out=0.25, test=0.25), 0)
    reader = InputReader(data.input_shape, data.dtype, data.preprocess)
    batches = list(reader.read(file, 10))
    assert [len(batch) for batch in batches] == [10, 10, 4]
    trained = {x.tobytes() for split in (data.train, data.held_out, data.test) for x in split.inputs}
    assert {x.tobytes() for batch in batches for x in batch} == trained
    np.save(tmp_path / "ready.npy", raw[0])  # an array without that name holds inputs as the networks take them
    np.testing.assert_array_equal(next(reader.read(tmp_path / "ready.npy")), raw[:1].astype(np.float32))


def test_the_array_of_inputs_is_found_or_named(tmp_path: Path) -> None:
    samples = np.zeros((2, 1, 8, 8), np.uint8)
    np.savez(tmp_path / "fits.npz", pictures=samples, labels=np.zeros(2))
    np.savez(tmp_path / "two.npz", a=samples, b=samples + 1)
    assert next(GREY.read(tmp_path / "fits.npz")).shape == (2, 1, 8, 8)
    with pytest.raises(InputError, match="contains a, b; name the array of inputs with --array"):
        next(GREY.read(tmp_path / "two.npz"))
    assert next(dataclasses.replace(GREY, array="b").read(tmp_path / "two.npz")).max() == 1


@pytest.mark.parametrize(
    ("name", "content", "error", "text"),
    [
        ("wide.png", Image.new("L", (9, 8)), InputError, "9×8 pixels; this bundle was trained on images of 8×8"),
        ("deep.png", Image.new("I;16", (8, 8)), DataError, "only 8 bits per channel"),
        ("text.png", b"no image", DataError, r"cannot be read as an image \(not an image\)"),
        ("text.npy", b"no array", DataError, "not a NumPy file, or it contains Python objects"),
        ("text.npz", b"no array", DataError, "not a NumPy file, or it contains Python objects"),
        ("empty.npy", b"", DataError, "cannot be read as a NumPy file"),
        ("wrong.npy", np.zeros((8, 8, 1)), InputError, r"shape \[1, 8, 8, 1\]; this bundle accepts"),
        ("huge.npy", np.full((1, 8, 8), 1e300), InputError, "a value beyond float32"),
        ("words.npy", np.array(["a"]), InputError, "send an array of numbers"),
        ("gone.png", None, InputError, "no such file"),
        ("gone/*.png", None, InputError, "matches no file"),
        (".", None, InputError, "no images or arrays in this folder"),
    ],
)
def test_a_file_that_does_not_fit_is_named(
    name: str, content: Any, error: type[NonnError], text: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    if isinstance(content, Image.Image):
        content.save(file)
    elif isinstance(content, np.ndarray):
        np.save(file, content)
    elif content is not None:
        file.write_bytes(content)
    with pytest.raises(error, match=text) as caught:
        list(GREY.read(next(expand([file]))))
    assert str(file) in str(caught.value)
    assert "pickle" not in str(caught.value)


def test_a_stream_of_images_is_read_one_by_one_and_its_end_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    saved = io.BytesIO()
    Image.new("L", (8, 8), 7).save(saved, "png")
    frame = saved.getvalue()

    def read(data: bytes) -> Iterator[Any]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        return GREY.read("-")

    assert [batch.tolist() for batch in read(3 * frame)] == [[[[[7] * 8] * 8]]] * 3
    broken = {"ends within an image": frame[:-1], "no PNG image": b"text", "not an image": b""}
    for text, tail in broken.items():
        batches = read(frame + tail) if tail else read(b"text")
        if tail:
            next(batches)  # what came before is answered
        with pytest.raises(DataError, match=text):
            next(batches)


def test_a_closed_standard_input_is_named_and_pipes_in_a_folder_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as after <&- in a shell
    with pytest.raises(InputError, match="-: standard input is closed"):
        next(GREY.read("-"))
    Image.new("L", (8, 8), 7).save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert list(expand([tmp_path])) == [str(tmp_path / "a.png")]


def test_a_bundle_keeps_the_record_and_an_older_one_has_what_its_options_say(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    assert bundle.manifest.input.preprocess == Preprocess()
    steps = Preprocess("exif", "centre", "bicubic", "L", "windows", (0.5,))
    file = bundle.path / MANIFEST
    tree = json.loads(file.read_text())
    tree["input"]["preprocess"] = dataclasses.asdict(steps) | {"of a newer version": 1}
    file.write_text(json.dumps(tree))
    assert load_bundle(bundle.path).manifest.input.preprocess == steps
    assert recorded(None, {"config": {"data": {"reader": "imagefolder"}}}).crop == "centre"
    assert recorded(None, {}) == Preprocess()
    unknown = InputReader((3, 8, 8), "uint8", Preprocess(crop="face"))
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")
    with pytest.raises(BundleError, match=r"preprocess\.crop = 'face'"):
        next(unknown.read(tmp_path / "x.png"))
