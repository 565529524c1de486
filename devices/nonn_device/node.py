"""A student as a model of the Open Inference Protocol: ``input`` [B, …] → ``features`` [B, d_i].

Inference runs in one thread of its own, so that health checks are answered while it computes; requests wait their
turn, and one whose caller has given up is dropped before it costs anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import numpy as np

from nonn.bundle import Bundle
from nonn.errors import BundleError, NonnError
from nonn.rpc.server import Result
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.wire import Array, check_batch, read_parameters, read_tensors
from nonn_device.runtime import Runtime

__all__ = ["StudentModel"]


class StudentModel:
    """The model ``student-<i>``.

    Args:
        bundle: the bundle that the student is of.
        device: i.
        runtime: that holds the student.
    """

    def __init__(self, bundle: Bundle, device: int, runtime: Runtime) -> None:
        self.name = f"student-{device}"
        self.version = bundle.hash[:12]
        self._bundle, self._student, self._runtime = bundle, bundle.manifest.students[device], runtime
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._executor.shutdown(cancel_futures=True)

    @property
    def ready(self) -> bool:
        """The student is loaded, or there would be no model."""
        return True

    async def readiness(self) -> AsyncIterator[bool]:
        """Ready, once: nothing changes it."""
        yield self.ready

    def metadata(self) -> Any:
        """Tensors, and which part of which bundle this is."""
        spec, student = self._bundle.manifest.input, self._student
        metadata = pb.ModelMetadataResponse(name=self.name, versions=[self.version], platform="onnx")
        datatype = "UINT8" if spec.dtype == "uint8" else "FP32"
        metadata.inputs.add(name="input", datatype=datatype, shape=[-1, *spec.shape])
        metadata.outputs.add(name="features", datatype="FP32", shape=[-1, student.width])
        properties = {
            "bundle": self._bundle.hash,
            "part": student.part,
            "device": student.device,
            "sha256": student.sha256,
            "runtime": self._runtime.name,
            "dtype": student.dtype,
        }
        metadata.properties.update({f"nonn_{key}": str(value) for key, value in properties.items()})
        return metadata

    async def infer(self, request: Any, remaining_s: float | None) -> Result:
        """Features of one batch.

        Raises:
            InputError: the batch is not what the student takes.
            BundleError: the caller means another bundle.
            NonnError: the student's features are not finite.
        """
        wanted = read_parameters(request.parameters).get("nonn_bundle", self._bundle.hash)
        if wanted != self._bundle.hash:
            raise BundleError(
                f"{self.name} is of bundle {self._bundle.hash[:12]}…, the request is for {str(wanted)[:12]}…; "
                "give every node and the aggregator the same bundle"
            )
        batch = check_batch(read_tensors(request.inputs, request.raw_input_contents), self._bundle.manifest.input.shape)
        loop = asyncio.get_running_loop()
        features = await loop.run_in_executor(self._executor, self._run, batch)
        if not np.isfinite(features).all():
            raise NonnError(f"{self.name}: its features are not finite; the inputs may be far outside the raw range")
        return Result({"features": features}, {"nonn_bundle": self._bundle.hash})

    def _run(self, batch: Array) -> Array:
        """In the inference thread: raw values as they are, since the network normalises them itself."""
        return self._runtime.run(batch.astype(np.float32, copy=False))
