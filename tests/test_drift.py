"""The drift alarm: names a bad node soon, a healthy one never, over sets of nodes, faults and seeds."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nonn.aggregator.events import RequestEvent
from nonn.aggregator.inventory import Node, write_inventory
from nonn.aggregator.monitoring.drift import REMEMBERED, SECONDS_A_DAY, Baseline, DriftConfig, DriftWatch
from nonn.aggregator.monitoring.metrics import Metrics
from nonn.aggregator.monitoring.monitor import Monitor
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.reply import Reply
from nonn.aggregator.service import Aggregator
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle, load_bundle, write_bundle
from nonn.cli import main
from nonn.client import Client
from nonn.errors import BundleError, ConfigError
from tests.observing import metric, state
from tests.serving import TIMEOUT_S, process, run_here, until_async
from tests.toys import WIDTH, toy_bundle, toy_data

NUM_DEVICES = 8
# Alone these are right in 40 % and more; the others tell too little for a short test.
STRONG = (1, 4, 5, 6, 7)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("drift") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def baseline(bundle: Bundle) -> Any:
    return Baseline.of(bundle)


@pytest.fixture(scope="module")
def live() -> Any:
    """Features of each device over inputs that the baseline has not seen, and their classes."""
    rng = np.random.default_rng(1)
    weights = [rng.normal(0, 0.01, (64, WIDTH)).astype(np.float32) for _ in range(NUM_DEVICES)]
    inputs, labels = toy_data(5000, seed=99)
    flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    return [np.maximum(flat @ weight, 0) for weight in weights], labels


def sample(features: Any, row: Any, **bad: Any) -> Any:
    """What every node sends for one input; ``node_3=features`` replaces a node's."""
    everyone = {f"node-{i}": (i, f[row]) for i, f in enumerate(features)}
    return everyone | {name.replace("_", "-"): (everyone[name.replace("_", "-")][0], f) for name, f in bad.items()}


def first_notice(watch: Any, features: Any, rows: Any, spoil: Any) -> Any:
    """The first thing that people are told, and the number of samples before."""
    for count, row in enumerate(rows):
        for notice in watch.observe(sample(features, row, **spoil(row))):
            return notice, count
    return None, len(rows)


FAULTS: dict[str, Callable[[Any, int, int], Any]] = {
    "stuck": lambda f, node, row: f[node][0],
    "zeros": lambda f, node, row: np.zeros(WIDTH, np.float32),
    "huge": lambda f, node, row: 1000 * f[node][0],
    "another student's weights": lambda f, node, row: f[(node + 1) % NUM_DEVICES][row],
    "another input": lambda f, node, row: f[node][(7 * row + 1) % len(f[node])],
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("node", STRONG)
def test_a_bad_node_is_named_within_600_samples_and_nobody_else_is(
    bundle: Bundle, baseline: Any, live: Any, node: Any, fault: Any
) -> None:
    features = live[0]
    notice, count = first_notice(
        DriftWatch(bundle, baseline),
        features,
        range(1, 1000),
        lambda row: {f"node_{node}": FAULTS[fault](features, node, row)},
    )
    assert notice is not None
    assert (notice.kind, notice.node) == ("alarm", f"node-{node}")
    assert count < 600
    assert "% as built" in notice.reason


def test_a_wandering_sensor_is_named(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, rng = live[0], np.random.default_rng(0)

    def spoil(row: Any) -> Any:
        wander = rng.normal(0, row / 300 * features[7].std(), WIDTH)
        return {"node_7": features[7][row] + wander.astype(np.float32)}

    notice, _ = first_notice(DriftWatch(bundle, baseline), features, range(3000), spoil)
    assert notice is not None
    assert (notice.kind, notice.node) == ("alarm", "node-7")


@pytest.mark.parametrize("seed", range(2))
def test_a_healthy_cluster_alarms_no_more_often_than_promised(
    bundle: Bundle, baseline: Any, live: Any, seed: Any
) -> None:
    features, num = live[0], 1500
    rows = np.random.default_rng(seed).permutation(len(features[0]))[:num]
    # The default promises one in three years; this one false alarm in 300 samples, so that there is something to count.
    loose = DriftConfig(false_alarms_per_day=DriftConfig.samples_per_s * SECONDS_A_DAY / 300)
    for config, promised in ((DriftConfig(), 0), (loose, num / 300)):
        watch = DriftWatch(bundle, baseline, config)
        assert sum(len(watch.observe(sample(features, row))) for row in rows) <= promised
        assert min(record.samples for record in watch.nodes.values()) > 0.99 * num


def test_the_threshold_follows_from_rate_and_promise() -> None:
    # N nodes, r samples a second, a false alarms a day: N · 86400 r · e^-h = a.
    config = DriftConfig(samples_per_s=2.0, false_alarms_per_day=0.5)
    assert 8 * 2.0 * SECONDS_A_DAY * np.exp(-config.threshold(8)) == pytest.approx(0.5)


def test_missing_nodes_change_nothing_for_the_others(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, watch, rng = live[0], DriftWatch(bundle, baseline), np.random.default_rng(0)
    named = []
    for row in range(1, 1500):
        everyone = sample(features, row, node_5=features[5][0])
        gone = set(rng.choice([0, 1, 2, 3, 4, 6, 7], size=rng.integers(0, 4), replace=False))
        named += watch.observe({name: (i, f) for name, (i, f) in everyone.items() if i not in gone})
    assert [(notice.kind, notice.node) for notice in named] == [("alarm", "node-5")]


def test_two_bad_nodes_are_both_named(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, watch = live[0], DriftWatch(bundle, baseline)
    notices = [
        notice
        for row in range(1, 1200)
        for notice in watch.observe(sample(features, row, node_4=features[4][0], node_7=features[7][0]))
    ]
    assert {(notice.kind, notice.node) for notice in notices} == {("alarm", "node-4"), ("alarm", "node-7")}


def test_an_alarm_ends_when_the_node_is_well_again(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, watch = live[0], DriftWatch(bundle, baseline)
    first_notice(watch, features, range(1, 1000), lambda row: {"node_7": features[7][0]})
    assert watch.nodes["node-7"].alarm
    notice, count = first_notice(watch, features, range(1000, 4000), lambda row: {})
    assert (notice.kind, notice.node) == ("clear", "node-7")
    assert count < 1500
    assert not watch.nodes["node-7"].alarm


def test_inputs_unlike_the_test_data_blame_nobody_and_are_told_once(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, rng = live[0], np.random.default_rng(0)
    watch = DriftWatch(bundle, baseline)
    # Every node sees something else: together they make no sense, and none is the culprit.
    notices = [
        notice
        for _ in range(1500)
        for notice in watch.observe({f"node-{i}": (i, f[rng.integers(len(f))]) for i, f in enumerate(features)})
    ]
    assert [(notice.kind, notice.node) for notice in notices] == [("inputs", "")]
    assert not any(record.alarm for record in watch.nodes.values())


def test_a_camera_that_sees_one_class_only_is_no_drift(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, labels = live
    for label in range(10):
        watch = DriftWatch(bundle, baseline)
        for row in np.flatnonzero(labels == label)[:250]:
            assert watch.observe(sample(features, row)) == []


def test_a_still_picture_is_one_sample(bundle: Bundle, baseline: Any, live: Any) -> None:
    watch = DriftWatch(bundle, baseline)
    for _ in range(500):
        assert watch.observe(sample(live[0], 3, node_7=live[0][7][0])) == []
    assert {record.samples for record in watch.nodes.values()} == {1}


def test_of_three_nodes_nobody_is_judged(bundle: Bundle, baseline: Any, live: Any) -> None:
    watch = DriftWatch(bundle, baseline)
    for row in range(500):
        few = {name: value for name, value in sample(live[0], row, node_1=live[0][1][0]).items() if value[0] < 3}
        assert watch.observe(few) == []
    assert not watch.nodes


def test_a_node_that_left_is_forgotten_and_a_new_one_starts_afresh(bundle: Bundle, baseline: Any, live: Any) -> None:
    features, watch = live[0], DriftWatch(bundle, baseline)
    first_notice(watch, features, range(1, 1000), lambda row: {"node_7": features[7][0]})
    watch.forget("node-7")
    watch.forget("never-there")
    assert {len(nodes) for nodes, _ in watch._samples} == {NUM_DEVICES - 1}
    for row in range(1000, 1000 + 2 * REMEMBERED):
        assert watch.observe(sample(features, row)) == []
    assert not watch.nodes["node-7"].alarm


def test_the_recorded_samples_themselves_agree_as_built(bundle: Bundle, baseline: Any) -> None:
    recorded, _ = bundle.features
    watch = DriftWatch(bundle, baseline)
    hits, expected = np.zeros(NUM_DEVICES), np.zeros(NUM_DEVICES)
    logits = np.stack([bundle.head.logits({i: f}) for i, f in enumerate(recorded)]).astype(np.float32)
    nodes = tuple((f"node-{i}", i) for i in range(NUM_DEVICES))
    for i, (_, first, p) in enumerate(watch._compare(nodes, logits).values()):
        hits[i], expected[i] = first.mean(), p.mean()
    np.testing.assert_allclose(hits, expected, atol=0.02)  # apart by the pull of each class towards all


def test_a_node_that_tells_nothing_is_not_judged(live: Any) -> None:
    """Of noise alone no rank is more likely than another, so there is nothing to lose."""
    rng = np.random.default_rng(0)
    noise = Baseline(rng.normal(size=(4, 500, 10)).astype(np.float32))
    assert noise.expect(0, 0b1110) is None


def test_a_bundle_without_features_cannot_be_watched(bundle: Bundle, tmp_path: Path) -> None:
    manifest = bundle.manifest
    students = {s.device: bundle.student_path(s.device).read_bytes() for s in manifest.students}
    arrays = {name: bundle.arrays(name) for name in ("fusion.npz", "accuracy.npz")}
    bare = write_bundle(tmp_path / "bare", dataclasses.replace(manifest, files={}), students, arrays)
    with pytest.raises(BundleError, match=r"has no features\.npz"):
        Baseline.of(load_bundle(bare.path))


@pytest.mark.parametrize("values", [{"samples_per_s": 0.0}, {"false_alarms_per_day": -1.0}, {"samples_per_s": np.inf}])
def test_impossible_settings_are_refused(values: Any) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        DriftConfig(**values)


# A node process like any other whose sensor has come loose: whatever it is asked, it sees the same.
STUCK_NODE = """
import sys
from nonn_device import cli, runtime
run = runtime.OnnxRuntime.run
runtime.OnnxRuntime.run = lambda self, batch: run(self, 0 * batch + 100)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_a_node_process_that_is_stuck_is_named_in_log_metrics_state_and_by_top(bundle: Bundle, tmp_path: Path) -> None:
    bad = 7
    with contextlib.ExitStack() as stack:
        nodes = []
        for i in range(NUM_DEVICES):
            arguments = ["serve", str(bundle.path), "--student", str(i), "--watch-stdin"]
            how = ["-c", STUCK_NODE] if i == bad else ["-m", "nonn_device"]
            command = [sys.executable, *how, *arguments]
            child = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            stack.callback(child.kill)
            nodes.append((f"node-{i}", i, child))
        ready = []
        for name, i, child in nodes:
            assert child.stdout is not None
            ready.append((name, i, json.loads(child.stdout.readline())["address"]))
        inventory = tmp_path / "nodes.toml"
        write_inventory(inventory, [Node(id=name, address=address, student=i) for name, i, address in ready])
        options = ["--inventory", str(inventory), "--http-port", "0", "--log-format", "json", "--drift-rate", "1000"]
        options += ["--deadline", str(TIMEOUT_S)]
        aggregator = stack.enter_context(process("nonn", "serve", bundle.path, *options, "--watch-stdin"))
        assert aggregator.stdout is not None
        line = json.loads(aggregator.stdout.readline())
        inputs, http = toy_data(4000, seed=7)[0], line["http"]
        with Client(line["address"]) as client:
            asked = 0
            while metric(http, "nonn_node_drift", node=f"node-{bad}") == 0:
                for row in range(asked, asked + 50):
                    assert client.infer(inputs[row : row + 1]).mask == 0xFF  # it answers, and is fused
                asked += 50
        shown = state(http)
        assert shown["drift"]["alarms"] == [f"node-{bad}"]
        assert [metric(http, "nonn_node_drift", node=f"node-{i}") for i in range(NUM_DEVICES)] == [0] * bad + [1]
        top = run_here(main, "top", line["address"], "--once")
        assert f"node-{bad} answers, but agrees less with the others than as built" in top.stdout
        aggregator.send_signal(signal.SIGTERM)
        log = aggregator.communicate(timeout=TIMEOUT_S)[1].decode()
    events = [json.loads(text) for text in log.splitlines()]
    named = [event for event in events if event.get("event") == "node_drift"]
    assert [(event["node"], event["after"], event["level"]) for event in named] == [("node-7", "drifting", "warning")]
    assert "% as built" in named[0]["reason"]


def test_an_alarm_goes_with_its_node_and_another_one_under_its_id_is_judged_afresh(bundle: Bundle, live: Any) -> None:
    features, bad, rows = live[0], NUM_DEVICES - 1, iter(range(1, 3000))
    nodes = [Node(id=f"node-{i}", address=f"127.0.0.1:{i + 1}", student=i) for i in range(NUM_DEVICES)]
    metrics = Metrics(NUM_DEVICES)
    monitor = Monitor(bundle, DriftConfig(), on_drift=metrics.on_drift)
    aggregator = Aggregator(bundle, nodes, PolicyConfig(deadline_s=0.05), observers=[monitor, metrics])
    monitor.attach(aggregator)
    metrics.attach(aggregator)

    def request(spoilt: Any) -> Any:
        """Of the nodes that are in the cluster now; each is of another second."""
        row = next(rows)
        sent = {i: feature[0 if spoilt and i == bad else row][None] for i, feature in enumerate(features)}
        replies = tuple(Reply(node, ReplyStatus.OK, 0.01, sent[node.student]) for node in aggregator.nodes)
        return RequestEvent(float(row), 1, "ok", 0xFF, 0.9, 0.01, replies, features=sent)

    async def judge(event: Any) -> None:
        monitor.on_request(event)
        await until_async(lambda: not monitor._judging)

    def shown() -> Any:
        alarm = metrics.registry.get_sample_value("nonn_node_drift", {"node": f"node-{bad}"})
        samples = [node.drift.samples for node in monitor.state().nodes if node.id == f"node-{bad}"]
        return list(monitor.state().drift.alarms), alarm, samples

    async def scenario() -> None:
        async with aggregator, monitor:
            while not (alarms := shown()[0]):
                await judge(request(spoilt=True))
            assert (alarms, shown()[1]) == ([f"node-{bad}"], 1)
            late = request(spoilt=True)
            await aggregator.remove_node(f"node-{bad}")
            assert shown() == ([], None, [])
            await aggregator.add_node(dataclasses.replace(nodes[bad]))
            await judge(late)
            assert shown() == ([], 0, [0])
            for _ in range(REMEMBERED):
                await judge(request(spoilt=False))
            assert shown() == ([], 0, [REMEMBERED])

    asyncio.run(scenario())


def test_the_alarm_needs_neither_clock_nor_threads() -> None:
    assert not {"asyncio", "threading", "time"} & set(vars(sys.modules["nonn.aggregator.monitoring.drift"]))
