"""Screens the features of one request before fusion: devices that contradict the others are left out and recorded.

Combines the test of one request (``nonn.fusion.consistency``) with the evidence over requests
(``nonn.reliability.suspicion``). No clock, no network: the simulator uses it too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nonn.fusion.consistency import Consistency
from nonn.reliability.suspicion import Suspicion

__all__ = ["EXCLUDED", "QUARANTINED", "Screen", "Screened"]

Features = Mapping[int, NDArray[np.float32]]

EXCLUDED = "excluded: its features contradict those of the other devices"
QUARANTINED = "quarantined: its features contradict those of the other devices again and again"


@dataclass(frozen=True, eq=False)
class Screened:
    """The result for one request.

    Attributes:
        features: what to fuse, student → [B, d_i].
        excluded: students that were left out.
        surprise: evidence against each node, by its id; empty if the request gives none.
        consensus: what the nodes agree on [K]; None if the request gives no evidence.
    """

    features: Features
    excluded: tuple[int, ...] = ()
    surprise: Mapping[str, float] = field(default_factory=dict)
    consensus: NDArray[np.float32] | None = None


class Screen:
    """Screens the requests of one cluster.

    Args:
        consistency: the test of the bundle; None only passes features on.
        rate: share of requests in which an honest device may be excluded; 0 turns the test off.
    """

    def __init__(self, consistency: Consistency | None, rate: float) -> None:
        self._consistency, self._rate = consistency if rate > 0 else None, rate
        self.suspicion = Suspicion()

    def __bool__(self) -> bool:
        return self._consistency is not None

    def examine(self, features: Features, senders: Mapping[int, str]) -> Screened:
        """Tests the features of one request; pass the result to ``suspects``, once the request is answered.

        Args:
            features: student → [B, d_i], finite.
            senders: student → id of the node that sent its features.
        """
        if self._consistency is None or not features:
            return Screened(features)
        verdict = self._consistency.test(features, self._rate)
        if verdict.consensus is None or verdict.undecided:
            return Screened(verdict.features, verdict.excluded)
        surprise = {senders[student]: q for student, q in verdict.surprise.items() if student in senders}
        return Screened(verdict.features, verdict.excluded, surprise, verdict.consensus)

    def suspects(self, screened: Screened, quarantined: Collection[str] = ()) -> list[str]:
        """Adds the evidence of one request; returns the nodes that requests should no longer ask.

        Args:
            screened: result of ``examine``.
            quarantined: nodes that are in quarantine already.
        """
        if screened.consensus is None:
            return []
        return self.suspicion.observe(screened.surprise, screened.consensus, quarantined)
