"""What the monitor does beside the requests."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonn.aggregator.fanout import connect_insecure
from nonn.aggregator.inventory import Node
from nonn.aggregator.metadata import METADATA_BYTES, ask_metadata
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.server import FusedModel
from nonn.aggregator.service import Aggregator
from nonn.errors import InputError
from nonn.rpc.v1 import inference_pb2 as pb
from tests.fanout import PATIENT, Watcher, good_reply, student
from tests.observing import logged
from tests.serving import fake_node, serving, until_async
from tests.toys import toy_bundle


def test_what_goes_wrong_while_a_node_is_asked_about_itself_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle, asked = toy_bundle(tmp_path / "bundle", num_devices=1), asyncio.Event()

    class Broken:
        def unary_unary(self, *args: Any, **kwargs: Any) -> None:
            asked.set()
            raise RuntimeError("channel is closed")

    monitor = Monitor(bundle)
    monitor.attach(Aggregator(bundle, [Node(id="a", address="127.0.0.1:1", student=0)]))
    monitor._channels["a"] = Broken()

    async def scenario() -> None:
        async with monitor:
            await asked.wait()
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert "metadata of node a failed: channel is closed" in caplog.text


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"\x22\x00" * (METADATA_BYTES // 2 + 1), f"metadata of more than {METADATA_BYTES} bytes"),
        (None, "status OK without metadata"),
        (b"noise", "metadata that cannot be parsed"),
    ],
)
def test_bad_metadata_is_a_failure_of_its_node_and_one_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, sent: bytes | None, reason: str
) -> None:
    monkeypatch.setattr("nonn.aggregator.monitoring.monitor.VITALS_EVERY_S", 0.1)
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)

    async def behaviour(raw: Any, context: Any) -> Any:
        return good_reply(bundle, raw) if pb.ModelInferRequest.FromString(raw).inputs else sent

    async def scenario() -> list[Any]:
        monitor, watcher = Monitor(bundle), Watcher()
        async with fake_node(behaviour) as address:
            nodes, connect = [Node(id="a", address=address, student=0)], monitor.remembering(connect_insecure)
            aggregator = Aggregator(bundle, nodes, PATIENT, observers=[watcher], connect=connect)
            async with aggregator, monitor:
                monitor.attach(aggregator)
                await until_async(lambda: len(watcher.states) >= 4)  # two of these replies, and probes between them
        return watcher.states

    states = asyncio.run(scenario())
    assert [(event.after, event.reason) for event in states if event.before == "up"][:2] == [("suspect", reason)] * 2
    assert not any(record.exc_info for record in logged(caplog))
    assert caplog.text.count(f"node 'a': {reason}") == 1


def test_large_metadata_over_the_stream_of_a_node_that_dials_out_is_not_parsed() -> None:
    class Stream:
        def unary_unary(self, method: str) -> Any:
            async def call(request: bytes, **options: Any) -> bytes:
                return b"\x22\x00" * METADATA_BYTES

            return call

    with pytest.raises(InputError, match=f"metadata of more than {METADATA_BYTES} bytes"):
        asyncio.run(ask_metadata(Stream(), "student-0", 1.0))


def test_no_batch_is_larger_than_a_node_says_that_it_accepts(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    batch = np.zeros((8, 1, 8, 8), np.uint8)

    async def scenario() -> None:
        monitor = Monitor(bundle)
        async with serving(student(bundle, 0, max_batch=3)) as address:
            nodes = [Node(id="a", address=address, student=0)]
            model = FusedModel(Aggregator(bundle, nodes, PATIENT, connect=monitor.remembering(connect_insecure)))
            async with model, monitor:
                monitor.attach(model._aggregator)
                await until_async(lambda: model._aggregator.policy.max_batch(16) == 3)
                answer = await model._batcher.infer(batch)  # in three pieces, otherwise the node would refuse it
                assert answer.logits.shape == (8, 10)

    asyncio.run(scenario())


def test_no_batch_is_larger_than_the_measured_pace_of_the_slowest_node_allows(tmp_path: Path) -> None:
    bundle, sizes = toy_bundle(tmp_path / "bundle", num_devices=1), list[int]()

    async def counts(raw: Any, context: Any) -> Any:
        sizes.append(pb.ModelInferRequest.FromString(raw).inputs[0].shape[0])
        return good_reply(bundle, raw)

    async def scenario() -> None:
        async with fake_node(counts) as address:
            model = FusedModel(Aggregator(bundle, [Node(id="a", address=address, student=0)], PATIENT))
            async with model:
                model._batcher._limit.size = 8
                pace = model._aggregator.policy.nodes["a"].pace
                for num_samples in (1, 2):
                    pace.add(num_samples, num_samples * PATIENT.patience_s / 2)
                await model._batcher.infer(np.zeros((8, 1, 8, 8), np.uint8))
        # A probe; as many samples as the node takes within its patience; the rest, since it was much faster than that.
        assert sizes == [1, 2, 6]
        assert pace._mean_n == pytest.approx((1 + 2 + 2 + 6) / 4, rel=0.1)

    asyncio.run(scenario())


def test_what_a_node_states_about_itself_is_shown_as_one_printable_line(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    nasty = "1\n\x1b[2J" + "x" * 1_000

    async def behaviour(raw: Any, context: Any) -> Any:
        if pb.ModelInferRequest.FromString(raw).inputs:
            return good_reply(bundle, raw)
        return pb.ModelMetadataResponse(name="student-0", properties={"nonn_version": nasty}).SerializeToString()

    async def scenario() -> None:
        monitor = Monitor(bundle)
        async with fake_node(behaviour) as address:
            nodes = [Node(id="a", address=address, student=0)]
            aggregator = Aggregator(bundle, nodes, PATIENT, connect=monitor.remembering(connect_insecure))
            async with aggregator, monitor:
                monitor.attach(aggregator)
                await until_async(lambda: bool(monitor.state().nodes[0].version))
                shown = monitor.state().nodes[0].version or ""
        assert shown.isprintable()
        assert shown.startswith("1\\n\\x1b[2Jxxx")
        assert len(shown) < 100

    asyncio.run(scenario())
