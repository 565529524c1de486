"""Networks as C: what cannot or must not be translated, and the memory of what can."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from nonn.errors import BundleError, MissingExtraError
from nonn.export.c import generate_c
from tests.serving import TIMEOUT_S
from tests.toys import toy_bundle

MAIN_C = Path(__file__).parent.parent / "devices/c/main.c"
CODE = "*/ int evil = 1; /*"


def network(
    nodes: Sequence[onnx.NodeProto], weights: Sequence[TensorProto], shape: Sequence[int | str], width: int = 2
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def compiled(nodes: Sequence[onnx.NodeProto], weights: Sequence[TensorProto], shape: Sequence[int | str]) -> None:
    generate_c(network(nodes, weights, shape).SerializeToString(), "toy, student 7")


def test_an_untranslatable_student_is_an_error_with_its_name() -> None:
    weight = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    product = helper.make_node("MatMul", ["input", "w"], ["features"])
    compiled([product], [weight], ["batch", 4])
    with pytest.raises(BundleError, match=r"toy, student 7: only the batch may vary.*\[1, 0\]"):
        compiled([product], [weight], ["batch", "length"])
    foreign = helper.make_node("FutureOperator", ["input", "w"], ["features"])
    with pytest.raises(BundleError, match="toy, student 7: cannot be translated to C"):
        compiled([foreign], [weight], ["batch", 4])


def test_names_that_could_be_code_in_c_are_refused_and_descriptions_are_left_out() -> None:
    weight = numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")
    model = network([helper.make_node("MatMul", ["input", "w"], ["features"])], [weight], ["batch", 4])
    helper.set_model_props(model, {CODE: CODE})
    model.doc_string = model.graph.doc_string = model.graph.node[0].doc_string = CODE
    assert "evil" not in generate_c(model.SerializeToString(), "toy, student 7").source
    for place in ("producer_name", "domain", "graph.name", "graph.node.name", "graph.input.name"):
        spoiled, *path, last = onnx.ModelProto(), *place.split(".")
        spoiled.CopyFrom(model)
        inner = spoiled
        for name in path:
            inner = getattr(inner, name)
            inner = inner if name == "graph" else inner[0]
        setattr(inner, last, CODE)
        with pytest.raises(BundleError, match=rf"toy, student 7: {last} .*int evil.* could be code in C"):
            generate_c(spoiled.SerializeToString(), "toy, student 7")
    model.graph.node[0].attribute.append(helper.make_attribute("note", ["fine", CODE]))
    with pytest.raises(BundleError, match=r"toy, student 7: strings .* could be code in C"):
        generate_c(model.SerializeToString(), "toy, student 7")


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this machine: apt-get install gcc libc6-dev")
def test_buffers_are_shared_only_by_what_does_not_live_at_once(tmp_path: Path) -> None:
    """Chains of residual sums: a wrong plan overwrites what is still needed, a wasteful one shares nothing."""
    rng, nodes, last = np.random.default_rng(0), [], ["input"]
    weights = [numpy_helper.from_array(rng.normal(size=(16, 16)).astype(np.float32), f"w{i}") for i in range(12)]
    for i in range(12):
        nodes.append(helper.make_node("MatMul", [last[-1], f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Add", [f"m{i}", last[max(0, len(last) - 1 - i % 4)]], [f"s{i}"]))
        last.append(f"s{i}")
    nodes[-1].output[0] = "features"
    made = generate_c(network(nodes, weights, ["batch", 16], 16).SerializeToString(), "chain")
    assert 4 * 16 * 2 <= made.arena_bytes <= 4 * 16 * 6 < 4 * 16 * 23
    values: dict[str, NDArray[np.float32]] = {"input": rng.normal(size=(1, 16)).astype(np.float32)}
    for weight in weights:
        values[weight.name] = numpy_helper.to_array(weight)
    for node in nodes:
        first, second = (values[name] for name in node.input)
        values[node.output[0]] = first @ second if node.op_type == "MatMul" else first + second
    (tmp_path / "student.c").write_text(made.source)
    (tmp_path / "student.h").write_text(made.header)
    program = tmp_path / "program"
    subprocess.run(["cc", "-O2", f"-I{tmp_path}", MAIN_C, tmp_path / "student.c", "-lm", "-o", program], check=True)
    done = subprocess.run(
        [program], input=values["input"].tobytes(), capture_output=True, check=True, timeout=TIMEOUT_S
    )
    got = np.frombuffer(done.stdout, np.float32).reshape(1, -1)
    np.testing.assert_allclose(got, values["features"], rtol=1e-4, atol=1e-2)


def test_without_the_extra_the_message_has_the_command_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "emx_onnx_cgen"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "emx_onnx_cgen", None)
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    with pytest.raises(MissingExtraError, match=r"pip install 'nonn\[c\]'"):
        generate_c(bundle.student_path(0).read_bytes(), "toy")
