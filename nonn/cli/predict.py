"""``nonn predict``: sends images or arrays to a running cluster."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nonn.answer import Answer
    from nonn.client import Metadata
    from nonn.rpc.wire import Array

SUMMARY = "send images or arrays to a running cluster"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument("address", metavar="ADDRESS", help="host:port of the aggregator")
    parser.add_argument(
        "files", type=Path, nargs="+", metavar="FILE", help="images, or .npy/.npz arrays of one sample or a batch"
    )
    parser.add_argument(
        "--timeout", type=float, default=10.0, metavar="S", help="seconds per request (default: %(default)s)"
    )
    parser.add_argument("--tls", type=Path, metavar="DIR", help="client folder written by nonn certs")
    parser.add_argument(
        "--token-file", type=Path, metavar="FILE", help="file with the token that the aggregator requires"
    )
    parser.add_argument("--insecure", action="store_true", help="send the token beyond loopback without TLS")
    parser.add_argument("--json", action="store_true", help="print only one JSON list on standard output")


def run(args: argparse.Namespace) -> int:
    """Sends the requests and prints the answers."""
    import json

    from nonn.client import Client

    with Client(args.address, args.timeout, tls=args.tls, token_file=args.token_file, insecure=args.insecure) as client:
        metadata = client.metadata()
        # Every file is read before the first request, so that a bad file fails at once.
        batches = [(file, _read(file, metadata)) for file in args.files]
        rows = [row for file, batch in batches for row in _rows(file, client.infer(batch), metadata)]
    if args.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(_line(row, metadata.num_devices))
    return 0


def _rows(file: Path, answer: Answer, metadata: Metadata) -> Iterator[dict[str, Any]]:
    """One row for each sample of a file."""
    for index, label in enumerate(answer.labels.tolist()):
        yield {
            "file": str(file),
            "index": index,
            "label": label,
            "class": metadata.classes[label],
            "confidence": float(answer.confidence[index]),
            "answered": answer.answered.nonzero()[0].tolist(),
            "degraded": answer.degraded,
            "expected_accuracy": answer.expected_accuracy,
            "failures": dict(answer.failures),
        }


def _line(row: dict[str, Any], num_devices: int) -> str:
    """A row as text."""
    devices = f"{len(row['answered'])} of {num_devices} devices answered"
    if row["degraded"]:
        devices += f" ({', '.join(map(str, row['answered']))})"
    return (
        f"{row['file']}[{row['index']}]: {row['class']}, confidence {row['confidence']:.1%}; "
        f"{devices}, expected accuracy {row['expected_accuracy']:.1%}"
    )


def _read(file: Path, metadata: Metadata) -> Array:
    """A batch [B, …] from a file; nothing is resized, since that would change what the accuracy was measured on.

    Raises:
        DataError: the file cannot be read.
        InputError: the cluster does not accept its contents.
    """
    import numpy as np

    from nonn.errors import InputError

    array = _read_array(file) if file.suffix in (".npy", ".npz") else _read_image(file, metadata)[None]
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iuf":
            raise InputError(f"{file}: array of {array.dtype}; send an array of numbers")
        with np.errstate(over="ignore"):  # a value too large becomes infinite, which is reported below
            array = array.astype(np.float32)
        if not np.isfinite(array).all():
            raise InputError(f"{file}: NaN, infinity or a value beyond float32; send finite numbers")
    if array.ndim == len(metadata.shape):
        array = array[None]
    if array.shape[1:] != metadata.shape:
        expected = ", ".join(map(str, metadata.shape))
        raise InputError(
            f"{file}: shape {list(array.shape)}; the cluster accepts samples of shape [{expected}], or batches "
            f"[B, {expected}]"
        )
    return array


def _read_array(file: Path) -> Array:
    """The array of a .npy file, or the one named ``inputs`` or the only one of a .npz file."""
    import zipfile

    import numpy as np

    from nonn.errors import DataError

    arrays: dict[str, Array]
    try:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            arrays = dict(loaded.items())
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as exc:
        raise DataError(f"{file}: cannot be read as a NumPy file ({exc})") from exc
    if "inputs" not in arrays and len(arrays) != 1:
        raise DataError(f"{file}: contains {', '.join(arrays) or 'nothing'}; name the array to send 'inputs'")
    return arrays.get("inputs", next(iter(arrays.values())))


def _read_image(file: Path, metadata: Metadata) -> Array:
    """An image as uint8 [C, H, W]: gray for one channel, RGB for three."""
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    from nonn.errors import DataError, InputError

    mode = {1: "L", 3: "RGB"}.get(metadata.shape[0]) if len(metadata.shape) == 3 else None
    if mode is None or metadata.dtype != "uint8":
        raise InputError(f"{file}: the cluster accepts {metadata.dtype} {list(metadata.shape)}, not images; send .npy")
    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert(mode))
    except FileNotFoundError:
        raise DataError(f"{file}: no such file") from None
    except (OSError, UnidentifiedImageError) as exc:
        raise DataError(f"{file}: cannot be read as an image ({exc})") from exc
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
