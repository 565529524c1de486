"""The teacher: any network, with its final convolutional stage captured by a hook and its input normalised inside.

The normalisation is part of the network, here and in the students, so training and serving cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nonn.bundle.views import WHOLE, View
from nonn.config import TeacherConfig
from nonn.config.models import KNOWN
from nonn.errors import ConfigError
from nonn.teacher.branches import Branches
from nonn.teacher.convnet import pool
from nonn.teacher.dotted import from_factory, is_foreign
from nonn.teacher.zoo import make_network

__all__ = ["Normalise", "Teacher", "build_teacher", "load_weights"]


class Normalise(nn.Module):
    """Raw values [B, C, …] → (x − mean) / std per channel.

    Args:
        mean: per channel [C].
        std: per channel [C].
        dims: spatial axes of the input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], dims: int) -> None:
        super().__init__()
        shape = (1, -1) + (1,) * dims
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).reshape(shape))
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float32).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Raw values [B, C, …] of any dtype → float32."""
        x = (x.float() - self.mean) / self.std
        # oneDNN's and cuDNN's convolutions are fastest with channels innermost.
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


class Teacher(nn.Module):
    """A network that also returns its final convolutional stage.

    Args:
        network: normalised inputs [B, C, …] → logits [B, K].
        features: name of the submodule whose output [B, C, …] is the final convolutional stage, after BN and ReLU.
        normalise: the network's first layer.

    Attributes:
        num_filters: C_T of the final convolutional stage; ``build_teacher`` sets it by a forward pass.

    Raises:
        ConfigError: there is no such submodule; the message lists the existing ones.
    """

    def __init__(self, network: nn.Module, features: str, normalise: Normalise) -> None:
        super().__init__()
        self.normalise, self.network = normalise, network
        try:
            stage = network.get_submodule(features)
        except AttributeError:
            names = ", ".join(name for name, _ in network.named_children())
            raise ConfigError(f"teacher.features = '{features}': no such submodule; there are {names}") from None
        if not features:
            raise ConfigError("teacher.features: name the submodule that is the final convolutional stage")
        self.num_filters = 0
        self._maps: Tensor | None = None
        stage.register_forward_hook(self._keep)

    def _keep(self, _module: nn.Module, _inputs: Any, output: Tensor) -> None:
        self._maps = output

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raw inputs [B, C, …] → feature maps [B, C_T, …] and logits [B, K], both float32."""
        logits = self.network(self.normalise(x))
        maps, self._maps = self._maps, None
        if maps is None or maps.ndim < 2 or len(maps) != len(x):
            raise ConfigError("teacher.features: the named submodule did not give one feature map for each input")
        return maps.float(), logits.float()

    def activations(self, x: Tensor) -> Tensor:
        """Mean activation of each final filter [B, C_T] for raw inputs [B, C, …]."""
        return pool(self(x)[0])


def build_teacher(
    config: TeacherConfig,
    input_shape: Sequence[int],
    num_classes: int,
    normalise: Normalise,
    views: Sequence[View] = (WHOLE,),
) -> Teacher:
    """Creates an untrained teacher from the configuration.

    Args:
        config: ``model`` is a name in the zoo or ``package.module:factory``; a factory is called with ``args`` and
            must return a network from normalised inputs [B, C, …] to logits [B, num_classes].
        input_shape: shape of one sample [C, H, W] or [C, T].
        num_classes: K.
        normalise: its first layer.
        views: of all devices; only ``config.branches`` uses them.

    Raises:
        ConfigError: the model cannot be created, or does not return ``num_classes`` logits.
    """
    if config.branches:
        if is_foreign(config.model):
            raise ConfigError(f"teacher.branches: teacher.model = '{config.model}' is not one of: {KNOWN}")
        different = tuple(dict.fromkeys(views))
        network: nn.Module = Branches(config.model, different, config.branches, input_shape, num_classes)
        features = "features"
    elif not is_foreign(config.model):
        network = make_network(config.model, input_shape[0], num_classes, len(input_shape) - 1)
        features = "features"
    else:
        network, features = from_factory("teacher", config.model, config.args), config.features
    teacher = Teacher(network, features, normalise)
    training = teacher.training
    with torch.no_grad():
        try:
            maps, logits = teacher.eval()(torch.zeros(2, *input_shape))
        except (RuntimeError, TypeError, ValueError) as exc:
            raise ConfigError(
                f"teacher.model = '{config.model}' does not accept inputs {list(input_shape)}: {exc}"
            ) from exc
    if logits.shape != (2, num_classes):
        raise ConfigError(f"teacher.model = '{config.model}' gives {list(logits.shape)[1:]} logits, not {num_classes}")
    teacher.num_filters = maps.shape[1]
    return teacher.train(training)


def load_weights(network: nn.Module, path: Path) -> None:
    """Loads a safetensors file into a network, strictly.

    The file of a whole ``Teacher``, as a run writes it, also suits its network.

    Raises:
        ConfigError: the file is missing or unreadable, or its tensors do not match the network.
    """
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such weights file") from None
    except Exception as exc:  # safetensors raises its own error class for a truncated or foreign file
        hint = ""
        if path.suffix in (".pt", ".pth", ".bin"):
            hint = "; convert it with safetensors.torch.save_file(torch.load(FILE, weights_only=True), NEW)"
        raise ConfigError(f"{path}: not a readable safetensors file ({exc}){hint}") from exc
    wanted = network.state_dict()
    if not isinstance(network, Teacher) and "normalise.mean" in tensors and "normalise.mean" not in wanted:
        tensors = {k.removeprefix("network."): v for k, v in tensors.items() if k.startswith("network.")}
    differences = {
        "missing": sorted(wanted.keys() - tensors.keys()),
        "unknown": sorted(tensors.keys() - wanted.keys()),
        "of another shape": sorted(k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape),
    }
    if any(differences.values()):
        found = ", ".join(f"{len(k)} tensors are {what} (such as '{k[0]}')" for what, k in differences.items() if k)
        raise ConfigError(f"{path}: these weights are of another network: {found}")
    network.load_state_dict(tensors)
