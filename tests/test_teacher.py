from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nonn.config import TeacherConfig
from nonn.errors import ConfigError
from nonn.students import measure_cost
from nonn.teacher import Normalise, Teacher, WideResNet, build_teacher, load_weights, make_network, pool
from nonn.teacher.convnet import conv


class TinyNet(nn.Module):
    """A network of somebody else's."""

    def __init__(self, classes: int = 10, channels: int = 6) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.trunk(x).mean((2, 3)))
        return result


def normalise(dims: int = 2) -> Normalise:
    return Normalise([100.0], [50.0], dims)


# Parameters and multiply-accumulates at 3×32×32 and K = 100 as METHOD's table of published sizes has them.
@pytest.mark.parametrize(
    ("name", "params", "mmacs", "features"),
    [
        ("wrn-10-1", 83_700, 12.5, 64),
        ("wrn-16-1", 180_916, 26.7, 64),
        ("wrn-40-1", 569_780, 83.3, 64),
        ("wrn-16-2", 703_284, 101.1, 128),
        ("wrn-40-2", 2_255_156, 327.6, 128),
        ("wrn-40-4", 8_972_340, 1298.6, 256),
    ],
)
def test_wide_residual_networks_have_the_published_sizes(name: str, params: int, mmacs: float, features: int) -> None:
    network = make_network(name, 3, 100, 2)
    cost = measure_cost(network, (3, 32, 32))
    assert cost.params == params
    assert cost.macs / 1e6 == pytest.approx(mmacs, abs=0.06)
    assert network.out_channels == features


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (1,)])
def test_strided_convolutions_of_narrow_maps_are_right_in_bfloat16(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = conv(len(shape), 32, 64, 3, stride=2), torch.randn(32, 32, *shape)
    found: list[list[torch.Tensor | None]] = []
    weight = next(layer.parameters())
    for enabled in (False, True):
        given = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            made = layer(given)
        layer.zero_grad(set_to_none=True)
        made.float().square().sum().backward()
        found.append([made.detach().float(), given.grad, weight.grad])
    for exact, half in zip(*found, strict=True):
        assert exact is not None
        assert half is not None
        assert float((exact - half).abs().max()) < 0.05 * float(exact.abs().max())


def test_the_same_network_serves_sensor_windows() -> None:
    network = make_network("wrn-10-1", 45, 19, 1)
    maps = network.features(torch.zeros(2, 45, 125))
    assert maps.shape == (2, 64, 32)
    assert network(torch.zeros(2, 45, 125)).shape == (2, 19)


@pytest.mark.parametrize("name", ["wrn-11-1", "wrn-4-1", "wrn-16-0"])
def test_depths_that_do_not_exist_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"6n \+ 4"):
        make_network(name, 3, 10, 2)


def test_pooling_is_the_spatial_mean_in_float32() -> None:
    maps = torch.rand(2, 3, 4, 5, dtype=torch.bfloat16)
    torch.testing.assert_close(pool(maps), maps.float().mean((2, 3)))
    assert pool(torch.rand(2, 3)).shape == (2, 3)


def test_a_teacher_gives_the_map_its_logits_are_made_from() -> None:
    teacher = build_teacher(TeacherConfig(model="wrn-10-1"), (1, 8, 8), 10, normalise()).eval()
    raw = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8)
    maps, logits = teacher(raw)
    assert isinstance(teacher.network, WideResNet)
    assert teacher.network.classifier is not None
    assert maps.shape == (5, 64, 2, 2)
    assert teacher.num_filters == 64
    torch.testing.assert_close(teacher.network.classifier(pool(maps)), logits)
    assert (maps >= 0).all()
    torch.testing.assert_close(teacher.activations(raw), maps.mean((2, 3)))


def test_normalisation_is_part_of_the_network() -> None:
    raw = torch.tensor([[[[0, 100], [150, 250]]]], dtype=torch.uint8)
    torch.testing.assert_close(normalise()(raw), torch.tensor([[[[-2.0, 0.0], [1.0, 3.0]]]]))


def test_any_module_factory_serves_by_its_dotted_path() -> None:
    config = TeacherConfig(model="tests.test_teacher:TinyNet", features="trunk", args={"classes": 7})
    teacher = build_teacher(config, (1, 8, 8), 7, normalise())
    maps, logits = teacher(torch.zeros(2, 1, 8, 8))
    assert maps.shape == (2, 6, 8, 8)
    assert logits.shape == (2, 7)
    assert teacher.num_filters == 6
    assert teacher.training


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (TeacherConfig(model="resnet"), "write wrn-DEPTH-WIDTH, .* or strided-DEPTH-WIDTH, or package.module:factory"),
        (TeacherConfig(model="no.such.module:x"), "No module named"),
        (TeacherConfig(model="tests.test_teacher:Nothing"), "has no attribute"),
        (
            TeacherConfig(model="tests.test_teacher:TinyNet", features="trunc"),
            "no such submodule; there are trunk, head",
        ),
        (TeacherConfig(model="tests.test_teacher:TinyNet"), "name the submodule"),
        (
            TeacherConfig(model="tests.test_teacher:TinyNet", features="trunk", args={"k": 1}),
            "failed with teacher.args: TypeError",
        ),
        (TeacherConfig(model="tests.test_teacher:normalise", features="x"), "no such submodule"),
        (TeacherConfig(model="builtins:dict", features="x"), "gave a dict, not a torch.nn.Module"),
        (
            TeacherConfig(model="tests.test_teacher:TinyNet", features="trunk", args={"classes": 3}),
            r"gives \[3\] logits",
        ),
    ],
)
def test_a_teacher_that_cannot_be_made_says_why(config: TeacherConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_teacher(config, (1, 8, 8), 10, normalise())


def test_a_teacher_that_does_not_take_the_input_says_so() -> None:
    config = TeacherConfig(model="tests.test_teacher:TinyNet", features="trunk")
    with pytest.raises(ConfigError, match=r"does not accept inputs \[3, 8, 8\]"):
        build_teacher(config, (3, 8, 8), 10, Normalise([0.0] * 3, [1.0] * 3, 2))


def test_weights_are_loaded_strictly(tmp_path: Path) -> None:
    first, second = TinyNet(), TinyNet()
    save_file(first.state_dict(), tmp_path / "w.safetensors")
    load_weights(second, tmp_path / "w.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    with pytest.raises(ConfigError, match="no such weights file"):
        load_weights(second, tmp_path / "x.safetensors")
    with pytest.raises(ConfigError, match="of another network"):
        load_weights(TinyNet(classes=3), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"half")
    with pytest.raises(ConfigError, match="not a readable safetensors file"):
        load_weights(second, tmp_path / "w.safetensors")


def test_two_teachers_do_not_share_their_hooks() -> None:
    config = TeacherConfig(model="wrn-10-1")
    one, two = (build_teacher(config, (1, 8, 8), 10, normalise()).eval() for _ in range(2))
    x = torch.as_tensor(np.arange(64, dtype=np.float32).reshape(1, 1, 8, 8))
    alone = one(x)[0]
    two(x)
    torch.testing.assert_close(one(x)[0], alone)
    assert isinstance(one, Teacher)
