"""The last faults of a cluster: kept for display, and each is one line in the log when it happens."""

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
        time_s: on the aggregator's clock.
        event: ``state`` it is treated otherwise than before; ``drift`` what it says has changed.
        node: id; empty if it concerns all.
        before: the state before; empty for a node that is new.
        after: the state after; empty for a node that was removed.
        reason: why, in a few words.
    """

    time_s: float
    event: Literal["state", "drift"]
    node: str
    before: str
    after: str
    reason: str

    @property
    def is_good_news(self) -> bool:
        """Whether the node is better off than before."""
        return self.after in ("up", "clear")


class FaultLog:
    """The last faults, newest first."""

    def __init__(self) -> None:
        self._faults: deque[Fault] = deque(maxlen=KEPT)

    def __iter__(self) -> Iterator[Fault]:
        return iter(self._faults)

    def add(self, fault: Fault) -> None:
        """Keeps a fault and logs it."""
        self._faults.appendleft(fault)
        level = logging.INFO if fault.is_good_news else logging.WARNING
        change = " → ".join(filter(None, (fault.before, fault.after or "removed")))
        fields = {"event": f"node_{fault.event}", "before": fault.before, "after": fault.after, "reason": fault.reason}
        if fault.node:
            fields["node"] = fault.node
        text = f"node {fault.node}: {change}" if fault.node else f"all nodes: {change}"
        _log.log(level, "%s%s", text, f" ({fault.reason})" if fault.reason else "", extra=fields)
