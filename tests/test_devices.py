"""Device classes: limits, sizing, parts that follow, placement, and the measurement that makes an entry."""

from __future__ import annotations

import json
import math
import shutil
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nonn_device.probe import PROBE, PROBE_MACS, Measured, available_ram_bytes, device_entry, measure_macs_per_s
from nonn_device.vitals import can_limit_memory

from nonn.bench import students as bench
from nonn.bench.students import measure_bundle
from nonn.bundle import Bundle
from nonn.cli import main
from nonn.config import load_experiment
from nonn.config.devices import DeviceClassConfig, DevicesConfig
from nonn.errors import BudgetError, ConfigError, GuaranteeError, PartitionError
from nonn.experiment.placement import place_students
from nonn.experiment.run import run
from nonn.experiment.workspace import Workspace
from nonn.partition.balanced_eigenvector import partition
from nonn.partition.graph import FilterGraph
from nonn.partition.redundancy import Design
from nonn.students import Student, measure_cost, sizing
from nonn.students.devices import apportion_filters, failure_law, resolve_devices
from nonn.students.sizing import size_students
from nonn.teacher import Normalise
from nonn.teacher.zoo import family_named
from nonn.toml import from_mapping
from scripts.make_probe import probe_network
from tests.reports import check_report, without_pages
from tests.toys import TINY, toy_bundle

CLASSES = """
[experiment]
name = "uneven"
[student]
model = "auto"
[[devices.classes]]
name = "pi"
count = 2
params = 60_000
macs_per_s = 1e9
link_bytes_per_s = 1e6
p_fail = 0.05
[[devices.classes]]
name = "watch"
count = 2
params = 9_000
macs_per_s = 1e8
link_bytes_per_s = 1e5
link_latency_s = 0.004
p_fail = 0.3
"""


@pytest.fixture(autouse=True)
def small_family(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole family takes three seconds to measure."""
    monkeypatch.setattr(
        sizing, "FAMILY", ("wrn-10-0.25", "wrn-10-0.5", "wrn-10-1", "wrn-16-0.5", "wrn-16-1", "wrn-10-2")
    )


def build(device: int, model: str, filters: int) -> Student:
    return Student(model, (1, 8, 8), filters, Normalise([0.0], [1.0], 2))


def sized(devices: DevicesConfig, model: str = "auto", num_filters: int = 64) -> Any:
    resolved = resolve_devices(devices)
    design = Design(len(resolved))
    return size_students(resolved, [()] * len(resolved), design, num_filters, model, build, "float32")


# ---- the experiment file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[[devices.classes]]\nname = 'a'\n[[devices.classes]]\nname = 'a'",
            "class 1 ('a'): give every class a unique name",
        ),
        ("[[devices.classes]]\nname = 'a'\ncount = 0", "count = 0: must be at least 1"),
        ("[[devices.classes]]\nname = 'a'\nmacs = -1", "devices.classes[0].macs = -1: must be at least 0"),
        (
            "[[devices.classes]]\nname = 'a'\np_fail = 1.0",
            "devices.classes[0].p_fail = 1.0: must be at least 0 and below 1",
        ),
        ("[[devices.classes]]\nname = 'a'\nram = 1", "unknown key"),
        ("[[devices.classes]]\ncount = 2", "is missing"),
        ("[devices]\ncount = 3\n[[devices.classes]]\nname = 'a'\ncount = 8", "the classes have 8 devices; leave count"),
        (
            "[devices]\nbudget = { params = 5 }\n[[devices.classes]]\nname = 'a'\ncount = 8",
            "every class has its own limits",
        ),
        ("[devices]\nanswer_s = 0.1", "devices.answer_s = 0.1: is for device classes"),
        ("[devices]\ngoal = 1.5\n[[devices.classes]]\nname = 'a'\ncount = 8", "devices.goal = 1.5"),
        ("[student]\nmodel = 'auto'", "auto sizes students to device classes"),
        (
            "[devices]\nviews = [[0], [1, 1]]\n[partition]\nparts = 2",
            "devices.views[1].channels = [1, 1]: list each channel once",
        ),
        ("[devices]\ncount = 8\nviews = [[0], [1]]", "2 views for 8 devices"),
        ("[devices]\nview = 'split'\nviews = [[0], [1]]\n[partition]\nparts = 2", "has the channels already"),
        ("[devices]\nview = 'half'", "devices.view = 'half': unknown; choose one of: all, split"),
    ],
)
def test_classes_and_views_that_cannot_be_are_named(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_experiment(file)
    assert message in str(caught.value)


def test_the_number_of_devices_follows_from_classes(tmp_path: Path) -> None:
    file = tmp_path / "e.toml"
    file.write_text(CLASSES + "[partition]\nparts = 4\n")
    experiment = load_experiment(file)
    assert experiment.devices.count == 4
    assert failure_law(experiment.devices) == "independent p=[0.05, 0.05, 0.3, 0.3]"
    assert failure_law(DevicesConfig()) == "independent p=0.1"
    titles = [device.title for device in resolve_devices(experiment.devices)]
    assert titles == ["0 ('pi')", "1 ('pi')", "2 ('watch')", "3 ('watch')"]
    # What a study does: written out whole and read again.
    import dataclasses

    assert from_mapping(type(experiment), dataclasses.asdict(experiment), source="again") == experiment


# ---- sizing


@pytest.mark.parametrize("limit", ["params", "macs", "ram_bytes"])
def test_a_student_is_the_largest_of_its_family_within_its_devices_limit(limit: str) -> None:
    budget = {"params": 30_000, "macs": 1_500_000, "ram_bytes": 200_000}[limit]
    limits: Any = {limit: budget}
    kind = DeviceClassConfig(name="pi", count=2, **limits)
    chosen = sized(DevicesConfig(count=2, classes=(kind,)))
    assert len(set(chosen.models)) == 1
    assert chosen.sizes is None
    key = {"ram_bytes": "peak_bytes"}.get(limit, limit)
    costs = {model: measure_cost(build(0, model, 32), (1, 8, 8)) for model in sizing.FAMILY}
    fitting = {model: cost.params for model, cost in costs.items() if getattr(cost, key) <= budget}
    assert costs[chosen.models[0]].params == max(fitting.values())
    assert len(fitting) < len(sizing.FAMILY)


def test_auto_chooses_among_the_members_of_the_named_families() -> None:
    kind = DeviceClassConfig(name="badge", count=2, params=30_000)
    for wanted in ("auto:densenet-bc", "auto:inverted, se-wrn"):
        families = [family_named(name.strip()) for name in wanted.partition(":")[2].split(",")]
        costs = {m: measure_cost(build(0, m, 32), (1, 8, 8)).params for f in families for m in f.members}
        fitting = {model: params for model, params in costs.items() if params <= 30_000}
        chosen = sized(DevicesConfig(count=2, classes=(kind,)), wanted).models
        assert set(chosen) == {max(fitting, key=lambda model: fitting[model])}
    with pytest.raises(ConfigError, match=r"no family 'vgg'; choose one of: wrn, se-wrn, densenet-bc"):
        sized(DevicesConfig(count=2, classes=(kind,)), "auto:vgg")


def test_a_class_may_name_its_own_model() -> None:
    kinds = (DeviceClassConfig(name="pi", count=2, model="inverted-11-0.5"), DeviceClassConfig(name="badge", count=1))
    assert sized(DevicesConfig(count=3, classes=kinds), "densenet-bc-16-4").models == (
        "inverted-11-0.5",
        "inverted-11-0.5",
        "densenet-bc-16-4",
    )


def test_a_slow_device_gets_a_student_that_answers_in_time() -> None:
    slow = DeviceClassConfig(name="slow", macs_per_s=1e8, link_latency_s=0.005, link_bytes_per_s=1e5)
    quick = DeviceClassConfig(name="quick", macs_per_s=1e10)
    chosen = sized(DevicesConfig(count=2, classes=(slow, quick), answer_s=0.02))
    costs = [measure_cost(build(0, model, 32), (1, 8, 8)) for model in chosen.models]
    assert costs[0].macs < costs[1].macs
    assert chosen.sizes is not None
    assert costs[0].macs / 1e8 + 0.005 + 4 * chosen.sizes[0] / 1e5 <= 0.02


def test_parts_are_sized_to_their_students_and_every_student_still_fits() -> None:
    kinds = (
        DeviceClassConfig(name="large", count=1, params=200_000),
        DeviceClassConfig(name="small", count=3, params=8_000),
    )
    chosen = sized(DevicesConfig(count=4, classes=kinds), num_filters=128)
    assert chosen.sizes is not None
    assert sum(chosen.sizes) == 128
    assert chosen.sizes[0] > 2 * max(chosen.sizes[1:])
    for device, (model, filters) in enumerate(zip(chosen.models, chosen.sizes, strict=True)):
        params = measure_cost(build(device, model, filters), (1, 8, 8)).params
        assert params == chosen.params[device] <= (200_000 if device == 0 else 8_000)


def test_a_device_too_small_for_any_student_is_an_error_that_names_it() -> None:
    kinds = (DeviceClassConfig(name="pi", params=60_000), DeviceClassConfig(name="badge", params=100))
    with pytest.raises(BudgetError) as caught:
        sized(DevicesConfig(count=2, classes=kinds))
    assert "no student is small enough" in str(caught.value)
    assert "device 1 ('badge')" in str(caught.value)
    assert "> 100" in str(caught.value)


@given(
    st.lists(st.floats(1, 1e7), min_size=1, max_size=12).flatmap(
        lambda params: st.tuples(st.just(params), st.integers(len(params), 300))
    )
)
def test_filters_are_shared_out_whole_in_proportion_and_to_everybody(case: tuple[list[float], int]) -> None:
    params, num_filters = case
    sizes = apportion_filters(num_filters, params)
    assert sum(sizes) == num_filters
    assert min(sizes) >= 1
    for (small, a), (large, b) in product(zip(params, sizes, strict=True), repeat=2):
        assert a <= b + 1 or small > large  # more capacity, no fewer filters, up to the rounding
    wanted = np.sqrt(params) / np.sqrt(params).sum() * num_filters
    if wanted.min() >= 1:
        assert np.abs(np.array(sizes) - wanted).max() < 1 + 1e-6


# ---- parts of given sizes


def blocks(sizes: list[int]) -> FilterGraph:
    """Filters that work together in groups of these sizes, and faintly with all others."""
    owner = np.repeat(np.arange(len(sizes)), sizes)
    order = np.random.default_rng(0).permutation(len(owner))
    weights = np.where(owner[:, None] == owner[None, :], 1.0, 0.01)[order][:, order]
    np.fill_diagonal(weights, 0)
    return FilterGraph(weights, "test")


def test_unequal_parts_find_the_unequal_groups_of_filters() -> None:
    sizes = [24, 6, 10]
    graph = blocks(sizes)
    made = partition(graph, 3, 0, sizes)
    assert made.sizes == tuple(sizes)
    for part in made.parts:
        inside = graph.weights[np.ix_(part, part)]
        assert (inside[~np.eye(len(part), dtype=bool)] == 1).all()


def test_filters_without_an_edge_fill_up_parts_of_given_sizes() -> None:
    weights = np.zeros((9, 9))
    weights[:4, :4] = 1 - np.eye(4)
    assert partition(FilterGraph(weights, "test"), 3, 0, [5, 3, 1]).sizes == (5, 3, 1)
    assert partition(FilterGraph(np.zeros((4, 4)), "test"), 2, 0, [1, 3]).sizes == (1, 3)


@pytest.mark.parametrize("sizes", [[3, 3], [4, 6, 0], [5, 5]])
def test_sizes_that_do_not_add_up_are_refused(sizes: list[int]) -> None:
    with pytest.raises(PartitionError, match="sizes"):
        partition(blocks([4, 4]), 2, 0, sizes)


# ---- from the experiment file to a bundle


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory, tiny_runs: Path) -> tuple[Bundle, Path]:
    folder = tmp_path_factory.mktemp("uneven")
    shutil.copytree(tiny_runs / "tiny/teacher", folder / "runs/uneven/teacher")  # the same teacher
    (folder / "e.toml").write_text(CLASSES)
    quick = [s for s in TINY if not s.startswith(("experiment.name", "devices", "distill", "partition"))]
    experiment = load_experiment(folder / "e.toml", [*quick, "distill.epochs=3", "partition.parts=4"])
    with without_pages():
        return run(experiment, runs=folder / "runs").bundle, folder


def test_unlike_students_are_trained_together_bundled_and_placed(uneven: tuple[Bundle, Path]) -> None:
    bundle, folder = uneven
    students = bundle.manifest.students
    assert max(s.params for s in students[2:]) <= 9_000 < min(s.params for s in students[:2]) <= 60_000
    widths = [len(part) for part in bundle.manifest.parts]
    assert min(widths[:2]) > max(widths[2:])
    assert sum(widths) == 64
    assert bundle.table.accuracy[-1] > 0.5  # ten classes: they have learned something, through one fusion
    seats = json.loads((folder / "runs" / "uneven" / "placement.json").read_text())
    assert [seat["title"] for seat in seats] == ["0 ('pi')", "1 ('pi')", "2 ('watch')", "3 ('watch')"]
    assert {seat["student"] for seat in seats} <= {0, 1, 2, 3, None}


FAMILIES = """
[experiment]
name = "families"
[student]
model = "inverted-11-0.5"
[export]
weights = "int8"
[[devices.classes]]
name = "pi"
count = 2
[[devices.classes]]
name = "hub"
model = "densenet-bc-10-6"
[[devices.classes]]
name = "watch"
model = "auto:strided"
params = 9_000
"""


@pytest.mark.usefixtures("no_pages")
def test_students_of_different_families_are_trained_together_and_bundled_in_8_bits(
    tmp_path: Path, tiny_runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "_ROUND_S", 0.001)  # how long an answer takes is not tested here
    shutil.copytree(tiny_runs / "tiny/teacher", tmp_path / "runs/families/teacher")  # the same teacher
    (tmp_path / "e.toml").write_text(FAMILIES)
    quick = [s for s in TINY if not s.startswith(("experiment.name", "devices", "distill"))]
    experiment = load_experiment(tmp_path / "e.toml", [*quick, "distill.epochs=4", "export.calibration=64"])
    space = Workspace(experiment, tmp_path / "runs")
    assert space.networks.sizing.models[:3] == ("inverted-11-0.5", "inverted-11-0.5", "densenet-bc-10-6")
    assert space.networks.sizing.models[3].startswith("strided-")
    bundle = run(experiment, runs=tmp_path / "runs").bundle
    assert all(student.weights == "int8" for student in bundle.manifest.students)
    assert bundle.manifest.students[3].params <= 9_000
    assert bundle.table.accuracy[-1] > 0.5  # through one fusion
    rows = list(measure_bundle(bundle.path))
    assert [row.params for row in rows] == [student.params for student in bundle.manifest.students]
    drops = [row.int8_drop for row in rows]
    assert all(drop is not None and abs(drop) < 0.2 for drop in drops)
    assert [row.accuracy for row in rows] == [bundle.table.accuracy[1 << i] for i in range(4)]


def test_the_report_of_unlike_devices_has_a_failure_probability_for_each(uneven: tuple[Bundle, Path]) -> None:
    report = check_report(uneven[1] / "runs" / "uneven" / "report" / "report.json")
    assert report.expected_accuracy.p_fail == tuple(uneven[0].p_fail)


def test_a_student_over_its_budget_is_refused_before_the_teacher_is_trained(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(CLASSES.replace('model = "auto"', 'model = "wrn-16-2"'))
    experiment = load_experiment(tmp_path / "e.toml", ["partition.parts=4"])
    with pytest.raises(BudgetError) as caught:
        run(experiment, runs=tmp_path / "runs")
    text = str(caught.value)
    assert "device 0 ('pi')" in text
    assert "wrn-16-2" in text
    assert "> 60,000" in text
    assert not (tmp_path / "runs" / "uneven" / "teacher").exists()


def test_a_partitioner_that_takes_no_sizes_says_which_does(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text(CLASSES)
    experiment = load_experiment(
        tmp_path / "e.toml", ["partition.parts=4", "partition.method=random", "teacher.model=wrn-10-1"]
    )
    with pytest.raises(PartitionError, match="choose balanced-eigenvector"):
        Workspace(experiment, tmp_path / "runs").check()


# ---- placement


def test_a_placement_with_a_goal_is_the_fastest_that_reaches_it(tmp_path: Path) -> None:
    bundle = toy_bundle(tmp_path / "bundle", num_devices=3)
    kinds = tuple(
        DeviceClassConfig(name=name, macs_per_s=speed, p_fail=p)
        for name, speed, p in [("quick", 1e6, 0.5), ("middle", 1e5, 0.1), ("slow", 1e4, 0.01)]
    )
    config = DevicesConfig(count=3, classes=kinds)

    def judge(choice: tuple[int | None, ...]) -> tuple[float, float]:
        """Expected accuracy and latency of one placement, by brute force."""
        up = np.ones(3)
        for machine, student in enumerate(choice):
            if student is not None:
                up[student] *= kinds[machine].p_fail
        up = 1 - up
        expected = sum(
            bundle.table.accuracy[mask] * math.prod(up[i] if mask >> i & 1 else 1 - up[i] for i in range(3))
            for mask in range(8)
        )
        macs = bundle.manifest.students[0].macs
        return expected, max((macs / kinds[m].macs_per_s for m, s in enumerate(choice) if s is not None), default=0.0)

    judged = [judge(choice) for choice in product([0, 1, 2, None], repeat=3)]
    best = max(expected for expected, _ in judged)
    free = place_students(bundle, config)
    assert judge(tuple(seat.student for seat in free))[0] == pytest.approx(best)
    quickest = sorted({latency for _, latency in judged})
    reachable = [max(e for e, latency in judged if latency <= limit) for limit in quickest]
    goal = (reachable[1] + reachable[2]) / 2  # the quick machine alone cannot, the slow one is not needed … or is
    seats = place_students(bundle, DevicesConfig(count=3, classes=kinds, goal=goal))
    expected, latency = judge(tuple(seat.student for seat in seats))
    assert expected >= goal
    assert latency == min(latency for e, latency in judged if e >= goal)
    with pytest.raises(GuaranteeError, match=r"devices\.goal"):
        place_students(bundle, DevicesConfig(count=3, classes=kinds, goal=min(0.999, best + 0.01)))


# ---- nonn doctor --device


def test_the_shipped_probe_is_what_the_script_makes_and_costs_what_is_stated() -> None:
    shipped = onnx.load(PROBE)
    assert shipped == probe_network(), "run: python -m scripts.make_probe"
    onnx.checker.check_model(shipped, full_check=True)
    (weights,) = shipped.graph.initializer
    (output,) = shipped.graph.output
    positions = math.prod(dim.dim_value for dim in output.type.tensor_type.shape.dim[2:])
    assert len(shipped.graph.node) * math.prod(weights.dims) * positions == PROBE_MACS
    assert [node.op_type for node in shipped.graph.node] == ["Conv"] * 4


def test_the_speed_of_this_machine_is_measured() -> None:
    assert measure_macs_per_s(0.05) > 1e6


def test_free_memory_is_that_of_the_control_group_where_that_is_less(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 500000 kB\nMemAvailable: 300000 kB\n")
    assert available_ram_bytes(meminfo, tmp_path) == 300_000 * 1024
    (tmp_path / "memory.current").write_text("1000000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert available_ram_bytes(meminfo, tmp_path) == 300_000 * 1024
    (tmp_path / "memory.max").write_text("5000000\n")
    assert available_ram_bytes(meminfo, tmp_path) == 4_000_000
    assert available_ram_bytes(tmp_path / "missing", tmp_path) == 0


def test_a_kernel_without_memory_control_groups_is_noticed(tmp_path: Path) -> None:
    """As on Pi OS, whose kernel starts with the memory controller off."""
    own, groups = tmp_path / "cgroup", tmp_path / "groups"
    own.write_text("0::/system.slice/nonn-device.service\n")
    group = groups / "system.slice/nonn-device.service"
    group.mkdir(parents=True)
    assert can_limit_memory(own, groups)  # no version 2 hierarchy: unknown
    (groups / "cgroup.controllers").write_text("cpuset cpu io pids\n")
    assert not can_limit_memory(own, groups)
    (group / "memory.max").write_text("200000000\n")
    assert can_limit_memory(own, groups)


def test_a_measured_entry_is_read_back_by_the_experiment_file() -> None:
    entry = device_entry('a "watch"\n[', Measured(1.25e8, 400_000_000, 2.5e5, 0.004))
    kind = from_mapping(DevicesConfig, tomllib.loads(entry)["devices"], source="entry").classes[0]
    assert kind == DeviceClassConfig(
        name='a "watch"\n[', ram_bytes=400_000_000, macs_per_s=1.25e8, link_bytes_per_s=2.5e5, link_latency_s=0.004
    )


def test_doctor_measures_this_device_and_its_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from nonn.cluster import LocalCluster

    toy_bundle(tmp_path / "bundle", num_devices=1)
    with LocalCluster(tmp_path / "bundle") as cluster:
        assert main(["doctor", "--device", "--name", "me", "--link", cluster.address, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "me"
    assert found["macs_per_s"] > 1e6
    assert found["ram_bytes"] > 0
    assert 0 < found["link_latency_s"] < 5
    assert found["link_bytes_per_s"] >= 0


def test_doctor_says_when_nobody_is_at_the_other_end_and_when_options_go_together(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "--device", "--link", "127.0.0.1:1"]) == 4
    assert "127.0.0.1:1" in capsys.readouterr().err
    assert main(["doctor", "--link", "127.0.0.1:1"]) == 2
    assert "--link requires --device" in capsys.readouterr().err
