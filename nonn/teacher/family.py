"""A family of networks: the names of its members, such as ``wrn-16-1``, and the function that builds one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from nonn.errors import ConfigError
from nonn.teacher.convnet import ConvNet

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """Networks of one kind.

    Attributes:
        prefix: of their names.
        second: what the second number of a name is, ``WIDTH`` or ``GROWTH``, or several, ``WIDTHxWIDTH``; the first one
            is the depth.
        build: (depth, second numbers …, C of the input, K, spatial axes) → an untrained network.
        exists: (depth, second numbers …) → whether there is such a network.
        rule: describes the numbers that exist, for messages.
        depths: depths of the members among which ``student.model = "auto"`` chooses.
        seconds: second numbers of these members.
    """

    prefix: str
    second: str
    build: Callable[..., ConvNet]
    exists: Callable[..., bool]
    rule: str
    depths: tuple[int, ...]
    seconds: tuple[str, ...] = ("0.25", "0.5", "0.75", "1", "1.5", "2", "3", "4")

    @property
    def form(self) -> str:
        """The form of their names."""
        return f"{self.prefix}-DEPTH-{self.second}"

    @property
    def members(self) -> tuple[str, ...]:
        """Names of a range of sizes."""
        return tuple(f"{self.prefix}-{depth}-{second}" for depth in self.depths for second in self.seconds)

    def parse(self, name: str) -> tuple[int, *tuple[float, ...]] | None:
        """The numbers of a name; None for a name of another family.

        Raises:
            ConfigError: the family has no such network.
        """
        pattern = "x".join([r"(\d+(?:\.\d+)?)"] * len(self.second.split("x")))
        match = re.fullmatch(rf"{self.prefix}-(\d+)-{pattern}", name)
        if match is None:
            return None
        depth, seconds = int(match[1]), tuple(map(float, match.groups()[1:]))
        if not self.exists(depth, *seconds):
            raise ConfigError(f"model '{name}': {self.rule}")
        return depth, *seconds
