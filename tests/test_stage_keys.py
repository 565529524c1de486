"""A run that an earlier version finished is recognised: the keys of its stages stay."""

from __future__ import annotations

import json
import types
from pathlib import Path

import pytest

from nonn.config import load_experiment
from nonn.experiment import bundling, workspace
from nonn.experiment.bundling import bundle_students
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace

DIGITS = {
    "teacher": "9f76d9d88065c19caaa4968f89a29c01d830705608ef6745eac3f0a894c0397a",
    "partition": "4194e66864d03488c2c824e890f3b36de597c6f11361ccab3bc07434b0b1d4c5",
    "students": "caf8bf01bd653938b889e2a02a9d42d562acca5dd2558828379d586229b2118f",
    "bundle.build": "e2066d2d904d8c684a6cad744c160732fcc4b5d81176cfe2076def3b50dd343f",
}
ASSISTED = {
    "teacher": "e1bd2092deaa4f1b64203e519883a6755c92233b912ad0f13d85d36665a965c1",
    "assistant-1": "0ad125f72c7abdee7a6515b4bb0244cfdff47619c6b8836e791c182741311dc1",
    "partition": "d9bb7c8121e6c1d16ffa6b6de1e7597a0d6cfae2bab689bec63e08acafd26a33",
    "students-1": "2846498aff6fc96b91f864dfe84b71d56b93eca397ecb0fbacb323d045227900",
    "students": "145a779d07924713cee5216deac9a53b68dc7ac8b5f8f4c7660b7160cb47ddec",
    "bundle.build": "2738513a63d0a36e9320038721ecd6e9f6071e5837bfe870e598847ec5d9eaa3",
}


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        pytest.param([], DIGITS, id="digits"),
        pytest.param(
            [
                "distill.assistants=['wrn-10-1']",
                "distill.generations=2",
                "distill.objectives.ce.on='device'",
                "teacher.model=wrn-10-2",
            ],
            ASSISTED,
            id="assistants and generations",
        ),
    ],
)
def test_the_keys_of_stages_are_those_of_version_0_1(
    overrides: list[str], keys: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key depends on the inputs of a stage alone, so nothing need be trained here."""
    monkeypatch.setattr(workspace, "fit", lambda *_, **__: [])
    monkeypatch.setattr(bundling, "_build", lambda *_: types.SimpleNamespace(hash="none"))
    space = Workspace(load_experiment(None, overrides), tmp_path)
    bundle_students(space, train(space))
    found = {f.parent.name: json.loads(f.read_text())["key"] for f in tmp_path.rglob("stage.json")}
    assert found == keys
