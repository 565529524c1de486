"""Devices that see different channels, on data made like five body-worn units of people who differ."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nonn_sim.deployments import student_work
from torch.nn import functional

from nonn.bundle import Bundle
from nonn.bundle.views import WHOLE, View, resolve_views, select_view
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.config import DataConfig, DevicesConfig, Experiment, load_experiment
from nonn.config.devices import ViewConfig
from nonn.data import load_data
from nonn.data.augment import Augment
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.distill.students import JointStudents
from nonn.errors import ConfigError, DataError, InputError
from nonn.experiment.methods import METHODS
from nonn.experiment.run import run
from nonn.experiment.study import study
from nonn.experiment.workspace import Workspace
from nonn.fusion import head_from_arrays
from nonn.reliability.subsets import mask_of, members
from nonn.students import Student
from nonn.teacher import Normalise
from nonn.teacher.zoo import make_network
from nonn.toml import from_mapping
from tests.reports import check_report
from tests.serving import running_node
from tests.training import losses_of

UNITS, CHANNELS, STEPS, PEOPLE, ACTIVITIES, WINDOWS = 5, 9, 40, 4, 5, 12
VIEWS = tuple(View(tuple(range(9 * i, 9 * i + 9))) for i in range(UNITS))


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows in the layout of DSADS: every activity a rhythm of its own on every unit, every person an offset."""
    rng = np.random.default_rng(0)
    rhythm = rng.uniform(1, 8, (ACTIVITIES, UNITS * CHANNELS, 1))
    strength = rng.uniform(50, 400, (ACTIVITIES, UNITS * CHANNELS, 1))
    offset = rng.normal(0, 60, (PEOPLE, UNITS * CHANNELS, 1))
    time = np.arange(STEPS) / STEPS * 2 * np.pi
    windows, activity, subject = [], [], []
    for person in range(PEOPLE):
        for kind in range(ACTIVITIES):
            for _ in range(WINDOWS):
                clean = strength[kind] * np.sin(rhythm[kind] * time + rng.uniform(0, 6.3)) + offset[person]
                windows.append(clean + rng.normal(0, 100, clean.shape))
                activity.append(kind)
                subject.append(person + 1)
    path = tmp_path_factory.mktemp("recording") / "units.npz"
    np.savez(
        path,
        windows=np.array(windows).astype(np.int16),
        scale=np.full(UNITS * CHANNELS, 0.004, np.float32),
        activity=np.array(activity, np.uint8),
        subject=np.array(subject, np.uint8),
        activities=np.array(["sitting", "standing", "walking", "rowing", "jumping"]),
    )
    return path


@pytest.fixture(scope="module")
def small(recording: Path) -> Experiment:
    """The shipped experiment, with small networks and few epochs."""
    shipped = Path(__file__).parent.parent / "examples" / "wearables.toml"
    smaller = (
        f"data.path='{recording}'",
        "teacher.model=strided-2-1",
        "teacher.branches=1",
        "teacher.modality_dropout=0.3",
        "distill.branch_share=0.5",
        "teacher.epochs=8",
        "student.model=strided-2-0.5",
        "distill.epochs=8",
        "distill.batch=32",
        "teacher.batch=32",
        "teacher.lr=0.1",
        "distill.lr=0.1",
        "data.rotate=5.0",
        "fusion.head=ridge",
        "fusion.updates=20",
        "study.folds=[[1], [2, 3]]",
        "data.test_groups=[4]",
    )
    return load_experiment(shipped, smaller)


@pytest.fixture(scope="module")
def bundle(small: Experiment, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    runs = tmp_path_factory.mktemp("runs")
    bundle = run(small, runs=runs).bundle
    check_report(runs / small.experiment.name / "report" / "report.json")
    return bundle


def students(sends: str = "penultimate") -> Students:
    torch.manual_seed(0)
    made = [
        Student("strided-2-0.5", (9, STEPS), 4, Normalise([float(i)] * 9, [2.0] * 9, 1), sends, 0, view)
        for i, view in enumerate(VIEWS)
    ]
    return Students(made, FusionLayer("logit-average", [s.width for s in made], range(UNITS), ACTIVITIES))


# ---- the whole way


def test_the_bundle_has_the_view_of_each_student(bundle: Bundle) -> None:
    assert bundle.manifest.input.shape == (45, STEPS)
    for device, student in enumerate(bundle.manifest.students):
        spec = bundle.input_of(device)
        assert student.view == VIEWS[device]
        assert spec.shape == (9, STEPS)
        assert spec.mean == bundle.manifest.input.mean[9 * device : 9 * device + 9]
        measured = bundle.sensing_of(device)
        assert (measured.channels[0], measured.channels[8], measured.units[3]) == ("acc_x", "mag_z", "rad/s")
        assert (measured.rate_hz, measured.samples, measured.hop_s) == (25, STEPS, STEPS / 25)
        assert all(
            low < high and quiet > 0
            for low, high, quiet in zip(measured.low, measured.high, measured.quiet, strict=True)
        )
    assert bundle.table.accuracy[-1] > 0.5  # of five activities, on a person that was not trained on


def test_simulated_messages_hold_a_view_and_the_bytes_of_its_features(bundle: Bundle) -> None:
    first = bundle.manifest.students[0]
    work = student_work(bundle, 2)[0]
    values = 2 * 9 * STEPS * np.dtype(bundle.manifest.input.dtype).itemsize
    assert values < work.request_bytes < values + 300
    coded = dataclasses.replace(first, dtype="int8", scale=(1.0,) * first.width, low=(0.0,) * first.width)
    manifest = dataclasses.replace(bundle.manifest, students=(coded, *bundle.manifest.students[1:]))
    small = student_work(dataclasses.replace(bundle, manifest=manifest), 2)[0]
    assert 0 <= work.reply_bytes - small.reply_bytes - 2 * 3 * first.width < 10


def test_a_live_cluster_answers_as_the_table_says_with_every_node_given_its_own_channels(
    bundle: Bundle, small: Experiment
) -> None:
    data = load_data(small.data, small.experiment.seed)
    with LocalCluster(bundle.path) as cluster, Client(cluster.address) as client:
        left = [0, 1, 2, 3, 4]
        for killed in (None, 1, 3):
            if killed is not None:
                cluster.kill(killed)
                left.remove(killed)
            answer = client.infer(data.test.inputs)
            assert np.flatnonzero(answer.answered).tolist() == left
            mask = mask_of(left)
            correct = int((answer.logits.argmax(axis=1) == data.test.labels).sum())
            assert correct == bundle.table.correct[mask]
        whole = data.test.inputs[:2]
        with pytest.raises(InputError, match="45"):
            client.infer(whole[:, :9])


def test_a_node_takes_its_channels_and_refuses_the_whole_input(bundle: Bundle, small: Experiment) -> None:
    import grpc

    from nonn.rpc.v1 import inference_pb2_grpc
    from nonn.rpc.wire import new_request, read_tensors

    inputs = load_data(small.data, 0).test.inputs[:3]
    with running_node(bundle.path, 2) as (_, ready), grpc.insecure_channel(ready["address"]) as channel:
        stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)  # type: ignore[no-untyped-call]
        reply = stub.ModelInfer(new_request("student-2", {"input": select_view(inputs, VIEWS[2])}, {}))
        features = read_tensors(reply.outputs, reply.raw_output_contents)["features"]
        assert features.shape == (3, bundle.manifest.students[2].width)
        with pytest.raises(grpc.RpcError) as caught:
            stub.ModelInfer(new_request("student-2", {"input": inputs}, {}))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "9" in caught.value.details()


def test_a_study_trains_every_row_for_every_fold_beside_units_by_themselves(small: Experiment, tmp_path: Path) -> None:
    quick = {name: dataclasses.replace(getattr(small, name), epochs=1) for name in ("teacher", "distill")}
    result = study(dataclasses.replace(small, **quick), runs=tmp_path)
    assert result.complete
    assert result.folds == ((1,), (2, 3))
    rows = {(row.method, row.own): row for row in result.rows if row.own}
    for name, head in (("units", "trained"), ("ours", "ridge")):
        row = rows[name, True]
        assert row.head == head
        assert len(row.by_run) == 2
        means = [line.mean for line in row.accuracy_by_failures]
        np.testing.assert_allclose(means, np.mean(row.by_run, axis=0))
        assert row.params == rows["ours", True].params  # one architecture
        assert row.bytes_per_answer == 5 * 16 * 4
        assert row.input_bytes == 45 * STEPS * 4
    folders = sorted(p.name for p in (tmp_path / "wearables" / "study").iterdir() if p.is_dir())
    assert folders == ["ours-0-fold-1", "ours-0-fold-2-3", "units-0-fold-1", "units-0-fold-2-3"]


# ---- views


def test_a_device_is_not_touched_by_what_the_others_see() -> None:
    made, x = students().eval(), torch.randn(4, 45, STEPS)
    with torch.no_grad():
        before = made.features(x)
        x[:, :9] += 5
        after = made.features(x)
    assert not torch.allclose(before[0], after[0])
    for one, other in zip(before[1:], after[1:], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("sends", ["penultimate", "bridge"])
def test_students_with_views_are_the_same_network_together_and_apart(sends: str) -> None:
    made = students(sends)
    x = torch.randn(6, 45, STEPS)
    together = JointStudents(made).eval()
    made.eval()
    for one, other in zip(made.maps_and_features(x), together.maps_and_features(x), strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def test_unlike_students_train_in_groups_of_one_architecture_and_keep_their_places() -> None:
    torch.manual_seed(0)
    models = ["strided-2-0.5", "strided-3-1", "strided-2-0.5", "wrn-10-0.25"]
    made = [Student(m, (3, STEPS), 4, Normalise([0.0] * 3, [1.0] * 3, 1), "penultimate") for m in models]
    both = Students(made, FusionLayer("zero-fill", [s.width for s in made], range(4), 3)).eval()
    together, x = JointStudents(both).eval(), torch.randn(5, 3, STEPS)
    assert len(together.groups) == 3
    for a, b in zip(both.features(x), together.features(x), strict=True):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        for parameter in together.groups.parameters():
            parameter.mul_(1.5)
    together.copy_back(both)
    for a, b in zip(both.features(x), together.features(x), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("devices", "message"),
    [
        (DevicesConfig(count=4, view="split"), "45 channels do not split evenly over 4 devices"),
        (
            DevicesConfig(count=2, views=(ViewConfig(channels=(0, 1)), ViewConfig(channels=(44, 45)))),
            "device 1 sees channel 45, the input has 0 to 44",
        ),
    ],
)
def test_views_that_do_not_fit_the_input_are_refused(devices: DevicesConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_views(devices, (45, STEPS))


def test_devices_see_everything_unless_the_file_says_otherwise() -> None:
    shape = (45, STEPS)
    assert resolve_views(DevicesConfig(count=3), shape) == (WHOLE,) * 3
    assert resolve_views(DevicesConfig(count=5, view="split"), shape) == VIEWS
    listed = from_mapping(DevicesConfig, {"views": [[3], [0, 7]]}, source="test")
    assert resolve_views(listed, shape) == (View((3,)), View((0, 7)))


# ---- units by themselves


def test_the_row_of_units_trains_each_as_if_it_were_alone(small: Experiment, tmp_path: Path) -> None:
    config = METHODS["units"].applied_to(small, 0, (1,)).distill
    made = students()
    alone = copy.deepcopy(made)
    teacher = Workspace(small, tmp_path).networks.teacher()
    task = DistillTask(teacher, made, [range(4)] * UNITS, config)
    x, y = torch.randn(16, 45, STEPS), torch.randint(ACTIVITIES, (16,))
    losses = losses_of(task, x, y, torch.Generator().manual_seed(0))
    assert set(losses) == {"ce"}
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    joint: Any = task.module["students"]
    for i, student in enumerate(alone.individual()):
        width, first = student.width, sum(alone.fusion.widths[:i])
        weight = alone.fusion.linear.weight[:, first : first + width].detach().requires_grad_()
        assert alone.fusion.biases is not None
        bias = alone.fusion.biases[i].detach().requires_grad_()
        functional.cross_entropy(student.train()(select_view(x, VIEWS[i])) @ weight.T + bias, y).backward()  # type: ignore[no-untyped-call]
        torch.testing.assert_close(joint.fusion.linear.weight.grad[:, first : first + width], weight.grad)
        torch.testing.assert_close(joint.fusion.biases.grad[i], bias.grad)
        own = next(student.backbone.parameters()).grad
        assert own is not None
        channels = own.shape[0]
        grouped = next(joint.groups[0].backbone.parameters()).grad[i * channels : (i + 1) * channels]
        torch.testing.assert_close(grouped, own, rtol=1e-4, atol=1e-6)


def test_logit_average_is_the_mean_of_the_answering_devices_classifiers() -> None:
    torch.manual_seed(0)
    widths = [3, 5, 2]
    layer = FusionLayer("logit-average", widths, range(3), 4)
    assert layer.biases is not None
    torch.nn.init.normal_(layer.biases)
    features = [torch.randn(6, w) for w in widths]
    head = head_from_arrays(layer.head().to_arrays())
    starts = [0, 3, 8]
    own = [
        (f @ layer.linear.weight[:, s : s + w].T + b).detach().numpy()
        for f, s, w, b in zip(features, starts, widths, layer.biases, strict=True)
    ]
    for mask in range(1, 8):
        arrived = members(mask)
        answered = torch.tensor([[i in arrived for i in range(3)]]).expand(6, -1)
        expected = np.mean([own[i] for i in arrived], axis=0)
        np.testing.assert_allclose(layer(features, answered).detach().numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(head.logits({i: features[i].numpy() for i in arrived}), expected, atol=1e-5)


def test_a_ridge_to_labels_divides_one_whole_among_the_classes(bundle: Bundle) -> None:
    recorded, _ = bundle.features
    for arrived in ((0, 1, 2, 3, 4), (1, 4), (2,)):
        logits = bundle.head.logits({i: recorded[i] for i in arrived})
        np.testing.assert_allclose(logits.sum(axis=1), 1, atol=1e-6)


# ---- data


def test_whole_people_are_held_out(recording: Path) -> None:
    config = DataConfig(
        reader="npz",
        path=str(recording),
        labels="activity",
        scale="scale",
        group="subject",
        test_groups=(2,),
        held_out=0.3,
        held_out_by="group",
    )
    with np.load(recording) as arrays:
        person_of = {w.tobytes(): s for w, s in zip(arrays["windows"], arrays["subject"], strict=True)}
    data = load_data(config, 0)
    people = [
        {person_of[np.rint(x / 0.004).astype(np.int16).tobytes()] for x in split.inputs}
        for split in (data.train, data.held_out, data.test)
    ]
    assert people[2] == {2}
    assert len(people[1]) == 1
    assert len(people[0]) == 2
    assert not people[0] & people[1]
    assert data.classes[2] == "walking"
    with pytest.raises(DataError, match="leaves none to train on"):
        load_data(DataConfig(**{**vars(config), "held_out": 0.9}), 0)


def test_data_without_groups_cannot_hold_out_by_them() -> None:
    with pytest.raises(DataError, match="no groups"):
        load_data(DataConfig(held_out_by="group"), 0)
    with pytest.raises(ConfigError, match="held_out_by"):
        load_experiment(None, ["data.held_out_by=group"])


def test_a_unit_is_turned_as_a_whole_and_keeps_the_length_of_every_vector() -> None:
    augment = Augment(DataConfig(noise=0.0, rotate=20.0), np.zeros(45), np.ones(45))
    windows = torch.randn(8, 45, STEPS)
    windows[:, 3:6] = windows[:, 0:3]  # two sensors of one unit that measure the same
    turned = augment(windows, torch.Generator().manual_seed(1))
    lengths = [x.reshape(8, 15, 3, STEPS).norm(dim=2) for x in (windows, turned)]
    torch.testing.assert_close(*lengths)
    torch.testing.assert_close(turned[:, 3:6], turned[:, 0:3])
    assert not torch.allclose(turned, windows, atol=0.1)
    torch.testing.assert_close(augment(windows, torch.Generator().manual_seed(1)), turned)
    # Not all alike: every unit of every window has a turn of its own.
    same = torch.ones(2, 45, 1)
    own = augment(same, torch.Generator().manual_seed(2)).reshape(10, 9)
    assert len({tuple(row) for row in own[:, :3].numpy().round(4).tolist()}) == 10


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 10, 8)])
def test_what_cannot_be_turned_is_refused(shape: tuple[int, ...]) -> None:
    augment = Augment(DataConfig(noise=0.0, rotate=5.0), np.zeros(shape[1]), np.ones(shape[1]))
    with pytest.raises(ConfigError, match=r"data\.rotate"):
        augment(torch.zeros(shape), torch.Generator())


# ---- the family of plain strided convolutions


@pytest.mark.parametrize("dims", [1, 2])
def test_a_strided_network_halves_the_resolution_with_every_layer(dims: int) -> None:
    network = make_network("strided-3-0.5", 2, 0, dims)
    assert network(torch.zeros(2, 2, *[32] * dims)).shape == (2, network.out_channels, *[4] * dims)
    assert network.out_channels == 32
    assert make_network("strided-3-0.5", 2, 7, dims)(torch.zeros(2, 2, *[32] * dims)).shape == (2, 7)


@pytest.mark.parametrize("name", ["strided-0-1", "strided-9-1", "strided-4-0.1", "wrn-11-1", "wrn-10-0.1", "vgg-16"])
def test_a_network_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        make_network(name, 3, 10, 1)
