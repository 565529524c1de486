"""A microcontroller in the cluster that is killed, cut off and reset under load: no request is lost.

An emulated Cortex-M4F (``devices/mcu/node.c`` in QEMU) runs the last student; its gateway is a node of a separate
aggregator, next to the nodes of the site. Where QEMU or the cross-compiler is missing the board is node.c compiled for
this machine, behind UDP, and ``boards_emulated`` is empty. Faults under load:

=========  =======================================================================
``kill``   the board is switched off, and on again after ``OFF_S``
``cut``    the line to it is closed and refuses, for ``OFF_S``; not over UDP
``reset``  the processor is reset in the middle of what it does
=========  =======================================================================
"""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator

from nonn_device.board import BoardRuntime
from nonn_sim.proxy import Proxies
from nonn_sim.scenario import LinkConfig

from benchmarks import storm
from benchmarks.emulated import HERE, PROCESSORS, Board, EmulatedBoard, NativeBoard, free_port, link
from benchmarks.endurance import CLIENT_DEADLINE_S, DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.aggregator.inventory import Node, write_inventory
from nonn.client import Client
from nonn.errors import NonnError, UnreachableError
from nonn.export.build import write_source
from nonn.export.c import generate_c
from tests.fleets import Running

__all__ = ["SECTIONS"]

CLIENTS = 4
PAUSE_S = 0.03  # between two requests of all clients: emulated, it has a slow line
ROUNDS = 3
OFF_S = 2.0
WORKS_S = 2.0  # between two faults: a board that fails before it has answered a request is asked again later each time
BACK_S = 30.0  # the promise: a breaker asks again after ten seconds at most, an emulated board starts in one
WAIT_S = 120.0


class Watch:
    """Steady load, and whether the board is up: it answers requests, or the probe after a failure.

    Args:
        client: of the aggregator.
        ground: with the samples.
        device: number of the board's student.
    """

    def __init__(self, client: Client, ground: Ground, device: int) -> None:
        self._client, self._ground, self._device = client, ground, device
        self._over = threading.Event()
        self.records: list[storm.Record] = []

    def __enter__(self) -> Watch:
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _ask(self) -> None:
        self.records = storm.load(
            self._client, self._ground.inputs, CLIENTS, lambda number: not self._over.wait(PAUSE_S)
        )

    def until(self, up: bool) -> float:
        """Seconds until the board is up, or is not."""
        begun = time.monotonic()
        while time.monotonic() < begun + WAIT_S:
            with contextlib.suppress(NonnError):
                if (self._client.metadata().nodes[self._device]["state"] == "up") == up:
                    return time.monotonic() - begun
            time.sleep(0.02)
        raise AssertionError(f"the board was {'never' if up else 'always'} up for {WAIT_S:g} s")


@contextlib.contextmanager
def _board(ground: Ground, device: int) -> Iterator[tuple[Board, str, Proxies | None, str]]:
    """A board that runs a student: it, the place of its line, the proxy in between, and the name of the emulator."""
    student = write_source(generate_c(ground.bundle.student_path(device).read_bytes(), "board"), ground.folder)
    processor, port = PROCESSORS[1], free_port()
    with contextlib.ExitStack() as stack:
        if processor.missing:
            program = ground.folder / "node"
            command = ["cc", "-O2", f"-DNONN_UDP_PORT={port}", f"-I{ground.folder}", HERE / "devices/mcu/node.c"]
            subprocess.run([*command, student, "-lm", "-o", program], check=True)
            yield stack.enter_context(NativeBoard([program])), f"udp:127.0.0.1:{port}", None, ""
            return
        board = stack.enter_context(EmulatedBoard(processor, link(processor, "node.c", student), port))
        fast = LinkConfig(latency_s=0.0, jitter_s=0.0)
        proxies = stack.enter_context(Proxies([f"127.0.0.1:{port}"], [fast]))
        yield board, f"tcp:{proxies.addresses[0]}", proxies, processor.emulator.split()[0]


def _boards(ground: Ground) -> Figures:
    device = ground.bundle.num_devices - 1
    back: dict[str, list[float]] = {}
    with contextlib.ExitStack() as stack:
        board, place, proxies, emulator = stack.enter_context(_board(ground, device))
        _await(ground, device, place)
        gateway = Running(ground.folder / "gateway.log", *_gateway(ground, device, place))
        stack.callback(gateway.close)
        inventory = ground.folder / "boards.toml"
        nodes = [Node(id=f"node-{s.node}", address=s.address, student=s.node) for s in ground.site.cluster.states()]
        nodes[device] = Node(id="board", address=gateway.ready["address"], student=device)
        write_inventory(inventory, nodes)
        serve = ("nonn", "serve", ground.bundle.path, "--inventory", inventory, "--deadline", DEADLINE_S)
        aggregator = Running(ground.folder / "boards.log", *serve)
        stack.callback(aggregator.close)
        client = stack.enter_context(Client(aggregator.ready["address"], CLIENT_DEADLINE_S))
        with Watch(client, ground, device) as watch:
            watch.until(True)
            for _ in range(ROUNDS):
                for kind in ("kill", "reset", *(["cut"] if proxies else [])):
                    time.sleep(WORKS_S)
                    _fault(kind, board, proxies, watch)
                    back.setdefault(kind, []).append(watch.until(True))
    return {
        "boards_emulated": emulator,
        "boards_requests": len(watch.records),
        "boards_failed": sum(record.answer is None for record in watch.records),
        "boards_failures": reasons(watch.records),
        "boards_fused": sum(r.answer is not None and bool(r.answer.answered[device]) for r in watch.records),
        "boards_wrong": len(storm.wrong_answers(ground.bundle, watch.records)),
        "boards_faults": {kind: len(times) for kind, times in back.items()},
        "boards_back_s": {kind: round(max(times), 2) for kind, times in back.items()},
    }


def _await(ground: Ground, device: int, place: str) -> None:
    """Returns when the board answers; until it has started its port refuses."""
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            BoardRuntime(place, ground.bundle.manifest.students[device], ground.bundle.input_of(device)).close()
            return
        except UnreachableError:
            assert time.monotonic() < deadline, "the board does not start"
            time.sleep(0.1)


def _gateway(ground: Ground, device: int, place: str) -> tuple[object, ...]:
    return ("nonn_device", "serve", ground.bundle.path, "--student", device, "--runtime", place)


def _fault(kind: str, board: Board, proxies: Proxies | None, watch: Watch) -> None:
    """Breaks the board or its line and mends it; a reset may pass unnoticed."""
    if kind == "reset":
        board.reset()
        time.sleep(OFF_S)
        return
    if kind == "cut":
        assert proxies is not None
        proxies.change(0, lambda proxy: proxy.partition(True))
    else:
        board.kill()
    watch.until(False)
    time.sleep(OFF_S)
    if kind == "cut":
        assert proxies is not None
        proxies.change(0, lambda proxy: proxy.partition(False))
    else:
        board.switch_on()


SECTIONS = (
    Section(
        "boards",
        _boards,
        {
            "a microcontroller that is killed, cut off or reset costs no request": lambda f: (
                f["boards_failed"] == f["boards_wrong"] == 0 < f["boards_requests"]
            ),
            "a microcontroller is up again within 30 s": lambda f: max(f["boards_back_s"].values()) <= BACK_S,
        },
    ),
)
