"""The options of a policy, with their checks."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from nonn.errors import ConfigError

__all__ = ["PolicyConfig"]


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """What the operator decides.

    Attributes:
        deadline_s: how long one request waits for its nodes.
        quorum: a request that fewer students answer fails.
        breaker_failures: failures in a row after which a node is left out; silence leaves it out at once.
        breaker_reset_s: time between probes of a node that failed.
        fusion_budget_s: subtracted from a client's deadline for fusing and sending.
        hedge_quantile: share of a node's answers that come before a replica is asked too; 1 waits for its slowest.
        accuracy_per_ms: accuracy that one millisecond of waiting is worth, 0.0001 for a hundredth of a point; 0 waits
            for every node that is not out. Off by default: only the operator can know what a millisecond is worth,
            and without it the same devices answer every request.

    Raises:
        ConfigError: a value is impossible; the message names it.
    """

    deadline_s: float = 1.0
    quorum: int = 1
    breaker_failures: int = 2
    breaker_reset_s: float = 0.5
    fusion_budget_s: float = 0.005
    hedge_quantile: float = 0.95
    accuracy_per_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("deadline_s", "breaker_reset_s"):
            if not 0 < getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be a positive number of seconds")
        for name in ("quorum", "breaker_failures"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} = {getattr(self, name)}: must be at least 1")
        for name in ("fusion_budget_s", "accuracy_per_ms"):
            if not 0 <= getattr(self, name) < inf:
                raise ConfigError(f"{name} = {getattr(self, name)}: must not be negative")
        if self.fusion_budget_s > self.deadline_s:
            raise ConfigError(
                f"fusion_budget_s = {self.fusion_budget_s}: must not be above deadline_s = {self.deadline_s}, "
                "which it is kept from"
            )
        if not 0 < self.hedge_quantile <= 1:
            raise ConfigError(f"hedge_quantile = {self.hedge_quantile}: must be above 0 and at most 1")
