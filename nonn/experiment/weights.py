"""Files of trained networks; those of students also have the partition that they learned, for ``student.weights``."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save

from nonn.config import StudentConfig
from nonn.distill import Students
from nonn.errors import ConfigError
from nonn.files import atomic_file
from nonn.partition import Partition

__all__ = ["given_students", "partition_of", "save_network", "save_students"]


def given_students(config: StudentConfig) -> Path | None:
    """The file of ``student.weights``; None if it is empty.

    Raises:
        ConfigError: there is no such file.
    """
    if not config.weights:
        return None
    path = Path(config.weights).expanduser()
    if not path.is_file():
        raise ConfigError(f"student.weights = '{config.weights}': no such file")
    return path


def save_network(network: torch.nn.Module, path: Path) -> None:
    """Writes the weights of a network."""
    with atomic_file(path) as file:
        file.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}))


def save_students(students: Students, partition: Partition, path: Path, *, half: bool = False) -> None:
    """Writes a file of students.

    Args:
        students: the students.
        partition: the parts that they learned.
        path: file to write.
        half: round weights to float16; statistics of normalisations stay float32.
    """
    tensors = {}
    for name, value in students.state_dict().items():
        narrow = half and value.is_floating_point() and "running" not in name
        tensors[name] = (value.half() if narrow else value).detach().cpu().contiguous()
        if narrow and not torch.isfinite(tensors[name]).all():
            raise ConfigError(f"{path}: '{name}' has values beyond float16; keep float32")
    with atomic_file(path) as file:
        file.write_bytes(save(tensors, metadata={"partition": json.dumps(partition.to_json())}))


def partition_of(path: Path) -> Partition | None:
    """The partition in a file of students; None if it has none.

    Raises:
        ConfigError: the file is not readable.
    """
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get("partition")
        return None if text is None else Partition.from_json(json.loads(text))
    except Exception as exc:  # safetensors raises its own error class for a truncated or foreign file
        raise ConfigError(f"{path}: not a readable file of students ({exc})") from exc
