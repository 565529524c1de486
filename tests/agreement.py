"""Numbers that two machines, or two programs, computed of the same thing: how far apart rounding may take them.

Processors, their BLAS kernels and the number of threads decide in which order a sum is added, so its last bits
cannot be promised.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.reliability.subsets import members

# A value of a report is a sum over at most 2^16 sets of devices of terms that add up to at most 1, each rounded to
# 1e-16: two orders differ by far less than this.
REPORT = 1e-10
# A feature or logit in float32 is a sum of products, rounded to 6e-8 of the largest of them. What is left of a sum that
# cancels keeps that error, so it is measured by the largest value rather than by its own.
FLOAT32 = 1e-5


def assert_features_agree(found: NDArray[Any], wanted: NDArray[Any]) -> None:
    """Features or logits in float32 are the same up to rounding."""
    np.testing.assert_allclose(found, wanted, rtol=FLOAT32, atol=FLOAT32 * np.abs(wanted).max(initial=0.0))


def check_against_offline_fusion(bundle: Bundle, answer: Answer, rows: slice) -> None:
    """The answer is what the bundle's head makes of the recorded features of exactly the devices it names."""
    recorded, _ = bundle.features
    assert_features_agree(answer.logits, bundle.head.logits({i: recorded[i][rows] for i in members(answer.mask)}))
    np.testing.assert_array_equal(answer.labels, answer.logits.argmax(axis=1))
    assert answer.expected_accuracy == bundle.table.accuracy[answer.mask]
    assert answer.expected_accuracy_interval == bundle.table.interval(answer.mask)


def assert_documents_agree(found: Any, wanted: Any, at: str = "the document") -> None:
    """Documents of JSON have the same keys, lengths, texts and whole numbers; real numbers agree up to rounding."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        assert list(found) == list(wanted), at
        for key in wanted:
            assert_documents_agree(found[key], wanted[key], f"{at}[{key!r}]")
    elif isinstance(wanted, list) and isinstance(found, list):
        assert len(found) == len(wanted), at
        for index, (one, other) in enumerate(zip(found, wanted, strict=True)):
            assert_documents_agree(one, other, f"{at}[{index}]")
    elif isinstance(wanted, float) and isinstance(found, float):
        assert math.isclose(found, wanted, rel_tol=REPORT, abs_tol=REPORT), f"{at}: {found!r}, not {wanted!r}"
    else:
        assert (type(found), found) == (type(wanted), wanted), at
