"""Mean losses of the epochs of a training, as CSV at its end and for TensorBoard while it runs.

TensorBoard reads event files. They are in the folder of the training too, so that ``tensorboard --logdir
runs/<experiment>`` lists each training under the name of its stage. They need the extra ``tensorboard``.
"""

from __future__ import annotations

import contextlib
import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nonn.errors import MissingExtraError
from nonn.files import atomic_file

__all__ = ["LOSSES", "event_file", "event_writer", "write_losses"]

LOSSES = "losses.csv"


def write_losses(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Writes ``losses.csv``.

    Args:
        folder: folder of the training.
        history: mean losses of each epoch.
    """
    with atomic_file(folder / LOSSES) as file, file.open("w", newline="") as target:
        writer = csv.writer(target)
        writer.writerow(["epoch", *history[-1]])
        writer.writerows([epoch, *losses.values()] for epoch, losses in enumerate(history, start=1))


def event_writer() -> Any:
    """The class that writes event files.

    Raises:
        MissingExtraError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as exc:
        raise MissingExtraError("tensorboard", "tensorboard") from exc
    return SummaryWriter


@contextlib.contextmanager
def event_file(folder: Path) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Opens an event file at the first epoch.

    Args:
        folder: folder of the training.

    Yields:
        A function to call with the number of finished epochs and the mean losses of the last one.
    """
    writer: Any = None

    def write(epoch: int, losses: Mapping[str, float]) -> None:
        nonlocal writer
        if writer is None:  # a resumed training replaces epochs that were not in its checkpoint
            writer = event_writer()(folder, purge_step=epoch)
        for name, loss in losses.items():
            writer.add_scalar(f"loss/{name}", loss, epoch)
        writer.flush()

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
