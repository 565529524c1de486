"""Views of a picture: crops and resolutions, from an experiment file to nodes."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nonn_device.runtime import open_runtime

from nonn.bundle import Bundle, load_bundle
from nonn.bundle.views import WHOLE, View, resolve_views, select_view, view_shape
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.config import DevicesConfig, load_experiment
from nonn.data import load_data
from nonn.distill import DistillTask
from nonn.distill.objectives.pixels import Pixel, enlarged
from nonn.errors import BundleError, ConfigError
from nonn.experiment.run import run
from nonn.export.build import build_library, write_source
from nonn.export.c import generate_c
from nonn.toml import from_mapping
from tests.objectives import PARTS, SAMPLE, distill, make_students, make_teacher, tensor
from tests.reports import without_pages
from tests.toys import TINY

# Four devices: the whole picture, three quarters of its side, six columns of it, these at half the resolution.
BOX = (0, 1, 8, 6)
FILE_VIEWS = [{}, {"resolution": 6}, {"crop": list(BOX)}, {"crop": list(BOX), "resolution": 4}]
VIEWS = (WHOLE, View(resolution=(6, 6)), View(crop=BOX), View(crop=BOX, resolution=(4, 3)))
SHAPES = [(1, 8, 8), (1, 6, 6), (1, 8, 6), (1, 4, 3)]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Devices with the second and the last of these views, one epoch of training, int8, with pixel distillation."""
    changes = (
        "devices.count=2",
        "devices.views=[{resolution=6}, {crop=[0, 1, 8, 6], resolution=4}]",
        "distill.objectives.pixel.weight=1.0",
        "student.model=wrn-10-0.5",
        "teacher.epochs=1",
        "distill.epochs=1",
        "export.weights=int8",
    )
    with without_pages():
        return run(load_experiment(None, [*TINY, *changes]), runs=tmp_path_factory.mktemp("runs")).bundle


def area_means(picture: np.ndarray[Any, Any], size: tuple[int, int]) -> np.ndarray[Any, Any]:
    """By repeating pixels until the areas are whole."""
    (height, width), (h, w) = picture.shape[-2:], size
    fine = picture.repeat(h, axis=-2).repeat(w, axis=-1)
    means: np.ndarray[Any, Any] = fine.reshape(*picture.shape[:-2], h, height, w, width).mean(axis=(-3, -1))
    return means


@pytest.mark.parametrize("size", [(16, 16), (24, 24), (6, 20), (31, 1), (32, 32)])
def test_a_lower_resolution_is_the_mean_of_each_area_in_numpy_and_in_torch(size: tuple[int, int]) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (3, 2, 32, 32)).astype(np.uint8)
    view = View(channels=(1,), resolution=size)
    exact = area_means(pictures[:, 1:].astype(np.float64), size)
    floats = select_view(pictures.astype(np.float32), view)
    np.testing.assert_allclose(floats, exact, rtol=1e-5)
    reduced = select_view(pictures, view)
    assert reduced.dtype == np.uint8
    assert np.abs(reduced - exact).max() <= 0.5 + 1e-4
    assert reduced.shape[1:] == view_shape((2, 32, 32), view)
    np.testing.assert_array_equal(select_view(torch.from_numpy(pictures), view).numpy(), reduced)
    np.testing.assert_array_equal(select_view(torch.from_numpy(pictures).float(), view).numpy(), floats)


def test_a_view_of_channels_is_written_as_before_and_every_view_is_read_again() -> None:
    assert View(channels=(2, 5)).to_json() == [2, 5]
    assert WHOLE.to_json() == []
    for view in (*VIEWS, View((0,), BOX, (2, 2))):
        assert View.from_json(view.to_json()) == view
    for broken in ({"crop": [1, 2, 3]}, {"resolution": [0, 4]}, {"resolution": [4]}):
        with pytest.raises(ValueError, match="is not a view"):
            View.from_json(broken)


def test_views_follow_from_the_file() -> None:
    listed = from_mapping(DevicesConfig, {"views": FILE_VIEWS}, source="test")
    assert resolve_views(listed, (1, 8, 8)) == VIEWS
    everywhere = from_mapping(DevicesConfig, {"view": "split", "count": 2, "resolution": 4}, source="test")
    assert resolve_views(everywhere, (2, 8, 12)) == tuple(View((i,), resolution=(4, 6)) for i in range(2))


@pytest.mark.parametrize(
    ("view", "shape", "message"),
    [
        ({"crop": [4, 0, 5, 8]}, (1, 8, 8), r"device 0 sees the box \[4, 0, 5, 8\].* the input has 8×8 pixels"),
        ({"crop": [0, 0, 4, 4], "resolution": 6}, (1, 8, 8), "resolution 6 is above the 4 pixels that it sees"),
        ({"resolution": 4}, (3, 40), "which are for pictures"),
        ({"crop": [0, 0, 4]}, (1, 8, 8), "must be top, left, height and width"),
    ],
)
def test_views_that_do_not_fit_the_picture_are_refused(
    view: dict[str, Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_views(from_mapping(DevicesConfig, {"views": [view]}, source="test"), shape)


# ---- pixel distillation


def test_a_picture_is_drawn_from_feature_maps() -> None:
    rng = np.random.default_rng(0)
    maps, weight, slope = rng.normal(size=(2, 3, 3, 3)), rng.normal(size=(2 * 4, 3, 1, 1)), np.array([0.25, 0.5])
    flat = np.einsum("oc,bchw->bohw", weight[:, :, 0, 0], maps).reshape(2, 2, 2, 2, 3, 3)
    drawn = flat.transpose(0, 1, 4, 2, 5, 3).reshape(2, 2, 6, 6)[..., :5, :5]  # cut off as in the public code
    expected = np.where(drawn > 0, drawn, slope[:, None, None] * drawn)
    result = enlarged(tensor(maps), tensor(weight), tensor(slope), (5, 5))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-4, atol=1e-5)


def test_pixel_distillation_learns_to_draw_and_needs_a_smaller_picture() -> None:
    students = make_students(parts=(0,), view=View(resolution=(4, 4)))
    task = DistillTask(make_teacher(), students, PARTS[:1], distill(pixel=1.0), sample=SAMPLE)
    optimiser = torch.optim.SGD(task.module.parameters(), lr=0.3)
    losses = []
    for _ in range(8):
        draws = task.draw(len(SAMPLE), torch.Generator().manual_seed(0))
        loss = task.losses(SAMPLE, torch.zeros(len(SAMPLE), dtype=torch.int64), draws)["pixel"]
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    with pytest.raises(ConfigError, match=r"set devices\.resolution"):
        DistillTask(make_teacher(), make_students(parts=(0,)), PARTS[:1], distill(pixel=1.0), sample=SAMPLE)
    assert isinstance(task.terms["pixel"].compute, Pixel)


# ---- the whole way


@pytest.mark.slow
def test_the_bundle_has_views_and_costs_of_what_each_device_sees(bundle: Bundle) -> None:
    students = bundle.manifest.students
    assert tuple(student.view for student in students) == VIEWS[1::2]
    assert [bundle.input_of(i).shape for i in range(2)] == SHAPES[1::2]
    assert students[1].macs < students[0].macs
    assert [device.input_bytes for device in bundle.report.devices] == [36, 12]


def test_nodes_get_and_answer_their_views(bundle: Bundle) -> None:
    data = load_data(load_experiment(None, TINY).data, 0).test
    inputs = data.inputs[:40]
    offline = bundle.predict(inputs)
    right = (bundle.predict(data.inputs, without=[0]).labels == data.labels).mean()
    assert right == pytest.approx(bundle.table.accuracy[2], abs=0.01)  # the student of the smallest view, alone
    with LocalCluster(bundle.path) as cluster, Client(cluster.address) as client:
        answer = client.infer(inputs)
    np.testing.assert_allclose(answer.logits, offline.logits, atol=1e-4)
    assert answer.answered.all()


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
def test_a_student_of_a_view_in_c_gives_what_onnx_runtime_gives(bundle: Bundle, tmp_path: Path) -> None:
    student = bundle.manifest.students[1]  # of a crop at a lower resolution, 4×3
    source = generate_c(bundle.student_path(1).read_bytes(), "student 1")
    library = build_library(["cc"], write_source(source, tmp_path))
    sample = select_view(load_data(load_experiment(None, TINY).data, 0).test.inputs[:16], student.view)
    expected = open_runtime("onnx", bundle, 1).run(sample)
    np.testing.assert_allclose(open_runtime("c", bundle, 1, library=library).run(sample), expected, rtol=1e-6)


def test_a_manifest_with_a_box_outside_of_the_input_is_refused(bundle: Bundle) -> None:
    student = dataclasses.replace(bundle.manifest.students[0], view=View(crop=(4, 0, 5, 8)))
    manifest = dataclasses.replace(bundle.manifest, students=(student, *bundle.manifest.students[1:]))
    with pytest.raises(BundleError, match=r"device 0 sees \[4, 0, 5, 8\]"):
        Bundle(bundle.path, bundle.hash, manifest).input_of(0)
    assert load_bundle(bundle.path).manifest == bundle.manifest
