"""Measures the cost of wrong features: recorded features, lies of some devices, the aggregator's screening and policy.

Requests come one after another in virtual time. A liar sends wrong features in requests, and honest ones when it is
tested in quarantine, the hardest case; so it comes back, and is found again. The same requests are also fused without
any test, and with the liars dead. ``nonn_sim.lies`` has the lies.

Intervals are for new samples (95 %): a recorded sample counts once, however many requests have it, and the loss against
the dead liars is compared sample by sample. The worst set of liars is chosen on the samples that measure it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.screening import Screen
from nonn.errors import ConfigError
from nonn.reliability.intervals import difference_interval, mean_interval, share_interval
from nonn.reliability.subsets import mask_of, members
from nonn_sim.lies import LIES, Recording

__all__ = ["Honest", "Lied", "measure_honest", "measure_lie"]

Float32 = NDArray[np.float32]
Ends: TypeAlias = tuple[float, float]

PER_SECOND = 100.0  # requests; decides only how many fall into a quarantine
RARE = 0.05


@dataclass(frozen=True)
class Lied:
    """The result of one lie; accuracies in [0, 1], means over the sets of liars.

    Attributes:
        lie: of ``LIES``.
        liars: number of devices that lie.
        dead: accuracy with the liars dead.
        unscreened: accuracy without any test.
        screened: accuracy with it.
        worst: the largest loss against ``dead`` over the sets of liars.
        stated: accuracy that the answers state, mean.
        caught: share of the liars' lies that were not fused.
        honest_excluded: requests that lost an honest device.
        honest_quarantines: quarantines of an honest device.
        first_quarantine: number of requests until every liar had been in quarantine once, mean; None if one never was.
        dead_interval: of ``dead``.
        unscreened_interval: of ``unscreened``.
        screened_interval: of ``screened``.
        worst_interval: of ``worst``.
        stated_interval: of ``stated``, for the test set of the bundle.
    """

    lie: str
    liars: int
    dead: float
    unscreened: float
    screened: float
    worst: float
    stated: float
    caught: float
    honest_excluded: int
    honest_quarantines: int
    first_quarantine: float | None
    dead_interval: Ends
    unscreened_interval: Ends
    screened_interval: Ends
    worst_interval: Ends
    stated_interval: Ends


@dataclass(frozen=True)
class _Found:
    """The result of one lie of one set of liars.

    Attributes:
        rows: sample of each request [R].
        dead: whether each answer is right with the liars dead [R].
        unscreened: the same without any test [R].
        screened: the same with it [R].

    The others are as in ``Lied``.
    """

    rows: NDArray[np.int64]
    dead: NDArray[np.bool_]
    unscreened: NDArray[np.bool_]
    screened: NDArray[np.bool_]
    stated: float
    caught: float
    honest_excluded: int
    honest_quarantines: int
    first_quarantine: float | None

    @property
    def loss(self) -> NDArray[np.float64]:
        """What each answer loses against the dead liars: −1, 0 or 1 [R]."""
        result: NDArray[np.float64] = self.dead.astype(np.float64) - self.screened
        return result


@dataclass(frozen=True)
class Honest:
    """The result without a lie.

    Attributes:
        requests: number of requests.
        excluded: requests that lost a device.
        quarantines: quarantines.
        rate_bound: largest rate of exclusions that these requests support, with 95 % confidence.
    """

    requests: int
    excluded: int
    quarantines: int
    rate_bound: float


@dataclass
class _Run:
    """One stream of requests: row, fused mask and how much the liars lied in each, and what was excluded."""

    rows: NDArray[np.int64]
    share: Float32  # of a lie: 0 is honest, 1 the whole lie
    masks: NDArray[np.int64]
    excluded: list[tuple[int, ...]]
    quarantines: list[tuple[int, int]]  # number of the request, device


def _stream(
    recording: Recording, lies: dict[int, Float32], rows: NDArray[np.int64], share: Float32, config: PolicyConfig
) -> _Run:
    """Sends requests through policy and screening."""
    num, requests = recording.head.num_devices, len(rows)
    policy = Policy({str(i): i for i in range(num)}, config)
    screen = Screen(recording.consistency, config.exclusion_rate)
    run = _Run(rows, share, np.zeros(requests, np.int64), [], [])
    for number in range(requests):
        now = number / PER_SECOND
        for node in policy.probes(now):
            policy.on_probe(node, True, 0.0, now)
        asked = [int(node) for node in policy.roster.ask]
        features = _sent(recording, lies, run, np.array([number]), asked)
        screened = screen.examine(features, {i: str(i) for i in asked})
        for device in asked:
            policy.on_success(str(device), 0.001, now)
        for name in screen.suspects(screened, policy.roster.quarantined):
            policy.on_contradiction(name, now)
            run.quarantines.append((number, int(name)))
        run.masks[number] = mask_of(screened.features)
        run.excluded.append(screened.excluded)
    return run


def _sent(
    recording: Recording, lies: dict[int, Float32], run: _Run, requests: NDArray[np.int64], devices: Iterable[int]
) -> dict[int, Float32]:
    """The features that devices send in some requests [r, d_i]."""
    rows, share, features = run.rows[requests], run.share[requests][:, None], {}
    for i in devices:
        honest = features[i] = recording.features[i][rows]
        if i in lies:
            lie = lies[i][rows]
            with np.errstate(over="ignore"):  # of the largest features; they are sent as they are
                features[i] = np.where(share == 1, lie, np.where(share, honest + share * (lie - honest), honest))
    return features


def _right(recording: Recording, lies: dict[int, Float32], run: _Run, masks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each answer is right if these devices are fused."""
    right = np.zeros(len(run.rows), bool)
    for mask in np.unique(masks).tolist():
        if mask:
            chosen = np.flatnonzero(masks == mask)
            logits = recording.head.logits(_sent(recording, lies, run, chosen, members(mask)))
            right[chosen] = logits.argmax(axis=1) == recording.labels[run.rows[chosen]]
    return right


def measure_lie(
    recording: Recording,
    lie: str,
    liars: int,
    *,
    requests: int = 2000,
    sets: int = 4,
    config: PolicyConfig | None = None,
) -> Lied:
    """Measures one lie.

    Args:
        recording: features of the bundle.
        lie: of ``LIES``.
        liars: number of devices that lie.
        requests: number of requests for each set of liars.
        sets: sets of liars that are tried.
        config: options of the policy.

    Raises:
        ConfigError: the lie is unknown, or the liars are not a minority.
    """
    num, config = recording.head.num_devices, config or PolicyConfig()
    if lie not in LIES:
        raise ConfigError(f"lie '{lie}' is unknown; choose {', '.join(LIES)}")
    if not 0 < liars < (num + 1) // 2:
        raise ConfigError(f"{liars} liars of {num} devices: they must be a minority, and at least one")
    all_sets = list(combinations(range(num), liars))
    chosen = [all_sets[k] for k in recording.rng(5, liars).permutation(len(all_sets))[:sets]]
    found = [_measure(recording, lie, devices, requests, config) for devices in chosen]
    firsts = [row.first_quarantine for row in found]
    known = [first for first in firsts if first is not None]
    rows = found[0].rows  # those of all sets
    dead, unscreened, screened = (
        np.mean([getattr(row, key) for row in found], axis=0) for key in ("dead", "unscreened", "screened")
    )
    worst = max((row.loss for row in found), key=lambda loss: float(loss.mean()))
    stated = float(np.mean([row.stated for row in found]))
    return Lied(
        lie,
        liars,
        dead=float(dead.mean()),
        unscreened=float(unscreened.mean()),
        screened=float(screened.mean()),
        worst=float(worst.mean()),
        stated=stated,
        dead_interval=_ends(mean_interval(_of_samples(rows, dead), mean=dead.mean())),
        unscreened_interval=_ends(mean_interval(_of_samples(rows, unscreened), mean=unscreened.mean())),
        screened_interval=_ends(mean_interval(_of_samples(rows, screened), mean=screened.mean())),
        worst_interval=_ends(difference_interval(_of_samples(rows, worst), mean=worst.mean())),
        stated_interval=share_interval(stated, recording.bundle.table.samples),
        caught=float(np.mean([row.caught for row in found])),
        honest_excluded=sum(row.honest_excluded for row in found),
        honest_quarantines=sum(row.honest_quarantines for row in found),
        first_quarantine=float(np.mean(known)) if len(known) == len(firsts) else None,
    )


def _of_samples(rows: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of the requests of each sample that was sent [s]."""
    place = np.unique(rows, return_inverse=True)[1]
    result: NDArray[np.float64] = np.bincount(place, values) / np.bincount(place)
    return result


def _ends(interval: tuple[NDArray[np.float64], NDArray[np.float64]]) -> Ends:
    return float(interval[0]), float(interval[1])


def _measure(recording: Recording, lie: str, liars: tuple[int, ...], requests: int, config: PolicyConfig) -> _Found:
    """Measures one lie of one set of liars."""
    lies, everyone = LIES[lie](recording, liars), (1 << recording.head.num_devices) - 1
    rng = recording.rng(4)
    rows, share = rng.integers(len(recording.labels), size=requests), np.ones(requests, np.float32)
    if lie == "rare":
        share = (rng.random(requests) < RARE).astype(np.float32)
    elif lie == "drift":
        share = np.linspace(0, 1, requests, dtype=np.float32)
    run = _stream(recording, lies, rows, share, config)
    alive = everyone & ~mask_of(liars)
    dead = _right(recording, lies, run, np.full(requests, alive))
    with np.errstate(over="ignore", invalid="ignore"):  # lies may be too large for the head
        unscreened = _right(recording, lies, run, np.full(requests, everyone))
    lied = np.array([[share[k] > 0 and run.masks[k] >> i & 1 for i in liars] for k in range(requests)])
    first = {i: next((number + 1 for number, device in run.quarantines if device == i), None) for i in liars}
    firsts = [number for number in first.values() if number is not None]
    return _Found(
        rows=rows,
        dead=dead,
        unscreened=unscreened,
        screened=_right(recording, _clipped(recording, lies), run, run.masks),
        stated=float(recording.bundle.table.accuracy[run.masks].mean()),
        caught=1 - float(lied.sum() / max(1, len(liars) * (share > 0).sum())),
        honest_excluded=sum(any(i not in liars for i in excluded) for excluded in run.excluded),
        honest_quarantines=sum(device not in liars for _, device in run.quarantines),
        first_quarantine=float(max(firsts)) if len(firsts) == len(liars) else None,
    )


def _clipped(recording: Recording, lies: dict[int, Float32]) -> dict[int, Float32]:
    """Lies as they are fused."""
    return dict(recording.consistency.clip(lies))


def measure_honest(recording: Recording, requests: int, config: PolicyConfig | None = None) -> Honest:
    """Measures what the test costs honest devices, on every recorded sample in turn."""
    rows = recording.rng(4).integers(len(recording.labels), size=requests)
    run = _stream(recording, {}, rows, np.zeros(requests, np.float32), config or PolicyConfig())
    excluded = sum(bool(devices) for devices in run.excluded)
    return Honest(
        requests, excluded, len(run.quarantines), _upper_bound(excluded, min(requests, len(recording.labels)))
    )


def _upper_bound(found: int, independent: int) -> float:
    """Largest rate that so many events in so many independent samples support, with 95 % confidence (Poisson)."""
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, 2 * (found + 1)) / 2 / independent)
