"""The commands with which aggregators and devices pair, and what they print."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from nonn_device import discovery, pairing_options
from nonn_device.cli import build_parser
from nonn_device.pair import default_id, pair

import nonn.cli
from nonn.aggregator.membership.announce import announced
from nonn.cli._pairing_options import _hide, _show, pairing_of
from nonn.client import Client
from nonn.errors import ConfigError, CredentialsError, MissingExtraError, NonnError, UnreachableError, UsageError
from nonn.security.authority import Authority
from nonn.security.pairing import PairingCode
from tests.fleets import Running, members
from tests.observing import logged
from tests.pairing import CODE
from tests.serving import TIMEOUT_S, until

NUM_DEVICES = 1


# An aggregator


@pytest.mark.slow
def test_a_device_joins_with_a_code_alone_and_comes_back_without_one(bundle: Any, tmp_path: Path) -> None:
    certs, data = tmp_path / "certs", tmp_path / "data"
    code_file = certs / "pairing.code"
    with contextlib.ExitStack() as stack:

        def start(log: str, *arguments: Any) -> Running:
            running = Running(tmp_path / log, *arguments)
            stack.callback(running.close)
            return running

        aggregator = start("serve.log", "nonn", "serve", bundle.path, "--pair", "--authority", certs)
        address = aggregator.ready["address"]
        until(code_file.exists)
        assert stat.S_IMODE(code_file.stat().st_mode) == 0o600
        code = code_file.read_text()
        authority = Authority(certs)
        authority.issue("client", "alice")
        client = stack.enter_context(Client(address, TIMEOUT_S, tls=authority.folder("client", "alice")))

        join = ("nonn_device", "join", "--data", data, "--id", "kitchen", "--code", "-")
        node = start("first.log", *join)
        assert node.child.stdin is not None
        node.child.stdin.write(code.encode())
        node.child.stdin.flush()
        assert node.ready["address"].startswith("127.0.0.1:")
        until(lambda: members(client) == {"kitchen": 0})
        until(lambda: not code_file.exists())
        assert node.end() == 0

        again = start("again.log", *join)  # with nothing on its standard input
        assert again.ready
        assert "paired already, so the code is not used" in again.log.read_text()
        until(lambda: members(client) == {"kitchen": 0})
        authority.revoke("node", "kitchen")
        until(lambda: members(client) == {})

        aggregator.child.send_signal(signal.SIGUSR1)
        until(lambda: code_file.exists() and code_file.read_text() not in ("", code))
        second = PairingCode.parse(code_file.read_text())
        logs = "".join(file.read_text() for file in tmp_path.glob("*.log"))
        for one in (PairingCode.parse(code), second):
            assert one.text() not in logs
            assert one.secret.hex() not in logs
        assert aggregator.end() == 0
        assert not code_file.exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--authority", "x"], "--authority requires --pair"),
        (["--pair", "--pair-minutes", "2000"], "at most 1440 minutes"),
        (["--pair", "--authority", "/proc/none"], "name another folder: --authority"),
    ],
)
def test_options_of_pairing_that_cannot_be_used_are_refused(bundle: Any, options: list[str], reason: str) -> None:
    arguments = nonn.cli.build_parser().parse_args(["serve", str(bundle.path), *options])
    with pytest.raises(NonnError, match=reason):
        pairing_of(arguments)


def test_a_bundle_after_pair_is_not_taken_for_its_number(bundle: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parse = nonn.cli.build_parser().parse_args
    with pytest.raises(SystemExit, match="2"):
        parse(["serve", "--pair", str(bundle.path)])
    assert "put --pair after BUNDLE, or use --pair=N" in capsys.readouterr().err
    for written in (["--pair=3", str(bundle.path)], [str(bundle.path), "--pair", "3"]):
        assert parse(["serve", *written]).pair == 3


def test_an_aggregator_of_another_authority_is_refused_and_a_terminal_shows_a_qr_code(
    bundle: Any, authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    other, folder = tmp_path / "other", authority.folder("aggregator", "main")
    serve = ["serve", str(bundle.path), "--pair", "--tls", str(folder), "--authority"]
    arguments = nonn.cli.build_parser().parse_args([*serve, str(other)])
    with pytest.raises(CredentialsError, match="not a certificate of the authority in"):
        pairing_of(arguments)
    arguments = nonn.cli.build_parser().parse_args([*serve, str(authority.path)])
    assert pairing_of(arguments) is not None
    assert arguments.joins
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    _show(tmp_path / "code", 1, CODE, "10.0.0.1:5000", 600.0)
    shown = capsys.readouterr().err
    assert CODE.text() in shown
    assert "█" in shown
    assert "--pair-with 10.0.0.1:5000." in shown
    assert not (tmp_path / "code").exists()
    monkeypatch.setitem(sys.modules, "segno", None)
    _show(tmp_path / "code", 1, CODE, "0.0.0.0:5000", 600.0)
    shown = capsys.readouterr().err
    assert "a QR code too: pip install 'nonn[pair]'" in shown
    assert "--pair-with HOST:5000, with a name or address of this machine." in shown


def test_a_device_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    zeroconf = pytest.importorskip("zeroconf")

    def unplugged(**_: Any) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(zeroconf, "Zeroconf", unplugged)
    with pytest.raises(UnreachableError, match=r"Network is unreachable.*--pair-with HOST:PORT"):
        pair(tmp_path, "kitchen", CODE, discovery.discovered())


def test_without_zeroconf_both_sides_say_how_to_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'nonn\[pair\]'"):
        pair(tmp_path, "kitchen", CODE, discovery.discovered())

    async def main() -> None:
        async with announced("127.0.0.1", 5000) as done:
            assert not done

    asyncio.run(main())
    assert "--pair-with HOST:5000" in caplog.text
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(MissingExtraError, match=r"nonn\[pair\]"):
        pair(tmp_path, "kitchen", CODE, [])
    assert not any(tmp_path.iterdir())


def test_the_private_file_of_a_code_is_removed_unless_another_aggregator_has_written_its_own(tmp_path: Path) -> None:
    file, newer = tmp_path / "pairing.code", PairingCode.new("cd" * 32)
    for code in (CODE, newer):
        _show(file, 1, code, "127.0.0.1:1", 1.0)
    _hide(file, CODE)
    assert file.read_text().strip() == newer.text()
    _hide(file, newer)
    _hide(file, newer)
    assert not file.exists()


# A device


def code_of(*options: str) -> str:
    return pairing_options._code(build_parser().parse_args(["join", "--data", "d", *options]))


def test_a_code_comes_from_standard_input_the_environment_or_a_terminal_and_is_not_inherited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("from standard input\nmore"))
    assert code_of("--code", "-") == "from standard input\n"
    with pytest.raises(UsageError, match="NONN_CODE"):
        code_of()
    monkeypatch.setenv("NONN_CODE", "from environment")
    assert code_of() == "from environment"
    assert "NONN_CODE" not in os.environ
    assert not logged(caplog)
    assert code_of("--code", "SECRET") == "SECRET"
    assert "list of processes" in caplog.text
    assert "SECRET" not in caplog.text
    with pytest.raises(UsageError, match="--source -"):
        code_of("--code", "-", "--source", "-")
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    code_of()
    assert capsys.readouterr().err.startswith("code of nonn serve")


@pytest.mark.parametrize(("host", "name"), [("Kitchen_Pi.local", "kitchen-pi"), ("a" * 80, "a" * 63), ("-", None)])
def test_the_id_of_a_device_is_its_host_name(monkeypatch: pytest.MonkeyPatch, host: str, name: str | None) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    if name is None:
        with pytest.raises(ConfigError, match="--id"):
            default_id()
    else:
        assert default_id() == name
