"""Data in memory: one module per reader, one ``Dataset`` class for all.

A reader is imported when it is requested, so scikit-learn, pyarrow and Pillow load only where needed. Normalisation is
the first layer of each network and not done here, so training and serving cannot differ. ``nonn.data.augment``, the
only module here with torch, is imported only by the trainer.
"""

from __future__ import annotations

from collections.abc import Callable

from nonn.config import DataConfig
from nonn.data.cameras import with_cameras
from nonn.data.dataset import Dataset, Split
from nonn.data.source import Source
from nonn.data.splits import hold_out, skew
from nonn.errors import ConfigError
from nonn.toml import Registry

__all__ = ["READERS", "Dataset", "Split", "load_data"]

READERS: Registry[Callable[[DataConfig, int], Source]] = Registry(
    "nonn.readers",
    {
        "digits": "nonn.data.digits:read",
        "parquet": "nonn.data.parquet:read",
        "cifar": "nonn.data.cifar:read",
        "imagefolder": "nonn.data.imagefolder:read",
        "npz": "nonn.data.npz:read",
        "csv": "nonn.data.csv_windows:read",
        "idx": "nonn.data.idx:read",
    },
)


def load_data(config: DataConfig, seed: int) -> Dataset:
    """Reads the data of an experiment and splits it; equal arguments and files give equal splits.

    Args:
        config: reader, files and shares.
        seed: seed of the held-out split, and the test split where the files have none; not negative.

    Raises:
        ConfigError: the reader is unknown, or the seed is negative.
        DataError: files are missing, broken or unsuitable for the reader; the message names the file.
        MissingExtraError: a package that the reader needs is not installed.
    """
    read = READERS.load(config.reader, "data.reader")
    if seed < 0:
        raise ConfigError(f"experiment.seed = {seed}: must not be negative")
    source = read(config, seed)
    if not isinstance(source, Source):
        given = type(source).__name__
        raise ConfigError(f"data.reader = {config.reader!r}: gave a {given}, not a nonn.data.source.Source")
    source = with_cameras(source, config.cameras, seed)
    source = skew(source, config.imbalance, seed)
    return hold_out(source, config.held_out, seed, config.held_out_by)
