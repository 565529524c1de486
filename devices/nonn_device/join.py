"""``nonn-device join``: registers a node with aggregators and renews its leases.

One aggregator assigns the student; the node reports that student to the others. A separate task for each aggregator
registers, renews the lease, and registers again after a restart or a failed connection: with back-off and jitter, so
that a hundred nodes do not return in the same millisecond (Brooker 2015, Exponential Backoff And Jitter, AWS
Architecture Blog). The sleep function is an argument, and cancelling the task ends any wait.

Aggregators need not know of each other, because the node holds them together:

- A node that one of them has drained leaves the others too, until that one lets it in again.
- A node that one of them moves to another bundle, in an update of the fleet, takes that bundle and registers with the
  one that moves it last.

A node leaves gracefully: it notifies every aggregator, answers the requests in flight, and exits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import platform
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nonn import __version__
from nonn.bundle import Bundle
from nonn.errors import ConfigError, CredentialsError, DrainedError, MembershipError, NonnError, UnreachableError
from nonn.rpc.v1 import fleet_pb2 as pb
from nonn.telemetry.background import Background
from nonn_device.artifacts import Artifact, Store
from nonn_device.link import AggregatorLink
from nonn_device.vitals import resident_bytes

if TYPE_CHECKING:
    from nonn_device.publish import Sensor  # loaded by nodes that sense only

__all__ = ["Backoff", "JoinOptions", "Member"]

BACKOFF_S = (0.1, 1.5)  # first and longest: a restarted aggregator has its nodes again within two seconds
HEARTBEATS = 3  # per duration of a lease

Sleep = Callable[[float], Awaitable[None]]

_log = logging.getLogger(__name__)


class Backoff:
    """Exponential back-off with jitter: doubles up to a limit; each wait is 50 to 100 % of it.

    Args:
        sleep: waits a number of seconds.
        rng: source of the jitter.
    """

    def __init__(self, sleep: Sleep = asyncio.sleep, rng: random.Random | None = None) -> None:
        self._sleep, self._rng = sleep, rng or random.Random()
        self._next_s, self._limit_s = BACKOFF_S

    def reset(self) -> None:
        """Starts over after a successful attempt."""
        self._next_s = BACKOFF_S[0]

    async def wait(self) -> None:
        """Waits before the next attempt."""
        wait_s, self._next_s = self._next_s, min(2 * self._next_s, self._limit_s)
        await self._sleep(wait_s * self._rng.uniform(0.5, 1.0))


@dataclass(frozen=True, kw_only=True)
class JoinOptions:
    """The operator's options for a node.

    Attributes:
        node: its id.
        student: the student to run; None leaves the choice to the aggregator.
        advertise: host or ``host:port`` at which aggregators reach it; empty for the address of its interface.
        max_model_bytes: largest student that fits; 0 for any.
        dials_out: it has no reachable address; requests arrive over a stream that it opens.
    """

    node: str
    student: int | None = None
    advertise: str = ""
    max_model_bytes: int = 0
    dials_out: bool = False


class Member:
    """A node as a member of one or several clusters.

    Args:
        options: of the operator.
        links: the aggregators, in order of preference.
        store: of the student's files.
        sleep: waits a number of seconds.

    Attributes:
        node: its id.
        moved: an aggregator has assigned another student.
        failure: the error with which an aggregator refused the node for good; None if none did.
    """

    def __init__(
        self, options: JoinOptions, links: list[AggregatorLink], store: Store, sleep: Sleep = asyncio.sleep
    ) -> None:
        self.node = options.node
        self._options, self._links, self._store, self._sleep = options, links, store, sleep
        self._instance = secrets.token_hex(16)
        self._bundle, self._student, self._runtime = "", options.student, ""
        self.moved = False
        self._mover: AggregatorLink | None = None  # moves this node to another bundle
        self.failure: NonnError | None = None

    async def prepare(self) -> tuple[Bundle, int]:
        """Gets a student and its files: from an aggregator of the bundle that it has, or else from the first one.

        Returns:
            The bundle and the number of the student.

        Raises:
            NonnError: every aggregator refuses this node, and waiting would not help.
        """
        self.moved = False
        held = self._store.held()
        if held is not None and self._options.student in (None, held[1]):
            self._bundle, self._student = held
        if self._options.student is not None:
            self._bundle = ""  # the operator's choice applies to any bundle of the cluster
        backoff, logged = Backoff(self._sleep), ""
        while True:
            errors, offers = list[NonnError](), list[tuple[AggregatorLink, Any]]()
            for link in self._links:
                try:
                    response = await self._register(link, "")
                    if response.moves or self._bundle in ("", response.bundle):
                        return await self._take(link, response)
                    offers.append((link, response))
                except NonnError as exc:
                    link.drained = link.drained or isinstance(exc, DrainedError)
                    errors.append(exc)
            for link, response in offers:
                try:
                    return await self._take(link, response)
                except NonnError as exc:
                    errors.append(exc)
            final = [error for error in errors if not isinstance(error, UnreachableError)]
            if len(final) == len(errors):
                raise final[0]
            text = "; ".join(map(str, errors))
            if text != logged:
                _log.warning("%s; trying again", text)
            logged = text
            await backoff.wait()

    async def _take(self, link: AggregatorLink, response: Any) -> tuple[Bundle, int]:
        """Downloads the files of the student that an aggregator assigns.

        Raises:
            UnreachableError: the aggregator refuses the download; the node must register again, which says why.
            NonnError: as of ``Store.fetch``.
        """
        self._bundle, self._student = response.bundle, response.student
        artifacts = [Artifact(a.path, a.sha256, a.bytes) for a in response.artifacts]
        try:
            bundle = await self._store.fetch(response.bundle, response.student, artifacts, link.read)
        except CredentialsError as exc:
            # As a rule the lease has ended: an update was undone, the aggregator restarted, a slow card took too long.
            raise UnreachableError(str(exc)) from exc
        _log.info("%s assigns student %d of bundle %.12s…", link.address, response.student, bundle.hash)
        return bundle, response.student

    @contextlib.asynccontextmanager
    async def attend(
        self, address: str, end: Callable[[], None], runtime: str = "", sensor: Sensor | None = None
    ) -> AsyncIterator[None]:
        """Keeps the memberships during the block; leaves gracefully afterwards.

        Args:
            address: ``host:port`` that the node is bound to.
            end: ends the server; called when an aggregator refuses this node for good or assigns another student.
            runtime: name of the student's runtime.
            sensor: of a node that senses; when its source ends, so does the server.
        """
        self._runtime = runtime
        for link in self._links:
            link.lease = ""  # the lease of ``prepare`` was for the files
            link.tried.clear()
        async with Background(end) as working:
            for link in self._links if self._options.dials_out else ():
                working.start(self._keep_stream(link, partial(link.work, address), end), f"stream to {link.address}")
            if sensor is not None:
                working.start(_sense(sensor, end), "the sensor")
                for link in self._links:
                    publish = partial(link.publish, sensor)
                    working.start(self._keep_stream(link, publish, end), f"windows for {link.address}")
            try:
                async with Background(end) as keeping:
                    for link in self._links:
                        keeping.start(self._keep(link, address, end), f"membership of {link.address}")
                    yield
            finally:
                # Requests in flight on the streams are answered before the aggregator confirms the leave.
                await asyncio.gather(*map(self._leave, self._links))

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*(link.close() for link in self._links))

    async def _keep(self, link: AggregatorLink, address: str, end: Callable[[], None]) -> None:
        """Registers with one aggregator and renews the lease for as long as the node serves."""
        backoff, logged, lease_s, pause_s = Backoff(self._sleep), "", 0.0, 0.0
        others = [other for other in self._links if other is not link]
        if link is self._mover:
            self._mover = None
            await asyncio.gather(*(other.tried.wait() for other in others))
        while True:
            if drainer := next((other.address for other in others if other.drained), ""):
                if drainer != logged:
                    _log.warning("%s: left, because %s has drained this node", link.address, drainer)
                link.drained, lease_s, logged = False, 0.0, drainer
                link.tried.set()
                await self._leave(link)
                await backoff.wait()
                continue
            try:
                if not lease_s:
                    try:
                        lease_s = await self._place(link, address, end)
                    finally:
                        link.tried.set()
                    link.drained = False
                    _log.info("%s: in the cluster with student %s", link.address, self._student)
                    pause_s = lease_s / HEARTBEATS
                await self._sleep(pause_s)
                beat = await link.call("Heartbeat", pb.HeartbeatRequest(lease=link.lease, rss_bytes=resident_bytes()))
                pause_s, logged = lease_s / HEARTBEATS, ""
                backoff.reset()
                if not beat.known:
                    _log.warning("%s: the lease is no longer valid; joining again", link.address)
                    lease_s = 0.0
            except MembershipError as exc:
                # For example, another device has the id; waiting would not change that.
                self.failure = exc
                end()
                return
            except NonnError as exc:
                link.drained = link.drained or isinstance(exc, DrainedError)
                if str(exc) != logged:
                    _log.warning("%s; trying again", exc)
                logged, pause_s = str(exc), 0.0  # retried after the back-off only
                await backoff.wait()

    async def _keep_stream(
        self, link: AggregatorLink, run: Callable[[], Awaitable[None]], end: Callable[[], None]
    ) -> None:
        """Keeps a stream open to one aggregator: for its requests, or for the windows of a sensor."""
        backoff, logged = Backoff(self._sleep), ""
        while True:
            started = asyncio.get_running_loop().time()
            if link.lease:
                try:
                    await run()
                except (ConfigError, MembershipError) as exc:
                    # For example, another node measures this unit; waiting would not change that.
                    self.failure = exc
                    end()
                    return
                except NonnError as exc:
                    if str(exc) != logged:
                        _log.debug("%s; dialling again", exc)  # the heartbeat logs the reason
                    logged = str(exc)
            if asyncio.get_running_loop().time() - started > BACKOFF_S[1]:
                backoff.reset()
            await backoff.wait()

    async def _place(self, link: AggregatorLink, address: str, end: Callable[[], None]) -> float:
        """Registers as a serving node; returns the duration of the lease in seconds."""
        advertised = "" if self._options.dials_out else link.advertised(address, self._options.advertise)
        response = await self._register(link, advertised)
        if (response.bundle, response.student) != (self._bundle, self._student):
            # An aggregator with another bundle. The student may change only in an update, or if no other uses it.
            if not response.moves and any(other.lease for other in self._links if other is not link):
                await self._leave(link)
                raise UnreachableError(
                    f"{link.address}: serves bundle {response.bundle[:12]}…, this node one of {self._bundle[:12]}… for "
                    "another aggregator; give both the same bundle"
                )
            _log.warning("%s: assigns student %d of another bundle", link.address, response.student)
            self.moved, self._mover = True, link
            self._links.sort(key=lambda other: other is not link)  # it is the one to ask for the files
            end()
            await asyncio.Event().wait()  # until the server ends
        return float(response.lease_ms) / 1e3

    async def _register(self, link: AggregatorLink, address: str) -> Any:
        """Registers with one aggregator."""
        request = pb.RegisterRequest(
            node=self._options.node,
            instance=self._instance,
            fingerprint=self._store.fingerprint,
            address=address,
            bundle=self._bundle,
            dials_out=self._options.dials_out,
            capabilities=pb.Capabilities(
                version=__version__,
                runtime=self._runtime,
                machine=platform.machine(),
                max_model_bytes=self._options.max_model_bytes,
            ),
        )
        if self._student is not None:
            request.student = self._student
        response = await link.call("Register", request)
        link.lease = response.lease
        return response

    async def _leave(self, link: AggregatorLink) -> None:
        """Leaves one aggregator; if that cannot be reached, the lease expires."""
        if link.lease:
            with contextlib.suppress(NonnError):
                await link.call("Drain", pb.DrainRequest(lease=link.lease))
        link.lease = ""


async def _sense(sensor: Sensor, end: Callable[[], None]) -> None:
    """Runs a sensor; ends the node with its source."""
    await sensor.run()
    end()
