"""Memory of the activations of an exported student.

It is the largest sum of tensors that are in memory at once when the nodes run in order, one sample at a time, with
batch norms folded and convolutions in 8 bits as they run. A runtime cannot need less without computing in place; the
static buffers of the C export are close to it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

from nonn.export.onnx_file import folded

__all__ = ["activation_bytes", "inner_tensors"]


def inner_tensors(model: Any) -> dict[str, NDArray[Any]]:
    """The tensors that every node gives for one sample of zeros, by name.

    Args:
        model: a ModelProto with one input; its first dimension is the batch.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    given = probe.graph.input[0]
    shape = [1, *(dim.dim_value for dim in given.type.tensor_type.shape.dim[1:])]
    outputs = {value.name for value in probe.graph.output}
    names = [name for node in probe.graph.node for name in node.output if name]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in outputs)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(probe.SerializeToString(), options, providers=["CPUExecutionProvider"])
    arrays = session.run(names, {given.name: np.zeros(shape, np.float32)})
    return dict(zip(names, arrays, strict=True))


def activation_bytes(data: bytes) -> int:
    """Largest sum of the tensors that are in memory at once for one sample, bytes.

    Args:
        data: an ONNX file with one input and one output.
    """
    model = onnx.load_from_string(folded(data, integer=True))
    tensors = inner_tensors(model)
    last = {name: number for number, node in enumerate(model.graph.node) for name in node.input}
    live: dict[str, int] = {}
    most = 0
    for number, node in enumerate(model.graph.node):
        live |= {name: tensors[name].nbytes for name in node.output if name}
        most = max(most, sum(live.values()))
        live = {name: size for name, size in live.items() if last.get(name, number) > number}
    return most
