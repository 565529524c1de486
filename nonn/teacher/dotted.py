"""Networks by dotted path: ``package.module:factory`` is called, and the network it returns is checked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from torch import nn

from nonn.errors import ConfigError

__all__ = ["from_path", "is_path"]


def is_path(model: str) -> bool:
    """Whether a model is a dotted path, not a name."""
    return ":" in model


def from_path(table: str, path: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Calls a factory.

    Args:
        table: of the experiment file, ``teacher`` or ``student``, for messages.
        path: ``package.module:factory``.
        arguments: keyword arguments of the factory.

    Raises:
        ConfigError: there is no such factory, it fails, or it does not return a network.
    """
    module_name, _, name = path.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as exc:  # ValueError: the name of the module is empty
        raise ConfigError(f"{table}.model = '{path}': {exc}") from exc
    try:
        network = factory(**arguments)
    except Exception as exc:  # foreign code may raise any error; the user can fix it in the experiment file
        raise ConfigError(f"{table}.model = '{path}' failed with {table}.args: {type(exc).__name__}: {exc}") from exc
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{table}.model = '{path}': gave a {type(network).__name__}, not a torch.nn.Module")
    return network
