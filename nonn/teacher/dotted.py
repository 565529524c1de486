"""Networks outside of the zoo: ``package.module:factory``, or a name of an installed package.

The factory is called, and the network that it returns is checked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from nonn.errors import ConfigError
from nonn.teacher.zoo import KNOWN, is_known
from nonn.toml.registry import Registry, is_path

__all__ = ["NETWORKS", "from_factory", "is_foreign"]

# By the table of the experiment file; names of the zoo have a pattern (``nonn.teacher.zoo``).
NETWORKS: Mapping[str, Registry[Callable[..., nn.Module]]] = {
    "teacher": Registry("nonn.teachers", {}),
    "student": Registry("nonn.students", {}),
}


def is_foreign(model: str) -> bool:
    """Whether a model is not of the zoo.

    Raises:
        ConfigError: it has a name of a family of the zoo, but the family has no such network.
    """
    return ":" in model or not is_known(model)


def from_factory(table: str, model: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Calls a factory.

    Args:
        table: of the experiment file, ``teacher`` or ``student``.
        model: ``package.module:factory``, or a name of an installed package.
        arguments: keyword arguments of the factory.

    Raises:
        ConfigError: there is no such factory, it fails, or it does not return a network.
    """
    if not is_path(model) and model not in NETWORKS[table]:
        installed = "".join(f"{name}, " for name in NETWORKS[table])
        raise ConfigError(f"{table}.model = '{model}': unknown; write {KNOWN}, {installed}or package.module:factory")
    factory = NETWORKS[table].load(model, f"{table}.model")
    try:
        network = factory(**arguments)
    except Exception as exc:  # foreign code may raise any error; the user can fix it in the experiment file
        raise ConfigError(f"{table}.model = '{model}' failed with {table}.args: {type(exc).__name__}: {exc}") from exc
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{table}.model = '{model}': gave a {type(network).__name__}, not a torch.nn.Module")
    return network
