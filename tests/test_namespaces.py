"""A cluster over real links: each node in a network namespace of its own, behind a veth pair that is cut and narrowed.

Loopback has no links. Here packets go through the kernel's devices, so `ip link set down` is what a pulled plug is: no
reset, no refusal, silence. Bandwidth is held by a token bucket (tc tbf); delay, jitter and stalls come from the
simulator's proxy, since not every kernel has netem.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
from asyncio.subprocess import PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nonn_sim.proxy import Proxies
from nonn_sim.scenario import LinkConfig

from nonn.bundle import Bundle
from nonn.client import Client
from nonn.reliability.subsets import mask_of
from tests.pairing import fleet, listening
from tests.serving import TIMEOUT_S, process, running_aggregator, until
from tests.toys import toy_bundle, toy_data

NUM_DEVICES = 3
PORT = 50053
DEADLINE_S = "2"  # far more than an honest reply takes on a busy machine


def command(*arguments: Any) -> Any:
    return subprocess.run(arguments, capture_output=True, text=True)


def why_not() -> Any:
    """Why there are no namespaces here; empty if there are."""
    if os.geteuid():
        return "network namespaces take root"
    if missing := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"{' and '.join(missing)} not installed (Debian: apt-get install iproute2)"
    name = f"nonn-try-{os.getpid()}"
    made = command("ip", "netns", "add", name)
    command("ip", "netns", "delete", name)
    return made.stderr.strip()


pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"no network namespaces: {why_not()}")


class Link:
    """The veth pair of one node: our end in this namespace, its end in its own."""

    def __init__(self, index: Any) -> None:
        self.namespace = f"nonn-{os.getpid()}-{index}"
        self.device, inside = f"nn{os.getpid() % 100000}.{index}", f"nd{os.getpid() % 100000}.{index}"
        subnet = f"10.{213 + os.getpid() % 40}.{os.getpid() // 40 % 250}"
        self.ours, self.host = f"{subnet}.{4 * index + 1}", f"{subnet}.{4 * index + 2}"
        for line in (
            f"ip netns add {self.namespace}",
            f"ip link add {self.device} type veth peer name {inside} netns {self.namespace}",
            f"ip address add {self.ours}/30 dev {self.device}",
            f"ip link set {self.device} up",
            f"ip -n {self.namespace} address add {self.host}/30 dev {inside}",
            f"ip -n {self.namespace} link set {inside} up",
        ):
            done = command(*line.split())
            assert done.returncode == 0, f"{line}: {done.stderr}"

    def close(self) -> None:
        command("ip", "link", "delete", self.device)
        command("ip", "netns", "delete", self.namespace)

    def cut(self) -> None:
        assert command("ip", "link", "set", self.device, "down").returncode == 0

    def restore(self) -> None:
        assert command("ip", "link", "set", self.device, "up").returncode == 0

    def narrow(self, kbit: Any) -> None:
        shaped = command(*f"tc qdisc replace dev {self.device} root tbf rate {kbit}kbit burst 2kb latency 10s".split())
        assert shaped.returncode == 0, shaped.stderr

    def widen(self) -> None:
        assert command("tc", "qdisc", "delete", "dev", self.device, "root").returncode == 0


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return toy_bundle(tmp_path_factory.mktemp("namespaces") / "bundle", num_devices=NUM_DEVICES)


@pytest.fixture(scope="module")
def links() -> Iterator[Any]:
    with contextlib.ExitStack() as stack:
        made = []
        for index in range(NUM_DEVICES):
            made.append(Link(index))
            stack.callback(made[-1].close)
        yield made


@pytest.fixture(scope="module")
def addresses(bundle: Bundle, links: Any) -> Iterator[Any]:
    """Real nodes, each in its namespace."""
    with contextlib.ExitStack() as stack:
        found = []
        for index, link in enumerate(links):
            options = ("--student", str(index), "--host", link.host, "--port", str(PORT), "--insecure", "--watch-stdin")
            prefix = ("ip", "netns", "exec", link.namespace)
            child = stack.enter_context(process("nonn_device", "serve", bundle.path, *options, prefix=prefix))
            assert child.stdout is not None
            found.append(json.loads(child.stdout.readline())["address"])
        yield found


@pytest.fixture
def client(bundle: Bundle, addresses: Any, tmp_path: Path) -> Iterator[Any]:
    """Of an aggregator that calls the nodes over their links."""
    with (
        running_aggregator(bundle.path, addresses, tmp_path, "--deadline", DEADLINE_S) as ready,
        Client(ready["address"], TIMEOUT_S) as client,
    ):
        yield client


def measured(client: Any, num: int = 50) -> Any:
    """Masks that answered, and for each what was right and predicted; over the data of the bundle's table."""
    inputs, labels = toy_data(200, seed=3)
    found: dict[int, tuple[int, float]] = {}
    for at in range(0, len(inputs), num):
        answer = client.infer(inputs[at : at + num])
        right, _ = found.get(answer.mask, (0, 0.0))
        right += int((answer.logits.argmax(axis=1) == labels[at : at + num]).sum())
        found[answer.mask] = right, answer.expected_accuracy
    return found


def check_measured_is_predicted(bundle: Bundle, client: Any, mask: Any) -> None:
    until(lambda: client.infer(np.zeros((1, 1, 8, 8), np.uint8)).mask == mask)
    found = measured(client)
    assert found.keys() == {mask}
    right, expected = found[mask]
    assert right == bundle.table.correct[mask]
    assert right / 200 == pytest.approx(expected)


@pytest.mark.slow
def test_links_are_cut_and_restored_and_accuracy_is_as_predicted_for_whoever_is_left(
    bundle: Bundle, links: Any, client: Any
) -> None:
    check_measured_is_predicted(bundle, client, 0b111)
    try:
        links[1].cut()
        answer = client.infer(np.zeros((1, 1, 8, 8), np.uint8))  # the first that meets the silence
        assert answer.mask == 0b101
        assert list(answer.failures) == ["node-1"]
        check_measured_is_predicted(bundle, client, 0b101)
        links[0].cut()
        check_measured_is_predicted(bundle, client, 0b100)
    finally:
        links[0].restore()
        links[1].restore()
    check_measured_is_predicted(bundle, client, 0b111)


def test_a_narrow_link_costs_its_time_and_beyond_the_deadline_its_node(bundle: Bundle, links: Any, client: Any) -> None:
    inputs, _ = toy_data(100, seed=3)  # 6.4 kB to each node
    try:
        links[2].narrow(256)  # 32 kB/s, of which a burst of 2 kB is free
        answer = client.infer(inputs)
        assert answer.mask == 0b111
        assert answer.latency_s > 0.1
        links[2].narrow(8)
        assert client.infer(inputs).mask == 0b011
        check_measured_is_predicted(bundle, client, 0b011)
    finally:
        links[2].widen()
    check_measured_is_predicted(bundle, client, 0b111)


def test_the_cluster_answers_through_delay_jitter_and_stalls(bundle: Bundle, addresses: Any, tmp_path: Path) -> None:
    slow = LinkConfig(latency_s=0.02, jitter_s=0.01)
    with (
        Proxies(addresses, [slow] * NUM_DEVICES, seed=0) as proxies,
        running_aggregator(bundle.path, proxies.addresses, tmp_path, "--deadline", DEADLINE_S) as ready,
        Client(ready["address"], TIMEOUT_S) as client,
    ):
        check_measured_is_predicted(bundle, client, 0b111)
        assert client.infer(np.zeros((1, 1, 8, 8), np.uint8)).latency_s > 0.04  # there and back
        proxies.change(0, lambda proxy: proxy.silence(True))
        check_measured_is_predicted(bundle, client, mask_of([1, 2]))
        proxies.change(0, lambda proxy: proxy.silence(False))
        check_measured_is_predicted(bundle, client, 0b111)


def test_a_device_in_another_namespace_finds_its_aggregator_by_multicast_and_pairs(links: Any, tmp_path: Path) -> None:
    pytest.importorskip("zeroconf")
    program = (
        "import sys, pathlib; from nonn_device.pair import pair; from nonn_device.discovery import discovered;"
        "from nonn.security.pairing import PairingCode; code = PairingCode.parse(sys.stdin.read());"
        "print(pair(pathlib.Path(sys.argv[1]), 'kitchen', code, discovered()).aggregator)"
    )
    prefix = ("ip", "netns", "exec", links[0].namespace, sys.executable, "-c", program, str(tmp_path / "data"))

    async def main() -> None:
        async with listening(fleet(tmp_path), "0.0.0.0", announce=True) as (code, _):
            device = await asyncio.create_subprocess_exec(*prefix, stdin=PIPE, stdout=PIPE, stderr=PIPE)
            output, errors = await device.communicate(code.text().encode())
            assert device.returncode == 0, errors.decode()
            assert output.decode().strip() == f"{links[0].ours}:50051"

    asyncio.run(main())
