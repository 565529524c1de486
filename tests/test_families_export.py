"""Exported students of every family give what torch gives; in 8 bits and in C they give what ONNX Runtime gives."""

from __future__ import annotations

import ctypes
import functools
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from nonn.errors import BundleError
from nonn.export import TOLERANCE, export_onnx, run_onnx
from nonn.export.build import write_source
from nonn.export.c import generate_c
from nonn.export.compiled import TOLERANCE as TOLERANCE_OF_C
from nonn.export.quantise import quantise
from nonn.export.stacked import find_stack
from tests.networks import trained_looking_student

# tests/test_quantise.py and tests/test_compiled.py have wide residual networks.
MODELS = ["se-wrn-10-0.25", "densenet-bc-10-6", "inverted-11-0.5", "se-inverted-11-0.5", "tissue-8-1", "strided-2-1"]
STACKED = "binary-wrn-10-0.375"  # 6, 12 and 24 filters: of two and four channels, and not of four at a time
CASES = [*((model, 2) for model in MODELS), ("densenet-bc-10-4", 1)]


@functools.cache
def _exported(model: str, dims: int) -> tuple[bytes, NDArray[np.float32]]:
    shape = (1, 8, 8) if dims == 2 else (9, 25)
    inputs = np.random.default_rng(0).normal(127, 70, (64, *shape)).astype(np.float32)
    return export_onnx(trained_looking_student(dims, model), shape, inputs[:4]), inputs


@pytest.mark.parametrize(("model", "dims"), [*CASES, ("se-inverted-11-1", 1)])
def test_an_exported_student_gives_what_torch_gives_for_any_batch(model: str, dims: int) -> None:
    data, inputs = _exported(model, dims)
    raw = inputs[:7]
    with torch.no_grad():
        expected = trained_looking_student(dims, model)(torch.from_numpy(raw)).numpy()
    allowed = TOLERANCE * max(1, np.abs(expected).max())
    for batch in (1, 3, 7):
        np.testing.assert_allclose(run_onnx(data, raw, batch), expected, atol=allowed)
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input"]
    assert session.get_inputs()[0].type == "tensor(float)"
    assert [o.name for o in session.get_outputs()] == ["features"]


@functools.cache
def _in_8_bits(model: str, dims: int) -> bytes:
    return quantise(*_exported(model, dims))


@pytest.mark.parametrize(("model", "dims"), CASES)
def test_a_student_in_8_bits_keeps_its_features(model: str, dims: int) -> None:
    data, inputs = _exported(model, dims)
    small = _in_8_bits(model, dims)
    exact = run_onnx(data, inputs)
    assert np.abs(run_onnx(small, inputs) - exact).mean() < 0.06 * np.abs(exact).mean()
    kinds = [node.op_type for node in onnx.load_from_string(small).graph.node]
    # Whatever a runtime would round in its own way is a convolution.
    assert {"BatchNormalization", "AveragePool", "Sum"}.isdisjoint(kinds)


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine")
@pytest.mark.parametrize(
    ("model", "dims", "weights"),
    [
        *((*case, weights) for case in CASES for weights in ("float32", "int8")),
        ("lma-wrn-10-0.25", 2, "float32"),
        ("lma-wrn-10-0.25", 2, "int8"),
        (STACKED, 2, "int8"),
    ],
)
def test_a_student_in_c_gives_what_onnx_runtime_gives(model: str, dims: int, weights: str, tmp_path: Path) -> None:
    data, inputs = _exported(model, dims)
    if weights == "int8":
        data = _in_8_bits(model, dims)
    made, file = generate_c(data, model), str(tmp_path / "student.so")
    # tests/test_compiled.py has -O3, as it is built for nodes: a compiler takes five times as long for it.
    command = ["cc", "-std=c11", "-O1", "-fPIC", "-shared", "-o", file, str(write_source(made, tmp_path)), "-lm"]
    subprocess.run(command, check=True)
    library = ctypes.CDLL(file)
    expected = run_onnx(data, inputs)
    got = np.zeros_like(expected)
    library.nonn_student_batch(
        inputs.ctypes.data_as(ctypes.c_void_p), got.ctypes.data_as(ctypes.c_void_p), ctypes.c_int32(len(inputs))
    )
    assert np.abs(got - expected).mean() <= TOLERANCE_OF_C[weights] * np.abs(expected).mean()
    if weights == "int8" and not model.startswith("se-"):  # translated by nonn: the same integers
        assert "nonn_layer" in made.source
        np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert ("#define NONN_STACKED" in made.source) == (model == STACKED)
    if model.startswith("densenet") and weights == "float32":  # every concatenation is made where its parts are
        assert "_concat(" not in made.source.partition("void student(")[2]


def test_a_multi_segment_activation_is_a_table_in_8_bits_and_other_rounding_is_refused() -> None:
    data, inputs = _exported("lma-wrn-10-0.25", 2)
    graph = onnx.load_from_string(quantise(data, inputs)).graph
    assert [node.op_type for node in graph.node].count("Gather") == 6  # the activations of three blocks
    tables = [tensor for tensor in graph.initializer if list(tensor.dims) == [256]]
    assert len(tables) == 6
    model = onnx.load_from_string(data)
    model.graph.node.append(onnx.helper.make_node("Floor", ["features"], ["rounded"]))
    model.graph.output[0].name = "rounded"
    with pytest.raises(BundleError, match=r"no 8 bits: node .*Floor.*float32"):
        quantise(model.SerializeToString(), inputs)


def test_stacked_filters_are_selectors_and_signs_in_c() -> None:
    data = _in_8_bits(STACKED, 2)
    stored = onnx.load_from_string(data).graph.initializer
    whole = sum(math.prod(tensor.dims) for tensor in stored if tensor.data_type == onnx.TensorProto.INT8)
    constants = re.findall(r"static const u?int8_t \w+\[(\d+)\]", generate_c(data, "stacked").source)
    assert sum(map(int, constants)) < 0.6 * whole

    rng = np.random.default_rng(0)
    bank, chosen = rng.choice([-1, 1], (9, 4, 3, 3)), rng.integers(0, 9, (10, 3))
    weight = (rng.integers(1, 60, (10, 1, 1, 1)) * bank[chosen].reshape(10, 12, 3, 3)).astype(np.int8)
    found = find_stack(weight)
    assert found is not None
    signs = 2 * np.unpackbits(found.bank, axis=1, bitorder="little")[:, :36].astype(int) - 1
    stacked = signs[found.chosen].reshape(10, 3, 9, 4).transpose(0, 1, 3, 2).reshape(weight.shape)
    np.testing.assert_array_equal(found.scale[:, None, None, None] * stacked, weight)
    weight[3, 2] += 1
    assert find_stack(weight) is None


def test_an_operator_that_c_cannot_have_is_named() -> None:
    data, _ = _exported("se-wrn-10-0.25", 2)
    model = onnx.load_from_string(data)
    model.graph.node[2].op_type = "Nonesuch"
    with pytest.raises(BundleError, match=r"student 3: cannot be translated to C .*serve it with ONNX Runtime"):
        generate_c(model.SerializeToString(), "student 3")
