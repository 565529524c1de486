from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc import aio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from nonn import errors
from nonn.errors import InputError, NonnError, QuorumError, UnreachableError
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.wire import (
    DTYPES,
    add_tensors,
    check_batch,
    from_status,
    new_request,
    read_parameters,
    read_tensors,
    to_status,
    write_parameters,
)

ROOT = Path(__file__).resolve().parent.parent
TYPED = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

arrays = st.sampled_from(sorted(DTYPES)).flatmap(
    lambda name: npst.arrays(DTYPES[name], npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4))
)


def tensor(datatype: str, shape: list[int], raw: bytes | None = None, **contents: Any) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest()
    request.inputs.add(name="input", datatype=datatype, shape=shape, contents=pb.InferTensorContents(**contents))
    if raw is not None:
        request.raw_input_contents.append(raw)
    return request


def read(request: pb.ModelInferRequest) -> dict[str, np.ndarray]:
    return read_tensors(request.inputs, request.raw_input_contents)


@given(arrays, arrays)
def test_arrays_of_every_datatype_come_back_as_they_were_sent(first: Any, second: Any) -> None:
    sent = pb.ModelInferRequest.FromString(new_request("m", {"a": first, "b": second}, {}).SerializeToString())
    back = read(sent)
    assert list(back) == ["a", "b"]
    for before, after in ((first, back["a"]), (second, back["b"])):
        assert after.dtype == before.dtype
        np.testing.assert_array_equal(after, before)


@given(arrays)
def test_typed_contents_give_the_same_array_as_raw_contents(array: Any) -> None:
    (datatype,) = (name for name, dtype in DTYPES.items() if dtype == array.dtype)
    if datatype == "FP16":
        return  # the protocol has no typed field for it; see below
    typed = read(tensor(datatype, list(array.shape), **{TYPED[datatype]: array.ravel().tolist()}))["input"]
    assert typed.dtype == array.dtype
    np.testing.assert_array_equal(typed, array)


def test_big_endian_and_strided_arrays_are_sent_by_value() -> None:
    array = np.arange(24, dtype=">i4").reshape(4, 6)[::2, ::3].T
    np.testing.assert_array_equal(read(new_request("m", {"input": array}, {}))["input"], array)


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (tensor("FP32", [2, 2], bytes(15)), "'input': 15 bytes of raw contents, but FP32 [2, 2] needs 16"),
        (tensor("FP32", [1 << 62, 1 << 62], b""), "'input': 0 bytes"),
        (tensor("FP33", [1], bytes(4)), "'input': unknown datatype 'FP33'"),
        (tensor("BYTES", [1], bytes(4)), "'input': unknown datatype 'BYTES'"),
        (tensor("FP32", [-1, 4], bytes(16)), "'input': shape [-1, 4] has a negative dimension"),
        (tensor("FP32", [1], bytes(4), fp32_contents=[1.0]), "'input': raw and typed contents are both given"),
        (tensor("BOOL", [2], b"\1\2"), "'input': BOOL contents must be bytes 0 and 1"),
        (tensor("FP32", [3], fp32_contents=[1.0]), "'input': 1 values, but shape [3] needs 3"),
        (tensor("FP32", [1], int_contents=[1]), "'input': FP32 belongs in fp32_contents, not in int_contents"),
        (tensor("FP16", [1], fp32_contents=[1.0]), "'input': FP16 must be sent as raw contents"),
        (tensor("INT8", [1], int_contents=[300]), "'input': values outside INT8 (-128 to 127)"),
        (tensor("UINT8", [1], uint_contents=[256]), "'input': values outside UINT8 (0 to 255)"),
    ],
)
def test_a_malformed_tensor_is_an_error_that_names_it(request_: Any, text: Any) -> None:
    with pytest.raises(InputError) as caught:
        read(request_)
    assert text in str(caught.value)


def test_raw_contents_must_be_given_for_every_tensor_or_none() -> None:
    request = new_request("m", {"a": np.zeros(2), "b": np.zeros(2)}, {})
    del request.raw_input_contents[1]
    with pytest.raises(InputError, match="1 raw contents for 2 tensors"):
        read(request)


def test_a_tensor_given_twice_is_an_error() -> None:
    request = new_request("m", {"a": np.zeros(2)}, {})
    add_tensors(request.inputs, request.raw_input_contents, {"a": np.ones(2)})
    with pytest.raises(InputError, match="'a' is given twice"):
        read(request)


def test_a_dtype_without_a_name_cannot_be_sent() -> None:
    with pytest.raises(InputError, match="'z': dtype complex128"):
        new_request("m", {"z": np.zeros(2, complex)}, {})


@pytest.mark.parametrize(
    ("tensors", "text"),
    [
        ({}, "one tensor, 'input'; the request contains nothing"),
        ({"image": np.zeros((1, 1, 8, 8), np.uint8)}, "the request contains 'image'"),
        ({"input": np.zeros((1, 8, 8), np.uint8)}, "shape [1, 8, 8], expected [B, 1, 8, 8]"),
        ({"input": np.zeros((1, 3, 8, 8), np.uint8)}, "shape [1, 3, 8, 8], expected [B, 1, 8, 8]"),
        ({"input": np.zeros((0, 1, 8, 8), np.uint8)}, "an empty batch"),
        ({"input": np.zeros((1, 1, 8, 8), np.float64)}, "dtype float64; send uint8 (UINT8) or float32 (FP32)"),
        ({"input": np.full((2, 1, 8, 8), [[[[0]]], [[[np.nan]]]], np.float32)}, "NaN or infinity in sample 1 (1 of 2"),
        ({"input": np.full((1, 1, 8, 8), np.inf, np.float32)}, "NaN or infinity in sample 0"),
    ],
)
def test_a_batch_that_does_not_fit_the_model_is_an_error_with_the_expected_input(tensors: Any, text: Any) -> None:
    with pytest.raises(InputError) as caught:
        check_batch(tensors, (1, 8, 8))
    assert text in str(caught.value)


def test_parameters_keep_their_types() -> None:
    message = pb.ModelInferResponse()
    parameters: dict[str, bool | int | float | str] = {"flag": True, "count": 3, "share": 0.5, "name": "x"}
    write_parameters(message.parameters, parameters)
    message.parameters["unset"].SetInParent()
    back = read_parameters(message.parameters)
    assert back == parameters
    assert {name: type(value) for name, value in back.items()} == {n: type(v) for n, v in parameters.items()}


@pytest.mark.parametrize("name", [n for n in errors.__all__ if n != "MissingExtraError"])
def test_every_error_survives_the_way_over_the_wire(name: Any) -> None:
    code, details, trailing = to_status(getattr(errors, name)("the cause"))
    failed = aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details)
    back = from_status(failed, "host:1")
    assert type(back).__name__ == name
    assert str(back) == "host:1: the cause"


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, UnreachableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, UnreachableError),
        (grpc.StatusCode.INVALID_ARGUMENT, InputError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, InputError),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.BundleError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.ConfigError),
        (grpc.StatusCode.INTERNAL, NonnError),
    ],
)
def test_a_foreign_servers_status_becomes_the_nearest_error(code: Any, cls: Any) -> None:
    back = from_status(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), "why"), "host:1")
    assert type(back) is cls
    assert str(back).startswith("host:1: ")


def test_unexpected_errors_are_internal_and_reveal_nothing() -> None:
    code, details, _ = to_status(RuntimeError("secret"))
    assert code is grpc.StatusCode.INTERNAL
    assert "secret" not in details


def test_a_lost_quorum_differs_from_a_lost_server() -> None:
    code, details, trailing = to_status(QuorumError("node-3 is missing"))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(
        from_status(aio.AioRpcError(code, aio.Metadata(), aio.Metadata(*trailing), details), "a:1"), QuorumError
    )


def test_another_copy_of_the_protocol_lives_in_the_same_process(tmp_path: Path) -> None:
    shutil.copy(ROOT / "proto/nonn/rpc/v1/inference.proto", tmp_path / "foreign.proto")
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{tmp_path}", f"--python_out={tmp_path}", "foreign.proto"],
        check=True,
    )
    program = (
        "from nonn.rpc.v1 import inference_pb2 as ours\n"
        "import foreign_pb2 as theirs\n"
        "assert ours.ModelInferRequest is not theirs.ModelInferRequest\n"
        "sent = ours.ModelInferRequest(model_name='nonn', raw_input_contents=[b'12'])\n"
        "assert theirs.ModelInferRequest.FromString(sent.SerializeToString()).raw_input_contents == [b'12']\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, env={"PYTHONPATH": f"{tmp_path}:{ROOT}"})


def make_stubs(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts/make_stubs.py"), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_stubs_fit_the_protocol_files() -> None:
    checked = make_stubs(ROOT, "--check")
    assert checked.returncode == 0, checked.stderr


def test_a_drifted_stub_is_found_named_and_regenerated(tmp_path: Path) -> None:
    for part in ("proto", "scripts", "nonn/rpc"):
        shutil.copytree(ROOT / part, tmp_path / part)
    proto = tmp_path / "proto/nonn/rpc/v1/inference.proto"
    proto.write_text(proto.read_text().replace("bool live = 1;", "bool live = 1; bool well = 2;"))
    drifted = make_stubs(tmp_path, "--check")
    assert drifted.returncode == 1
    assert "nonn/rpc/v1/inference_pb2.py does not match proto/; run: make stubs" in drifted.stderr
    assert make_stubs(tmp_path).returncode == 0
    assert make_stubs(tmp_path, "--check").returncode == 0
