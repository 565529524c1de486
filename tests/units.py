"""Reads units of systemd."""

from __future__ import annotations

import shlex
from pathlib import Path

__all__ = ["AGGREGATOR", "DEVICE", "limits_of", "memory_max_mb", "settings_of"]

PI = Path(__file__).parent.parent / "devices/pi"
AGGREGATOR, DEVICE = PI / "nonn-aggregator.service", PI / "nonn-device.service"


def settings_of(unit: Path) -> dict[str, list[str]]:
    """Values of each key, in order."""
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


def limits_of(unit: Path) -> list[str]:
    """The options of its command that limit requests, with their values."""
    words = shlex.split(settings_of(unit)["ExecStart"][0])
    return [part for at, word in enumerate(words) if word.startswith("--max-") for part in words[at : at + 2]]


def memory_max_mb(unit: Path) -> float:
    """The memory at which its process is killed, in MB of 10⁶ bytes."""
    (limit,) = settings_of(unit)["MemoryMax"]
    return int(limit.removesuffix("M")) * 1024 * 1024 / 1e6
