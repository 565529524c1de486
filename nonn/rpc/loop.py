"""The event loop of servers: uvloop if it is installed, otherwise asyncio's own.

An answer of eight devices wakes some twenty event loops; uvloop makes each of them cheaper. It is part of the extra
``serve``, not of a node's base install, which must stay small.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

__all__ = ["run"]

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to completion, as ``asyncio.run`` does."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run(main)
    return uvloop.run(main)
