"""A family of networks: the names of its members, such as ``wrn-16-1``, and the function that builds one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nonn.config.models import numbers_of
from nonn.errors import ConfigError
from nonn.teacher.convnet import ConvNet

__all__ = ["Family"]


@dataclass(frozen=True)
class Family:
    """Networks of one kind.

    Attributes:
        prefix: of their names, listed in ``nonn.config.models``.
        build: (depth, second numbers …, C of the input, K, spatial axes) → an untrained network.
        exists: (depth, second numbers …) → whether there is such a network.
        rule: describes the numbers that exist, for messages.
        depths: depths of the members among which ``student.model = "auto"`` chooses.
        seconds: second numbers of these members.
    """

    prefix: str
    build: Callable[..., ConvNet]
    exists: Callable[..., bool]
    rule: str
    depths: tuple[int, ...]
    seconds: tuple[str, ...] = ("0.25", "0.5", "0.75", "1", "1.5", "2", "3", "4")

    @property
    def members(self) -> tuple[str, ...]:
        """Names of a range of sizes."""
        return tuple(f"{self.prefix}-{depth}-{second}" for depth in self.depths for second in self.seconds)

    def parse(self, name: str) -> tuple[int, *tuple[float, ...]] | None:
        """The numbers of a name; None for a name of another family.

        Raises:
            ConfigError: the family has no such network.
        """
        numbers = numbers_of(self.prefix, name)
        if numbers is not None and not self.exists(*numbers):
            raise ConfigError(f"model '{name}': {self.rule}")
        return numbers
