"""Raw samples of nodes whose owners send them (``--send-raw``), as recordings: one CSV file for each node.

Only the samples since the window before are written, so a file can be replayed as ``csv:FILE``. The pictures of a
camera become a folder of arrays ``.npy``, named by their times, which ``nonn predict`` reads.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from nonn.errors import ConfigError
from nonn.sensing import SensingSpec

__all__ = ["RawFolder"]


class RawFolder:
    """A folder of recordings.

    Args:
        path: the folder; created.

    Raises:
        ConfigError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as exc:
            raise ConfigError(f"--raw {path}: cannot be created ({exc.strerror})") from exc
        self._path, self._last = path, dict[str, float]()

    def add(self, node: str, spec: SensingSpec, end_s: float, raw: bytes) -> None:
        """Appends the new samples of a window, or writes a picture.

        Args:
            node: its id, which is a valid name of a file.
            spec: of its unit.
            end_s: end of the window on the node's clock.
            raw: the window [C, T] in float32, little-endian; or the picture [C, H, W] in bytes.
        """
        if len(raw) != spec.raw_bytes:
            return
        if spec.frame:
            folder = self._path / node
            folder.mkdir(exist_ok=True)
            np.save(folder / f"{end_s:.3f}.npy", np.frombuffer(raw, np.uint8).reshape(-1, *spec.frame))
            return
        window = np.frombuffer(raw, "<f4").reshape(len(spec.channels), spec.samples)
        times = end_s - np.arange(spec.samples - 1, -1, -1) / spec.rate_hz
        new = times > self._last.get(node, -np.inf) + 0.5 / spec.rate_hz
        self._last[node] = end_s
        file = self._path / f"{node}.csv"
        fresh = not file.exists()
        with file.open("a", newline="") as target:
            writer = csv.writer(target)
            if fresh:
                writer.writerow(["time", *spec.channels])
            writer.writerows(
                [f"{at:.6f}", *(f"{v:.7g}" for v in row)] for at, row in zip(times[new], window.T[new], strict=True)
            )
