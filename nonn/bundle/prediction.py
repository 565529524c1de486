"""Predictions of a bundle's students, in this process: ``Bundle.predict``.

The students run in ONNX Runtime, their features pass through the code of the network, and the head fuses them, as on
devices and aggregator. The result equals that of a cluster in which the same devices answer, up to rounding.

A device imports this module for nothing but the name ``Prediction``; what the rest needs is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle.manifest import Manifest
from nonn.bundle.views import select_view
from nonn.errors import BundleError, InputError, ShapeError

if TYPE_CHECKING:
    from nonn.fusion import Head
    from nonn.reliability.table import AccuracyTable

__all__ = ["Offline", "Prediction", "open_session", "run_session"]

_SHOWN = 20  # rows of a prediction in a notebook


@dataclass(frozen=True, eq=False)
class Prediction:
    """The fused logits of one subset of devices.

    Attributes:
        logits: fused [B, K].
        confidence: probability of the most likely class [B].
        answered: which devices were fused [N].
        degraded: whether any device is missing.
        bundle: hash of the bundle that answered.
        expected_accuracy: of exactly this set of devices, on the bundle's test split, in [0, 1].
        expected_accuracy_interval: its 95 % interval, for the finite test split; None from an older aggregator.
        expected_accuracy_estimated: whether this set was not evaluated, as happens beyond 16 devices: then the accuracy
            is the mean of sampled sets of as many devices, and the interval covers their differences.
    """

    logits: NDArray[np.float32]
    confidence: NDArray[np.float32]
    answered: NDArray[np.bool_]
    degraded: bool
    bundle: str
    expected_accuracy: float
    expected_accuracy_interval: tuple[float, float] | None = None
    expected_accuracy_estimated: bool = False

    @cached_property
    def mask(self) -> int:
        """The subset of devices that answered, as a bit mask."""
        return int.from_bytes(np.packbits(self.answered, bitorder="little").tobytes(), "little")

    @property
    def labels(self) -> NDArray[np.int64]:
        """The most likely class of each sample [B]."""
        labels: NDArray[np.int64] = self.logits.argmax(axis=1)
        return labels

    def _repr_html_(self) -> str:
        """The first samples as a table, for notebooks."""
        from nonn.documents.shown import html_table, percent

        answered, left = int(self.answered.sum()), len(self.labels) - _SHOWN
        missing = ", ".join(map(str, np.flatnonzero(~self.answered)))
        caption = f"{answered} of {len(self.answered)} devices answered" + f" (missing: {missing})" * bool(missing)
        caption += f"; expected accuracy {percent(self.expected_accuracy)}" + f"; {left} more samples" * (left > 0)
        pairs = zip(self.labels[:_SHOWN].tolist(), self.confidence[:_SHOWN].tolist(), strict=True)
        rows = [(str(i), str(label), percent(sure)) for i, (label, sure) in enumerate(pairs)]
        return html_table(("sample", "class", "confidence"), rows, caption)


class Offline:
    """The students of one bundle, loaded for the first prediction.

    Args:
        manifest: of the bundle: its input and its students.
        models: ONNX file of each student [N].
        head: the fusion.
        table: accuracy of the subsets that were evaluated.
        bundle: hash of the bundle.
    """

    def __init__(
        self, manifest: Manifest, models: Sequence[Path], head: Head, table: AccuracyTable, bundle: str
    ) -> None:
        self._manifest, self._models = manifest, models
        self._head, self._table, self._bundle = head, table, bundle

    def predict(self, inputs: NDArray[Any] | str | Path | Sequence[str | Path], mask: int) -> Prediction:
        """Runs the students in ``mask`` and fuses them; see ``Bundle.predict``."""
        from nonn.reliability.subsets import members

        if not mask:
            raise InputError("every device is left out: there is nothing to fuse")
        batch, students = self._batch(self._read(inputs)), self._manifest.students
        features = {}
        for i in members(mask):
            sent = run_session(self._sessions[i], select_view(batch, students[i].view))
            features[i] = students[i].code.roundtrip(sent)
        logits, stated = self._head.logits(features, keep=False), self._table.stated(mask)
        return Prediction(
            logits=logits.astype(np.float32),
            confidence=self._head.confidence(logits, mask).astype(np.float32),
            answered=np.array([mask >> i & 1 for i in range(len(students))], dtype=np.bool_),
            degraded=mask.bit_count() < len(students),
            bundle=self._bundle,
            expected_accuracy=stated.accuracy,
            expected_accuracy_interval=stated.interval,
            expected_accuracy_estimated=stated.estimated,
        )

    @cached_property
    def _sessions(self) -> list[Any]:
        return [open_session(model) for model in self._models]

    def _read(self, inputs: NDArray[Any] | str | Path | Sequence[str | Path]) -> NDArray[Any]:
        """Arrays as they are, files as one batch."""
        if isinstance(inputs, str | Path):
            inputs = [inputs]
        if not isinstance(inputs, list | tuple) or not all(isinstance(name, str | Path) for name in inputs):
            return np.asarray(inputs)
        from nonn.bundle.inputs import InputReader, expand  # needs Pillow for images

        spec = self._manifest.input
        reader = InputReader(spec.shape, spec.dtype, spec.preprocess)
        return np.concatenate([batch for name in expand(inputs) for batch in reader.read(name)])

    def _batch(self, inputs: NDArray[Any]) -> NDArray[Any]:
        """The batch [B, …] of raw values."""
        shape = self._manifest.input.shape
        batch = inputs[None] if inputs.shape == shape else inputs
        if batch.shape[1:] != shape or not len(batch):
            raise ShapeError(f"inputs of shape {list(inputs.shape)}; expected {list(shape)}, or a batch of them")
        if batch.dtype.kind not in "iuf":
            raise InputError(f"inputs of {batch.dtype}; give numbers")
        if not np.isfinite(batch).all():
            raise InputError("inputs contain NaN or infinity")
        return batch


def open_session(model: bytes | Path) -> Any:
    """A session of ONNX Runtime with one thread, as on a node.

    Args:
        model: an ONNX file, or its bytes.

    Raises:
        BundleError: ONNX Runtime cannot load it.
    """
    import onnxruntime  # nodes with compiled students do without its 30 MB

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    source = str(model) if isinstance(model, Path) else model
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as exc:  # onnxruntime has no public base class for its errors
        name = model if isinstance(model, Path) else "the student"
        raise BundleError(f"{name}: ONNX Runtime cannot load it ({exc}); build the bundle again") from exc


def run_session(session: Any, inputs: NDArray[Any], batch: int = 256) -> NDArray[np.float32]:
    """Runs a student over any number of samples.

    Args:
        session: from ``open_session``.
        inputs: raw [n, …]; cast to float32.
        batch: samples per run.

    Returns:
        Features [n, d].
    """
    chunks = [
        session.run(["features"], {"input": inputs[i : i + batch].astype(np.float32)})[0]
        for i in range(0, len(inputs), batch)
    ]
    result: NDArray[np.float32] = np.concatenate(chunks)
    return result
