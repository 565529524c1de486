from __future__ import annotations

import argparse
import itertools
import json
import time
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nonn_sim import live
from nonn_sim.batches import quantile_interval, ratio_interval
from nonn_sim.commands import run as run_command
from nonn_sim.comparison import MOST_DRIFT, difference, total_variation
from nonn_sim.faults import FaultEvent, read_log
from nonn_sim.live import check_live, timeline
from nonn_sim.proxy import Proxies, _Frames
from nonn_sim.samples import noise, samples_of
from nonn_sim.scenario import LinkConfig
from nonn_sim.scenario_file import load_scenario, parse_scenario

from nonn.bundle import Bundle
from nonn.errors import ConfigError, DataError, InputError, NonnError, UnreachableError
from nonn.rpc.wire import Array
from tests.serving import TIMEOUT_S, running_node
from tests.toys import toy_bundle, toy_data

EXAMPLES = Path(__file__).parent.parent / "examples"
NUM_DEVICES = 4
ATTEMPTS = 2
# Faults end between two probes, so that chance does not decide which probe finds the device.
SCENARIO = """
[scenario]
name = "live"
seed = 3
duration_s = 5

[load]
rate_per_s = 80
batch = 20

[policy]
deadline_s = 0.4

[link]
latency_s = 0.001

[[fault]]
at_s = 0.3
kind = "partition"
nodes = [0]
for_s = 1.6

[[fault]]
at_s = 0.6
kind = "corrupt"
nodes = [2]
for_s = 1.6

[[fault]]
at_s = 2.8
kind = "stop"
nodes = [1]
for_s = 1.1

[[fault]]
at_s = 3.4
kind = "delay"
nodes = [0]
for_s = 0.6
delay_s = 0.05

[[fault]]
at_s = 4.4
kind = "kill"
nodes = [3]
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("live") / "bundle", num_devices=NUM_DEVICES)


def parse(text: str) -> Any:
    return parse_scenario(tomllib.loads(text), source="s.toml")


def command(*options: object) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    return parser.parse_args([str(option) for option in options])


@pytest.mark.alone
@pytest.mark.slow
def test_the_devices_of_a_real_cluster_answer_as_often_as_the_simulator_says(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 5 seconds. The p99, which needs thousands of requests, is for ``nonn-sim run --live`` to compare."""
    monkeypatch.setattr(live, "CALIBRATION_REQUESTS", 120)
    scenario, inputs, log = tmp_path / "live.toml", tmp_path / "test.npz", tmp_path / "log.csv"
    scenario.write_text(SCENARIO)
    samples, labels = toy_data(200, seed=3)
    np.savez(inputs, inputs=samples, labels=labels)
    options = ("--bundle", bundle.path, "--live", "--inputs", inputs, "--record", log, "--json")
    # Where the machine turns busy between calibration and run, both are of different machines: it may try again.
    for _ in range(ATTEMPTS):
        assert run_command.run(command(scenario, *options)) == 0
        result = json.loads(capsys.readouterr().out)
        measured, simulated, found = result["measured"], result["simulated"], result["difference"]
        agree = max(abs(found["accuracy_points"]), abs(found["sets_points"])) <= 0.5 and found["sets_beyond"] <= 0.05
        if agree and not measured["lost"]:
            break
    else:
        drift = result["calibration"]["drift"]
        if measured["disturbed"] or not 1 / MOST_DRIFT <= drift <= MOST_DRIFT:
            pytest.skip(f"nothing can be compared on a machine that changes so much: {result['calibration']}")
    assert result["problems"] == []
    assert measured["lost"] == simulated["lost"] == 0
    assert measured["requests"] == simulated["requests"] > 350
    assert 0.5 < measured["degraded"] < 1
    assert agree, found
    assert sum(measured["sets"].values()) == pytest.approx(1)
    happened = [(event.node, event.event) for event in read_log(log)]
    assert happened == [(event.node, event.event) for event in timeline(load_scenario(scenario), NUM_DEVICES)]


def test_an_interval_of_a_quantile_holds_it_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(400):
        interval = quantile_interval(rng.exponential(size=1000), 0.99)
        assert interval is not None
        low, high = interval
        hits += low <= -np.log(0.01) <= high
    assert 370 <= hits <= 399  # 380 and more: ranks are whole numbers, so it holds a little more often
    assert quantile_interval(rng.exponential(size=200), 0.99) is None


def test_an_interval_of_a_quantile_respects_windows_of_requests_that_are_slow_together() -> None:
    # Windows of 100 requests are all slow or all fast: 0.8 exp(-q) + 0.2 exp(-q / 3) = 0.01 at q = 9.0.
    rng, truth, hits, independent = np.random.default_rng(1), 8.99, 0, 0
    assert 0.8 * np.exp(-truth) + 0.2 * np.exp(-truth / 3) == pytest.approx(0.01, rel=0.01)
    for _ in range(200):
        values = rng.exponential(np.where(rng.random(60) < 0.2, 3, 1).repeat(100))
        interval, shuffled = quantile_interval(values, 0.99), quantile_interval(rng.permutation(values), 0.99)
        assert interval is not None
        assert shuffled is not None
        hits += interval[0] <= truth <= interval[1]
        independent += shuffled[0] <= truth <= shuffled[1]
    assert hits >= 180
    assert independent < hits


def test_an_interval_of_a_single_run_holds_the_long_run_share_of_correlated_requests() -> None:
    # Up and down for 50 and 25 requests on average: a share of 2 / 3 in the long run.
    rng, hits, independent = np.random.default_rng(0), 0, 0
    for _ in range(150):
        lengths = rng.geometric(np.tile([1 / 50, 1 / 25], 200))
        answered = np.repeat(np.tile([1.0, 0.0], 200), lengths)[:10_000]
        correlated, shuffled = (ratio_interval(a, np.ones(len(a))) for a in (answered, rng.permutation(answered)))
        assert correlated is not None
        assert shuffled is not None
        hits += correlated[0] <= 2 / 3 <= correlated[1]
        independent += shuffled[0] <= 2 / 3 <= shuffled[1]
    assert 134 <= hits <= 150  # 142 expected
    assert independent < 110
    # A ratio: accuracy 0.5 and 1 in turn, of the answers only.
    values, weights = np.tile([0.5, 0.0, 1.0, 0.0], 50), np.tile([1.0, 0.0, 1.0, 0.0], 50)
    assert ratio_interval(values, weights) == pytest.approx((0.75, 0.75), abs=0.1)
    assert ratio_interval(values[:19], weights[:19]) is None
    assert ratio_interval(values, np.zeros(200)) is None


def test_subsets_that_answer_at_other_times_differ_however_equal_their_accuracy() -> None:
    assert total_variation({3: 0.5, 1: 0.5}, {3: 0.5, 2: 0.25, 1: 0.25}) == pytest.approx(0.25)
    assert total_variation({1: 1.0}, {2: 1.0}) == 1
    simulated = {"accuracy": 0.9, "accuracy_of_sets": 0.9, "latency_s": {"p99": 0.1}, "sets_spread": 0.02}
    measured = {"accuracy": 0.9, "accuracy_of_sets": 0.9, "latency_s": {"p99": 0.1}, "p99_interval_s": (0.09, 0.11)}
    measured["sets"] = {15: 0.8, 7: 0.2}
    for share, within in ((0.24, True), (0.3, False)):
        found = difference({**simulated, "sets": {15: 1 - share, 11: share - 0.2, 7: 0.2}}, measured, drift=1.0)
        assert found["sets_variation"] == pytest.approx(share - 0.2)
        assert found["within"] is within


def test_a_run_outlives_a_fault_that_fails_and_a_node_that_stays_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Cluster:
        def states(self) -> list[int]:
            return [0]

        def kill(self, node: int) -> None:
            raise UnreachableError(f"node {node} is no more")

        stop = resume = restart = kill

    class Proxies:
        def change(self, node: int, what: Any) -> None:
            return None

    class Load:
        def send(self, times_s: list[float]) -> list[float]:
            time.sleep(0.2)
            return times_s

    class Client:
        def metadata(self) -> Any:
            return argparse.Namespace(nodes=[{"id": "node-0", "state": "out"}])

    scenario = parse('[scenario]\nname = "s"\nduration_s = 1')
    events = [FaultEvent(0.0, 0, "kill")]
    cluster: Any = Cluster()
    proxies: Any = Proxies()
    load: Any = Load()
    client: Any = Client()
    happened, measured, problems = live._drive(scenario, cluster, proxies, load, events)
    assert (happened, problems) == ([], ["kill of node 0 at 0 s failed: node 0 is no more"])
    assert measured
    monkeypatch.setattr(live, "SETTLE_S", 0.0)
    again = live._calibrated_again(scenario, cluster, proxies, load, client, [], problems)
    assert again.shape == (0, 2)
    assert problems[1] == "no calibration after the run: without a fault node-0 did not come back in 0 s"


@pytest.mark.parametrize(
    ("p99", "interval", "conclusive", "within"),
    [
        (0.11, (0.09, 0.12), True, True),
        (0.135, (0.09, 0.12), True, True),
        (0.140, (0.09, 0.12), True, False),
        (0.075, (0.09, 0.12), True, False),
        (0.11, (0.05, 0.20), False, False),
        (0.11, None, False, False),
    ],
)
def test_a_comparison_is_judged_by_the_interval_and_a_wide_one_decides_nothing(
    p99: Any, interval: Any, conclusive: Any, within: Any
) -> None:
    sets = {"sets": {15: 1.0}}
    simulated = {"accuracy": 0.9, "accuracy_of_sets": 0.9, "latency_s": {"p99": p99}, "sets_spread": 0.0, **sets}
    measured = {
        "accuracy": 0.902,
        "accuracy_of_sets": 0.9,
        "latency_s": {"p99": 0.1},
        "p99_interval_s": interval,
        **sets,
    }
    result = difference(simulated, measured, drift=1.1)
    assert (result["conclusive"], result["within"]) == (conclusive, within)
    assert not difference(simulated, {**measured, "accuracy": 0.91}, drift=1.1)["within"]
    for drift, happened in ((2.0, True), (None, True), (1.0, False)):
        assert not difference(simulated, measured, drift, conclusive=happened)["conclusive"]


def ask(address: str, shape: tuple[int, ...]) -> Array:
    """One inference at a node, as any client of the protocol makes it; returns its features."""
    import grpc

    from nonn.rpc.v1 import inference_pb2_grpc
    from nonn.rpc.wire import CHANNEL_OPTIONS, new_request, read_tensors

    with grpc.insecure_channel(address, options=CHANNEL_OPTIONS) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        reply = stub.ModelInfer(
            new_request("student-0", {"input": np.ones((1, *shape), np.uint8)}, {}), timeout=TIMEOUT_S
        )
        return read_tensors(reply.outputs, reply.raw_output_contents)["features"]


def test_a_proxy_carries_delays_spoils_and_cuts(bundle: Bundle) -> None:
    import grpc

    shape = bundle.manifest.input.shape
    with running_node(bundle.path, 0) as (_, ready), Proxies([ready["address"]], [LinkConfig()]) as proxies:
        [address] = proxies.addresses
        honest = ask(ready["address"], shape)
        np.testing.assert_array_equal(ask(address, shape), honest)

        proxies.change(0, lambda proxy: setattr(proxy, "delay_s", 0.2))
        start = time.monotonic()
        np.testing.assert_array_equal(ask(address, shape), honest)
        assert time.monotonic() - start >= 0.4  # the greeting of the connection is a reply too
        proxies.change(0, lambda proxy: setattr(proxy, "delay_s", 0.0))

        proxies.change(0, lambda proxy: setattr(proxy, "corrupt", True))
        with pytest.raises((grpc.RpcError, NonnError, KeyError)):
            ask(address, shape)
        proxies.change(0, lambda proxy: setattr(proxy, "corrupt", False))
        np.testing.assert_array_equal(ask(address, shape), honest)

        proxies.change(0, lambda proxy: proxy.partition(True))
        with pytest.raises(grpc.RpcError) as caught:
            ask(address, shape)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        proxies.change(0, lambda proxy: proxy.partition(False))
        np.testing.assert_array_equal(ask(address, shape), honest)


@given(
    st.lists(st.tuples(st.sampled_from([0, 1, 4, 6]), st.binary(max_size=40)), max_size=8),
    st.lists(st.integers(1, 30), min_size=1),
    st.booleans(),
)
def test_only_messages_are_spoilt_however_the_bytes_arrive(frames: Any, sizes: Any, spoil: Any) -> None:
    def stream(invert: bool) -> bytes:
        parts = []
        for kind, body in frames:
            spoilt = bytes(255 - byte for byte in body[5:]) if invert and kind == 0 else body[5:]
            parts.append(len(body).to_bytes(3) + bytes([kind, 0, 0, 0, 0, 1]) + body[:5] + spoilt)
        return b"".join(parts)

    sent, carried, carrier = stream(False), b"", _Frames()
    for size in itertools.cycle(sizes):
        if not sent:
            break
        carried += carrier.carry(sent[:size], spoil)
        sent = sent[size:]
    assert carried == stream(spoil)


def test_a_proxy_is_as_slow_as_its_link(bundle: Bundle) -> None:
    link = LinkConfig(latency_s=0.05, bandwidth_bytes_per_s=1e5)
    shape = bundle.manifest.input.shape
    with running_node(bundle.path, 0) as (_, ready), Proxies([ready["address"]], [link]) as proxies:
        start = time.monotonic()
        ask(proxies.addresses[0], shape)
        assert time.monotonic() - start >= 3 * 0.05  # the greeting, the request and the reply


def test_behind_a_proxy_a_node_that_is_gone_refuses(bundle: Bundle) -> None:
    import grpc

    shape = bundle.manifest.input.shape
    with running_node(bundle.path, 0) as (child, ready), Proxies([ready["address"]], [LinkConfig()]) as proxies:
        child.kill()
        child.wait()
        with pytest.raises(grpc.RpcError) as caught:
            ask(proxies.addresses[0], shape)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[nodes]\nbattery_j = 5", "device 0 has battery_j"),
        ("[link]\np_loss = 0.1", "the link of device 0 loses exchanges"),
        ("[fleet]\ncells = 2", "fleet.cells = 2: one cell runs live"),
        ("[fleet]\nreplicas = 2", "fleet.replicas = 2: a live run has one device a student"),
        ("[aggregator]\nmtbf_s = 2\nmttr_s = 1", "aggregator.mtbf_s: the aggregator of a live run does not fail"),
        (
            '[[group]]\nname = "air"\nnodes = [0]\nbandwidth_bytes_per_s = 1e6',
            "group 'air': bandwidth_bytes_per_s: a live run has no access point",
        ),
    ],
)
def test_what_a_real_cluster_cannot_do_is_an_error_before_it_starts(text: str, message: Any) -> None:
    scenario = parse('[scenario]\nname = "s"\nduration_s = 10\n' + text)
    with pytest.raises(ConfigError) as caught:
        check_live(scenario, 4)
    assert message in str(caught.value)


def test_a_live_run_needs_a_duration() -> None:
    with pytest.raises(ConfigError, match=r"a live run needs scenario\.duration_s"):
        check_live(parse('[scenario]\nname = "s"\nrequests = 10'), 4)


def test_churn_becomes_a_timeline_of_stops_that_is_the_seeds() -> None:
    scenario = parse('[scenario]\nname = "s"\nduration_s = 100\n[nodes]\nmtbf_s = 20\nmttr_s = 5\nrestart_s = 3')
    events = timeline(scenario, 4)
    assert events == timeline(scenario, 4)
    assert {event.event for event in events} == {"stop", "resume"}
    assert [event.time_s for event in events] == sorted(event.time_s for event in events)
    assert events[-1].time_s < 100


def test_inputs_that_do_not_fit_are_errors_that_name_the_file(bundle: Bundle, tmp_path: Path) -> None:
    inputs, labels = toy_data(5, seed=0)
    file = tmp_path / "inputs.npz"
    with pytest.raises(DataError, match=r"inputs\.npz: no such file"):
        samples_of(file, bundle)
    np.savez(file, inputs=inputs)
    with pytest.raises(DataError, match="arrays 'inputs' and 'labels'"):
        samples_of(file, bundle)
    np.savez(file, inputs=inputs[:, :, :4], labels=labels)
    with pytest.raises(InputError, match=r"the bundle accepts uint8 \[n, 1, 8, 8\]"):
        samples_of(file, bundle)
    np.savez(file, inputs=inputs, labels=labels[:3])
    with pytest.raises(InputError, match=r"labels int64 \[3\] for 5 inputs"):
        samples_of(file, bundle)
    split = samples_of(EXAMPLES / "digits.toml", bundle)
    assert split.labels is not None
    assert split.inputs.shape == (len(split.labels), 1, 8, 8)
    made = noise(bundle)
    assert made.labels is None
    assert made.inputs.shape[1:] == bundle.manifest.input.shape
