from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from nonn.aggregator.batching import BatchConfig
from nonn.aggregator.membership.options import JoiningOptions
from nonn.aggregator.monitoring.drift import DriftConfig
from nonn.aggregator.monitoring.options import ObservingOptions
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.sensing.hub import SensingOptions
from nonn.bench.serve import Load
from nonn.cli import COMMANDS, build_parser, main, serve
from nonn.commandline.extras import missing_extra, requirements
from nonn.errors import ConfigError
from tests.serving import TIMEOUT_S, until
from tests.toys import TINY

SETS = [argument for item in TINY for argument in ("--set", item)]


def test_help_lists_every_command() -> None:
    done = subprocess.run([sys.executable, "-m", "nonn", "--help"], capture_output=True, text=True, check=True)
    assert all(re.search(rf"^    {name}\b", done.stdout, re.MULTILINE) for name in COMMANDS)


def test_help_imports_nothing_that_takes_time() -> None:
    program = (
        "import sys, nonn.cli\n"
        "try: nonn.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "slow = {'numpy', 'grpc', 'google.protobuf', 'torch', 'rich', 'asyncio'}\n"
        "print(sorted(slow & set(sys.modules)), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_a_command_without_standard_output_ends_as_usual() -> None:
    command = '"$0" -m nonn config distill.epochs >&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], stderr=subprocess.PIPE, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    assert "usage: nonn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        ("serve", "--max-queue N", f"under way (default: {BatchConfig.max_queue})"),
        ("serve", "--max-delay-ms MS", f"waits for others (default: {1e3 * BatchConfig.max_delay_s:g})"),
        ("serve", "--duty-period S", f"chosen again (default: {SensingOptions.duty_period_s:g})"),
        ("serve", "--drift-rate HZ", f"turns it off (default: {DriftConfig.samples_per_s:g})"),
        ("up", "--deadline S", f"waits for its nodes (default: {PolicyConfig.deadline_s:g})"),
        ("bench", "--requests N", f"in turn (default: {Load.requests})"),
    ],
)
def test_the_help_of_an_option_has_the_meaning_and_default_of_its_field(
    command: str, option: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = " ".join(capsys.readouterr().out.partition("\noptions:")[2].split())
    assert words in shown.partition(f"{option} ")[2].partition(" --")[0]


def test_options_of_serve_reach_the_fields_that_they_set(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    given = "--max-delay-ms 250 --max-batch 8 --lease 3 --window-wait 0.5 --drift-rate 0 --http-name proxy --quorum 2"
    arguments = ["serve", str(tmp_path), "--joins", "--join-token-file", str(tmp_path / "token"), *given.split()]
    options = serve.options_of(build_parser().parse_args(arguments))
    assert options.batching == BatchConfig(max_delay_s=0.25, max_batch=8)
    assert options.joining == JoiningOptions(joins=True, join_token_file=tmp_path / "token", lease_s=3.0)
    assert options.sensing == SensingOptions(wait_s=0.5)
    assert options.policy == PolicyConfig(quorum=2)
    assert (options.observing.drift, list(options.observing.http_names)) == (None, ["proxy"])


@pytest.mark.parametrize(
    ("cls", "name", "value"),
    [
        (JoiningOptions, "lease_s", 0.01),
        (SensingOptions, "speed", 0.0),
        (SensingOptions, "accuracy_goal", 1.5),
        (ObservingOptions, "drift_rate", -1.0),
        (Load, "rounds", 0),
    ],
)
def test_an_option_of_a_program_is_checked_and_named(cls: Callable[..., object], name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} = {value}: must be "):
        cls(**{name: value})


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["demo", "--set", "distill.epoch=1"], 3, "did you mean 'distill.epochs'"),
        (["demo", "--set", "partition.parts=9"], 3, "more parts than devices"),
        (["demo", "--set", "devices.budget.params=10"], 3, "over its budget"),
        (["demo", "--set", "data.reader=parquet"], 3, "data.path"),
        (["demo", "--set", "data.reader=cifar", "--set", "data.path=/no/cifar"], 3, "/no/cifar"),
        (["demo", "--set", 'guarantees.require=["accuracy>=0.9 fail<=4"]'], 3, "guarantee 'accuracy>=0.9 fail<=4'"),
        (["demo", "--set", "student.model=wnr-10-1"], 3, "student.model = 'wnr-10-1': unknown"),
        (["demo", "--set", "teacher.weights=/no/weights"], 3, "/no/weights': no such file"),
        (["report", "."], 3, "manifest.json: no such file"),
        (["certs", "init", "--dir", "/dev/null/certs"], 3, "/dev/null/certs: Not a directory; choose another path"),
        (["predict", "127.0.0.1:1", "/no/image.png"], 4, "127.0.0.1:1"),
    ],
)
def test_bad_input_has_a_message_and_its_exit_code(
    arguments: list[str],
    code: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    got, captured = main(arguments), capsys.readouterr()
    assert (got, captured.out) == (code, "")
    assert f"nonn {arguments[0]}: " in captured.err
    assert words in captured.err


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "No space left on device; make room"),
        (errno.EROFS, "Read-only file system; choose a path that you may use"),
        (errno.EACCES, "Permission denied; choose a path that you may use"),
    ],
)
def test_a_file_that_cannot_be_written_has_the_remedy_for_its_cause(
    number: int, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise OSError(number, os.strerror(number), "/runs/x")

    monkeypatch.setattr("nonn.cli.doctor.run", fail)
    assert main(["doctor"]) == 3
    assert f"nonn doctor: /runs/x: {words}" in capsys.readouterr().err


def test_a_terminal_without_unicode_gets_question_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr("nonn.cli.doctor.run", lambda args: print("8 × 8") or 0)
    assert main(["doctor"]) == 0
    assert written.getvalue() == b"8 ? 8\n"


def test_a_shell_completes_commands_options_and_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    assert "--http-port" in script
    assert "_shtab_nonn_predict_pos_1_COMPGEN=_shtab_compgen_files" in script


def test_a_missing_extra_names_the_install_command(tmp_path: Path) -> None:
    absent = tmp_path / "absent" / "torch"
    absent.mkdir(parents=True)
    (absent / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    experiment = Path(__file__).parent.parent / "examples" / "digits.toml"
    done = subprocess.run(
        [sys.executable, "-m", "nonn", "run", str(experiment), "--runs", str(tmp_path / "runs")],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(absent.parent), *sys.path])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 6
    assert "pip install 'nonn[train]'" in done.stderr


def test_modules_are_matched_to_the_extra_that_brings_them() -> None:
    for module, extra in [("torch", "train"), ("PIL.Image", "serve"), ("sklearn", "train"), ("simpy", "sim")]:
        error = missing_extra(ModuleNotFoundError(f"No module named '{module}'", name=module))
        assert error is not None
        assert f"nonn[{extra}]" in str(error)
    assert missing_extra(ModuleNotFoundError("No module named 'nonn.x'", name="nonn.x")) is None
    assert "torch" not in requirements()[""]
    assert "grpcio" in requirements()[""]


def test_the_base_install_is_what_a_device_needs() -> None:
    assert sorted(requirements()[""]) == ["grpcio", "grpcio-health-checking", "numpy", "onnxruntime", "protobuf"]


def test_doctor_finds_this_machine_fit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    findings = {item["what"]: item for item in json.loads(capsys.readouterr().out)}
    assert findings["base: grpcio"]["ok"]
    assert findings["onnxruntime runs"]["ok"]
    assert main(["doctor"]) == 0
    assert "python" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "code", "text"),
    [
        (signal.SIGINT, 130, "nonn demo: interrupted; finished work is kept"),
        (signal.SIGTERM, -signal.SIGTERM, "nonn run: terminated; finished work is kept"),
    ],
)
def test_a_signal_in_training_keeps_the_epochs_done_and_says_so(
    tmp_path: Path, number: signal.Signals, code: int, text: str
) -> None:
    (tmp_path / "tiny.toml").write_text("")
    name = ["run", str(tmp_path / "tiny.toml")] if "nonn run" in text else ["demo"]
    arguments = ["--runs", str(tmp_path), *SETS, "--set", "teacher.epochs=2000"]
    command = [sys.executable, "-m", "nonn", *name, *arguments]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    checkpoint = tmp_path / "tiny" / "teacher" / "checkpoint.safetensors"
    try:
        until(lambda: checkpoint.exists() or process.poll() is not None, timeout_s=10 * TIMEOUT_S)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == code, err
    assert out == ""
    assert text in err
    assert "Traceback" not in err
    assert checkpoint.exists()
    assert not list(tmp_path.rglob("*.tmp"))


def test_partition_prints_how_good_the_cut_is(
    tiny_runs: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "tiny.toml").write_text("")
    assert main(["partition", str(tmp_path / "tiny.toml"), "--runs", str(tiny_runs), *SETS]) == 0
    out = capsys.readouterr().out
    assert "normalised cut" in out
    assert "kept correlation" in out
    assert main(["partition", str(tmp_path / "tiny.toml"), "--runs", str(tiny_runs), "--json", *SETS]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["measures"]["sizes"] == [32, 32]
