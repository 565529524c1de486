"""One student cut by layers over real nodes, as in MoDNN, next to the same number of students of a bundle.

The rows of every feature map are divided over N node processes. For each convolution the coordinator sends each node
its rows with their neighbours, over the protocol of all nodes here, and joins the rows that come back; batch
normalisation, ReLU, sums and pooling need no neighbours and are done by the coordinator. Then one node is killed while
a request is under way. The same is done to a cluster that serves the bundle: N students, fused.

    python -m benchmarks.modnn                      # examples/bundles/cifar100-small
    python -m benchmarks.modnn --bundle runs/digits/bundle --requests 200

Source: Mao et al., MoDNN, DATE 2017 (one-dimensional partition of each layer). Their nodes are phones on one WLAN, and
the coordinator is one of them. Limits: all processes share this machine's processors and its loopback, so that N nodes
compute no faster than one; the bytes and the rounds per answer are those of N devices, the latency is not. The weights
of the student that is cut are random: they change neither.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import torch
from nonn_sim.deployments import message_bytes
from torch import Tensor, nn
from torch.nn import functional

from nonn.bench.processes import TIMEOUT_S, process
from nonn.bundle import Bundle, load_bundle
from nonn.cluster import LocalCluster
from nonn.files import write_json
from nonn.provenance import code_version, machine
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import INFER_METHOD, add_tensors, new_request, read_tensors
from nonn.students import Student
from nonn.teacher import Normalise

RESULTS = Path(__file__).parent / "results" / "modnn.json"
BUNDLE = Path("examples/bundles/cifar100-small")


def student_of(bundle: Bundle) -> Student:
    """A student as the bundle has them, with weights that are the same in every process."""
    spec, first = bundle.input_of(0), bundle.manifest.students[0]
    config = bundle.manifest.provenance["config"]["student"]
    torch.manual_seed(0)
    return Student(config["model"], spec.shape, first.width, Normalise(spec.mean, spec.std, len(spec.shape) - 1)).eval()


def convolutions(network: nn.Module) -> list[nn.Conv2d]:
    """The layers that are split, in a fixed order."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]


class _Node(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Answers ModelInfer for ``layer-K``: rows [B, C, h, w] with their neighbours → rows [B, C', h', w']."""

    def __init__(self, layers: Sequence[nn.Conv2d]) -> None:
        self._layers, self._handler = layers, grpc.unary_unary_rpc_method_handler(self._answer)

    def service(self, details: Any) -> Any:
        return self._handler

    @torch.inference_mode()
    def _answer(self, body: bytes, context: Any) -> bytes:
        request = pb.ModelInferRequest.FromString(body)
        layer = self._layers[int(request.model_name.removeprefix("layer-"))]
        rows = torch.from_numpy(read_tensors(request.inputs, request.raw_input_contents)["input"].copy())
        made = functional.conv2d(rows, layer.weight, layer.bias, layer.stride, (0, _pair(layer.padding)[1]))
        reply = pb.ModelInferResponse(model_name=request.model_name, id=request.id)
        add_tensors(reply.outputs, reply.raw_output_contents, {"features": made.numpy()})
        return bytes(reply.SerializeToString())


def start(student: Student) -> tuple[Any, str]:
    """A server of the layers of a student, and its address."""
    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers((_Node(convolutions(student)),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, f"127.0.0.1:{port}"


def serve(bundle: Path) -> None:
    """Serves the layers of the student until standard input closes."""
    torch.set_num_threads(1)
    server, address = start(student_of(load_bundle(bundle)))
    print(json.dumps({"event": "ready", "address": address, "pid": os.getpid()}), flush=True)
    while os.read(0, 4096):
        pass
    server.stop(None)


class Split:
    """The coordinator: a student whose convolutions run on nodes.

    Args:
        student: its convolutions are replaced by calls to the nodes.
        addresses: of the nodes [N].

    Attributes:
        num_bytes: of all requests and replies, without the headers of HTTP/2 and TCP.
        messages: number of requests.
        after_layer: called with the number of each layer that is complete.
    """

    def __init__(self, student: Student, addresses: Sequence[str]) -> None:
        self.num_bytes = self.messages = 0
        self.after_layer: Callable[[int], None] = lambda layer: None
        self._student = student
        self._calls = [grpc.insecure_channel(address).unary_unary(INFER_METHOD) for address in addresses]
        for number, layer in enumerate(convolutions(student)):
            layer.forward = self._remote(number, layer)  # type: ignore[method-assign]

    @torch.inference_mode()
    def infer(self, inputs: Tensor) -> Tensor:
        """Features [B, d] of raw inputs [B, C, H, W].

        Raises:
            grpc.RpcError: a node does not answer; then there is no answer at all.
        """
        features: Tensor = self._student(inputs)
        return features

    def _remote(self, number: int, layer: nn.Conv2d) -> Callable[[Tensor], Tensor]:
        kernel, stride, padding = layer.kernel_size[0], layer.stride[0], _pair(layer.padding)[0]

        def forward(maps: Tensor) -> Tensor:
            padded = functional.pad(maps, (0, 0, padding, padding))
            rows = (padded.shape[2] - kernel) // stride + 1
            bands = [band for band in np.array_split(np.arange(rows), len(self._calls)) if len(band)]
            asked = []
            for call, band in zip(self._calls, bands, strict=False):
                part = padded[:, :, band[0] * stride : band[-1] * stride + kernel].contiguous().numpy()
                body = new_request(f"layer-{number}", {"input": part}, {}, id="100000").SerializeToString()
                asked.append(call.future(body, timeout=TIMEOUT_S))
                self.num_bytes += len(body)
            self.messages += len(asked)
            joined = []
            for future in asked:
                body = future.result()
                self.num_bytes += len(body)
                reply = pb.ModelInferResponse.FromString(body)
                joined.append(
                    torch.from_numpy(read_tensors(reply.outputs, reply.raw_output_contents)["features"].copy())
                )
            self.after_layer(number)
            return torch.cat(joined, dim=2)

        return forward


def _pair(padding: Any) -> tuple[int, int]:
    return (padding[0], padding[1])


def measure_split(bundle: Path, samples: Tensor, expected: Tensor, folder: Path) -> dict[str, Any]:
    """Latency, bytes and what is lost of a student cut over as many nodes as the bundle has devices."""
    with contextlib.ExitStack() as stack:
        student = student_of(load_bundle(bundle))
        count = load_bundle(bundle).num_devices
        nodes = [
            stack.enter_context(process(folder, f"layers-{i}", "benchmarks.modnn", "--serve", bundle.resolve()))
            for i in range(count)
        ]
        split, layers = Split(student, [node.address for node in nodes]), len(convolutions(student))
        torch.testing.assert_close(split.infer(samples[:1]), expected[:1], rtol=1e-3, atol=1e-4)
        split.num_bytes = split.messages = 0
        took = [_timed(lambda i=i: split.infer(samples[i : i + 1])) for i in range(len(samples))]
        row = _row(took, split.num_bytes / len(samples), split.messages // len(samples), layers)
        split.after_layer = lambda layer: os.kill(nodes[-1].pid, 9) if layer == layers // 2 else None
        row["lost_in_kill"], row["lost_after"] = _lost(split, samples[:1]), _lost(split, samples[:1])
        return row


def _lost(split: Split, sample: Tensor) -> bool:
    """Whether there is no answer to a request."""
    try:
        split.infer(sample)
    except grpc.RpcError:
        return True
    return False


def measure_students(bundle: Path, samples: Tensor) -> dict[str, Any]:
    """The same of the bundle's students behind an aggregator."""
    loaded, inputs = load_bundle(bundle), samples.numpy().astype(np.uint8)
    devices = loaded.manifest.students
    sizes = [message_bytes(loaded, 1, loaded.input_of(s.device), s.width, s.code.wire) for s in devices]
    with LocalCluster(bundle) as cluster, cluster.client(TIMEOUT_S) as client:
        client.infer(inputs[:1])
        took = [_timed(lambda i=i: client.infer(inputs[i : i + 1])) for i in range(len(inputs))]
        row = _row(took, sum(map(sum, sizes)), len(sizes), 1)
        timer = threading.Timer(statistics.median(took) / 2, cluster.kill, [len(devices) - 1])
        timer.start()
        during = client.infer(inputs[:1])
        timer.join()
        after = client.infer(inputs[:1])
    row["lost_in_kill"], row["lost_after"] = not during.answered.any(), not after.answered.any()
    return row | {"answered_after": int(after.answered.sum()), "expected_accuracy_after": after.expected_accuracy}


def _timed(ask: Callable[[], Any]) -> float:
    start = time.perf_counter()
    ask()
    return time.perf_counter() - start


def _row(took: Sequence[float], num_bytes: float, messages: int, rounds: int) -> dict[str, Any]:
    p50, p95 = (1000 * float(np.quantile(took, q)) for q in (0.5, 0.95))
    return {"p50_ms": p50, "p95_ms": p95, "bytes": round(num_bytes), "messages": messages, "rounds": rounds}


def main() -> int:
    """Measures both and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=BUNDLE)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve)
        return 0
    torch.set_num_threads(1)
    loaded = load_bundle(args.bundle)
    shape = loaded.manifest.input.shape
    samples = torch.randint(0, 256, (args.requests, *shape), generator=torch.Generator().manual_seed(0)).float()
    student = student_of(loaded)
    with torch.inference_mode():
        expected = student(samples[:1])
        took = [_timed(lambda i=i: student(samples[i : i + 1])) for i in range(len(samples))]
    with tempfile.TemporaryDirectory() as folder:
        rows = {
            "layers split": measure_split(args.bundle, samples, expected, Path(folder)),
            "students fused": measure_students(args.bundle, samples),
        }
    alone_ms = 1000 * statistics.median(took)
    found = {"bundle": loaded.manifest.experiment, "nodes": loaded.num_devices, "one_process_p50_ms": alone_ms}
    found |= {"requests": args.requests, "rows": rows, "machine": machine(), "code_version": code_version()}
    write_json(args.out, found)
    json.dump(found["rows"], sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
