"""An ordinary Open Inference Protocol server that knows nothing of nonn: any ONNX network under any name.

``python foreign_server.py STUBS NETWORK MODEL [--typed]`` prints its address as a line of JSON. The stubs are its own,
in the default descriptor pool; gRPC is the threaded one, not asyncio; like Triton it takes only the datatype that the
network has, ignores parameters that it does not know and adds none to its answers.
"""

# ruff: noqa: N802 - the names are the protocol's
from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

parser = argparse.ArgumentParser()
parser.add_argument("stubs")
parser.add_argument("network")
parser.add_argument("model")
parser.add_argument("--typed", action="store_true", help="answer with typed contents instead of raw ones")
parser.add_argument("--port", type=int, default=0)
arguments = parser.parse_args()
sys.path.insert(0, arguments.stubs)

import grpc  # noqa: E402
import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import open_inference_pb2 as pb  # noqa: E402
import open_inference_pb2_grpc  # noqa: E402

DATATYPES = {"tensor(float)": ("FP32", np.float32), "tensor(uint8)": ("UINT8", np.uint8)}


class Server(open_inference_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """One ONNX network."""

    def __init__(self, network: str, model: str, typed: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(network, options)
        self._model, self._typed = model, typed

    def ServerLive(self, request: Any, context: Any) -> Any:
        return pb.ServerLiveResponse(live=True)

    def ServerReady(self, request: Any, context: Any) -> Any:
        return pb.ServerReadyResponse(ready=True)

    def ModelReady(self, request: Any, context: Any) -> Any:
        return pb.ModelReadyResponse(ready=request.name == self._model)

    def ServerMetadata(self, request: Any, context: Any) -> Any:
        return pb.ServerMetadataResponse(name="stranger", version="7")

    def ModelMetadata(self, request: Any, context: Any) -> Any:
        self._check(request.name, context)
        metadata = pb.ModelMetadataResponse(name=self._model, versions=["1"], platform="onnxruntime_onnx")
        for tensors, nodes in (
            (metadata.inputs, self._session.get_inputs()),
            (metadata.outputs, self._session.get_outputs()),
        ):
            for node in nodes:
                shape = [size if isinstance(size, int) else -1 for size in node.shape]
                tensors.add(name=node.name, datatype=DATATYPES[node.type][0], shape=shape)
        return metadata

    def ModelInfer(self, request: Any, context: Any) -> Any:
        self._check(request.model_name, context)
        feeds = {}
        for i, node in enumerate(self._session.get_inputs()):
            datatype, dtype = DATATYPES[node.type]
            given: Any = next((t for t in request.inputs if t.name == node.name), None)
            if given is None or given.datatype != datatype:
                found = given.datatype if given else "nothing"
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"input '{node.name}' is {datatype}, not {found}")
            if request.raw_input_contents:
                values = np.frombuffer(request.raw_input_contents[i], dtype)
            else:
                values = np.array(given.contents.fp32_contents or given.contents.uint_contents, dtype)
            feeds[node.name] = values.reshape(tuple(given.shape))
        names = [output.name for output in request.outputs] or [node.name for node in self._session.get_outputs()]
        response = pb.ModelInferResponse(model_name=self._model, model_version="1", id=request.id)
        for name, array in zip(names, self._session.run(names, feeds), strict=True):
            output = response.outputs.add(name=name, datatype="FP32", shape=array.shape)
            if self._typed:
                output.contents.fp32_contents.extend(array.ravel().tolist())
            else:
                response.raw_output_contents.append(array.tobytes())
        return response

    def _check(self, model: str, context: Any) -> None:
        if model != self._model:
            context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model '{model}'")


server = grpc.server(ThreadPoolExecutor(4))
open_inference_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
    Server(arguments.network, arguments.model, arguments.typed), server
)
bound = server.add_insecure_port(f"127.0.0.1:{arguments.port}")
assert "nonn" not in sys.modules
server.start()
print(json.dumps({"address": f"127.0.0.1:{bound}"}), flush=True)
server.wait_for_termination()
