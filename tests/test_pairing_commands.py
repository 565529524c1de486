"""Devices without a certificate that get one with a code, and what a network full of attackers can do about it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import io
import json
import os
import resource
import signal
import socket
import ssl
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from nonn_device import discovery, pairing_options
from nonn_device.cli import build_parser
from nonn_device.pair import Found, _key_and_request, default_id, pair, paired

import nonn.cli
from nonn.aggregator.membership import pairing_server
from nonn.aggregator.membership.announce import announced
from nonn.aggregator.membership.pairing import MAX_WRONG, Window
from nonn.cli._pairing_options import _hide, _show, pairing_of
from nonn.client import Client
from nonn.errors import (
    ConfigError,
    CredentialsError,
    DataError,
    MissingExtraError,
    NonnError,
    UnreachableError,
    UsageError,
)
from nonn.security.authority import Authority
from nonn.security.pairing import PairingCode, PairingRequest
from nonn.security.tls import Identity, TlsFolder
from tests.fleets import Running, members
from tests.pairing import (
    fleet,
    in_the_middle,
    listening,
    paired_at,
    pairing_server_of,
    pretending,
    relaying,
    unannounced,
)
from tests.serving import TIMEOUT_S, until

NUM_DEVICES = 1
CODE = PairingCode.new("ab" * 32)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return fleet(tmp_path)


def message(code: PairingCode = CODE, name: str = "kitchen", csr: str = "csr", at: float | None = None) -> bytes:
    return PairingRequest(code.secret.hex(), name, csr, time.time() if at is None else at).line()


class Signing:
    """Stands in for the authority; counts certificates."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, csr: bytes) -> Any:
        if name == "taken":
            raise ConfigError("taken")
        self.names.append(name)
        return {"id": name, "number": len(self.names)}


def window(signing: Signing, devices: int = 1, clock: Any = lambda: 0.0) -> Window:
    return Window(CODE, devices, 600.0, signing, clock)


# The code


def test_a_code_is_read_as_people_type_it_and_a_typing_error_is_found() -> None:
    text = CODE.text()
    assert len(text) == 47
    assert PairingCode.parse(f" {text.lower().replace('-', ' ')}\n") == CODE
    assert PairingCode.parse(text.replace("O", "0").replace("I", "1").replace("B", "8")) == CODE
    found = 0
    for i, c in enumerate(text.replace("-", "")):
        other = text.replace("-", "")[:i] + ("A" if c != "A" else "C") + text.replace("-", "")[i + 1 :]
        with contextlib.suppress(CredentialsError):
            PairingCode.parse(other)
            found += 1
    assert found <= 2  # a checksum of eight bits misses one in 256
    for bad in ("", text[:-1], "!" * 40, "ÄÖ" * 20):
        with pytest.raises(CredentialsError, match="the code has") as caught:
            PairingCode.parse(bad)
        assert not bad or bad not in str(caught.value)


def test_a_code_does_not_show_its_secret_in_logs_and_tracebacks() -> None:
    request = PairingRequest.parse(message())
    assert CODE.secret.hex() not in f"{request!r} {CODE!r} {CODE}"
    assert str(CODE.secret) not in f"{CODE!r}"


# A window


def test_of_a_thousand_wrong_codes_five_are_compared_and_the_code_is_void() -> None:
    async def main() -> None:
        signing = Signing()
        one = window(signing)
        texts = []
        for _ in range(1000):
            with pytest.raises(CredentialsError) as caught:
                await one.pair(message(PairingCode.new("ab" * 32)))
            texts.append(str(caught.value))
        assert sum("wrong: it names" in text for text in texts) == MAX_WRONG
        assert one.ended.is_set()
        with pytest.raises(CredentialsError, match="void"):
            await one.pair(message())
        assert signing.names == []

    asyncio.run(main())


@pytest.mark.parametrize("devices", [1, 3])
def test_of_parallel_requests_with_the_right_code_exactly_as_many_succeed_as_may(devices: int) -> None:
    async def main() -> None:
        signing = Signing()
        one = window(signing, devices)
        requests = (one.pair(message(name=f"node-{i}", csr=f"csr {i}")) for i in range(20))
        results = await asyncio.gather(*requests, return_exceptions=True)
        assert sum(isinstance(result, dict) for result in results) == devices == len(signing.names)
        assert all("has been used" in str(result) for result in results if not isinstance(result, dict))
        assert one.ended.is_set()

    asyncio.run(main())


def test_the_same_key_gets_the_same_certificate_again_and_another_key_gets_none() -> None:
    async def main() -> None:
        one = window(Signing(), 2)
        first, second = await asyncio.gather(one.pair(message()), one.pair(message()))
        assert first == second == await one.pair(message())
        await one.pair(message(name="shed"))
        for other in (message(csr="another key"), message(name="attic")):
            with pytest.raises(CredentialsError, match="used"):
                await one.pair(other)

    asyncio.run(main())


def test_a_code_expires_also_for_its_own_device() -> None:
    async def main() -> None:
        now = [0.0]
        one = window(Signing(), 2, lambda: now[0])
        await one.pair(message())
        now[0] = 600.0
        for line in (message(), message(csr="another key"), message(PairingCode.new("ab" * 32))):
            with pytest.raises(CredentialsError, match="expired"):
                await one.pair(line)
        assert one.left_s == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (b"GET / HTTP/1.1\n", "another"),
        (b"[" * 60_000 + b"\n", "another"),
        (b'{"secret": 1, "id": "a", "csr": "", "time": 0}\n', "another"),
        ({"name": "a\nb"}, "id"),
        ({"name": "../../etc"}, "id"),
        ({"name": "*"}, "id"),
        ({"name": "a.b"}, "id"),
        ({"name": ""}, "id"),
        ({"name": "taken"}, "taken"),
        ({"at": 0.0}, "clocks differ"),
        ({"at": 4e9}, "clocks differ"),
        ({"at": float("nan")}, "time"),
        ({"at": float("inf")}, "time"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_request_that_cannot_be_met_is_refused_and_does_not_use_up_the_code(wrong: Any, reason: str) -> None:
    async def main() -> None:
        signing = Signing()
        one = window(signing)
        with pytest.raises(NonnError, match=reason):
            await one.pair(wrong if isinstance(wrong, bytes) else message(**wrong))
        assert signing.names == []
        await one.pair(message())

    asyncio.run(main())


# The authority


def test_a_signed_certificate_has_the_name_of_the_authority_s_choice_and_can_be_revoked(authority: Authority) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    wanted = x509.SubjectAlternativeName([x509.UniformResourceIdentifier("nonn://aggregator/evil")])
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aggregator evil")]))
        .add_extension(wanted, critical=False)
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.PEM)
    )
    entry, pem = authority.sign("node", "kitchen", request)
    certificate = x509.load_pem_x509_certificate(pem)
    assert certificate.public_key() == key.public_key()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [name.value for name in names] == ["nonn://node/kitchen", "kitchen.node.nonn.internal"]
    assert certificate.subject.rfc4514_string() == "CN=node kitchen"
    assert authority.issued[-1] == entry
    with pytest.raises(ConfigError, match="already"):
        authority.sign("node", "kitchen", request)
    with pytest.raises(ConfigError, match="already"):
        authority.issue("node", "kitchen")
    (revoked,) = authority.revoke("node", "kitchen")
    assert revoked.sha256 in TlsFolder(authority.folder("aggregator", "main")).revoked


def test_a_request_with_another_kind_of_key_or_without_its_signature_is_refused(authority: Authority) -> None:
    _, good = _key_and_request("kitchen")
    for key in (ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)):
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        other = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        with pytest.raises(ConfigError, match="P-256"):
            authority.sign("node", "kitchen", other)
    der = bytearray(x509.load_pem_x509_csr(good.encode()).public_bytes(serialization.Encoding.DER))
    der[-3] ^= 1  # in the signature
    forged = b"-----BEGIN CERTIFICATE REQUEST-----\n%b-----END CERTIFICATE REQUEST-----\n"
    for bad in (forged % base64.encodebytes(der), b"", b"no request"):
        with pytest.raises(ConfigError, match="P-256"):
            authority.sign("node", "kitchen", bad)
    assert [entry.role for entry in authority.issued] == ["aggregator"]


# A device and an aggregator


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_device_gets_a_certificate_that_its_next_start_finds(authority: Authority, tmp_path: Path, host: str) -> None:
    if host == "::1" and not _has_ipv6():
        pytest.skip("no IPv6 on loopback")

    async def main() -> None:
        async with listening(authority, host) as (code, address):
            found = await paired_at(tmp_path / "data", code, address)
            assert paired(tmp_path / "data") == found
            assert TlsFolder(found.path).identity == Identity("node", "kitchen")
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (found.path, *found.path.iterdir())}
            assert modes["paired"] == 0o700
            assert modes["identity.pem"] == 0o600
            with pytest.raises(CredentialsError, match="used"):
                await paired_at(tmp_path / "second", code, address, name="attic")
            assert not any((tmp_path / "second").iterdir())

    asyncio.run(main())
    assert [(entry.role, entry.id) for entry in authority.issued] == [("aggregator", "main"), ("node", "kitchen")]
    assert not authority.folder("node", "kitchen").exists()  # the authority never has the key


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_machine_in_the_middle_with_another_certificate_is_sent_nothing(authority: Authority, tmp_path: Path) -> None:
    evil, heard = fleet(tmp_path / "evil"), list[bytes]()

    async def main() -> None:
        with in_the_middle(pretending(evil.folder("aggregator", "main"), heard)) as middle:
            async with listening(authority) as (code, address):
                with pytest.raises(CredentialsError, match="no aggregator has the certificate that the code names"):
                    await paired_at(tmp_path / "data", code, middle)
                assert not any((tmp_path / "data").iterdir())
                # It announces itself too, and first; the device passes by and finds the right one.
                await paired_at(tmp_path / "data", code, middle, address)

    asyncio.run(main())
    assert heard == [b"", b""]


def test_what_a_relay_has_recorded_is_worth_nothing(authority: Authority, tmp_path: Path) -> None:
    recorded = bytearray()

    async def main() -> None:
        async with listening(authority, devices=2) as (code, address):
            with in_the_middle(relaying(address, recorded)) as middle:
                await paired_at(tmp_path / "data", code, middle)
            key = (tmp_path / "data" / "paired" / "identity.pem").read_bytes()
            assert code.secret not in recorded
            assert code.secret.hex().encode() not in recorded
            assert key[30:90] not in recorded
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(recorded)
            writer.write_eof()
            assert b"BEGIN" not in await reader.read()
            writer.close()

    asyncio.run(main())
    assert len(authority.issued) == 2


def test_an_answer_that_is_lost_on_the_way_is_sent_again(authority: Authority, tmp_path: Path) -> None:
    async def main() -> None:
        async with listening(authority) as (code, address):
            with in_the_middle(relaying(address, bytearray(), lose_answers=1)) as middle:
                await paired_at(tmp_path / "data", code, middle)

    asyncio.run(main())
    assert len(authority.issued) == 2  # of the aggregator, and one of the device


def test_strangers_hold_few_connections_and_do_not_hinder_a_device_with_the_code(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairing_server, "MAX_OPEN_HOST", 2)

    async def main() -> None:
        async with listening(authority) as (code, address):
            host, _, port = address.rpartition(":")
            silent = [await asyncio.open_connection(host, int(port)) for _ in range(5)]
            for reader, _ in silent[2:]:
                assert await reader.read() == b""  # closed at once
            silent[0][1].write(b"\x16" * 100_000)  # no TLS: closed
            with contextlib.suppress(ConnectionError):
                await silent[0][0].read()
            await paired_at(tmp_path / "data", code, address)
            for _, writer in silent:
                writer.close()

    asyncio.run(main())


def test_of_aggregators_that_share_a_certificate_the_one_with_the_code_is_found(
    authority: Authority, tmp_path: Path
) -> None:
    async def main() -> None:
        async with listening(authority) as (_, other), listening(authority) as (code, address):
            assert (await paired_at(tmp_path / "data", code, other, address)).path.is_dir()

    asyncio.run(main())


def test_an_authority_that_cannot_be_written_is_named_and_uses_up_no_code(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with listening(authority) as (code, address):
            away = authority.path.rename(tmp_path / "away")
            with pytest.raises(CredentialsError, match=r"cannot write certificates .*the code stays valid"):
                await paired_at(tmp_path / "data", code, address)
            assert "no certificate for 127.0.0.1" in caplog.text
            away.rename(authority.path)
            await paired_at(tmp_path / "data", code, address)

    asyncio.run(main())


def test_a_new_code_that_cannot_be_written_ends_neither_pairing_nor_the_aggregator(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    shown: asyncio.Queue[PairingCode] = asyncio.Queue()
    failures = iter([None, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None])

    def show(code: PairingCode, address: str, lifetime_s: float) -> None:
        shown.put_nowait(code)
        if (failure := next(failures)) is not None:
            raise failure

    async def main() -> None:
        async with (
            asyncio.timeout(TIMEOUT_S),
            pairing_server_of(authority, show).attend("127.0.0.1:50051", lambda: None),
        ):
            await shown.get()
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGUSR1)
                await shown.get()

    with unannounced():
        asyncio.run(main())
    assert "no new code: [Errno 28]" in caplog.text


def test_the_private_file_of_a_code_is_removed_unless_another_aggregator_has_written_its_own(tmp_path: Path) -> None:
    file, newer = tmp_path / "pairing.code", PairingCode.new("cd" * 32)
    for code in (CODE, newer):
        _show(file, 1, code, "127.0.0.1:1", 1.0)
    _hide(file, CODE)
    assert file.read_text().strip() == newer.text()
    _hide(file, newer)
    _hide(file, newer)
    assert not file.exists()


def test_a_wrong_secret_is_refused_over_the_network_and_so_is_a_line_without_end(
    authority: Authority, tmp_path: Path
) -> None:
    async def main() -> None:
        async with listening(authority) as (code, address):
            wrong = PairingCode(code.pin, bytes(8))
            with pytest.raises(CredentialsError, match=f"{address} refuses: the code is wrong"):
                await paired_at(tmp_path / "data", wrong, address)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            host, _, port = address.rpartition(":")
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
            with contextlib.suppress(ConnectionError):
                writer.write(b"a" * 200_000)
                await writer.drain()
                assert await reader.read() == b""
            writer.close()
            await paired_at(tmp_path / "data", code, address)

    asyncio.run(main())


@pytest.mark.parametrize("end", [KeyboardInterrupt, CredentialsError])
def test_an_attempt_that_ends_in_the_middle_leaves_nothing(tmp_path: Path, end: Any) -> None:
    def candidates() -> Iterator[Found]:
        yield Found("gone", ("127.0.0.1:9",))
        raise end

    with pytest.raises(end):
        pair(tmp_path, "kitchen", CODE, candidates())
    assert not any(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_or_has_no_space_does_not_use_up_the_code(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    def candidates() -> Iterator[Found]:
        raise AssertionError
        yield

    with pytest.raises(DataError, match="cannot be written"):
        pair(tmp_path / "file" / "data", "kitchen", CODE, candidates())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # folders can be made, files of this size not
    try:
        with pytest.raises(DataError, match="cannot be written"):
            pair(tmp_path / "data", "kitchen", CODE, candidates())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list((tmp_path / "data").iterdir())


def test_credentials_that_cannot_be_used_are_named_with_the_way_out(authority: Authority, tmp_path: Path) -> None:
    async def main() -> None:
        async with listening(authority) as (code, address):
            await paired_at(tmp_path, code, address)

    asyncio.run(main())
    file = tmp_path / "paired" / "aggregator.json"
    file.write_text("{}")
    with pytest.raises(CredentialsError, match=r"aggregator.json.*remove .*paired and pair again"):
        paired(tmp_path)
    file.write_text(json.dumps({"aggregator": "127.0.0.1:1"}))
    (tmp_path / "paired" / "ca.pem").unlink()
    with pytest.raises(CredentialsError, match="pair again"):
        paired(tmp_path)


# The commands


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


# Finding the aggregator


def test_an_announcement_is_found_and_nothing_is_announced_without_one(authority: Authority, tmp_path: Path) -> None:
    pytest.importorskip("zeroconf")
    assert list(discovery.discovered(0.2)) == []

    async def main() -> None:
        async with listening(authority, announce=True) as (code, _):
            found = await asyncio.to_thread(pair, tmp_path, "kitchen", code, discovery.discovered())
            assert found.path.is_dir()

    asyncio.run(main())


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


def test_what_was_found_instead_is_listed_with_what_to_check(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(UnreachableError, match=r"same network.*UDP port 5353.*--pair-with HOST:PORT"):
        pair(tmp_path, "kitchen", CODE, [])
    with pytest.raises(UnreachableError, match=r"127.0.0.1:9 .*used, or expired.*firewall"):
        pair(tmp_path, "kitchen", CODE, [Found("a", ("127.0.0.1:9",))])

    async def main() -> None:
        async with listening(authority) as (_, one), listening(authority) as (_, two):
            found = [Found("attic", (one,)), Found("shed\x1b[2J", (two,))]
            with pytest.raises(CredentialsError) as caught:
                await asyncio.to_thread(pair, tmp_path, "kitchen", CODE, found)
            assert f"found: attic {one}, shed\\x1b[2J {two}. Nothing was sent." in str(caught.value)
            assert "--pair-with HOST:PORT" in str(caught.value)

    asyncio.run(main())


# The command of a device


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
    assert caplog.text == ""
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
