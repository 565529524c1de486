"""The networks that a name makes: a family a file, for teachers and students alike."""

from __future__ import annotations

from nonn.errors import ConfigError
from nonn.teacher.convnet import ConvNet
from nonn.teacher.strided import Strided, parse_strided
from nonn.teacher.wrn import parse_wrn, wrn

__all__ = ["KNOWN", "is_known", "make_network"]

KNOWN = "wrn-DEPTH-WIDTH or strided-DEPTH-WIDTH"


def is_known(name: str) -> bool:
    """Whether a name is of a family here.

    Raises:
        ConfigError: it is, but no such member exists.
    """
    return parse_wrn(name) is not None or parse_strided(name) is not None


def make_network(name: str, in_channels: int, num_classes: int, dims: int) -> ConvNet:
    """An untrained network by its name.

    Args:
        name: of a family here.
        in_channels: C of the input.
        num_classes: K; 0 leaves the classifier away.
        dims: spatial axes, 2 for images, 1 for sensor windows.

    Raises:
        ConfigError: the name is of no family, or no such member exists.
    """
    if parse_wrn(name) is not None:
        return wrn(name, in_channels, num_classes, dims)
    if (parsed := parse_strided(name)) is not None:
        return Strided(*parsed, in_channels, num_classes, dims)
    raise ConfigError(f"model '{name}': unknown; write {KNOWN}, for example wrn-16-1")
