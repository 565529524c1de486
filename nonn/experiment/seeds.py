"""A seed for every purpose, from the seed of the experiment: whatever is drawn for one leaves the others as they were.

===============  ===================================================================
stream           what is drawn
===============  ===================================================================
``0``            weights of the teacher
``1``            training of the teacher
``2, i, g``      weights of student i in generation g; the first generation has no g
``2``            weights of the fusion
``3 + 1000 g``   training of generation g
``4, a``         weights of assistant a
``5, g``         parameters that the objectives of generation g start with
``100 + a``      training of assistant a
===============  ===================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["seed_of", "seeded"]


def seed_of(*stream: int) -> int:
    """A seed for one purpose, unrelated to those of the others: the experiment's, then a stream of the table above."""
    return int(np.random.SeedSequence(stream).generate_state(1)[0])


@contextlib.contextmanager
def seeded(*stream: int) -> Iterator[None]:
    """Gives a block torch's global generator with a seed of its own, and puts the old state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*stream))
        yield
