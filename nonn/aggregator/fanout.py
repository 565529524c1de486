"""Sends one request to many nodes and decides reply by reply.

The part of a request that nodes share is serialised once. The rest is the node's model name, and a protobuf message
may be concatenated from pieces (protobuf.dev, encoding, "Last One Wins"), so a request is two joined byte strings.
Replies are received as bytes too: one that cannot be parsed is a failure of its node, not of the request.

A call is one of grpc.aio, which runs in a separate task, or a future of a stream; no further task is put around it.
Its done callback puts it on a list and wakes the one coroutine of the request, which reads the list, updates the
session, and sleeps again.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any, Self

import numpy as np
from grpc import aio

from nonn.aggregator.inventory import Node
from nonn.aggregator.metadata import METADATA_LIMIT
from nonn.aggregator.policy.session import Session
from nonn.aggregator.reply import Float32, Reply, ReplyReader, failure, reply_limit, silence
from nonn.aggregator.streaming import STREAM_LIMIT, with_stream
from nonn.answer import ReplyStatus
from nonn.bundle import Bundle
from nonn.bundle.views import View, select_view
from nonn.errors import DataLossError, InputError
from nonn.rpc.codec import write_request
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import INFER_METHOD, MAX_MESSAGE_BYTES, RECONNECTING_OPTIONS, Array, Parameter
from nonn.telemetry.background import Background

__all__ = [
    "NODE_CHANNEL_OPTIONS",
    "Connect",
    "Fanout",
    "Learn",
    "OnPrompt",
    "Reply",
    "channel_options",
    "connect_insecure",
]

_log = logging.getLogger(__name__)

# The deadline of a request detects failures; keepalive is for idle links.
NODE_CHANNEL_OPTIONS: tuple[tuple[str, int | str], ...] = (
    *RECONNECTING_OPTIONS,
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.service_config", json.dumps({"methodConfig": [METADATA_LIMIT, STREAM_LIMIT]})),
)

# A call ends at the deadline of its request, which is extended if this process is stopped meanwhile. gRPC's own
# deadline cannot be extended, so it is later by this from the start.
SLACK_S = 10.0

Connect = Callable[[Node], aio.Channel]
# Called with every outcome, and whether it came after the answer.
Learn = Callable[[Reply, bool], None]
# Called once if only stragglers are missing, with the seconds that all other nodes took.
OnPrompt = Callable[[float], None]


def channel_options(bundle: Bundle) -> tuple[tuple[str, int | str], ...]:
    """Options of a channel to a node: gRPC refuses messages larger than the reply to the largest request."""
    manifest = bundle.manifest
    samples = MAX_MESSAGE_BYTES // max(int(np.prod(manifest.input.shape)), 1)
    largest = max(reply_limit(samples, student.width) for student in manifest.students)
    limit = min(MAX_MESSAGE_BYTES, largest)
    return tuple((k, limit if k == "grpc.max_receive_message_length" else v) for k, v in NODE_CHANNEL_OPTIONS)


def connect_insecure(node: Node, options: Sequence[tuple[str, int | str]] = NODE_CHANNEL_OPTIONS) -> Any:
    """A channel to a node in plain text; it connects when it is first used."""
    return with_stream(node, aio.insecure_channel(node.address, options=options))


class _Recipe:
    """How a batch becomes the shared part of a request; nodes with the same recipe get the same bytes."""

    def __init__(self, node: Node, view: View, bundle_hash: str) -> None:
        self._input, self._foreign, self._view = node.input, node.foreign, view
        self._parameters: dict[str, Parameter] = {} if node.foreign else {"nonn_bundle": bundle_hash}
        self._outputs = (node.output,) if node.foreign else ()

    def write(self, request_id: str, batch: Array) -> bytes:
        """The shared part of a request."""
        sent = select_view(batch, self._view)
        if self._foreign:
            # The student's network accepts raw values as float32; a nonn node converts them itself, since bytes are
            # a quarter of the traffic.
            sent = sent.astype(np.float32)
        return write_request(request_id, {self._input: sent}, self._parameters, self._outputs, sealed=not self._foreign)


@dataclass(frozen=True)
class _Link:
    """The constants of calls to one node."""

    node: Node
    channel: Any
    call: Any
    prefix: bytes
    recipe: _Recipe
    reader: ReplyReader


_Open = tuple[Any, _Link, float]  # call, link, time of asking


class _Flight:
    """One batch sent to nodes, with a list of the replies that have arrived."""

    __slots__ = ("_timer", "_timer_at", "_waiter", "arrived", "batch", "bodies", "calls", "late", "loop", "request_id")

    def __init__(self, batch: Array, request_id: str, loop: asyncio.AbstractEventLoop) -> None:
        self.batch, self.request_id, self.loop = batch, request_id, loop
        self.bodies: dict[_Recipe, bytes] = {}
        self.calls: dict[str, _Open] = {}  # under way
        self.arrived: list[tuple[str, float]] = []
        self.late: Callable[[str], None] | None = None  # handles replies that come after the answer
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def wake(self) -> None:
        """Wakes the coroutine of the request."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def sleep(self, until: float, now: float) -> None:
        """Sleeps until ``wake`` is called (a reply calls it) or the time has come."""
        # Most requests need one timer, for the deadline, no matter how often they wake up.
        if self._timer is None or self._timer_at != until:
            self.stop_timer()
            self._timer, self._timer_at = self.loop.call_later(max(0.0, until - now), self._ring), until
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def stop_timer(self) -> None:
        """Stops the timer, after the last sleep."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self) -> None:
        self._timer = None
        self.wake()


class Fanout:
    """Channels to the nodes, and requests to them; entered in the event loop.

    Args:
        nodes: the initial nodes.
        bundle: the bundle that every reply must name.
        learn: called with every outcome.
        connect: opens the channel to a node.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        nodes: Sequence[Node],
        bundle: Bundle,
        learn: Learn = lambda reply, late: None,
        connect: Connect | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first, self._bundle, self._learn, self._clock = tuple(nodes), bundle, learn, clock
        self._connect = connect or partial(connect_insecure, options=channel_options(bundle))
        self._links: dict[str, _Link] = {}
        self._recipes: dict[Hashable, _Recipe] = {}
        self._ids = count(1)
        self._sessions: dict[Session, _Flight] = {}
        self._tasks = Background()

    async def __aenter__(self) -> Self:
        for node in self._first:
            self.add(node)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        links, self._links = self._links, {}
        await asyncio.gather(*(link.channel.close() for link in links.values()))
        await self._tasks.close()

    def add(self, node: Node) -> None:
        """Opens a channel to one more node."""
        channel, student = self._connect(node), self._bundle.manifest.students[node.student]
        self._links[node.id] = _Link(
            node=node,
            channel=channel,
            # No serialisers: requests and replies are bytes.
            call=channel.unary_unary(INFER_METHOD),
            prefix=pb.ModelInferRequest(model_name=node.model or f"student-{node.student}").SerializeToString(),
            recipe=self._recipe(node, student.view),
            reader=ReplyReader(node, student, self._bundle.hash),
        )

    def _recipe(self, node: Node, view: View) -> _Recipe:
        """The recipe of a node, shared with similar nodes."""
        key = node.foreign, node.input, node.output if node.foreign else "", view
        if key not in self._recipes:
            self._recipes[key] = _Recipe(node, view, self._bundle.hash)
        return self._recipes[key]

    async def remove(self, node_id: str, grace_s: float) -> None:
        """Closes the channel to a node; calls under way get ``grace_s`` to finish."""
        await self._links.pop(node_id).channel.close(grace_s)

    async def reconnect(self, grace_s: float) -> None:
        """Opens every channel again; calls on the old ones get ``grace_s`` to finish."""
        links = tuple(self._links.values())
        for link in links:
            self.add(link.node)
        # A node that dials out keeps its channel: it uses the stream that the node opened.
        replaced = [link.channel for link in links if self._links[link.node.id].channel is not link.channel]
        await asyncio.gather(*(channel.close(grace_s) for channel in replaced))

    def asks(self, node: Node) -> bool:
        """Whether this node is still asked, rather than a later one with the same id."""
        link = self._links.get(node.id)
        return link is not None and link.node is node

    def leave_out(self, node_id: str) -> None:
        """Ends the wait for a node in every request under way."""
        for session, flight in tuple(self._sessions.items()):
            session.leave_out(node_id)
            if session.done:
                flight.wake()

    async def ask(
        self, session: Session, batch: Array, on_prompt: OnPrompt | None = None
    ) -> tuple[dict[int, Float32], list[Reply]]:
        """Asks the nodes that a session chooses and waits as long as it decides.

        A call that is still open when the answer is good enough continues until its deadline, and its outcome goes to
        ``learn`` as late, so that the statistics of slow nodes stay correct. At the deadline it is cancelled.

        Args:
            session: the session of this request.
            batch: checked inputs [B, …], sent in their dtype.
            on_prompt: called if only stragglers are missing.

        Returns:
            The features to fuse, student → [B, d_i], and the outcome of every node that was asked, in the order
            of arrival; calls that are still open at the end are missing.
        """
        flight = _Flight(batch, str(next(self._ids)), asyncio.get_running_loop())
        features, replies = dict[int, Float32](), list[Reply]()
        self._sessions[session] = flight
        try:
            for node_id in session.ask:
                self._send(flight, node_id, session.deadline_at)
            while not session.done or flight.arrived:
                for node_id, at in flight.arrived:
                    reply = await self._read(flight, *flight.calls.pop(node_id), at)
                    if session.prompt_done:
                        reply = replace(reply, lag_s=at - session.prompt_at)
                    if session.tell(node_id, reply.features is not None) and reply.features is not None:
                        features[reply.node.student] = reply.features
                    replies.append(reply)
                    self._learn(reply, False)
                flight.arrived.clear()
                now = self._clock()
                for node_id in session.decide(now):
                    self._send(flight, node_id, session.deadline_at)
                if session.prompt_done and on_prompt is not None:
                    on_prompt(session.prompt_at - session.asked_at)
                    on_prompt = None
                if not session.done and not flight.arrived:
                    await flight.sleep(session.look_at, now)
        except BaseException:
            for call, link, asked_at in flight.calls.values():
                call.cancel()
                given_up_s = self._clock() - asked_at
                self._learn(Reply(link.node, ReplyStatus.GIVEN_UP, given_up_s, error="given up"), False)
            raise
        finally:
            flight.stop_timer()
            del self._sessions[session]
        if flight.calls:
            replies += self._leave(flight, session)
        return features, replies

    async def probe(self, node_id: str, batch: Array, deadline_s: float) -> Reply | None:
        """Asks one node, waiting for its connection too; None if it was removed meanwhile."""
        flight = _Flight(batch, str(next(self._ids)), asyncio.get_running_loop())
        if node_id not in self._links:
            return None
        self._send(flight, node_id, self._clock() + deadline_s, wait_for_ready=True)
        call, link, asked_at = flight.calls.pop(node_id)
        try:
            return await self._read(flight, call, link, asked_at)
        finally:
            call.cancel()

    def _send(self, flight: _Flight, node_id: str, deadline_at: float, *, wait_for_ready: bool = False) -> None:
        """Asks one node."""
        link, now = self._links[node_id], self._clock()
        body = flight.bodies.get(link.recipe)
        if body is None:
            body = flight.bodies[link.recipe] = link.recipe.write(flight.request_id, flight.batch)
        timeout_s = max(0.0, deadline_at - now) + (0.0 if wait_for_ready else SLACK_S)
        call = link.call(link.prefix + body, timeout=timeout_s, wait_for_ready=wait_for_ready)
        flight.calls[node_id] = call, link, now

        def done(call: Any) -> None:
            if flight.late is not None:
                flight.late(node_id)
                return
            flight.arrived.append((node_id, self._clock()))
            flight.wake()

        if not wait_for_ready:
            call.add_done_callback(done)

    async def _read(self, flight: _Flight, call: Any, link: _Link, asked_at: float, at: float | None = None) -> Reply:
        """The outcome of a call; any error at the node, or in reading its reply, becomes a failed reply."""
        took_s = 0.0
        try:
            raw = await call
            took_s = (at or self._clock()) - asked_at
            if not isinstance(raw, bytes):  # gRPC gives no message where a server ends the call well without one
                raise InputError("status OK without a message")
            features = link.reader.read(raw, flight.request_id, len(flight.batch))
            return Reply(link.node, ReplyStatus.OK, took_s, features, num_samples=len(flight.batch))
        except aio.AioRpcError as exc:
            return failure(link.node, exc, (at or self._clock()) - asked_at, len(flight.batch))
        except (InputError, DataLossError) as exc:
            return Reply(link.node, ReplyStatus.MALFORMED, took_s, error=f"bad reply: {exc}")
        except asyncio.CancelledError:
            if not call.cancelled() or self._links.get(link.node.id) is link:
                raise
            took_s = self._clock() - asked_at
            return Reply(link.node, ReplyStatus.REMOVED, took_s, error="it left the cluster")
        except Exception as exc:  # a node can send anything: none may end the request or the probe
            _log.exception("node %s: its reply cannot be read", link.node.id)
            return Reply(link.node, ReplyStatus.MALFORMED, took_s, error=f"bad reply: {type(exc).__name__}: {exc}")

    def _leave(self, flight: _Flight, session: Session) -> list[Reply]:
        """At the deadline, nodes without a reply are silent; before it, their replies go to ``learn`` on arrival."""
        now, silent = self._clock(), list[Reply]()
        prompt_at = session.prompt_at if session.prompt_done else now
        if session.timed_out(now):
            for call, link, asked_at in flight.calls.values():
                call.cancel()
                silent.append(silence(link.node, now - asked_at, len(flight.batch)))
                self._learn(silent[-1], False)
            return silent

        def late(node_id: str) -> None:
            if node_id in flight.calls:  # otherwise it has been given up
                reading = self._take_late(flight, flight.calls.pop(node_id), self._clock(), prompt_at)
                self._tasks.start(reading, f"late reply of node {node_id}")

        def expire() -> None:
            now = self._clock()
            if flight.calls and not session.timed_out(now):
                flight.loop.call_later(session.deadline_at - now, expire)
                return
            calls, flight.calls = flight.calls, {}
            for call, link, asked_at in calls.values():
                call.cancel()
                self._learn(silence(link.node, now - asked_at, len(flight.batch)), True)

        flight.late = late
        expire()
        return silent

    async def _take_late(self, flight: _Flight, open_call: _Open, at: float, prompt_at: float) -> None:
        """Passes a reply that came after the answer to ``learn``."""
        reply = await self._read(flight, *open_call, at)
        self._learn(replace(reply, lag_s=at - prompt_at), True)
