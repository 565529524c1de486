from __future__ import annotations

import copy

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from nonn.errors import InputError
from nonn.rpc.codec import RequestReader, RequestWriter, ResponseWriter
from nonn.rpc.template import REMEMBERED, Template, Templates, field
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import add_tensors, new_request, read_parameters, read_tensors, write_parameters
from tests.fuzzing import changed

RAW = "raw_input_contents"
REQUEST = new_request("m", {"input": np.zeros((2, 3), np.float32)}, {"nonn_bundle": "abc", "n": 1}, "7")


def random_array(dtype, shape, seed):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(dtype)


arrays = st.builds(
    random_array,
    st.sampled_from([np.uint8, np.float32, np.int32, np.float64, np.dtype(">f4"), np.bool_]),
    st.sampled_from([(1, 2, 3), (4, 2, 3), (0, 2, 3), (1, 6), (), (300,)]),
    st.integers(0, 2**32 - 1),
)
ids = st.one_of(st.text(max_size=5), st.sampled_from(["7", "8", "10", "\x1a\x01x"]))
parameters = st.dictionaries(
    st.sampled_from(["a", "nonn_bundle"]),
    st.one_of(st.booleans(), st.integers(-5, 5), st.floats(allow_nan=False), st.text()),
)


def outcome(read, *arguments):
    """What is read, or the error that reading raises, in a form that can be compared."""
    try:
        return {name: (array.dtype, array.shape, array.tobytes()) for name, array in read(*arguments).items()}
    except InputError as exc:
        return str(exc)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.tuples(changed(lambda: copy.deepcopy(REQUEST)), st.integers())))
def test_a_reader_that_remembers_reads_and_refuses_what_the_parser_does(messages):
    reader = RequestReader()
    for raw, seed in messages:
        try:
            message = pb.ModelInferRequest.FromString(raw)
        except DecodeError:
            with pytest.raises(DecodeError):
                reader(raw)
            continue
        for _ in range(2):  # now it is known
            request = reader(raw)
            assert (request.model_name, request.model_version) == (message.model_name, message.model_version)
            assert request.id == message.id.encode()
            assert request.outputs == tuple(output.name for output in message.outputs)
            named = "nonn_bundle" in message.parameters
            assert request.bundle == (message.parameters["nonn_bundle"].string_param if named else None)
            assert outcome(request.tensors) == outcome(read_tensors, message.inputs, message.raw_input_contents)
            # And another one like it, with other values.
            if len(message.raw_input_contents) == 1:
                size = len(message.raw_input_contents[0])
                message.raw_input_contents[0] = np.random.default_rng(abs(seed)).bytes(size)
                message.id = "".join(reversed(message.id))
                raw = message.SerializeToString()


@settings(deadline=None)
@given(st.lists(st.tuples(ids, arrays, st.sampled_from(["id first", "id last", "id twice", "in an unknown field"]))))
def test_templates_never_mistake_one_message_for_another(cases):
    known: Templates[str] = Templates(RAW)
    for id, array, layout in cases:
        message = new_request("model", {"input": array}, {"nonn_bundle": "abc"}, id)
        values = message.raw_input_contents[0]
        if layout == "id first":
            raw = message.SerializeToString()
        else:
            message.id = ""
            raw = message.SerializeToString() + field(3, id.encode())
        if layout == "id twice":
            raw = field(3, id.encode()) + raw
        elif layout == "in an unknown field":
            raw = field(15, field(7, values) + field(3, id.encode())) + raw
        message = pb.ModelInferRequest.FromString(raw)
        found = known.find(raw)
        if found is not None:
            template, name = found
            assert name == message.model_name
            assert (raw[template.id].decode(), raw[template.values]) == (message.id, message.raw_input_contents[0])
        known.learn(raw, message, message.model_name)
        assert (values and message.id.isascii()) or Template.of(raw, message, RAW) is None


def test_a_message_like_one_before_is_not_parsed_again(monkeypatch):
    reader = RequestReader()
    first, second = (
        new_request("m", {"input": np.full((2, 3), value, np.uint8)}, {"nonn_bundle": "abc"}, id)
        for value, id in ((1, "7"), (2, "8"))
    )
    assert (reader(first.SerializeToString()).tensors()["input"] == 1).all()
    raw = second.SerializeToString()
    monkeypatch.setattr("nonn.rpc.codec.pb", None)
    request = reader(raw)
    assert request.id == b"8"
    np.testing.assert_array_equal(request.tensors()["input"], np.full((2, 3), 2, np.uint8))
    assert not request.tensors()["input"].flags.writeable


@pytest.mark.parametrize("change", [("model_name", "n"), ("model_version", "7"), ("id", "é")])
def test_another_message_of_the_same_length_is_parsed(change):
    templates: Templates[None] = Templates(RAW)
    raw = REQUEST.SerializeToString()
    templates.learn(raw, REQUEST, None)
    assert templates.find(raw)
    other = pb.ModelInferRequest.FromString(raw)
    other.model_version = "77"[: len(change[1].encode()) - len(str(getattr(other, change[0])).encode())]
    setattr(other, *change)
    assert not templates.find(other.SerializeToString())


@settings(deadline=None)
@given(st.lists(st.tuples(st.dictionaries(st.sampled_from("fla"), arrays, min_size=1), parameters, ids), max_size=6))
def test_a_written_message_says_what_protobuf_alone_would(cases):
    write_response, write_request = ResponseWriter("model", "v1"), RequestWriter(["features"])
    for tensors, values, id in cases:
        expected = pb.ModelInferResponse(model_name="model", model_version="v1", id=id)
        add_tensors(expected.outputs, expected.raw_output_contents, tensors)
        write_parameters(expected.parameters, values)
        request = RequestReader()(pb.ModelInferRequest(id=id).SerializeToString())
        same(pb.ModelInferResponse.FromString(write_response(request, tensors, values)), expected)
        expected = new_request("", tensors, values, id)
        expected.outputs.add(name="features")
        same(pb.ModelInferRequest.FromString(write_request.write(id.encode(), tensors, values)), expected)


def same(message, expected):
    # Equal parameters are equal messages too, but for the type of numbers: True == 1.
    assert read_parameters(message.parameters) == read_parameters(expected.parameters)
    message.ClearField("parameters")
    expected.ClearField("parameters")
    assert message == expected


def test_a_response_holds_the_outputs_that_were_asked_for_in_their_order():
    write = ResponseWriter("m", "v")
    request = pb.ModelInferRequest(id="1")
    for name in ("b", "a"):
        request.outputs.add(name=name)
    outputs = {name: np.full((1,), i, np.uint8) for i, name in enumerate("abc")}
    response = pb.ModelInferResponse.FromString(write(RequestReader()(request.SerializeToString()), outputs, {}))
    assert [output.name for output in response.outputs] == ["b", "a"]
    assert list(response.raw_output_contents) == [b"\x01", b"\x00"]
    request.outputs.add(name="d")
    with pytest.raises(InputError, match=r"no output 'd'; the model has a, b, c"):
        write(RequestReader()(request.SerializeToString()), outputs, {})


def test_what_reader_and_writer_remember_is_bounded():
    reader, write = RequestReader(), ResponseWriter("m", "v")
    for i in range(1, 2 * REMEMBERED):
        request = reader(new_request("m", {"input": np.zeros((i, 1), np.uint8)}, {}).SerializeToString())
        request.tensors()
        write(request, {"features": np.zeros((i, 1), np.float32)}, {"n": i})
    assert 0 < len(reader._known) <= REMEMBERED
    assert 0 < len(write._heads) <= REMEMBERED
