from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import grpc
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from nonn.bundle import Bundle, load_bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.config import Experiment, ExportConfig, load_experiment
from nonn.enumeration import enumerate_subsets
from nonn.errors import BundleError, ConfigError
from nonn.experiment import bundling, workspace
from nonn.experiment.run import run
from nonn.experiment.workspace import Workspace
from nonn.export import TOLERANCE as EXACT
from nonn.export import export_onnx, run_onnx
from nonn.export.deploy import calibration_sample, deploy
from nonn.export.quantise import TOLERANCE, quantise
from nonn.reliability.subsets import mask_of
from nonn.report.build import precision_of
from nonn.report.sentences import network_line
from nonn.rpc.v1 import inference_pb2 as pb
from nonn.rpc.v1 import inference_pb2_grpc
from nonn.rpc.wire import new_request, read_tensors
from nonn.students import Student
from nonn.teacher import Normalise
from tests.networks import trained_looking_student
from tests.reports import check_report
from tests.serving import running_node
from tests.toys import toy_bundle

SMALL = ExportConfig(weights="int8", features="int8", calibration=128)


def bundle_again(experiment: Experiment, runs: Path, tiny_bundle: Bundle) -> Bundle:
    """The bundle of the tiny experiment with other settings, from the students that are exported already."""
    files = [tiny_bundle.student_path(i).read_bytes() for i in range(4)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workspace, "fit", lambda *a, **k: pytest.fail("trained again"))
        patch.setattr(bundling, "export_onnx", lambda *_: files.pop(0))
        return run(experiment, runs=runs).bundle


@pytest.fixture(scope="module")
def int8_runs(tiny_runs: Path, tiny: Experiment, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny experiment in 8 bits."""
    runs = shutil.copytree(tiny_runs, tmp_path_factory.mktemp("int8") / "runs")
    bundle_again(dataclasses.replace(tiny, export=SMALL), runs, tiny_bundle)
    return runs


@pytest.fixture(scope="module")
def int8_bundle(int8_runs: Path) -> Bundle:
    return load_bundle(int8_runs / "tiny" / "bundle")


def test_a_bundle_without_originals_has_only_the_files_that_nodes_run(
    int8_runs: Path, tiny: Experiment, tiny_bundle: Bundle
) -> None:
    runs = shutil.copytree(int8_runs, int8_runs.parent / "lean")
    lean = dataclasses.replace(tiny, export=dataclasses.replace(SMALL, originals=False))
    bundle = bundle_again(lean, runs, tiny_bundle)
    names = sorted(file.name for file in (bundle.path / "students").iterdir())
    assert names == [f"student-{i}.int8.onnx" for i in range(4)]
    assert load_bundle(bundle.path).hash == bundle.hash


def test_students_in_8_bits_are_a_quarter_of_the_size_and_answer_with_a_byte_a_feature(int8_bundle: Bundle) -> None:
    for student in int8_bundle.manifest.students:
        assert student.file == f"students/student-{student.device}.int8.onnx"
        assert (student.weights, student.dtype, student.feature_bytes) == ("int8", "int8", student.width)
        original = int8_bundle.path / f"students/student-{student.device}.onnx"
        assert student.bytes <= 0.30 * original.stat().st_size


def test_the_table_is_that_of_the_students_in_8_bits_through_the_code_of_their_features(
    int8_bundle: Bundle, tiny: Experiment
) -> None:
    test = Workspace(tiny, Path("unused")).data.test
    recorded, labels = int8_bundle.features
    for i, student in enumerate(int8_bundle.manifest.students):
        ran = run_onnx(int8_bundle.student_path(i).read_bytes(), test.inputs)
        np.testing.assert_array_equal(student.code.roundtrip(ran), recorded[i])
        assert len(np.unique(recorded[i][:, 0])) <= 256
    table = enumerate_subsets(int8_bundle.head, recorded, labels)
    np.testing.assert_array_equal(table.correct, int8_bundle.table.correct)


def test_no_answering_set_loses_more_than_a_few_images(int8_bundle: Bundle, tiny_bundle: Bundle) -> None:
    """Few epochs leave many images near the boundary; docs/devices.md has the drop of a trained bundle."""
    drop = tiny_bundle.table.accuracy - int8_bundle.table.accuracy
    assert drop[mask_of(range(4))] <= 0.005
    assert drop[1:].mean() <= 0.005
    assert drop[1:].max() <= 0.03


def test_the_report_has_the_cost_of_8_bits(int8_runs: Path, int8_bundle: Bundle, tiny_bundle: Bundle) -> None:
    report = check_report(int8_runs / "tiny" / "report" / "report.json")
    assert report.precision is not None
    widths = sum(s.width for s in int8_bundle.manifest.students)
    assert report.traffic.bytes_per_answer == widths
    assert report.traffic.as_floats == 4 * widths
    assert report.traffic.layer_maps == 2 * 4 * sum([16 * 64] * 3 + [32 * 16] * 2 + [64 * 4] * 2)
    for row, then, now in zip(
        report.precision.drop_by_failures,
        tiny_bundle.table.by_failures(),
        int8_bundle.table.by_failures(),
        strict=True,
    ):
        assert row.drop == pytest.approx(then.mean - now.mean)
        assert row.interval is not None
        # Both were counted on the same samples: narrower than half of a single accuracy's interval.
        assert row.interval[0] <= row.drop <= row.interval[1]
        assert row.interval[1] - row.interval[0] < 0.05
    assert report.precision.size_ratio <= 0.30
    # A bundle of an older version, without these intervals: from the counts, so wider.
    floats = int8_bundle.manifest.provenance["float32"]
    older = {key: value for key, value in floats.items() if not key.endswith("intervals")}
    provenance = {**int8_bundle.manifest.provenance, "float32": older}
    manifest = dataclasses.replace(int8_bundle.manifest, provenance=provenance)
    wide = precision_of(dataclasses.replace(int8_bundle, manifest=manifest))
    assert wide is not None
    for row, wider in zip(report.precision.drop_by_failures, wide.drop_by_failures, strict=True):
        assert row.interval is not None
        assert wider.interval is not None
        assert wider.interval[0] < row.interval[0]
        assert row.interval[1] < wider.interval[1]
    assert wide.drop_alone_intervals is not None
    line = network_line(report)
    assert line.count("(95 %: ") == 2
    assert f"{widths} bytes" in line
    assert "NoNN" in line
    assert "MoDNN" in line
    assert "2 failed" in line


def test_a_float_bundle_has_no_8_bit_entries(tiny_runs: Path, tiny_bundle: Bundle) -> None:
    report = check_report(tiny_runs / "tiny" / "report" / "report.json")
    assert report.precision is None
    assert "float:" not in network_line(report)
    assert not list(tiny_bundle.path.glob("students/*.int8.onnx"))


def test_a_node_sends_one_byte_per_feature_and_reports_it(int8_bundle: Bundle, tiny: Experiment) -> None:
    test, recorded = Workspace(tiny, Path("unused")).data.test, int8_bundle.features[0]
    with running_node(int8_bundle.path, 1) as (_, ready), grpc.insecure_channel(ready["address"]) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        metadata = stub.ModelMetadata(pb.ModelMetadataRequest(name="student-1"))
        response = stub.ModelInfer(new_request("student-1", {"input": test.inputs[:5]}, {}))
    sent = read_tensors(response.outputs, response.raw_output_contents)["features"]
    student = int8_bundle.manifest.students[1]
    assert metadata.outputs[0].datatype == "INT8"
    assert metadata.properties["nonn_weights"] == metadata.properties["nonn_dtype"] == "int8"
    assert sent.dtype == np.int8
    assert sent.nbytes == 5 * student.width
    np.testing.assert_array_equal(student.code.decode(sent), recorded[1][:5])


def test_a_live_cluster_in_8_bits_answers_what_the_table_was_made_of(int8_bundle: Bundle, tiny: Experiment) -> None:
    test, recorded = Workspace(tiny, Path("unused")).data.test, int8_bundle.features[0]
    with LocalCluster(int8_bundle.path) as cluster, Client(cluster.address) as client:
        cluster.kill(2)
        client.infer(test.inputs[:1])  # the kill may be noticed only now
        answer = client.infer(test.inputs[:100])
    assert answer.mask == mask_of([0, 1, 3])
    expected = int8_bundle.head.logits({i: recorded[i][:100] for i in (0, 1, 3)})
    np.testing.assert_allclose(answer.logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("features", ["float16", "int8"])
def test_features_can_be_coded_while_weights_stay_float(features: str) -> None:
    student = trained_looking_student()
    inputs = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8)).astype(np.uint8)
    data = export_onnx(student, (1, 8, 8), inputs)
    served = deploy(ExportConfig(features=features), 0, data, inputs)
    assert served.data == data
    assert served.suffix == ".onnx"
    assert served.lossy
    exact = run_onnx(data, inputs)
    step = np.array(served.code.scale) if features == "int8" else np.abs(exact) * 2.0**-10
    assert (np.abs(served.features(inputs) - exact) <= 0.501 * step + 1e-6).all()


@pytest.mark.parametrize("dims", [1, 2])
def test_a_quantised_student_keeps_its_interface_for_any_batch(dims: int) -> None:
    shape = (1, 8, 8) if dims == 2 else (9, 25)
    student = trained_looking_student(dims)
    inputs = np.random.default_rng(0).normal(127, 70, (128, *shape)).astype(np.float32)
    data = export_onnx(student, shape, inputs)
    small = quantise(data, inputs[:64])
    model = onnx.load_from_string(small)
    onnx.checker.check_model(model)
    assert {n.domain for n in model.graph.node} == {""}
    # Every convolution has 8-bit weights with a step for each output channel.
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    maker = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == 14  # of them four batch norms
    for node in convolutions:
        weight, step = (stored[name] for name in maker[node.input[1]].input[:2])
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() <= 64
        assert step.shape == (len(weight),)
    # Nothing that a runtime does in float between two roundings depends on the processor: steps are powers of two.
    assert {node.op_type for node in model.graph.node}.isdisjoint({"BatchNormalization", "Sum"})
    roundings = {tuple(node.input[1:]) for node in model.graph.node if node.op_type == "QuantizeLinear"}
    assert all(np.frexp(stored[step])[0] == 0.5 for step, _ in roundings)
    # The terms of a sum share its step: nothing is rounded there.
    for node in model.graph.node:
        if node.op_type == "Add":
            steps = {float(stored[maker[name].input[1]]) for name in node.input}
            reader = next(reader for reader in model.graph.node if node.output[0] in reader.input)
            assert steps == {float(stored[reader.input[1]])}
    exact = run_onnx(data, inputs)
    for batch in (1, 7, 128):
        np.testing.assert_allclose(run_onnx(data, inputs, batch), exact, atol=EXACT * max(1, np.abs(exact).max()))
        gap = np.abs(run_onnx(small, inputs, batch) - exact).mean() / np.abs(exact).mean()
        assert gap < TOLERANCE / 2


def test_cifar_sized_students_shrink_to_a_third_at_most() -> None:
    torch.manual_seed(0)
    student = Student("wrn-10-1", (3, 32, 32), 32, Normalise([127.0] * 3, [70.0] * 3, 2)).eval()
    inputs = np.random.default_rng(0).integers(0, 256, (16, 3, 32, 32)).astype(np.float32)
    data = export_onnx(student, (3, 32, 32), inputs[:2])
    assert len(quantise(data, inputs)) <= 0.30 * len(data)


def test_a_student_that_8_bits_ruin_is_refused_with_its_device() -> None:
    """One channel ten million times as large as the other: no step fits both."""
    weight = np.zeros((64, 2), np.float32)
    weight[0, 0], weight[1, 1] = 1e7, 1.0
    scale = numpy_helper.from_array(np.array([1e-7, 1.0], np.float32), "scale")
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["input"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["mixed"]),
            helper.make_node("MatMul", ["mixed", "turn"], ["turned"]),
            helper.make_node("Mul", ["turned", "scale"], ["features"]),
        ],
        "student",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(weight, "weight"),
            numpy_helper.from_array(np.eye(2, dtype=np.float32), "turn"),
            scale,
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs = np.random.default_rng(0).integers(0, 256, (64, 1, 8, 8))
    with pytest.raises(BundleError, match=r"device 3: the student in 8 bits differs by \d+ %.*export.weights"):
        deploy(SMALL, 3, model.SerializeToString(), inputs)


def test_calibration_takes_training_inputs_by_seed() -> None:
    inputs = np.arange(100)
    first, again, other = (calibration_sample(inputs, 10, seed) for seed in (0, 0, 1))
    assert len(set(first.tolist())) == 10
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    np.testing.assert_array_equal(calibration_sample(inputs, 1000, 0), inputs)


def test_a_bundle_of_before_is_read_as_float(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=2)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    for student in manifest["students"]:
        for key in ("weights", "scale", "low", "dtype"):
            del student[key]
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    students = load_bundle(bundle.path).manifest.students
    assert {(s.weights, s.code.dtype, s.feature_bytes) for s in students} == {("float32", "float32", 16)}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"dtype": "int8"}, "0 steps"),
        ({"dtype": "int8", "scale": [1.0], "low": [0.0]}, "1 steps for 4 int8 features"),
        ({"dtype": "float8"}, "float8"),
    ],
)
def test_a_manifest_whose_code_cannot_be_is_refused(tmp_path: Path, change: dict[str, object], text: str) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=1)
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["students"][0] |= change
    (bundle.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=text):
        load_bundle(bundle.path)


@pytest.mark.parametrize("override", ["export.weights=int4", "export.features=bfloat16", "export.calibration=0"])
def test_settings_that_cannot_be_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match=override.partition("=")[0]):
        load_experiment(None, [override])
