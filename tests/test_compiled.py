"""Students compiled from C, as a node loads them: features, memory, refusals, on CMSIS-NN too."""

from __future__ import annotations

import contextlib
import ctypes
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
from nonn_device.compiled import CompiledRuntime, library_path, machine_of
from nonn_device.runtime import open_runtime
from nonn_device.self_test import samples_like

from nonn.bundle import Bundle, InputSpec, Manifest, StudentEntry, write_bundle
from nonn.cli import main
from nonn.config import ExportConfig
from nonn.enumeration import enumerate_subsets
from nonn.errors import BundleError
from nonn.export import export_onnx
from nonn.export.cmsis_nn import sources as cmsis_sources
from nonn.export.compiled import TOLERANCE
from nonn.export.deploy import deploy
from nonn.export.integer import UntranslatableError, integer_c
from nonn.fusion import RidgePerSet, gram
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request, read_tensors
from tests.cmsis_nn import write_cmsis_nn
from tests.networks import trained_looking_student
from tests.serving import TIMEOUT_S, running_node
from tests.toys import toy_bundle

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None, reason="no C compiler on this machine: apt-get install gcc libc6-dev"
)

REPOSITORY = Path(__file__).parent.parent
SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """One convolutional student in float and the same in 8 bits, as devices 0 and 1 of one bundle."""
    network = trained_looking_student()
    rng = np.random.default_rng(0)
    inputs = rng.normal(127, 70, (128, *SHAPE)).clip(0, 255).astype(np.uint8)
    data = export_onnx(network, SHAPE, inputs)
    configs = (ExportConfig(weights="float32"), ExportConfig(weights="int8", features="int8"))
    served = [deploy(config, i, data, inputs) for i, config in enumerate(configs)]
    features, labels = [one.features(inputs) for one in served], rng.integers(0, 3, len(inputs))
    width = features[0].shape[1]
    head = RidgePerSet(*gram(np.concatenate(features, axis=1), np.eye(3)[labels]), ridge=1e-3, widths=[width] * 2)
    table = enumerate_subsets(head, features, labels)
    manifest = Manifest(
        experiment="compiled",
        input=InputSpec(SHAPE, "uint8", (127.0,), (70.0,)),
        classes=("a", "b", "c"),
        parts=(tuple(range(width)),),
        students=tuple(
            StudentEntry(i, 0, f"students/student-{i}{one.suffix}", "", 1, 1, 0, width, **one.entry())
            for i, one in enumerate(served)
        ),
        files={},
        teacher={},
        data={},
        replicas=((0, 1),),
    )
    arrays = {
        "fusion.npz": head.to_arrays(),
        "accuracy.npz": {"correct": table.correct, "samples": np.array(table.samples)},
    }
    path = tmp_path_factory.mktemp("compiled") / "bundle"
    return write_bundle(path, manifest, {i: one.data for i, one in enumerate(served)}, arrays)


@pytest.fixture(scope="module")
def exported(bundle: Bundle) -> dict[str, object]:
    """What the command prints about both students; the shared objects then lie where a node looks."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["export", str(bundle.path), "--target", "c", "--json"]) == 0
    return dict(json.loads(out.getvalue()))


def rows(exported: dict[str, object]) -> list[dict[str, float]]:
    found = exported["students"]
    assert isinstance(found, list)
    return found


def test_compiled_students_give_what_onnx_runtime_gives_for_any_batch(
    bundle: Bundle, exported: dict[str, object]
) -> None:
    inputs = samples_like(bundle.manifest.input, 33)
    for device, weights in enumerate(("float32", "int8")):
        expected = open_runtime("onnx", bundle, device).run(inputs)
        runtime = open_runtime("c", bundle, device)
        for batch in (1, 5, 33):
            got = np.concatenate([runtime.run(inputs[i : i + batch]) for i in range(0, len(inputs), batch)])
            assert np.abs(got - expected).mean() <= TOLERANCE[weights] * np.abs(expected).mean()
        if weights == "float32":
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        assert rows(exported)[device]["gap"] <= TOLERANCE[weights]


def test_compiled_code_of_features_is_that_of_the_bundle(bundle: Bundle, exported: dict[str, object]) -> None:
    del exported
    student = bundle.manifest.students[1]
    low, high = (student.code.decode(np.full((1, student.width), end, np.int8)) for end in (-128, 127))
    drawn = np.random.default_rng(0).uniform(low - 1, high + 1, (500, student.width)).astype(np.float32)
    pointer, codes = np.ctypeslib.ndpointer(np.float32), np.empty(drawn.shape, np.int8)
    encode = ctypes.CDLL(str(library_path(bundle.path, 1))).nonn_student_code
    encode.argtypes, encode.restype = [pointer, np.ctypeslib.ndpointer(np.int8)], None
    for row, code in zip(drawn, codes, strict=True):
        encode(row, code)
    assert (codes == student.code.encode(drawn)).all()
    assert {-128, 127} <= set(codes.flat)


def test_flash_and_ram_are_those_of_the_sections(bundle: Bundle, exported: dict[str, object], tmp_path: Path) -> None:
    for row, student in zip(rows(exported), bundle.manifest.students, strict=True):
        source = library_path(bundle.path, student.device).with_name("student.c")
        subprocess.run(["cc", "-std=c11", "-Os", "-fno-pie", "-c", "-o", tmp_path / "s.o", source], check=True)
        done = subprocess.run(["size", tmp_path / "s.o"], capture_output=True, text=True, check=True)
        text, data, bss = map(int, done.stdout.splitlines()[1].split()[:3])
        # `size` counts unwind tables as text.
        assert 0.9 * (text + data) <= row["flash_bytes"] - row["library_bytes"] <= text + data
        assert row["library_bytes"] >= 0
        assert row["buffer_bytes"] == 4 * (np.prod(bundle.input_of(student.device).shape) + student.width)
        assert bss <= row["ram_bytes"] - row["stack_bytes"] - row["buffer_bytes"] + data <= bss + data + 64
        assert 0 < row["stack_bytes"] < 2048
        assert row["arena_bytes"] <= bss
    small, large = rows(exported)[1], rows(exported)[0]
    assert small["flash_bytes"] < 0.35 * large["flash_bytes"]


def test_a_student_over_the_limit_of_memory_is_refused(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["export", str(bundle.path), "--target", "c", "--student", "1", "--no-library", "--ram", "2000"]
    assert main([*command, "--out", str(bundle.path.parent / "over")]) == 3
    assert re.search(r"student 1: needs [\d,]+ bytes of ram on .*, over the 2,000 of --ram", capsys.readouterr().err)


def test_the_code_has_no_heap_and_no_library_but_mathematics(bundle: Bundle, exported: dict[str, object]) -> None:
    del exported
    for device in (0, 1):
        library = library_path(bundle.path, device)
        done = subprocess.run(["nm", "-D", library], capture_output=True, text=True, check=True)
        symbols = [line.split() for line in done.stdout.splitlines()]
        needed = {re.sub("@.*", "", name) for kind, name in (s[-2:] for s in symbols) if kind == "U"}
        assert needed <= {"sqrtf", "fmaxf", "fminf", "nearbyintf", "rintf", "roundf", "memcpy", "memset", "memmove"}
        made = {name for kind, name in (s[-2:] for s in symbols) if kind in "TRDB"}
        assert made == {
            "nonn_student",
            "nonn_student_batch",
            "nonn_student_abi",
            "nonn_student_inputs",
            "nonn_student_features",
            "nonn_student_sha256",
            *(["nonn_student_bytes", "nonn_student_code"] if device == 1 else []),  # of the student in 8 bits
        }


@pytest.mark.parametrize("flags", [["-Os"], ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]])
def test_the_program_for_a_microcontroller_gives_the_same_on_this_machine(
    bundle: Bundle, exported: dict[str, object], tmp_path: Path, flags: list[str]
) -> None:
    del exported
    inputs = samples_like(bundle.manifest.input, 9)
    for device, weights in enumerate(("float32", "int8")):
        folder, program = library_path(bundle.path, device).parent, tmp_path / f"program-{device}"
        command = ["cc", "-std=c11", "-Wall", "-Werror", *flags, f"-I{folder}", str(REPOSITORY / "devices/c/main.c")]
        subprocess.run([*command, folder / "student.c", "-lm", "-o", program], check=True)
        done = subprocess.run([program], input=inputs.tobytes(), capture_output=True, timeout=TIMEOUT_S, check=True)
        got = np.frombuffer(done.stdout, np.float32).reshape(9, -1)
        expected = open_runtime("onnx", bundle, device).run(inputs)
        assert np.abs(got - expected).mean() <= TOLERANCE[weights] * np.abs(expected).mean()


def test_a_node_of_compiled_c_serves_without_onnx_runtime_and_in_less_memory(
    bundle: Bundle, exported: dict[str, object]
) -> None:
    del exported
    inputs = np.random.default_rng(0).integers(0, 256, (7, *SHAPE)).astype(np.uint8)
    held: dict[str, float] = {}
    for runtime in ("onnx", "c"):
        with running_node(bundle.path, 0, "--runtime", runtime) as (child, ready):
            with grpc.insecure_channel(ready["address"]) as channel:
                stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
                response = stub.ModelInfer(new_request("student-0", {"input": inputs}, {}))
            got = read_tensors(response.outputs, response.raw_output_contents)["features"]
            process = Path(f"/proc/{child.pid}")
            held[runtime] = int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            assert ("onnxruntime" in (process / "maps").read_text()) == (runtime == "onnx")
        expected = open_runtime("onnx", bundle, 0).run(inputs.astype(np.float32))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert held["c"] < held["onnx"] - 15


def refused(library: Path, bundle: Bundle, device: int = 0) -> str:
    with pytest.raises(BundleError) as caught:
        CompiledRuntime(library, bundle.manifest.students[device], bundle.manifest.input)
    return str(caught.value)


def test_a_library_for_another_processor_names_both_and_the_remedy(
    bundle: Bundle, exported: dict[str, object], tmp_path: Path
) -> None:
    del exported
    data = bytearray(library_path(bundle.path, 0).read_bytes())
    other = 183 if machine_of(bytes(data[:20])) != "64-bit Arm" else 62
    data[18:20] = other.to_bytes(2, "little")
    (tmp_path / "student.so").write_bytes(data)
    text = refused(tmp_path / "student.so", bundle)
    assert "64-bit Arm" in text
    assert "this device is" in text
    assert "--cc" in text


def test_libraries_that_are_none_or_of_something_else_are_refused(
    bundle: Bundle, exported: dict[str, object], tmp_path: Path
) -> None:
    del exported
    good = library_path(bundle.path, 0)
    assert "no compiled student" in refused(tmp_path / "none.so", bundle)
    (tmp_path / "text.so").write_text("no library")
    assert "not a shared object" in refused(tmp_path / "text.so", bundle)
    (tmp_path / "half.so").write_bytes(good.read_bytes()[:4096])
    assert "truncated, 4096 bytes of" in refused(tmp_path / "half.so", bundle)
    assert "from another student" in refused(good, bundle, device=1)
    (tmp_path / "other.c").write_text("int other;\n")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", tmp_path / "other.so", tmp_path / "other.c"], check=True)
    assert "nonn_student_abi" in refused(tmp_path / "other.so", bundle)
    with pytest.raises(BundleError, match="the student needs"):
        CompiledRuntime(good, bundle.manifest.students[0], bundle.manifest.input).run(np.zeros((1, 63), np.float32))


def test_a_missing_instruction_is_an_error_and_does_not_kill_the_node(
    bundle: Bundle, exported: dict[str, object], tmp_path: Path
) -> None:
    """The student's own code with an undefined instruction in its way: a real SIGILL."""
    del exported
    folder = library_path(bundle.path, 0).parent
    source = (folder / "student.c").read_text()
    call = "NONN_PUBLIC void nonn_student(const float *input, float *features) {"
    assert call in source
    (tmp_path / "student.c").write_text(source.replace(call, f"{call} __builtin_trap();"))
    shutil.copy(folder / "student.h", tmp_path)
    trap: list[str | Path] = ["-shared", "-fPIC", "-o", tmp_path / "student.so", tmp_path / "student.c", "-lm"]
    subprocess.run(["cc", *trap], check=True)
    command = [sys.executable, "-m", "nonn_device", "check", str(bundle.path), "--student", "0", "--runtime", "c"]
    done = subprocess.run(
        [*command, "--library", tmp_path / "student.so"], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert "SIGILL" in done.stderr or "SIGTRAP" in done.stderr
    assert os.uname().machine in done.stderr
    assert "--cc" in done.stderr
    serve = [*command, "--library", str(tmp_path / "student.so"), "--self-test", "--watch-stdin"]
    serve[3] = "serve"
    served = subprocess.run(serve, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
    assert served.returncode == 3
    assert "ready" not in served.stdout


def test_a_convolution_without_a_bias_is_left_to_the_other_generator(bundle: Bundle) -> None:
    model = onnx.load(bundle.path / bundle.manifest.students[1].file)
    integer_c(model, "student")
    convolution = next(node for node in model.graph.node if node.op_type == "Conv")
    del convolution.input[2]
    with pytest.raises(UntranslatableError, match="without weights and bias in integers"):
        integer_c(model, "student")


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--student", "9"], 3, "no student 9; this bundle has 0 to 1"),
        (["--cc", "no-such-compiler"], 3, "no-such-compiler"),
        (["--cc", ""], 3, "--cc"),
        (["--cc", "cat"], 3, "cat"),
        (["--out", "/proc/nowhere"], 3, "/proc/nowhere"),
    ],
)
def test_what_cannot_be_exported_ends_with_its_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, text: str
) -> None:
    path = toy_bundle(tmp_path / "bundle", num_devices=2).path
    assert main(["export", str(path), "--target", "c", *options]) == code
    assert text in capsys.readouterr().err


def test_a_student_on_cmsis_nn_gives_the_bits_of_onnx_runtime(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cmsis_nn = write_cmsis_nn(tmp_path / "cmsis-nn")
    folder = cmsis_nn.parent / "out"
    command = ["export", str(bundle.path), "--target", "c", "--out", str(folder), "--cmsis-nn", str(cmsis_nn)]
    assert main([*command, "--student", "1"]) == 0
    assert "without the kernels of CMSIS-NN" in capsys.readouterr().out
    student, program = folder / "student-1", folder / "program"
    sources = [REPOSITORY / "devices/c/main.c", student / "student.c", *cmsis_sources(cmsis_nn)]
    rounding: list[str | Path] = ["-include", REPOSITORY / "devices/mcu/requantize.h"]
    options: list[str | Path] = [
        "-std=c11",
        "-O2",
        "-Wall",
        "-Werror",
        f"-I{student}",
        f"-I{cmsis_nn / 'Include'}",
        *rounding,
    ]
    subprocess.run(["cc", *options, *sources, "-lm", "-o", program], check=True)
    inputs = samples_like(bundle.input_of(1), 9).round().clip(0, 255)
    done = subprocess.run([program], input=inputs.tobytes(), capture_output=True, timeout=TIMEOUT_S, check=True)
    expected = open_runtime("onnx", bundle, 1).run(inputs)
    assert (np.frombuffer(done.stdout, np.float32).reshape(9, -1) == expected).all()

    assert main([*command, "--student", "0"]) == 3
    assert "cannot use CMSIS-NN" in capsys.readouterr().err
    (cmsis_nn / "LICENSE").write_text("All rights reserved")
    assert main([*command, "--student", "1"]) == 3
    assert "its LICENSE is not the Apache License 2.0" in capsys.readouterr().err
    (cmsis_nn / "Include/arm_nnfunctions.h").unlink()
    assert main([*command, "--student", "1"]) == 3
    assert "git clone https://github.com/ARM-software/CMSIS-NN" in capsys.readouterr().err
