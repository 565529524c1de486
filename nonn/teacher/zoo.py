"""Networks by name, for teachers and students: one file per family; ``nonn.config.models`` lists their names."""

from __future__ import annotations

import torch

from nonn.config.models import KNOWN
from nonn.errors import ConfigError
from nonn.teacher.binary_wrn import FAMILY as BINARY_WRN
from nonn.teacher.convnet import ConvNet
from nonn.teacher.densenet import FAMILY as DENSENET
from nonn.teacher.family import Family
from nonn.teacher.inverted import FAMILY as INVERTED
from nonn.teacher.inverted import SE_FAMILY as SE_INVERTED
from nonn.teacher.lma_wrn import FAMILY as LMA_WRN
from nonn.teacher.se_wrn import FAMILY as SE_WRN
from nonn.teacher.staged_wrn import FAMILY as STAGED_WRN
from nonn.teacher.strided import FAMILY as STRIDED
from nonn.teacher.tissue import FAMILY as TISSUE
from nonn.teacher.wrn import FAMILY as WRN

__all__ = ["FAMILIES", "family_named", "is_known", "make_network"]

FAMILIES: tuple[Family, ...] = (
    WRN,
    SE_WRN,
    DENSENET,
    INVERTED,
    SE_INVERTED,
    LMA_WRN,
    BINARY_WRN,
    STAGED_WRN,
    TISSUE,
    STRIDED,
)


def is_known(name: str) -> bool:
    """Whether a name belongs to a family of the zoo.

    Raises:
        ConfigError: it does, but the family has no such network.
    """
    return any(family.parse(name) is not None for family in FAMILIES)


def family_named(prefix: str) -> Family:
    """A family by the prefix of its names.

    Raises:
        ConfigError: there is no such family.
    """
    for family in FAMILIES:
        if family.prefix == prefix:
            return family
    known = ", ".join(family.prefix for family in FAMILIES)
    raise ConfigError(f"student.model: no family '{prefix}'; choose one of: {known}")


def make_network(name: str, in_channels: int, num_classes: int, dims: int) -> ConvNet:
    """Creates an untrained network by its name.

    Args:
        name: a name of a family of the zoo.
        in_channels: C of the input.
        num_classes: K; 0 omits the classifier.
        dims: spatial axes, 2 for images, 1 for sensor windows.

    Raises:
        ConfigError: the name belongs to no family, or the family has no such network.
    """
    for family in FAMILIES:
        if (numbers := family.parse(name)) is not None:
            network = family.build(*numbers, in_channels, num_classes, dims)
            # oneDNN's and cuDNN's convolutions are fastest with channels innermost.
            return network.to(memory_format=torch.channels_last) if dims == 2 else network  # type: ignore[call-overload]
    raise ConfigError(f"model '{name}': unknown; write {KNOWN}, for example wrn-16-1, or package.module:factory")
