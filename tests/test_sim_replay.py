from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nonn_sim.commands import replay as replay_command
from nonn_sim.commands import run as run_command
from nonn_sim.faults import FaultEvent, read_log, write_log
from nonn_sim.replay import replay
from nonn_sim.scenario import FAULT_ENDS

from nonn.bundle import Bundle
from nonn.errors import ConfigError, DataError
from tests.toys import toy_bundle

NUM_DEVICES = 4
# Everything that can happen, so that a replay has something to get wrong.
SCENARIO = """
[scenario]
name = "night"
seed = 5
requests = 3000

[load]
rate_per_s = 50

[policy]
deadline_s = 0.1
breaker_reset_s = 0.4

[nodes]
service_s = 0.003
service_cv = 0.3
mtbf_s = 20
mttr_s = 3
idle_w = 1.0
joule_per_mac = 1e-6

[link]
latency_s = 0.001
p_loss = 0.01

[[node]]
device = 3
battery_j = 40

[[group]]
name = "strip"
nodes = [0, 1]
mtbf_s = 15
mttr_s = 2

[[fault]]
at_s = 3
kind = "stop"
nodes = [2]
for_s = 1.5
every_s = 7

[[fault]]
at_s = 5
kind = "delay"
nodes = [1]
for_s = 1
every_s = 9
delay_s = 0.02
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("replay") / "bundle", num_devices=NUM_DEVICES)


def json_of(command: Any, capsys: pytest.CaptureFixture[str], *options: Any) -> Any:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([*map(str, options), "--json"])) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_a_recorded_run_is_replayed_bit_for_bit(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: Any
) -> None:
    scenario, log = tmp_path / "night.toml", tmp_path / name
    scenario.write_text(SCENARIO)
    ran = json_of(run_command, capsys, scenario, "--bundle", bundle.path, "--alone", "--record", log)
    again = json_of(replay_command, capsys, log, "--bundle", bundle.path, "--scenario", scenario)
    assert {event.event for event in read_log(log)} == {"off", "on", "stop", "resume", "delay", "undelay"}
    assert again == ran


def test_up_and_down_times_of_a_night_in_the_field_are_enough(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "night.csv"
    log.write_text("time_s,node,event\n50,node-1,up\n20.5,node-1,down\n100,node-0,down\n")
    result = replay(log, bundle)
    [row] = result["rows"]
    assert result["scenario"] == "night"
    assert row["requests"] == pytest.approx(1000, rel=0.15)
    assert row["nodes"][1]["on"] == pytest.approx(0.705, abs=1e-6)
    assert row["nodes"][0]["on"] == 1.0


events = st.lists(
    st.builds(
        FaultEvent,
        st.floats(0, 1e6),
        st.integers(0, 9),
        st.sampled_from((*FAULT_ENDS, *FAULT_ENDS.values())),
        st.floats(0, 10),
        st.integers(0, 99),
    ),
    min_size=1,
)


@given(events, st.sampled_from([".csv", ".jsonl"]))
def test_a_log_is_read_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, events: Any, suffix: Any) -> None:
    file = tmp_path_factory.mktemp("log") / f"log{suffix}"
    write_log(file, events)
    assert read_log(file) == sorted(events, key=lambda event: event.time_s)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "time_s,event\n1,off\n", "a.csv, line 2: column 'node' is missing"),
        ("a.csv", "time_s,node,event\n1,0,off\nsoon,0,on\n", "a.csv, line 3: could not convert string to float"),
        ("a.csv", "time_s,node,event\n1,0,explode\n", "a.csv, line 2: unknown event 'explode'; known: kill"),
        ("a.csv", "time_s,node,event\n-1,0,off\n", "a.csv, line 2: times, values and cells must not be negative"),
        ("a.csv", "time_s,node,event\n", "a.csv: no event"),
        ("a.csv", "time_s,node,event\n1,kitchen,off\n", "a.csv, line 2: invalid literal"),
        ("a.jsonl", '{"time_s": 1, "node": 0, "event": "off"}\n{"time_s":\n', "a.jsonl, line 2"),
        ("a.jsonl", "[1, 2]\n", "a.jsonl, line 1"),
    ],
)
def test_a_log_that_cannot_be_read_is_an_error_that_names_file_and_line(
    tmp_path: Path, name: Any, text: Any, message: Any
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_log(file)
    assert message in str(caught.value)
    assert caught.value.exit_code == 3


def test_a_log_of_devices_that_are_not_there_is_an_error(bundle: Bundle, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("time_s,node,event\n1,4,off\n")
    with pytest.raises(ConfigError, match="cell 0, node 4: the scenario has 1 cells and the bundle 4 devices"):
        replay(log, bundle)
    with pytest.raises(DataError, match="no such file"):
        replay(tmp_path / "none.csv", bundle)
