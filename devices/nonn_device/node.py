"""A student as a model of the Open Inference Protocol: ``input`` [B, …] → ``features`` [B, d_i].

``nonn_device.worker`` queues and runs the requests. A waiting request whose caller has given up is dropped.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import numpy as np

from nonn import __version__
from nonn.bundle import Bundle
from nonn.bundle.views import select_view
from nonn.errors import BundleError, ConfigError, InputError
from nonn.rpc.codec import Request
from nonn.rpc.endpoint import InferenceResult
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import MAX_SAMPLES, Array, request_limit
from nonn_device.runtime import Runtime
from nonn_device.vitals import resident_bytes
from nonn_device.worker import Worker

__all__ = ["MAX_QUEUE", "StudentModel"]

MAX_QUEUE = 64  # requests that wait for the student

_DATATYPE = {"float32": "FP32", "float16": "FP16", "int8": "INT8"}  # of the features that are sent


class StudentModel:
    """The model ``student-<i>``.

    Args:
        bundle: of the student.
        device: i.
        runtime: with the student loaded.
        max_batch: samples of one request.
        max_queue: requests that may wait while the student computes.
        node: id of the device, which an aggregator that it joins asks for; empty if it joins none.
        remote: whether the runtime waits for another machine, such as a board.

    Raises:
        ConfigError: a limit is less than 1.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: int,
        runtime: Runtime,
        *,
        max_batch: int = MAX_SAMPLES,
        max_queue: int = MAX_QUEUE,
        node: str = "",
        remote: bool = False,
    ) -> None:
        for name, value in (("--max-batch", max_batch), ("--max-queue", max_queue)):
            if value < 1:
                raise ConfigError(f"{name} {value}: must be at least 1")
        self.name = f"student-{device}"
        self.version = bundle.hash[:12]
        self._bundle, self._student, self._runtime = bundle, bundle.manifest.students[device], runtime
        self._cut = replace(self._student.view, channels=())  # a sensor has the channels of its device only
        self._spec = bundle.input_of(device)
        self.max_request_bytes = request_limit(self._spec.shape, max_batch)
        self._max_batch, self._node = max_batch, node
        self._worker = Worker(self._run, max_queue, inline=not remote)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker.close()

    @property
    def ready(self) -> bool:
        """Always true: a model exists only with its student loaded."""
        return True

    async def readiness(self) -> AsyncIterator[bool]:
        """Yields ready once; it never changes."""
        yield self.ready

    def metadata(self) -> Any:
        """Tensors, and properties such as bundle and part."""
        spec, student = self._spec, self._student
        metadata = pb.ModelMetadataResponse(name=self.name, versions=[self.version], platform="onnx")
        datatype = "UINT8" if spec.dtype == "uint8" else "FP32"
        metadata.inputs.add(name="input", datatype=datatype, shape=[-1, *spec.shape])
        metadata.outputs.add(name="features", datatype=_DATATYPE[student.dtype], shape=[-1, student.width])
        properties = {
            "node": self._node,
            "bundle": self._bundle.hash,
            "part": student.part,
            "device": student.device,
            "sha256": student.sha256,
            "runtime": self._runtime.name,
            "dtype": student.dtype,
            "version": __version__,
            "rss_bytes": resident_bytes(),
            "weights": student.weights,
            "max_batch": self._max_batch,
        }
        metadata.properties.update({f"nonn_{key}": str(value) for key, value in properties.items()})
        return metadata

    async def infer(self, request: Request, remaining_s: float | None) -> InferenceResult:
        """Features of one batch.

        Raises:
            InputError: the batch does not match the student's input, or is so far outside the raw range that its
                features are not finite.
            BundleError: the request is for another bundle.
            OverloadError: too many requests are waiting.
        """
        if not request.is_for(self._bundle.hash):
            raise BundleError(
                f"{self.name} is of bundle {self._bundle.hash[:12]}…, the request is for {str(request.bundle)[:12]}…; "
                "give every node and the aggregator the same bundle"
            )
        batch = request.batch(self._spec.shape, self._max_batch)
        features = self._worker.now(batch)
        if features is None:
            features = await self._worker(batch)
        # Bytes are always in range, and the aggregator checks features anyway; a caller of floats gets a clear error.
        if batch.dtype.char == "f" and not np.isfinite(features).all():
            raise InputError(f"{self.name}: its features are not finite; the inputs are far outside the raw range")
        return InferenceResult({"features": self._student.code.encode(features)}, {"nonn_bundle": self._bundle.hash})

    async def features(self, window: Array) -> bytes:
        """Features of one reading of the node's own sensor, encoded as they are sent.

        Args:
            window: [C, T], or the picture of a camera [C, H, W], from which crop and resolution of the device are made.
        """
        features = await self._worker(select_view(window[None], self._cut), limited=False)
        return bytes(self._student.code.encode(features)[0].tobytes())

    async def check(self) -> None:
        """Runs one sample of zeros, queued even if the queue is full; returns if the student still runs."""
        await self._worker(np.zeros((1, *self._spec.shape), np.uint8), limited=False)

    def _run(self, batch: Array) -> Array:
        """Passes raw values on: the network normalises them itself."""
        return self._runtime.run(batch)
