"""Failure laws: how likely each set of devices is to answer.

``independent``, ``groups``, ``k-of-n`` and ``gilbert-elliott`` know single requests; ``markov``, ``battery`` and
``trace`` also know time, so they tell when accuracy first falls below a level. All give the probability of each of
the 2^N answering sets up to N = 16 and samples of sets for any N. ``parse_law`` reads them from text.
"""

from nonn.reliability.laws.base import FirstPassage, Law, TimedLaw
from nonn.reliability.laws.battery import Battery
from nonn.reliability.laws.markov import Markov
from nonn.reliability.laws.outcome import Outcome, assess, availability, distribution, expected
from nonn.reliability.laws.parse import LAWS, law_from_mapping, parse_law
from nonn.reliability.laws.requests import GilbertElliott, Groups, Independent, KOfN
from nonn.reliability.laws.trace import Trace

__all__ = [
    "LAWS",
    "Battery",
    "FirstPassage",
    "GilbertElliott",
    "Groups",
    "Independent",
    "KOfN",
    "Law",
    "Markov",
    "Outcome",
    "TimedLaw",
    "Trace",
    "assess",
    "availability",
    "distribution",
    "expected",
    "law_from_mapping",
    "parse_law",
]
