from __future__ import annotations

from pathlib import Path

import pytest

from nonn.errors import ConfigError
from nonn.experiment.stages import exclusive, open_stage


def test_a_stage_is_done_once_and_found_again(tmp_path: Path) -> None:
    stage = open_stage(tmp_path, "teacher", {"lr": 0.1})
    assert not stage.done
    (stage.folder / "weights").write_text("w")
    assert not open_stage(tmp_path, "teacher", {"lr": 0.1}).done
    stage.finish()
    again = open_stage(tmp_path, "teacher", {"lr": 0.1})
    assert again.done
    assert (again.folder / "weights").read_text() == "w"


def test_other_inputs_set_the_old_folder_aside_and_the_old_ones_bring_it_back(tmp_path: Path) -> None:
    first = open_stage(tmp_path, "teacher", {"lr": 0.1})
    (first.folder / "weights").write_text("first")
    first.finish()
    second = open_stage(tmp_path, "teacher", {"lr": 0.2})
    assert second.folder == first.folder
    assert not second.done
    assert not (second.folder / "weights").exists()
    (second.folder / "weights").write_text("second")
    back = open_stage(tmp_path, "teacher", {"lr": 0.1})
    assert back.done
    assert (back.folder / "weights").read_text() == "first"
    unfinished = open_stage(tmp_path, "teacher", {"lr": 0.2})
    assert not unfinished.done
    assert (unfinished.folder / "weights").read_text() == "second"


def test_a_folder_without_a_key_is_set_aside_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "mine").write_text("keep")
    open_stage(tmp_path, "teacher", {"lr": 0.1})
    assert (tmp_path / "teacher.unknown" / "mine").read_text() == "keep"


def test_two_runs_at_once_in_one_folder_are_refused(tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(ConfigError, match="another run is at work there"), exclusive(tmp_path):
        raise AssertionError("both ran")
    with exclusive(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"), exclusive(tmp_path / "file" / "runs"):
        raise AssertionError("ran")
