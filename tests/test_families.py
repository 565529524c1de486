"""The families of the zoo: sizes, equality with plain implementations, and training as one network."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from nonn.config.models import FAMILIES as NAMES
from nonn.config.models import form_of
from nonn.errors import ConfigError
from nonn.export.onnx_file import deployed
from nonn.students import GroupedStudents, Student, measure_cost
from nonn.students.grouped import group, of_one_architecture, ungroup
from nonn.teacher import Normalise, make_network
from nonn.teacher.binary_wrn import BinaryConv2d, flash_bytes
from nonn.teacher.lma_wrn import Lma
from nonn.teacher.wrn import Block
from nonn.teacher.zoo import FAMILIES, is_known
from tests.networks import randomise_norms

SMALL = [
    "densenet-bc-16-4",
    "se-wrn-10-0.5",
    "inverted-11-0.5",
    "se-inverted-11-0.5",
    "wrn-10-0.5",
    "lma-wrn-10-0.5",
    "tissue-8-1",
    "binary-wrn-10-0.5",
    "strided-2-0.5",
]


def test_the_zoo_builds_the_families_that_a_configuration_may_name() -> None:
    assert [family.prefix for family in FAMILIES] == list(NAMES)
    for family in FAMILIES:
        assert all(family.parse(name) for name in family.members)


# Parameters at 3×32×32: DenseNet-BC as published, with K = 100; the others as students with a bridge to 256 filters.
def test_densenet_bc_has_the_published_size() -> None:
    assert measure_cost(make_network("densenet-bc-40-12", 3, 100, 2), (3, 32, 32)).params == 188_092
    backbone = make_network("densenet-bc-40-12", 3, 0, 2)
    assert measure_cost(backbone, (3, 32, 32)).params == 188_092 - (132 * 100 + 100)
    assert backbone.out_channels == 132
    assert measure_cost(make_network("densenet-bc-100-12", 3, 10, 2), (3, 32, 32)).params == 769_162


@pytest.mark.parametrize(
    ("model", "params"),
    [("inverted-38-1", 185_616), ("inverted-29-2.5", 728_472), ("se-wrn-16-1", 194_384), ("se-wrn-16-2", 734_920)],
)
def test_students_of_a_family_fit_the_two_budgets(model: str, params: int) -> None:
    student = Student(model, (3, 32, 32), 256, Normalise([0.0] * 3, [1.0] * 3, 2))
    assert measure_cost(student, (3, 32, 32)).params == params
    assert params < (200_000 if params < 500_000 else 750_000)


class PlainLayer(nn.Module):
    """A layer of DenseNet-BC as the paper describes it: a batch norm over all maps so far."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.new = nn.Sequential(
            *_norm_relu_conv(inputs, 4 * growth, 1),
            *_norm_relu_conv(4 * growth, growth, 3),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.new(x)], dim=1)


def _norm_relu_conv(inputs: int, outputs: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(inputs), nn.ReLU(), conv]


def _plain_densenet(depth: int, growth: int, inputs: int) -> nn.Sequential:
    """DenseNet-BC with the average after the convolution of a transition."""
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(inputs, channels, 3, padding=1, bias=False)]
    for stage in range(3):
        if stage:
            layers += [*_norm_relu_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
            channels //= 2
        for _ in range((depth - 4) // 6):
            layers.append(PlainLayer(channels, growth))
            channels += growth
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())


def test_densenet_learns_and_answers_as_the_plain_implementation() -> None:
    torch.manual_seed(0)
    ours = make_network("densenet-bc-16-4", 3, 0, 2).double()
    plain = _plain_densenet(16, 4, 3).double()
    for mine, theirs in zip(ours.parameters(), plain.parameters(), strict=True):
        if mine.ndim == 1:
            nn.init.uniform_(mine, -1.0, 1.0)
        theirs.data.copy_(mine.data)
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9) for network in (ours, plain)]
    for _ in range(3):
        x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
        outputs = [network(x) for network in (ours, plain)]
        torch.testing.assert_close(*outputs)
        for optimizer, output in zip(optimizers, outputs, strict=True):
            optimizer.zero_grad()
            output.sin().sum().backward()
            optimizer.step()
    x = torch.randn(5, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), plain.eval()(x))


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("model", SMALL)
def test_a_family_has_the_channels_that_it_says_and_a_quarter_of_the_resolution(model: str, dims: int) -> None:
    network = make_network(model, 2, 0, dims)
    maps = network(torch.zeros(2, 2, *[16] * dims))
    assert maps.shape == (2, network.out_channels, *[4] * dims)
    assert (maps >= 0).all()
    assert make_network(model, 2, 7, dims)(torch.zeros(2, 2, *[16] * dims)).shape == (2, 7)


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("model", SMALL)
def test_two_sgd_steps_of_the_group_are_those_of_separate_networks(model: str, dims: int) -> None:
    torch.manual_seed(0)
    separate = [make_network(model, 2, 0, dims).double() for _ in range(3)]
    for network in separate:
        randomise_norms(network)
    trained = copy.deepcopy(separate)
    grouped = group(trained)
    for parameters, forward in [
        (
            [p for network in separate for p in network.parameters()],
            lambda xs: [n(x) for n, x in zip(separate, xs, strict=True)],
        ),
        (list(grouped.parameters()), lambda xs: grouped(torch.cat(xs, dim=1)).chunk(3, dim=1)),
    ]:
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            maps = forward([torch.randn(6, 2, *([8] * 2 if dims == 2 else [25])).double() for _ in range(3)])  # type: ignore[no-untyped-call]
            torch.stack([((i + 1) * m.sin()).sum() for i, m in enumerate(maps)]).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    ungroup(grouped, trained)
    for one, two in zip(separate, trained, strict=True):
        for (name, a), b in zip(one.state_dict().items(), two.state_dict().values(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, n=name: f"{n}: {m}")  # type: ignore[misc]


@pytest.mark.parametrize("model", ["lma-wrn-10-0.5", "tissue-8-1", "binary-wrn-10-0.5"])
def test_a_family_trains_in_bfloat16(model: str) -> None:
    torch.manual_seed(0)
    network = make_network(model, 2, 7, 2)
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(torch.randn(4, 2, 8, 8))
    logits.float().square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("sends", ["bridge", "penultimate"])
@pytest.mark.parametrize("model", SMALL)
def test_students_of_a_family_are_one_group_and_send_the_same(model: str, sends: str) -> None:
    torch.manual_seed(0)
    students = [Student(model, (2, 8, 8), 5 + i, Normalise([1.0] * 2, [3.0] * 2, 2), sends).eval() for i in range(3)]
    assert of_one_architecture(students) == [[0, 1, 2]]
    x = torch.randn(4, 2, 8, 8)
    maps, features = GroupedStudents(students).eval().maps_and_features(x)
    for student, m, f in zip(students, maps, features, strict=True):
        torch.testing.assert_close(m, student.maps(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(f, student(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", SMALL)
def test_a_group_of_images_stays_channels_last(model: str) -> None:
    students = [Student(model, (3, 16, 16), 5, Normalise([0.0] * 3, [1.0] * 3, 2)) for _ in range(2)]
    grouped = GroupedStudents(students)
    final = grouped.backbone(torch.zeros(2, 6, 16, 16).contiguous(memory_format=torch.channels_last))
    assert final.is_contiguous(memory_format=torch.channels_last)


# A family with gates runs the blocks of that without them, too; a layer of each dense block is enough.
@pytest.mark.parametrize(
    "model",
    ["densenet-bc-10-4", "se-wrn-10-0.5", "se-inverted-11-0.5", "lma-wrn-10-0.5", "binary-wrn-10-0.5", "strided-2-0.5"],
)
def test_students_are_one_graph_without_breaks(model: str) -> None:
    """As torch.compile and CUDA graphs need it: no step back to Python inside the forward pass."""
    torch.compiler.reset()  # eight networks per function are its limit
    students = [Student(model, (3, 16, 16), 5, Normalise([0.0] * 3, [1.0] * 3, 2)) for _ in range(2)]
    grouped = GroupedStudents(students)
    x = torch.rand(4, 3, 16, 16)
    compiled = torch.compile(grouped.maps_and_features, backend="aot_eager", fullgraph=True)
    again = copy.deepcopy(grouped)
    for left, right in zip(compiled(x), again.maps_and_features(x), strict=True):
        for a, b in zip(left, right, strict=True):
            torch.testing.assert_close(a, b)


def test_a_gate_scales_each_channel_by_the_mean_of_all() -> None:
    torch.manual_seed(0)
    network = make_network("se-wrn-10-0.5", 2, 0, 2).eval()
    gate = network.get_submodule("features.1.gate")
    x = torch.rand(2, 8, 4, 4)
    weights = [p.flatten(1) if p.ndim > 1 else p for p in gate.parameters()]
    hidden = (x.mean((2, 3)) @ weights[0].T + weights[1]).relu()
    expected = torch.sigmoid(hidden @ weights[2].T + weights[3])
    torch.testing.assert_close(gate(x), x * expected[:, :, None, None])


def test_a_stacked_filter_is_the_nearest_of_the_bank_and_passes_its_gradient_to_both() -> None:
    torch.manual_seed(0)
    layer = make_network("binary-wrn-10-0.5", 2, 0, 2).double().get_submodule("features.1.first")
    assert isinstance(layer, BinaryConv2d)
    weight, bank = (p.detach().numpy() for p in (layer.weight, layer.bank))
    signs = np.where(bank >= 0, 1.0, -1.0)
    expected, used = np.zeros_like(weight), {}
    for out, part in np.ndindex(8, 2):
        piece = np.s_[out, 4 * part : 4 * part + 4]
        used[out, part] = int(np.einsum("mcyx,cyx->m", signs, weight[piece]).argmax())
        expected[piece] = np.abs(weight[out]).mean() * signs[used[out, part]]
    composed = layer.composed()
    np.testing.assert_allclose(composed.detach().numpy(), expected, rtol=1e-12)
    given = torch.randn_like(composed)
    composed.backward(given)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(layer.weight.grad, given)
    of_bank = np.zeros_like(bank)
    for (out, part), i in used.items():
        of_bank[i] += np.abs(weight[out]).mean() * given.numpy()[out, 4 * part : 4 * part + 4]
    np.testing.assert_allclose(layer.bank.grad.numpy(), of_bank, rtol=1e-9, atol=1e-12)  # type: ignore[union-attr]


def test_a_student_of_stacked_filters_is_an_ordinary_one_on_its_device() -> None:
    plain, stacked = (
        Student(model, (1, 8, 8), 5, Normalise([1.0], [3.0], 2), "penultimate")
        for model in ("wrn-10-0.5", "binary-wrn-10-0.5")
    )
    costs = [measure_cost(student, (1, 8, 8)) for student in (plain, stacked)]
    assert costs[0] == costs[1]
    on_device = deployed(stacked)
    assert repr(on_device).replace("BinaryBlock", "Block") == repr(plain)
    filters = [w for name, w in on_device.state_dict().items() if name.endswith(("first.weight", "second.weight"))]
    assert all(len(w[0].abs().unique()) == 1 for w in filters)
    assert len(filters) == 6
    x = torch.randn(3, 1, 8, 8)
    assert torch.equal(on_device.eval()(x), stacked.eval()(x))
    # A layer 8 → 8: 16 selectors of 6 bits, 64 filters of 36 signs, 8 scales of 32 bits.
    layer = stacked.backbone.get_submodule("features.1.first")
    assert flash_bytes(layer, 8 * 8 * 9) == (16 * 6 + 64 * 36 + 8 * 32) // 8
    assert flash_bytes(plain, costs[0].params) == 0 < flash_bytes(stacked, costs[1].params) < 4 * costs[1].params


def test_each_stage_has_its_own_width() -> None:
    network = make_network("staged-wrn-10-0.5x2x1", 2, 0, 2)
    blocks = [module.second.out_channels for module in network.features if isinstance(module, Block)]
    assert blocks == [8, 64, network.out_channels] == [8, 64, 64]
    equal = [measure_cost(make_network(name, 2, 0, 2), (2, 8, 8)) for name in ("staged-wrn-10-2x2x2", "wrn-10-2")]
    assert equal[0] == equal[1]


def test_a_unit_filters_cells_of_eight_channels_separately_and_then_mixes_them() -> None:
    torch.manual_seed(0)
    unit = make_network("tissue-8-1", 2, 0, 2).eval().get_submodule("features.2")
    x = torch.randn(2, 16, 8, 8)
    first, mix = (unit.state_dict()[f"{layer}.0.weight"] for layer in ("cells", "mix"))
    cells = [functional.conv2d(x[:, i : i + 8], first[i : i + 8], stride=2, padding=1) for i in (0, 8)]
    torch.testing.assert_close(unit(x), functional.conv2d(torch.cat(cells, 1).relu(), mix), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        "densenet-bc-41-12",
        "densenet-bc-40-1.5",
        "densenet-bc-40-0",
        "inverted-30-1",
        "se-inverted-11-0.1",
        "se-wrn-12-1",
        "tissue-10-1",
        "staged-wrn-10-1x0.1x1",
    ],
)
def test_a_member_that_does_not_exist_is_refused_with_the_rule(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"model '{name}': depth must be"):
        is_known(name)


def test_an_unknown_name_lists_every_family() -> None:
    with pytest.raises(ConfigError) as raised:
        make_network("vgg-16", 3, 10, 2)
    assert all(form_of(prefix) in str(raised.value) for prefix in NAMES)


class Trunk(nn.Module):
    """A network of another package: feature maps, in a layout that cannot be grouped."""

    def __init__(self, in_channels: int, channels: int = 6) -> None:
        super().__init__()
        self.one, self.two = (nn.Conv2d(in_channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.one(x), self.two(x)], dim=1).relu()


class Pooled(Trunk):
    """A network whose output has no spatial axes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).mean((2, 3))


def _by_path(model: str, **args: Any) -> Student:
    return Student(model, (2, 8, 8), 5, Normalise([1.0] * 2, [3.0] * 2, 2), "penultimate", args=args)


def test_a_student_by_dotted_path_trains_next_to_others() -> None:
    torch.manual_seed(0)
    path = "tests.test_families:Trunk"
    students = [_by_path(path, channels=4), _by_path("wrn-10-0.5"), _by_path(path, channels=4), _by_path("wrn-10-0.5")]
    assert [s.width for s in students] == [8, 32, 8, 32]
    assert sorted(of_one_architecture(students)) == [[0], [1, 3], [2]]
    x = torch.randn(4, 2, 8, 8)
    for numbers in of_one_architecture(students):
        members = [students[i].eval() for i in numbers]
        _, features = GroupedStudents(members).eval().maps_and_features(x)
        for student, sent in zip(members, features, strict=True):
            torch.testing.assert_close(sent, student(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("path", "args", "words"),
    [
        ("tests.test_families:Nothing", {}, "has no attribute"),
        ("tests.test_families:Trunk", {"depth": 3}, r"failed with student\.args: TypeError"),
        ("tests.test_families:Pooled", {}, r"gave \[2, 12\] for a batch of 2 inputs \[2, 8, 8\]"),
    ],
)
def test_a_dotted_path_that_is_no_student_says_why(path: str, args: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        _by_path(path, **args)


def test_a_multi_segment_activation_is_its_formula_around_its_moving_statistics() -> None:
    layer = Lma()
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 2.0, (6, 3, 4, 4)).astype(np.float32)
    layer(torch.from_numpy(x))  # in training: the statistics move by a hundredth
    mean, std = 0.01 * x.mean(), 0.99 + 0.01 * x.std(ddof=1)
    layer.eval()
    with torch.no_grad():
        layer.slope.add_(torch.from_numpy(rng.normal(size=(1, 8)).astype(np.float32)))
        layer.offset.add_(torch.from_numpy(rng.normal(size=(1, 8)).astype(np.float32)))
        got = layer(torch.from_numpy(x)).numpy()
    segment = np.floor((x - mean + 3 * std) / (6 * std / 8)).clip(0, 7).astype(int)
    assert set(segment.ravel()) == set(range(8))
    slope, offset = (p.detach().numpy()[0] for p in (layer.slope, layer.offset))
    np.testing.assert_allclose(got, slope[segment] * x + offset[segment], rtol=1e-4, atol=1e-4)
    start = Lma().eval()(torch.from_numpy(x))
    torch.testing.assert_close(start, torch.from_numpy(x).relu())  # at mean 0, it starts as ReLU
