"""A section of ``make soak``: what it does to a cluster, and the guarantees that its figures must keep.

A module with an adversary defines its ``Section``; ``benchmarks.soak.SECTIONS`` lists them in the order in which they
run. All sections get the same ``Ground``, whose cluster keeps running from one to the next, as a real one does.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks import storm
from nonn.bundle import Bundle
from nonn.client import Client

__all__ = ["Figures", "Ground", "Section", "reasons"]

Figures = dict[str, Any]


@dataclass(frozen=True)
class Ground:
    """What sections use.

    Attributes:
        bundle: bundle of eight devices with a test for liars.
        inputs: its test samples [n, …].
        site: a running cluster of it, with a proxy before each node.
        client: client of the site's aggregator.
        folder: folder for files.
        args: options of the command.
    """

    bundle: Bundle
    inputs: NDArray[Any]
    site: storm.Site
    client: Client
    folder: Path
    args: argparse.Namespace


@dataclass(frozen=True)
class Section:
    """One section.

    Attributes:
        name: for ``--only`` and for messages.
        run: measures; the keys of its figures begin with its name or are its own.
        promises: each guarantee in words, and whether the figures keep it.
    """

    name: str
    run: Callable[[Ground], Figures]
    promises: Mapping[str, Callable[[Figures], bool]]

    def broken(self, figures: Figures) -> list[str]:
        """The guarantees that the figures break."""
        return [promise for promise, kept in self.promises.items() if not kept(figures)]


def reasons(records: list[storm.Record]) -> list[str]:
    """Errors of a few failed requests."""
    return sorted({record.error for record in records if record.error})[:5]
