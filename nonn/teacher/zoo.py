"""Networks by name, for teachers and students: one file per family."""

from __future__ import annotations

from nonn.errors import ConfigError
from nonn.teacher.convnet import ConvNet
from nonn.teacher.strided import Strided, parse_strided
from nonn.teacher.wrn import parse_wrn, wrn

__all__ = ["KNOWN", "is_known", "make_network"]

KNOWN = "wrn-DEPTH-WIDTH or strided-DEPTH-WIDTH"


def is_known(name: str) -> bool:
    """Whether a name belongs to a family of the zoo.

    Raises:
        ConfigError: it does, but the family has no such network.
    """
    return parse_wrn(name) is not None or parse_strided(name) is not None


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
    if parse_wrn(name) is not None:
        return wrn(name, in_channels, num_classes, dims)
    if (parsed := parse_strided(name)) is not None:
        return Strided(*parsed, in_channels, num_classes, dims)
    raise ConfigError(f"model '{name}': unknown; write {KNOWN}, for example wrn-16-1")
