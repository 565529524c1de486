"""Decides which nodes move to another bundle next, so that accuracy never falls below a floor: logic without a clock.

While a fleet moves from one bundle to another, two clusters exist. Answers of different bundles are never fused, so
only nodes on the served bundle contribute. The old bundle is served until the nodes on the new one reach the floor by
themselves; then the new one is served at once, and the remaining nodes move.

So the plan needs a set of nodes that the old bundle can spare and that suffices for the new one. Both subset tables are
known, so it checks all 2^N choices: of those reachable by moving one student at a time with the old bundle never below
the floor, it takes the one with the highest accuracy of the weaker bundle. If several nodes run a student, one replica
moves first, at no cost for the old bundle. After a failure the plan is computed again from the remaining nodes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nonn.reliability.subsets import mask_of

__all__ = ["Blocked", "Done", "Move", "Situation", "Step", "Switch", "next_step"]


@dataclass(frozen=True, kw_only=True)
class Situation:
    """The state of the fleet now.

    Attributes:
        old: accuracy of every subset of devices of the served bundle [2^N].
        new: the same for the bundle that the fleet moves to [2^M].
        on_old: student of each node that answers with the old bundle.
        on_new: student of each node that answers with the new one.
        becomes: student of the new bundle that each node of ``on_old`` will run.
        floor: lowest accuracy allowed for the served bundle.
        switched: whether the new bundle is already served.
    """

    old: NDArray[np.float64]
    new: NDArray[np.float64]
    on_old: Mapping[str, int]
    on_new: Mapping[str, int]
    becomes: Mapping[str, int]
    floor: float
    switched: bool = False

    @property
    def accuracy(self) -> float:
        """Accuracy of the served bundle."""
        return accuracy_of(self.new, self.on_new) if self.switched else accuracy_of(self.old, self.on_old)


@dataclass(frozen=True)
class Move:
    """These nodes get the new bundle now; the next step follows when they are back.

    Attributes:
        nodes: their ids.
    """

    nodes: tuple[str, ...]


@dataclass(frozen=True)
class Switch:
    """The new bundle is served from now on."""


@dataclass(frozen=True)
class Done:
    """Every node runs the new bundle."""


@dataclass(frozen=True)
class Blocked:
    """The floor cannot be kept.

    Attributes:
        reason: text with the accuracy that is possible instead.
    """

    reason: str


Step = Move | Switch | Done | Blocked


def accuracy_of(table: NDArray[np.float64], nodes: Mapping[str, int]) -> float:
    """Accuracy of the subset of students that these nodes run."""
    return float(table[mask_of(nodes.values())])


def next_step(situation: Situation) -> Step:
    """The next step, when no node is moving.

    A step is safe: without its nodes, or after the switch, the accuracy is still at or above the floor.
    """
    here = situation
    if here.switched:
        # The nodes that still run the old bundle serve no client.
        return Move(tuple(sorted(here.on_old))) if here.on_old else Done()
    now, later = here.accuracy, accuracy_of(here.new, here.on_new)
    if later >= here.floor and (later >= now or not here.on_old):
        return Switch()
    if now < here.floor:
        return Blocked(
            f"{_students(here.on_old)} answer with {now:.2%} now, which is below the floor of {here.floor:.2%}; bring "
            "nodes back, or choose a lower --floor"
        )
    spare = _spare_replicas(here.on_old, here.on_new, here.becomes)
    if spare:
        return Move(spare)
    target = _target(here)
    if target is None:
        if later >= here.floor:
            return Switch()
        best = math.floor(1e4 * _best(here)) / 1e4  # in the digits of --floor
        return Blocked(
            f"the old bundle and the new one cannot both stay at {here.floor:.2%} with {len(here.on_old)} and "
            f"{len(here.on_new)} nodes; the highest floor that can be kept is {best:.4f}"
        )
    if not target:
        return Switch()
    return Move(_first(here, target))


def _students(nodes: Mapping[str, int]) -> str:
    return f"{len(nodes)} nodes with {len(set(nodes.values()))} students"


def _spare_replicas(
    on_old: Mapping[str, int], on_new: Mapping[str, int], becomes: Mapping[str, int]
) -> tuple[str, ...]:
    """Nodes that the old bundle can spare and whose students the new one does not have yet."""
    left, brought, chosen = Counter(on_old.values()), set(on_new.values()), []
    for node in sorted(on_old):
        if left[on_old[node]] > 1 and becomes[node] not in brought:
            left[on_old[node]] -= 1
            brought.add(becomes[node])
            chosen.append(node)
    return tuple(chosen)


def _outcomes(here: Situation) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
    """The old students that may move, and for each choice of them [2^k] the resulting accuracy of either bundle.

    Replicas of a student move together: the old bundle loses it only with the last of them.
    """
    students = sorted(set(here.on_old.values()))
    old_masks = np.full(1 << len(students), mask_of(students), np.int64)
    new_masks = np.full(1 << len(students), mask_of(here.on_new.values()), np.int64)
    choices = np.arange(1 << len(students))
    for bit, student in enumerate(students):
        gone = (choices >> bit & 1).astype(np.bool_)
        brings = mask_of(here.becomes[node] for node, s in here.on_old.items() if s == student)
        old_masks[gone] &= ~(1 << student)
        new_masks[gone] |= brings
    return students, here.old[old_masks], here.new[new_masks]


def _target(here: Situation) -> frozenset[int] | None:
    """Students that move before the switch with both bundles at the floor; None if there is no such choice."""
    students, old, new = _outcomes(here)
    reached = _reachable(old >= here.floor)
    weaker = np.where(reached & (new >= here.floor), np.minimum(old, new), -1.0)
    choice = int(weaker.argmax())  # the first of equals
    if weaker[choice] < 0:
        return None
    return frozenset(student for bit, student in enumerate(students) if choice >> bit & 1)


def _best(here: Situation) -> float:
    """The highest floor that can be kept."""
    _, old, new = _outcomes(here)
    candidates = np.unique(np.concatenate([old, new]))
    low, high = 0, len(candidates) - 1  # a lower floor is never harder to keep
    while low < high:
        middle = (low + high + 1) // 2
        if (_reachable(old >= candidates[middle]) & (new >= candidates[middle])).any():
            low = middle
        else:
            high = middle - 1
    return float(candidates[low])


def _reachable(allowed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Which choices [2^k] are reachable from none by adding one student at a time, through allowed ones only."""
    reached = np.zeros_like(allowed)
    reached[0] = allowed[0]
    bits = len(allowed).bit_length() - 1
    choices = np.arange(len(allowed))
    for _ in range(bits):  # each round adds one student
        before = reached.copy()
        for bit in range(bits):
            with_bit = choices >> bit & 1 == 1
            reached[with_bit] |= reached[choices[with_bit] ^ (1 << bit)] & allowed[with_bit]
        if (before == reached).all():
            break
    return reached


def _first(here: Situation, target: Collection[int]) -> tuple[str, ...]:
    """The nodes of the student whose move costs least and still leads to the target."""
    students, old, _ = _outcomes(here)
    within = np.array([all(s in target for b, s in enumerate(students) if c >> b & 1) for c in range(len(old))])
    goal = sum(1 << bit for bit, student in enumerate(students) if student in target)
    allowed = within & (old >= here.floor)
    # Backwards from the goal: choices from which it can be reached.
    leads = _reachable(allowed[goal ^ np.arange(len(old))] & within)[goal ^ np.arange(len(old))]
    first = [bit for bit in range(len(students)) if goal >> bit & 1 and leads[1 << bit] and allowed[1 << bit]]
    bit = max(first, key=lambda b: float(old[1 << b]))
    return tuple(sorted(node for node, student in here.on_old.items() if student == students[bit]))
