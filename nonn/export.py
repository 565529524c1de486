"""Students as ONNX, checked against torch.

Raw inputs in, features out, normalisation inside; BN is folded into the convolutions by the runtime. One file, no
external data.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from nonn.errors import BundleError

__all__ = ["TOLERANCE", "export_onnx", "run_onnx"]

TOLERANCE = 1e-4


def export_onnx(network: nn.Module, input_shape: Sequence[int], samples: NDArray[Any]) -> bytes:
    """Exports a network and checks that ONNX Runtime gives what torch gives.

    Args:
        network: raw float inputs [B, *input_shape] → features [B, d].
        input_shape: of one sample.
        samples: raw inputs [n, *input_shape] to check with.

    Returns:
        The bytes of the ONNX file: input ``input``, output ``features``, any batch size.

    Raises:
        BundleError: the two differ by more than 1e-4, relative to the largest feature where that is above 1.
    """
    network = network.cpu().eval()
    example = torch.zeros(2, *input_shape)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["input"],
            output_names=["features"],
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(str(Path(folder) / "student.onnx"), external_data=False)
        data = (Path(folder) / "student.onnx").read_bytes()
    raw = samples.astype(np.float32)
    with torch.no_grad():
        expected = network(torch.from_numpy(raw)).numpy()
    gap = float(np.abs(run_onnx(data, raw) - expected).max())
    if not gap <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise BundleError(f"the exported student differs from torch by {gap:.2g} (allowed {TOLERANCE})")
    return data


def run_onnx(data: bytes, inputs: NDArray[Any], batch: int = 256) -> NDArray[np.float32]:
    """Runs an exported student as a node does: ONNX Runtime, one thread.

    Args:
        data: bytes of the ONNX file.
        inputs: raw [n, …]; cast to float32.
        batch: samples at a time.

    Returns:
        Features [n, d].
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    chunks = [
        session.run(["features"], {"input": inputs[i : i + batch].astype(np.float32)})[0]
        for i in range(0, len(inputs), batch)
    ]
    result: NDArray[np.float32] = np.concatenate(chunks)
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter talks on stdout and warns of its own internals; neither helps who builds a bundle."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
