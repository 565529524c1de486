from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.errors import InputError
from nonn.rpc.codec import Request, write_request, write_response
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
