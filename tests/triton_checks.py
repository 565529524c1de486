"""What a stranger's client, NVIDIA's ``tritonclient``, must be able to do with a server of ours.

``python triton_checks.py ADDRESS MODEL FILE`` runs every check against a live server, in an environment that has
tritonclient and nothing of nonn, and prints what came of each as JSON. FILE is a .npz with ``inputs`` uint8 [n, …],
the expected output ``expected`` [n, K], and the output's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Target:
    """A live server and what it should answer."""

    address: str
    model: str
    client: Any
    inputs: Any
    expected: Any
    output: str

    def tensors(self, inputs: Any = None, datatype: str = "UINT8", name: str = "input") -> list[Any]:
        from tritonclient import grpc

        inputs = self.inputs if inputs is None else inputs
        tensor = grpc.InferInput(name, list(inputs.shape), datatype)
        tensor.set_data_from_numpy(inputs)
        return [tensor]

    def infer(self, *args: Any, model: str = "", version: str = "", **options: Any) -> Any:
        tensors = self.tensors(*args)
        return self.client.infer(model or self.model, tensors, version, client_timeout=TIMEOUT_S, **options)

    def compare(self, result: Any, rows: Any = slice(None)) -> None:
        np.testing.assert_allclose(result.as_numpy(self.output), self.expected[rows], rtol=1e-4, atol=1e-4)


def refused(code: str, text: str, call: Any, *args: Any, **options: Any) -> None:
    """The call ends with this status, and its message helps."""
    from tritonclient.utils import InferenceServerException

    error = None
    try:
        call(*args, **options)
    except InferenceServerException as exc:
        error = exc
    assert error is not None, f"answered, and should have been refused with {code}"
    assert error.status() == f"StatusCode.{code}", error
    assert text in error.message(), error


def live_and_ready(target: Target) -> None:
    assert target.client.is_server_live()
    assert target.client.is_server_ready()
    assert target.client.is_model_ready(target.model)
    assert target.client.is_model_ready(target.model, target.client.get_model_metadata(target.model).versions[0])
    refused("NOT_FOUND", "no model 'nobody' here", target.client.is_model_ready, "nobody")


def metadata(target: Target) -> None:
    server = target.client.get_server_metadata()
    assert server.name == "nonn"
    assert server.version
    model = target.client.get_model_metadata(target.model)
    assert model.name == target.model
    assert [(t.name, t.datatype, list(t.shape)) for t in model.inputs] == [
        ("input", "UINT8", [-1, *target.inputs.shape[1:]])
    ]
    assert target.output in [t.name for t in model.outputs]
    assert target.client.get_model_metadata(target.model, as_json=True)["name"] == target.model
    refused("NOT_FOUND", "no model", target.client.get_model_metadata, "nobody")


def infer(target: Target) -> None:
    result = target.infer(request_id="abc")
    target.compare(result)
    assert result.get_response().id == "abc"
    assert result.get_response().model_name == target.model
    for output in result.get_response().outputs:
        assert result.as_numpy(output.name).shape == tuple(output.shape)


def infer_floats(target: Target) -> None:
    target.compare(target.infer(target.inputs.astype(np.float32), "FP32"))


def infer_one_sample(target: Target) -> None:
    target.compare(target.infer(target.inputs[:1]), slice(1))


def infer_one_output(target: Target) -> None:
    from tritonclient import grpc

    result = target.infer(outputs=[grpc.InferRequestedOutput(target.output)])
    assert [output.name for output in result.get_response().outputs] == [target.output]
    target.compare(result)


def infer_with_parameters(target: Target) -> None:
    target.compare(target.infer(parameters={"colour": "blue", "retries": 3, "urgent": True}, priority=1, timeout=10**6))


def infer_compressed(target: Target) -> None:
    for algorithm in ("gzip", "deflate"):
        target.compare(target.infer(compression_algorithm=algorithm))


def infer_many_at_once(target: Target) -> None:
    num_requests = 40
    results: list[Any] = [None] * num_requests
    done = threading.Semaphore(0)

    def remember(number: int, result: Any, error: Any) -> None:
        results[number] = error or result
        done.release()

    for number in range(num_requests):
        row = slice(number % len(target.inputs), number % len(target.inputs) + 1)

        def callback(result: Any, error: Any, number: int = number) -> None:
            remember(number, result, error)

        target.client.async_infer(target.model, target.tensors(target.inputs[row]), callback, client_timeout=TIMEOUT_S)
    for _ in range(num_requests):
        assert done.acquire(timeout=TIMEOUT_S)
    for number, result in enumerate(results):
        if isinstance(result, Exception):
            raise result
        at = number % len(target.inputs)
        target.compare(result, slice(at, at + 1))


def infer_async_is_refused_through_its_callback(target: Target) -> None:
    done, errors = threading.Event(), []

    def callback(result: Any, error: Any) -> None:
        errors.append(error)
        done.set()

    target.client.async_infer("nobody", target.tensors(), callback, client_timeout=TIMEOUT_S)
    assert done.wait(TIMEOUT_S)
    assert errors[0].status() == "StatusCode.NOT_FOUND", errors


def infer_with_asyncio(target: Target) -> None:
    from tritonclient.grpc import aio

    async def scenario() -> list[Any]:
        async with aio.InferenceServerClient(target.address) as client:
            assert await client.is_server_live()
            calls = (client.infer(target.model, target.tensors()) for _ in range(8))
            return await asyncio.gather(*calls)

    for result in asyncio.run(scenario()):
        target.compare(result)


def wrong_shape(target: Target) -> None:
    flat = target.inputs.reshape(len(target.inputs), -1)
    refused("INVALID_ARGUMENT", "expected [B, ", target.infer, flat)
    refused("INVALID_ARGUMENT", "an empty batch", target.infer, target.inputs[:0])


def wrong_dtype(target: Target) -> None:
    refused("INVALID_ARGUMENT", "send uint8", target.infer, target.inputs.astype(np.int64), "INT64")
    text = np.full(target.inputs.shape, b"7", dtype=object)
    refused("INVALID_ARGUMENT", "unknown datatype 'BYTES'", target.infer, text, "BYTES")


def wrong_values(target: Target) -> None:
    nan = np.full(target.inputs.shape, np.nan, np.float32)
    refused("INVALID_ARGUMENT", "NaN or infinity", target.infer, nan, "FP32")


def wrong_names(target: Target) -> None:
    from tritonclient import grpc

    refused("NOT_FOUND", "no model 'nobody' here", target.infer, model="nobody")
    refused("NOT_FOUND", "version '99'", target.infer, version="99")
    refused("INVALID_ARGUMENT", "'picture'", target.infer, target.inputs, "UINT8", "picture")
    refused("INVALID_ARGUMENT", "'mood'", target.infer, outputs=[grpc.InferRequestedOutput("mood")])


def other_bundle(target: Target) -> None:
    refused("FAILED_PRECONDITION", "bundle", target.infer, parameters={"nonn_bundle": "f" * 64})


def streaming_is_unimplemented(target: Target) -> None:
    from tritonclient.utils import InferenceServerException

    done, errors = threading.Event(), []

    def callback(result: Any, error: Any) -> None:
        errors.append(error)
        done.set()

    target.client.start_stream(callback)
    # The refusal may be here before the request is handed over, which the client then declines to take.
    with contextlib.suppress(InferenceServerException):
        target.client.async_stream_infer(target.model, target.tensors())
    assert done.wait(TIMEOUT_S)
    target.client.stop_stream()
    assert errors[0].status() == "StatusCode.UNIMPLEMENTED", errors
    target.compare(target.infer())


def other_calls_are_unimplemented(target: Target) -> None:
    client = target.client
    for call in (client.get_model_repository_index, client.get_inference_statistics, client.get_log_settings):
        refused("UNIMPLEMENTED", "", call)
    refused("UNIMPLEMENTED", "", client.get_model_config, target.model)
    refused("UNIMPLEMENTED", "", client.unload_model, target.model)
    target.compare(target.infer())


CHECKS = (
    live_and_ready,
    metadata,
    infer,
    infer_floats,
    infer_one_sample,
    infer_one_output,
    infer_with_parameters,
    infer_compressed,
    infer_many_at_once,
    infer_async_is_refused_through_its_callback,
    infer_with_asyncio,
    wrong_shape,
    wrong_dtype,
    wrong_values,
    wrong_names,
    other_bundle,
    streaming_is_unimplemented,
    other_calls_are_unimplemented,
)


def main(address: str, model: str, file: str) -> None:
    """Runs all checks and prints a line of JSON: the traceback of each, empty if it passed."""
    from tritonclient import grpc

    found = {}
    with np.load(file) as data, grpc.InferenceServerClient(address) as client:
        target = Target(address, model, client, data["inputs"], data["expected"], str(data["output"]))
        for check in CHECKS:
            try:
                check(target)
                found[check.__name__] = ""
            except Exception:
                found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
