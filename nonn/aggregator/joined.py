"""Joins the answers to the pieces of a request that was larger than a batch."""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Sequence

import numpy as np

from nonn.aggregator.solver import HeadSolver
from nonn.answer import Answer
from nonn.errors import QuorumError
from nonn.fusion import Head
from nonn.reliability.subsets import members
from nonn.reliability.table import AccuracyTable

__all__ = ["joined"]


async def joined(
    answers: Sequence[Answer], solver: HeadSolver, head: Head, table: AccuracyTable, quorum: int
) -> Answer:
    """Joins answers; only devices that answered every piece are fused, again if the pieces have different devices.

    Args:
        answers: to consecutive parts of a request, with features.
        solver: solves heads outside the event loop.
        head: fuses features.
        table: accuracy of each subset of devices.
        quorum: fewest devices for an answer.

    Raises:
        QuorumError: the devices that are in all parts are fewer than the quorum.
    """
    first, masks = answers[0], {answer.mask for answer in answers}
    logits, confidence = [answer.logits for answer in answers], [answer.confidence for answer in answers]
    mask, num_devices = functools.reduce(operator.and_, masks), len(first.answered)
    if mask.bit_count() < quorum:
        raise QuorumError(
            f"{mask.bit_count()} of {num_devices} devices answered every part of the request, the quorum is {quorum}; "
            "send it again, or fewer samples per request"
        )
    if len(masks) > 1:
        await solver.ensure(mask)
        fused = [head.logits({i: answer.features[i] for i in members(mask)}) for answer in answers]
        logits = [part.astype(np.float32) for part in fused]
        confidence = [head.confidence(part, mask).astype(np.float32) for part in fused]
    answered, stated = np.zeros(num_devices, np.bool_), table.stated(mask)
    answered[list(members(mask))] = True
    return dataclasses.replace(
        first,
        logits=np.concatenate(logits),
        confidence=np.concatenate(confidence),
        answered=answered,
        degraded=mask.bit_count() < num_devices,
        expected_accuracy=stated.accuracy,
        expected_accuracy_interval=stated.interval,
        expected_accuracy_estimated=stated.estimated,
        failures={node: text for answer in answers for node, text in answer.failures.items()},
        statuses={node: status for answer in answers for node, status in answer.statuses.items()},
        early=any(answer.early for answer in answers),
        features={},
    )
