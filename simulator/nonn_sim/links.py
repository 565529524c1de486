"""Random service times, link times and loss of each exchange, drawn in blocks.

Every device has separate random streams, which are drawn whether it is used or not. So two deployments in one world
share their draws (common random numbers), and a result does not depend on the size of a block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt

import numpy as np
from numpy.typing import NDArray

from nonn_sim.scenario import Group, LinkConfig, LoadConfig, NodeConfig

__all__ = ["BLOCK", "AccessPoint", "Channel", "DeviceWork", "Exchange", "access_points", "arrivals", "exchanges"]

BLOCK = 4096  # requests drawn at once: large enough to amortise NumPy's calls, small enough for the cache

# Tags that separate the streams of one seed.
ARRIVALS, SERVICE, PROBES, FAULTS = range(4)

# Of one request: service, up and down times [N], uniform draws of links and of their states [2N] or None, overhead.
Exchange = tuple[list[float], list[float], list[float], list[float] | None, float]


@dataclass(frozen=True)
class DeviceWork:
    """Work of one request on one device.

    Attributes:
        macs: multiply-accumulates.
        request_bytes: bytes that it receives.
        reply_bytes: bytes that it sends.
        crossings: messages in each direction; more than 1 if devices wait for each other at every layer.
    """

    macs: float
    request_bytes: float
    reply_bytes: float
    crossings: int = 1

    def service_s(self, node: NodeConfig, macs_of_service: float) -> float:
        """Mean time of the work on a device.

        Args:
            node: its speed, or its time for an inference of ``macs_of_service``.
            macs_of_service: multiply-accumulates that take ``node.service_s``.
        """
        if node.speed_macs_per_s:
            return self.macs / node.speed_macs_per_s
        return node.service_s * self.macs / macs_of_service if macs_of_service else node.service_s


class AccessPoint:
    """What several devices share: it sends one message at a time, in the order in which they are ready.

    Args:
        bytes_per_s: its rate.
    """

    __slots__ = ("_bytes_per_s", "_free_at")

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s, self._free_at = bytes_per_s, 0.0

    def alone_s(self, payload_bytes: float) -> float:
        """Time to send a message that waits for no other."""
        return payload_bytes / self._bytes_per_s

    def send(self, now: float, payload_bytes: float, deadline_at: float) -> float:
        """Time at which a message that is ready now has been sent.

        Args:
            now: time, not before that of the last call.
            payload_bytes: its size; nothing to send needs no turn.
            deadline_at: a message whose turn does not come before it is dropped.

        Returns:
            That time; infinity if it is dropped.
        """
        if not payload_bytes:
            return now
        start = max(now, self._free_at)
        if start >= deadline_at:
            return inf
        self._free_at = start + self.alone_s(payload_bytes)
        return self._free_at


def access_points(groups: Sequence[Group], devices: Sequence[int]) -> list[AccessPoint | None]:
    """The access points of a cell, one for each device, None without one [n]; empty if no device has one."""
    of: dict[int, AccessPoint] = {}
    for group in groups:
        if group.bandwidth_bytes_per_s:
            of |= dict.fromkeys(group.nodes, AccessPoint(group.bandwidth_bytes_per_s))
    return [of.get(device) for device in devices] if of else []


class Channel:
    """Whether exchanges over one link are lost: Bernoulli, or Gilbert–Elliott in continuous time.

    The state of the channel is drawn when an exchange needs it, from its distribution given the last state: for two
    states with rates a (good to bad) and b, P(bad at t + Δ | s) = π + (s − π) e^−(a+b)Δ with π = a / (a + b). This is
    the exact chain, observed only at exchanges, so idle time costs nothing.
    """

    def __init__(self, link: LinkConfig) -> None:
        self._p = (link.p_loss, link.p_loss_bad)
        self._two_states = link.good_s > 0
        self._bad, self._at = 0, 0.0
        if self._two_states:
            to_bad, to_good = 1 / link.good_s, 1 / link.bad_s
            self._rate, self._p_bad = to_bad + to_good, to_bad / (to_bad + to_good)

    @property
    def lossy(self) -> bool:
        """Whether an exchange can be lost."""
        return self._two_states or self._p[0] > 0

    def most(self, crossings: int = 1) -> float:
        """Probability that an exchange is lost in the worse state."""
        p_loss = max(self._p) if self._two_states else self._p[0]
        return p_loss if crossings == 1 else 1 - (1 - p_loss) ** crossings

    def lost(self, now: float, uniform: float, uniform_of_state: float, crossings: int = 1) -> bool:
        """Whether an exchange at this time is lost.

        Args:
            now: time, not before that of the last call.
            uniform: drawn from [0, 1).
            uniform_of_state: drawn from [0, 1), independent of it.
            crossings: exchanges that must all succeed, in the state of the first.
        """
        if uniform >= self.most(crossings):
            return False  # in any state, so the state need not be drawn yet
        if self._two_states:
            p_bad = self._p_bad + (self._bad - self._p_bad) * exp(-self._rate * (now - self._at))
            self._bad, self._at = int(uniform_of_state < p_bad), now
        p_loss = self._p[self._bad]
        return uniform < (p_loss if crossings == 1 else 1 - (1 - p_loss) ** crossings)


def exchanges(
    nodes: Sequence[NodeConfig],
    work: Sequence[DeviceWork],
    services_s: Sequence[float],
    streams: Sequence[int],
    seed: int,
    tag: int = SERVICE,
    measured_s: NDArray[np.float64] | None = None,
) -> Iterator[Exchange]:
    """An endless sequence of draws, one for each request.

    Args:
        nodes: the devices [N].
        work: work of a request on each device [N].
        services_s: mean service time of each device [N].
        streams: number of each device, which selects its random stream [N].
        seed: seed of the run.
        tag: purpose of the draws; draws of different tags are independent.
        measured_s: times of whole fan-outs, and the remaining time of requests [R, 2]; a row is drawn for each request,
            instead of service and link times.
    """
    n = len(nodes)
    rngs = [np.random.default_rng([seed, tag, stream]) for stream in streams]
    links = [(node.link, w) for node, w in zip(nodes, work, strict=True)]
    up_s = [_constant_s(link, w.crossings, w.request_bytes) for link, w in links]
    down_s = [_constant_s(link, w.crossings, w.reply_bytes) for link, w in links]
    lossy = any(Channel(node.link).lossy for node in nodes)
    jitter = any(node.link.jitter_s for node in nodes)
    while True:
        service, up, down, uniform = (np.empty((BLOCK, n)) for _ in range(4))
        state = np.empty((BLOCK, n))
        for i, (node, rng) in enumerate(zip(nodes, rngs, strict=True)):
            service[:, i] = _service(rng, services_s[i], node.service_cv)
            up[:, i], down[:, i] = up_s[i], down_s[i]
            if node.link.jitter_s:
                # The sum of one exponential per message.
                up[:, i] += rng.gamma(work[i].crossings, node.link.jitter_s, BLOCK)
                down[:, i] += rng.gamma(work[i].crossings, node.link.jitter_s, BLOCK)
            if lossy:
                uniform[:, i], state[:, i] = rng.random(BLOCK), rng.random(BLOCK)
        on_top = [0.0] * BLOCK
        if measured_s is not None:
            drawn = rngs[0].choice(measured_s, BLOCK)
            # Added to the reply, where nothing queues: measured times include the queues already.
            down[:], on_top = drawn[:, :1], drawn[:, 1].tolist()
            service[:] = up[:] = 0.0
        varying = jitter or measured_s is not None
        ups = up.tolist() if varying else [up[0].tolist()] * BLOCK
        downs = down.tolist() if varying else [down[0].tolist()] * BLOCK
        uniforms = np.concatenate([uniform, state], axis=1).tolist() if lossy else [None] * BLOCK
        yield from zip(service.tolist(), ups, downs, uniforms, on_top, strict=True)


def arrivals(load: LoadConfig, seed: int) -> Iterator[float]:
    """Endless arrival times of an open load; of one that changes over the day by thinning, which is exact.

    Source: Lewis, Shedler 1979, "Simulation of nonhomogeneous Poisson processes by thinning".
    """
    if load.arrivals == "fixed":
        number = 0
        while True:
            yield number / load.rate_per_s
            number += 1
    rng, now = np.random.default_rng([seed, ARRIVALS]), 0.0
    swing = load.daily_swing
    while True:
        times = now + rng.exponential(1 / (load.rate_per_s * (1 + swing)), BLOCK).cumsum()
        now = float(times[-1])
        if swing:
            rate = 1 + swing * np.cos(2 * np.pi * (times - load.peak_at_s) / load.day_s)
            times = times[rng.random(BLOCK) * (1 + swing) < rate]
        yield from times.tolist()


def _constant_s(link: LinkConfig, crossings: int, payload_bytes: float) -> float:
    """The constant part of the link time."""
    sending_s = payload_bytes / link.bandwidth_bytes_per_s if link.bandwidth_bytes_per_s else 0.0
    return crossings * link.latency_s + sending_s


def _service(rng: np.random.Generator, mean_s: float, cv: float) -> NDArray[np.float64]:
    """Service times [BLOCK]: log-normal with this mean and coefficient of variation."""
    if not cv or not mean_s:
        return np.full(BLOCK, mean_s)
    sigma2 = log(1 + cv * cv)
    return rng.lognormal(log(mean_s) - sigma2 / 2, sqrt(sigma2), BLOCK)
