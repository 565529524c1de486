"""A separate seed for every purpose, from the seed of the experiment, so that draws for one do not change the others.

===============  ===================================================================
stream           purpose
===============  ===================================================================
``0``            weights of the teacher
``1``            training of the teacher
``2, i, g``      weights of student i in generation g; the first generation has no g
``2``            weights of the fusion
``3 + 1000 g``   training of generation g
``4, a``         weights of assistant a; a searched network is assistant 9002
``5, g``         initial parameters of the objectives of generation g
``6``            training of a parity student; its weights are those of generation 9001
``7``            stored augmentations with the teacher's answers
``8``            patches of a picture
``9, b``         convolutions of stage b inside the teacher
``300``          training of a searched network
``100 + a``      training of assistant a
``200 + b``      training of stage b inside the teacher
===============  ===================================================================
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["seed_of", "seeded"]


def seed_of(*stream: int) -> int:
    """A seed for one purpose, independent of the others, from the experiment's seed and a stream of the table above."""
    return int(np.random.SeedSequence(stream).generate_state(1)[0])


@contextlib.contextmanager
def seeded(*stream: int) -> Iterator[None]:
    """Seeds torch's global generator for a block, then restores its state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(*stream))
        yield
