"""A student whose values are in another file is refused, wherever the tensor is in the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nonn.bundle import load_bundle, self_contained, write_bundle
from nonn.bundle.self_contained import check_self_contained
from nonn.errors import BundleError
from tests.serving import run
from tests.toys import linear_student, toy_bundle


def external(name: str = "weight", shape: tuple[int, ...] = (64, 4)) -> TensorProto:
    """A tensor whose values are in the file ``elsewhere``."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "elsewhere"), ("offset", "0"), ("length", str(4 * int(np.prod(shape))))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def model_with(place: str) -> Any:
    """A student with a tensor in another file at a place of the model."""
    model = onnx.ModelProto.FromString(linear_student(np.ones((64, 4), np.float32)))
    graph = model.graph
    if place == "initializer":
        graph.initializer[0].CopyFrom(external())
    elif place == "location only":
        graph.initializer[0].ClearField("raw_data")
        graph.initializer[0].data_location = TensorProto.EXTERNAL
    elif place == "constant":
        graph.node.append(helper.make_node("Constant", [], ["c"], value=external("c")))
    elif place == "list":
        graph.node.append(helper.make_node("X", [], ["c"], values=[numpy_helper.from_array(np.ones(1)), external()]))
    elif place == "subgraph":
        inner = helper.make_graph([], "then", [], [], [external()])
        graph.node.append(helper.make_node("If", ["b"], ["c"], then_branch=inner, else_branch=inner))
    elif place == "sparse":
        graph.sparse_initializer.append(onnx.SparseTensorProto(values=external("v", (1,)), dims=[4]))
    elif place == "function":
        node = helper.make_node("Constant", [], ["c"], value=external("c"))
        model.functions.append(helper.make_function("d", "f", [], ["c"], [node], []))
    else:
        model.training_info.append(onnx.TrainingInfoProto(algorithm=helper.make_graph([], "a", [], [], [external()])))
    return model


PLACES = ("initializer", "location only", "constant", "list", "subgraph", "sparse", "function", "training")


@pytest.mark.parametrize("place", PLACES)
def test_values_in_another_file_are_refused(tmp_path: Path, place: str) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(linear_student(np.ones((64, 4), np.float32)))
    check_self_contained(path)
    path.write_bytes(model_with(place).SerializeToString())
    with pytest.raises(BundleError, match=r"student\.onnx: a tensor has its values in another file, .* external_data"):
        check_self_contained(path)


def test_a_second_graph_that_a_parser_would_merge_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "student.onnx"
    more = onnx.ModelProto(graph=helper.make_graph([], "more", [], [], [external()])).SerializeToString()
    path.write_bytes(linear_student(np.ones((64, 4), np.float32)) + more)
    assert onnx.ModelProto.FromString(path.read_bytes()).graph.initializer[1].external_data
    with pytest.raises(BundleError, match="another file"):
        check_self_contained(path)


@pytest.mark.parametrize("content", [b"", b"no model", b"\x07", b"\x3a\x7f", b"\xff" * 20, b"ORTM" * 9])
def test_what_is_not_onnx_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"student\.onnx: not an ONNX file"):
        check_self_contained(path)


def test_every_way_to_a_tensor_is_walked() -> None:
    """Of the installed version of ONNX: a field that a later version adds has to be added here."""
    tensors = {"TensorProto"}
    seen: dict[str, Any] = {}
    waiting = [onnx.ModelProto.DESCRIPTOR]
    while waiting:
        message = waiting.pop()
        seen[message.name] = message
        waiting += [f.message_type for f in message.fields if f.message_type and f.message_type.name not in seen]
    while True:
        leading = {
            m.name for m in seen.values() if any(f.message_type and f.message_type.name in tensors for f in m.fields)
        }
        if leading <= tensors:
            break
        tensors |= leading
    expected = {
        name: {
            f.number: f.message_type.name
            for f in seen[name].fields
            if f.message_type and f.message_type.name in tensors
        }
        for name in tensors
    }
    assert expected == self_contained.PATHS
    fields = TensorProto.DESCRIPTOR.fields_by_name
    assert fields["external_data"].number == self_contained.EXTERNAL_DATA
    assert fields["data_location"].number == self_contained.DATA_LOCATION


@settings(max_examples=200)
@given(st.data())
def test_no_change_of_bytes_hides_such_a_tensor(tmp_path_factory: pytest.TempPathFactory, data: Any) -> None:
    raw = bytearray(model_with(data.draw(st.sampled_from(PLACES))).SerializeToString())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("fuzz") / "student.onnx"
    path.write_bytes(raw)
    try:
        check_self_contained(path)
    except BundleError:
        return
    try:
        model = onnx.ModelProto.FromString(bytes(raw))
    except Exception:  # the parser's own error has no public base class
        return
    assert b"external_data" not in repr(model).encode()
    assert "data_location: EXTERNAL" not in repr(model)


def test_such_a_bundle_is_not_built_loaded_or_served(tmp_path: Path) -> None:
    good = toy_bundle(tmp_path / "good", num_devices=1)
    arrays = {name: good.arrays(name) for name in good.manifest.files}
    (tmp_path / "elsewhere").write_bytes(bytes(4 * 64 * 4))
    content = model_with("initializer").SerializeToString()
    with pytest.raises(BundleError, match=r"student-0\.onnx: a tensor has its values in another file"):
        write_bundle(tmp_path / "bad", good.manifest, {0: content}, arrays)
    # As an attacker builds it: without nonn, with the right hashes.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nonn.bundle.storage.check_self_contained", lambda path: None)
        bad = write_bundle(tmp_path / "bad", good.manifest, {0: content}, arrays)
    with pytest.raises(BundleError, match="another file"):
        load_bundle(bad.path)
    ended = run("nonn_device", "serve", bad.path, "--student", "0")
    assert (ended.returncode, "a tensor has its values in another file" in ended.stderr) == (3, True)


@pytest.mark.parametrize("end", [b"\x3a\x64\x00", b"\x02\x00", b"\x3a"], ids=["too long", "field 0", "cut"])
def test_what_cannot_be_walked_is_refused(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "student.onnx"
    path.write_bytes(linear_student(np.ones((64, 4), np.float32)) + end)
    with pytest.raises(BundleError, match="not an ONNX file"):
        check_self_contained(path)
