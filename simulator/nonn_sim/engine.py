"""Virtual time: a world with faults, in which the production policy object decides about each request.

SimPy advances only from one change of the world to the next (nonn_sim.faults). Requests in between are processed in a
plain loop over events in order of time: arrivals, looks at requests, probes and more. At each arrival the loop
gets a ``Session`` from the real ``Policy``; ``nonn_sim.flights`` reports every outcome to both and follows their
decisions, exactly as ``nonn.aggregator.service`` does; the policy is neither approximated nor skipped.

The probability that an answer is right is the accuracy of the subset that answered in the deployment's table.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import inf, nextafter

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.policy.session import Session
from nonn_sim.cells import GONE, OK, SILENT, Cell, Flight, Job
from nonn_sim.deployments import Deployment
from nonn_sim.faults import AggregatorHosts, FaultEvent, State, World
from nonn_sim.flights import ARRIVE, LOOK, PROBE, REPLY, RETRY, Agenda, Flights
from nonn_sim.links import PROBES, SERVICE, Channel, access_points, arrivals, exchanges
from nonn_sim.scenario import Scenario
from nonn_sim.trace import Recorder, RequestTrace

__all__ = ["Engine"]


class Engine:
    """One deployment in one world, from one seed.

    Args:
        scenario: the scenario.
        num_devices: N of the bundle.
        deployment: the deployment of the task on the devices.
        seed: seed of all random numbers.
        events: recorded faults instead of the scenario's.
        measured_s: times of whole fan-outs, and the remaining time of requests [R, 2], sampled instead of service and
            link times.
        arrivals_seed: seed of the arrivals, if different from ``seed``.
    """

    def __init__(
        self,
        scenario: Scenario,
        num_devices: int,
        deployment: Deployment,
        seed: int,
        events: Sequence[FaultEvent] | None = None,
        measured_s: NDArray[np.float64] | None = None,
        arrivals_seed: int | None = None,
    ) -> None:
        settings = scenario.devices(num_devices)
        nodes = [settings[device] for device in deployment.devices]
        self._scenario, self._deployment = scenario, deployment
        self._joules = [
            w.macs * node.joule_per_mac + (w.request_bytes + w.reply_bytes) * node.joule_per_byte
            for w, node in zip(deployment.work, nodes, strict=True)
        ]
        self._local = {device: i for i, device in enumerate(deployment.devices)}
        self._world = World(scenario, num_devices, seed, self._on_change, self._used_j, events)
        self._agenda = Agenda()
        self._flights = Flights(self._agenda, deployment.first_wins, self._answer, self._plan_probe)
        times = zip(deployment.work, nodes, deployment.macs_of_service, strict=True)
        services_s = [w.service_s(node, macs) for w, node, macs in times]
        draw = (nodes, deployment.work, services_s, deployment.devices, seed)
        self._rows = exchanges(*draw, SERVICE, measured_s)
        probe_rows = exchanges(*draw, PROBES, measured_s)
        self._cells = []
        for number, conditions in enumerate(self._world.conditions):
            mine = [conditions[device] for device in deployment.devices]
            channels = [Channel(node.link) for node in nodes]
            hosts = scenario.aggregator
            fails = AggregatorHosts(hosts.count, hosts.mtbf_s, hosts.mttr_s, seed, number) if hosts.mtbf_s else None
            # Measured times include an access point already.
            points = [] if measured_s is not None else access_points(scenario.groups, deployment.devices)
            calls = (self._computed, probe_rows, self._wake)
            self._cells.append(
                Cell(number, scenario, deployment, mine, channels, self._flights.launch, fails, points, *calls)
            )
        self._arrivals = arrivals(scenario.load, seed if arrivals_seed is None else arrivals_seed)
        self._turn = self._under_way = self._refused = self._retried = 0
        self._now = 0.0
        self._outcomes = Recorder(deployment, scenario.scenario)

    def run(self) -> RequestTrace:
        """Runs to the end of the last request."""
        run, load, heap, env = self._scenario.scenario, self._scenario.load, self._agenda.entries, self._world.env
        left, until = run.requests or -1, run.duration_s or inf
        closed = load.arrivals == "closed"
        if closed:
            for _ in range(load.concurrency):
                self._agenda.push(0.0, ARRIVE, None)
        arrival = inf if closed else next(self._arrivals)
        change = env.peek()
        while True:
            if arrival >= until or left == 0:
                arrival = inf
                if not self._under_way and (not closed or left == 0 or not self._waiting_to_arrive(until)):
                    break
            first = heap[0][0] if heap else inf
            if change <= first and change <= arrival:
                self._now = change
                env.step()
                change = env.peek()
            elif first <= arrival:
                now, _, kind, thing = heapq.heappop(heap)
                self._now = now
                if kind == LOOK:
                    if thing.due == now and thing.cell.flights.get(id(thing)) is thing:
                        self._flights.look(thing, now)
                elif kind == PROBE:
                    if thing.probe_at == now:
                        self._probe_due(thing, now)
                elif kind == REPLY:
                    thing[0].reply(*thing[1:], now)
                elif kind == RETRY:
                    self._under_way -= 1
                    self._ask(self._route(now), now, *thing)
                elif now < until and left:
                    left -= 1
                    self._ask(self._route(now), now)
            else:
                self._now = arrival
                left -= 1
                self._ask(self._route(arrival), arrival)
                arrival = next(self._arrivals)
        return self._trace()

    def _waiting_to_arrive(self, until: float) -> bool:
        """Whether a client of a closed load will send another request."""
        return any(kind == ARRIVE and time < until for time, _, kind, _ in self._agenda.entries)

    def _route(self, now: float) -> Cell:
        """The front tier: the next cell that is served and can reach its quorum, or the next cell if none can."""
        cells, count = self._cells, len(self._cells)
        for _ in range(count):
            self._turn = (self._turn + 1) % count
            if cells[self._turn].ready and cells[self._turn].served_at(now):
                break
        return cells[self._turn]

    def _ask(self, cell: Cell, now: float, began_at: float | None = None, attempt: int = 0) -> None:
        """A request arrives, or a client tries it again.

        Args:
            cell: the cell that gets it.
            now: time.
            began_at: time of the client's first attempt, if this is another one.
            attempt: attempts before this one.
        """
        began_at = now if began_at is None else began_at
        if not cell.served_at(now):
            if not self._try_again(began_at, attempt, now):
                self._refuse(began_at, now)
            return
        policy = cell.policy
        session = policy.session(now, self._scenario.load.timeout_s)
        row = next(self._rows)
        service, up, down, uniform, _ = row
        deadline_at = session.deadline_at
        flight = Flight(cell, now, deadline_at, row, session)
        flight.began_at, flight.attempt = began_at, attempt
        flight.ids = session.ask
        flight.eager = session.eager or self._deployment.first_wins or not policy.all_up
        nodes, ends, statuses = flight.nodes, flight.ends, flight.statuses
        index, healthy, free_at, served, p_loss = cell.index, cell.healthy, cell.free_at, cell.served, cell.p_loss
        for node in session.ask:
            i = index[node]
            nodes.append(i)
            if not healthy[i] or (uniform is not None and uniform[i] < p_loss[i]):
                flight.send(i, now)
                continue
            served[i] += 1
            arrives, free = now + up[i], free_at[i]
            start = free if free > arrives else arrives
            end, status = deadline_at, SILENT
            if start < deadline_at:
                free_at[i] = done = start + service[i]
                if done + down[i] <= deadline_at:
                    end, status = done + down[i], OK
            if status == SILENT:
                cell.will_be_late(i, Job(flight, arrives, start, service[i], OK), now)
            ends.append(end)
            statuses.append(status)
        self._under_way += 1
        self._flights.launch(flight, now)

    def _try_again(self, began_at: float, attempt: int, now: float) -> bool:
        """Whether the client sends a request again that got no answer; schedules it."""
        load = self._scenario.load
        if attempt >= load.retries:
            return False
        self._retried += 1
        self._under_way += 1  # until the attempt
        self._agenda.push(now + load.retry_after_s, RETRY, (began_at, attempt + 1))
        return True

    def _refuse(self, began_at: float, now: float) -> None:
        """No aggregator is up: the request is lost, and a client of a closed load goes on after its deadline."""
        self._refused += 1
        wait_s = self._scenario.load.timeout_s
        self._outcomes.add(began_at, now - began_at + wait_s, 0, waited=False, answered=False)
        if self._scenario.load.arrivals == "closed":
            self._agenda.push(now + wait_s, ARRIVE, None)

    def _answer(self, flight: Flight, session: Session, now: float) -> None:
        """Delivers the answer to the client."""
        self._under_way -= 1
        spent = self._scenario.aggregator
        later_s = flight.row[4] + spent.overhead_s + spent.per_node_s * len(flight.ids)
        answered = session.answered.bit_count() >= flight.cell.quorum
        if not answered and self._try_again(flight.began_at, flight.attempt, now + later_s):
            return
        latency = now - flight.began_at + later_s
        waited = session.timed_out(now)
        self._outcomes.add(flight.began_at, latency, session.answered, waited=waited, answered=answered)
        if self._scenario.load.arrivals == "closed":
            self._agenda.push(flight.began_at + latency, ARRIVE, None)

    def _computed(self, at: float, cell: Cell, i: int, flight: Flight) -> None:
        """Schedules the end of a computation behind an access point."""
        self._agenda.push(at, REPLY, (cell, i, flight))

    def _plan_probe(self, cell: Cell, now: float) -> None:
        """Schedules the policy's next probe."""
        wait_s = cell.policy.next_probe_s(now)
        # At least one step of the clock ahead: a wait can be too short to change the sum.
        at = inf if wait_s is None else max(now + wait_s, nextafter(now, inf))
        if at < cell.probe_at:
            cell.probe_at = at
            self._agenda.push(at, PROBE, cell)

    def _probe_due(self, cell: Cell, now: float) -> None:
        cell.probe_at = inf
        for node in cell.policy.probes(now):
            self._probe(cell, cell.index[node], now)
        self._plan_probe(cell, now)

    def _probe(self, cell: Cell, i: int, now: float) -> None:
        """Sends a probe to one device."""
        flight = _probe_of(cell, i, now)
        flight.send(i, now)
        self._flights.launch(flight, now)

    def _wake(self, cell: Cell, i: int, now: float) -> None:
        """The probes of a resting device matter again: the one that is under way, or the next one."""
        config, breaker = cell.policy.config, cell.policy.nodes[cell.ids[i]].breaker
        at, every_s = cell.resting.pop(i), config.deadline_s + config.breaker_reset_s
        if now > at:
            at += (now - at) // every_s * every_s
        if at <= now < at + config.deadline_s:
            flight = _probe_of(cell, i, at)
            flight.begun = False
            flight.ends, flight.statuses = [flight.deadline_at], [SILENT]
            self._flights.launch(flight, now)
            return
        breaker.probing, breaker.probe_at = False, at if now < at else at + every_s
        self._plan_probe(cell, now)

    def _on_change(self, cell_number: int, device: int, before: State, after: State) -> None:
        """Handles a state change of a device: its requests in flight may end differently."""
        i = self._local.get(device)
        if i is None:
            return
        cell, now = self._cells[cell_number], self._now
        condition = self._world.conditions[cell_number][device]
        cell.change(i, sound=after is State.UP and not condition.corrupt and not condition.delay_s)
        if before is after:
            return
        if i in cell.resting and after not in GONE:
            self._wake(cell, i, now)
        if after in GONE:
            if before not in GONE:
                cell.lose(i, now, refused=after is State.REFUSING)
        elif after is State.UP:
            cell.thaw(i, now)
        elif before is State.UP:
            cell.freeze(i, now)
        else:
            cell.reach(i, now)

    def _used_j(self, cell: int, device: int) -> float:
        """Energy that requests have cost a device so far, in joules."""
        i = self._local.get(device)
        return 0.0 if i is None else self._cells[cell].served[i] * self._joules[i]

    def _trace(self) -> RequestTrace:
        """The trace of the run."""
        cells, devices = self._cells, self._deployment.devices
        ended_s = max(self._now, self._scenario.scenario.duration_s)
        records = [[cell.policy.nodes[node] for node in cell.ids] for cell in cells]
        return self._outcomes.trace(
            ended_s=ended_s,
            asked=np.array([[record.asked for record in row] for row in records]),
            good=np.array([[record.answered for record in row] for row in records]),
            served=np.array([cell.served for cell in cells]),
            on_s=np.array([[self._world.on_s(cell.number, d, ended_s) for d in devices] for cell in cells]),
            events=tuple(self._world.log),
            refused=self._refused,
            retried=self._retried,
        )


def _probe_of(cell: Cell, i: int, at: float) -> Flight:
    """A probe of one device, sent at a time."""
    flight = Flight(cell, at, at + cell.policy.config.deadline_s, cell.undrawn)
    flight.ids, flight.nodes = (cell.ids[i],), [i]
    return flight
