"""Nodes that sense: the hub with a clock of the test, then real processes."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import signal
import tempfile
import time
import urllib.request
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_device import publish
from nonn_sim.sensing_compared import compared

from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.sensing.hub import HELD, Hub, SensingOptions
from nonn.aggregator.sensing.servicer import SensingServicer, _Stream
from nonn.aggregator.sensing.state import SensingState
from nonn.aggregator.service import Aggregator
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.cli.watch import as_text
from nonn.client import AsyncClient
from nonn.documents import from_json, to_json
from nonn.errors import ConfigError, CredentialsError, DataLossError, InputError, MembershipError
from nonn.rpc.v1 import sensing_pb2 as pb
from nonn.sensing import SensingSpec
from nonn.sensing.clocks import Exchange
from nonn.sensing.cutter import Window
from nonn.sensing.windows import Windower
from nonn.streams import WindowAnswer
from tests.fleets import Fleet
from tests.memberships import Call
from tests.recordings import CHANNELS, sensing_bundle, smoothing_bundle, windows, write_recording
from tests.serving import TIMEOUT_S

START = 1_700_000_000.0
NUM = 8


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return sensing_bundle(tmp_path_factory.mktemp("sensing") / "bundle", NUM, tested=True)


class World:
    """A hub, its clock, and nodes whose clocks are exact."""

    def __init__(self, hub: Hub, watcher: Any) -> None:
        self.hub, self.watcher, self.now = hub, watcher, START
        self.features = hub._aggregator.bundle.features[0]

    def join(self, node: str, unit: int) -> None:
        self.hub.alignment.join(node, unit, self.now)
        self.hub.alignment.exchange(node, Exchange(self.now, self.now + 0.001, self.now + 0.001, self.now + 0.002))

    def send(self, node: str, unit: int, second: int, **more: Any) -> None:
        sent = self.features[unit][second].tobytes()
        fields = {"features": sent, "crc32": zlib.crc32(sent), "end_us": round((START + second) * 1e6)} | more
        message = pb.WindowFeatures(**fields)
        self.hub.window(node, unit, message, message.ByteSize())

    async def answer(self) -> WindowAnswer:
        self.hub.woken()
        answer, self.skipped = await asyncio.wait_for(self.watcher.take(), TIMEOUT_S)
        return answer  # type: ignore[no-any-return]

    async def second(self, number: int, units: Any, **more: Any) -> WindowAnswer:
        """All these units send their window; the answer."""
        self.now = START + number + 0.1
        for unit in units:
            self.send(f"n{unit}", unit, number, **more.get(f"n{unit}", {}))
        return await self.answer()


@contextlib.asynccontextmanager
async def world(bundle: Bundle, nodes: int = NUM, **options: Any) -> AsyncIterator[World]:
    # However busy the machine is, the head of the units that sensed is solved in time.
    set_here = {key: options.pop(key) for key in ("quorum", "quarantine_s") if key in options}
    policy = PolicyConfig(**{"quorum": 1} | set_here, deadline_s=2 * TIMEOUT_S, fusion_budget_s=TIMEOUT_S)
    async with Aggregator(bundle, [], policy) as aggregator:
        hub = Hub(aggregator, SensingOptions(**options), lambda: made.now)
        with hub.watching() as watcher:
            made = World(hub, watcher)
            for unit in range(nodes):
                made.join(f"n{unit}", unit)
            async with hub.attend(lambda: None):
                yield made


def expected(bundle: Bundle, answer: WindowAnswer, index: int) -> str:
    """The label of the offline fusion of the devices that an answer names."""
    features, _ = bundle.features
    logits = bundle.head.logits({i: features[i][index : index + 1] for i in answer.devices})
    return bundle.manifest.classes[int(logits.argmax())]


def test_every_answer_is_the_fusion_of_the_units_that_sensed_with_their_stated_accuracy(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with world(bundle) as w:
            for second, units in enumerate([range(NUM), (0, 3, 5), (7,)], start=1):
                w.now = START + second + 0.1
                for unit in units:
                    w.send(f"n{unit}", unit, second)
                w.now = START + second + 0.6
                answer = await w.answer()
                assert answer.devices == tuple(units)
                assert answer.label == expected(bundle, answer, second)
                assert answer.time == START + second
                assert answer.expected_accuracy == bundle.table.accuracy[answer.mask]
                low, high = answer.interval
                assert low < answer.expected_accuracy <= high
                assert set(answer.missing) == {f"n{i}" for i in range(NUM)} - {f"n{i}" for i in units}
                assert answer.delay_s == pytest.approx(0.6)
                assert answer.raw_bytes == len(answer.devices) * 4 * 16
                assert answer.bytes < len(answer.devices) * (16 + 32)

    asyncio.run(scenario())


def test_a_bundle_that_smooths_adds_the_belief_after_the_windows_before(bundle: Bundle, tmp_path: Path) -> None:
    smoothing = smoothing_bundle(bundle, tmp_path / "smooth")
    found = smoothing.smoothed
    assert found is not None

    async def scenario() -> None:
        belief, before = None, 0
        async with world(smoothing) as w:
            for second, units in ((1, (0, 1, 2)), (2, ()), (3, (4,)), (4, range(NUM))):
                w.now = START + second + 0.1
                for unit in units:
                    w.send(f"n{unit}", unit, second)
                w.now = START + second + 0.6
                answer = await w.answer()
                if not units:
                    assert answer.smoothed is None
                    continue
                logits = bundle.head.logits({i: w.features[i][second][None] for i in units})
                p = bundle.head.probabilities(logits.astype(np.float32), answer.mask)[0]
                belief = found.smoothing.step(belief, p, second - before)
                before = second
                assert answer.smoothed is not None
                assert answer.smoothed.class_number == belief.argmax()
                assert answer.smoothed.label == bundle.manifest.classes[int(belief.argmax())]
                assert answer.smoothed.confidence == pytest.approx(belief.max())
                assert answer.smoothed.expected_accuracy == found.table.accuracy[answer.mask]
                sent = WindowAnswer.from_message(answer.to_message()).smoothed
                assert sent is not None
                assert (sent.label, sent.interval) == (answer.smoothed.label, found.interval(answer.mask))
                assert answer.to_json()["smoothed"]["label"] == answer.smoothed.label
                other = next(name for name in bundle.manifest.classes if name != answer.smoothed.label)
                assert f"[this window alone: {other}]" in as_text(dataclasses.replace(answer, label=other))

    asyncio.run(scenario())


def test_a_unit_without_data_is_one_less_in_the_mask_and_nobody_waits_for_it(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=3) as w:
            flat = {"features": b"", "crc32": 0, "no_data": pb.NO_DATA_FLAT, "battery": 43}
            answer = await w.second(1, range(3), n1=flat)
            assert answer.devices == (0, 2)
            assert answer.missing["n1"] == "no data: flat"
            assert answer.missing["unit 5"] == "no node measures it"
            state = w.hub.state()
            assert (state.nodes["n1"].battery_percent, state.nodes["n1"].windows) == (42, {"taken": 1, "flat": 1})
            document = to_json(state)
            assert from_json(SensingState, document, "state") == state
            assert list(document) == ["hop_s", "speed", "counts", "nodes"]
            assert list(document["nodes"]["n1"]) == ["unit", "clock", "windows", "late_s", "battery_percent", "rests"]
            nobody = await w.second(2, range(3), **{f"n{i}": flat for i in range(3)})
            assert (nobody.label, nobody.mask) == ("", 0)

    asyncio.run(scenario())


def test_a_stream_that_rests_drops_windows_and_goes_on_with_the_next_one() -> None:
    async def scenario() -> None:
        stream = publish._Stream(Windower(SensingSpec(8.0, 8, 1.0, CHANNELS, ("",) * 2, (1.0,) * 2)))
        first, second, third = (Window(float(end), None, "silent") for end in range(3))
        stream.put([first])
        stream.rest(True)
        stream.put([second])
        stream.rest(False)
        stream.put([third])
        assert await asyncio.wait_for(stream.take(), TIMEOUT_S) is third

    asyncio.run(scenario())


def test_ends_of_windows_one_hop_after_the_other_are_left_out_and_added_again(bundle: Bundle) -> None:
    node = publish._Stream(Windower(bundle.sensing_of(0)))
    node.implied = True
    ends = [round(1e6 * (START + end)) for end in (1, 2, 3, 5, 6, 7.002, 8.002)]
    messages = [pb.WindowFeatures(end_us=end + (i % 2)) for i, end in enumerate(ends)]  # rounded either way
    for message in messages:
        node.shorten(message, 1_000_000)
    assert [bool(message.end_us) for message in messages] == [True, False, False, True, False, True, False]

    class Taken(Hub):
        """Keeps the ends."""

        def window(self, node: str, student: int, message: Any, num_bytes: int) -> None:
            found.append(message.end_us)
            sizes.append(num_bytes)

    found, sizes = list[int](), list[int]()

    async def scenario() -> None:
        async with Aggregator(bundle, [], PolicyConfig(quorum=1)) as aggregator:
            hub = Taken(aggregator)
            servicer = SensingServicer(hub, lambda token, context: lease("n0", 0))
            stream = servicer._streams["n0"] = _Stream(lease("n0", 0), asyncio.Queue(), {})

            async def sent() -> AsyncIterator[Any]:
                for message in messages:
                    yield pb.Publication(window=message)

            await servicer._read(sent(), stream, Call())

    asyncio.run(scenario())
    assert found == pytest.approx(ends, abs=2)
    assert sizes == [pb.Publication(window=message).ByteSize() for message in messages], "as they were sent"


def test_below_the_quorum_there_is_no_label(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=1, quorum=2) as w:
            answer = await w.second(1, [0])
            assert (answer.label, answer.mask, answer.expected_accuracy) == ("", 0, 0.0)

    asyncio.run(scenario())


def test_units_beyond_the_accuracy_goal_rest_and_are_woken_when_one_fails(bundle: Bundle) -> None:
    async def scenario() -> None:
        goal = float(np.sort([bundle.table.accuracy[1 << i | 1 << j] for j in range(3) for i in range(j)])[0])
        async with world(bundle, nodes=3, accuracy_goal=goal, duty_period_s=100.0) as w:
            servicer = SensingServicer(w.hub, lambda token, context: None)
            stream = servicer._streams["n2"] = _Stream(lease("n2", 2), asyncio.Queue(), {})
            charges = {f"n{i}": {"battery": 1 + percent} for i, percent in enumerate((90, 80, 70))}
            first = await w.second(1, range(3), **charges)
            assert first.devices == (0, 1, 2)
            working = {i for i in range(3) if not w.hub.alignment.nodes[f"n{i}"].rests}
            assert 0 < len(working) < 3
            assert 2 not in working
            assert stream.directions.get_nowait().duty.rest
            now = await w.second(2, working)  # a node that rests is not waited for
            assert now.delay_s < 0.2
            assert now.missing["n2"] == "rests: the others reach the accuracy goal"
            assert now.expected_accuracy >= goal
            w.hub.charged("n2", 1 + 60)
            assert to_json(w.hub.state())["nodes"]["n2"] | {"clock": None, "windows": {}} == {
                "unit": 2,
                "clock": None,
                "windows": {},
                "late_s": 0.0,
                "battery_percent": 60,
                "rests": True,
            }
            for node in [f"n{i}" for i in working]:
                w.hub.alignment.leave(node)
            w.now += 1
            w.hub._rotate(())
            assert not stream.directions.get_nowait().duty.rest

    asyncio.run(scenario())


def lie(w: World, second: int) -> dict[str, Any]:
    """A window of unit 2 that is worn by somebody else, elsewhere."""
    swapped = w.features[2][(second + 57) % 100][::-1] * 5 + 3
    return {"features": swapped.tobytes(), "crc32": zlib.crc32(swapped.tobytes())}


@pytest.mark.parametrize("speed", [1.0, 2.0])
def test_the_quarantine_of_a_unit_that_is_honest_again_ends_by_time(bundle: Bundle, speed: float) -> None:
    async def scenario() -> None:
        async with world(bundle, quarantine_s=9.5 / speed, speed=speed) as w:
            left_out = list[int]()
            for second in range(1, 40):
                answer = await w.second(second, range(NUM), **({} if left_out else {"n2": lie(w, second)}))
                if "left out for a while" in answer.missing.get("n2", ""):
                    left_out.append(second)
                elif left_out:
                    assert answer.devices == tuple(range(NUM))
            # It began with the answer before the first of these.
            assert left_out == list(range(left_out[0], left_out[0] + 9))

    asyncio.run(scenario())


def test_a_unit_that_contradicts_the_others_is_left_out_and_after_a_while_for_longer(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with world(bundle) as w:
            quarantined = False
            for second in range(1, 40):
                answer = await w.second(second, range(NUM), n2=lie(w, second))
                if 2 not in answer.devices:
                    assert "contradict" in answer.missing["n2"]
                    assert answer.label == expected(bundle, answer, second)
                    quarantined |= "left out for a while" in answer.missing["n2"]
            assert quarantined
            assert {0, 1, 3} <= set(answer.devices)

    asyncio.run(scenario())


def test_features_that_were_altered_or_do_not_fit_are_refused_by_node(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=1) as w:
            with pytest.raises(DataLossError, match="node 'n0': 16 bytes of features were altered"):
                w.send("n0", 0, 1, crc32=1)
            with pytest.raises(InputError, match="node 'n0': 3 bytes of features; student 0 sends 16"):
                w.send("n0", 0, 1, features=b"abc", crc32=zlib.crc32(b"abc"))
            bad = np.full(4, np.nan, np.float32).tobytes()
            with pytest.raises(InputError, match="NaN or infinity"):
                w.send("n0", 0, 1, features=bad, crc32=zlib.crc32(bad))

    asyncio.run(scenario())


def test_a_watcher_that_is_too_slow_learns_how_many_answers_it_lost(bundle: Bundle) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=1) as w:
            with w.hub.watching() as slow:
                for second in range(1, HELD + 4):
                    await w.second(second, [0])
                answer, skipped = await slow.take()
                assert answer is not None
                assert (answer.time, skipped) == (START + 4, 3)
            with w.hub.watching(recent=True) as late:
                first, _ = await late.take()
                assert first is not None
                assert first.time == START + 1

    asyncio.run(scenario())


def lease(node: str, student: int) -> Any:
    class Lease:
        request = type("Request", (), {"node": node})
        token = "t"

    Lease.student = student  # type: ignore[attr-defined]
    return Lease


@pytest.mark.parametrize(
    ("opening", "error", "message"),
    [
        ({"lease": "none"}, CredentialsError, "unknown lease"),
        ({"lease": "b", "speed": 10.0}, ConfigError, r"node 'b' replays at 10 times.*expects 1: .*--replay-speed"),
        ({"lease": "b", "raw": True}, ConfigError, r"node 'b' sends raw samples.*--raw DIR"),
        ({"lease": "b"}, MembershipError, r"node 'b': unit 0 is sensed by node 'n0' already"),
    ],
)
def test_a_node_that_may_not_sense_is_refused_with_the_reason(
    bundle: Bundle, opening: Any, error: Any, message: str
) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=1) as w:
            servicer = SensingServicer(w.hub, lambda token, context: lease("b", 0) if token == "b" else None)
            with pytest.raises(error, match=message):
                servicer._opened(pb.Publication(opening=pb.Opening(**opening)), Call())

    asyncio.run(scenario())


def test_a_clock_that_steps_again_and_again_fills_no_log(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=2) as w:
            servicer = SensingServicer(w.hub, lambda token, context: None)
            streams = [_Stream(lease(f"n{i}", i), asyncio.Queue(), {}) for i in range(2)]
            for second in range(1, 21):
                for stream in streams[: 2 if second > 5 else 1]:
                    stream.asked[second] = w.now = START + second
                    at_us = round((w.now + 100.0 * second) * 1e6)
                    servicer._echo(stream, pb.Echo(number=second, received_us=at_us, sent_us=at_us), w.now + 0.002)
            clocks = w.hub.alignment.nodes
            assert (clocks["n0"].clock.steps, clocks["n1"].clock.steps) == (20, 15)

    asyncio.run(scenario())
    assert caplog.text.count("node n0: its clock has stepped") == 2
    assert caplog.text.count("node n1: its clock has stepped") == 2


def test_a_node_whose_sensor_is_refused_again_and_again_fills_no_log(
    bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        async with world(bundle, nodes=0) as w:
            servicer = SensingServicer(w.hub, lambda token, context: None if token == "none" else lease("n0", 0))

            async def sent(*messages: Any) -> AsyncIterator[Any]:
                for message in messages:
                    yield pb.Publication(**message)

            wrong = {"window": pb.WindowFeatures(features=b"short")}
            for token, text in (("none", "unknown lease"), ("n0", "were altered on the way")):
                opening = {"opening": pb.Opening(lease=token)}
                for _ in range(5):
                    with pytest.raises(AssertionError, match=text):
                        _ = [direction async for direction in servicer.Publish(sent(opening, wrong), Call())]

    asyncio.run(scenario())
    assert caplog.text.count("a node's sensor is refused: unknown lease") == 1
    assert caplog.text.count("were altered on the way") == 1


@pytest.mark.slow
def test_processes_replay_a_recording_and_every_answer_has_its_window_and_a_true_mask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = sensing_bundle(tmp_path / "bundle", 3)
    found = windows(200, 3)[0]
    found[10:13] = 77.0  # a sensor hangs; the first and last of these windows may hold a part of a neighbour's sample
    good, flat = write_recording(tmp_path / "a.csv", windows(200, 3)[0]), write_recording(tmp_path / "b.csv", found)
    speed = 4
    with contextlib.ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        options = ("--joins", "--join-token-file", fleet.token, "--replay-speed", speed, "--http-port", 0)
        ready = fleet._start("nonn", "serve", bundle.path, *options).ready
        address, http = ready["address"], ready["http"]
        start = np.ceil((time.time() + 3) * speed) / speed
        clocks = ["offset=-2", "drift=100", "offset=2&drift=-100"]
        query = f"speed={speed}&start={start + 1 / 8 / speed}"
        sources = [f"csv:{flat if i == 2 else good}?{query}&{clocks[i]}" for i in range(3)]
        nodes = [fleet.node(f"n{i}", address, options=("--student", i, "--source", sources[i])) for i in range(3)]
        answers = fleet.client(address).watch()
        seen, equal = list[int](), 0
        for answer in answers:
            index = round((answer.time - start) * speed) - 1
            if index < 1 or not answer.mask:
                continue
            seen.append(answer.mask)
            equal += answer.label == expected(bundle, answer, index)
            if index == 11:
                assert 2 not in answer.devices
                assert answer.missing.get("n2", "no data: flat") == "no data: flat"
            if len(seen) == 14:
                nodes[1].end(signal.SIGKILL)
            if len(seen) > 14 and not answer.mask & 2:
                break
        assert 7 in seen[:14]
        # The clocks are known to a millisecond or two of real time, a sixteenth of a sample here.
        assert equal >= 0.8 * len(seen)
        answers.close()
        with urllib.request.urlopen(f"{http}/api/answers", timeout=TIMEOUT_S) as events:
            event = json.loads(events.readline().removeprefix(b"data: "))
            assert events.headers["Content-Type"] == "text/event-stream"
        assert set(event) >= {"label", "devices", "interval", "skipped"}
        with urllib.request.urlopen(f"{http}/api/sensing", timeout=TIMEOUT_S) as answered:
            state = json.load(answered)
        assert abs(state["nodes"]["n0"]["clock"]["offset_s"] + 2) < 0.1
        assert "n1" not in state["nodes"]
        assert main(["watch", address, "--json", "--count", "2"]) == 0
        assert [json.loads(line)["mask"] & 2 for line in capsys.readouterr().out.splitlines()] == [0, 0]
        assert main(["watch", address, "--count", "1"]) == 0
        assert "accuracy" in capsys.readouterr().out

        async def follow() -> WindowAnswer:
            async with AsyncClient(address) as client:
                async for answer in client.watch():
                    return answer
            raise AssertionError

        assert asyncio.run(follow()).bundle == bundle.hash


def test_with_tls_a_node_senses_under_its_certificate_and_may_send_raw_samples(tmp_path: Path) -> None:
    bundle, raw = sensing_bundle(tmp_path / "bundle", 2), tmp_path / "raw"
    recording = write_recording(tmp_path / "a.csv", windows(200, 3)[0])
    with contextlib.ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        authority, _, address = fleet.with_tls(bundle, "--replay-speed", 4, "--raw", raw)
        source = ("--student", 1, "--source", f"csv:{recording}?speed=4", "--send-raw")
        fleet.node("a", address, options=("--tls", authority.folder("node", "a"), *source))
        with pytest.raises(CredentialsError, match="it uses TLS, this side plain text"):
            next(iter(fleet.client(address).watch()))
        client = fleet.client(address, tls=authority.folder("client", "alice"))
        answer = next(answer for answer in client.watch() if answer.mask)
        assert answer.devices == (1,)
        assert answer.missing == {"unit 0": "no node measures it"}
    assert len((raw / "a.csv").read_text().splitlines()) > 8


def test_a_fleet_with_a_state_folder_goes_on_sensing_with_the_next_bundle(tmp_path: Path) -> None:
    first = sensing_bundle(tmp_path / "first", 2)
    second = smoothing_bundle(first, tmp_path / "second")
    recording = write_recording(tmp_path / "a.csv", windows(200, 3)[0])
    with contextlib.ExitStack() as stack:
        fleet = Fleet(tmp_path, stack)
        # A short name: a socket's may have 107 characters.
        state = stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn"))
        _, address = fleet.aggregator(first, "--replay-speed", 4, "--state", state)
        fleet.node("a", address, options=("--student", 1, "--source", f"csv:{recording}?speed=4"))
        answers = fleet.client(address).watch()
        answer = next(answer for answer in answers if answer.mask)
        assert (answer.devices, answer.bundle) == ((1,), first.hash)
        assert main(["fleet", "push", str(second.path), "--state", state, "--floor", "0"]) == 0
        answer = next(answer for answer in answers if answer.mask and answer.bundle != first.hash)
        assert (answer.devices, answer.bundle) == ((1,), second.hash)
        assert answer.smoothed is not None


def test_raw_samples_are_stored_where_both_sides_say_so(tmp_path: Path) -> None:
    from nonn.aggregator.sensing.raw import RawFolder

    spec = SensingSpec(8.0, 8, 0.5, CHANNELS, ("",) * 2, (1.0,) * 2)
    folder, signal_ = RawFolder(tmp_path / "raw"), np.arange(40, dtype=np.float32).reshape(2, 20)
    for end in (8, 12, 16):
        folder.add("n0", spec, end / 8, signal_[:, end - 8 : end].tobytes())
    folder.add("n0", spec, 9.0, b"short")
    lines = (tmp_path / "raw" / "n0.csv").read_text().splitlines()
    assert lines[0] == "time,acc_x,acc_y"
    assert [float(line.split(",")[1]) for line in lines[1:]] == list(range(16))


def test_a_live_run_finds_an_answer_that_is_missing_wrong_or_of_a_unit_that_did_not_sense(
    bundle: Bundle,
) -> None:
    labels, order, works = bundle.features[1], np.arange(60), np.ones((60, NUM), bool)
    works[:, 3] = False
    mask = 0xFF & ~8
    features = bundle.features[0]
    logits = bundle.head.logits({i: f[:60] for i, f in enumerate(features) if mask >> i & 1}).argmax(axis=1)

    def answer(k: int, mask: int = mask, wrong: int = 0) -> WindowAnswer:
        number = (int(logits[k]) + wrong) % 10
        return WindowAnswer(
            0.0, 0.01, bundle.manifest.classes[number], 0.9, mask, 0.9, (0.8, 1.0), {}, 10, 100, "", number
        )

    right = {k: answer(k) for k in range(60)}
    found = compared(bundle, labels, order, works, right)
    assert (found["answers_missing"], found["masks_with_a_unit_that_did_not_sense"]) == (0, 0)
    assert (found["equal_to_offline"], found["raw_over_sent"]) == (1.0, 10.0)
    assert [row["agrees"] for row in found["rows"]] == [True]
    rare = mask & ~1
    right[9] = answer(9, rare, wrong=1)
    assert 0.95 < bundle.table.accuracy[rare] < 1
    rows = compared(bundle, labels, order, works, right)["rows"]
    assert [(row["windows"], row["agrees"]) for row in rows] == [(57, True), (1, True)], "one window says little"
    right[9] = answer(9)
    del right[5]
    right[6] = answer(6, 0xFF)
    found = compared(bundle, labels, order, works, right)
    assert (found["answers_missing"], found["masks_with_a_unit_that_did_not_sense"]) == (1, 1)
    found = compared(bundle, labels, order, works, {k: answer(k, wrong=1) for k in range(60)})
    assert [row["agrees"] for row in found["rows"]] == [False]
