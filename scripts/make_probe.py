"""Writes ``devices/nonn_device/probe.onnx``, the network with which ``nonn doctor --device`` measures a device.

Four 3-wide convolutions of 32 filters on 32 × 32 positions, typical of the middle of a student. All
four share their weights to keep the file small. The weights are multiples of 1/256, the same on every machine.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

PROBE = Path(__file__).resolve().parent.parent / "devices" / "nonn_device" / "probe.onnx"
FILTERS, SIDE, LAYERS = 32, 32, 4


def probe_network() -> Any:
    """The network as an ONNX model: ``input`` [1, 32, 32, 32] → ``output`` of the same shape."""
    # Uniform with a deviation of 1/27: values neither grow nor vanish (denormal numbers are slow) over four layers.
    weights = np.random.default_rng(0).integers(-16, 17, (FILTERS, FILTERS, 3, 3)) / 256
    names = ["input", *(f"map{layer}" for layer in range(1, LAYERS)), "output"]
    shape = [1, FILTERS, SIDE, SIDE]
    graph = helper.make_graph(
        [
            helper.make_node("Conv", [source, "weights"], [target], pads=[1, 1, 1, 1])
            for source, target in pairwise(names)
        ],
        "probe",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weights.astype(np.float32), "weights")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


if __name__ == "__main__":
    PROBE.write_bytes(probe_network().SerializeToString(deterministic=True))
    print(PROBE)
