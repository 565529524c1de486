"""Samples for a live run: from a file, an experiment, or the data that the bundle was trained on."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.bundle import Bundle, InputSpec
from nonn.errors import DataError, InputError
from nonn_sim.clients import RequestSamples

__all__ = ["noise", "own_samples", "samples_of"]


def noise(bundle: Bundle) -> RequestSamples:
    """Noise of the right shape, without labels."""
    spec = bundle.manifest.input
    return RequestSamples(np.random.default_rng(0).integers(0, 256, (256, *spec.shape)).astype(spec.dtype), None)


def samples_of(path: Path, bundle: Bundle) -> RequestSamples:
    """The test split of an experiment (``.toml``), or arrays ``inputs`` and ``labels`` of an ``.npz`` file.

    Raises:
        DataError: the file cannot be read or lacks an array.
        InputError: its arrays do not fit the bundle or each other.
    """
    spec = bundle.manifest.input
    if path.suffix == ".toml":
        from nonn.config import load_experiment
        from nonn.data import load_data

        experiment = load_experiment(path)
        test = load_data(experiment.data, experiment.experiment.seed).test
        return _fitting(path, test.inputs, test.labels, spec)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            inputs, labels = arrays["inputs"], arrays["labels"]
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as exc:
        raise DataError(f"{path}: not an .npz file with arrays 'inputs' and 'labels' ({exc})") from exc
    return _fitting(path, inputs, labels, spec)


def own_samples(bundle: Bundle) -> RequestSamples:
    """The test split that the table of a bundle was counted on; its data must be where they were in training.

    Raises:
        DataError: the bundle does not say which data, or they are missing.
    """
    from nonn.config import load_experiment
    from nonn.data import load_data

    config = bundle.manifest.provenance.get("config")
    if not isinstance(config, dict):
        raise DataError(f"{bundle.path}: the bundle does not say which data it was tested on; name them with --inputs")
    overrides = [f"data.{key}={json.dumps(value)}" for key, value in config["data"].items()]
    test = load_data(load_experiment(None, overrides).data, config["experiment"]["seed"]).test
    return _fitting(bundle.path, test.inputs, test.labels, bundle.manifest.input)


def _fitting(path: Path, inputs: NDArray[Any], labels: NDArray[Any], spec: InputSpec) -> RequestSamples:
    """Samples, if they fit the bundle and each other."""
    if inputs.shape[1:] != spec.shape or not len(inputs) or inputs.dtype not in (np.uint8, np.float32):
        wanted = ", ".join(map(str, spec.shape))
        raise InputError(
            f"{path}: inputs {inputs.dtype} {list(inputs.shape)}; the bundle accepts {spec.dtype} [n, {wanted}]"
        )
    if labels.shape != (len(inputs),) or labels.dtype.kind not in "iu":
        raise InputError(f"{path}: labels {labels.dtype} {list(labels.shape)} for {len(inputs)} inputs")
    return RequestSamples(inputs, labels.astype(np.int64))
