"""Clients of the REST form of an aggregator, while nodes are killed and other HTTP clients take all they can.

The others are two clients with requests of 1,000 samples in JSON, one after another, and 64 connections that announce
the largest body and send one byte in each second. All of it lasts for ``SECONDS``, in which nodes are killed one after
another and started again.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from itertools import cycle

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks import slow, storm
from benchmarks.endurance import DEADLINE_S
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.answer import Answer
from nonn.errors import NonnError
from nonn.rpc.wire import DTYPES, Array

__all__ = ["SECTIONS", "HttpClient"]

SECONDS = 12.0
DOWN_S = 1.0  # of a killed node, and as long until the next one is killed
GREEDY, GREEDY_SAMPLES = 2, 1000
REFUSED_S = 0.1  # after which a greedy client tries again
SLOW_SENDERS = 64
BODY_BYTES = 1_000_000  # of a body that never ends; all of them are the budget of incomplete bodies
SETTLE_S = 3.0
KEPT_MB = 40
LINES = 100  # of the log; each kill of a node takes some
PATH = "/v2/models/nonn/infer"


class HttpClient:
    """Asks like ``nonn.Client``, over HTTP, with a connection for each thread.

    Args:
        address: ``http://host:port``.
    """

    def __init__(self, address: str) -> None:
        self._host, self._local = address.removeprefix("http://"), threading.local()

    def send(self, body: str) -> bytes:
        """The response to a body.

        Raises:
            NonnError: there is none, or it is an error.
        """
        try:
            connection = self._local.__dict__.setdefault(
                "connection", http.client.HTTPConnection(self._host, timeout=slow.CLIENT_DEADLINE_S)
            )
            connection.request("POST", PATH, body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            status, content = response.status, response.read()
        except (OSError, http.client.HTTPException) as exc:
            self._local.__dict__.pop("connection").close()
            raise NonnError(f"{type(exc).__name__}: {exc}") from exc
        if status != 200:
            raise NonnError(f"{status}: {json.loads(content)['error']}")
        return content

    def infer(self, batch: Array) -> Answer:
        """The answer to one batch of bytes; raises as ``send`` does."""
        start, reply = time.monotonic(), json.loads(self.send(_body(batch)))
        tensors = {
            one["name"]: np.array(one["data"], DTYPES[one["datatype"]]).reshape(one["shape"])
            for one in reply["outputs"]
        }
        return Answer.read(tensors, reply["parameters"], time.monotonic() - start)


def _body(batch: Array) -> str:
    tensor = {"name": "input", "datatype": "UINT8", "shape": batch.shape, "data": batch.ravel().tolist()}
    return json.dumps({"inputs": [tensor]})


@contextlib.contextmanager
def _kills(site: storm.Site, ended: threading.Event) -> Iterator[list[int]]:
    """Kills one node after another and starts it again; yields the nodes that were killed."""
    killed = list[int]()

    def kill() -> None:
        for node in cycle(range(site.bundle.num_devices)):
            if ended.wait(DOWN_S):
                return
            site.inject(node, "kill", True)
            killed.append(node)
            ended.wait(DOWN_S)
            site.inject(node, "kill", False)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def _slow_senders(address: str, ended: threading.Event) -> Iterator[None]:
    """Connections whose bodies never end."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    kind = "Content-Type: application/json"
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\n{kind}\r\nContent-Length: {BODY_BYTES}\r\n\r\n"

    def send(held: list[socket.socket]) -> None:
        while not ended.wait(1.0):
            for number, connection in enumerate(held):
                try:
                    connection.sendall(b" ")
                except OSError:  # refused; the next one takes its place
                    connection.close()
                    held[number] = _begun((host, int(port)), head)

    with contextlib.ExitStack() as stack:
        held = [_begun((host, int(port)), head) for _ in range(SLOW_SENDERS)]
        stack.callback(lambda: [connection.close() for connection in held])
        thread = threading.Thread(target=send, args=(held,))
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        yield


def _begun(address: tuple[str, int], head: str) -> socket.socket:
    """A connection with the beginning of a request whose body is nearly complete."""
    connection = socket.create_connection(address, timeout=slow.CLIENT_DEADLINE_S)
    connection.sendall(head.encode() + b" " * (BODY_BYTES - 1000))
    return connection


def _greedy(client: HttpClient, inputs: NDArray[np.uint8], ended: threading.Event, sent: list[str]) -> None:
    """One large request after another; adds its error to ``sent``, or an empty text."""
    body = _body(inputs.take(range(GREEDY_SAMPLES), axis=0, mode="wrap"))
    while not ended.is_set():
        try:
            client.send(body)
            sent.append("")
        except NonnError as exc:
            sent.append(str(exc))
            ended.wait(REFUSED_S)


def _http(ground: Ground) -> Figures:
    ended, sent, concurrency = threading.Event(), list[str](), ground.args.concurrency // 2
    with storm.site(ground.bundle, DEADLINE_S, ground.args.seed, ["--http-port", "0"]) as site:
        process, client = psutil.Process(site.pid), HttpClient(site.http)
        storm.load(client, ground.inputs, concurrency, lambda number: number < 200)
        before_mb, lines = process.memory_info().rss / 1e6, site.log.read_bytes().count(b"\n")
        greedy = [
            threading.Thread(target=_greedy, args=(client, ground.inputs, ended, sent), daemon=True)
            for _ in range(GREEDY)
        ]
        until = time.monotonic() + SECONDS
        with _slow_senders(site.http, ended), _kills(site, ended) as killed:
            for thread in greedy:
                thread.start()
            records = storm.load(client, ground.inputs, concurrency, lambda number: time.monotonic() < until)
        for thread in greedy:
            thread.join()
        time.sleep(SETTLE_S)
        kept_mb = process.memory_info().rss / 1e6 - before_mb
        lines = site.log.read_bytes().count(b"\n") - lines
    latencies = [record.done_s - record.asked_s for record in records]
    return {
        "http_requests": len(records),
        "http_failed": sum(record.answer is None for record in records),
        "http_failures": reasons(records),
        "http_p50_ms": 1e3 * float(np.median(latencies)),
        "http_p99_ms": 1e3 * float(np.percentile(latencies, 99)),
        "http_kills": len(killed),
        "http_greedy_requests": len(sent),
        "http_greedy_failures": sorted({text for text in sent if text})[:5],
        "http_kept_mb": kept_mb,
        "http_log_lines": lines,
    }


SECTIONS = (
    Section(
        "http",
        _http,
        {
            "kills and greedy or slow clients over HTTP fail no request of others": lambda f: f["http_failed"] == 0,
            "99 % of answers over HTTP come within the deadline": lambda f: f["http_p99_ms"] < 1e3 * DEADLINE_S,
            "attacks over HTTP leave no memory behind": lambda f: f["http_kept_mb"] <= KEPT_MB,
            "attacks over HTTP do not fill the log": lambda f: f["http_log_lines"] <= LINES,
        },
    ),
)
