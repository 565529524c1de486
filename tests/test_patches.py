"""Students that learn from patches of one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nonn.config import load_experiment
from nonn.data.patches import cut_patches
from nonn.errors import ConfigError, DataError, NonnError
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace
from tests.toys import TINY

ONLY_TEACHER = ("distill.objectives.ce.weight=0", "distill.objectives.kd.temperature=8")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "noise.png"
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((120, 72), Image.Resampling.BICUBIC).save(path)
    return path


def test_patches_have_the_form_of_an_input_and_are_those_of_their_seed(picture: Path) -> None:
    grey, colour = cut_patches(picture, 40, (1, 8, 8), 0), cut_patches(picture, 10, (3, 6, 9), 0)
    assert (grey.shape, grey.dtype.name, colour.shape) == ((40, 1, 8, 8), "uint8", (10, 3, 6, 9))
    assert len(np.unique(grey.reshape(40, -1), axis=0)) == 40
    np.testing.assert_array_equal(grey, cut_patches(picture, 40, (1, 8, 8), 0))
    assert not np.array_equal(grey, cut_patches(picture, 40, (1, 8, 8), 1))


def test_a_picture_that_does_not_suit_says_why(picture: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    cases: list[tuple[Path, tuple[int, ...], type[NonnError], str]] = [
        (picture, (9, 100), ConfigError, r"grey or RGB images, not \[9, 100\]"),
        (tmp_path / "none.png", (1, 8, 8), ConfigError, "no such file"),
        (tmp_path / "text.png", (1, 8, 8), DataError, "not a readable picture"),
        (picture, (3, 96, 96), DataError, "120×72 pixels are less than an input of 96×96"),
    ]
    for path, shape, error, words in cases:
        with pytest.raises(error, match=words):
            cut_patches(path, 2, shape, 0)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ((), r"objectives\.ce needs: set its weight to 0"),
        ((*ONLY_TEACHER, "distill.objectives.kd.label_revision=0.8"), r"objectives\.kd needs"),
        ((*ONLY_TEACHER, "fusion.head=logistic"), r"fusion\.head = 'ridge' or 'trained'"),
    ],
)
def test_what_needs_labels_is_refused(overrides: tuple[str, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_experiment(None, ["distill.picture=x.png", *overrides])


def test_students_learn_a_task_that_they_never_see(picture: Path, tiny_runs: Path, tmp_path: Path) -> None:
    options = [*TINY, *ONLY_TEACHER, f"distill.picture={picture}", "distill.patches=600"]
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "teacher").symlink_to(tiny_runs / "tiny" / "teacher")  # the same one
    space = Workspace(load_experiment(None, options), tmp_path)
    assert len(space.lessons) == 600
    trained = train(space)
    head = space.heads.fit(trained.teacher.network, trained.students.network)
    features = space.heads.held_out_features(trained.students.network)
    answers = head.logits(dict(enumerate(features))).argmax(axis=1)
    assert (answers == space.data.held_out.labels).mean() > 0.2  # of ten classes, after four epochs
    with pytest.raises(ConfigError, match="no such file"):
        _ = Workspace(load_experiment(None, [*options, "distill.picture=none.png"]), tmp_path).data
