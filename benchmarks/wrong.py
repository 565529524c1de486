"""Wrong bytes and wrong features in a live cluster: bits flipped on links in plain text, and nodes that lie.

A liar here is a real node behind a server that changes its features and writes a valid reply, with checksum. It lies in
its tests with known inputs too, until it is honest again.
"""

from __future__ import annotations

import contextlib
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nonn_sim.lies import Recording
from numpy.typing import NDArray

from benchmarks import storm
from benchmarks.section import Figures, Ground, Section, reasons
from nonn.aggregator.policy import PolicyConfig
from nonn.aggregator.policy.file import write_policy
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.reliability.subsets import mask_of, members
from nonn.rpc.checksum import seal
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import read_tensors
from tests.intermediary import Intermediary
from tests.serving import TIMEOUT_S, running_aggregator

__all__ = ["LIES", "SECTIONS", "Liar", "flips", "liars"]

Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]

FLIPPED = 0.05  # of the segments: with more, the breakers are open and few requests are asked
QUARANTINE_S, PATIENCE_S = 0.5, 1.0
LIARS = (2, 5)
LIES: dict[str, Change] = {
    "huge": lambda f: np.full_like(f, 3e38),
    "x100": lambda f: 100 * f,
    "flipped": lambda f: f.max() - f,
    "permuted": lambda f: np.roll(f, 1, axis=1),
    "constant": lambda f: np.ones_like(f),
    "sometimes": lambda f: 100 * f if random.random() < 0.05 else f,
}

OTHERS = "others"  # the features of other samples
ADVERSARY = "adversary"  # ends of the recorded range that favour the second class; see nonn_sim.lies
WAYS = (*LIES, OTHERS, ADVERSARY)


class Liar(Intermediary):
    """Stands before a real node and changes its features.

    Args:
        honest: address of the node.

    Attributes:
        address: ``host:port``.
        change: what it does to features; None to be honest.
    """

    def __init__(self, honest: str) -> None:
        self.change: Change | None = None
        super().__init__(honest)

    def infer(self, raw: bytes, context: Any) -> bytes:
        """Answers with changed features and a valid checksum."""
        honest, change = super().infer(raw, context), self.change
        if change is None:
            return honest
        message = pb.ModelInferResponse.FromString(honest)
        features = read_tensors(message.outputs, message.raw_output_contents)["features"]
        message.raw_output_contents[0] = change(features).astype(np.float32).tobytes()
        del message.parameters["nonn_crc32"]
        return seal(message.SerializeToString())


def flips(
    site: storm.Site, client: Client, inputs: NDArray[Any], nodes: Sequence[int], requests: int, concurrency: int = 4
) -> dict[str, Any]:
    """Flips one bit in one of ``1 / FLIPPED`` segments to and from some nodes.

    Returns:
        Failed and wrong answers, and the segments that had a bit flipped.
    """
    for node in nodes:
        site.proxies.change(node, lambda proxy: setattr(proxy, "flip", FLIPPED))
    records = storm.load(client, inputs, concurrency, lambda number: number < requests)
    flipped: list[int] = []
    for node in nodes:
        site.proxies.change(node, lambda proxy: setattr(proxy, "flip", 0.0))
        site.proxies.change(node, lambda proxy: flipped.append(proxy.flipped))
    return {
        "flips": sum(flipped),
        "flips_requests": len(records),
        "flips_failed": sum(record.answer is None for record in records),
        "flips_reasons": reasons(records),
        "flips_wrong": len(storm.wrong_answers(site.bundle, records)),
    }


def _of_others(recorded: NDArray[np.float32]) -> Change:
    """The features of other samples: each is one that the device might send."""
    rng = np.random.default_rng(0)
    return lambda features: recorded[rng.integers(len(recorded), size=len(features))]


def _adversary(recorded: NDArray[np.float32], lies: NDArray[np.float32]) -> Change:
    """The lie about each sample, which the liar knows by its features."""
    return lambda features: lies[np.square(features[:, None] - recorded).sum(axis=2).argmin(axis=1)]


def liars(
    bundle: Bundle, inputs: NDArray[Any], devices: Sequence[int], requests: int, ways: Sequence[str] = WAYS
) -> dict[str, Any]:
    """Some nodes lie to an aggregator in one way, and to the next one in another; they are honest at the end.

    Args:
        bundle: bundle with a test for liars.
        inputs: its test samples.
        devices: the liars.
        requests: requests for each way.
        ways: of ``WAYS``.

    Returns:
        The largest loss of accuracy against the same devices dead, in points; failed requests; answers without an
        honest device; wrong ones among those without a liar; and the time until every node is in use again.
    """
    labels, everyone = bundle.features[1], (1 << bundle.num_devices) - 1
    alive = everyone & ~mask_of(devices)
    expected = bundle.head.logits({i: bundle.features[0][i] for i in members(alive)}).argmax(axis=1)
    losses, without, wrong, failed, back_s = dict[str, float](), 0, 0, 0, 0.0
    rows = [number % len(inputs) for number in range(requests)]
    recording = Recording(bundle)
    adversary = recording.adversary(tuple(devices))
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nonn-wrong-")))
        addresses = [state.address for state in stack.enter_context(LocalCluster(bundle.path)).states()]
        lying = [stack.enter_context(Liar(addresses[i])) for i in devices]
        for i, liar in zip(devices, lying, strict=True):
            addresses[i] = liar.address
        policy = folder / "policy.toml"
        # An answer waits for the head of its subset: on a busy machine it would else be fused from a smaller one.
        config = PolicyConfig(deadline_s=TIMEOUT_S, quarantine_s=QUARANTINE_S, fusion_budget_s=PATIENCE_S)
        write_policy(policy, config)
        for way in ways:
            with (
                running_aggregator(bundle.path, addresses, folder, "--policy", str(policy)) as ready,
                Client(ready["address"], TIMEOUT_S) as client,
            ):
                for i, liar in zip(devices, lying, strict=True):
                    recorded = recording.features[i]
                    liar.change = LIES.get(way) or (
                        _of_others(recorded) if way == OTHERS else _adversary(recorded, adversary[i])
                    )
                records = [storm.ask(client, inputs, row) for row in rows]
                for liar in lying:
                    liar.change = None
                answers = [(record.row, record.answer) for record in records if record.answer is not None]
                failed += len(records) - len(answers)
                right = sum(answer.labels[0] == labels[row] for row, answer in answers) / len(rows)
                losses[way] = 100 * float((expected[rows] == labels[rows]).mean() - right)
                without += sum(answer.mask & alive != alive for _, answer in answers)
                # With a liar in its mask, an answer is not the fusion of the recorded features.
                honest = [r for r in records if r.answer is not None and not r.answer.mask & ~alive]
                wrong += len(storm.wrong_answers(bundle, honest))
                if way == ways[-1]:
                    start = time.monotonic()
                    while client.infer(inputs[:1]).mask != everyone and time.monotonic() - start < TIMEOUT_S:
                        time.sleep(0.05)
                    back_s = time.monotonic() - start
    return {
        "liars_loss_points": losses,
        "liars_failed": failed,
        "liars_without_honest_device": without,
        "liars_wrong": wrong,
        "liars_back_s": back_s,
    }


def _flips(ground: Ground) -> Figures:
    nodes = range(1, ground.bundle.num_devices)
    return flips(ground.site, ground.client, ground.inputs, nodes, ground.args.flips)


SECTIONS = (
    Section(
        "flips",
        _flips,
        {
            "flipped bits fail no request and change no answer": lambda f: (
                f["flips_failed"] == f["flips_wrong"] == 0 and f["flips"] > 0
            )
        },
    ),
    Section(
        "liars",
        lambda ground: liars(ground.bundle, ground.inputs, LIARS, ground.args.lies),
        {
            "two liars cost at most a point against the same nodes dead": lambda f: (
                max(f["liars_loss_points"].values()) <= 1
            ),
            "liars fail no request": lambda f: f["liars_failed"] == 0,
            "liars cost no honest node": lambda f: f["liars_without_honest_device"] == 0,
            "without a liar an answer is the offline fusion of its mask": lambda f: f["liars_wrong"] == 0,
            "liars that are honest again are in use again": lambda f: f["liars_back_s"] < TIMEOUT_S,
        },
    ),
)
