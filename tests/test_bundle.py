from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from nonn.bundle import load_bundle, write_bundle
from nonn.enumeration import enumerate_subsets
from nonn.errors import BundleError
from nonn.sensing import SensingSpec
from tests.toys import toy_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_bundle(tmp_path_factory.mktemp("bundle") / "toy").path


@pytest.fixture
def bundle_path(original: Path, tmp_path: Path) -> Path:
    shutil.copytree(original, tmp_path / "toy")
    return tmp_path / "toy"


def test_a_bundle_describes_its_contents(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    assert bundle.num_devices == 8
    assert len(bundle.hash) == 64
    features, labels = bundle.features
    np.testing.assert_array_equal(enumerate_subsets(bundle.head, features, labels).correct, bundle.table.correct)
    for student in bundle.manifest.students:
        assert bundle.student_path(student.device).stat().st_size == student.bytes


def test_the_same_contents_have_the_same_hash(original: Path, tmp_path: Path) -> None:
    assert toy_bundle(tmp_path / "again").hash == load_bundle(original).hash


@pytest.mark.parametrize("name", ["students/student-3.onnx", "fusion.npz", "accuracy.npz", "features.npz"])
@pytest.mark.parametrize("damage", ["truncated", "altered", "missing"])
def test_a_damaged_file_is_named(bundle_path: Path, name: str, damage: str) -> None:
    target = bundle_path / name
    data = bytearray(target.read_bytes())
    if damage == "missing":
        target.unlink()
    elif damage == "truncated":
        target.write_bytes(data[:-10])
    else:
        data[len(data) // 2] ^= 1
        target.write_bytes(data)
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle_path)
    assert name in str(caught.value)
    assert ("cannot be read" if damage == "missing" else "truncated or altered") in str(caught.value)


def test_a_device_needs_only_its_own_student(bundle_path: Path) -> None:
    for path in bundle_path.rglob("*"):
        if path.is_file() and path.name not in ("manifest.json", "student-2.onnx"):
            path.unlink()
    assert load_bundle(bundle_path, device=2).hash
    with pytest.raises(BundleError, match=r"student-3\.onnx"):
        load_bundle(bundle_path, device=3)
    with pytest.raises(BundleError, match="no student 8; this bundle has 0 to 7"):
        load_bundle(bundle_path, device=8)


def _edit(path: Path, **changes: object) -> None:
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps(manifest | changes))


def test_a_manifest_that_is_none_is_refused(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is not a bundle"):
        load_bundle(tmp_path / "nowhere")
    _edit(bundle_path, schema=99)
    with pytest.raises(BundleError, match="schema 99"):
        load_bundle(bundle_path)
    _edit(bundle_path, schema=1, students=[{"device": 0}])
    with pytest.raises(BundleError, match="not a manifest"):
        load_bundle(bundle_path)
    _edit(bundle_path, students=[])
    with pytest.raises(BundleError, match="numbered"):
        load_bundle(bundle_path)
    (bundle_path / "manifest.json").write_text('{"schema": 1,')
    with pytest.raises(BundleError, match="not a manifest"):
        load_bundle(bundle_path)


def test_a_manifest_cannot_point_outside_of_its_folder(bundle_path: Path) -> None:
    (bundle_path.parent / "secret").write_text("x")
    _edit(bundle_path, files={"../secret": "0" * 64})
    with pytest.raises(BundleError, match="outside the bundle"):
        load_bundle(bundle_path)


@pytest.mark.parametrize("name", ["", "*/ int x; /*", "<b>", "a b", "\x1b[2J", "../a", "a\nb", "$(id)"])
def test_a_name_that_could_be_code_somewhere_is_refused(bundle_path: Path, name: str) -> None:
    _edit(bundle_path, experiment=name)
    with pytest.raises(BundleError, match=r"experiment .*: must be letters, digits"):
        load_bundle(bundle_path)


def test_texts_that_a_terminal_would_obey_are_escaped(bundle_path: Path) -> None:
    classes = json.loads((bundle_path / "manifest.json").read_text())["classes"]
    _edit(bundle_path, classes=["\x1b[2J<b>", *classes[1:]], data={"a\n": {"name": ["\u202e"]}})
    manifest = load_bundle(bundle_path).manifest
    assert manifest.classes == (r"\x1b[2J<b>", *classes[1:])
    assert manifest.data == {r"a\n": {"name": [r"\u202e"]}}


def test_a_manifest_too_deep_to_be_read_is_refused(bundle_path: Path) -> None:
    (bundle_path / "manifest.json").write_text("[" * 100_000 + "]" * 100_000)
    with pytest.raises(BundleError, match="not a manifest"):
        load_bundle(bundle_path)


def test_a_newer_key_in_the_manifest_is_left_alone(bundle_path: Path) -> None:
    _edit(bundle_path, colour="green")
    assert load_bundle(bundle_path).num_devices == 8


def test_a_part_left_out_is_an_error_when_asked_for(bundle_path: Path) -> None:
    bundle = load_bundle(bundle_path)
    with pytest.raises(BundleError, match=r"has no graph\.npz"):
        bundle.arrays("graph.npz")


def test_a_bundle_that_cannot_be_completed_leaves_the_old_one(bundle_path: Path) -> None:
    before = load_bundle(bundle_path)
    with pytest.raises(KeyError):
        write_bundle(bundle_path, before.manifest, {}, {})
    assert load_bundle(bundle_path).hash == before.hash
    assert [p.name for p in bundle_path.parent.iterdir()] == ["toy"]


def test_a_bundle_says_what_its_nodes_measure_and_an_older_one_does_not(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"does not say what its nodes measure.*\[sensing\]"):
        load_bundle(bundle_path).sensing_of(0)
    spec = SensingSpec(10.0, 8, 0.4, ("x",), ("g",), (1.0,), (0.0,), (255.0,), (1.0,))
    bundle = toy_bundle(tmp_path / "sensing", num_devices=2, shape=(1, 8), sensing=spec)
    assert bundle.sensing_of(1) == spec
    wrong = {"rate_hz": 10.0, "samples": 7, "hop_s": 1.0, "channels": ["x"], "units": [""], "scale": [1]}
    _edit(bundle.path, sensing=wrong)
    with pytest.raises(BundleError, match=r"differ from the input \[1, 8\]"):
        load_bundle(bundle.path)
