"""The configuration in the keys of stages.

A key changes with every option that changes a result. Runs of nonn 0.1 stay finished: options that 0.1 does not have
are left out at the values at which the result is that of 0.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nonn.config import DistillConfig
from nonn.files import sha256_file
from nonn.toml.registry import is_path, source_of

__all__ = ["distillation_inputs", "stage_inputs"]


def distillation_inputs(config: DistillConfig) -> dict[str, Any]:
    """The configuration for the keys of stages, as 0.1 has it, so that finished stages are recognised.

    Options that 0.1 does not have are left out at their defaults, and its later objectives where their weight is 0.
    """
    tree = stage_inputs(config)
    tree["objectives"] = {
        name: options for name, options in tree["objectives"].items() if name in _OBJECTIVES or options.get("weight")
    }
    for objective in tree["objectives"].values():
        if objective.get("on") == "device":
            objective["on"] = "own"
    if config.objectives.simreg.teachers and config.objectives.simreg.weight:
        tree["objectives"]["simreg"]["teachers"] = [sha256_file(Path(p)) for p in config.objectives.simreg.teachers]
    if config.picture:
        tree["picture"] = sha256_file(Path(config.picture))
    return tree


# Objectives that 0.1 had.
_OBJECTIVES = {"ce", "kd", "dkd", "mutual", "transfer", "hint", "at", "srrl", "sp", "rkd", "pkt", "fsp", "lckd", "vid",
               "crd", "srm", "simreg", "others"}  # fmt: skip

# Options that 0.1 did not have, with the values at which a result is that of 0.1. How steps are executed never matters.
_LATER: dict[str, Any] = {
    "teacher_views": 0,
    "failout_draws": 1,
    "device_weight": 1.0,
    "only_wrong": False,
    "pooled": False,
    "captured": ...,
    "originals": True,
    "hidden": 512,
    "updates": 1000,
    "epoch_steps": 8,
    "normalise": "data",
    "mean": (),
    "std": (),
    "columns": (),
    "rate_hz": 25.0,
    "window_s": 5.0,
    "hop_s": 0.0,
    "imbalance": 1.0,
    "picture": "",
    "teachers": (),
    "patches": 5000,
    "balanced": False,
    "head_to_tail": 0.0,
    "others": {},
    "top_k": 0,
    "selection": 0.0,
    "curriculum": 0,
    "blockwise": 0,
    "resolution": 0,
    "cameras": 0,
    "branches": 0,
    "modality_dropout": 0.0,
    "branch_weight": 1.0,
    "branch_share": 0.0,
    "heading": 0.0,
    "accelerometer": 0,
    "magnetometer": 2,
}


def stage_inputs(config: Any, *without: str) -> dict[str, Any]:
    """A table of the configuration for the key of a stage, as 0.1 has it, so that finished stages are recognised.

    Args:
        config: the table.
        without: options that do not change the result.

    Returns:
        The options, and the hash of each file outside of nonn that they name.
    """
    tree = _as_before({k: v for k, v in dataclasses.asdict(config).items() if k not in without})
    code = {path: sha256_file(file) for path in sorted(_paths(tree)) if (file := source_of(path)) is not None}
    return tree | {"code": code} if code else tree


def _paths(tree: Mapping[str, Any]) -> Iterator[str]:
    """Names of code outside of nonn in a table, whose change changes the result; not of models, whose keys 0.1 had."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _paths(value)
        yield from (name for name in (key, value) if key != "model" and isinstance(name, str) and is_path(name))


def _as_before(tree: dict[str, Any]) -> dict[str, Any]:
    """Without later options at their defaults."""
    return {
        key: _as_before(value) if isinstance(value, dict) else value
        for key, value in tree.items()
        if key not in _LATER or _LATER[key] not in (..., value)
    }
