"""Promises about accuracy under failures, checked against the table of all subsets.

::

    accuracy>=0.70 failed<=4        for any four failed devices: the worst case over subsets
    P(accuracy>=0.70)>=0.999        under a failure law; a share of time where the law has a clock
    expected>=0.70                  expected accuracy under a failure law

Checks are exact, since the table is. The verdict on a broken promise names the subset that breaks it: the worst one,
the likeliest one below the level, or the one that costs the most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonn.errors import ConfigError, GuaranteeError
from nonn.reliability.laws import Law, availability, expected
from nonn.reliability.laws.outcome import meets
from nonn.reliability.subsets import SubsetTable, members, membership

__all__ = ["Verdict", "check_guarantees", "judge"]

_NUMBER = r"\s*>=\s*([0-9.eE+-]+)\s*"
_WORST = re.compile(rf"accuracy{_NUMBER}failed\s*<=\s*(\d+)")
_LIKELY = re.compile(rf"P\(\s*accuracy{_NUMBER}\){_NUMBER}")
_EXPECTED = re.compile(rf"expected{_NUMBER}")


@dataclass(frozen=True)
class Verdict:
    """Whether a promise is kept.

    Attributes:
        text: the promise.
        holds: whether it is kept.
        value: the accuracy or probability reached.
        bound: the accuracy or probability promised.
        breaking: devices of the subset that breaks it; None where it is kept.
        accuracy: accuracy of that subset.
    """

    text: str
    holds: bool
    value: float
    bound: float
    breaking: tuple[int, ...] | None
    accuracy: float | None

    def __str__(self) -> str:
        if self.holds:
            return f"'{self.text}' holds: {self.value:.6g}"
        assert self.breaking is not None
        assert self.accuracy is not None
        answering = f"devices {', '.join(map(str, self.breaking))} answer" if self.breaking else "no device answers"
        return (
            f"'{self.text}' does not hold: {self.value:.6g} instead of {self.bound:g}; "
            f"when only {answering}, accuracy is {self.accuracy:.6g}"
        )


def judge(table: SubsetTable, law: Law | None, text: str) -> Verdict:
    """Checks one promise.

    Args:
        table: accuracy of every subset.
        law: failure law; only the promises about probabilities and expectations need one.
        text: the promise; see the module.

    Raises:
        ConfigError: the promise cannot be parsed, is impossible, or needs a law.
    """
    text = " ".join(text.split())
    accuracy = table.accuracy
    if match := _WORST.fullmatch(text):
        level, failed = _share(match[1], text), int(match[2])
        if failed > table.num_devices:
            raise ConfigError(f"guarantee '{text}': there are only {table.num_devices} devices to fail")
        gone = table.num_devices - membership(table.num_devices).sum(axis=1)
        masks = np.flatnonzero(gone <= failed)
        worst = int(masks[accuracy[masks].argmin()])
        return _verdict(text, bool(meets(accuracy, level)[worst]), float(accuracy[worst]), level, worst, accuracy)
    likely, mean = _LIKELY.fullmatch(text), _EXPECTED.fullmatch(text)
    if likely is None and mean is None:
        raise ConfigError(
            f"guarantee '{text}': write 'accuracy>=0.70 failed<=4', 'P(accuracy>=0.70)>=0.999' or 'expected>=0.70'"
        )
    if law is None:
        raise ConfigError(f"guarantee '{text}': needs a failure law; give one, for example 'independent p=0.1'")
    if law.num_devices != table.num_devices:
        raise ConfigError(f"guarantee '{text}': a failure law of {law.num_devices} devices for {table.num_devices}")
    probability = law.probabilities()
    if likely is not None:
        level, bound = _share(likely[1], text), _share(likely[2], text)
        value = availability(accuracy, probability, level)
        culprit = int(np.where(meets(accuracy, level), -1.0, probability).argmax())
    else:
        assert mean is not None
        bound = _share(mean[1], text)
        value = expected(accuracy, probability)
        culprit = int((probability * (bound - accuracy)).argmax())
    # Sums of 2^N probabilities: a bound met exactly must not be missed by the last bit.
    return _verdict(text, value >= bound - 1e-12, value, bound, culprit, accuracy)


def check_guarantees(table: SubsetTable, law: Law | None, texts: Sequence[str]) -> list[Verdict]:
    """Checks promises and raises an error if one is broken.

    Args:
        table: accuracy of every subset.
        law: failure law, for the promises that need one.
        texts: the promises.

    Returns:
        A verdict for each promise; all are kept.

    Raises:
        GuaranteeError: a promise is broken; the message names each with the subset that breaks it.
        ConfigError: a promise cannot be parsed or checked.
    """
    verdicts = [judge(table, law, text) for text in texts]
    broken = [verdict for verdict in verdicts if not verdict.holds]
    if broken:
        raise GuaranteeError("; ".join(f"guarantee {verdict}" for verdict in broken))
    return verdicts


def _share(text: str, promise: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"guarantee '{promise}': '{text}' is not a number") from None
    if not 0 <= value <= 1:
        raise ConfigError(f"guarantee '{promise}': {text} must be between 0 and 1")
    return value


def _verdict(
    text: str,
    holds: bool,
    value: float,
    bound: float,
    mask: int,
    accuracy: np.ndarray[tuple[int], np.dtype[np.float64]],
) -> Verdict:
    return Verdict(
        text, holds, value, bound, None if holds else members(mask), None if holds else float(accuracy[mask])
    )
