"""Steady load on the cluster, and how long answers miss a node that is broken."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator

import numpy as np

from benchmarks.pi.containers import Machine
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.errors import NonnError

__all__ = ["Asked", "fault", "load"]

WAIT_S = 300.0  # for nodes to answer
PAUSE_S = 0.1  # between requests


def fault(asked: Asked, broken: Machine, command: str) -> dict[str, float]:
    """Breaks a node.

    Returns:
        Seconds until an answer without it, and until both answer again.
    """
    begun = time.monotonic()
    broken.sudo(command, check=False)  # a reboot ends the connection
    asked.until(1)
    missing = time.monotonic()
    asked.until(2)
    found = {"missing_s": round(missing - begun, 1), "back_s": round(time.monotonic() - begun, 1)}
    print(f"{broken.name}, {command}: {json.dumps(found)}", flush=True)
    return found


class Asked:
    """Steady load, and what it has seen.

    Attributes:
        requests: answered or lost, since both nodes answered for the first time.
        lost: the errors among them.
        lowest: lowest stated accuracy.
    """

    def __init__(self, client: Client, bundle: Bundle) -> None:
        self._client, self._num_nodes = client, bundle.num_devices
        self._sample = np.zeros((1, *bundle.input_of(0).shape), np.uint8)
        self.requests, self.lost, self.lowest = 0, list[str](), 1.0
        self._ended, self._news, self._begun = threading.Event(), threading.Condition(), False
        self._latest: tuple[int, str] = (0, "")

    def run(self) -> None:
        """Asks until the end."""
        while not self._ended.wait(PAUSE_S):
            try:
                answer = self._client.infer(self._sample)
            except NonnError as exc:
                if self._begun:
                    self.requests += 1
                    self.lost.append(f"{type(exc).__name__}: {exc}")
                continue
            with self._news:
                self._latest = (int(answer.answered.sum()), answer.bundle)
                self._begun |= self._latest[0] == self._num_nodes
                self.requests += self._begun
                self.lowest = min(self.lowest, answer.expected_accuracy)
                self._news.notify_all()

    def until(self, nodes: int, bundle: str = "") -> None:
        """Returns when as many nodes answer, of a bundle if one is given."""
        with self._news:
            came = self._news.wait_for(lambda: self._latest[0] == nodes and bundle in ("", self._latest[1]), WAIT_S)
        assert came, f"{nodes} nodes did not answer within {WAIT_S:g} s; the latest: {self._latest}, {self.lost[-1:]}"

    def end(self) -> None:
        """Ends the load."""
        self._ended.set()


@contextlib.contextmanager
def load(client: Client, bundle: Bundle) -> Iterator[Asked]:
    """Steady load for as long as the context lasts."""
    asked = Asked(client, bundle)
    thread = threading.Thread(target=asked.run)
    thread.start()
    try:
        yield asked
    finally:
        asked.end()
        thread.join()
