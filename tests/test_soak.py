"""Half a minute of bad weather. The long form is ``make soak``; what it writes is in benchmarks/results/soak.json."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from benchmarks import crowd, soak, storm, wrong
from benchmarks.section import Section, reasons
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import QuorumError
from nonn.reliability.subsets import members
from tests.serving import TIMEOUT_S, process, running_aggregator, until
from tests.toys import toy_bundle, toy_data

pytestmark = [pytest.mark.alone, pytest.mark.slow]

NUM_DEVICES = 6
DEADLINE_S = 1.5
STORM_S = 7.0
ATTEMPTS = 3
SEED = 39  # with it each of the six nodes begins with another kind of fault


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("soak") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def inputs() -> Any:
    return toy_data(200, seed=3)[0]


@pytest.fixture(scope="module")
def site(bundle: Bundle) -> Iterator[Any]:
    with storm.site(bundle, DEADLINE_S, SEED) as site:
        yield site


@pytest.fixture(scope="module")
def client(site: Any, inputs: NDArray[Any]) -> Iterator[Any]:
    # Patient, since other tests may have the processors: what is in time is for the long form to say.
    with Client(site.address, TIMEOUT_S) as client:
        storm.load(client, inputs, 4, lambda number: number < 100)
        site.learn_latencies(client)
        yield client


@pytest.fixture(scope="module")
def weathered(site: Any, client: Any, inputs: NDArray[Any]) -> Any:
    """What was asked and answered during a storm, and the storm."""
    until_s = time.monotonic() + STORM_S
    with storm.Weather(site, SEED, well_s=(2.5, 3.5), fault_s=(1.0, 2.5)) as weather:
        records = storm.load(client, inputs, 4, lambda number: time.monotonic() < until_s)
    return records, weather


def test_no_request_fails_in_a_storm_that_leaves_one_node_well(weathered: Any) -> None:
    records, weather = weathered
    assert [record.error for record in records if record.error] == []
    assert len(records) >= 50
    # It was a storm.
    assert {outage.kind for outage in weather.outages} == set(storm.KINDS)
    assert weather.fewest_well <= NUM_DEVICES - 2
    assert len({record.answer.mask for record in records}) >= 5


def test_every_answer_of_a_storm_is_the_offline_fusion_of_its_mask(bundle: Bundle, weathered: Any) -> None:
    records, _ = weathered
    assert storm.wrong_answers(bundle, records) == []


def test_no_answer_of_a_storm_names_a_node_that_could_not_answer(weathered: Any) -> None:
    records, weather = weathered
    assert storm.false_members(records, weather.outages) == []


def test_every_node_that_comes_back_in_a_storm_is_used_again(weathered: Any) -> None:
    records, weather = weathered
    # Twice what the long form, which has the machine to itself, allows.
    assert [pair for pair in storm.return_times(records, weather.outages) if pair[0] > 2 * storm.IN_USE_S] == []


def test_a_node_that_hangs_costs_at_most_one_deadline_in_all(
    site: Any, client: Any, inputs: NDArray[Any], weathered: Any
) -> None:
    assert storm.hung_cost(site, client, inputs, 3, DEADLINE_S) <= 1.5


def all_answer(client: Client, inputs: NDArray[Any]) -> bool:
    try:
        return not client.infer(inputs[:1]).degraded
    except QuorumError:
        return False


def test_memory_is_flat(site: Any, client: Any, inputs: NDArray[Any], weathered: Any) -> None:
    until(lambda: all_answer(client, inputs))
    aggregator = psutil.Process(site.pid)
    storm.load(client, inputs, 8, lambda number: number < 300)
    before = aggregator.memory_info().rss
    records = storm.load(client, inputs, 8, lambda number: number < 600)
    assert all(record.answer is not None for record in records), reasons(records)
    assert aggregator.memory_info().rss < 1.1 * before


def test_flipped_bits_change_no_answer(site: Any, client: Any, inputs: NDArray[Any], weathered: Any) -> None:
    # On a busy machine the one node without flips may miss the deadline: it is left out, and requests fail at once,
    # hundreds of them until it is probed.
    for _ in range(ATTEMPTS):
        until(lambda: all_answer(client, inputs))
        figures = wrong.flips(site, client, inputs, range(1, NUM_DEVICES), 1000)
        assert figures["flips"] > 20  # how many depends on how requests are batched
        assert figures["flips_wrong"] == 0
        if not figures["flips_failed"]:
            break
    assert figures["flips_failed"] == 0, figures["flips_reasons"]


def test_costly_frames_must_leave_others_answered_and_little_memory() -> None:
    (section,) = (section for section in crowd.SECTIONS if section.name == "frames")
    figures = json.loads(soak.RESULTS.read_text())
    assert section.broken(figures) == []
    figures |= {"frames_again_s": {"pings": 2 * crowd.AGAIN_S}, "frames_costly_kept_mb": crowd.COSTLY_KEPT_MB}
    assert section.broken(figures) == [
        "after floods of pings other clients are answered again",
        "costly HTTP/2 frames leave less than a gigabyte behind",
    ]


def test_two_liars_cost_at_most_a_point_and_come_back_when_they_are_honest(tmp_path: Path, inputs: Any) -> None:
    eight = toy_bundle(tmp_path / "bundle", num_devices=8, tested=True, width=16)
    figures = wrong.liars(eight, inputs, (2, 5), 200, ("flipped", "x100"))
    assert max(figures["liars_loss_points"].values()) <= 1
    assert figures["liars_without_honest_device"] == 0
    assert (figures["liars_failed"], figures["liars_wrong"]) == (0, 0)
    assert figures["liars_back_s"] < TIMEOUT_S


def test_the_books_find_what_is_wrong(bundle: Bundle, weathered: Any) -> None:
    """What the tests above rest on: a false answer, mask or return in the records is found."""
    records, _ = weathered
    good = records[0]
    other = dataclasses.replace(good.answer, logits=good.answer.logits + 0.01)
    bits = good.answer.answered.copy()
    bits[members(good.answer.mask)[0]] = False
    fewer = dataclasses.replace(good.answer, answered=bits)
    elsewhere = dataclasses.replace(good.answer, bundle="0" * 64)
    surer = dataclasses.replace(good.answer, confidence=good.answer.confidence / 2)
    full = dataclasses.replace(good.answer, degraded=not good.answer.degraded)
    for answer in (other, fewer, elsewhere, surer, full):
        assert len(storm.wrong_answers(bundle, [dataclasses.replace(good, answer=answer)])) == 1
    assert len(storm.wrong_answers(bundle, [dataclasses.replace(good, size=2)])) == 1
    node = int(np.flatnonzero(good.answer.answered)[0])
    there = storm.Outage(node, "stop", good.asked_s - 1, good.done_s + 1, good.done_s + 1)
    assert len(storm.false_members([good], [there])) == 1
    assert storm.false_members([good], [dataclasses.replace(there, kind="slow")]) == []
    assert storm.false_members([good], [dataclasses.replace(there, start_s=good.asked_s + 0.001)]) == []
    back = storm.Outage(node, "stop", good.asked_s - 9, good.asked_s - 8, good.done_s - 3)
    assert storm.return_times([good], [back])[0][0] == pytest.approx(3)


def test_a_section_that_breaks_a_guarantee_or_ends_with_an_error_is_named_and_the_next_ones_run(
    bundle: Bundle, weathered: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(ground: Any) -> Any:
        raise OSError("no more processes")

    sections = (
        Section("first", lambda ground: {"first_failed": 1}, {"nothing fails": lambda f: f["first_failed"] == 0}),
        Section("second", fails, {"never asked": lambda f: False}),
        Section("third", lambda ground: {"third_failed": 0}, {"third holds": lambda f: f["third_failed"] == 0}),
    )
    figures = soak.run(sections, SimpleNamespace(bundle=bundle))  # type: ignore[arg-type]
    assert figures["broken"] == ["nothing fails", "second runs to its end"]
    assert figures["errors"] == {"second": "OSError: no more processes"}
    assert figures["third_failed"] == 0


def test_sections_that_are_measured_again_replace_their_figures_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("first", "second", "third")

    def section(name: str) -> Section:
        return Section(name, lambda ground: {}, {f"{name} holds": lambda figures: figures[name] == 0})

    monkeypatch.setattr(soak, "SECTIONS", tuple(map(section, names)))
    totals = {"answers": 5, "answers_wrong": 0}
    before = {"first": 1, "third": 1, "section_s": dict.fromkeys(names, 1.0), "errors": {"second": "OSError"}} | totals
    again = {"first": 0, "second": 0, "section_s": {"first": 2.0, "second": 3.0}, "errors": {}} | totals
    found = soak.merged(before, again)
    assert found["broken"] == ["third holds"]
    assert (found["first"], found["third"], found["answers"]) == (0, 1, 10)
    assert found["section_s"] == {"first": 2.0, "second": 3.0, "third": 1.0}
    assert found["errors"] == {}
    worse = soak.merged(found, again | {"second": 1, "errors": {"first": "OSError"}, "answers_wrong": 2})
    assert worse["broken"] == ["second holds", "third holds", "first runs to its end", soak.EVERY_ANSWER]


def test_no_garbage_collection_stops_the_clients_that_are_measured() -> None:
    with storm.history():
        with storm.history():
            assert not gc.isenabled()
        assert not gc.isenabled()
    assert gc.isenabled()


@pytest.fixture
def far_away(bundle: Bundle) -> Iterator[Any]:
    """A node in a network namespace of its own, its address, and a switch for its link."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("network namespaces need root and the ip command (iproute2)")
    name, network = f"nonn{os.getpid()}", f"10.213.{os.getpid() % 256}"

    def ip(*arguments: Any) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    here, there = f"nh{os.getpid()}", f"nt{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no network namespace here: {made.stderr.strip()}")
    try:
        ip("link", "add", here, "type", "veth", "peer", "name", there, "netns", name)
        ip("addr", "add", f"{network}.1/30", "dev", here)
        ip("link", "set", here, "up")
        ip("-n", name, "addr", "add", f"{network}.2/30", "dev", there)
        ip("-n", name, "link", "set", there, "up")
        options = ("--student", "0", "--host", f"{network}.2", "--port", "50051", "--insecure")
        command = ("nonn_device", "serve", bundle.path, *options, "--watch-stdin")
        with process(*command, prefix=("ip", "netns", "exec", name)) as child:
            assert child.stdout is not None
            assert b'"ready"' in child.stdout.readline()
            yield f"{network}.2:50051", lambda up: ip("-n", name, "link", "set", there, "up" if up else "down")
    finally:
        subprocess.run(["ip", "link", "del", here], capture_output=True)
        subprocess.run(["ip", "netns", "del", name], capture_output=True)


def test_a_node_whose_link_goes_down_is_left_out_and_used_again_when_it_is_up(
    bundle: Bundle, inputs: NDArray[Any], site: Any, far_away: Any, tmp_path: Path
) -> None:
    address, link = far_away
    addresses = [address, *(state.address for state in site.cluster.states()[1:])]
    everybody = (1 << NUM_DEVICES) - 1
    with (
        running_aggregator(bundle.path, addresses, tmp_path, "--deadline", str(DEADLINE_S)) as ready,
        Client(ready["address"], TIMEOUT_S) as client,
    ):
        assert client.infer(inputs[:1]).mask == everybody
        link(False)
        answers = [client.infer(inputs[:1]) for _ in range(20)]
        assert {answer.mask for answer in answers} == {everybody & ~1}
        assert sum(answer.latency_s > DEADLINE_S / 2 for answer in answers) <= 2
        link(True)
        assert until(lambda: client.infer(inputs[:1]).mask == everybody) < 5
