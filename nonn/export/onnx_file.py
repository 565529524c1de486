"""Exports students to ONNX and checks them against torch.

The network has raw inputs and features as outputs and includes normalisation; the runtime folds BN into the
convolutions. It is one file without external data or debugging information: the exporter's stack traces would be a
tenth of it. Networks of one architecture are traced once.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from nonn.bundle.prediction import open_session, run_session
from nonn.errors import BundleError

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TOLERANCE", "deployed", "export_onnx", "folded", "quiet", "run_onnx", "slim"]

TOLERANCE = 1e-4


def export_onnx(network: nn.Module, input_shape: Sequence[int], samples: NDArray[Any]) -> bytes:
    """Exports a network and checks that ONNX Runtime and torch give equal features.

    Args:
        network: raw float inputs [B, *input_shape] → features [B, d].
        input_shape: of one sample.
        samples: raw inputs [n, *input_shape] to check with.

    Returns:
        The bytes of the ONNX file: input ``input``, output ``features``, any batch size.

    Raises:
        BundleError: the two differ by more than 1e-4, times the largest feature if that is above 1.
    """
    import torch

    network = network.cpu().eval()
    raw = samples.astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(raw)).numpy()
    network = deployed(network)
    allowed = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    key = _architecture(network, input_shape)
    gap = np.inf
    if key in _graphs:
        data = _with_weights(_graphs[key], network)
        gap = np.abs(run_onnx(data, raw) - expected).max()
    if not gap <= allowed:
        while len(_graphs) >= _KEPT:
            del _graphs[next(iter(_graphs))]
        _graphs[key] = _trace(network, input_shape)
        data = _with_weights(_graphs[key], network)
        gap = np.abs(run_onnx(data, raw) - expected).max()
    if not gap <= allowed:
        raise BundleError(f"the exported student differs from torch by {gap:.2g} (allowed {TOLERANCE})")
    return data


def deployed(network: nn.Module) -> nn.Module:
    """The network with what its layers are on a device, where they have a method ``deployed``."""
    if not any(callable(getattr(module, "deployed", None)) for module in network.modules()):
        return network
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if callable(make := getattr(child, "deployed", None)):
                setattr(module, name, make())
    return network


# Graphs of the last architectures. To trace one takes seconds, to give it other weights milliseconds.
_KEPT = 8
_graphs: dict[Any, Any] = {}


def _architecture(network: nn.Module, input_shape: Sequence[int]) -> tuple[Any, ...]:
    """Equal for networks that have, as far as can be seen without tracing them, the same graph."""
    shapes = tuple((name, tuple(value.shape), value.dtype) for name, value in network.state_dict().items())
    return type(network), repr(network), tuple(input_shape), shapes


def _trace(network: nn.Module, input_shape: Sequence[int]) -> Any:
    """The ONNXProgram of a network, before optimisations that depend on its weights."""
    import torch

    with quiet("torch.onnx"), contextlib.redirect_stdout(io.StringIO()):
        return torch.onnx.export(
            network,
            (torch.zeros(2, *input_shape),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["input"],
            output_names=["features"],
            external_data=False,
            verbose=False,
            optimize=False,
        )


def _with_weights(graph: Any, network: nn.Module) -> bytes:
    """The ONNX file of a graph with the weights of a network of this architecture."""
    import onnx

    program = copy.copy(graph)
    program.model = graph.model.clone()
    initializers = program.model.graph.initializers
    program.apply_weights({name: value for name, value in network.state_dict().items() if name in initializers})
    with quiet("torch.onnx"), tempfile.TemporaryDirectory() as folder:
        program.optimize()
        program.save(str(Path(folder) / "student.onnx"), external_data=False)
        return slim(onnx.load(str(Path(folder) / "student.onnx")))


def run_onnx(data: bytes, inputs: NDArray[Any], batch: int = 256) -> NDArray[np.float32]:
    """Runs an exported student like a node: ONNX Runtime, one thread.

    Args:
        data: bytes of the ONNX file.
        inputs: raw [n, …]; cast to float32.
        batch: samples per run.

    Returns:
        Features [n, d].
    """
    return run_session(open_session(data), inputs, batch)


def folded(data: bytes, *, integer: bool = False) -> bytes:
    """The network after the runtime's own basic optimisations: batch norms folded into convolutions before them.

    Args:
        data: bytes of an ONNX file.
        integer: convolutions of a network in 8 bits become integer convolutions.
    """
    levels = onnxruntime.GraphOptimizationLevel
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # hides a warning that the result is for this processor only; it is not
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED if integer else levels.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "folded.onnx")
        onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        return Path(options.optimized_model_filepath).read_bytes()


def slim(model: Any) -> bytes:
    """The bytes of an ONNX model without comments, traces and intermediate shapes, and with short inner names.

    Args:
        model: a ModelProto without subgraphs; modified in place.
    """
    graph = model.graph
    outer = {value.name for value in [*graph.input, *graph.output]}
    names: dict[str, str] = {}

    def short(name: str) -> str:
        return name if not name or name in outer else names.setdefault(name, f"t{len(names)}")

    del graph.value_info[:]
    for item in [model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        item.ClearField("doc_string")
        item.ClearField("metadata_props")
    for tensor in graph.initializer:
        tensor.name = short(tensor.name)
    for node in graph.node:
        node.ClearField("name")
        node.input[:] = [short(name) for name in node.input]
        node.output[:] = [short(name) for name in node.output]
    # Removes unused domains that a runtime declares when it writes a model.
    used = {node.domain for node in graph.node}
    kept = [opset for opset in model.opset_import if opset.domain in used | {""}]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    return bytes(model.SerializeToString())


@contextlib.contextmanager
def quiet(logger: str | None) -> Iterator[None]:
    """Hides warnings of exporter and quantiser about their own internals, which do not concern users.

    Args:
        logger: name of the logger that they use; None is the root logger.
    """
    log = logging.getLogger(logger)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
