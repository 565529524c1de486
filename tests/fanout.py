"""An aggregator over real students in this process, fakes in the place of some, and who watches it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

from nonn.aggregator.inventory import Node
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.service import Aggregator
from tests.serving import TIMEOUT_S, fake_node, serving
from tests.test_aggregator import good_reply, student

PATIENT = PolicyConfig(deadline_s=TIMEOUT_S)


class Watcher:
    """An observer that remembers everything."""

    def __init__(self):
        self.requests, self.states, self.late = [], [], []
        self.on_request, self.on_state, self.on_late = self.requests.append, self.states.append, self.late.append


@contextlib.asynccontextmanager
async def cluster(bundle, config=PATIENT, *, fakes=None, replicas=None, watcher=None, **keys):
    """Real students in this process; ``fakes`` take the place of some, ``replicas`` are further fakes of a student."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for i in range(bundle.num_devices):
            fake = (fakes or {}).get(i)
            server = fake_node(fake) if fake else serving(student(bundle, i))
            nodes.append(Node(id=f"node-{i}", address=await stack.enter_async_context(server), student=i))
        for i, fake in (replicas or {}).items():
            address = await stack.enter_async_context(fake_node(fake))
            nodes.append(Node(id=f"node-{i}b", address=address, student=i))
        nodes = [replace(node, **keys.get(node.id.replace("-", "_"), {})) for node in nodes]
        observers = [watcher] if watcher else []
        yield await stack.enter_async_context(Aggregator(bundle, nodes, config, observers=observers))


def slow(bundle, gate, first=1):
    """A node that answers its first requests at once and later ones when the gate opens."""
    asked = 0

    async def behaviour(raw, context):
        nonlocal asked
        asked += 1
        if asked > first:
            await gate.wait()
        return good_reply(bundle, raw)

    return behaviour


async def soon(condition):
    """Waits until something has come about in the background."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < TIMEOUT_S
        await asyncio.sleep(0.005)
