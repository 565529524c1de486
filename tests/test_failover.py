"""Clients of several aggregators: an aggregator that is killed, stopped or below its quorum costs no request."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import pytest

from nonn.aggregator.inventory import Node, write_inventory
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.client import Client
from nonn.client import failover as module
from nonn.client.order import FIRST_S, LEAST_S, Order
from nonn.errors import ConfigError, InputError, QuorumError, UnreachableError
from nonn.rpc.address import split_addresses
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request
from nonn.security.authority import Authority
from tests.agreement import check_against_offline_fusion
from tests.fleets import Running
from tests.serving import TIMEOUT_S, running_node
from tests.toys import toy_data

NUM_DEVICES = 2
SAMPLE = toy_data(200, seed=3)[0][:1]


class Pair:
    """Two aggregators of the same nodes."""

    def __init__(
        self, bundle: Bundle, inventory: Path, folder: Path, stack: contextlib.ExitStack, *options: str | Path
    ) -> None:
        self._arguments = ("nonn", "serve", bundle.path, "--inventory", inventory, *options)
        self._folder, self._stack = folder, stack
        self.processes = [self._start(i, 0) for i in range(2)]
        self.addresses = [process.ready["address"] for process in self.processes]

    @property
    def both(self) -> str:
        return ",".join(self.addresses)

    def _start(self, number: int, port: int) -> Running:
        running = Running(self._folder / f"aggregator-{number}.log", *self._arguments, "--port", port)
        self._stack.callback(running.close)
        return running

    def restart(self, number: int) -> None:
        self.processes[number] = self._start(number, int(self.addresses[number].rpartition(":")[2]))
        assert self.processes[number].ready["address"] == self.addresses[number]


@pytest.fixture(scope="module")
def pair(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("pair")
    with contextlib.ExitStack() as stack:
        nodes = [stack.enter_context(running_node(bundle.path, i))[1] for i in range(NUM_DEVICES)]
        inventory = folder / "nodes.toml"
        listed = [Node(id=f"n{i}", address=node["address"], student=i) for i, node in enumerate(nodes)]
        write_inventory(inventory, listed)
        yield Pair(bundle, inventory, folder, stack)


@contextlib.contextmanager
def asking(client: Client, threads: int = 4, mask: int = 0b11) -> Iterator[Callable[[int], None]]:
    """Clients that ask without a pause; yields a function that waits for so many more answers of each.

    Every answer must be complete, and none may fail.
    """
    counts, over, failures = [0] * threads, threading.Event(), list[BaseException]()
    answered = threading.Condition()

    def ask(number: int) -> None:
        try:
            while not over.is_set():
                assert client.infer(SAMPLE).mask == mask
                with answered:
                    counts[number] += 1
                    answered.notify_all()
        except BaseException as exc:
            with answered:
                failures.append(exc)
                answered.notify_all()

    def more(num: int) -> None:
        with answered:
            wanted = [count + num for count in counts]
            assert answered.wait_for(
                lambda: failures or all(c >= w for c, w in zip(counts, wanted, strict=True)), TIMEOUT_S
            )
            assert not failures, failures

    workers = [threading.Thread(target=ask, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    try:
        yield more
    finally:
        over.set()
        for worker in workers:
            worker.join()
    assert not failures, failures


# As docs/protocol.md shows it.
SERVICE = "inference.GRPCInferenceService"
SERVICE_CONFIG = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": SERVICE},
    "methodConfig": [
        {
            "name": [{"service": SERVICE}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
}


@contextlib.contextmanager
def plain_grpc(addresses: str) -> Iterator[Callable[[], Any]]:
    """A client with gRPC's own name resolution, health checks and retries; yields a function that asks once."""
    options = [("grpc.service_config", json.dumps(SERVICE_CONFIG))]
    with grpc.insecure_channel(f"ipv4:{addresses}", options=options) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        request = new_request("nonn", {"input": SAMPLE}, {})
        yield lambda: stub.ModelInfer(request, timeout=TIMEOUT_S, wait_for_ready=True)


def test_an_aggregator_that_is_killed_ended_or_stopped_under_load_costs_no_request(pair: Pair, bundle: Bundle) -> None:
    first, second = pair.addresses
    with Client(pair.both, TIMEOUT_S) as client, plain_grpc(pair.both) as other, asking(client) as more:
        more(10)
        assert client.aggregator == first
        assert other().outputs
        pair.processes[0].child.send_signal(signal.SIGSTOP)
        more(10)  # the first of them after a hedge; then the other aggregator is asked first
        assert client.aggregator == second
        pair.processes[0].child.send_signal(signal.SIGCONT)
        more(10)
        pair.processes[1].end(signal.SIGKILL)
        more(10)
        assert client.aggregator == first
        assert all(other().outputs for _ in range(4))
        pair.restart(1)
        pair.processes[0].end(signal.SIGTERM)
        more(10)
        assert client.aggregator == second
        assert all(other().outputs for _ in range(4))
        check_against_offline_fusion(bundle, client.infer(SAMPLE), slice(1))


def test_with_tls_an_aggregator_that_is_killed_under_load_costs_no_request(bundle: Bundle, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "certs")
    for role, name in (("node", "kitchen"), ("aggregator", "main"), ("client", "alice")):
        authority.issue(role, name)
    with contextlib.ExitStack() as stack:
        tls = ("--tls", str(authority.folder("node", "kitchen")))
        node = stack.enter_context(running_node(bundle.path, 0, *tls))[1]
        inventory = tmp_path / "nodes.toml"
        write_inventory(inventory, [Node(id="kitchen", address=node["address"], student=0)])
        pair = Pair(bundle, inventory, tmp_path, stack, "--tls", authority.folder("aggregator", "main"))
        client = stack.enter_context(Client(pair.both, TIMEOUT_S, tls=authority.folder("client", "alice")))
        with asking(client, mask=0b1) as more:
            more(10)
            failed = client.aggregator
            pair.processes[pair.addresses.index(failed)].end(signal.SIGKILL)
            more(10)
        assert {failed, client.aggregator} == set(pair.addresses)
        check_against_offline_fusion(bundle, client.infer(SAMPLE), slice(1))


def test_a_refused_request_is_not_repeated(pair: Pair) -> None:
    with Client(pair.both, TIMEOUT_S) as client:
        client.infer(SAMPLE)
        with pytest.raises(InputError, match=client.aggregator):
            client.infer(np.zeros((1, 1, 9, 9), np.uint8))


def test_commands_take_several_aggregators(pair: Pair, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "sample.npy", SAMPLE)
    assert main(["predict", pair.both, str(tmp_path / "sample.npy"), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 1
    assert main(["top", pair.both, "--once"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert any(f"at {address}, bundle" in shown for address in pair.addresses)


class FakeLink:
    """An aggregator whose replies a test decides; None is silence. If it lives, it answers checks."""

    def __init__(self, address: str, *outcomes: Any, lives: bool = False) -> None:
        self.address, self.outcomes, self.calls, self.cancelled, self._lives = address, list(outcomes), 0, 0, lives
        self.checks, self.done = 0, cast(Any, None)
        self.on_check: Callable[[], object] = lambda: None

    def start(self, method: str, request: Any, timeout_s: float, done: Any) -> Callable[[], object]:
        if method == "ServerLive":
            self.checks += 1
            if self._lives:
                done("alive", None)
            self.on_check()
            return lambda: None
        self.calls += 1
        self.done = done
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            done(None, outcome)
        elif outcome is not None:
            done(outcome, None)
        return self._cancel

    def _cancel(self) -> None:
        self.cancelled += 1


def call(*links: Any, timeout_s: float = TIMEOUT_S, failover: Any = None) -> Any:
    return (failover or module.Failover(links)).call("ModelInfer", b"", timeout_s, lambda reply, address: reply)


def test_a_silent_aggregator_that_answers_no_check_is_hedged_and_its_call_is_cancelled() -> None:
    silent, other = FakeLink("a"), FakeLink("b", "answer", "again")
    failover = module.Failover([silent, other])  # type: ignore[list-item]
    assert call(failover=failover) == "answer"
    assert (silent.calls, silent.checks, silent.cancelled, failover.first.address) == (1, 1, 1, "b")
    assert call(failover=failover) == "again"
    assert silent.calls == 1


def test_a_slow_aggregator_that_answers_checks_is_waited_for() -> None:
    slow, other = FakeLink("a", lives=True), FakeLink("b", "answer")
    slow.on_check = lambda: slow.done("late", None) if slow.checks == 3 else None
    assert call(slow, other) == "late"
    assert other.calls == 0


def test_an_aggregator_below_its_quorum_or_just_restarted_is_not_the_last_word() -> None:
    assert call(FakeLink("a", QuorumError("a: 0 of 2")), FakeLink("b", "answer")) == "answer"
    back = FakeLink("a", UnreachableError("a: does not answer"), "answer")
    assert call(back, FakeLink("b", UnreachableError("b: does not answer"))) == "answer"


def test_the_error_of_a_call_names_every_aggregator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AROUND_S", 0.0)
    with pytest.raises(UnreachableError, match="a: gone; b: gone"):
        call(FakeLink("a", UnreachableError("a: gone")), FakeLink("b", UnreachableError("b: gone")))
    with pytest.raises(QuorumError, match="a: gone; b: 0 of 2"):
        call(FakeLink("a", UnreachableError("a: gone")), FakeLink("b", QuorumError("b: 0 of 2")))
    with pytest.raises(UnreachableError, match="a: no answer in time; b: no answer in time"):
        call(FakeLink("a"), FakeLink("b"), timeout_s=2 * FIRST_S)


def test_patience_follows_the_checks_and_hedges_are_a_tenth_of_the_answers() -> None:
    order = Order(3, allowance=2)
    assert (order.links(), order.patience_s) == ([0, 1, 2], FIRST_S)
    order.checked(1e-3)
    assert order.patience_s == LEAST_S
    for _ in range(63):
        order.checked(0.2)
    assert order.patience_s == pytest.approx(0.3)
    assert [order.may_hedge() for _ in range(3)] == [True, True, False]
    for _ in range(10):
        order.answered(1)
    assert order.links() == [1, 2, 0]
    assert [order.may_hedge() for _ in range(2)] == [True, False]


def test_closing_a_client_ends_its_calls() -> None:
    """Nothing ever answers at these addresses, although they accept connections."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        client = Client(",".join(f"127.0.0.1:{server.getsockname()[1]}" for server in servers), 1000.0)
        pool = stack.enter_context(ThreadPoolExecutor(1))
        call = pool.submit(client.infer, SAMPLE)
        for server in servers:
            stack.enter_context(server.accept()[0])  # the second one is asked because the first answers no check
        client.close()
        with pytest.raises(UnreachableError):
            call.result(TIMEOUT_S)


def test_a_list_of_addresses_is_checked() -> None:
    assert split_addresses("a:1, b:2,a:1") == ("a:1", "b:2")
    for wrong in ("a:1,", "a:1,b", ""):
        with pytest.raises(ConfigError, match="is not host:port"):
            Client(wrong)
