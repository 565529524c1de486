"""The made data set of several cameras."""

from __future__ import annotations

import numpy as np
import pytest

from nonn.bundle.views import resolve_views, select_view
from nonn.config import DataConfig, DevicesConfig
from nonn.data import load_data
from nonn.data.cameras import boxes, with_cameras
from nonn.data.dataset import Split
from nonn.data.source import Source
from nonn.errors import ConfigError


def test_every_camera_sees_its_box_of_the_scene_with_its_own_occlusions() -> None:
    made = load_data(DataConfig(cameras=4), 0)
    plain = load_data(DataConfig(), 0)
    assert made.name == f"{plain.name}, 4 made cameras"
    assert made.input_shape == (4, 6, 6)
    np.testing.assert_array_equal(made.test.labels, plain.test.labels)
    assert made.fingerprint() == load_data(DataConfig(cameras=4), 0).fingerprint()
    assert made.fingerprint() != load_data(DataConfig(cameras=4), 1).fingerprint()
    views = resolve_views(DevicesConfig(view="split", count=4), made.input_shape)
    places = boxes(8, 8, 4)
    assert len(set(places)) == 4
    hidden = []
    for view, (top, left, height, width) in zip(views, places, strict=True):
        scene = plain.test.inputs[:, :, top : top + height, left : left + width].astype(int)
        seen = select_view(made.test.inputs, view).astype(int)
        hidden.append(((scene > 2 * scene.max() / 3) & (seen == 0)).any(axis=(1, 2, 3)))
        clear = ~hidden[-1]
        same = np.abs(seen - scene)[clear]
        assert np.median(same) <= 0.1 * scene.max()
    assert 0.2 < np.mean(hidden) < 0.6
    assert (hidden[0] != hidden[1]).any()


def test_cameras_need_pictures() -> None:
    windows = Split(np.zeros((2, 3, 9), np.float32), np.zeros(2, np.int64))
    with pytest.raises(ConfigError, match=r"data\.cameras: is for pictures"):
        with_cameras(Source("windows", windows, windows, ("a",)), 2, 0)
