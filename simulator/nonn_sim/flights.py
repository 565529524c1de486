"""Requests and probes under way in virtual time: when each is looked at, and what the policy learns from it.

If a session hedges or fuses early, or one of its nodes is not up, the request is looked at at every reply and at the
times that the session sets. Otherwise only the last good reply decides, and the policy just counts the others, so a
single look at the end, or at the first failure, is enough. That is the case for most requests, and the reason why a
request costs about twelve microseconds. Probes of a device that is gone for long are not simulated
(``nonn_sim.cells.Cell.rest``).
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from nonn.aggregator.policy.session import Session
from nonn_sim.cells import OK, SILENT, Cell, Flight

__all__ = ["ARRIVE", "LOOK", "PROBE", "REPLY", "RETRY", "Agenda", "Flights"]

ARRIVE, LOOK, PROBE, RETRY, REPLY = range(5)  # kinds of entries in the agenda


class Agenda:
    """The queue of future events, ordered by time; entries of the same time in the order in which they were added.

    Attributes:
        entries: a heap of (time, number, kind, thing).
    """

    def __init__(self) -> None:
        self.entries: list[tuple[float, int, int, Any]] = []
        self._added = 0

    def push(self, time: float, kind: int, thing: Any) -> None:
        """Adds an entry."""
        self._added += 1
        heapq.heappush(self.entries, (time, self._added, kind, thing))


class Flights:
    """Requests and probes under way, in all cells.

    Args:
        agenda: gets the times at which to look at a flight.
        first_wins: the first answer decides.
        answer: called with a request whose session is done.
        plan_probe: called with a cell after a failure or a probe: its policy may want another probe.
    """

    def __init__(
        self,
        agenda: Agenda,
        first_wins: bool,
        answer: Callable[[Flight, Session, float], None],
        plan_probe: Callable[[Cell, float], None],
    ) -> None:
        self._agenda, self._first_wins, self._answer, self._plan_probe = agenda, first_wins, answer, plan_probe

    def launch(self, flight: Flight, now: float) -> None:
        """Schedules the next look at a flight, as currently known."""
        ends, statuses = flight.ends, flight.statuses
        patience_s = flight.cell.policy.config.patience_s
        if not flight.eager and flight.session is not None and ends and max(ends) - min(ends) > patience_s:
            # A reply that is much later than another one makes its node a straggler: the times of both matter.
            self._catch_up(flight, now)
        if not flight.reported and not flight.eager and not any(statuses):
            due = max(ends, default=flight.asked_at)
        else:
            reported, eager, due, last = flight.reported, flight.eager, inf, flight.asked_at
            for j, end in enumerate(ends):
                if not reported >> j & 1:
                    if (eager or statuses[j] != OK) and end < due:
                        due = end
                    if end > last:
                        last = end
            due = min(due, last)
            if eager and flight.session is not None and not flight.answered:
                due = min(due, flight.session.look_at)
        flight.due = due
        flight.cell.flights[id(flight)] = flight
        self._agenda.push(due, LOOK, flight)

    def look(self, flight: Flight, now: float) -> None:
        """Processes new outcomes of a flight, or a time that its session has set."""
        cell, session = flight.cell, flight.session
        if session is None:
            del cell.flights[id(flight)]
            self._learn_of_probe(flight, now)
            return
        ends, reported = flight.ends, flight.reported
        if not flight.eager and any(flight.statuses):
            self._catch_up(flight, now)
            reported = flight.reported
        for j in range(len(ends)):
            if ends[j] <= now and not reported >> j & 1:
                self._learn(flight, j, now)
        if not flight.answered:
            known = len(cell.policy.stragglers)
            for node in session.decide(now):
                self._hedge(flight, node, now)
            if len(cell.policy.stragglers) > known:
                self._now_straggling(flight, now)
            if self._first_wins and session.answered:
                session.done = True
        self._go_on(flight, now)

    def _go_on(self, flight: Flight, now: float) -> None:
        """Answers if the session is done, and waits for the outstanding outcomes."""
        session = flight.session
        if session is not None and session.done and not flight.answered:
            flight.answered, flight.answered_at = True, now
            self._answer(flight, session, now)
        if flight.reported + 1 == 1 << len(flight.ends):
            flight.cell.flights.pop(id(flight), None)
        else:
            self.launch(flight, now)

    def _learn(self, flight: Flight, j: int, now: float) -> None:
        """Reports the outcome of one node to the session and the policy."""
        cell, node, end, status = flight.cell, flight.ids[j], flight.ends[j], flight.statuses[j]
        flight.reported |= 1 << j
        session, late, lag = flight.session, flight.answered, 0.0
        latency = end - (flight.sent_at(flight.nodes[j]) if flight.hedged else flight.asked_at)
        if session is not None:
            if session.prompt_done or late:
                lag = end - (session.prompt_at if session.prompt_done else flight.answered_at)
            if not late:
                session.tell(node, status == OK)
        if status == OK:
            if cell.policy.on_success(node, latency, end, late=late, lag_s=lag):
                cell.ready = cell.policy.ready
            return
        others = self._others(flight, flight.nodes[j], now)
        if cell.policy.on_failure(node, latency, now, silent=status == SILENT):
            cell.ready = cell.policy.ready
        self._now_troubled(cell, node, others, now)
        self._plan_probe(cell, now)

    def _learn_of_probe(self, flight: Flight, now: float) -> None:
        """Reports the outcome of a probe to the policy."""
        cell, node, end, ok = flight.cell, flight.ids[0], flight.ends[0], flight.statuses[0] == OK
        others = [] if ok else self._others(flight, flight.nodes[0], now)
        if cell.policy.on_probe(node, ok, end - flight.asked_at, end if ok else now):
            cell.ready = cell.policy.ready
        if not ok:
            self._now_troubled(cell, node, others, now)
            cell.rest(flight.nodes[0])
        self._plan_probe(cell, now)

    def _others(self, flight: Flight, i: int, now: float) -> list[Flight]:
        """Flights with a request to a device that fails now; their earlier outcomes are reported first."""
        found = []
        for other in tuple(flight.cell.flights.values()):
            if other is not flight and other.session is not None and i in other.nodes:
                found.append(other)
                self._catch_up(other, now)
        return found

    def _catch_up(self, flight: Flight, now: float) -> None:
        """Reports the replies of a flight that have come so far; the times of the others matter from now on."""
        for j in sorted(flight.unreported(), key=flight.ends.__getitem__):
            if flight.statuses[j] == OK and flight.ends[j] <= now:
                self._learn(flight, j, now)
                if not flight.eager and not flight.answered and flight.session is not None:
                    flight.session.decide(flight.ends[j])
        flight.eager = True

    def _now_straggling(self, flight: Flight, now: float) -> None:
        """A node is a straggler from now on: the times of all replies matter."""
        for other in tuple(flight.cell.flights.values()):
            if other is not flight and other.session is not None and not other.eager:
                self._catch_up(other, now)
                self._go_on(other, now)

    def _now_troubled(self, cell: Cell, node: str, others: Sequence[Flight], now: float) -> None:
        """A node is not up: the times of its replies matter from now on, and no flight waits for a node that is out."""
        state = cell.policy.state(node)
        for other in others:
            other.eager = other.eager or state != "up"
            if state == "out" and other.session is not None and not other.answered:
                other.session.leave_out(node)
            self._go_on(other, now)

    def _hedge(self, flight: Flight, node: str, now: float) -> None:
        """Sends the request to a replica too."""
        i = flight.cell.index[node]
        flight.ids, flight.hedged = (*flight.ids, node), {**flight.hedged, i: now}
        flight.nodes.append(i)
        flight.send(i, now)
