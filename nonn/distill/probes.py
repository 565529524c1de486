"""Access of objectives to the inside of a network: earlier layers, and the teacher's classifier."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nonn.errors import ConfigError
from nonn.teacher import Branches, Teacher, WideResNet, pool
from nonn.teacher.wrn import Block

__all__ = ["LastBlock", "blocks", "classifier_weight", "last_block", "layers", "tapped"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_TOLERANCE = 0.05  # relative to the logits' norm; bfloat16 has three digits


def layers(network: nn.Module) -> dict[str, nn.Module]:
    """Layers at which two networks can be compared, by name, in order from the input.

    ``stem`` is the first convolution; wide residual networks also have ``stage-1`` and ``stage-2``, the last block
    before each halving of the resolution.

    Raises:
        ConfigError: the network has no convolution, or branches.
    """
    if isinstance(network, Branches):
        raise ConfigError("objectives on earlier layers need a teacher of one network; set teacher.branches = 0")
    stem = next((m for m in network.modules() if isinstance(m, _CONVOLUTIONS)), None)
    if stem is None:
        raise ConfigError("objectives on earlier layers compare convolutional ones, and this network has none")
    found: dict[str, nn.Module] = {"stem": stem}
    if isinstance(network, WideResNet):
        blocks = [m for m in network.features if isinstance(m, Block)]
        ends = [a for a, b in itertools.pairwise(blocks) if _stride(b.first) > 1]
        found |= {f"stage-{i}": block for i, block in enumerate(ends, start=1)}
    return found


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The ``layers`` of a network, and all blocks of a wide residual one, ``block-STAGE-NUMBER``, counted from 1.

    Raises:
        ConfigError: the network has no convolution.
    """
    found, stage, number = layers(network), 1, 0
    for module in network.features if isinstance(network, WideResNet) else ():
        if isinstance(module, Block):
            stage, number = (stage + 1, 1) if _stride(module.first) > 1 else (stage, number + 1)
            found[f"block-{stage}-{number}"] = module
    return found


def _stride(convolution: nn.Module) -> int:
    assert isinstance(convolution, _CONVOLUTIONS)
    return convolution.stride[0]


@contextlib.contextmanager
def tapped(
    networks: Sequence[nn.Module], find: Callable[[nn.Module], Mapping[str, nn.Module]] = layers
) -> Iterator[list[Mapping[str, Tensor]]]:
    """Records layers of networks while they run inside this context: ``layers``, or what another function finds.

    Hooks are set on these module instances and removed afterwards: some public code leaves hooks on a class.

    Yields:
        For each network a mapping, filled by its forward pass, from a layer's name to its output [B, C, …].
    """
    outputs: list[dict[str, Tensor]] = [{} for _ in networks]
    handles = []

    def keep(into: dict[str, Tensor], name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            into[name] = output

        return hook

    for network, into in zip(networks, outputs, strict=True):
        handles += [layer.register_forward_hook(keep(into, name)) for name, layer in find(network).items()]
    try:
        yield list(outputs)
    finally:
        for handle in handles:
            handle.remove()


class LastBlock(nn.Module):
    """The layers of a network after one of its stages, trainable: maps of that stage [B, C, …] → logits [B, K]."""

    def __init__(self, layers: Sequence[nn.Module], classifier: nn.Module) -> None:
        super().__init__()
        self.layers, self.classifier = copy.deepcopy(nn.Sequential(*layers)), copy.deepcopy(classifier)
        self.requires_grad_(True)

    def forward(self, maps: Tensor) -> Tensor:
        """[B, K]."""
        logits: Tensor = self.classifier(pool(self.layers(maps)))
        return logits


def last_block(teacher: Teacher, key: str) -> tuple[str, LastBlock]:
    """The name of the last of a teacher's ``layers``, and a trainable copy of all that follows it.

    Args:
        teacher: the teacher.
        key: key of the experiment file that needs it, for the message.

    Raises:
        ConfigError: its network is not one whose stages are known.
    """
    network = teacher.network
    if not isinstance(network, WideResNet) or network.classifier is None or len(names := [*layers(network)]) < 2:
        raise ConfigError(
            f"{key}: needs a teacher whose last block is known; choose teacher.model = 'wrn-…' or 'se-wrn-…'"
        )
    before = [*network.features].index(layers(network)[names[-1]])
    return names[-1], LastBlock([*network.features][before + 1 :], network.classifier)


@torch.no_grad()
def classifier_weight(teacher: Teacher, maps: Tensor, logits: Tensor) -> Tensor:
    """The weights [K, C_T] of the linear layer that turns the teacher's mean filters into its logits.

    Args:
        teacher: network to search for such a layer.
        maps: its filters for a batch [B, C_T, …].
        logits: its logits for the same batch [B, K]; a layer that does not reproduce them is rejected.

    Raises:
        ConfigError: there is no such layer.
    """
    pooled, answer = pool(maps), logits.float()
    for layer in reversed([m for m in teacher.network.modules() if isinstance(m, nn.Linear)]):
        if layer.weight.shape == (answer.shape[1], pooled.shape[1]):
            with torch.autocast(pooled.device.type, enabled=False):
                again = nn.functional.linear(pooled, layer.weight, layer.bias)
            if (again - answer).norm() <= _TOLERANCE * answer.norm():
                return layer.weight
    raise ConfigError(
        "distill.objectives: srrl and on = 'partial' need a teacher whose logits are one linear layer over the mean "
        "of its final filters, and this one's are not; use another objective"
    )
