"""Fan-outs of our own for tests of the batcher: what they answer, when they end, and a clock that they move."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from nonn.aggregator.policy import PolicyConfig
from nonn.answer import Answer

# A quarter of this is how long a fan-out may hold up the next one: no test takes as long.
POLICY = PolicyConfig(deadline_s=1000.0)


def answer_to(batch: Any, **changes: Any) -> Any:
    """What a cluster might make of a batch: rows depend on their own sample alone."""
    logits = batch.reshape(len(batch), -1)[:, :3].astype(np.float32) * 2 + 1
    values: dict[str, Any] = {"degraded": False, "bundle": "b", "expected_accuracy": 0.9, "failures": {}} | changes
    return Answer(logits=logits, confidence=logits.max(axis=1), answered=np.ones(4, np.bool_), **values)


async def concatenated(answers: Any) -> Any:
    """What ``Aggregator.join`` does if the same devices have answered all parts."""
    logits = np.concatenate([answer.logits for answer in answers])
    return replace(answers[0], logits=logits, confidence=np.concatenate([a.confidence for a in answers]))


async def settle() -> None:
    """Lets everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass
class Gate:
    """A cluster whose fan-outs end when they are told to."""

    flights: list[Any] = field(default_factory=list)

    async def __call__(self, batch: Any, remaining_s: Any, *, num_requests: Any, on_prompt: Any) -> Any:
        done = asyncio.get_running_loop().create_future()
        self.flights.append((batch, num_requests, done))
        await done
        return answer_to(batch)

    def open(self) -> Any:
        return [done for _, _, done in self.flights if not done.done()]
