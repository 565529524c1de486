from __future__ import annotations

from pathlib import Path

import pytest

from nonn.config import Experiment, load_experiment
from nonn.errors import ConfigError

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))


def test_the_defaults_are_the_digits_example() -> None:
    digits = next(p for p in EXAMPLES if p.name == "digits.toml")
    assert load_experiment(digits) == load_experiment(None) == Experiment()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_valid_experiment_of_its_own_name(path: Path) -> None:
    assert load_experiment(path).experiment.name == path.stem


def test_overrides_are_toml_values_or_bare_strings_and_reach_nested_tables() -> None:
    e = load_experiment(
        None, ["distill.epochs=3", "teacher.lr=1", "data.path=/a b/c", "devices.budget.params=10", "data.flip=true"]
    )
    assert (e.distill.epochs, e.teacher.lr, e.data.path, e.devices.budget.params) == (3, 1.0, "/a b/c", 10)
    assert isinstance(e.teacher.lr, float)
    assert e.data.flip is True
    assert load_experiment(None, ["distill.epochs=3", "distill.epochs=4"]).distill.epochs == 4


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("distill.epoch=3", ["unknown key 'distill.epoch'", "did you mean 'distill.epochs'"]),
        ("distil.epochs=3", ["unknown key 'distil'", "did you mean 'distill'"]),
        ("devices.budget.parms=3", ["devices.budget.parms", "devices.budget.params"]),
        ("qqq.zzz=3", ["unknown key 'qqq'", "known keys"]),
        ("distill.lr=fast", ["distill.lr", "a number", "'fast'"]),
        ("data.noise=nan", ["data.noise", "a finite number, not nan"]),
        ("distill.milestones=[0.5, inf]", ["distill.milestones", "a finite number, not inf"]),
        ("distill.epochs=3.5", ["distill.epochs", "a whole number", "3.5"]),
        ("data.flip=1", ["data.flip", "true or false"]),
        ("data=3", ["section.key=value"]),
        ("data.flip", ["section.key=value"]),
        ("experiment.name.x=3", ["experiment.name", "a string"]),
        ("graph.kind=coactivation", ["graph.kind", "did you mean 'co-activation'"]),
        ("data.reader=zzzzz", ["data.reader", "digits", "parquet"]),
        ("partition.parts=9", ["partition.parts = 9", "more parts than devices (8)"]),
        ("partition.parts=0", ["partition.parts = 0", "a whole number ≥ 1 or 'auto'"]),
        ("devices.count=17", ["devices.count = 17", "16"]),
        ("experiment.name='../x'", ["experiment.name", "letters"]),
        ("experiment.name=''", ["experiment.name"]),
        ("experiment.seed=-1", ["experiment.seed = -1", "must be at least 0"]),
        ("teacher.epochs=0", ["teacher.epochs = 0"]),
        ("distill.ema=1.0", ["distill.ema"]),
        ("fusion.ridge=[]", ["fusion.ridge"]),
        ("graph.percentile=101", ["graph.percentile"]),
    ],
)
def test_a_bad_override_says_which_key_and_what_to_write(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_experiment(None, [override])
    for word in words:
        assert word in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"missing\.toml: no such file"):
        load_experiment(tmp_path / "missing.toml")
    broken = tmp_path / "broken.toml"
    broken.write_text("[experiment\nname=")
    with pytest.raises(ConfigError, match=r"broken\.toml: not a TOML file"):
        load_experiment(broken)
    unknown = tmp_path / "unknown.toml"
    unknown.write_text("[teacher]\nmodle = 'wrn-16-2'\n")
    with pytest.raises(
        ConfigError, match=r"unknown\.toml: unknown key 'teacher\.modle'; did you mean 'teacher\.model'"
    ):
        load_experiment(unknown)
    for path in (tmp_path, unknown / "below.toml"):
        with pytest.raises(ConfigError, match="cannot be read"):
            load_experiment(path)
    broken.write_text("a = " + 3000 * "[")
    with pytest.raises(ConfigError, match=r"broken\.toml: not a TOML file: nested too deep"):
        load_experiment(broken)
    broken.write_text("[teacher]\nlr = 1" + 400 * "0")
    with pytest.raises(ConfigError, match=r"broken\.toml: 'teacher\.lr' is too large for a number"):
        load_experiment(broken)
