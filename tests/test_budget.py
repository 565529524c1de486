"""Memory of requests: a budget of bytes before they are parsed, and what is given back after large ones."""

from __future__ import annotations

import asyncio
import contextlib
from argparse import Namespace
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
from grpc import aio
from nonn_device.commands.serve import endpoint_of
from nonn_device.runtime import memory_left

from benchmarks import memory, storm
from nonn.aggregator.inventory import Node, write_inventory
from nonn.cli import main
from nonn.errors import ConfigError, OverloadError
from nonn.rpc.budget import LARGE_BYTES, MAX_HELD_BYTES, TRIM_AFTER_BYTES, TRIMS, ByteBudget
from nonn.rpc.endpoint import Endpoint, InferenceResult
from nonn.rpc.inference import InferenceServicer
from nonn.rpc.outline import MAX_PARSED_BYTES
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request, request_limit
from tests.serving import TIMEOUT_S, until, until_async
from tests.toys import toy_bundle
from tests.units import AGGREGATOR, limits_of, memory_max_mb

BIG = np.zeros((1, 400_000), np.uint8)


def test_a_budget_counts_bytes_under_way_and_always_has_room_for_the_largest_request() -> None:
    budget = ByteBudget(100, largest=150)
    budget.take(150)
    with pytest.raises(OverloadError, match="over the budget"):
        budget.take(1)
    budget.give(150)
    budget.take(100)
    budget.take(50)


class _AtOnce(ThreadPoolExecutor):
    """Runs a call where it is submitted, so that none waits in a queue when the test counts them."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future = Future[Any]()
        future.set_result(fn(*args, **kwargs))
        return future


def test_freed_memory_is_returned_while_large_messages_are_under_way_and_some_times_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trims = list[int]()
    monkeypatch.setattr("nonn.rpc.budget._malloc_trim", lambda: trims.append)
    monkeypatch.setattr("nonn.rpc.budget.TRIM_DELAY_S", 0.0)

    async def scenario() -> None:
        asyncio.get_running_loop().set_default_executor(_AtOnce())
        budget, small, large = ByteBudget(1 << 30, 1), LARGE_BYTES - 1, TRIM_AFTER_BYTES
        for num_bytes in (*[small] * 100, large - 1):
            budget.take(num_bytes)
            budget.give(num_bytes)
        assert not budget._timer
        budget.take(large)
        await until_async(lambda: len(trims) > 2 * TRIMS)
        budget.give(large)
        before = len(trims)
        await until_async(lambda: not budget._timer)
        assert len(trims) - before == TRIMS

    asyncio.run(scenario())


@contextlib.asynccontextmanager
async def served(model: Any, max_held_bytes: int) -> AsyncIterator[Any]:
    """A stub for a model with a budget."""
    server = aio.server()
    InferenceServicer(Endpoint(model, max_held_bytes)).add_to(server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
    await server.stop(None)


def test_a_request_above_the_budget_is_refused_before_it_is_parsed_and_later_ones_are_answered() -> None:
    async def scenario() -> Any:
        gate, parsed = asyncio.Event(), list[int]()

        async def infer(request: Any, remaining_s: Any) -> Any:
            parsed.append(len(request.tensors()["input"]))
            await gate.wait()
            return InferenceResult({"output": np.zeros((1, 1), np.float32)})

        model = SimpleNamespace(name="m", version="1", max_request_bytes=500_000, infer=infer)
        async with served(model, 700_000) as stub:
            first = asyncio.ensure_future(stub.ModelInfer(new_request("m", {"input": BIG}, {})))
            await until_async(lambda: parsed)
            with pytest.raises(aio.AioRpcError) as caught:
                await stub.ModelInfer(new_request("m", {"input": BIG}, {}), timeout=TIMEOUT_S)
            small = asyncio.ensure_future(stub.ModelInfer(new_request("m", {"input": BIG[:, :9]}, {})))
            await until_async(lambda: len(parsed) == 2)
            gate.set()
            await first
            await small
            await stub.ModelInfer(new_request("m", {"input": BIG}, {}), timeout=TIMEOUT_S)
            return caught.value, len(parsed)

    error, num_parsed = asyncio.run(scenario())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "over the budget of 1 MB" in error.details()
    assert num_parsed == 3


@pytest.mark.slow
def test_with_the_limits_of_its_unit_an_aggregator_stays_below_the_memory_of_the_unit(tmp_path: Any) -> None:
    bundle, limits = toy_bundle(tmp_path / "bundle", 2, shape=memory.SHAPE), limits_of(AGGREGATOR)
    with storm.site(bundle, 10.0, seed=0, options=limits) as site:
        num_samples = memory.largest(limits)
        figures = memory.large_requests(site, concurrency=memory.CLIENTS, num_samples=num_samples, settle_s=0.0)
    assert figures["memory_failed"] == 0, figures["memory_failures"]
    assert figures["memory_aggregator_peak_mb"] <= memory_max_mb(AGGREGATOR)


@pytest.mark.slow
def test_requests_that_are_expensive_to_parse_are_refused_and_cost_others_no_request(tmp_path: Any) -> None:
    bundle = toy_bundle(tmp_path / "bundle", 2, shape=memory.SHAPE)
    with storm.site(bundle, 10.0, seed=0) as site:
        figures = memory.expensive_requests(site, concurrency=2, seconds=0.5)
    assert figures["expensive_codes"] == ["INVALID_ARGUMENT"]
    assert min(figures["expensive_requests"].values()) > 0
    assert (figures["expensive_others_failed"], figures["expensive_others_wrong"]) == (0, 0)
    assert figures["expensive_peak_mb"] <= memory_max_mb(AGGREGATOR)


def test_the_largest_request_has_one_sample_at_least() -> None:
    assert request_limit((3, 32, 32), 1000, 3_000_000) == 3_000_000 + MAX_PARSED_BYTES
    assert request_limit((3, 32, 32), 10, 3_000_000) == 4 * 10 * 3072 + MAX_PARSED_BYTES
    assert request_limit((3, 1000, 1000), 1000, 3_000_000) == 12_000_000 + MAX_PARSED_BYTES


@pytest.mark.slow
def test_memory_of_large_requests_is_given_back(tmp_path: Any) -> None:
    bundle = toy_bundle(tmp_path / "bundle", 2, shape=memory.SHAPE)
    with storm.site(bundle, 10.0, seed=0, options=["--max-queue", "100000"]) as site:
        figures = memory.large_requests(site, concurrency=8, num_samples=1000, settle_s=0.0)
        process = psutil.Process(site.pid)
        until(lambda: process.memory_info().rss / 1e6 < figures["memory_aggregator_before_mb"] + 60)
    assert figures["memory_aggregator_peak_mb"] > figures["memory_aggregator_before_mb"] + 60
    assert figures["memory_node_peak_mb"] < 160  # 446, when a request went to the nodes as a whole


def test_the_budget_of_an_aggregator_is_that_of_its_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(model: Any, max_held_bytes: int, **options: Any) -> None:
        raise ConfigError(f"a budget of {max_held_bytes} bytes")

    for place in ("nonn.rpc.endpoint", "nonn.fleet.bundles"):
        monkeypatch.setattr(f"{place}.Endpoint", made)
    bundle, inventory, token = toy_bundle(tmp_path / "bundle", 1), tmp_path / "nodes.toml", tmp_path / "token"
    write_inventory(inventory, [Node(id="a", address="127.0.0.1:1", student=0)])
    token.write_text("a-token-for-those-who-join")
    fleet = ["--joins", "--join-token-file", str(token), "--state", str(tmp_path / "s")]
    for options in (["--inventory", str(inventory)], fleet):
        assert main(["serve", str(bundle.path), *options, "--max-queue-mb", "3"]) == 3
        assert "a budget of 3000000 bytes" in capsys.readouterr().err


def test_half_of_the_memory_that_a_node_has_left_is_for_requests_that_wait() -> None:
    model: Any = SimpleNamespace(max_request_bytes=10)
    memory_mb = psutil.Process().memory_info().rss // 1_000_000 + 500  # the other tests have left the process large
    without, limited = (endpoint_of(Namespace(memory=memory), model).budget._most for memory in (None, memory_mb))
    assert without == MAX_HELD_BYTES
    assert limited == pytest.approx(memory_left(memory_mb) / 2, rel=0.1)
