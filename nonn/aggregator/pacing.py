"""The three rules that pace the fan-outs of the batcher: pure logic, time is an argument.

``FanoutSlot`` sends one fan-out at a time, unless one is overdue. ``Regrouping`` waits for the clients of a batch to
ask again. ``BatchLimit`` limits the samples of one fan-out.
"""

from __future__ import annotations

from math import inf

__all__ = ["BatchLimit", "FanoutSlot", "Regrouping"]

MIN_PATIENCE_S = 0.02  # a shorter delay is a scheduling hiccup, not a hung node


class FanoutSlot:
    """Has room for one fan-out; one that takes twice the usual time, because some node hangs, gives up the slot.

    Attributes:
        overdue_at: when the fan-out in the slot gives it up.
    """

    def __init__(self) -> None:
        self._holder: object | None = None
        self.overdue_at = -inf

    def free(self, now: float) -> bool:
        """Whether the next fan-out may begin."""
        if self._holder is not None and now >= self.overdue_at:
            self._holder = None
        return self._holder is None

    def take(self, now: float, usual_s: float) -> object:
        """Begins a fan-out; returns a token for ``release``."""
        self._holder = token = object()
        self.overdue_at = now + max(MIN_PATIENCE_S, 2 * usual_s)
        return token

    def release(self, token: object) -> bool:
        """Ends a fan-out; returns whether it still held the slot."""
        held = self._holder is token
        if held:
            self._holder = None
        return held


class Regrouping:
    """After a batched reply, the next batch waits briefly for the same clients, which ask again soon but not at once.

    It waits until as many samples have arrived as were in the batch or waited when the reply came, for as long as a
    fan-out usually takes and ``longest_s`` at most. Otherwise requests that arrive one by one would be sent a few
    at a time.

    Args:
        longest_s: longest wait; 0 never waits.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._expected, self._until = 0, -inf

    def on_reply(self, num_samples: int, num_queued: int, now: float, usual_s: float) -> None:
        """Called when a batch was answered, or a lone request while others waited.

        Args:
            num_samples: number of samples answered.
            num_queued: number of samples that wait now.
            now: time of the reply.
            usual_s: usual duration of a fan-out.
        """
        self._expected, self._until = num_samples + num_queued, now + min(self._longest_s, usual_s)

    def wait_until(self, num_samples: int) -> float:
        """Time until which so many samples wait for the others; in the past if none are missing."""
        return self._until if num_samples < self._expected else -inf


class BatchLimit:
    """Limit of the samples of one fan-out.

    A batch that takes longer than ``long_s`` halves the limit; a full one that does not doubles it, up to ``most``
    (Crankshaw et al. 2017, "Clipper", in larger steps).

    Attributes:
        size: the current limit.
    """

    def __init__(self, most: int, long_s: float) -> None:
        self._most, self._long_s = most, long_s
        self.size = 1

    def on_fanout(self, num_samples: int, took_s: float) -> None:
        """Called when a fan-out for so many samples has ended without a silent node."""
        if took_s > self._long_s:
            if num_samples > 1:  # a single one cannot be smaller
                self.size = max(1, min(self.size, num_samples) // 2)
        elif num_samples >= self.size:
            self.size = min(self._most, 2 * self.size)
