"""A node that attacks the aggregator below gRPC, with frames of HTTP/2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.node_frames import KINDS, FrameNode
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from tests.serving import TIMEOUT_S, running_aggregator, until

NUM_DEVICES = 2


def test_no_frame_of_a_node_ends_the_aggregator(
    bundle: Bundle, inputs: NDArray[Any], cluster: LocalCluster, tmp_path: Path
) -> None:
    addresses = [state.address for state in cluster.states()]
    with FrameNode(("goaway", *KINDS)) as bad:
        addresses[0] = bad.address
        with (
            running_aggregator(bundle.path, addresses, tmp_path) as ready,
            Client(ready["address"], TIMEOUT_S) as client,
        ):

            def every_kind_was_sent() -> bool:
                answer = client.infer(inputs[:1])
                assert not answer.answered[0]
                assert answer.answered[1:].all()
                return all(bad.attacks.values())

            until(every_kind_was_sent)
