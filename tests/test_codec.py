from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.errors import DataLossError, InputError
from nonn.rpc.checksum import model_name, seal
from nonn.rpc.codec import Request, RequestReader, write_request, write_response
from nonn.rpc.envelope import MAX_BYTES, MAX_ENVELOPE_BYTES, MAX_ENVELOPES
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import new_request, read_parameters, read_tensors
from tests.fuzzing import changed

REQUEST = new_request("m", {"input": np.zeros((2, 3), np.float32)}, {"nonn_bundle": "abc", "n": 1}, "7")


def random_array(dtype: Any, shape: Any, seed: Any) -> Any:
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


arrays = st.builds(
    random_array,
    st.sampled_from([np.uint8, np.float32, np.int32, np.float64, np.dtype(">f4"), np.bool_]),
    st.sampled_from([(1, 2, 3), (4, 2, 3), (0, 2, 3), (1, 6), (), (300,)]),
    st.integers(0, 2**32 - 1),
)
tensors = st.dictionaries(st.sampled_from("fla"), arrays, min_size=1)
ids = st.one_of(st.text(max_size=5), st.sampled_from(["7", "10", "\x1a\x01x"]))
parameters = st.dictionaries(
    st.sampled_from(["a", "nonn_bundle"]),
    st.one_of(st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text()),
)


def outcome(read: Any, *arguments: Any) -> Any:
    """What is read, or the error that reading raises, in a form that can be compared."""
    try:
        return comparable(read(*arguments))
    except InputError as exc:
        return str(exc)


def comparable(found: Any) -> Any:
    return {
        name: (a.dtype.newbyteorder("="), a.shape, a.astype(a.dtype.newbyteorder("=")).tobytes())
        for name, a in found.items()
    }


def without_checksum(source: Any) -> Any:
    found = read_parameters(source)
    assert len(str(found.pop("nonn_crc32"))) == 8
    return found


@settings(deadline=None)  # a busy machine is no failure
@given(changed(lambda: copy.deepcopy(REQUEST)))
def test_a_request_has_the_fields_of_the_message_and_is_refused_when_it_is_none(raw: Any) -> None:
    try:
        message = pb.ModelInferRequest.FromString(raw)
    except DecodeError:
        with pytest.raises(DecodeError):
            Request.parse(raw)
        return
    request = Request.parse(raw)
    assert (request.model_name, request.model_version, request.id) == (
        message.model_name,
        message.model_version,
        message.id,
    )
    assert request.outputs == tuple(output.name for output in message.outputs)
    named = "nonn_bundle" in message.parameters
    assert request.bundle == (message.parameters["nonn_bundle"].string_param if named else None)
    assert outcome(request.tensors) == outcome(read_tensors, message.inputs, message.raw_input_contents)


@settings(deadline=None)
@given(tensors, parameters, ids)
def test_a_written_request_is_read_back_and_takes_the_name_put_before_it(arrays: Any, values: Any, id: Any) -> None:
    prefix = pb.ModelInferRequest(model_name="student-3").SerializeToString()
    raw = prefix + write_request(id, arrays, values, ["features"])
    request = Request.parse(raw)
    assert (request.model_name, request.id, request.outputs) == ("student-3", id, ("features",))
    assert comparable(request.tensors()) == comparable(arrays)
    assert without_checksum(pb.ModelInferRequest.FromString(raw).parameters) == values


@settings(deadline=None)
@given(tensors, parameters, ids)
def test_a_written_response_is_read_back(arrays: Any, values: Any, id: Any) -> None:
    request = Request(pb.ModelInferRequest(id=id))
    message = pb.ModelInferResponse.FromString(write_response("model", "v1", request, arrays, values))
    assert (message.model_name, message.model_version, message.id) == ("model", "v1", id)
    assert comparable(read_tensors(message.outputs, message.raw_output_contents)) == comparable(arrays)
    assert without_checksum(message.parameters) == values


def test_raw_values_are_a_view_that_cannot_be_written() -> None:
    array = Request.parse(REQUEST.SerializeToString()).tensors()["input"]
    assert array.base is not None
    assert not array.flags.writeable


def test_a_response_holds_the_outputs_that_were_asked_for_in_their_order() -> None:
    message = pb.ModelInferRequest(id="1")
    for name in ("b", "a"):
        message.outputs.add(name=name)
    outputs = {name: np.full((1,), i, np.uint8) for i, name in enumerate("abc")}
    response = pb.ModelInferResponse.FromString(write_response("m", "v", Request(message), outputs, {}))
    assert [output.name for output in response.outputs] == ["b", "a"]
    assert list(response.raw_output_contents) == [b"\x01", b"\x00"]
    message.outputs.add(name="d")
    with pytest.raises(InputError, match=r"no output 'd'; the model has a, b, c"):
        write_response("m", "v", Request(message), outputs, {})


PREFIX = model_name("m")


def read_by(reader: RequestReader, raw: bytes) -> Any:
    """Every part of a request, or the class of the error."""
    try:
        request = reader.read(raw)
    except (DataLossError, DecodeError) as exc:
        return type(exc)
    parts = request.model_name, request.model_version, request.id, request.bundle, request.outputs, request.caller
    return parts, outcome(request.tensors)


@settings(deadline=None)
@given(changed(lambda: copy.deepcopy(REQUEST)), tensors, parameters, st.tuples(ids, ids))
def test_what_was_read_before_changes_no_request(body: bytes, arrays: Any, values: Any, both: Any) -> None:
    reader = RequestReader("m")
    for raw in [*(PREFIX + write_request(id, arrays, values) for id in both), PREFIX + seal(body), body] * 2:
        assert read_by(reader, raw) == read_by(RequestReader("m"), raw)


@pytest.mark.parametrize(("id", "sealed"), [("", True), ("7", True), ("ü" * 70, True), ("", False)])
def test_no_byte_of_a_known_request_is_taken_for_another_one(id: str, sealed: bool) -> None:
    body = write_request(id, {"input": np.ones((2, 3), np.float32)}, {"nonn_bundle": "abc"}, sealed=False)

    def closed(body: bytes) -> bytes:
        return seal(body) if sealed else body

    raw = PREFIX + closed(body)
    reader = RequestReader("m")
    assert read_by(reader, raw) == read_by(RequestReader("m"), raw)
    for place in range(len(body)):
        for bit in (1, 2, 8, 128):
            altered = PREFIX + closed(body[:place] + bytes([body[place] ^ bit]) + body[place + 1 :])
            assert read_by(reader, altered) == read_by(RequestReader("m"), altered)
            reader.read(raw)


def of_nonn(id: str, values: Any) -> bytes:
    return PREFIX + write_request(id, {"input": values}, {"nonn_bundle": "abc"})


def of_another_client(id: str, values: Any) -> bytes:
    return bytes(new_request("m", {"input": values}, {"nonn_bundle": "abc"}).SerializeToString())


@pytest.mark.parametrize("write", [of_nonn, of_another_client])
def test_a_request_that_repeats_another_one_is_not_parsed(write: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (np.full((2, 3), value, np.float32) for value in (1, 2))
    reader = RequestReader("m")
    reader.read(write("7", first))
    monkeypatch.setattr(Request, "parse", lambda raw: pytest.fail("parsed"))
    request = reader.read(write("8", second))
    assert (request.model_name, request.bundle) == ("m", "abc")
    assert request.id == ("8" if write is of_nonn else "")
    assert comparable(request.tensors()) == comparable({"input": second})
    assert not request.tensors()["input"].flags.writeable


def test_an_envelope_that_ends_within_a_field_is_none() -> None:
    content = np.ones(3, np.uint8).tobytes()
    message = pb.ModelInferRequest(id="7", raw_input_contents=[content])
    message.inputs.add(name="input", datatype="UINT8", shape=[3])

    def with_unknown_field(inside: bytes) -> bytes:
        return PREFIX + seal(message.SerializeToString() + b"\xa2\x06" + bytes([len(inside)]) + inside)

    reader = RequestReader("m")
    for id in ("7", "8"):  # of the id and contents in a field that no server knows
        inside = pb.ModelInferRequest(id=id, raw_input_contents=[content]).SerializeToString()
        assert reader.read(with_unknown_field(inside)).id == "7"


def test_few_and_small_envelopes_are_kept() -> None:
    reader = RequestReader("m")
    for size in range(1, 2 * MAX_ENVELOPES):
        reader.read(PREFIX + write_request("7", {"input": np.ones(size, np.uint8)}, {"a": "b" * (size % 9)}))
    reader.read(PREFIX + write_request("7", {"input": np.ones(MAX_BYTES, np.uint8)}, {}))
    reader.read(PREFIX + write_request("7", {"input": np.ones(1, np.uint8)}, {"a": "b" * MAX_ENVELOPE_BYTES}))
    kept = reader._envelopes._kept
    assert 0 < len(kept) <= MAX_ENVELOPES
    assert max(kept) < MAX_BYTES
    assert max(len(place.start) for place in kept.values()) < MAX_ENVELOPE_BYTES
