"""What devices that lie cost: recorded features, lies of some devices, and production's screening, policy and fusion.

Requests come one after another in virtual time. A liar sends wrong features in requests, and honest ones when it is
tested in quarantine, the hardest case; so it comes back, and is found again. The same requests are also fused without
any test, and with the liars dead.

============== ==========================================================================================
``huge``       ±3·10³⁸, the largest that a reply may have
``x100``       a hundred times its features
``adversary``  each feature at the end of its recorded range that moves the fused logits most towards the
               class that is second; the liar knows the features of all devices and the head
``rare``       the same in one request of twenty
``stealth``    the same, moved back towards its honest features until the test just passes: it knows the test
``constant``   always the features of one sample
``replay``     features of another sample
``permuted``   its features in another order, as after a change of the network's layout
``flipped``    mirrored inside their range, as with a wrong sign
============== ==========================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.aggregator.policy import Policy, PolicyConfig
from nonn.aggregator.screening import Screen
from nonn.bundle import Bundle
from nonn.errors import BundleError, ConfigError
from nonn.fusion import LinearHead
from nonn.reliability.subsets import mask_of, members

__all__ = ["LIES", "Honest", "Lied", "Recording", "check_lies", "measure_honest", "measure_lie"]

Float32 = NDArray[np.float32]
Lie = Callable[["Recording", tuple[int, ...]], dict[int, Float32]]

PER_SECOND = 100.0  # requests; decides only how many fall into a quarantine
RARE = 0.05
_STEPS = 12  # halvings of the search for the largest lie that passes


class Recording:
    """The recorded features of a bundle, and what is needed to lie about them.

    Args:
        bundle: a bundle with recorded features and the test of its devices.
        seed: of the lies that are drawn.

    Raises:
        BundleError: it lacks one of them.
    """

    def __init__(self, bundle: Bundle, seed: int = 0) -> None:
        self.bundle, self.head, self.consistency = bundle, bundle.head, bundle.consistency
        if self.consistency is None:
            raise BundleError(f"{bundle.path}: no consistency.npz, so nothing finds a liar; build the bundle again")
        features, self.labels = bundle.features
        self.features = [np.asarray(f, np.float32) for f in features]
        self.seed = seed
        logits = self.head.logits(dict(enumerate(self.features)))
        first = logits.argmax(axis=1)
        logits[np.arange(len(logits)), first] = -np.inf
        self.first, self.second = first, logits.argmax(axis=1)

    def rng(self, *stream: int) -> np.random.Generator:
        """A generator of one purpose."""
        return np.random.default_rng([self.seed, *stream])

    def adversary(self, liars: tuple[int, ...]) -> dict[int, Float32]:
        """The ends of the range that favour the second class."""
        assert self.consistency is not None
        if isinstance(self.head, LinearHead):
            weight = self.head.weights((1 << self.head.num_devices) - 1)[0]
        else:  # the linear estimate of its logits from each device
            weight = np.concatenate(self.consistency.readout).astype(np.float64)
        lies = {}
        for i in liars:
            own, features = weight[self.head.offsets[i] : self.head.offsets[i + 1]], self.features[i]
            favours = own[:, self.second] > own[:, self.first]
            lies[i] = np.where(favours.T, features.max(axis=0), features.min(axis=0)).astype(np.float32)
        return lies

    def stealth(self, liars: tuple[int, ...]) -> dict[int, Float32]:
        """The largest share of ``adversary`` that passes the test of a single request."""
        assert self.consistency is not None
        full, threshold = self.adversary(liars), self.consistency.threshold(self.head.num_devices)
        low, high = np.zeros((len(self.labels), 1), np.float32), np.ones((len(self.labels), 1), np.float32)
        for _ in range(_STEPS):
            share = (low + high) * np.float32(0.5)
            tried = dict(enumerate(self.features)) | self._blend(full, share)
            statistics = self.consistency.statistics(self.consistency.clip(tried))[1]
            passes = (statistics.max(axis=0) <= threshold)[:, None]
            low, high = np.where(passes, share, low), np.where(passes, high, share)
        return self._blend(full, low)

    def _blend(self, lies: dict[int, Float32], share: NDArray[Any]) -> dict[int, Float32]:
        return {i: self.features[i] + share * (lie - self.features[i]) for i, lie in lies.items()}


def _each(change: Callable[[Recording, int, Float32], Float32]) -> Lie:
    """A lie that a device tells on its own."""
    return lambda recording, liars: {i: change(recording, i, recording.features[i]) for i in liars}


def _huge(recording: Recording, i: int, f: Float32) -> Float32:
    return np.where(recording.rng(1, i).random(f.shape) < 0.5, 3e38, -3e38).astype(np.float32)


def _replay(recording: Recording, i: int, f: Float32) -> Float32:
    return f[recording.rng(2, i).permutation(len(f))]


def _permuted(recording: Recording, i: int, f: Float32) -> Float32:
    return f[:, recording.rng(3, i).permutation(f.shape[1])]


LIES: dict[str, Lie] = {
    "huge": _each(_huge),
    "x100": _each(lambda recording, i, f: 100 * f),
    "adversary": Recording.adversary,
    "rare": Recording.adversary,
    "stealth": Recording.stealth,
    "constant": _each(lambda recording, i, f: np.repeat(f[:1], len(f), axis=0)),
    "replay": _each(_replay),
    "permuted": _each(_permuted),
    "flipped": _each(lambda recording, i, f: f.max(axis=0) + f.min(axis=0) - f),
}


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
    """One stream of requests: row, fused mask and whether the liars lied in each, and what was excluded."""

    rows: NDArray[np.int64]
    lied: NDArray[np.bool_]
    masks: NDArray[np.int64]
    excluded: list[tuple[int, ...]]
    quarantines: list[tuple[int, int]]  # number of the request, device


def _stream(recording: Recording, lies: dict[int, Float32], requests: int, share: float, config: PolicyConfig) -> _Run:
    """Sends requests through policy and screening."""
    num, rng = recording.head.num_devices, recording.rng(4)
    rows = rng.integers(len(recording.labels), size=requests)
    lied = rng.random(requests) < share
    policy = Policy({str(i): i for i in range(num)}, config)
    screen = Screen(recording.consistency, config.exclusion_rate)
    run = _Run(rows, lied, np.zeros(requests, np.int64), [], [])
    for number, (row, lying) in enumerate(zip(rows.tolist(), lied.tolist(), strict=True)):
        now = number / PER_SECOND
        for node in policy.probes(now):
            policy.on_probe(node, True, 0.0, now)
        asked = [int(node) for node in policy.roster.ask]
        features = {i: (lies[i] if lying and i in lies else recording.features[i])[row : row + 1] for i in asked}
        screened = screen.examine(features, {i: str(i) for i in asked}, policy.roster.quarantined)
        for device in asked:
            policy.on_success(str(device), 0.001, now)
        for name in screened.quarantine:
            policy.on_contradiction(name, now)
            run.quarantines.append((number, int(name)))
        run.masks[number] = mask_of(screened.features)
        run.excluded.append(screened.excluded)
    return run


def _right(recording: Recording, lies: dict[int, Float32], run: _Run, masks: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each answer is right if these devices are fused."""
    assert recording.consistency is not None
    right = np.zeros(len(run.rows), bool)
    for mask in np.unique(masks).tolist():
        for lying in (False, True):
            chosen = np.flatnonzero((masks == mask) & (run.lied == lying))
            if not mask or not len(chosen):
                continue
            rows = run.rows[chosen]
            features = {i: (lies[i] if lying and i in lies else recording.features[i])[rows] for i in members(mask)}
            logits = recording.head.logits(features)
            right[chosen] = logits.argmax(axis=1) == recording.labels[rows]
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
    return Lied(
        lie,
        liars,
        dead=float(np.mean([row.dead for row in found])),
        unscreened=float(np.mean([row.unscreened for row in found])),
        screened=float(np.mean([row.screened for row in found])),
        worst=max(row.dead - row.screened for row in found),
        stated=float(np.mean([row.stated for row in found])),
        caught=float(np.mean([row.caught for row in found])),
        honest_excluded=sum(row.honest_excluded for row in found),
        honest_quarantines=sum(row.honest_quarantines for row in found),
        first_quarantine=float(np.mean(known)) if len(known) == len(firsts) else None,
    )


def _measure(recording: Recording, lie: str, liars: tuple[int, ...], requests: int, config: PolicyConfig) -> Lied:
    """Measures one lie of one set of liars."""
    lies, everyone, share = LIES[lie](recording, liars), (1 << recording.head.num_devices) - 1, 1.0
    if lie == "rare":
        share = RARE
    run = _stream(recording, lies, requests, share, config)
    alive = everyone & ~mask_of(liars)
    dead = _right(recording, lies, run, np.full(requests, alive))
    with np.errstate(over="ignore", invalid="ignore"):  # lies may be too large for the head
        unscreened = _right(recording, lies, run, np.full(requests, everyone))
    lied = np.array([[run.lied[k] and run.masks[k] >> i & 1 for i in liars] for k in range(requests)])
    first = {i: next((number + 1 for number, device in run.quarantines if device == i), None) for i in liars}
    firsts = [number for number in first.values() if number is not None]
    return Lied(
        lie,
        len(liars),
        float(dead.mean()),
        float(unscreened.mean()),
        float(_right(recording, _clipped(recording, lies), run, run.masks).mean()),
        0.0,
        stated=float(recording.bundle.table.accuracy[run.masks].mean()),
        caught=1 - float(lied.sum() / max(1, len(liars) * run.lied.sum())),
        honest_excluded=sum(any(i not in liars for i in excluded) for excluded in run.excluded),
        honest_quarantines=sum(device not in liars for _, device in run.quarantines),
        first_quarantine=float(max(firsts)) if len(firsts) == len(liars) else None,
    )


def _clipped(recording: Recording, lies: dict[int, Float32]) -> dict[int, Float32]:
    """Lies as they are fused."""
    assert recording.consistency is not None
    return dict(recording.consistency.clip(lies))


def measure_honest(recording: Recording, requests: int, config: PolicyConfig | None = None) -> Honest:
    """Measures what the test costs honest devices, on every recorded sample in turn."""
    run = _stream(recording, {}, requests, 0.0, config or PolicyConfig())
    excluded = sum(bool(devices) for devices in run.excluded)
    return Honest(
        requests, excluded, len(run.quarantines), _upper_bound(excluded, min(requests, len(recording.labels)))
    )


def _upper_bound(found: int, independent: int) -> float:
    """Largest rate that so many events in so many independent samples support, with 95 % confidence (Poisson)."""
    from scipy.stats import chi2

    return float(chi2.ppf(0.95, 2 * (found + 1)) / 2 / independent)


def check_lies(names: Sequence[str]) -> list[str]:
    """Checks names of lies; all if none is given.

    Raises:
        ConfigError: one is unknown.
    """
    for name in names:
        if name not in LIES:
            raise ConfigError(f"lie '{name}' is unknown; choose {', '.join(LIES)}")
    return list(names) or list(LIES)
