"""The options of a policy, with their constraints."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

from nonn.toml import check
from nonn.toml.constraints import Count, NotNegative, Positive, Range, Rules

__all__ = ["PolicyConfig"]

# Of the deadline: far above the jitter of healthy nodes, and no request that meets a new straggler is late for it.
STRAGGLER_SHARE = 0.1


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """Options of the operator: which nodes the aggregator waits for, and how long.

    Raises:
        ConfigError: a value is invalid; the message names it.
    """

    deadline_s: Annotated[Positive, "how long one request waits for its nodes"] = 1.0
    quorum: Annotated[Count, "fewest students for an answer; with fewer, the request fails"] = 1
    breaker_failures: Annotated[Count, "failures in a row that open a node's breaker; silence opens it at once"] = 2
    breaker_reset_s: Annotated[Positive, "time between probes of a node that failed"] = 0.5
    fusion_budget_s: Annotated[
        NotNegative,
        "subtracted from a client's deadline for fusing and sending; an answer waits at most this long for the head of "
        "its subset to be solved, and else fuses a solved subset",
    ] = 0.005
    hedge_quantile: Annotated[
        float,
        Range(gt=0, le=1),
        "quantile of a node's latency after which a replica is also asked; 1 waits for its slowest answer",
    ] = 0.95
    # Off by default: only the operator can judge what a millisecond is worth, and without it the same devices answer
    # every request.
    accuracy_per_ms: Annotated[
        NotNegative,
        "accuracy that one millisecond of waiting is worth, 0.0001 for a hundredth of a point; 0 waits for every node "
        "whose breaker is closed",
    ] = 0.0
    early_loss: Annotated[
        NotNegative,
        "accuracy that an answer may lose by not waiting for stragglers, 0.03 for three points; 0 waits for every node "
        "whose breaker is closed",
    ] = 0.03

    exclusion_rate: Annotated[
        float,
        Range(ge=0, lt=1),
        "share of requests in which an honest device may be left out because its features contradict the others'; 0 "
        "turns the test off",
    ] = 1e-5
    quarantine_s: Annotated[
        Positive,
        "time until a node that contradicted the others repeatedly is tested with known inputs; doubles each time",
    ] = 10.0

    def __post_init__(self) -> None:
        check(self)

    @cached_property
    def patience_s(self) -> float:
        """A node that is this much later than the others is a straggler."""
        return self.deadline_s * STRAGGLER_SHARE

    def rules(self) -> Rules:
        """Checks of several fields."""
        yield (
            "fusion_budget_s",
            self.fusion_budget_s <= self.deadline_s,
            f"must not be above deadline_s = {self.deadline_s}, from which it is subtracted",
        )
