"""One rule for exit codes: what is wrong on the command line ends with 2, in every command of the three programs."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import nonn_device.cli
import nonn_sim.cli
import pytest

import nonn.cli
from nonn.arguments import path
from nonn.bundle import Bundle
from nonn.errors import InputError, UsageError

NUM_DEVICES = 2  # of the fixture
PROGRAMS = {"nonn": nonn.cli, "nonn-device": nonn_device.cli, "nonn-sim": nonn_sim.cli}

# FILE: a file; FOLDER: an empty folder; BUNDLE: a bundle; JOIN: what a node that joins needs. Each command has a line.
WRONG = {
    "nonn": "required: COMMAND",
    "nonn fly": "invalid choice: 'fly'",
    "nonn demo --fast": "unrecognized arguments: --fast",
    "nonn run": "required: EXPERIMENT.toml",
    "nonn run FILE --fast": "unrecognized arguments: --fast",
    "nonn run no.toml": "no.toml: no such file or folder",
    "nonn study no.toml": "no.toml: no such file or folder",
    "nonn partition no.toml": "no.toml: no such file or folder",
    "nonn runs list --runs no": "no: no such folder",
    "nonn runs diff digits@12 digits --runs FOLDER": "no bundle",
    "nonn runs keep digits --runs FOLDER": "no bundle",
    "nonn runs clean digits --runs FOLDER": "no such run",
    "nonn init FILE --data x --teacher y --devices 2": "exists; name another file",
    "nonn init --data no --teacher y --devices 2": "no: no such file or folder",
    "nonn init --data FILE --teacher y --devices 2": "neither .npz, .parquet, .csv nor a folder of folders",
    "nonn init --teacher y --devices 0": "--devices: 0: must be at least 1",
    "nonn init --teacher wrn-10-1 --devices 257": "devices.count = 257",
    "nonn init --teacher wnr-16-2 --devices 2": "did you mean 'wrn-16-2'?",
    "nonn config distil": "unknown key 'distil'; did you mean 'distill'?",
    "nonn config speed": "unknown key 'speed'; known tables: data, devices",
    "nonn config FILE": "file: no experiment file",
    "nonn config data graph": "one file and one key at most",
    "nonn report /no/bundle": "/no/bundle: no such file or folder",
    "nonn export BUNDLE --target rust": "invalid choice: 'rust'",
    "nonn export BUNDLE --target c --ram 0": "--ram: 0: must be at least 1",
    "nonn export BUNDLE --target c --student -1": "--student: -1: must be at least 0",
    "nonn up /no/bundle": "/no/bundle: no such file or folder",
    "nonn up BUNDLE --port 99999": "--port: 99999: must be 1 to 65535",
    "nonn serve BUNDLE --deadline -1": "--deadline: -1: must be above 0",
    "nonn serve BUNDLE --max-delay-ms nan": "--max-delay-ms: nan: must be at least 0",
    "nonn serve BUNDLE --quorum 0": "--quorum: 0: must be at least 1",
    "nonn serve BUNDLE --replay-speed 0": "--replay-speed: 0: must be above 0 and below 10,000",
    "nonn serve BUNDLE --window-wait x": "--window-wait: x: not a number",
    "nonn serve BUNDLE --write-inventory FILE": "exists; name another file",
    "nonn serve BUNDLE --state FOLDER": "add --joins",
    "nonn top h:1 --token-file /no/token": "/no/token: no such file or folder",
    "nonn watch h": "'h' is not host:port",
    "nonn watch h:1 --count -1": "--count: -1: must be at least 0",
    "nonn watch h:1 --name a/b": "letters, digits, - and _ only",
    "nonn watch h:1 --tls no": "no: no such file or folder",
    "nonn watch h:1 --mqtt x:y": "--mqtt 'x:y' is not host:port",
    "nonn watch h:1 --mqtt ''": "--mqtt: the broker is missing",
    "nonn predict h:1 x.png --timeout 0": "--timeout: 0: must be more than 0",
    "nonn predict h x.png": "'h' is not host:port",
    "nonn certs init --dir FOLDER --days 99999": "--days 99999: a certificate is valid for",
    "nonn certs init --days x": "--days: x: not a whole number",
    "nonn certs show no.pem": "no.pem: no such file or folder",
    "nonn certs issue king a": "'king' is not one of",
    "nonn certs list --dir no": "--dir no: no such folder; nonn certs init makes an authority",
    "nonn certs rotate node a --dir no": "--dir no: no such folder",
    "nonn serve BUNDLE --pair --authority ''": "--authority: the path is empty",
    "nonn top h:1 --tls ''": "--tls: the path is empty",
    "nonn fleet init no.toml": "no.toml: no such file or folder",
    "nonn fleet status --inventory no.toml": "no.toml: no such file or folder",
    "nonn fleet push BUNDLE --state FOLDER": "required: --floor",
    "nonn fleet push BUNDLE --state FOLDER --floor 2": "--floor: 2: must be between 0 and 1",
    "nonn fleet rollback --state FOLDER --wait 0": "--wait: 0: must be more than 0",
    "nonn fleet drain a --state FOLDER --floor nan": "--floor: nan: must be a number of 0 or more",
    "nonn bench flights": "invalid choice: 'flights'",
    "nonn bench serve --devices 0": "--devices: 0: must be at least 1",
    "nonn bench students --model vgg-16": "'vgg-16': unknown",
    "nonn bench students --input 3": "--input is C H W or C T",
    "nonn bench students --sends brigde": "--sends: 'brigde': unknown; did you mean 'bridge'?",
    "nonn doctor --tls FOLDER": "--tls requires --device",
    "nonn completion basic": "invalid choice: 'basic'",
    "nonn-device serve BUNDLE": "required: --student",
    "nonn-device serve BUNDLE --student 0 --threads 0": "--threads: 0: must be between 1 and 256",
    "nonn-device serve BUNDLE --student 0 --memory -5": "--memory: -5: must be between 0",
    "nonn-device serve BUNDLE --student 0 --runtime d": "invalid choice: 'd'",
    "nonn-device serve BUNDLE --student 0 --runtime tcp:board": "'board' is not host:port",
    "nonn-device check BUNDLE --student 0 --library no.so": "no.so: no such file or folder",
    "nonn-device join h:99999 --id a --data FOLDER": "'h:99999' is not host:port",
    "nonn-device join h:1 JOIN --student -1": "--student: -1: must be between 0",
    "nonn-device join h:1 JOIN --advertise ::1": "--advertise '::1' is not host:port",
    "nonn-device join h:1 JOIN --dial-out --host 0.0.0.0": "omit --host and --advertise",
    "nonn-device join h:1 --data FOLDER --join-token-file FILE": "--id is missing",
    "nonn-device join h:1 --data FOLDER --join-token-file FILE --id A_": "A_",
    "nonn-device join h:1 JOIN --send-raw": "give a --source",
    "nonn-device join h:1 JOIN --source -": "--source needs --student",
    "nonn-device join h:1 JOIN --student 0 --source tape:1": "tape",
    "nonn-device join h:1 JOIN --student 0 --source csv:no.csv": "no.csv: no such file",
    "nonn-device join h:1 JOIN --student 0 --source mqtt:h": "the topic is missing",
    "nonn-device join h:1 JOIN --student 0 --source no.such:program": "No module named 'no'",
    "nonn-device join h:1 JOIN --student 0 --source cvs:walk": "must be csv:FILE",
    "nonn-device join h:1 JOIN --student 0 --source - --watch-stdin": "leave --watch-stdin out",
    "nonn-device join h:1 JOIN --student 0 --source - --send-raw": "refusing to send raw samples",
    "nonn-sim enumerate no": "no: no such file or folder",
    "nonn-sim enumerate BUNDLE --level 1.5": "--level: 1.5: must be between 0 and 1",
    "nonn-sim enumerate BUNDLE --seed -1": "--seed: -1: must be at least 0",
    "nonn-sim enumerate BUNDLE --place no.toml": "no.toml: no such file or folder",
    "nonn-sim enumerate BUNDLE --law 'independent p=2'": "must not exceed 1",
    "nonn-sim enumerate BUNDLE --guarantee 'accuracy>=0.9 fail<=4'": "guarantee 'accuracy>=0.9 fail<=4'",
    "nonn-sim enumerate BUNDLE --samples 5 --per-class": "--per-class needs every subset",
    "nonn-sim enumerate BUNDLE --law ''": "law ''",
    "nonn-sim enumerate BUNDLE --deadline-ms 5": "--deadline-ms requires --place",
    "nonn-sim enumerate BUNDLE --samples 5 --counted -1": "--counted: -1: must be at least 0",
    "nonn-sim cuts no --level 0.5": "no: no such file or folder",
    "nonn-sim cuts BUNDLE --level 70": "--level: 70: must be between 0 and 1",
    "nonn-sim run no.toml --bundle BUNDLE": "no.toml: no such file or folder",
    "nonn-sim run FILE --bundle BUNDLE --live --seeds 2": "--live is one run",
    "nonn-sim run FILE --bundle BUNDLE --inputs FILE": "add --live",
    "nonn-sim replay FILE --bundle BUNDLE --scenario no.toml": "no.toml: no such file or folder",
    "nonn-sim sweep BUNDLE --scenario no.toml --vary a=1": "no.toml: no such file or folder",
    "nonn-sim sweep BUNDLE --law 'independent p={p}' --vary q=1": "has no {q}",
    "nonn-sim sweep BUNDLE --law 'independent p={p}' --vary p=0.1 --seeds 2": "--law is exact",
    "nonn-sim sweep BUNDLE --scenario FILE --vary a=1 --level 0.5": "--level goes with --law",
    "nonn-sim sense no.toml --bundle BUNDLE": "no.toml: no such file or folder",
    "nonn-sim sense FILE --bundle BUNDLE --live --windows 2": "--windows: 2: must be at least 3",
    "nonn-sim sense FILE --bundle BUNDLE --speed 2": "--speed requires --live",
    "nonn-sim liars BUNDLE --sets 0": "--sets: 0: must be at least 1",
    "nonn-sim liars BUNDLE --liars 0": "--liars: 0: must be at least 1",
    "nonn-sim liars BUNDLE --lie white": "lie 'white' is unknown",
}
# Files and folders that a command writes; all others must exist.
WRITTEN = (
    "--runs --html --markdown --csv --tables --out --write-inventory --state --raw --dir --authority --fault-tree "
    "--block-diagram --record --svg"
)
MADE = {("nonn up", "--tls"), ("nonn init", "file"), ("nonn-device join", "--data")}


@pytest.mark.parametrize("line", WRONG)
def test_what_is_wrong_on_the_command_line_ends_with_2(
    line: str, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    real = {"FILE": "file", "FOLDER": "folder", "BUNDLE": str(bundle.path)}
    line_with_options = line.replace("JOIN", "--id a --data FOLDER --join-token-file FILE")
    program, *arguments = (real.get(word, word) for word in shlex.split(line_with_options))
    assert run(PROGRAMS[program].main, arguments) == 2
    shown = capsys.readouterr()
    assert WRONG[line] in shown.err
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == [tmp_path / "folder", tmp_path / "file"] or not list(
        (tmp_path / "folder").iterdir()
    )


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str]) -> object:
    try:
        return main(arguments)
    except SystemExit as exc:  # from the parser
        return exc.code


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.Action]]:
    """Each command with each of its options that a user sees."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for sub in action.choices.values():
                yield from options(sub)
        elif action.help != argparse.SUPPRESS:
            yield parser.prog, action


def test_every_command_has_a_wrong_line() -> None:
    commands = {f"{name} {command}" for name in ("nonn", "nonn-sim") for command in PROGRAMS[name].COMMANDS}
    commands |= {f"nonn-device {command}" for command in ("serve", "join", "check")}
    assert commands == {" ".join(line.split()[:2]) for line in WRONG} & commands


@pytest.mark.parametrize("program", PROGRAMS)
def test_numbers_have_a_range_and_files_that_are_read_exist(program: str) -> None:
    found = list(options(PROGRAMS[program].build_parser()))
    unchecked = [
        (command, action.option_strings or action.dest)
        for command, action in found
        if action.type in (int, float, Path)
    ]
    assert not unchecked
    for command, action in found:
        name = (action.option_strings or [action.dest])[0]
        if action.type is path:
            assert name in WRITTEN.split() or (command, name) in MADE, f"{command} {name}"


def test_errors_of_usage_have_the_exit_code_of_the_parser() -> None:
    assert (UsageError("").exit_code, InputError("").exit_code) == (2, 2)
