"""Requests and replies that nobody would send on purpose, and what a server must make of each.

``requests`` and ``replies`` are hypothesis strategies: a valid message whose fields are changed, whose bytes are
changed, or just bytes. ``verdict_on_request`` and ``decode`` say what the protocol allows, in lines of their own that
share nothing with the server's: a fuzz test whose oracle is the code under test finds only crashes.
"""

from __future__ import annotations

import contextlib
import math
import queue
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import new_request
from tests.intermediary import Intermediary
from tests.serving import TIMEOUT_S

OK, INVALID_ARGUMENT = grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND, FAILED_PRECONDITION = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION

SERVICE = "inference.GRPCInferenceService"
HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_CHANGES = 4
INTS = st.sampled_from([0, 1, 2, 3, 8, 64, 255, 256, 2**31 - 1, -1, -(2**31)])
LONGS = st.one_of(INTS, st.sampled_from([2**32, 2**61, 2**63 - 1, -(2**63)]))
FLOATS = st.sampled_from([0.0, 1.0, -1.0, 255.0, 1e30, math.nan, math.inf, -math.inf])
STRINGS = st.sampled_from(
    ["", "input", "features", "logits", "nonn", "student-0", "UINT8", "FP32", "BYTES", "INT64", "é", "x" * 300, "\x00"]
)
VALUES: dict[int, st.SearchStrategy[Any]] = {
    FieldDescriptor.CPPTYPE_INT32: INTS,
    FieldDescriptor.CPPTYPE_INT64: LONGS,
    FieldDescriptor.CPPTYPE_UINT32: INTS.map(abs),
    FieldDescriptor.CPPTYPE_UINT64: LONGS.map(abs),
    FieldDescriptor.CPPTYPE_FLOAT: FLOATS,
    FieldDescriptor.CPPTYPE_DOUBLE: FLOATS,
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
}


def _value(draw: Any, field: FieldDescriptor) -> Any:
    if field.type == FieldDescriptor.TYPE_BYTES:
        return draw(st.one_of(st.binary(max_size=80), st.sampled_from([64, 256]).map(bytes)))
    return draw(STRINGS if field.cpp_type == FieldDescriptor.CPPTYPE_STRING else VALUES[field.cpp_type])


def _change_field(draw: Any, message: Message) -> None:
    """Changes one field, or one of a message that is in one."""
    field = draw(st.sampled_from(list(message.DESCRIPTOR.fields)))
    content = getattr(message, field.name)
    is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
    if is_map:
        _change_field(draw, content[draw(st.sampled_from(["nonn_bundle", "x"]))])
    elif field.is_repeated:
        what = draw(st.sampled_from(["clear", "remove", "repeat", "add", "change"]))
        if what == "clear":
            del content[:]
        elif what == "remove" and len(content):
            del content[draw(st.integers(0, len(content) - 1))]
        elif what == "repeat" and len(content):
            content.append(content[draw(st.integers(0, len(content) - 1))])
        elif field.message_type is not None:
            _change_field(draw, content.add() if what == "add" or not len(content) else content[0])
        elif what == "add" or not len(content):
            content.append(_value(draw, field))
        else:
            content[draw(st.integers(0, len(content) - 1))] = _value(draw, field)
    elif field.message_type is not None:
        _change_field(draw, content)
    else:
        setattr(message, field.name, _value(draw, field))


def _change_bytes(draw: Any, raw: bytes) -> bytes:
    """Changes bytes, or where they are. What is drawn does not depend on how many there are: ids grow."""
    at, length = draw(st.integers(0, 2**16)) % (len(raw) + 1), draw(st.integers(1, 12))
    what = draw(st.sampled_from(["flip", "insert", "delete", "cut", "repeat"]))
    if what == "flip":
        flipped = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in raw[at : at + 1] or b"\0")
        return raw[:at] + flipped + raw[at + 1 :]
    if what == "insert":
        inserted: bytes = draw(st.binary(max_size=12))
        return raw[:at] + inserted + raw[at:]
    if what == "delete":
        return raw[:at] + raw[at + length :]
    if what == "repeat":
        return raw[:at] + raw[at : at + length] + raw[at:]
    return raw[:at]


@st.composite
def changed(draw: Any, valid: Callable[[], Message]) -> bytes:
    """A valid message with up to a few changes of fields, of bytes, or of both; or only bytes."""
    how = draw(st.sampled_from(["fields", "fields", "bytes", "both", "noise"]))
    if how == "noise":
        noise: bytes = draw(st.binary(max_size=200))
        return noise
    message = valid()
    if how != "bytes":
        for _ in range(draw(st.integers(0, MAX_CHANGES))):
            _change_field(draw, message)
    raw: bytes = message.SerializeToString()
    if how != "fields":
        for _ in range(draw(st.integers(1, MAX_CHANGES))):
            raw = _change_bytes(draw, raw)
    return raw


def requests(model: str, inputs: Any, bundle_hash: str) -> st.SearchStrategy[bytes]:
    """Requests for an inference, most of them wrong."""

    def valid() -> Message:
        request: Message = new_request(model, {"input": inputs}, {"nonn_bundle": bundle_hash}, "7")
        return request

    def of_another_bundle() -> Message:
        request: Message = new_request(model, {"input": inputs}, {"nonn_bundle": bundle_hash[::-1]}, "7")
        return request

    def valid_typed() -> Message:
        request = pb.ModelInferRequest(model_name=model)
        tensor = request.inputs.add(name="input", datatype="FP32", shape=inputs.shape)
        tensor.contents.fp32_contents.extend(inputs.ravel().tolist())
        return request

    return st.one_of(changed(valid), changed(valid_typed), changed(of_another_bundle))


# Datatype: bytes of a value, how the standard library reads it, and the field of typed values.
_LAYOUT = {
    "BOOL": ("?", "bool_contents"),
    "UINT8": ("B", "uint_contents"),
    "UINT16": ("H", "uint_contents"),
    "UINT32": ("I", "uint_contents"),
    "UINT64": ("Q", "uint64_contents"),
    "INT8": ("b", "int_contents"),
    "INT16": ("h", "int_contents"),
    "INT32": ("i", "int_contents"),
    "INT64": ("q", "int64_contents"),
    "FP16": ("e", None),
    "FP32": ("f", "fp32_contents"),
    "FP64": ("d", "fp64_contents"),
}


class WrongError(Exception):
    """The protocol does not allow this."""


def decode(descriptors: Any, raws: Any) -> dict[str, tuple[str, tuple[int, ...], list[Any]]]:
    """Datatype, shape and values of each tensor, by name.

    Raises:
        WrongError: the tensors contradict themselves.
    """
    if raws and len(raws) != len(descriptors):
        raise WrongError("number of raw contents")
    found = {}
    for i, tensor in enumerate(descriptors):
        if tensor.datatype not in _LAYOUT or tensor.name in found or min(tensor.shape, default=0) < 0:
            raise WrongError("datatype, name or shape")
        code, field = _LAYOUT[tensor.datatype]
        size = math.prod(tensor.shape)
        typed = {f.name: list(v) for f, v in tensor.contents.ListFields()}
        if raws:
            if typed or len(raws[i]) != size * struct.calcsize("<" + code):
                raise WrongError("raw contents")
            if code == "?" and set(raws[i]) - {0, 1}:
                raise WrongError("no truth value")
            values = [v for (v,) in struct.iter_unpack("<" + code, raws[i])]
        else:
            values = typed.pop(field, []) if field else []
            if typed or len(values) != size:
                raise WrongError("typed contents")
            try:
                struct.pack(f"<{size}{code}", *values)
            except struct.error:
                raise WrongError("outside its type") from None
        found[tensor.name] = (tensor.datatype, tuple(tensor.shape), values)
    return found


@dataclass(frozen=True)
class Verdict:
    """What a server must answer: the status, and for OK the batch that it must compute from."""

    code: grpc.StatusCode
    batch: Any = None
    outputs: tuple[str, ...] = ()


def verdict_on_request(raw: bytes, model: str, version: str, outputs: tuple[str, ...], bundle: Bundle) -> Verdict:
    """What the one model of a server must make of a request."""
    try:
        request = pb.ModelInferRequest.FromString(raw)
    except DecodeError:
        return Verdict(INVALID_ARGUMENT)
    if request.model_name != model or request.model_version not in ("", version):
        return Verdict(NOT_FOUND)
    wanted = request.parameters.get("nonn_bundle")
    if wanted is not None and wanted.string_param != bundle.hash:
        return Verdict(FAILED_PRECONDITION if wanted.string_param else INVALID_ARGUMENT)
    shape = bundle.manifest.input.shape
    try:
        tensors = decode(request.inputs, request.raw_input_contents)
        if set(tensors) != {"input"}:
            raise WrongError("other tensors")
        datatype, given, values = tensors["input"]
        if datatype not in ("UINT8", "FP32") or given[1:] != shape or not given or not given[0]:
            raise WrongError("shape or datatype")
        if not all(map(math.isfinite, values)):
            raise WrongError("not finite")
        asked = tuple(dict.fromkeys(output.name for output in request.outputs)) or outputs
        if set(asked) - set(outputs):
            raise WrongError("unknown output")
    except WrongError:
        return Verdict(INVALID_ARGUMENT)
    return Verdict(OK, np.array(values, np.float32).reshape(given), asked)


def features_of_reply(raw: bytes, request: Any, bundle: Bundle, width: int) -> Any:
    """The features that a node's reply to a request holds; None if it must not be fused."""
    try:
        response = pb.ModelInferResponse.FromString(raw)
    except DecodeError:
        return None
    of = response.parameters.get("nonn_bundle")
    if of is None or of.WhichOneof("parameter_choice") != "string_param" or of.string_param != bundle.hash:
        return None
    if response.id != request.id:
        return None
    try:
        tensors = decode(response.outputs, response.raw_output_contents)
    except WrongError:
        return None
    datatype, shape, values = tensors.get("features", ("", (), []))
    if datatype != "FP32" or shape != (request.inputs[0].shape[0], width) or not all(map(math.isfinite, values)):
        return None
    return np.array(values, np.float32).reshape(shape)


def examples(count: int, number: int) -> Callable[[Any], Any]:
    """Runs a hypothesis test with this many examples of this seed, whatever the machine is doing."""
    plain = settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return lambda test: plain(seed(number)(test))


@dataclass(frozen=True)
class Server:
    """A server under fire, and how to work out what it should answer.

    Attributes:
        address: ``host:port``.
        model: its model.
        outputs: of the model, the one to compare first.
        bundle: that it serves.
        answer: the first output for a batch, computed here.
    """

    address: str
    model: str
    outputs: tuple[str, ...]
    bundle: Bundle
    answer: Callable[[Any], Any]


def fuzz_requests(server: Server, inputs: Any, count: int, number: int) -> Counter[str]:
    """Sends requests, most of them wrong, and checks the status of each and the values of each that is answered.

    Returns:
        How often each status came.
    """
    seen: Counter[str] = Counter()
    version = server.bundle.hash[:12]
    with grpc.insecure_channel(server.address) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer")

        @examples(count, number)
        @given(requests(server.model, inputs, server.bundle.hash))
        def one(raw: bytes) -> None:
            verdict = verdict_on_request(raw, server.model, version, server.outputs, server.bundle)
            try:
                reply, code, details = call(raw, timeout=TIMEOUT_S), OK, ""
            except grpc.RpcError as exc:
                reply, code, details = b"", exc.code(), exc.details()
            seen[code.name] += 1
            assert code is verdict.code, (code, verdict.code)
            assert details or code is OK
            if code is OK:
                response = pb.ModelInferResponse.FromString(reply)
                tensors = decode(response.outputs, response.raw_output_contents)
                assert tuple(tensors) == verdict.outputs
                if server.outputs[0] in tensors:
                    _, shape, values = tensors[server.outputs[0]]
                    expected = server.answer(verdict.batch)
                    np.testing.assert_allclose(np.reshape(values, shape), expected, rtol=1e-3, atol=1e-3)

        one()
    return seen


def fuzz_connections(address: str, count: int, number: int) -> None:
    """Opens connections and sends bytes that are no HTTP/2, or that stop being it after a while."""
    rng, (host, _, port) = random.Random(number), address.rpartition(":")
    settings_frame = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    headers_frame = bytes([0, 0, 40, 1, 4, 0, 0, 0, 1])
    starts = (b"", HTTP2_PREFACE, HTTP2_PREFACE + settings_frame, HTTP2_PREFACE + settings_frame + headers_frame)
    held: list[socket.socket] = []  # some connections stay open and say no more
    try:
        for _ in range(count):
            connection = socket.create_connection((host, int(port)), TIMEOUT_S)
            with contextlib.suppress(OSError):  # it may hang up in the middle of our sentence
                connection.sendall(rng.choice(starts) + rng.randbytes(rng.randrange(2000)))
            if rng.random() < 0.1 and len(held) < 50:
                held.append(connection)
            else:
                connection.close()
    finally:
        for connection in held:
            connection.close()


class LyingNode(Intermediary):
    """Stands before a real node and answers what it is told to, once; otherwise what the node answers.

    Probes, whose inputs are all zero, are always answered honestly.

    Attributes:
        address: ``host:port``.
        asked: requests that wait for a lie, each with the honest reply.
        lies: what to answer them: bytes, or a status and its details.
    """

    def __init__(self, honest: str) -> None:
        self.asked: queue.Queue[tuple[Any, bytes]] = queue.Queue()
        self.lies: queue.Queue[bytes | tuple[grpc.StatusCode, str]] = queue.Queue()
        self.lying = False
        super().__init__(honest)

    def infer(self, raw: bytes, context: Any) -> bytes:
        request = pb.ModelInferRequest.FromString(raw)
        honest = super().infer(raw, context)
        if not self.lying or not any(request.raw_input_contents[0]):
            return honest
        self.asked.put((request, honest))
        lie = self.lies.get(timeout=TIMEOUT_S)
        if isinstance(lie, bytes):
            return lie
        context.abort(*lie)
        raise AssertionError("abort raises")


def fuzz_replies(client: Client, liar: LyingNode, bundle: Bundle, inputs: Any, count: int, number: int) -> Counter[str]:
    """Has node 0 lie to an aggregator, and checks that no lie is fused and that the truth after it is.

    Returns:
        How many replies were fused (changed, but valid) and how many refused.
    """
    features = bundle.features[0]
    seen: Counter[str] = Counter()
    everybody = (1 << bundle.num_devices) - 1
    row = slice(1)

    def check(answer: Answer, of_liar: Any) -> None:
        assert answer.mask == (everybody & ~1 if of_liar is None else everybody), answer.failures
        arrived = {i: f[row] for i, f in enumerate(features)} | {0: of_liar}
        expected = bundle.head.logits({i: f for i, f in arrived.items() if f is not None})
        np.testing.assert_allclose(answer.logits, expected, rtol=1e-3, atol=1e-3)

    with ThreadPoolExecutor(1) as client_thread:

        @examples(count, number)
        @given(st.data())
        def one(data: st.DataObject) -> None:
            liar.lying = True
            waiting = client_thread.submit(client.infer, inputs[row])
            request, honest = liar.asked.get(timeout=TIMEOUT_S)
            lie = b""
            try:
                lie = data.draw(changed(lambda: pb.ModelInferResponse.FromString(honest)))
            finally:  # hypothesis may give up an example in the middle of it, and two lies in a row end the asking
                liar.lies.put(lie)
                after_lie = waiting.result(TIMEOUT_S)
                liar.lying = False
                after_truth = client.infer(inputs[row])
            of_liar = features_of_reply(lie, request, bundle, bundle.manifest.students[0].width)
            seen["refused" if of_liar is None else "fused"] += 1
            check(after_lie, of_liar)
            if of_liar is None:
                assert after_lie.failures["node-0"].startswith("bad reply")
            check(after_truth, features[0][row])

        one()
    return seen
