"""Failure laws: the probability that each subset of devices answers.

``independent``, ``groups``, ``k-of-n`` and ``gilbert-elliott`` describe single requests; ``markov``, ``battery`` and
``trace`` also have a clock, so they give the time at which accuracy first falls below a level. Each law gives the
probability of each of the 2^N subsets up to N = 16, and samples of subsets for any N. ``parse_law`` reads them from
text.
"""

from nonn.reliability.laws.base import FirstPassage, Law, TimedLaw
from nonn.reliability.laws.battery import Battery
from nonn.reliability.laws.markov import Markov, MarkovGroups
from nonn.reliability.laws.outcome import Outcome, assess, availability, distribution, expected
from nonn.reliability.laws.parse import LAWS, LawValues, law_from_mapping, parse_law
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
    "LawValues",
    "Markov",
    "MarkovGroups",
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
