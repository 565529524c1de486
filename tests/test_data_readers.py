"""Readers, on files made on the spot."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nonn.config import DataConfig
from nonn.data import Dataset, load_data
from nonn.errors import ConfigError, DataError

NAMES = ["cat", "dog"]


def load(reader: str, path: Path, **options: object) -> Dataset:
    return load_data(DataConfig(reader=reader, path=str(path), **options), 0)  # type: ignore[arg-type]


def pixels(num: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, *shape), dtype=np.uint8)


def encode(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind, **options)
    return stream.getvalue()


def training_inputs(data: Dataset) -> set[bytes]:
    """All of the training data, before a share of it was held out."""
    return {x.tobytes() for x in np.concatenate([data.train.inputs, data.held_out.inputs])}


# parquet


def write_parquet(
    file: Path,
    images: Sequence[bytes | None],
    labels: Sequence[object],
    column: str = "label",
    names: list[str] | None = NAMES,
) -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table(
        {"picture": pa.array([{"bytes": b, "path": None} for b in images], struct), column: pa.array(labels)}
    )
    if names is not None:
        features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def hub_folder(folder: Path, train: np.ndarray, test: np.ndarray, **options: object) -> Path:
    for name, images in (("train", train), ("test", test)):
        labels = [i % 2 for i in range(len(images))]
        write_parquet(folder / f"{name}.parquet", [encode(x) for x in images], labels, **options)  # type: ignore[arg-type]
    return folder


def test_parquet_reads_images_labels_and_class_names(tmp_path: Path) -> None:
    train, test = pixels(20, 4, 5, 3), pixels(6, 4, 5, 3, seed=1)
    data = load("parquet", hub_folder(tmp_path / "pets", train, test))
    assert (data.name, data.input_shape, data.classes) == ("pets", (3, 4, 5), ("cat", "dog"))
    np.testing.assert_array_equal(data.test.inputs, test.transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert training_inputs(data) == {x.transpose(2, 0, 1).tobytes() for x in train}


def test_parquet_reads_shards_in_order_from_the_data_folder_and_misses_none(tmp_path: Path) -> None:
    images = pixels(705, 2, 2, 3)  # the last task of the decoding pool gets one image
    encoded = [encode(x) for x in images]
    for i in range(5):
        part = encoded[i * 141 : (i + 1) * 141]
        write_parquet(tmp_path / "data" / f"test-{i:05}-of-00005.parquet", part, [i % 2] * 141)
    write_parquet(tmp_path / "data" / "train-00000-of-00001.parquet", encoded[:20], [0, 1] * 10)
    data = load("parquet", tmp_path)
    np.testing.assert_array_equal(data.test.inputs, images.transpose(0, 3, 1, 2))
    assert data.test.labels.tolist() == [i // 141 % 2 for i in range(705)]
    (tmp_path / "data" / "test-00001-of-00005.parquet").unlink()
    with pytest.raises(DataError, match=r"4 files test\*\.parquet, but their names require 5 shards"):
        load("parquet", tmp_path)


def test_parquet_keeps_grey_images_grey_unless_one_has_colour(tmp_path: Path) -> None:
    grey, colour = pixels(8, 3, 3), pixels(8, 3, 3, 3)
    assert load("parquet", hub_folder(tmp_path / "grey", grey, grey)).input_shape == (1, 3, 3)
    data = load("parquet", hub_folder(tmp_path / "mixed", grey, colour))
    assert data.input_shape == (3, 3, 3)
    assert training_inputs(data) == {np.stack([x] * 3).tobytes() for x in grey}


def test_parquet_reads_other_image_formats_and_modes(tmp_path: Path) -> None:
    image = pixels(1, 4, 4, 3)[0]
    palette = io.BytesIO()
    Image.fromarray(image).quantize(4).save(palette, "PNG", transparency=bytes([0, 128, 255, 255]))
    rgba = np.dstack([image, np.full((4, 4), 9, np.uint8)])
    images = [encode(image, "WEBP", lossless=True), encode(image, "JPEG"), encode(rgba), palette.getvalue()]
    write_parquet(tmp_path / "train.parquet", images * 2, [0, 0, 0, 0, 1, 1, 1, 1])
    write_parquet(tmp_path / "test.parquet", images, [0, 1, 0, 1])
    data = load("parquet", tmp_path)
    for i in (0, 2):  # lossless; transparency is dropped
        np.testing.assert_array_equal(data.test.inputs[i], image.transpose(2, 0, 1))


def test_parquet_takes_the_column_of_labels_that_is_named(tmp_path: Path) -> None:
    for name in ("train", "test"):
        write_parquet(tmp_path / f"{name}.parquet", [encode(x) for x in pixels(8, 2, 2)], ["b", "a"] * 4, "kind", None)
    with pytest.raises(DataError, match=r"no column 'labels'; columns: picture, kind; .*data\.labels=COLUMN"):
        load("parquet", tmp_path)
    data = load("parquet", tmp_path, labels="kind")
    assert (data.classes, data.test.labels[:2].tolist()) == (("a", "b"), [1, 0])


def test_parquet_without_class_names_uses_the_labels(tmp_path: Path) -> None:
    images = pixels(8, 2, 2, 3)
    assert load("parquet", hub_folder(tmp_path, images, images, names=None)).classes == ("0", "1")


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ([b"GIF, or so it says"] * 2, [0, 1], "row 0: not a readable image"),
        ([encode(pixels(1, 9, 9)[0])[:-30]] * 2, [0, 1], "row 0: not a readable image"),
        ([encode(pixels(1, 2, 2)[0]), None], [0, 1], "row 1: .*has no bytes"),
        ([encode(pixels(1, 2, 2)[0]), encode(pixels(1, 2, 3)[0])], [0, 1], "row 1: 3×2 pixels.*2×2"),
        ([encode(np.ones((2, 2), np.uint16))] * 2, [0, 1], "row 0: .*only 8 bits"),
        ([encode(pixels(1, 2, 2)[0])] * 2, [0, None], "rows without a label"),
        ([encode(pixels(1, 2, 2)[0])] * 2, [0, -1], "-1 usually marks data without labels"),
        ([encode(pixels(1, 2, 2)[0])] * 2, [0.5, 1.0], "'label' of double is not one label per row"),
        ([encode(pixels(1, 2, 2)[0])] * 2, [[0], [0, 1]], "'label' of list<.*not one label per row"),
        ([], [], "not one label per row|no rows"),
    ],
)
def test_parquet_names_the_file_and_row_that_is_wrong(
    tmp_path: Path, images: list[bytes | None], labels: list[object], message: str
) -> None:
    hub_folder(tmp_path, pixels(8, 2, 2), pixels(8, 2, 2))
    write_parquet(tmp_path / "test.parquet", images, labels)
    with pytest.raises(DataError, match=message) as error:
        load("parquet", tmp_path)
    assert str(tmp_path) in str(error.value)


def test_parquet_files_that_are_missing_truncated_or_without_images_are_errors(tmp_path: Path) -> None:
    hub_folder(tmp_path, pixels(8, 2, 2), pixels(8, 2, 2))
    file = tmp_path / "test.parquet"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"test\.parquet: truncated, or not a parquet file"):
        load("parquet", tmp_path)
    pq.write_table(pa.table({"label": [0, 1]}), file)
    with pytest.raises(DataError, match=r"test\.parquet: no column of images.*columns: label"):
        load("parquet", tmp_path)
    file.unlink()
    with pytest.raises(DataError, match=r"test\*\.parquet: no such file.*download it"):
        load("parquet", tmp_path)


# cifar


def write_pickle(file: Path, content: object, protocol: int = 4) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=protocol))


class PicklerOfPython2(pickle._Pickler):
    """Writes text and bytes alike as the byte strings of Python 2, and NumPy's names of before 2.0."""

    dispatch: ClassVar[dict[Any, Any]] = pickle._Pickler.dispatch.copy()
    write: Callable[[bytes], object]

    def save_string(self, text: str | bytes) -> None:
        content = text.encode() if isinstance(text, str) else text
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)

    def save_global(self, obj: type, name: str | None = None) -> None:
        module = obj.__module__.replace("numpy._core", "numpy.core")
        self.write(pickle.GLOBAL + f"{module}\n{obj.__name__}\n".encode())

    dispatch[str] = dispatch[bytes] = save_string
    dispatch[type(lambda: 0)] = dispatch[type(len)] = dispatch[type] = save_global


def write_pickle_of_python_2(file: Path, content: object, protocol: int = 2) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        PicklerOfPython2(stream, 2).dump(content)
    assert b"numpy._core" not in file.read_bytes()


def cifar_100(folder: Path, write: Callable[..., None] = write_pickle, protocol: int = 4) -> np.ndarray:
    """Writes a small CIFAR-100; returns its test images [6, 3, 32, 32]."""
    flat = pixels(26, 3072)
    for name, images in (("train", flat[:20]), ("test", flat[20:])):
        fine = [i % 2 for i in range(len(images))]
        content = {"data": images, "fine_labels": fine, "coarse_labels": [0] * len(fine), "batch_label": name}
        write(folder / name, content, protocol)
    write(folder / "meta", {"fine_label_names": NAMES, "coarse_label_names": ["animal"]}, protocol)
    return flat[20:].reshape(-1, 3, 32, 32)


@pytest.mark.parametrize(("write", "protocol"), [(write_pickle, 2), (write_pickle, 4), (write_pickle_of_python_2, 2)])
def test_cifar_100_is_read_as_python_2_and_3_write_it(
    tmp_path: Path, write: Callable[..., None], protocol: int
) -> None:
    test = cifar_100(tmp_path / "cifar-100-python", write, protocol)
    for path in (tmp_path, tmp_path / "cifar-100-python"):
        data = load("cifar", path)
        assert (data.name, data.input_shape, data.classes) == ("cifar-100", (3, 32, 32), ("cat", "dog"))
        np.testing.assert_array_equal(data.test.inputs, test)
        assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]
        assert (len(data.train), len(data.held_out)) == (18, 2)


def test_cifar_100_has_coarse_labels_too(tmp_path: Path) -> None:
    cifar_100(tmp_path)
    assert load("cifar", tmp_path, labels="coarse_labels").classes == ("animal",)
    with pytest.raises(DataError, match=r"train: no usable entry 'cruel_labels'; entries: data, fine_labels"):
        load("cifar", tmp_path, labels="cruel_labels")


def test_cifar_10_joins_its_five_batches_in_order(tmp_path: Path) -> None:
    folder, flat = tmp_path / "cifar-10-batches-py", pixels(24, 3072)
    for i, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        write_pickle(folder / name, {b"data": flat[4 * i : 4 * i + 4], b"labels": [0, 1, 0, 1]})
    write_pickle(folder / "batches.meta", {"label_names": NAMES})
    data = load("cifar", tmp_path)
    assert data.name == "cifar-10"
    seen = load("cifar", tmp_path, cameras=2)
    assert (seen.name, seen.input_shape) == ("cifar-10, 2 made cameras", (6, 24, 24))
    assert training_inputs(data) == {x.tobytes() for x in flat[:20]}
    (folder / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3: no such file; the folder is incomplete"):
        load("cifar", tmp_path)


class Evil:
    def __init__(self, *call: object) -> None:
        self.call = call

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    cifar_100(tmp_path)
    trap = tmp_path / "it-ran"
    for call in ((os.mkdir, str(trap)), (eval, f"open({str(trap)!r}, 'w')"), (getattr, "", "join")):
        write_pickle(tmp_path / "train", {"data": Evil(*call), "fine_labels": []}, protocol)
        with pytest.raises(DataError, match=r"train: refused: it uses \w+\.\w+"):
            load("cifar", tmp_path)
        assert not trap.exists()
    write_pickle(tmp_path / "train", Evil(os.mkdir, str(trap)), protocol)
    pickle.loads((tmp_path / "train").read_bytes())
    assert trap.exists()  # the bait works: an ordinary unpickler takes it


def test_cifar_files_that_are_broken_are_errors_that_name_them(tmp_path: Path) -> None:
    file = tmp_path / "test"
    contents: list[tuple[object, str]] = [
        (["no", "dictionary"], "test: truncated, or not a CIFAR file"),
        ({"data": pixels(2, 3072)}, "test: no usable entry 'fine_labels'"),
        ({"data": [1], "fine_labels": [0]}, "test: no usable entry 'data'"),
        ({"data": pixels(2, 3072), "fine_labels": [0]}, r"test: data \[2, 3072\] and labels \[1\]"),
        ({"data": pixels(2, 3000), "fine_labels": [0, 1]}, r"test: data \[2, 3000\]"),
        ({"data": np.zeros((2, 3072)), "fine_labels": [0, 1]}, "test: the array is not of uint8"),
        ({"data": pixels(2, 3072), "fine_labels": [0, 2]}, "labels go from 0 to 2, but there are 2"),
    ]
    for content, message in contents:
        cifar_100(tmp_path)
        write_pickle(file, content)
        with pytest.raises(DataError, match=message):
            load("cifar", tmp_path)
    cifar_100(tmp_path)
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(DataError, match="test: truncated"):
        load("cifar", tmp_path)
    with pytest.raises(DataError, match=r"neither batches\.meta .* nor meta"):
        load("cifar", tmp_path.parent)


# imagefolder


def class_folders(folder: Path, num: int = 6, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    for k, name in enumerate(names):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(pixels(num, 8, 8, 3, seed=k)):
            Image.fromarray(image).save(folder / name / f"{i}.png")
    return folder


def test_imagefolder_reads_train_and_test_folders_at_their_size(tmp_path: Path) -> None:
    class_folders(tmp_path / "train")
    class_folders(tmp_path / "test", 2, ("dog",))
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "train" / ".cache").mkdir()
    data = load("imagefolder", tmp_path, size=8)
    assert (data.classes, data.test.labels.tolist()) == (("cat", "dog"), [1, 1])
    np.testing.assert_array_equal(data.test.inputs, pixels(2, 8, 8, 3, seed=0).transpose(0, 3, 1, 2))
    assert len(data.train) + len(data.held_out) == 12


def test_imagefolder_draws_a_stratified_test_split_where_there_is_none(tmp_path: Path) -> None:
    data = load("imagefolder", class_folders(tmp_path, 10), size=8, test=0.3)
    assert np.bincount(data.test.labels).tolist() == [3, 3]
    assert not training_inputs(data) & {x.tobytes() for x in data.test.inputs}


def test_imagefolder_cuts_the_middle_square(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 255
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(3):
            Image.fromarray(wide).save(tmp_path / name / f"{i}.png")
    data = load("imagefolder", tmp_path, size=4)
    assert data.input_shape == (3, 4, 4)
    assert (data.train.inputs == 255).all()


def test_imagefolder_turns_photographs_upright(tmp_path: Path) -> None:
    picture = np.zeros((4, 4, 3), np.uint8)
    picture[0] = 255  # the top row, which belongs on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned by 90 degrees clockwise
    (tmp_path / "a").mkdir()
    for i in range(4):
        Image.fromarray(picture).save(tmp_path / "a" / f"{i}.png", exif=exif)
    inputs = load("imagefolder", tmp_path, size=4).train.inputs
    assert (inputs[..., 3] == 255).all()
    assert (inputs[..., :3] == 0).all()


def test_imagefolder_names_the_folder_or_image_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders in it"):
        load("imagefolder", tmp_path)
    class_folders(tmp_path / "train")
    with pytest.raises(DataError, match=r"test: no such folder next to train"):
        load("imagefolder", tmp_path)
    class_folders(tmp_path / "test", 2, ("cow",))
    with pytest.raises(DataError, match=r"test/cow: no such class in .*train"):
        load("imagefolder", tmp_path)
    (tmp_path / "test" / "cow").rename(tmp_path / "test" / "cat")
    (tmp_path / "train" / "eel").mkdir()
    with pytest.raises(DataError, match=r"train/eel: no images in it"):
        load("imagefolder", tmp_path)
    (tmp_path / "train" / "eel" / "0.jpg").write_bytes(b"not a photograph")
    with pytest.raises(DataError, match=r"train/eel/0\.jpg: not a readable image"):
        load("imagefolder", tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        load("imagefolder", tmp_path / "train" / "eel" / "0.jpg")
    with pytest.raises(ConfigError, match=r"data\.size = 0"):
        load("imagefolder", tmp_path, size=0)


# npz


def sensor_file(folder: Path, **changes: object) -> Path:
    """Writes 24 windows of 3 channels by 4 people doing 2 things; ``changes`` replace arrays, None leaves one out."""
    raw = np.random.default_rng(0).integers(-99, 99, (24, 3, 10), dtype=np.int16)
    arrays: dict[str, object] = {
        "windows": raw,
        "activity": (np.arange(24) % 2).astype(np.uint8),
        "subject": np.arange(24) // 6 + 1,
        "scale": np.asarray([0.5, 0.25, 2.0]),
        "activities": np.asarray(["sit", "run"]),
    }
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(folder / "body.npz", **arrays)  # type: ignore[arg-type]
    return folder / "body.npz"


def test_npz_scales_windows_and_finds_class_names(tmp_path: Path) -> None:
    path = sensor_file(tmp_path)
    data = load("npz", path, labels="activity", scale="scale", group="subject", test_groups=(4,))
    assert (data.name, data.input_shape, data.dtype, data.classes) == ("body", (3, 10), "float32", ("sit", "run"))
    raw = np.load(path)["windows"][18:]
    np.testing.assert_array_equal(data.test.inputs, raw * np.array([[0.5], [0.25], [2.0]], np.float32))
    assert data.test.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_npz_keeps_groups_on_one_side(tmp_path: Path) -> None:
    path = sensor_file(tmp_path)
    stored = np.load(path)
    group_of = {x.tobytes(): g for x, g in zip(stored["windows"].astype(np.float32), stored["subject"], strict=True)}
    for groups, expected in (((1, 3), {1, 3}), ((), None)):
        data = load("npz", path, labels="activity", group="subject", test_groups=groups)
        test = {group_of[x.tobytes()] for x in data.test.inputs}
        order = {x.tobytes(): i for i, x in enumerate(stored["windows"].astype(np.float32))}
        assert data.test.places is not None
        for group in np.unique(data.test.places[:, 0]):  # a whole group, in the order of the file
            chosen = data.test.places[:, 0] == group
            assert data.test.places[chosen, 1].tolist() == list(range(chosen.sum()))
            kept = [order[x.tobytes()] for x in data.test.inputs[chosen]]
            assert kept == sorted(kept)
        train = {group_of[key] for key in training_inputs(data)}
        assert not test & train
        assert test | train == {1, 2, 3, 4}
        assert test == expected if expected else len(test) == 1  # a fifth of four groups, rounded up


def test_the_seed_draws_the_held_out_split_beside_a_fixed_test_split(tmp_path: Path) -> None:
    config = DataConfig(
        reader="npz", path=str(sensor_file(tmp_path)), labels="activity", group="subject", test_groups=(4,)
    )
    first, other = (load_data(config, seed) for seed in (0, 1))
    np.testing.assert_array_equal(first.test.inputs, other.test.inputs)
    assert not np.array_equal(first.held_out.inputs, other.held_out.inputs)


def test_npz_without_groups_draws_a_stratified_test_split(tmp_path: Path) -> None:
    data = load("npz", sensor_file(tmp_path), labels="activity", test=0.25)
    assert np.bincount(data.test.labels).tolist() == [3, 3]


def test_npz_reads_images_and_string_labels(tmp_path: Path) -> None:
    path = sensor_file(tmp_path, windows=pixels(24, 1, 5, 5), activity=np.asarray(["sit", "run"] * 12))
    data = load("npz", path, labels="activity")
    assert (data.input_shape, data.dtype, data.classes) == ((1, 5, 5), "uint8", ("run", "sit"))


@pytest.mark.parametrize(
    ("changes", "classes"),
    [
        ({"activities": None}, ("0", "1")),
        ({"activities": np.asarray(["sit"])}, ("0", "1")),  # too short to be the names
        ({"classes": np.asarray(["low", "high"])}, ("low", "high")),
    ],
)
def test_npz_names_classes_by_what_is_there(
    tmp_path: Path, changes: dict[str, object], classes: tuple[str, ...]
) -> None:
    assert load("npz", sensor_file(tmp_path, **changes), labels="activity").classes == classes


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"labels": "action"}, r"no array 'action'; arrays: windows, activity, .*data\.labels=NAME"),
        ({}, {"inputs": "x"}, r"no array 'x'.*data\.inputs=NAME"),
        ({}, {"group": "person"}, r"no array 'person'.*data\.group=NAME"),
        ({}, {"group": "subject", "test_groups": (9,)}, "'subject': no group 9; there are: 1, 2, 3, 4"),
        ({}, {"test_groups": (1,)}, "data.test_groups is set, so name the array"),
        ({"scale": np.ones(2)}, {"scale": "scale"}, r"'scale' is \[2\] of float64; 3 channels need"),
        ({"subject": np.arange(5)}, {"group": "subject"}, r"'subject': \[5\] for 24 samples"),
        ({"activity": np.arange(5)}, {}, "24 inputs need as many labels"),
        ({"activity": np.linspace(0, 1, 24)}, {}, r"'activity': labels \[24\] of float64"),
        ({"windows": np.zeros((24, 3))}, {}, r"'windows' is \[24, 3\] of float64"),
        ({"windows": np.zeros((24, 3, 2), complex)}, {}, "of complex128"),
        ({"windows": np.full((24, 3, 2), np.nan)}, {}, "input 0: contains NaN or infinity"),
        ({"windows": np.full((24, 3, 2), 1e300)}, {}, "input 0: contains NaN or infinity"),
        ({"windows": np.full((24, 3, 2), None)}, {}, "'windows' cannot be read .*contains Python objects"),
        ({"windows": pixels(24, 3, 4, 4)}, {"scale": "scale"}, "data.scale is for windows"),
    ],
)
def test_npz_names_the_array_that_is_wrong(
    tmp_path: Path, changes: dict[str, object], options: dict[str, object], message: str
) -> None:
    path = sensor_file(tmp_path, **changes)
    with pytest.raises(DataError, match=message) as error:
        load("npz", path, **{"labels": "activity", **options})
    assert str(path) in str(error.value)


def test_npz_files_that_are_truncated_or_foreign_are_errors(tmp_path: Path) -> None:
    path = sensor_file(tmp_path)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 4] ^= 0xFF
    for wrong in (content[:-50], content[:1], b"", b"text"):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"body\.npz: truncated, or not an .npz file"):
            load("npz", path, labels="activity")
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"body\.npz: array 'windows' cannot be read"):
        load("npz", path, labels="activity")
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(DataError, match="a single array; write inputs and labels into one file"):
        load("npz", tmp_path / "single.npy")
