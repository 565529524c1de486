"""The hub of the nodes that sense: windows in, one answer for each point of the grid out.

``Alignment`` says which windows belong together and when an answer is due; the aggregator's heads fuse whatever there
is, so the mask of an answer is the set of devices that really sensed. The test of devices against each other runs on
the streams too, with separate evidence: a unit that is worn wrongly or swapped with another contradicts the others in
its features, although its student passes every probe. It is left out of the window, and after repeated contradictions
for the time of a quarantine.

If the bundle smooths over time, an answer also has the label after the windows before it. A window without an answer
lets the belief decay.

A watcher that is too slow loses the oldest answers, and learns how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.events import RequestEvent
from nonn.aggregator.screening import EXCLUDED, Screen
from nonn.aggregator.sensing.raw import RawFolder
from nonn.aggregator.sensing.state import SensingState, sensing_node_state
from nonn.aggregator.service import Aggregator
from nonn.answer import Answer
from nonn.errors import ConfigError, DataLossError, InputError
from nonn.reliability.subsets import members
from nonn.sensing import SensingSpec
from nonn.sensing.alignment import Alignment, AlignmentConfig, Point
from nonn.sensing.clock import DataClock
from nonn.sensing.cutter import NO_DATA
from nonn.sensing.duty import DutyCycle
from nonn.streams import SmoothedLabel, WindowAnswer
from nonn.telemetry.background import Background
from nonn.toml import Range, check
from nonn.toml.constraints import Positive

__all__ = ["Hub", "SensingOptions"]

RECENT = 120  # answers that a new page shows
MOST_SENSING = 32  # bits of the mask in WindowAnswer
HELD = 64  # answers that wait for one watcher
STALL_S, MAX_READ_S = 0.02, 0.25  # lateness of a timer that is a stall; longest time for reading after one
FRAME_BYTES = 5  # gRPC's own, for each message
QUARANTINE = "left out for a while: its features contradicted those of the other devices again and again"

_log = logging.getLogger(__name__)

Features = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class SensingOptions:
    """Options of ``nonn serve`` about nodes that sense.

    Raises:
        ConfigError: an option is invalid; the message names it.
    """

    speed: Annotated[float, Range(gt=0, lt=10_000), "nodes replay recordings at this many times real time"] = 1.0
    tolerance_s: Annotated[
        float | None,
        Range(gt=0),
        "largest distance of a window from the grid (default: that of the bundle for pictures, else hop / 10)",
    ] = None
    wait_s: Annotated[
        float | None, Range(ge=0), "longest wait for windows of sensors after their end (default: hop / 2)"
    ] = None
    raw: Annotated[Path | None, "folder for raw samples; None accepts none"] = None
    accuracy_goal: Annotated[
        float | None,
        Range(ge=0, le=1),
        "only as many nodes that sense work as reach this accuracy, 0 to 1; the others rest (default: all work)",
    ] = None
    duty_period_s: Annotated[Positive, "time after which the nodes that work are chosen again"] = 600.0

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, eq=False)
class _Sent:
    """One window as it arrived: features [1, d_i] and bytes on the wire."""

    features: Features
    num_bytes: int


class Watcher:
    """One stream of answers to a client."""

    def __init__(self, recent: Iterator[WindowAnswer] | tuple[WindowAnswer, ...] = ()) -> None:
        self._held: deque[WindowAnswer | None] = deque(recent)
        self._wake, self._skipped = asyncio.Event(), 0

    def put(self, answer: WindowAnswer | None) -> None:
        """Adds an answer; None ends the stream."""
        if len(self._held) >= HELD:
            self._held.popleft()
            self._skipped += 1
        self._held.append(answer)
        self._wake.set()

    async def take(self) -> tuple[WindowAnswer | None, int]:
        """The next answer, and how many before it were lost."""
        while not self._held:
            self._wake.clear()
            await self._wake.wait()
        skipped, self._skipped = self._skipped, 0
        return self._held.popleft(), skipped


class Hub:
    """Answers of a cluster whose nodes sense.

    Args:
        aggregator: of a bundle with sensing.
        options: of the operator.
        clock: seconds of the data; Unix time times the speed by default.

    Attributes:
        recent: the last answers, oldest first.
        counts: answers, bytes and what else happened, in total.
        duty: chooses the units that work; None if all do.
        directed: called with a node and whether it is to rest.
    """

    def __init__(
        self, aggregator: Aggregator, options: SensingOptions | None = None, clock: Callable[[], float] | None = None
    ) -> None:
        options, bundle = options or SensingOptions(), aggregator.bundle
        spec = bundle.manifest.sensing
        assert spec is not None, "the bundle says what nodes measure"
        if bundle.num_devices > MOST_SENSING:
            raise ConfigError(
                f"{bundle.path}: {bundle.num_devices} devices that sense; the mask of an answer has {MOST_SENSING} bits"
            )
        self.options, self._aggregator = options, aggregator
        self.clock = clock or DataClock(options.speed)
        self.alignment = Alignment[_Sent](
            AlignmentConfig(
                hop_s=spec.hop_s,
                tolerance_s=options.tolerance_s if options.tolerance_s is not None else spec.tolerance_s or None,
                wait_s=options.wait_s,
            )
        )
        self.recent: deque[WindowAnswer] = deque(maxlen=RECENT)
        self.counts = Counter[str]()
        self.raw = RawFolder(options.raw) if options.raw else None
        self.batteries: dict[str, int] = {}
        self.duty: DutyCycle | None = None
        if options.accuracy_goal is not None:
            least, period_s = aggregator.policy.config.quorum, options.duty_period_s * options.speed
            warm_up = 3 + ceil(spec.window_s / spec.hop_s)
            self.duty = DutyCycle(bundle.table.accuracy, options.accuracy_goal, period_s, least, warm_up)
        self.directed: Callable[[str, bool], object] = lambda node, rests: None
        self._screen = Screen(bundle.consistency, aggregator.policy.config.exclusion_rate)
        self._quarantined: dict[str, float] = {}
        self._belief: tuple[int, NDArray[np.float64]] | None = None  # after the window of this number
        self._watchers: set[Watcher] = set()
        self._changed = asyncio.Event()

    @contextlib.asynccontextmanager
    async def attend(self, end: Callable[[], object]) -> AsyncIterator[None]:
        """Answers while the block runs; calls ``end`` if that is no longer possible."""
        try:
            async with Background(end) as tasks:
                tasks.start(self._keep(), "answers of windows")
                yield
        finally:
            for watcher in self._watchers:
                watcher.put(None)

    @contextlib.contextmanager
    def watching(self, *, recent: bool = False) -> Iterator[Watcher]:
        """A stream of answers from now on; with ``recent`` the last ones first."""
        watcher = Watcher(tuple(self.recent) if recent else ())
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.discard(watcher)

    def spec_of(self, student: int) -> SensingSpec:
        """What the node of one student measures."""
        return self._aggregator.bundle.sensing_of(student)

    def woken(self) -> None:
        """Something has arrived or changed."""
        self._changed.set()

    def window(self, node: str, student: int, message: Any, num_bytes: int) -> None:
        """Takes a window of a node.

        Args:
            node: its id.
            student: the student that it runs.
            message: the ``WindowFeatures``.
            num_bytes: of the message on the wire, without raw samples.

        Raises:
            DataLossError: the features were altered on the way.
            InputError: they do not fit the student.
        """
        now, payload, reason = self.clock(), None, ""
        num_bytes += FRAME_BYTES
        self.counts["bytes"] += num_bytes
        if message.no_data:
            reason = NO_DATA[message.no_data - 1] if message.no_data <= len(NO_DATA) else "unknown"
        else:
            payload = _Sent(self._features(node, student, message), num_bytes)
        if message.battery:
            self.charged(node, message.battery)
        verdict = self.alignment.offer(node, message.end_us / 1e6, payload, now, reason)
        self.counts[verdict] += 1
        if verdict == "taken":
            self._changed.set()

    def charged(self, node: str, battery: int) -> None:
        """A node reports its battery, in percent plus one; 0 if that is unknown."""
        if battery:
            self.batteries[node] = min(100, battery - 1)

    def _features(self, node: str, student: int, message: Any) -> Features:
        """Features of a message [1, d_i]."""
        entry = self._aggregator.bundle.manifest.students[student]
        if zlib.crc32(message.features) != message.crc32:
            raise DataLossError(f"node '{node}': {len(message.features)} bytes of features were altered on the way")
        if len(message.features) != entry.code.num_bytes(entry.width):
            raise InputError(
                f"node '{node}': {len(message.features)} bytes of features; student {student} sends "
                f"{entry.code.num_bytes(entry.width)}"
            )
        features = entry.code.decode(np.frombuffer(message.features, entry.code.wire)[None])
        if not np.isfinite(features).all():
            raise InputError(f"node '{node}': its features contain NaN or infinity")
        return features

    async def _keep(self) -> None:
        """Answers every point when it is due."""
        loop = asyncio.get_running_loop()
        while True:
            for point in self.alignment.due(self.clock()):
                await self._answer(point)
            due, now = self.alignment.next_due(self.clock()), self.clock()
            self._changed.clear()
            wait_s = None if due is None else max(0.0, due - now) / self.options.speed + 1e-3
            planned = loop.time() + (wait_s or 0.0)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            # If this process did not run meanwhile, windows have arrived that it has not read yet.
            if wait_s is not None and (late_s := loop.time() - planned) > STALL_S:
                await asyncio.sleep(min(late_s, MAX_READ_S))

    async def _answer(self, point: Point[_Sent]) -> None:
        """Fuses one point and sends the answer to every client that watches."""
        aggregator, students = self._aggregator, {n.id: n.student for n in self._aggregator.nodes}
        missing, features, senders = dict(point.absent), dict[int, Features](), dict[int, str]()
        now, num_bytes = self.clock(), sum(sent.num_bytes for sent in point.windows.values())
        self._quarantined = {node: until for node, until in self._quarantined.items() if until > now}
        for node, sent in point.windows.items():
            record = self.alignment.nodes.get(node)
            student = record.unit if record else students.get(node)
            if student is None:
                missing[node] = "it has left the cluster"
            elif node in self._quarantined:
                missing[node] = QUARANTINE
            else:
                features[student], senders[student] = sent.features, node
        screened = self._screen.examine(features, senders)
        missing |= {senders[student]: EXCLUDED for student in screened.excluded}
        measured = {record.unit for record in self.alignment.nodes.values()} | features.keys()
        missing |= {
            f"unit {unit}": "no node measures it"
            for unit in range(aggregator.bundle.num_devices)
            if unit not in measured
        }
        for node in self._screen.suspects(screened, self._quarantined):
            self._quarantined[node] = now + aggregator.policy.config.quarantine_s * self.options.speed
            _log.warning("node %s: %s", node, QUARANTINE)
        await self._publish(point, screened.features, missing, num_bytes)

    async def _publish(
        self, point: Point[_Sent], features: Mapping[int, Features], missing: Mapping[str, str], num_bytes: int
    ) -> None:
        """Builds the answer of a point and passes it on."""
        aggregator, bundle = self._aggregator, self._aggregator.bundle
        known: dict[str, Any] = {"missing": missing, "bytes": num_bytes, "bundle": bundle.hash}
        quorum = aggregator.policy.config.quorum
        answer = await aggregator.fuse(features) if len(features) >= quorum else None
        delay_s = (self.clock() - point.end_s) / self.options.speed
        at = point.end_s / self.options.speed
        if answer is None:
            window = WindowAnswer(at, delay_s, "", 0.0, 0, 0.0, (0.0, 0.0), **known)
        else:
            number = int(answer.labels[0])
            raw = sum(self.spec_of(student).raw_bytes for student in members(answer.mask))
            window = WindowAnswer(
                at,
                delay_s,
                bundle.manifest.classes[number],
                float(answer.confidence[0]),
                answer.mask,
                answer.expected_accuracy,
                answer.expected_accuracy_interval or (0.0, 1.0),
                raw_bytes=raw,
                class_number=number,
                smoothed=self._smoothed(point.number, answer),
                **known,
            )
        self.counts["answers" if answer else "unanswered"] += 1
        self.counts["raw bytes"] += window.raw_bytes
        self.recent.append(window)
        for watcher in self._watchers:
            watcher.put(window)
        self._rotate(members(window.mask))
        aggregator.observers.on_request(
            RequestEvent(
                time_s=asyncio.get_running_loop().time(),
                num_samples=1,
                outcome="below_quorum" if answer is None else "degraded" if answer.degraded else "ok",
                mask=window.mask,
                expected_accuracy=window.expected_accuracy,
                latency_s=delay_s,
                features=features if answer else None,
            )
        )

    def _rotate(self, answered: Iterable[int]) -> None:
        """Directs nodes to rest or to work, after an answer of these units."""
        if self.duty is None:
            return
        nodes, now = self.alignment.nodes, self.clock()
        charge = {record.unit: self.batteries.get(node) for node, record in nodes.items()}
        working = self.duty.update(now, charge, answered)
        for node, record in nodes.items():
            if record.rests != (record.unit not in working):
                self.alignment.rest(node, not record.rests, now)
                self.directed(node, record.rests)

    def _smoothed(self, number: int, answer: Answer) -> SmoothedLabel | None:
        """The label of a window after those before it."""
        bundle = self._aggregator.bundle
        found = bundle.smoothed
        if found is None:
            return None
        before, last = (number - 1, None) if self._belief is None else self._belief
        probabilities = bundle.head.probabilities(answer.logits, answer.mask)[0]
        belief = found.smoothing.step(last, probabilities, number - before)
        self._belief, best = (number, belief), int(belief.argmax())
        return SmoothedLabel(
            bundle.manifest.classes[best],
            float(belief[best]),
            float(found.table.accuracy[answer.mask]),
            found.interval(answer.mask),
            best,
        )

    def state(self) -> SensingState:
        """Nodes, clocks and counts."""
        now = self.clock()
        return SensingState(
            hop_s=self.alignment.config.hop_s,
            speed=self.options.speed,
            counts=dict(self.counts),
            nodes={
                node: sensing_node_state(record, self.batteries.get(node), now)
                for node, record in self.alignment.nodes.items()
            },
        )
