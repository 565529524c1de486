"""Which optional dependency belongs to which extra, read from the metadata of the installed distribution."""

from __future__ import annotations

import re

from nonn.errors import MissingExtraError

__all__ = ["missing_extra", "requirements"]

# Packages whose import name differs from their distribution name.
_DISTRIBUTION = {"PIL": "pillow", "sklearn": "scikit-learn", "opentelemetry": "opentelemetry-sdk"}


def requirements() -> dict[str, list[str]]:
    """Distributions that each extra needs, by extra; the base install is ``""``.

    ``all``, ``dev`` and ``docs`` are left out: no command needs them.
    """
    import importlib.metadata  # here, since it takes 30 ms

    found: dict[str, list[str]] = {}
    for line in importlib.metadata.requires("nonn") or []:
        name = re.split(r"[^A-Za-z0-9._-]", line, maxsplit=1)[0]
        match = re.search(r"extra == ['\"]([^'\"]+)", line)
        extra = match[1] if match else ""
        if extra not in ("all", "dev", "docs"):
            found.setdefault(extra, []).append(name)
    return found


def missing_extra(exc: ModuleNotFoundError) -> MissingExtraError | None:
    """The error to show for a module that could not be imported; None if no extra of nonn contains it."""
    module = (exc.name or "").partition(".")[0]
    wanted = _DISTRIBUTION.get(module, module).replace("_", "-").lower()
    for extra, names in requirements().items():
        if extra and wanted in [name.lower() for name in names]:
            return MissingExtraError(module, extra)
    return None
