from __future__ import annotations

import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nonn.cli import main
from nonn.config import Experiment, load_experiment
from nonn.config.objectives import ObjectivesConfig
from nonn.distill.objectives.registry import OBJECTIVES
from nonn.errors import ConfigError
from nonn.experiment.keys import distillation_inputs, stage_inputs
from nonn.files import digest
from nonn.toml import from_mapping, toml_value
from nonn.toml.listing import Option, as_toml, tables_of
from scripts import configuration

OPTIONS = [option for table in tables_of(Experiment) for option in table.options]
EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.toml"))


def test_the_defaults_are_the_digits_example() -> None:
    digits = next(p for p in EXAMPLES if p.name == "digits.toml")
    assert load_experiment(digits) == load_experiment(None) == Experiment()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_every_example_is_a_valid_experiment_of_its_own_name(path: Path) -> None:
    assert load_experiment(path).experiment.name == path.stem


def test_any_key_and_any_text_is_a_value_of_toml() -> None:
    tree = {'a "b"\n[c]': '\x7f\x1b[2J"\\\n', "d": [True, 1.5, {"e.f": ""}]}
    assert tomllib.loads(f"x = {toml_value(tree)}")["x"] == tree


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
        pytest.param("distill.epochs=" + 5000 * "9", ["distill.epochs", "a whole number"], id="digits"),
        pytest.param("distill.epochs=" + 5000 * "[", ["distill.epochs", "a whole number"], id="brackets"),
        ("teacher.args.since=2020-01-01", ["'teacher.args.since'", "not 2020-01-01"]),
        ("teacher.args.x={a=[1, 07:00:00]}", ["'teacher.args.x.a[1]'", "not 07:00:00"]),
        ("distill.epochs=3.5", ["distill.epochs", "a whole number", "3.5"]),
        ("data.flip=1", ["data.flip", "true or false"]),
        ("distill.epochs=3\nlr=9", ["--set 'distill.epochs=3\\nlr=9'", "must be one line"]),
        ("distill.epochs\r=3", ["must be one line"]),
        ("experiment.name=a\n", ["must be one line"]),
        ("data=3", ["section.key=value"]),
        ("data.flip", ["section.key=value"]),
        ("experiment.name.x=3", ["experiment.name", "a string"]),
        ("graph.kind=coactivation", ["graph.kind", "did you mean 'co-activation'"]),
        ("teacher.model=wnr-16-2", ["teacher.model = 'wnr-16-2': unknown; did you mean 'wrn-16-2'?"]),
        ("teacher.model=auto", ["teacher.model = 'auto': unknown; write wrn-DEPTH-WIDTH, "]),
        ("student.model=densenet-16-4", ["student.model", "did you mean 'densenet-bc-16-4'?"]),
        ("student.model=wrn-16", ["student.model", "write wrn-DEPTH-WIDTH"]),
        ("student.model=resnet", ["student.model", "strided-DEPTH-WIDTH, or package.module:factory"]),
        ("student.model=auto:inverted, densenet", ["student.model", "no family 'densenet'; did you mean"]),
        ("student.model=search:wrn", ["student.model", "write search:wrn-DEPTH"]),
        ("student.model=''", ["student.model = ''", "unknown"]),
        ("devices.classes=[{name='a', model='wnr-10-1'}]", ["devices.classes[0].model", "did you mean 'wrn-10-1'?"]),
        ("distill.assistants=['wnr-10-1']", ["distill.assistants[0]", "did you mean 'wrn-10-1'?"]),
        ("fusion.train=zero-fil", ["fusion.train", "did you mean 'zero-fill'?"]),
        ("data.reader=zzzzz", ["data.reader", "digits", "parquet"]),
        ("partition.parts=9", ["partition.parts = 9", "more parts than devices (8)"]),
        ("partition.parts=0", ["partition.parts = 0", "a whole number ≥ 1 or 'auto'"]),
        ("devices.count=257", ["devices.count = 257", "256"]),
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


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ("auto", "staged-wrn-10-0.5x1x2"),
        ("auto:densenet-bc, inverted", "densenet-bc-40-12"),
        ("search:wrn-10", "package.module:factory"),
        ("package.module:factory", "se-inverted-11-0.5"),
    ],
)
def test_a_model_is_of_a_family_or_a_factory_and_a_student_may_be_chosen(student: str, teacher: str) -> None:
    classes = f"devices.classes=[{{name='a', count=8, params=9, model=''}}, {{name='b', params=9, model='{student}'}}]"
    e = load_experiment(None, [f"student.model={student}", f"teacher.model={teacher}", classes])
    assert (e.student.model, e.teacher.model) == (student, teacher)
    assert [kind.model for kind in e.devices.classes] == ["", student]


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
    broken.write_text("[teacher]\nlr = " + 5000 * "1")
    with pytest.raises(ConfigError, match=r"broken\.toml: not a TOML file: .*4300 digits"):
        load_experiment(broken)
    broken.write_text("[teacher]\nlr = 1" + 400 * "0")
    with pytest.raises(ConfigError, match=r"broken\.toml: 'teacher\.lr' is too large for a number"):
        load_experiment(broken)


# Digests of the defaults of each table: the keys of the stages of a run are hashes of them, so that a change here
# means that every finished run trains again. Only single options of the student are in a key.
TABLES = {
    "data": "a66dcd50bf3e125b",
    "teacher": "5cc6e60620d7fb4c",
    "graph": "d3a08378d3b28a8a",
    "partition": "177dda54ddf39488",
    "devices": "5d6b796246a3f327",
    "distill": "ec1dc6a6f1de357a",
    "fusion": "b023b867eeb223d2",
    "export": "7d469d2fbbc3966c",
    "guarantees": "ce34bb7a7c2545f2",
}


@pytest.mark.parametrize("table", TABLES)
def test_a_finished_run_of_the_defaults_is_recognised(table: str) -> None:
    inputs = distillation_inputs if table == "distill" else stage_inputs
    assert digest(inputs(getattr(Experiment(), table))).startswith(TABLES[table])


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_every_option_says_what_it_means_and_may_be(option: Option) -> None:
    assert option.meaning
    assert option.allowed


def test_an_old_spelling_is_taken_with_a_warning() -> None:
    with pytest.warns(FutureWarning, match="on = 'own' is called on = 'device' now"):
        experiment = load_experiment(None, ["distill.objectives.kd={weight=0.5, on='own'}"])
    assert experiment.distill.objectives.kd.on == "device"
    assert experiment.distill.objectives.kd.weight == 0.5


def test_every_objective_has_an_implementation() -> None:
    assert set(OBJECTIVES) == {spec.name for spec in dataclasses.fields(ObjectivesConfig)} - {"others"}


JUNK = st.one_of(
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.booleans(),
    st.lists(st.integers(-2, 9), max_size=3),
    st.lists(st.lists(st.integers(-2, 9), max_size=2), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    st.lists(st.dictionaries(st.sampled_from(["name", "count", "p_fail"]), st.integers() | st.text()), max_size=3),
)


def tree_of(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    tree: dict[str, Any] = value
    return tree


@given(st.sampled_from([option.key for option in OPTIONS] + ["devices.classes", "distill", "data"]), JUNK)
def test_any_value_is_taken_or_refused_by_file_and_table(key: str, value: Any) -> None:
    refusal = f"file: {key}"
    try:
        from_mapping(Experiment, tree_of(key, value), source="file")
    except ConfigError as exc:
        refusal = str(exc)
    assert refusal.startswith("file: ")
    assert key.split(".")[0] in refusal


@given(st.lists(st.tuples(st.sampled_from(OPTIONS), JUNK), max_size=4))
def test_an_experiment_is_read_back_from_its_listing(changes: list[tuple[Option, Any]]) -> None:
    experiment = Experiment()
    for option, value in changes:
        tree = dataclasses.asdict(experiment)
        *tables, name = option.key.split(".")
        table = tree
        for key in tables:
            table = table[key] if isinstance(table[key], dict) else {}  # the pattern of a class is in no table
        table[name] = value
        try:
            experiment = from_mapping(Experiment, tree, source="changed")
        except ConfigError:
            continue
    listing = as_toml(list(tables_of(Experiment, experiment)))
    assert from_mapping(Experiment, tomllib.loads(listing), source="listing") == experiment


def test_the_document_is_that_of_the_code() -> None:
    assert configuration.DOCUMENT.read_text() == configuration.document(), "run python scripts/configuration.py"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_the_command_prints_a_file_as_a_complete_one(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", str(path), "--set", "distill.epochs=7"]) == 0
    printed = tomllib.loads(capsys.readouterr().out)
    assert from_mapping(Experiment, printed, source="printed") == load_experiment(path, ["distill.epochs=7"])
    assert printed["distill"]["epochs"] == 7


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "distill.objectives", "--json"]) == 0
    options = json.loads(capsys.readouterr().out)
    assert {option["key"].split(".")[2] for option in options} == {*OBJECTIVES, "others"}


def test_the_command_prints_a_key_with_its_value_and_default(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "graph.kind", "--json", "--set", "graph.kind=nonn"]) == 0
    (option,) = json.loads(capsys.readouterr().out)
    assert (option["value"], option["default"]) == ("nonn", "co-activation")
    assert option["choices"] == ["co-activation", "nonn"]


def test_the_command_prints_a_policy_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "policy"]) == 0
    assert tomllib.loads(capsys.readouterr().out)["policy"]["deadline_s"] == 1.0


def test_the_command_prints_device_classes_one_by_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "e.toml"
    file.write_text("".join(f"[[devices.classes]]\nname = '{name}'\ncount = 4\n" for name in "ab"))
    assert main(["config", str(file), "devices"]) == 0
    devices = tomllib.loads(capsys.readouterr().out)["devices"]
    assert devices["count"] == 8
    assert [(kind["name"], kind["count"]) for kind in devices["classes"]] == [("a", 4), ("b", 4)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["distil"], "unknown key 'distil'; did you mean 'distill'?"),
        (["distill.epoch"], "did you mean 'distill.epochs'?"),
        (["data", "graph"], "one file and one key at most"),
        (["missing.toml"], "missing.toml: no such file"),
    ],
)
def test_the_command_refuses_what_is_no_option(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["config", *arguments]) == 2
    assert message in capsys.readouterr().err
