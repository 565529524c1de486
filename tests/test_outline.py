"""Requests that are legal and expensive to parse: refused before that, by the fields that they consist of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from nonn.errors import InputError
from nonn.rpc.codec import Request
from nonn.rpc.outline import MAX_FIELDS, MAX_PARSED_BYTES, check_outline
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import MAX_DIMS, new_request, read_input

SHAPE = (3, 32, 32)
EMPTY_TENSOR = pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor()]).SerializeToString()


def typed(num_values: int) -> bytes:
    request = pb.ModelInferRequest(model_name="nonn")
    tensor = request.inputs.add(name="input", datatype="UINT8", shape=[num_values])
    tensor.contents.uint_contents.extend([1] * num_values)
    return bytes(request.SerializeToString())


@pytest.mark.parametrize("num_tensors", [MAX_FIELDS + 1, 1_000_000])
def test_many_tensors_are_refused_before_they_are_parsed(num_tensors: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nonn.rpc.codec.pb", None)
    with pytest.raises(InputError, match=f"more than {MAX_FIELDS} fields"):
        Request.parse(EMPTY_TENSOR * num_tensors)


@pytest.mark.parametrize("num_values", [MAX_PARSED_BYTES, 4_000_000])
def test_large_typed_contents_are_refused_before_they_are_parsed(
    num_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = typed(num_values)
    monkeypatch.setattr("nonn.rpc.codec.pb", None)
    with pytest.raises(InputError, match="send raw_input_contents"):
        Request.parse(raw)


def test_raw_contents_of_any_size_and_small_typed_ones_are_parsed() -> None:
    batch = np.ones((300, *SHAPE), np.float32)
    request = Request.parse(new_request("nonn", {"input": batch}, {"a": 1}).SerializeToString())
    np.testing.assert_array_equal(request.batch(SHAPE, 300), batch)
    num_values = MAX_PARSED_BYTES - 64
    np.testing.assert_array_equal(Request.parse(typed(num_values)).batch((), num_values), np.ones(num_values, np.uint8))


# All wire types, tags and sizes that are longer than necessary, ends in the middle of a field.
parts = st.one_of(
    st.binary(max_size=4),
    st.sampled_from([b"\x2a\x00", b"\xaa\x00\x00", b"\x3a\x81\x00x", b"\x08\xff\x01", b"\x0d1234", b"\x0912345678"]),
    st.sampled_from([b"\x0b", b"\x0c", b"\x0b\x10\x01\x0c", b"\x3a\xff\xff\xff\xff\x0f", b"\x0f", b"\x0a"]),
)


@given(st.lists(parts, max_size=8).map(b"".join))
def test_protobuf_decides_about_small_messages(raw: bytes) -> None:
    try:
        pb.ModelInferRequest.FromString(raw)
    except DecodeError:
        return
    check_outline(raw)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"name": "x"}, "the model accepts one tensor, 'input'; the request contains 'x'"),
        ({"datatype": "INT64"}, "dtype int64"),
        ({"datatype": "BYTES"}, "unknown datatype"),
        ({"shape": (1, 3, 32, 31)}, "expected [B, 3, 32, 32]"),
        ({"shape": (0, *SHAPE)}, "an empty batch"),
        ({"shape": (9, *SHAPE)}, "9 samples; the limit is 8"),
        # Their product has half a million bits.
        ({"shape": (2**62,) * 7000}, "a shape of 7000 dimensions, expected 4"),
    ],
)
def test_values_are_read_only_if_name_datatype_and_shape_are_right(changes: dict[str, Any], text: str) -> None:
    class Tensor(SimpleNamespace):
        @property
        def contents(self) -> Any:
            raise AssertionError("its values were read")

    good = {"name": "input", "datatype": "FP32", "shape": (8, *SHAPE)}
    assert MAX_DIMS < 7000
    with pytest.raises(InputError) as caught:
        read_input([Tensor(**good | changes)], [], SHAPE, 8)
    assert text in str(caught.value)
    with pytest.raises(AssertionError):
        read_input([Tensor(**good)], [], SHAPE, 8)


def test_further_tensors_are_refused_before_values_are_read() -> None:
    request = new_request("nonn", {"input": np.zeros((1, *SHAPE), np.uint8), "x": np.zeros(1)}, {})
    with pytest.raises(InputError, match="the request contains 'input', 'x'"):
        Request(request).batch(SHAPE, 8)
