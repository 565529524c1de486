"""Mean first-passage time of devices that fail and are repaired independently, for any number of devices.

The chain is reversible: ``π_i q_ij = π_j q_ji`` with π the long-run probability of a subset. With r the likeliest good
subset and w_i the probability that the chain, from subset i, reaches r before a bad subset,

    T_r = Σ_i π_i w_i / Σ_i π_i leak_i w_i,

where leak_i is the rate from i into bad subsets. Both sums have only positive terms, so a time of 10^50 steps has as
many digits as one of ten; the direct equations for T lose every digit there. ``1 − w`` solves a symmetric positive
definite system with a zero at r, by conjugate gradients in some tens of iterations. If r is not the full subset f,
``T_f = u_f + w_f T_r``, with u_f the time from f until r or a bad subset, by GMRES: there a symmetric system would
be scaled by π_r / π_f, which may exceed the range of a double.

Limits: times that differ by many orders of magnitude between devices take more iterations. If they do not converge,
subsets are eliminated one at a time, up to 12 devices; beyond, this is an error. Memory is 24 N bytes a subset.

Sources: Levin, Peres, Wilmer 2009, "Markov chains and mixing times", chapter 9 (hitting times and capacities);
Grassmann, Taksar, Heyman 1985, "Regenerative analysis and steady state distributions for Markov chains" (elimination).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError
from nonn.reliability.laws.base import FloatArray, IntArray

__all__ = ["MAX_ELIMINATED", "eliminate", "mean_first_passage"]

MAX_ELIMINATED = 12  # devices: 4,096 subsets, some 10 s; 13 would take eight times as long
_RTOL = 1e-10  # of a residual; the sums are more exact, since their errors are of second order
_CG_STEPS = 5000
_GMRES_STEPS, _GMRES_RESTART = 20, 60


def mean_first_passage(fail_rate: FloatArray, repair_rate: FloatArray, good: NDArray[np.bool_]) -> float:
    """Mean time until devices that all start up leave the good subsets, in seconds; infinite if they never do.

    Args:
        fail_rate: failure rate of each device, per second [N].
        repair_rate: repair rate of each device, per second [N].
        good: whether each subset is good enough [2^N].

    Raises:
        ConfigError: rates are too far apart for more than 12 devices.
    """
    if not good[-1]:
        return 0.0
    chain = _Chain.of(fail_rate, repair_rate, good)
    if not chain.leak.any():
        return float("inf")
    found = _solve(chain)
    if found is not None:
        return found
    if len(fail_rate) > MAX_ELIMINATED:
        raise ConfigError(
            f"the times of the {len(fail_rate)} devices differ by too many orders of magnitude: the first passage "
            f"does not converge; it is computed for any times up to {MAX_ELIMINATED} devices"
        )
    return eliminate(chain)


@dataclass(frozen=True)
class _Chain:
    """The good subsets that can be reached from the full one without a bad one, the full one last.

    Attributes:
        kept: their masks [G].
        target: place of the subset with one device changed; −1 if that one is bad [G, N].
        rates: rate of that change, per second [G, N].
        coupling: √(λ_i μ_i) of each device: the symmetric rate of its changes [N].
        weight: π relative to its maximum [G].
    """

    kept: IntArray
    target: IntArray
    rates: FloatArray
    coupling: FloatArray
    weight: FloatArray

    @classmethod
    def of(cls, fail_rate: FloatArray, repair_rate: FloatArray, good: NDArray[np.bool_]) -> _Chain:
        """The chain of these devices."""
        bits = 1 << np.arange(len(fail_rate))
        seen = np.zeros(len(good), dtype=bool)
        new = np.array([len(good) - 1])
        while len(new):
            seen[new] = True
            near = np.unique(new[:, None] ^ bits)
            new = near[good[near] & ~seen[near]]
        kept = np.flatnonzero(seen)
        place = np.full(len(good), -1)
        place[kept] = np.arange(len(kept))
        up = kept[:, None] & bits > 0
        log_weight = np.where(up, np.log(repair_rate), np.log(fail_rate)).sum(axis=1)
        return cls(
            kept=kept,
            target=place[kept[:, None] ^ bits],
            rates=np.where(up, fail_rate, repair_rate),
            coupling=np.sqrt(fail_rate) * np.sqrt(repair_rate),
            weight=np.exp(log_weight - log_weight.max()),
        )

    @property
    def leak(self) -> FloatArray:
        """Rate into bad subsets [G]."""
        result: FloatArray = np.where(self.target < 0, self.rates, 0.0).sum(axis=1)
        return result

    def matrix(self, values: FloatArray) -> Any:
        """Sparse matrix of values of changes [G, N] between good subsets [G, G]."""
        from scipy.sparse import csr_array

        row, device = np.nonzero(self.target >= 0)
        size = len(self.kept)
        return csr_array((values[row, device], (row, self.target[row, device])), shape=(size, size))


def _solve(chain: _Chain) -> float | None:
    """The mean first passage by conjugate gradients; None if they do not converge."""
    from scipy.sparse.linalg import cg, gmres

    weight, leak, total = chain.weight, chain.leak, chain.rates.sum(axis=1)
    # The full subset, if it is as likely as any: then one system is enough.
    full = len(weight) - 1
    start = full if weight[full] > 1 - 1e-9 else int(weight.argmax())
    rest = np.delete(np.arange(len(weight)), start)
    # 1 − w, times √π: symmetric. Divided by the square root of the diagonal, whose entries become 1.
    root, scale = np.sqrt(weight), 1 / np.sqrt(total)
    away = np.zeros(len(weight))
    right = (scale * root * leak)[rest]
    norm = float(np.linalg.norm(right))
    if norm > 0:
        symmetric = chain.matrix(np.where(chain.target < 0, 0.0, chain.coupling))[rest][:, rest]
        symmetric = symmetric * scale[rest][:, None] * scale[rest]
        found, failed = cg(_one_less(symmetric), right / norm, rtol=_RTOL, atol=0, maxiter=_CG_STEPS)
        if failed:
            return None
        away[rest] = found * norm * scale[rest]
    held = weight - root * away
    time_s = float(held.sum() / (leak @ held))
    if start == full:
        return time_s
    step = chain.matrix(chain.rates / total[:, None])
    inner, into = _one_less(step[rest][:, rest]), step[rest][:, [start]].toarray()[:, 0]
    last = []  # of the full subset: u_f, then w_f
    for right in (1 / total[rest], into):
        found, failed = gmres(inner, right, rtol=_RTOL, atol=0, restart=_GMRES_RESTART, maxiter=_GMRES_STEPS)
        if failed:
            return None
        last.append(float(found[-1]))
    return last[0] + last[1] * time_s


def _one_less(matrix: Any) -> Any:
    """The operator I − matrix."""
    from scipy.sparse.linalg import LinearOperator

    return LinearOperator(matrix.shape, matvec=lambda x: x - matrix @ x, dtype=np.float64)


def eliminate(chain: _Chain) -> float:
    """The mean first passage by eliminating one subset at a time, which only adds positive numbers.

    With rates q, ``h_i (Σ_j q_ij + leak_i) = t_i + Σ_j q_ij h_j`` over good subsets j ≠ i, where t = 1.
    """
    # Rare subsets are eliminated first; the full one remains. Rates connect subsets one device apart, so a step
    # affects subsets of its own size and the next: [place + 1, reach) covers both.
    sizes = np.array([mask.bit_count() for mask in chain.kept.tolist()])
    order = np.argsort(sizes, kind="stable")
    sizes = sizes[order]
    reach = np.searchsorted(sizes, sizes + 1, side="right")
    rates = chain.matrix(chain.rates).toarray()[np.ix_(order, order)]
    leak, time_s = chain.leak[order], np.ones(len(order))
    for first, end in enumerate(reach[:-1].tolist()):
        rest = slice(first + 1, end)
        onward, into = rates[first, rest], rates[rest, first]
        share = into / (onward.sum() + leak[first])
        # A subset may return to itself; that diagonal is never read.
        rates[rest, rest] += np.outer(share, onward)
        leak[rest] += share * leak[first]
        time_s[rest] += share * time_s[first]
    return float(time_s[-1] / leak[-1])
