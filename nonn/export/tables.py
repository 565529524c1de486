"""Learned activations in 8 bits: a function of one value becomes a table of the 256 values that its input can have.

A multi-segment activation (``nonn.teacher.lma_wrn``) selects a segment by rounding down, and segments need not meet. In
8 bits its result is computed here, once for each value of its input, and the student only looks it up: nothing is left
that processors could round in different ways.

Such an activation is found by its ``Floor``: the nodes that compute from one tensor, element by element, up to the
tensor in which all of them come together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

__all__ = ["Activation", "find_activations", "insert_tables"]

_ELEMENTWISE = {"Add", "Cast", "Clip", "Div", "Floor", "Gather", "GatherND", "Mul", "Sub", "Unsqueeze"}


@dataclass(frozen=True)
class Activation:
    """Nodes that compute one tensor from another, element by element.

    Attributes:
        source: name of the tensor that they read.
        result: name of the tensor that they make.
        nodes: copies of them, in order.
    """

    source: str
    result: str
    nodes: Sequence[Any]

    @property
    def inner(self) -> set[str]:
        """Names of the tensors between source and result."""
        return {name for node in self.nodes for name in node.output} - {self.result}


def find_activations(graph: Any, constants: Mapping[str, NDArray[Any]]) -> list[Activation]:
    """The activations of a network that round down, in order."""
    readers: dict[str, int] = {}
    maker = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        for name in node.input:
            readers[name] = readers.get(name, 0) + 1
    found = []
    for floor in (node for node in graph.node if node.op_type == "Floor"):
        source, node = "", floor
        while node is not None and node.op_type in _ELEMENTWISE:
            given = [name for name in node.input if name and name not in constants]
            source = given[0] if len(given) == 1 else ""
            node = maker.get(source) if readers.get(source) == 1 else None
        activation = _from(source, graph, constants, readers)
        if activation is not None and floor.output[0] in activation.inner:
            found.append(activation)
    return found


def _from(
    source: str, graph: Any, constants: Mapping[str, NDArray[Any]], readers: Mapping[str, int]
) -> Activation | None:
    """The nodes after a tensor up to where only one tensor of theirs is still to be read."""
    unread, nodes = {source: readers.get(source, 0)}, []
    for node in graph.node:
        given = [name for name in node.input if name in unread]
        if not given:
            continue
        others = [name for name in node.input if name and name not in unread and name not in constants]
        if node.op_type not in _ELEMENTWISE or others:
            return None
        for name in given:
            unread[name] -= 1
        nodes.append(node)
        unread |= {name: readers.get(name, 0) for name in node.output}
        left = [name for name, count in unread.items() if count]
        if left == [node.output[0]] and any(one.op_type == "Floor" for one in nodes):
            copies = [onnx.NodeProto.FromString(one.SerializeToString()) for one in nodes]
            return Activation(source, node.output[0], copies)
    return None


def insert_tables(
    model: Any,
    activations: Sequence[Activation],
    constants: Mapping[str, NDArray[Any]],
    steps: Mapping[str, tuple[float, int]],
) -> None:
    """Replaces activations of a network in 8 bits by tables.

    Args:
        model: after the nodes that round were inserted; the rounded form of a tensor is called ``NAME_q``.
        activations: result of ``find_activations`` before that.
        constants: initialisers of the network in float.
        steps: step and zero point of each rounded tensor.
    """
    graph = model.graph
    for activation in activations:
        table = _table(activation, model.opset_import, constants, steps[activation.source], steps[activation.result])
        name = f"{activation.result}_table"
        graph.initializer.append(numpy_helper.from_array(table, name))
        source, result = f"{activation.source}_q", f"{activation.result}_q"
        made = activation.inner | {activation.result, result}
        nodes = []
        for node in graph.node:
            if node.output[0] not in made:
                nodes.append(node)
            elif node.output[0] == result:
                nodes.append(helper.make_node("Cast", [source], [f"{result}_index"], to=TensorProto.INT32))
                nodes.append(helper.make_node("Gather", [name, f"{result}_index"], [result], axis=0))
        del graph.node[:]
        graph.node.extend(nodes)


def _table(
    activation: Activation,
    opset: Any,
    constants: Mapping[str, NDArray[Any]],
    given: tuple[float, int],
    made: tuple[float, int],
) -> NDArray[np.uint8]:
    """The rounded result for each rounded value of the source [256]."""
    (step, zero), (result_step, result_zero) = given, made
    values = ((np.arange(256) - zero) * step).astype(np.float32)
    used = {name for node in activation.nodes for name in node.input}
    graph = helper.make_graph(
        list(activation.nodes),
        "activation",
        [helper.make_tensor_value_info(activation.source, TensorProto.FLOAT, [256, 1, 1, 1])],
        [helper.make_tensor_value_info(activation.result, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items() if name in used],
    )
    model = helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {activation.source: values.reshape(256, 1, 1, 1)})
    scaled = np.rint(result.reshape(-1) / result_step) + result_zero
    table: NDArray[np.uint8] = scaled.clip(0, 255).astype(np.uint8)
    return table
