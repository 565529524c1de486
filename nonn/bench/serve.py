"""Measures complete answers and a bare gRPC fan-out of the same bytes in one run.

As in a fleet, each part is a separate process, here on loopback: N device nodes, an aggregator over them, two more
over the same nodes, one without batching and one without the test for liars; N bare echo servers and a bare front
(``floor``). Students do nothing (``bundle``), so only serving is measured. One client calls the systems in turn,
request by request, with the same bytes and the same call, so that other load of the machine affects all alike; the
order changes from round to round.

For throughput many clients, each with a separate connection, send as fast as they get answers: to the batching
aggregator for a while, then to the other, and so on.
"""

from __future__ import annotations

import contextlib
import http.client
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.file import write_policy
from nonn.bench.bundle import SHAPE, idle_bundle
from nonn.bench.processes import TIMEOUT_S, aggregator, asking, check_complete, clients, node_request, process, rate
from nonn.bundle import Bundle
from nonn.errors import ConfigError, NonnError
from nonn.fusion import LinearHead
from nonn.reliability.subsets import mask_of
from nonn.rpc.loop import run as run_loop
from nonn.rpc.wire import new_request
from nonn.toml import check
from nonn.toml.constraints import Count, Positive

__all__ = ["Figures", "Load", "bench_serve"]

Figures = dict[str, float]

WARM_UP = 100


@dataclass(frozen=True, kw_only=True)
class Load:
    """Size of the measurement.

    Raises:
        ConfigError: a value is invalid; the message names it.
    """

    num_devices: Annotated[Count, "device nodes"] = 8
    requests: Annotated[Count, "requests to each system, in turn"] = 2000
    clients: Annotated[Count, "concurrent clients, for throughput"] = 64
    rounds: Annotated[Count, "throughput rounds"] = 5
    round_s: Annotated[Positive, "time of each aggregator in a round"] = 2.0
    ray: Annotated[
        Path | None, "interpreter of an environment with ray[serve] and onnxruntime; None leaves Ray Serve out"
    ] = None

    def __post_init__(self) -> None:
        check(self)
        if self.ray is not None and not self.ray.exists():
            raise ConfigError(
                f"{self.ray}: interpreter not found; make bench-ray creates an environment with Ray Serve"
            )


def bench_serve(folder: Path, load: Load, say: Callable[[str], None] = lambda text: None) -> Figures:
    """Measures all systems.

    Args:
        folder: folder for the bundle, the inventory and logs.
        load: size of the measurement.
        say: called with lines of progress.

    Returns:
        Milliseconds, ratios and requests per second; names contain the unit.

    Raises:
        ConfigError: a process refused to start; the message ends with its log.
        NonnError: an answer is not from all devices, which would make the comparison unfair.
    """
    bundle = idle_bundle(folder / "bundle", load.num_devices)
    sample = np.random.default_rng(0).integers(0, 256, (1, *SHAPE), np.uint8)
    request = new_request("nonn", {"input": sample}, {}).SerializeToString()
    with contextlib.ExitStack() as stack:
        say(f"starting {2 * load.num_devices + 4} processes")
        addresses = [
            stack.enter_context(
                process(folder, f"node-{i}", "nonn_device", "serve", bundle.path, "--student", i, "--watch-stdin")
            ).address
            for i in range(load.num_devices)
        ]
        batched = stack.enter_context(aggregator(folder, bundle, addresses, "batching")).address
        unbatched = stack.enter_context(aggregator(folder, bundle, addresses, "unbatched", "--max-batch", 1)).address
        policy = folder / "untested-policy.toml"
        write_policy(policy, PolicyConfig(exclusion_rate=0.0))
        untested = stack.enter_context(aggregator(folder, bundle, addresses, "untested", "--policy", policy)).address
        ask = stack.enter_context(asking(batched, request))
        to_node = len(node_request(bundle, sample))
        reply, node_reply = ask(), stack.enter_context(asking(addresses[0], node_request(bundle, sample)))()
        check_complete(reply, load.num_devices)
        echoes = [
            stack.enter_context(process(folder, f"echo-{i}", "nonn.bench.floor", len(node_reply))).address
            for i in range(load.num_devices)
        ]
        front = stack.enter_context(process(folder, "front", "nonn.bench.floor", len(reply), to_node, *echoes)).address
        systems: dict[str, Callable[[], bytes]] = {
            "floor": stack.enter_context(asking(front, request)),
            "nonn": ask,
            "untested": stack.enter_context(asking(untested, request)),
        }
        if load.ray is not None:
            say("starting Ray Serve")
            systems["ray"] = stack.enter_context(_ray(folder, bundle, load.ray, sample))
        say(f"{load.requests} requests to each system, in turn")
        times = _in_turn(systems, load.requests)
        check_complete(ask(), load.num_devices)
        say(f"{load.clients} concurrent clients")
        rates = run_loop(_throughput({"batched": batched, "unbatched": unbatched}, request, load))
    return _figures(times, rates, len(request), len(reply), to_node, len(node_reply))


def _figures(times: dict[str, list[float]], rates: dict[str, list[float]], *sizes: int) -> Figures:
    """Percentiles and ratios of the times and rates."""
    figures: Figures = {}
    for name, seconds in times.items():
        for q in (50, 99):
            figures[f"serve_{name}_p{q}_ms"] = 1e3 * float(np.percentile(seconds, q))
    figures["serve_test_p50_ratio"] = figures["serve_nonn_p50_ms"] / figures["serve_untested_p50_ms"]
    for q in (50, 99):
        figures[f"serve_p{q}_ratio"] = figures[f"serve_nonn_p{q}_ms"] / figures[f"serve_floor_p{q}_ms"]
    if "ray" in times:
        figures["serve_ray_p50_ratio"] = figures["serve_ray_p50_ms"] / figures["serve_nonn_p50_ms"]
    for name, per_s in rates.items():
        figures[f"serve_{name}_per_s"] = statistics.median(per_s)
    figures["serve_batched_speedup"] = statistics.median(
        fast / slow for fast, slow in zip(rates["batched"], rates["unbatched"], strict=True)
    )
    names = ("request", "answer", "node_request", "node_answer")
    return figures | {f"serve_{name}_bytes": size for name, size in zip(names, sizes, strict=True)}


def _in_turn(systems: dict[str, Callable[[], bytes]], requests: int) -> dict[str, list[float]]:
    """Seconds of each request to each system."""
    times: dict[str, list[float]] = {name: [] for name in systems}
    names = list(systems)
    for index in range(-WARM_UP, requests):
        names = names[1:] + names[:1]
        for name in names:
            start = time.perf_counter()
            systems[name]()
            if index >= 0:
                times[name].append(time.perf_counter() - start)
    return times


async def _throughput(addresses: dict[str, str], request: bytes, load: Load) -> dict[str, list[float]]:
    """Answers per second of each aggregator, one number for each round."""
    rates: dict[str, list[float]] = {name: [] for name in addresses}
    async with contextlib.AsyncExitStack() as stack:
        calls = {
            name: await stack.enter_async_context(clients(address, load.clients)) for name, address in addresses.items()
        }
        for index in range(-1, load.rounds):  # the first is a warm-up
            for name in addresses:
                per_s = await rate(calls[name], request, load.round_s)
                if index >= 0:
                    rates[name].append(per_s)
    return rates


@contextlib.contextmanager
def _ray(folder: Path, bundle: Bundle, python: Path, sample: np.ndarray[Any, Any]) -> Iterator[Callable[[], bytes]]:
    """The same students composed in Ray Serve, called over HTTP, its native interface."""
    if not isinstance(bundle.head, LinearHead):
        raise NonnError(f"{bundle.path}: the comparison needs a linear fusion head, not '{bundle.head.kind}'")
    weights, bias = bundle.head.weights(mask_of(range(bundle.num_devices)))
    np.savez(folder / "head.npz", weights=weights, bias=bias)
    students = [bundle.student_path(i) for i in range(bundle.num_devices)]
    script = Path(__file__).with_name("ray_app.py")
    with process(folder, "ray", script, folder / "head.npz", *students, python=python) as server:
        connection, body = http.client.HTTPConnection(server.address, timeout=TIMEOUT_S), sample.tobytes()

        def ask() -> bytes:
            connection.request("POST", "/", body)
            response = connection.getresponse()
            answer = response.read()
            if response.status != 200:
                raise NonnError(f"Ray Serve answers {response.status}: {answer[:200]!r}")
            return answer

        yield ask
        connection.close()
