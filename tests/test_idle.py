"""What is shown without requests: nodes that die are noticed, and nothing is claimed of nodes never heard of."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from nonn.aggregator import probing
from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.monitoring.drift import DriftConfig
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import QuorumError
from nonn.rpc.v1 import inference_pb2 as pb
from tests.fanout import Watcher, good_reply, student
from tests.observing import fetch, metric, metrics, state
from tests.serving import TIMEOUT_S, fake_node, logged, run_here, running_node, serving, until, until_async

NUM_DEVICES = 4
SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)


@pytest.mark.slow
def test_nodes_that_die_and_come_back_are_noticed_without_a_request(bundle: Bundle) -> None:
    with LocalCluster(bundle.path, http_port=0) as cluster:
        http = cluster.http_address
        assert http is not None
        until(lambda: metric(http, "nonn_nodes_up") == NUM_DEVICES)
        for i in range(NUM_DEVICES):
            cluster.kill(i)
        until(lambda: metric(http, "nonn_nodes_up") == metric(http, "nonn_students_up") == 0)
        shown = state(http)
        assert (shown["ready"], shown["students_up"]) == (False, 0)
        assert shown["accuracy"]["now"] == float(bundle.table.accuracy[0])
        status, body, _ = fetch(f"{http}/readyz")
        assert (status, body) == (503, "below the quorum of 1: 0 of 4 students are up\n")
        cluster.restart(2)
        until(lambda: fetch(f"{http}/readyz")[1] == "ready: 1 of 4 students are up\n")
        assert shown["requests"]["total"] == state(http)["requests"]["total"] == 0


def test_an_idle_node_is_asked_and_a_busy_one_is_not(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "IDLE_S", 0.1)
    now, asked = 0.0, {"idle": 0, "busy": 0}

    def counted(name: str) -> Any:
        async def behaviour(raw: Any, context: Any) -> Any:
            asked[name] += 1
            return good_reply(bundle, raw)

        return behaviour

    async def scenario() -> None:
        nonlocal now
        async with fake_node(counted("idle")) as idle, fake_node(counted("busy")) as busy:
            nodes, config = [Node(id="idle", address=idle, student=0)], PolicyConfig(deadline_s=TIMEOUT_S)
            async with Aggregator(bundle, nodes, config, clock=lambda: now) as aggregator:
                now = 0.06
                await aggregator.add_node(Node(id="busy", address=busy, student=1))
                now = 0.11
                await until_async(lambda: asked["idle"] == 2)
                # Both are looked at together; a probe that had begun would be under way or counted.
                assert not aggregator.policy.nodes["busy"].breaker.probing
                assert asked["busy"] == 1
                await until_async(lambda: aggregator.heard_s("idle") == 0)
                await aggregator.infer(SAMPLE)
                assert asked == {"idle": 3, "busy": 2}

    asyncio.run(scenario())


def test_the_probe_of_a_node_that_failed_is_as_large_as_requests_usually_are(bundle: Bundle) -> None:
    asked, failing = list[int](), False

    async def behaviour(raw: Any, context: Any) -> Any:
        asked.append(pb.ModelInferRequest.FromString(raw).inputs[0].shape[0])
        if failing:
            await context.abort(grpc.StatusCode.INTERNAL, "it fails")
        return good_reply(bundle, raw)

    async def scenario() -> None:
        nonlocal failing
        async with fake_node(behaviour) as address:
            nodes, config = [Node(id="a", address=address, student=0)], PolicyConfig(deadline_s=TIMEOUT_S)
            async with Aggregator(bundle, nodes, config) as aggregator:
                for _ in range(3):
                    await aggregator.infer(SAMPLE.repeat(5, axis=0))
                failing = True
                with pytest.raises(QuorumError):
                    await aggregator.infer(SAMPLE.repeat(5, axis=0))
                failing = False
                await until_async(lambda: aggregator.policy.state("a") == "up")
        assert asked == [1, 5, 5, 5, 5, *asked[5:]]
        assert set(asked[5:]) == {5}

    asyncio.run(scenario())


def test_a_node_that_has_never_answered_is_unknown_and_not_up(bundle: Bundle) -> None:
    async def scenario() -> None:
        gate, watcher = asyncio.Event(), Watcher()

        async def slow(raw: Any, context: Any) -> Any:
            await gate.wait()
            return good_reply(bundle, raw)

        monitor = Monitor(bundle, DriftConfig())
        config = PolicyConfig(deadline_s=TIMEOUT_S)
        async with (
            fake_node(slow) as address,
            serving(student(bundle, 0)) as other,
            Aggregator(bundle, [], config, observers=[watcher, monitor]) as aggregator,
        ):
            monitor.attach(aggregator)
            joining = asyncio.create_task(aggregator.add_node(Node(id="a", address=address, student=1)))
            await until_async(lambda: "a" in aggregator.policy.nodes)
            shown = monitor.state()
            assert (shown.nodes[0].state, shown.nodes[0].heard_s, shown.students_up) == ("unknown", None, 0)
            assert (shown.ready, monitor.readiness()) == (
                False,
                (False, "below the quorum of 1: 0 of 4 students are up"),
            )
            assert shown.accuracy.now == float(bundle.table.accuracy[0])
            await aggregator.add_node(Node(id="b", address=other, student=0))
            assert aggregator.ready
            assert aggregator.students_up == 1
            gate.set()
            await joining
            assert aggregator.students_up == 2
            heard = monitor.state().nodes[0].heard_s
            assert heard is not None
            assert heard >= 0
        changes = [(event.before, event.after) for event in watcher.states if event.node == "a"]
        assert changes == [("", "unknown"), ("unknown", "up")]

    asyncio.run(scenario())


def test_an_unknown_node_is_asked_by_requests(bundle: Bundle) -> None:
    """Otherwise a request right after a join would be degraded for no reason."""

    async def scenario() -> None:
        asked = 0

        async def second(raw: Any, context: Any) -> Any:
            nonlocal asked
            asked += 1
            if asked == 1:
                await asyncio.Event().wait()  # the probe hangs
            return good_reply(bundle, raw)

        config = PolicyConfig(deadline_s=TIMEOUT_S)
        async with fake_node(second) as address, Aggregator(bundle, [], config) as aggregator:
            joining = asyncio.create_task(aggregator.add_node(Node(id="a", address=address, student=1)))
            await until_async(lambda: asked == 1)
            answer = await aggregator.infer(SAMPLE)
            assert (answer.mask, aggregator.policy.state("a")) == (0b10, "up")
            joining.cancel()

    asyncio.run(scenario())


def test_what_is_counted_are_students_and_an_accuracy_that_nobody_got_is_absent(bundle: Bundle, tmp_path: Path) -> None:
    inventory = tmp_path / "nodes.toml"
    with running_node(bundle.path, 0) as (_, first), running_node(bundle.path, 0) as (_, second):
        addresses = [node["address"] for node in (first, second)]
        write_inventory(inventory, [Node(id=f"n{i}", address=a, student=0) for i, a in enumerate(addresses)])
        options = ("--inventory", inventory, "--http-port", "0")
        with logged("nonn", "serve", bundle.path, *options, log=tmp_path / "log") as (ready, _):
            http = ready["http"]
            until(lambda: metric(http, "nonn_nodes_up") == 2)
            assert metric(http, "nonn_students_up") == 1
            assert not any(name == "nonn_expected_accuracy" for name, _ in metrics(http))
            shown = state(http)
            assert (shown["students_up"], shown["devices"]) == (1, NUM_DEVICES)
            assert fetch(f"{http}/readyz")[1] == "ready: 1 of 4 students are up\n"
            top = run_here(main, "top", ready["address"], "--once").stdout
            assert "with 1 of 4 students on 2 of 2 nodes" in " ".join(top.split())
            with Client(ready["address"], TIMEOUT_S) as client:
                answer = client.infer(SAMPLE)
            until(lambda: metric(http, "nonn_expected_accuracy") == answer.expected_accuracy)
