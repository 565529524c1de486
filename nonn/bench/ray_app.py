"""The students of a bundle composed in Ray Serve, for ``nonn bench serve --ray``.

``python ray_app.py HEAD.npz STUDENT.onnx …`` runs in a separate environment without nonn. Each student is a
deployment of one replica; a front deployment calls all of them through handles, concatenates and fuses. It prints its
HTTP address as a line of JSON and ends when standard input closes.
"""

# mypy: ignore-errors
# Ray is not in the environment of the type checker.

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from typing import Any

import numpy as np
import onnxruntime
import ray
from ray import serve

CPUS = 0.05  # per replica, for Ray's bookkeeping only: all of them must fit on one core


@serve.deployment(ray_actor_options={"num_cpus": CPUS})
class RayStudent:
    """One student, run as on a node."""

    def __init__(self, path: str) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    async def features(self, batch: np.ndarray) -> np.ndarray:
        """Raw inputs → features."""
        return self._session.run(["features"], {"input": batch.astype(np.float32)})[0]


@serve.deployment(ray_actor_options={"num_cpus": CPUS})
class Front:
    """Asks all students and fuses."""

    def __init__(self, head: str, students: list[Any]) -> None:
        with np.load(head) as arrays:
            self._weights, self._bias = arrays["weights"], arrays["bias"]
        self._students = students

    async def __call__(self, request: Any) -> Any:
        """One HTTP request: raw bytes of the inputs → raw bytes of the logits."""
        from starlette.responses import Response

        batch = np.frombuffer(await request.body(), np.uint8).reshape(-1, 3, 32, 32)
        features = await asyncio.gather(*(student.features.remote(batch) for student in self._students))
        logits = np.concatenate(features, axis=1) @ self._weights + self._bias
        return Response(logits.astype(np.float32).tobytes(), media_type="application/octet-stream")


def main(head: str, students: list[str]) -> None:
    """Serves until standard input closes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options=serve.config.HTTPOptions(host="127.0.0.1", port=port))
    front = Front.bind(head, [RayStudent.options(name=f"student-{i}").bind(path) for i, path in enumerate(students)])
    serve.run(front, route_prefix="/")
    os.write(1, (json.dumps({"event": "ready", "address": f"127.0.0.1:{port}"}) + "\n").encode())
    while os.read(0, 4096):
        pass
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
