"""Networks outside of the zoo: ``package.module:factory``, or a name of an installed package.

The factory is called, and the network that it returns is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from nonn.config.models import NETWORKS, ModelName, Table
from nonn.errors import ConfigError
from nonn.teacher.zoo import is_known

__all__ = ["from_factory", "is_foreign"]


def is_foreign(model: str) -> bool:
    """Whether a model is not of the zoo.

    Raises:
        ConfigError: it has a name of a family of the zoo, but the family has no such network.
    """
    return ":" in model or not is_known(model)


def from_factory(table: Table, model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Calls a factory.

    Args:
        table: of the experiment file, ``teacher`` or ``student``.
        model: ``package.module:factory``, or a name of an installed package.
        arguments: keyword arguments of the factory.

    Raises:
        ConfigError: there is no such factory, it fails, or it does not return a network.
    """
    if rule := ModelName(table).broken(model):
        raise ConfigError(f"{table}.model = '{model}': {rule}")
    factory = NETWORKS[table].load(model, f"{table}.model")
    try:
        network = factory(**arguments)
    except Exception as exc:  # foreign code may raise any error; the user can fix it in the experiment file
        raise ConfigError(f"{table}.model = '{model}' failed with {table}.args: {type(exc).__name__}: {exc}") from exc
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{table}.model = '{model}': gave a {type(network).__name__}, not a torch.nn.Module")
    return network
