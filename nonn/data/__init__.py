"""Data in memory: one module per reader, one ``Dataset`` class for all.

A reader is imported when it is requested, so scikit-learn, pyarrow and Pillow load only where needed. Normalisation is
the first layer of each network and not done here, so training and serving cannot differ. ``nonn.data.augment``, the
only module here with torch, is imported only by the trainer.
"""

from __future__ import annotations

import importlib

from nonn.config import DataConfig
from nonn.data.dataset import Dataset, Split
from nonn.data.splits import hold_out
from nonn.errors import ConfigError, MissingExtraError
from nonn.toml import did_you_mean

__all__ = ["READERS", "Dataset", "Split", "load_data"]

READERS = {
    "digits": "nonn.data.digits",
    "parquet": "nonn.data.parquet",
    "cifar": "nonn.data.cifar",
    "imagefolder": "nonn.data.imagefolder",
    "npz": "nonn.data.npz",
}


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
    if config.reader not in READERS:
        raise ConfigError(f"data.reader = {config.reader!r}: unknown; {did_you_mean(config.reader, READERS)}")
    if seed < 0:
        raise ConfigError(f"experiment.seed = {seed}: must not be negative")
    try:
        reader = importlib.import_module(READERS[config.reader])
    except ModuleNotFoundError as exc:
        package = (exc.name or "").partition(".")[0]
        if package in ("", "nonn"):
            raise
        raise MissingExtraError(package, "train") from exc
    return hold_out(reader.read(config, seed), config.held_out, seed, config.held_out_by)
