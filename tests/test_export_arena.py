from __future__ import annotations

from importlib.metadata import version
from types import ModuleType

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from nonn.errors import BundleError
from nonn.export.arena import Buffer, UnexpectedCodeError, parse_entry, plan, share_buffers
from nonn.export.c import generate_c

CODE = """static void helper(void) {
}

void student(const float input[restrict 1][4], float features[restrict 1][2]) {
    float tmp0[1][4];
    float tmp1[4];
    uint8_t tmp2[2][2];
    node0(input, tmp0);
    node1(tmp0, tmp1);
    node2(tmp1, tmp2);
    node3(tmp2, features);
}
/* end */
"""


def test_an_entry_function_is_read_into_its_parts() -> None:
    entry = parse_entry(CODE, "student")
    assert entry.before == "static void helper(void) {\n}\n\n"
    assert entry.signature == "void student(const float input[restrict 1][4], float features[restrict 1][2]) {"
    assert entry.buffers == (
        Buffer("float", "tmp0", (1, 4)),
        Buffer("float", "tmp1", (4,)),
        Buffer("uint8_t", "tmp2", (2, 2)),
    )
    assert entry.calls == ("node0(input, tmp0);", "node1(tmp0, tmp1);", "node2(tmp1, tmp2);", "node3(tmp2, features);")
    assert entry.after == "\n/* end */\n"


def test_arrays_become_pointers_into_one_arena_per_type() -> None:
    code, num_bytes = share_buffers(CODE, "student")
    assert num_bytes == 4 * 8 + 4
    for line in (
        "static float nonn_arena_float[8];",
        "static uint8_t nonn_arena_uint8_t[4];",
        "    float (*const tmp0)[4] = (float (*)[4])(nonn_arena_float + 0);",
        "    float *const tmp1 = (nonn_arena_float + 4);",
        "    uint8_t (*const tmp2)[2] = (uint8_t (*)[2])(nonn_arena_uint8_t + 0);",
        "    node1(tmp0, tmp1);",
        "/* end */",
    ):
        assert line in code.split("\n")


@pytest.mark.parametrize(
    ("old", "new", "text"),
    [
        ("void student(", "int student(", "no function"),
        ("static void helper(void) {", "void student(void) {", "several functions"),
        ("4], float features", "4],\n    float features", "not one line"),
        ("}\n/* end */", "/* end */", "does not end"),
        ("    float tmp1[4];", "    static float tmp1[4];", "'static float tmp1[4];'"),
        ("    float tmp1[4];", "    float *tmp1 = malloc(sizeof(*tmp1) * 4);", "malloc"),
        ("    float tmp1[4];", "    float tmp1[n];", "'float tmp1[n];'"),
        ("    float tmp1[4];", "    half tmp1[4];", "'half tmp1[4];'"),
        ("    node1(tmp0, tmp1);", "    if (x) node1(tmp0, tmp1);", "'if (x) node1(tmp0, tmp1);'"),
        ("    node1(tmp0, tmp1);", "    node1(tmp0, tmp1);\n    float tmp9[4];", "'float tmp9[4];'"),
    ],
)
def test_code_of_another_shape_is_refused(old: str, new: str, text: str) -> None:
    assert old in CODE
    with pytest.raises(UnexpectedCodeError) as caught:
        share_buffers("\n" + CODE.replace(old, new, 1), "student")
    assert text in str(caught.value)


programs = st.lists(
    st.tuples(
        st.sampled_from(["float", "uint8_t", "int32_t"]), st.integers(1, 100), st.integers(0, 9), st.integers(0, 9)
    ),
    max_size=8,
)


@given(programs)
def test_buffers_that_live_at_once_never_overlap(program: list[tuple[str, int, int, int]]) -> None:
    calls: list[list[str]] = [[] for _ in range(10)]
    buffers = []
    for number, (kind, size, one, other) in enumerate(program):
        buffers.append(Buffer(kind, f"t{number}", (size,)))
        for call in {one, other}:
            calls[call].append(f"t{number}")
    placed = plan(buffers, [f"f({', '.join(call)});" for call in calls])
    lives = [(kind, min(one, other), max(one, other)) for kind, _, one, other in program]
    for number, buffer in enumerate(buffers):
        start = placed.offsets[buffer.name]
        assert 0 <= start <= placed.sizes[buffer.type] - buffer.size
        for earlier in range(number):
            (kind, first, last), (other_kind, other_first, other_last) = lives[number], lives[earlier]
            if kind == other_kind and first <= other_last and other_first <= last:
                low, high = sorted((number, earlier), key=lambda i: placed.offsets[f"t{i}"])
                assert placed.offsets[f"t{low}"] + buffers[low].size <= placed.offsets[f"t{high}"]


def test_parts_of_a_concatenation_lie_next_to_each_other_and_nothing_is_copied() -> None:
    """As a dense block has them: each concatenation begins with all of the one before it."""
    sizes = {"x": 4, "n1": 2, "n2": 3, "j1": 6, "j2": 9, "out": 9}
    buffers = [Buffer("float", name, (1, size, 5)) for name, size in sizes.items()]
    calls = [
        "node0_conv(input, x);",
        "node1_conv(x, n1);",
        "node2_concat(x, n1, j1);",
        "node3_conv(j1, n2);",
        "node4_concat(x, n1, n2, j2);",
        "node5_relu(j2, out);",
        "node6_mean(x, features);",
    ]
    placed = plan(buffers, calls)
    at = placed.offsets
    assert placed.calls == tuple(call for call in calls if "concat" not in call)
    assert (at["n1"] - at["x"], at["n2"] - at["x"], at["j1"] - at["x"], at["j2"] - at["x"]) == (20, 30, 0, 0)
    assert abs(at["out"] - at["x"]) >= 45


@pytest.mark.parametrize(
    "calls",
    [
        pytest.param(["node0_concat(a, b, two);", "node1_concat(a, c, other);"], id="two neighbours in one place"),
        pytest.param(["node0_concat(a, b, two);", "node1_concat(b, a, other);"], id="another order"),
        pytest.param(["node0_concat(a, b, two);", "node1_concat(c, c, other);"], id="one part twice"),
        pytest.param(["node0_concat(a, b, two);", "node1_concat(c, weight, other);"], id="a constant"),
        pytest.param(["node0_concat(a, b, two);", "node1_concat(wide, c, other);"], id="along another axis"),
    ],
)
def test_a_concatenation_that_cannot_be_placed_is_copied(calls: list[str]) -> None:
    dims = {"two": (1, 4, 3), "other": (1, 4, 3), "wide": (1, 1, 6)}
    buffers = [Buffer("float", name, dims.get(name, (1, 2, 3))) for name in ("a", "b", "c", "two", "other", "wide")]
    placed = plan(buffers, calls)
    assert placed.calls == (calls[1],)
    assert placed.offsets["b"] - placed.offsets["a"] == 6


def test_a_relu_writes_in_the_place_of_an_input_that_nothing_reads_later() -> None:
    buffers = [Buffer("float", name, (1, 2, 3)) for name in ("a", "b", "c")]
    calls = ["node0_norm(input, a);", "node1_relu(a, b);", "node2_relu(b, c);", "node3_add(b, c, features);"]
    placed = plan(buffers, calls)
    assert placed.calls == tuple(calls)
    assert placed.offsets["a"] == placed.offsets["b"] != placed.offsets["c"]
    assert placed.sizes == {"float": 14}


def test_names_that_begin_alike_are_different_buffers() -> None:
    buffers = [Buffer("float", "t1", (8,)), Buffer("float", "t10", (8,)), Buffer("float", "t2", (8,))]
    placed = plan(buffers, ["f(t1, t2);", "f(t2, t10);"])
    assert placed.offsets["t1"] == placed.offsets["t10"] == 0
    assert placed.sizes == {"float": 16}


def test_a_generator_with_another_output_is_named_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    compiler: ModuleType = pytest.importorskip("emx_onnx_cgen.compiler")
    monkeypatch.setattr(compiler.Compiler, "compile", lambda self, model: "int student(void) { return 0; }\n")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "w"], ["features"])],
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(np.zeros((4, 2), np.float32), "w")],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

    with pytest.raises(
        BundleError, match=rf"toy: emx-onnx-cgen {version('emx-onnx-cgen')} writes C .*no function void student"
    ):
        generate_c(model.SerializeToString(), "toy")
