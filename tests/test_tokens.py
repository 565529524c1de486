"""Tokens: calls without the right one, tokens that would be sent in plain text, and guesses that are slowed down."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import CredentialsError, NonnError, OverloadError, PlainTextError
from nonn.rpc.brake import Brake
from nonn.rpc.guard import Guard, Tokens
from tests.serving import logged, run, until

NUM_DEVICES = 2
SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)
TOKEN = "a-token-of-enough-characters"


@pytest.fixture
def guarded(bundle: Bundle, kitchen_in_plain_text: Any, tmp_path: Path) -> Iterator[Any]:
    """The address, the log and the tokens of an aggregator that takes one token."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    write_inventory(tmp_path / "nodes.toml", [Node(id="a", address=kitchen_in_plain_text, student=0)])
    arguments: list[str | Path] = ["nonn", "serve", bundle.path, "--inventory", tmp_path / "nodes.toml"]
    with logged(*arguments, "--token-file", tokens, log=tmp_path / "log") as (ready, log):
        yield ready["address"], log, tokens


@pytest.fixture(scope="module")
def kitchen_in_plain_text(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    log = tmp_path_factory.mktemp("plain") / "log"
    with logged("nonn_device", "serve", bundle.path, "--student", 0, log=log) as (ready, _):
        yield ready["address"]


def test_a_client_without_the_token_is_refused_and_no_token_is_logged(guarded: Any, tmp_path: Path) -> None:
    address, log, tokens = guarded
    wrong = tmp_path / "wrong"
    wrong.write_text(TOKEN[:-1] + "x")
    for file, text in ((None, "the call has no token"), (wrong, "a token that this server does not accept")):
        with Client(address, token_file=file) as client, pytest.raises(CredentialsError, match=text):
            client.infer(SAMPLE)
    with Client(address, token_file=tokens) as client:
        assert client.infer(SAMPLE).mask == 0b01
    until(lambda: "the call has no token" in log.read_text())
    assert TOKEN[:-1] not in log.read_text()


def test_health_tells_nothing_and_needs_no_token(guarded: Any) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(guarded[0]) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        until(lambda: health.Check(health_pb2.HealthCheckRequest()).status == health_pb2.HealthCheckResponse.SERVING)


def test_the_token_can_be_changed_while_the_aggregator_serves(guarded: Any, tmp_path: Path) -> None:
    address, _, tokens = guarded
    old = shutil.copy(tokens, tmp_path / "old")
    tokens.write_text("another-token-of-enough-characters")
    with Client(address, token_file=tokens) as client, Client(address, token_file=Path(old)) as late:
        until(lambda: works(client))
        assert not works(late)


BEYOND = "192.0.2.1:50051"  # RFC 5737: nobody has it


def test_a_client_sends_no_token_beyond_loopback_in_plain_text(guarded: Any) -> None:
    address, _, tokens = guarded
    refused = "refusing to send the token of .* beyond loopback in plain text"
    with pytest.raises(PlainTextError, match=refused):
        Client(BEYOND, token_file=tokens)
    Client(BEYOND, token_file=tokens, insecure=True).close()
    Client(BEYOND).close()
    for local in (address, address.replace("127.0.0.1", "localhost"), "[::1]:5"):
        Client(local, token_file=tokens).close()


@pytest.mark.parametrize(
    "command",
    [
        ("nonn", "predict", BEYOND, "image.png", "--token-file", "TOKENS"),
        ("nonn", "top", BEYOND, "--json", "--token-file", "TOKENS"),
        ("nonn", "doctor", "--device", "--link", BEYOND, "--token-file", "TOKENS"),
        ("nonn_device", "join", BEYOND, "--id", "a", "--data", "DATA", "--join-token-file", "TOKENS"),
    ],
)
def test_no_command_sends_a_token_beyond_loopback_in_plain_text(tmp_path: Path, command: tuple[str, ...]) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    ended = run(*(text.replace("TOKENS", str(tokens)).replace("DATA", str(tmp_path / "d")) for text in command))
    assert ended.returncode == 2
    assert "in plain text, where anyone on the network path can read it; use --tls" in ended.stderr
    assert "--insecure" in run(*command[:2], "--help").stdout


def test_wrong_tokens_slow_down_their_address_and_no_proven_connection() -> None:
    now, slept = 0.0, list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    async def scenario() -> None:
        nonlocal now
        brake, good, bad = Brake(lambda: now, sleep), "ipv4:10.0.0.1:1", "ipv4:10.0.0.1:2"
        brake.passed(good)
        for _ in range(8):
            await brake.wait(bad)
            brake.failed(bad)
        assert slept == [0.1, 0.2, 0.4, 0.8, 1.0]
        await brake.wait(good)
        await brake.wait("ipv4:10.0.0.2:1")
        assert len(slept) == 5
        brake.failed(good)  # it is like any other now
        await brake.wait(good)
        assert slept[-1] == 1.0
        now = 61.0
        await brake.wait(bad)
        assert len(slept) == 6

    asyncio.run(scenario())


def test_few_wrong_tokens_wait_at_once_and_few_addresses_are_remembered() -> None:
    async def scenario() -> None:
        gate = asyncio.Event()

        async def sleep(seconds: float) -> None:
            await gate.wait()

        brake = Brake(sleep=sleep)
        for i in range(3000):
            brake.failed(f"ipv4:10.0.{i // 256}.{i % 256}:1")
            brake.passed(f"ipv4:10.1.0.1:{i}")
            brake.passed(f"ipv4:10.1.0.2:{i}")
        assert (len(brake._records), len(brake._proven)) == (1024, 4096)
        for _ in range(9):
            brake.failed("ipv4:10.9.9.9:1")
        waiting = [asyncio.create_task(brake.wait("ipv4:10.9.9.9:1")) for _ in range(64)]
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="too many calls with wrong tokens"):
            await brake.wait("ipv4:10.9.9.9:2")
        gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_the_server_slows_down_wrong_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        waited = list[str]()

        class Watched(Brake):
            async def wait(self, peer: str) -> None:
                waited.append(peer)

        monkeypatch.setattr("nonn.rpc.guard.Brake", Watched)
        tokens = tmp_path / "some"
        tokens.write_text(TOKEN)
        guard = Guard(None, {}, {"S": Tokens(tokens)})
        await guard._check_token("S", f"Bearer {TOKEN}", "ipv4:10.0.0.1:1")
        for wrong in ("wrong", "\udcff"):  # a byte of a header that is not UTF-8 is such a surrogate
            with pytest.raises(CredentialsError, match="does not accept"):
                await guard._check_token("S", f"Bearer {wrong}", "ipv4:10.0.0.1:1")
        with pytest.raises(CredentialsError, match="no token"):
            await guard._check_token("S", "", "ipv4:10.0.0.1:1")
        await guard._check_token("S", f"Bearer {TOKEN}", "ipv4:10.0.0.1:2")
        assert len(waited) == 4
        assert guard._brake._records["10.0.0.1"].wrong == 2
        assert list(guard._brake._proven) == ["ipv4:10.0.0.1:2"]  # the other one has shown wrong tokens since

    asyncio.run(scenario())


def test_a_token_file_that_cannot_be_used_is_refused_before_a_call(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_text("short")
    with pytest.raises(CredentialsError, match="16 or more ASCII characters"):
        Client("127.0.0.1:1", token_file=short)
    with pytest.raises(CredentialsError, match="nowhere: cannot be read"):
        Client("127.0.0.1:1", token_file=tmp_path / "nowhere")


def works(client: Any) -> Any:
    try:
        return client.infer(SAMPLE).mask == 0b01
    except NonnError:
        return False
