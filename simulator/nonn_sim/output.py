"""Text files that a command writes."""

from __future__ import annotations

from pathlib import Path

from nonn.errors import ConfigError
from nonn.files import atomic_file

__all__ = ["write_output"]


def write_output(path: Path, text: str) -> None:
    """Writes a file of a command's results.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        with atomic_file(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as exc:
        raise ConfigError(f"{path}: cannot be written ({exc.strerror})") from exc
