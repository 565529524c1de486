"""Promises about accuracy under failures, checked against the table of all subsets.

::

    accuracy>=0.70 failed<=4        for any four failed devices: the worst case over subsets
    P(accuracy>=0.70)>=0.999        under a failure law; a share of time where the law has a clock
    expected>=0.70                  expected accuracy under a failure law

Checks of the measured accuracies are exact, since the table is. With ``confidence=0.95`` at its end, a promise is about
new samples: it is kept if a lower bound of what was promised, at that one-sided confidence, reaches the level.

- The worst case: the exact binomial bound of each subset (Clopper, Pearson 1934). No correction for the number of
  subsets is needed: the verdict is wrong only if the bound of the one subset that is truly worst is wrong (an
  intersection-union test, Berger 1982).
- An expectation: ``nonn.reliability.intervals``.
- A probability: resampled test sets, or without the outcomes of single samples the bounds of all subsets together.

Where only a sample of the subsets was evaluated (``nonn.reliability.sampled``), a worst case can be promised for as
many failures as were counted; with more, a promise can be found broken, but not kept. A probability or an expectation
is kept if the lower end of its interval for the draws reaches the level, at a confidence of 95 %.

The verdict on a broken promise names the subset that breaks it: the worst one,
the likeliest one below the level, or the one that costs the most.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nonn.errors import ConfigError, GuaranteeError
from nonn.reliability.evidence import Evidence
from nonn.reliability.intervals import wilson
from nonn.reliability.laws import Law, availability, expected
from nonn.reliability.laws.outcome import meets
from nonn.reliability.sampled import SampledTable
from nonn.reliability.sampled_evidence import AnyEvidence
from nonn.reliability.subsets import ROUNDING, members
from nonn.reliability.table import AccuracyTable, SubsetTable

__all__ = ["Verdict", "check_guarantees", "judge"]

_CONFIDENCE = re.compile(r"(.*\S)\s+confidence\s*=\s*([0-9.eE+-]+)")
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
        confidence: confidence that was asked for, with which ``value`` is a lower bound; None for measured values.
    """

    text: str
    holds: bool
    value: float
    bound: float
    breaking: tuple[int, ...] | None
    accuracy: float | None
    confidence: float | None = None

    def __str__(self) -> str:
        reached = f"{self.value:.6g}"
        if self.confidence is not None:
            reached = f"at least {reached} with a confidence of {self.confidence:g}"
        if self.holds:
            return f"'{self.text}' holds: {reached}"
        assert self.breaking is not None
        assert self.accuracy is not None
        answering = f"devices {', '.join(map(str, self.breaking))} answer" if self.breaking else "no device answers"
        return (
            f"'{self.text}' does not hold: {reached} instead of {self.bound:g}; "
            f"when only {answering}, {'measured ' * (self.confidence is not None)}accuracy is {self.accuracy:.6g}"
        )


def judge(measured: SubsetTable | AnyEvidence, law: Law | None, text: str) -> Verdict:
    """Checks one promise.

    Args:
        measured: accuracy of every subset, or of a sample, with the outcomes of the samples if they are known.
        law: failure law; only the promises about probabilities and expectations need one.
        text: the promise; see the module.

    Raises:
        ConfigError: the promise cannot be parsed, is impossible, or needs a law.
    """
    text = " ".join(text.split())
    evidence = Evidence(measured) if isinstance(measured, SubsetTable) else measured
    confidence, promise = None, text
    if match := _CONFIDENCE.fullmatch(text):
        promise, confidence = match[1], _share(match[2], text)
        if not 0.5 <= confidence < 1:
            raise ConfigError(f"guarantee '{text}': confidence={match[2]} must be at least 0.5 and below 1")
    if match := _WORST.fullmatch(promise):
        return _worst_case(evidence, text, _share(match[1], text), int(match[2]), confidence)
    likely, mean = _LIKELY.fullmatch(promise), _EXPECTED.fullmatch(promise)
    if likely is None and mean is None:
        raise ConfigError(
            f"guarantee '{text}': write 'accuracy>=0.70 failed<=4', 'P(accuracy>=0.70)>=0.999' or "
            "'expected>=0.70', each with or without confidence=0.95"
        )
    if law is None:
        raise ConfigError(f"guarantee '{text}': needs a failure law; give one, for example 'independent p=0.1'")
    if law.num_devices != evidence.table.num_devices:
        raise ConfigError(
            f"guarantee '{text}': a failure law of {law.num_devices} devices for {evidence.table.num_devices}"
        )
    if likely is not None:
        return _probability(evidence, law, text, _share(likely[1], text), _share(likely[2], text), confidence)
    assert mean is not None
    return _expectation(evidence, law, text, _share(mean[1], text), confidence)


def _worst_case(evidence: AnyEvidence, text: str, level: float, failed: int, confidence: float | None) -> Verdict:
    """Whether every subset with at most so many failures reaches a level."""
    table = evidence.table
    if failed > table.num_devices:
        raise ConfigError(f"guarantee '{text}': there are only {table.num_devices} devices to fail")
    accuracy, masks = table.accuracy, np.flatnonzero(table.failures <= failed)
    worst = int(masks[accuracy[masks].argmin()])
    if isinstance(table, SampledTable) and failed > table.counted and accuracy[worst] >= level:
        raise ConfigError(
            f"guarantee '{text}': subsets with up to {table.counted} failed devices were all evaluated, with more "
            f"only a sample, whose worst reaches {accuracy[worst]:.6g}; that proves no worst case"
        )
    if confidence is None:
        return _verdict(text, bool(meets(accuracy, level)[worst]), float(accuracy[worst]), level, table, worst)
    # Without an answer nothing is right, which is certain.
    answers = table.mask(worst) != 0
    least = _exact_lower(int(table.correct[worst]), table.samples, confidence) if answers else 0.0
    return _verdict(text, least >= level, least, level, table, worst, confidence)


def _probability(
    evidence: AnyEvidence, law: Law, text: str, level: float, bound: float, confidence: float | None
) -> Verdict:
    """Whether a level is reached with a probability."""
    table, probability = evidence.table, evidence.weights(law)
    surely = table.accuracy
    value = availability(table.accuracy, probability, level)
    if confidence is not None:
        value = min(value, evidence.lower(lambda drawn: availability(drawn, probability, level), confidence))
        surely = wilson(table.correct, table.samples, 2 * confidence - 1)[0]
    likeliest = int(np.where(meets(surely, level), -1.0, probability).argmax())
    value -= evidence.margin(law, meets(table.accuracy, level).astype(np.float64))
    return _verdict(text, value >= bound - ROUNDING, value, bound, table, likeliest, confidence)


def _expectation(evidence: AnyEvidence, law: Law, text: str, bound: float, confidence: float | None) -> Verdict:
    """Whether the expected accuracy reaches a bound."""
    table, probability = evidence.table, evidence.weights(law)
    value = expected(table.accuracy, probability)
    if confidence is not None:  # the lower end of the two-sided interval that misses as often below
        value = evidence.mean(probability[None], 2 * confidence - 1)[0][0]
    costliest = int((probability * (bound - table.accuracy)).argmax())
    value -= evidence.margin(law, table.accuracy)
    return _verdict(text, value >= bound - ROUNDING, value, bound, table, costliest, confidence)


def check_guarantees(measured: SubsetTable | AnyEvidence, law: Law | None, texts: Sequence[str]) -> list[Verdict]:
    """Checks promises and raises an error if one is broken.

    Args:
        measured: accuracy of every subset, or of a sample, with the outcomes of the samples if they are known.
        law: failure law, for the promises that need one.
        texts: the promises.

    Returns:
        A verdict for each promise; all are kept.

    Raises:
        GuaranteeError: a promise is broken; the message names each with the subset that breaks it.
        ConfigError: a promise cannot be parsed or checked.
    """
    verdicts = [judge(measured, law, text) for text in texts]
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
    table: AccuracyTable,
    place: int,
    confidence: float | None = None,
) -> Verdict:
    breaking = None if holds else members(table.mask(place))
    accuracy = None if holds else float(table.accuracy[place])
    return Verdict(text, holds, value, bound, breaking, accuracy, confidence)


def _exact_lower(correct: int, samples: int, confidence: float) -> float:
    """The exact one-sided lower bound of a share."""
    from scipy.stats import beta

    return float(beta.ppf(1 - confidence, correct, samples - correct + 1)) if correct else 0.0
