"""The policy as a TOML file.

::

    [policy]
    deadline_s = 0.5
    quorum = 3
    accuracy_per_ms = 0.0001    # a hundredth of a point of accuracy is worth a millisecond

Missing keys have their defaults; every key is an attribute of ``nonn.aggregator.policy.PolicyConfig``. It is the same
table as in a scenario file of the simulator.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nonn.aggregator.policy.config import PolicyConfig
from nonn.errors import ConfigError
from nonn.files import atomic_file
from nonn.toml import from_mapping, parse_toml, toml_value

__all__ = ["load_policy", "write_policy"]


def load_policy(path: Path) -> PolicyConfig:
    """Reads and checks a policy.

    Raises:
        ConfigError: the file is missing or not TOML, a key is unknown, or a value is invalid; it names file and key.
    """
    tree = parse_toml(path)
    for key in tree:
        if key != "policy":
            raise ConfigError(f"{path}: unknown key '{key}'; a policy is one table, [policy]")
    table = tree.get("policy")
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: no [policy] table")
    return from_mapping(PolicyConfig, table, source=str(path), prefix="policy.")


def write_policy(path: Path, config: PolicyConfig) -> None:
    """A policy as text that ``load_policy`` reads."""
    lines = (f"{spec.name} = {toml_value(getattr(config, spec.name))}\n" for spec in dataclasses.fields(config))
    with atomic_file(path) as temporary:
        temporary.write_text("[policy]\n" + "".join(lines))
