"""Tables of the experiment file about the partition of the teacher's filters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from nonn.errors import ConfigError
from nonn.toml.constraints import Choice, Count, Range

__all__ = ["AUTO", "GraphConfig", "PartitionConfig"]

AUTO: Final = "auto"  # partition.parts: pilots choose the design


@dataclass(frozen=True, kw_only=True)
class GraphConfig:
    """The graph of the teacher's filters."""

    kind: Annotated[
        str,
        Choice("nonn.partition.graph:GRAPHS"),
        "edges between filters that are active on the same images, or those of NoNN: unequally active",
    ] = "co-activation"
    top: Annotated[
        int, Range(ge=2, why="an edge has two ends"), "nonn: number of most active filters of an image that form edges"
    ] = 50
    percentile: Annotated[
        Annotated[float, Range(ge=0, le=100)] | Literal["equal-degree"],
        "nonn: edges below this percentile of the non-zero ones are dropped; equal-degree: 100 − 256 / C, which keeps "
        "as many edges per filter as 99 does on 256 filters",
    ] = 99.0


@dataclass(frozen=True, kw_only=True)
class PartitionConfig:
    """The partition of the filters into parts."""

    method: Annotated[str, Choice("nonn.partition:METHODS"), "partitioner; docs/accuracy.md compares them"] = (
        "balanced-eigenvector"
    )
    parts: Annotated[
        Count | Literal["auto"],
        "number of parts M, at most devices.count; device i learns part i mod M; auto: pilots choose parts and overlap",
    ] = 8
    overlap: Annotated[Count, "consecutive parts that a device learns: 2 adds part i + 1 mod M, M is every filter"] = 1
    pilot_epochs: Annotated[Count, "parts = auto: epochs that each design is distilled for before one is chosen"] = 5

    @property
    def num_parts(self) -> int:
        """M.

        Raises:
            ConfigError: it is ``auto``, and pilots have not chosen it yet.
        """
        if self.parts == AUTO:
            raise ConfigError("partition.parts = 'auto': no number is chosen yet; `nonn run` chooses one, or set it")
        return self.parts
