"""The same scenario on a real cluster: simulation compared with measurement.

Nodes are processes of this machine (``LocalCluster``): ``kill`` and ``stop`` are signals. A proxy between the
aggregator and each node (``nonn_sim.proxy``) imitates its link and the faults of the network. Clients send their
requests at the same times as in the simulation, since both draw them from the same seed.

The speed of the machine is measured on the same cluster, before the first fault and after the last, since a shared
machine changes: under the scenario's load and without a fault, the time of whole fan-outs, and the time that a node
takes to start. The simulation then samples these measurements instead of the scenario's service and link times. So the
comparison tests the simulation of *failures*: the nodes that the policy uses, waits for and leaves out, and the
frequency of each subset that answers.

A fault that cannot be applied, or a node that does not come back after the run, ends neither the run nor its result:
both are stated in ``problems``, and the comparison is then inconclusive.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.file import write_policy
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.errors import ConfigError, NonnError, UnreachableError
from nonn_sim.clients import LoadGenerator, MeasuredRequest, RequestSamples
from nonn_sim.comparison import SIMULATED_SEEDS, calibrate, difference, measured_figures, simulated_figures
from nonn_sim.faults import FaultEvent, World
from nonn_sim.links import arrivals
from nonn_sim.metrics import percentiles
from nonn_sim.proxy import Proxies, Proxy
from nonn_sim.scenario import Scenario

__all__ = ["RequestSamples", "check_live", "run_live", "timeline"]

CALIBRATION_REQUESTS = 250  # before the faults, and again after them
WARM_UP_SKIPPED = 30  # while connections open and caches fill
FloatArray = NDArray[np.float64]
SETTLE_S = 15.0  # time for every node to be up again before the clock starts


def check_live(scenario: Scenario, num_devices: int) -> None:
    """Checks that a real cluster on this machine can run the scenario.

    Raises:
        ConfigError: it cannot; the message names the option.
    """
    source = scenario.source
    for device, node in enumerate(scenario.devices(num_devices)):
        if node.battery_j:
            raise ConfigError(f"{source}: device {device} has battery_j; processes of this machine have no battery")
        if node.link.p_loss or node.link.good_s:
            raise ConfigError(f"{source}: the link of device {device} loses exchanges; TCP would repeat them")
    for group in scenario.groups:
        if group.bandwidth_bytes_per_s:
            raise ConfigError(f"{source}: group '{group.name}': bandwidth_bytes_per_s: a live run has no access point")
    if scenario.load.retries:
        raise ConfigError(f"{source}: load.retries: the clients of a live run send each request once")
    if scenario.aggregator.mtbf_s:
        raise ConfigError(f"{source}: aggregator.mtbf_s: the aggregator of a live run does not fail")
    if scenario.fleet.replicas > 1:
        raise ConfigError(f"{source}: fleet.replicas = {scenario.fleet.replicas}: a live run has one device a student")
    if scenario.fleet.cells > 1:
        raise ConfigError(f"{source}: fleet.cells = {scenario.fleet.cells}: one cell runs live")
    if not scenario.scenario.duration_s:
        raise ConfigError(f"{source}: a live run needs scenario.duration_s")


def timeline(scenario: Scenario, num_devices: int) -> list[FaultEvent]:
    """All events of the scenario's schedule and churn for a live cluster.

    A device that is off becomes a stopped process: both are silent. A restart is recorded when it begins.
    """
    quick = {i: dataclasses.replace(node, restart_s=0.0) for i, node in enumerate(scenario.devices(num_devices))}
    world = World(
        dataclasses.replace(scenario, overrides=quick), num_devices, scenario.scenario.seed, lambda *change: None
    )
    world.env.run(until=scenario.scenario.duration_s)
    names = {"off": "stop", "on": "resume"}
    return [dataclasses.replace(event, event=names.get(event.event, event.event)) for event in world.log]


def run_live(
    scenario: Scenario, bundle: Bundle, samples: RequestSamples, say: Callable[[str], None] = lambda line: None
) -> tuple[dict[str, Any], list[FaultEvent]]:
    """Runs the scenario on a real cluster and in the simulator.

    Args:
        scenario: a scenario checked by ``check_live``.
        bundle: the artifact.
        samples: samples of the requests, with the bundle's input shape.
        say: called with progress messages.

    Returns:
        ``simulated``, ``measured``, ``calibration``, ``difference``, ``problems`` and the faults at their actual times.
        ``measured.disturbed`` counts requests that took longer than the calibrated cluster can explain.

    Raises:
        ConfigError: the scenario cannot run live.
        UnreachableError: a process did not start.
    """
    check_live(scenario, bundle.num_devices)
    events = timeline(scenario, bundle.num_devices)
    links = [node.link for node in scenario.devices(bundle.num_devices)]
    with ExitStack() as stack:
        say(f"starting {bundle.num_devices} nodes and an aggregator")
        cluster = stack.enter_context(LocalCluster(bundle.path))
        addresses = [state.address for state in cluster.states()]
        proxies = stack.enter_context(Proxies(addresses, links, scenario.scenario.seed))
        address = stack.enter_context(_aggregator(bundle, proxies.addresses, scenario.policy))
        client = stack.enter_context(Client(address, scenario.load.timeout_s))
        load = LoadGenerator(scenario, client, samples)
        say(f"calibration: {CALIBRATION_REQUESTS} requests without a fault, and one node restarted")
        before_s = _calibrated(scenario, load, client, 1)
        restarts = any(event.event == "restart" for event in events)
        restart_s = _time_restart(cluster) if restarts else 0.0
        _wait_until_up(client)
        say(f"live: {scenario.scenario.duration_s:g} s, {len(events)} faults and their ends")
        happened, measured, problems = _drive(scenario, cluster, proxies, load, events)
        say(f"calibration: all faults ended, {CALIBRATION_REQUESTS} requests again")
        after_s = _calibrated_again(scenario, cluster, proxies, load, client, events, problems)
        measured_s = np.concatenate([before_s, after_s])
    say(f"the same in virtual time, {SIMULATED_SEEDS} times")
    late = {"restart": restart_s}
    shifted = [dataclasses.replace(event, time_s=event.time_s + late.get(event.event, 0.0)) for event in events]
    simulated = simulated_figures(scenario, bundle, shifted, measured_s, samples)
    figures = measured_figures(measured, bundle, samples.labels is not None)
    # No request takes longer than the deadline and the largest remaining time in the calibration, unless the machine is
    # busier.
    longest_s = scenario.policy.deadline_s + float(measured_s[:, 1].max())
    figures["disturbed"] = sum(row.latency_s > longest_s for row in measured)
    drift = float(np.median(after_s.sum(axis=1)) / np.median(before_s.sum(axis=1))) if len(after_s) else None
    result = {
        "schema": 1,
        "scenario": scenario.scenario.name,
        "bundle": bundle.hash,
        "simulated": simulated,
        "measured": figures,
        "calibration": {
            "requests": len(measured_s),
            "latency_s": percentiles(measured_s.sum(axis=1)),
            "drift": drift,
            "fanout_s": percentiles(measured_s[:, 0]),
            "restart_s": restart_s,
        },
        "difference": difference(simulated, figures, drift, conclusive=not problems),
        "problems": problems,
    }
    return result, happened


def _drive(
    scenario: Scenario, cluster: LocalCluster, proxies: Proxies, load: LoadGenerator, events: Sequence[FaultEvent]
) -> tuple[list[FaultEvent], list[MeasuredRequest], list[str]]:
    """Runs load and faults concurrently; returns the actual faults, every request, and faults that failed."""
    run, happened, failures = scenario.scenario, list[FaultEvent](), list[str]()
    start, over = time.monotonic(), threading.Event()

    def inject(event: FaultEvent) -> None:
        try:
            _inject(cluster, proxies, event)
            happened.append(dataclasses.replace(event, time_s=time.monotonic() - start))
        except NonnError as exc:
            failures.append(f"{event.event} of node {event.node} at {event.time_s:.3g} s failed: {exc}")

    def injure() -> None:
        # A restart waits until the node is ready; the next fault must not wait for it.
        with ThreadPoolExecutor(len(cluster.states()), thread_name_prefix="restart") as restarts:
            for event in events:
                if over.wait(max(0.0, start + event.time_s - time.monotonic())):
                    return
                if event.event == "restart":
                    restarts.submit(inject, event)
                else:
                    inject(event)

    injury = threading.Thread(target=injure, name="faults")
    injury.start()
    try:
        if scenario.load.arrivals == "closed":
            measured = load.send_for(run.duration_s)
        else:
            measured = load.send(list(takewhile(lambda at: at < run.duration_s, arrivals(scenario.load, run.seed))))
    finally:
        over.set()
        injury.join()
    return happened, measured, failures


def _inject(cluster: LocalCluster, proxies: Proxies, event: FaultEvent) -> None:
    """Applies one fault to the cluster."""
    signals = {"kill": cluster.kill, "stop": cluster.stop, "resume": cluster.resume, "restart": cluster.restart}
    if event.event in signals:
        signals[event.event](event.node)
    elif event.event in ("partition", "reconnect"):
        proxies.change(event.node, lambda proxy: proxy.partition(event.event == "partition"))
    elif event.event in ("corrupt", "clean"):
        proxies.change(event.node, lambda proxy: setattr(proxy, "corrupt", event.event == "corrupt"))
    else:
        proxies.change(event.node, lambda proxy: setattr(proxy, "delay_s", event.value))


@contextmanager
def _aggregator(bundle: Bundle, addresses: Sequence[str], policy: PolicyConfig) -> Iterator[str]:
    """An aggregator process whose nodes are the proxies; yields its address."""
    with tempfile.TemporaryDirectory(prefix="nonn-live-") as folder:
        inventory, log = Path(folder) / "nodes.toml", Path(folder) / "aggregator.log"
        nodes = [Node(id=f"node-{i}", address=address, student=i) for i, address in enumerate(addresses)]
        write_inventory(inventory, nodes)
        write_policy(Path(folder) / "policy.toml", policy)
        options = ["--policy", str(Path(folder) / "policy.toml")]
        command = [sys.executable, "-m", "nonn", "serve", str(bundle.path), "--inventory", str(inventory), *options]
        with log.open("wb") as errors:
            process = subprocess.Popen(
                [*command, "--watch-stdin"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )
        with process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                if not line:
                    raise UnreachableError(f"the aggregator ended at start: {log.read_text(errors='replace')[-2000:]}")
                yield str(json.loads(line)["address"])
            finally:
                process.terminate()


def _calibrated(scenario: Scenario, load: LoadGenerator, client: Client, offset: int) -> FloatArray:
    """Fan-out and overhead of requests without a fault, at separate times [R, 2]."""
    times_s = islice(arrivals(scenario.load, scenario.scenario.seed + offset), CALIBRATION_REQUESTS)
    return calibrate(load.send(list(times_s))[WARM_UP_SKIPPED:], client, scenario.policy.deadline_s)


def _calibrated_again(
    scenario: Scenario,
    cluster: LocalCluster,
    proxies: Proxies,
    load: LoadGenerator,
    client: Client,
    events: Sequence[FaultEvent],
    problems: list[str],
) -> FloatArray:
    """The second calibration [R, 2]; empty if the cluster does not recover, which is added to the problems.

    The run is over and its measurements stand.
    """
    try:
        _mend(cluster, proxies, events)
        _wait_until_up(client)
        return _calibrated(scenario, load, client, 2)
    except NonnError as exc:
        problems.append(f"no calibration after the run: {exc}")
        return np.empty((0, 2))


def _mend(cluster: LocalCluster, proxies: Proxies, events: Sequence[FaultEvent]) -> None:
    """Ends the remaining faults when the clock stops."""
    last = {event.node: event.event for event in events if event.event in ("kill", "restart", "stop", "resume")}
    for node in range(len(cluster.states())):
        proxies.change(node, _heal)
        if last.get(node) == "kill":
            cluster.restart(node)
        elif last.get(node) == "stop":
            cluster.resume(node)


def _heal(proxy: Proxy) -> None:
    """Makes a proxy forward everything unchanged."""
    proxy.partition(False)
    proxy.silence(False)
    proxy.corrupt, proxy.delay_s = False, 0.0


def _time_restart(cluster: LocalCluster) -> float:
    """Time from the start of a node until it is ready, in seconds."""
    cluster.kill(0)
    start = time.monotonic()
    cluster.restart(0)
    return time.monotonic() - start


def _wait_until_up(client: Client) -> None:
    """Waits until the aggregator has connected to every node.

    Raises:
        UnreachableError: a node is still missing.
    """
    until = time.monotonic() + SETTLE_S
    while missing := [node["id"] for node in client.metadata().nodes if node["state"] != "up"]:
        if time.monotonic() > until:
            raise UnreachableError(f"without a fault {', '.join(missing)} did not come back in {SETTLE_S:g} s")
        time.sleep(0.05)
