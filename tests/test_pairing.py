"""Devices without a certificate that get one with a code, and what a network full of attackers can do about it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nonn_device import discovery
from nonn_device.pair import Found, pair, paired

from nonn.aggregator.membership import pairing_server
from nonn.errors import CredentialsError, DataError, UnreachableError
from nonn.security.authority import Authority
from nonn.security.pairing import PairingCode
from nonn.security.tls import Identity, TlsFolder
from tests.pairing import (
    CODE,
    fleet,
    in_the_middle,
    listening,
    paired_at,
    pairing_server_of,
    pretending,
    relaying,
    unannounced,
)
from tests.serving import TIMEOUT_S

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


# Finding the aggregator


def test_an_announcement_is_found_and_nothing_is_announced_without_one(authority: Authority, tmp_path: Path) -> None:
    pytest.importorskip("zeroconf")
    assert list(discovery.discovered(0.2)) == []

    async def main() -> None:
        async with listening(authority, announce=True) as (code, _):
            found = await asyncio.to_thread(pair, tmp_path, "kitchen", code, discovery.discovered())
            assert found.path.is_dir()

    asyncio.run(main())


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
