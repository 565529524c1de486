"""Virtual time: a world that fails, and production's policy object that decides what each request does about it.

SimPy advances only from one change of the world to the next (nonn_sim.faults). Requests in between are met in a plain
loop over three kinds of times, in order: arrivals, ends of requests, probes. At each arrival the loop asks the real
``Policy`` for a plan, and at each end it tells it every outcome, exactly as ``nonn.aggregator.service`` does; nothing
of the policy is guessed, cached or skipped. A request costs about ten microseconds, half of them in the policy.

The answer is right with the accuracy that the deployment's table gives to exactly the set that answered.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Sequence
from math import inf, nextafter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn_sim.cells import OK, SILENT, Cell, Flight, Job
from nonn_sim.deployments import Deployment
from nonn_sim.faults import FaultEvent, State, World
from nonn_sim.links import PROBES, SERVICE, Channel, arrivals, exchanges
from nonn_sim.scenario import Scenario
from nonn_sim.trace import Trace

__all__ = ["Engine"]

ARRIVE, END, PROBE = range(3)  # kinds of entries in the heap


class Engine:
    """One deployment in one world, from one seed.

    Args:
        scenario: the world.
        num_devices: N of the bundle.
        deployment: what the devices do.
        seed: of everything random.
        events: recorded faults in place of the scenario's.
        measured_s: times of whole fan-outs, and what requests took on top [R, 2], drawn from in place of service and
            link times.
        arrivals_seed: of the arrivals, if they should not follow ``seed``.
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
        self._cells = []
        for number, conditions in enumerate(self._world.conditions):
            mine = [conditions[device] for device in deployment.devices]
            channels = [Channel(node.link) for node in nodes]
            self._cells.append(Cell(number, scenario, deployment, mine, channels, self._launch))
        times = zip(deployment.work, nodes, deployment.macs_of_service, strict=True)
        services_s = [w.service_s(node, macs) for w, node, macs in times]
        draw = (nodes, deployment.work, services_s, deployment.devices, seed)
        self._rows = exchanges(*draw, SERVICE, measured_s)
        self._probe_rows = exchanges(*draw, PROBES, measured_s)
        self._arrivals = arrivals(scenario.load, seed if arrivals_seed is None else arrivals_seed)
        self._heap: list[tuple[float, int, int, Any]] = []
        self._sequence = self._turn = self._under_way = 0
        self._now = 0.0
        self._asked_at, self._latency, self._mask = array("d"), array("d"), array("q")
        self._waited, self._answered = array("b"), array("b")

    def run(self) -> Trace:
        """Runs to the end of the last request."""
        run, load, heap, env = self._scenario.scenario, self._scenario.load, self._heap, self._world.env
        left, until = run.requests or -1, run.duration_s or inf
        closed = load.arrivals == "closed"
        if closed:
            for _ in range(load.concurrency):
                self._push(0.0, ARRIVE, None)
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
                if kind == END:
                    if thing.due == now and thing.cell.flights.get(id(thing)) is thing:
                        self._end(thing, now)
                elif kind == PROBE:
                    if thing.probe_at == now:
                        self._probe_due(thing, now)
                elif now < until and left:
                    left -= 1
                    self._ask(self._route(), now)
            else:
                self._now = arrival
                left -= 1
                self._ask(self._route(), arrival)
                arrival = next(self._arrivals)
        return self._trace()

    def _waiting_to_arrive(self, until: float) -> bool:
        """Whether a client of a closed load will still ask."""
        return any(kind == ARRIVE and time < until for time, _, kind, _ in self._heap)

    def _route(self) -> Cell:
        """The front tier: the next cell that can reach its quorum, or simply the next if none can."""
        cells, count = self._cells, len(self._cells)
        for _ in range(count):
            self._turn = (self._turn + 1) % count
            if cells[self._turn].ready:
                break
        return cells[self._turn]

    def _push(self, time: float, kind: int, thing: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (time, self._sequence, kind, thing))

    def _ask(self, cell: Cell, now: float) -> None:
        """A request arrives."""
        plan = cell.policy.plan(self._scenario.load.timeout_s)
        row = next(self._rows)
        service, up, down, luck, _ = row
        deadline_at = now + plan.deadline_s
        flight = Flight(cell, now, deadline_at, row, False)
        flight.ids = plan.ask
        nodes, ends, codes = flight.nodes, flight.ends, flight.codes
        index, calm, free_at, served, p_loss = cell.index, cell.calm, cell.free_at, cell.served, cell.p_loss
        for node in plan.ask:
            i = index[node]
            nodes.append(i)
            if not calm[i] or (luck is not None and luck[i] < p_loss[i]):
                self._ask_troubled(flight, i, now)
                continue
            served[i] += 1
            arrives, free = now + up[i], free_at[i]
            start = free if free > arrives else arrives
            end, code = deadline_at, SILENT
            if start < deadline_at:
                free_at[i] = done = start + service[i]
                if done + down[i] <= deadline_at:
                    end, code = done + down[i], OK
            if code == SILENT:
                cell.will_be_late(i, Job(flight, arrives, start, service[i], OK), now)
            ends.append(end)
            codes.append(code)
        self._under_way += 1
        self._launch(flight)

    def _ask_troubled(self, flight: Flight, i: int, now: float) -> None:
        """Asks a device that something is wrong with, or whose link may lose what it is given."""
        end, code = flight.cell.exchange(flight, i, now)
        flight.ends.append(end)
        flight.codes.append(code)

    def _launch(self, flight: Flight) -> None:
        """Waits for the end of a flight, as it is known now."""
        due = max(flight.ends, default=flight.asked_at)
        if self._deployment.first_wins and not flight.probe:
            good = [end for end, code in zip(flight.ends, flight.codes, strict=True) if code == OK]
            due = min(good, default=due)
        flight.due = due
        flight.cell.flights[id(flight)] = flight
        self._sequence += 1
        heapq.heappush(self._heap, (due, self._sequence, END, flight))

    def _end(self, flight: Flight, now: float) -> None:
        """Everybody has answered, failed or run out of time: the policy learns of it, and the client too."""
        cell, asked_at, probe = flight.cell, flight.asked_at, flight.probe
        del cell.flights[id(flight)]
        record, mask, waited, failed = cell.policy.record, 0, False, False
        for node, i, end, code in zip(flight.ids, flight.nodes, flight.ends, flight.codes, strict=True):
            if code == OK:
                if end <= now:  # or another reply has won, and this one is not waited for
                    mask |= 1 << i
                    record(node, True, end - asked_at, now, probe=probe)
            elif end <= now:
                failed = True
                waited = waited or code == SILENT
                record(node, False, end - asked_at, now, timed_out=code == SILENT, probe=probe)
        if failed or not cell.ready:
            cell.ready = cell.policy.ready
        if failed or probe:
            self._plan_probe(cell, now)
        if probe:
            return
        self._under_way -= 1
        spent = self._scenario.aggregator
        latency = now - asked_at + flight.row[4] + spent.overhead_s + spent.per_node_s * len(flight.ids)
        self._asked_at.append(asked_at)
        self._latency.append(latency)
        self._mask.append(mask)
        self._waited.append(waited)
        self._answered.append(mask.bit_count() >= cell.quorum)
        if self._scenario.load.arrivals == "closed":
            self._push(asked_at + latency, ARRIVE, None)

    def _plan_probe(self, cell: Cell, now: float) -> None:
        """Sets the clock to when the policy wants to probe next."""
        wait_s = cell.policy.next_probe_s(now)
        # At least one step of the clock ahead: a wait can be too short for the sum to show it.
        at = inf if wait_s is None else max(now + wait_s, nextafter(now, inf))
        if at < cell.probe_at:
            cell.probe_at = at
            self._push(at, PROBE, cell)

    def _probe_due(self, cell: Cell, now: float) -> None:
        cell.probe_at = inf
        for node in cell.policy.probes(now):
            self._probe(cell, cell.index[node], now)
        self._plan_probe(cell, now)

    def _probe(self, cell: Cell, i: int, now: float) -> None:
        """Asks one device for an answer that nobody waits for."""
        flight = Flight(cell, now, now + cell.policy.config.deadline_s, next(self._probe_rows), True)
        flight.ids, flight.nodes = (cell.ids[i],), [i]
        self._ask_troubled(flight, i, now)
        self._launch(flight)

    def _on_change(self, cell_number: int, device: int, before: State, after: State) -> None:
        """Something has happened to a device: what is on its way there may end otherwise."""
        i = self._local.get(device)
        if i is None:
            return
        cell, now = self._cells[cell_number], self._now
        condition = self._world.conditions[cell_number][device]
        cell.calm[i] = after is State.UP and not condition.corrupt and not condition.delay_s
        if before is after:
            return
        if after in (State.REFUSING, State.OFF) and before not in (State.REFUSING, State.OFF):
            cell.lose(i, now, refused=after is State.REFUSING)
        elif after is State.FROZEN and before is State.UP:
            cell.freeze(i, now)
        elif after is State.UP:
            cell.thaw(i, now)

    def _used_j(self, cell: int, device: int) -> float:
        """What requests have cost a device so far."""
        i = self._local.get(device)
        return 0.0 if i is None else self._cells[cell].served[i] * self._joules[i]

    def _trace(self) -> Trace:
        """Everything that was written down."""
        cells, devices = self._cells, self._deployment.devices
        ended_s = max(self._now, self._scenario.scenario.duration_s)
        records = [[cell.policy.nodes[node] for node in cell.ids] for cell in cells]
        return Trace(
            asked_at_s=np.array(self._asked_at),
            latency_s=np.array(self._latency),
            mask=np.array(self._mask),
            waited=np.array(self._waited, dtype=bool),
            answered=np.array(self._answered, dtype=bool),
            ended_s=ended_s,
            asked=np.array([[record.asked for record in row] for row in records]),
            good=np.array([[record.answered for record in row] for row in records]),
            served=np.array([cell.served for cell in cells]),
            on_s=np.array([[self._world.on_s(cell.number, d, ended_s) for d in devices] for cell in cells]),
            events=tuple(self._world.log),
        )
