"""Aggregators that take joins and nodes that join them: real processes for the tests of membership."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from typing import Any

import numpy as np

from nonn.bundle import Bundle
from nonn.client import Client
from nonn.security.authority import Authority
from tests.agreement import check_against_offline_fusion
from tests.serving import TIMEOUT_S
from tests.toys import toy_data

SAMPLE = np.zeros((1, 1, 8, 8), np.uint8)
TOKEN = "a-token-for-those-who-join"


class Running:
    """A process, its ready line and its log."""

    def __init__(self, log: Any, *arguments: Any) -> None:
        self.log = log
        with log.open("wb") as stderr:
            command = [sys.executable, "-m", *map(str, arguments), "--watch-stdin"]
            self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr)

    @property
    def ready(self) -> Any:
        """Of the next start of its server."""
        assert self.child.stdout is not None
        line = self.child.stdout.readline()
        assert line, self.log.read_text()
        return json.loads(line)

    def end(self, number: Any = signal.SIGTERM) -> Any:
        self.child.send_signal(number)
        return self.child.wait(TIMEOUT_S)

    def close(self) -> None:
        self.child.kill()
        self.child.wait()
        assert self.child.stdin is not None
        self.child.stdin.close()
        assert self.child.stdout is not None
        self.child.stdout.close()


class Fleet:
    """Aggregators and nodes of one test."""

    def __init__(self, folder: Any, stack: Any) -> None:
        self.folder, self._stack, self._count = folder, stack, 0
        self.token = folder / "join.token"
        self.token.write_text(TOKEN)

    def _start(self, *arguments: Any) -> Any:
        self._count += 1
        running = Running(self.folder / f"{self._count}.log", *arguments)
        self._stack.callback(running.close)
        return running

    def aggregator(self, bundle: Bundle, *options: Any, port: int = 0) -> Any:
        security = () if "--tls" in options else ("--join-token-file", self.token)
        running = self._start("nonn", "serve", bundle.path, "--joins", "--port", port, *security, *options)
        return running, running.ready["address"]

    def with_tls(self, bundle: Bundle, *options: Any) -> Any:
        """An authority, and an aggregator with one of its certificates: its process and address."""
        authority = Authority.create(self.folder / "certs")
        for role, name in (("aggregator", "main"), ("client", "alice"), ("node", "a"), ("node", "b")):
            authority.issue(role, name)
        return authority, *self.aggregator(bundle, "--tls", authority.folder("aggregator", "main"), *options)

    def node(self, name: Any, *aggregators: Any, data: Any = None, options: Any = ()) -> Any:
        security = () if "--tls" in options else ("--join-token-file", self.token, "--id", name)
        data = data or self.folder / name
        return self._start("nonn_device", "join", *aggregators, "--data", data, *security, *options)

    def client(self, address: Any, **options: Any) -> Any:
        return self._stack.enter_context(Client(address, TIMEOUT_S, **options))


def members(client: Any) -> Any:
    """Student of each node that is up."""
    return {node["id"]: node["student"] for node in client.metadata().nodes if node["state"] == "up"}


def check_offline(bundle: Bundle, client: Any) -> Any:
    """The answer is the offline fusion of the recorded features of the devices that it names."""
    inputs, _ = toy_data(200, seed=3)
    answer = client.infer(inputs[:1])
    check_against_offline_fusion(bundle, answer, slice(1))
    return answer
