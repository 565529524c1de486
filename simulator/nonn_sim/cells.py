"""A cell in virtual time: the devices of one aggregator and their queues of requests.

A device computes one request at a time, in the order of arrival. The time of a reply is known when the request is sent,
unless the state of the device changes meanwhile: then the ends of all flights that wait for it are computed again. A
job still in the queue at its deadline is dropped without cost; a started job is finished, even if its reply is no
longer needed.

A device that is gone for days fails probe after probe, which changes nothing: while the policy leaves it out and no
request is sent to it, its probes are not simulated (``Cell.rest``). Their times are known, so that the next one, or the
one under way, takes place as soon as something depends on it. Draws of a probe are made when it reaches a device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf

from nonn.aggregator.policy import Policy
from nonn.aggregator.policy.session import Session
from nonn.answer import ReplyStatus
from nonn_sim.deployments import Deployment
from nonn_sim.faults import AggregatorHosts, Condition, State
from nonn_sim.links import AccessPoint, Channel, Exchange
from nonn_sim.scenario import Scenario

__all__ = ["GONE", "MALFORMED", "OK", "SILENT", "UNREACHABLE", "Cell", "Flight", "Job"]

OK, SILENT = ReplyStatus.OK, ReplyStatus.SILENT
UNREACHABLE, MALFORMED = ReplyStatus.UNREACHABLE, ReplyStatus.MALFORMED
GONE = (State.REFUSING, State.OFF)
LATE_JOBS = 256  # late jobs kept before finished ones are removed
_NOTHING: dict[int, float] = {}


class Flight:
    """One request, or one probe, in flight."""

    __slots__ = (
        "answered",
        "answered_at",
        "asked_at",
        "attempt",
        "began_at",
        "begun",
        "cell",
        "deadline_at",
        "due",
        "eager",
        "ends",
        "extra",
        "hedged",
        "ids",
        "nodes",
        "reported",
        "row",
        "session",
        "statuses",
    )

    def __init__(
        self, cell: Cell, asked_at: float, deadline_at: float, row: Exchange, session: Session | None = None
    ) -> None:
        self.cell, self.asked_at, self.deadline_at, self.row = cell, asked_at, deadline_at, row
        self.session = session  # a probe has none
        self.began_at, self.attempt = asked_at, 0  # first attempt of the client's request, and number of this one
        self.answered = self.eager = False
        self.answered_at = inf
        self.reported = 0  # bit j: the outcome of the j-th node was reported to the policy
        self.hedged = _NOTHING  # device → time of its request, if later than that of the others
        self.begun = True  # a probe waits for a connection first
        self.extra = _NOTHING  # device → delay of its request in addition to the link's
        self.ids: Sequence[str] = ()
        self.nodes: list[int] = []
        self.ends: list[float] = []
        self.statuses: list[ReplyStatus] = []
        self.due = asked_at

    @property
    def probe(self) -> bool:
        """Whether it is a probe, for whose reply no client waits."""
        return self.session is None

    def sent_at(self, i: int) -> float:
        """Time at which the request to a device was sent."""
        return self.hedged.get(i, self.asked_at) if self.hedged else self.asked_at

    def send(self, i: int, now: float) -> None:
        """Sends it to a device that may have a fault or a lossy link."""
        end, status = self.cell.exchange(self, i, now)
        self.ends.append(end)
        self.statuses.append(status)

    def unreported(self) -> list[int]:
        """Positions of the nodes whose outcome has not been reported to the policy."""
        return [j for j in range(len(self.ends)) if not self.reported >> j & 1]


class Job:
    """Remaining work of a device: for a frozen device, and for replies that are known to be late."""

    __slots__ = ("arrives", "begun", "flight", "start", "status", "work_s")

    def __init__(self, flight: Flight, arrives: float, start: float, work_s: float, status: ReplyStatus) -> None:
        self.flight, self.arrives, self.start, self.work_s, self.status = flight, arrives, start, work_s, status
        self.begun = False  # a started job is finished, even if its reply is no longer needed

    def over(self, now: float) -> bool:
        """Whether it is done, or was dropped at its deadline."""
        dropped = not self.begun and self.start >= self.flight.deadline_at
        return now >= (self.flight.deadline_at if dropped else self.start + self.work_s)


class Cell:
    """N devices and the policy of their aggregator.

    Args:
        number: number of the cell.
        scenario: the scenario.
        deployment: the deployment of the task on the devices.
        conditions: condition of each device in use [n].
        channels: link of each device [n].
        launch: called with a flight whose ends have changed, and the time.
        hosts: machines of the aggregators; None if they do not fail.
        points: access point of each device, None for a device without one [n]; empty if no device has one.
        computed: called with the time at which a device behind an access point will have computed a reply, this cell,
            the place of the device and the flight; ``reply`` is due then.
        probe_rows: draws of probes.
        wake: called with this cell, the place of a resting device, and the time, when its probes matter again.

    Attributes:
        free_at: time at which each device finishes its queue [n].
        healthy: whether each device has no fault and no access point, so that its queue decides [n].
        p_loss: an exchange whose uniform draw is at least this is not lost [n].
        served: exchanges on which each device spent energy [n].
        flights: requests in flight, by their identity.
        probe_at: time of the policy's next probe.
        ready: whether the policy can reach its quorum.
        resting: devices that are gone and whose probes are not simulated, with the time of the first such probe.
        undrawn: draws of a probe that has not reached its device.
    """

    def __init__(
        self,
        number: int,
        scenario: Scenario,
        deployment: Deployment,
        conditions: Sequence[Condition],
        channels: Sequence[Channel],
        launch: Callable[[Flight, float], None],
        hosts: AggregatorHosts | None,
        points: Sequence[AccessPoint | None],
        computed: Callable[[float, Cell, int, Flight], None],
        probe_rows: Iterator[Exchange],
        wake: Callable[[Cell, int, float], None],
    ) -> None:
        n = len(deployment.devices)
        self.number, self._channels, self._conditions, self._launch = number, channels, conditions, launch
        students = deployment.students or tuple(range(n))
        parts = len(set(students))
        quorum = parts if deployment.needs_all else min(parts, 1 if deployment.first_wins else scenario.policy.quorum)
        self.ids = [f"node-{device}" for device in deployment.devices]
        self.index = {node: i for i, node in enumerate(self.ids)}
        config = replace(scenario.policy, quorum=quorum)
        self.policy = Policy(dict(zip(self.ids, students, strict=True)), config, deployment.accuracy)
        self.quorum = quorum
        self.free_at = [0.0] * n
        self._points: Sequence[AccessPoint | None] = points or (None,) * n
        self._computed = computed
        self._bytes = [(w.request_bytes, w.reply_bytes) for w in deployment.work]
        # Behind an access point: when each reply will have been computed.
        self._replies: list[dict[Flight, float]] = [{} for _ in range(n)]
        self.healthy = [point is None for point in self._points]
        self._crossings = [w.crossings for w in deployment.work]
        self.p_loss = [channel.most(c) for channel, c in zip(channels, self._crossings, strict=True)]
        self.served = [0] * n
        self._late: list[list[Job]] = [[] for _ in range(n)]
        self._held: list[list[Job]] = [[] for _ in range(n)]  # by frozen devices
        self.flights: dict[int, Flight] = {}
        self.probe_at = inf
        self.ready = True
        self.hosts = hosts
        self.resting: dict[int, float] = {}
        self._probe_rows, self._wake = probe_rows, wake
        self.undrawn: Exchange = ([0.0] * n, [0.0] * n, [0.0] * n, None, 0.0)

    def change(self, i: int, *, sound: bool) -> None:
        """A device has a fault, or has none any more."""
        self.healthy[i] = sound and self._points[i] is None

    def served_at(self, now: float) -> bool:
        """Whether an aggregator is up."""
        return self.hosts is None or self.hosts.up(now)

    def will_be_late(self, i: int, job: Job, now: float) -> None:
        """Records a job whose reply will be late: if the device freezes, it still has to finish that job first."""
        late = self._late[i]
        late.append(job)
        if len(late) > LATE_JOBS:
            self._late[i] = [other for other in late if not other.over(now)]

    def exchange(self, flight: Flight, i: int, now: float) -> tuple[float, ReplyStatus]:
        """Time and status of the end of an exchange that begins now, as currently known."""
        condition = self._conditions[i]
        state, silent = condition.state, (flight.deadline_at, SILENT)
        flight.begun = state not in GONE
        if i in self.resting and not flight.probe:
            self._wake(self, i, now)
        if state is State.REFUSING and not flight.probe:
            return now, UNREACHABLE
        if not flight.begun:
            return silent
        if flight.row is self.undrawn:
            flight.row = next(self._probe_rows)
        service, up, _, uniform, _ = flight.row
        point = self._points[i]
        sent_at = now if point is None else point.send(now, self._bytes[i][0], flight.deadline_at)
        if sent_at == inf:
            return silent
        self.served[i] += 1
        state_uniform = len(service) + i
        if uniform is not None and self._channels[i].lost(now, uniform[i], uniform[state_uniform], self._crossings[i]):
            return silent
        arrives = sent_at + up[i] + condition.delay_s
        flight.extra = {**flight.extra, i: arrives - flight.asked_at - up[i]}
        status = MALFORMED if condition.corrupt else OK
        if state is State.FROZEN:
            self._held[i].append(Job(flight, arrives, arrives, service[i], status))
            return silent
        return self.queue(i, Job(flight, arrives, max(arrives, self.free_at[i]), service[i], status), now)

    def queue(self, i: int, job: Job, now: float) -> tuple[float, ReplyStatus]:
        """Appends a job to a device's queue; returns time and status of the end of its exchange."""
        flight = job.flight
        if job.begun or job.start < flight.deadline_at:
            self.free_at[i] = done = job.start + job.work_s
            sent_at, point = done, self._points[i]
            if point is not None:
                sent_at += point.alone_s(self._bytes[i][1])
                self._replies[i][flight] = done
                self._computed(done, self, i, flight)
            end = sent_at + flight.row[2][i]
            if end <= flight.deadline_at:
                return end, job.status
        self.will_be_late(i, job, now)
        return flight.deadline_at, SILENT

    def reply(self, i: int, flight: Flight, now: float) -> None:
        """A device behind an access point has computed a reply, unless it was lost or frozen since."""
        point = self._points[i]
        if point is None or self._replies[i].get(flight) != now:
            return
        del self._replies[i][flight]
        end = point.send(now, self._bytes[i][1], flight.deadline_at) + flight.row[2][i]
        if self.flights.get(id(flight)) is not flight:
            return
        j = flight.nodes.index(i)
        if flight.statuses[j] in (OK, MALFORMED) and flight.ends[j] != end:
            in_time = end <= flight.deadline_at
            flight.ends[j], flight.statuses[j] = (end, flight.statuses[j]) if in_time else (flight.deadline_at, SILENT)
            self._launch(flight, now)

    def lose(self, i: int, now: float, refused: bool) -> None:
        """The device loses its queue; replies that it has sent still arrive."""
        self.free_at[i] = now
        self._late[i], self._held[i], self._replies[i] = [], [], {}
        for flight, j in self._at(i, now):
            left_at = flight.ends[j] - flight.row[2][i]
            if flight.statuses[j] in (OK, MALFORMED) and left_at <= now:
                continue
            flight.begun = False
            noticed = refused and not flight.probe
            flight.ends[j], flight.statuses[j] = (now, UNREACHABLE) if noticed else (flight.deadline_at, SILENT)
            self._launch(flight, now)

    def freeze(self, i: int, now: float) -> None:
        """The jobs of the device wait until it thaws, or until their deadline."""
        jobs = [job for job in self._late[i] if not job.over(now)]
        for flight, j in self._at(i, now):
            service, up, *_ = flight.row
            done = self._computed_at(flight, i, j)
            if flight.statuses[j] in (OK, MALFORMED) and done > now:
                arrives = flight.asked_at + up[i] + flight.extra.get(i, 0.0)
                jobs.append(Job(flight, arrives, done - service[i], service[i], flight.statuses[j]))
                flight.ends[j], flight.statuses[j] = flight.deadline_at, SILENT
                self._launch(flight, now)
        for job in jobs:
            if job.start < now:
                job.begun, job.work_s = True, job.start + job.work_s - now
        self._late[i], self._held[i] = [], sorted(jobs, key=lambda job: job.flight.sent_at(i))
        self._replies[i] = {}

    def _computed_at(self, flight: Flight, i: int, j: int) -> float:
        """Time at which a device has computed a reply that is in time."""
        if self._points[i] is None:
            return flight.ends[j] - flight.row[2][i]
        return self._replies[i].get(flight, -inf)

    def thaw(self, i: int, now: float) -> None:
        """The device continues its queue; one that was gone receives the probes that wait for it."""
        self.free_at[i] = now
        jobs, self._held[i] = self._held[i], []
        for job in jobs:
            flight = job.flight
            job.start = self.free_at[i] if job.begun else max(job.arrives, self.free_at[i])
            end, status = self.queue(i, job, now)
            if status != SILENT and self.flights.get(id(flight)) is flight:
                j = flight.nodes.index(i)
                flight.ends[j], flight.statuses[j] = end, status
                self._launch(flight, now)
        self.reach(i, now)

    def reach(self, i: int, now: float) -> None:
        """A device that was gone can be reached again: it receives the probes that wait for it."""
        for flight, j in self._at(i, now):
            if flight.probe and not flight.begun:
                flight.ends[j], flight.statuses[j] = self.exchange(flight, i, now)
                self._launch(flight, now)

    def rest(self, i: int) -> None:
        """A probe has failed: if the policy leaves the device out and it is gone, further ones change nothing."""
        breaker = self.policy.nodes[self.ids[i]].breaker
        if breaker.state == "out" and self._conditions[i].state in GONE:
            breaker.probing = True  # so that the policy plans no other
            self.resting[i] = breaker.probe_at

    def _at(self, i: int, now: float) -> list[tuple[Flight, int]]:
        """Flights that wait for a device, in the order of their requests."""
        waiting = [flight for flight in self.flights.values() if i in flight.nodes]
        pairs = [(flight, flight.nodes.index(i)) for flight in waiting]
        return [(flight, j) for flight, j in pairs if flight.ends[j] > now]
