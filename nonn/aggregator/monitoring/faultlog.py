"""The last faults of a cluster, kept for display; each is also one line in the log when it happens."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

__all__ = ["Fault", "FaultLog"]

KEPT = 100

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fault:
    """Something that happened to a node.

    Attributes:
        time_s: time on the aggregator's clock.
        event: ``state`` for a change of its state; ``drift`` for a change of its answers.
        node: id of the node; empty if it concerns all.
        before: the state before; empty for a new node.
        after: the state after; empty for a removed node.
        reason: reason in a few words.
    """

    time_s: float
    event: Literal["state", "drift"]
    node: str
    before: str
    after: str
    reason: str

    @property
    def is_good_news(self) -> bool:
        """Whether the node improved."""
        return self.after in ("up", "unknown", "clear")


class FaultLog:
    """The last faults, newest first."""

    def __init__(self) -> None:
        self._faults: deque[Fault] = deque(maxlen=KEPT)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def add(self, fault: Fault) -> None:
        """Stores a fault and logs it."""
        self._faults.appendleft(fault)
        level = logging.INFO if fault.is_good_news else logging.WARNING
        change = " → ".join(filter(None, (fault.before, fault.after or "removed")))
        fields = {"event": f"node_{fault.event}", "before": fault.before, "after": fault.after, "reason": fault.reason}
        if fault.node:
            fields["node"] = fault.node
        text = f"node {fault.node}: {change}" if fault.node else f"all nodes: {change}"
        _log.log(level, "%s%s", text, f" ({fault.reason})" if fault.reason else "", extra=fields)
