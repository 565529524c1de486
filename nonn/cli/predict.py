"""``nonn predict``: sends images or arrays to a running cluster.

Files are prepared as the reader of the training data prepared its own. A bad file costs that file only: it is named on
standard error, the others are answered, and the exit code is that of the first bad one.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from typing import TYPE_CHECKING, Any

from nonn.arguments import addresses, seconds
from nonn.cli._client_options import add_client_arguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from nonn.client import Metadata
    from nonn.errors import NonnError
    from nonn.rpc.wire import Array

SUMMARY = "send images or arrays to a running cluster"

BATCH = 256  # most inputs of a request
CONCURRENCY = 8  # requests under way


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the command's options."""
    parser.add_argument(
        "address", type=addresses, metavar="ADDRESS", help="host:port of the aggregator; several with commas"
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="image, or .npy or .npz array of one input or many; also a folder of them, a pattern such as 'a/*.png', "
        "or - for standard input, also a stream of PNG images",
    )
    parser.add_argument("--array", default="", metavar="NAME", help="array of .npz files to send (default: found)")
    parser.add_argument(
        "--resize",
        action="store_true",
        help="cut and scale images of another size, even if the training did not: the accuracy was not measured so",
    )
    parser.add_argument(
        "--timeout", type=seconds, default=10.0, metavar="S", help="seconds per request (default: %(default)s)"
    )
    add_client_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print only one JSON list on standard output")


def run(args: argparse.Namespace) -> int:
    """Sends the requests and prints the answers."""
    import json

    from nonn.bundle.inputs import STDIN
    from nonn.client import Client

    with Client(args.address, args.timeout, tls=args.tls, token_file=args.token_file, insecure=args.insecure) as client:
        metadata = client.metadata()
        batches = _Batches(args, metadata)
        rows = []
        concurrency = 1 if STDIN in args.files else CONCURRENCY  # frames of a camera are answered as they come
        while group := list(itertools.islice(batches, concurrency)):
            answers = client.infer_many([batch for _, _, batch in group], concurrency)
            for (file, first, _), answer in zip(group, answers, strict=True):
                for row in answer.rows(metadata.classes, first):
                    row = {"file": file, **row}
                    if args.json:
                        rows.append(row)
                    else:
                        print(_line(row, metadata.num_devices), flush=True)
    if args.json:
        print(json.dumps(rows))
    return batches.code


class _Batches:
    """The inputs of all files as (file, number of the first input, batch [B, …]); reports files that cannot be sent.

    Attributes:
        code: exit code of the first bad file; 0 without one.
    """

    def __init__(self, args: argparse.Namespace, metadata: Metadata) -> None:
        from nonn.bundle.inputs import InputReader

        steps = metadata.preprocess.resizing() if args.resize else metadata.preprocess
        self._reader = InputReader(metadata.shape, metadata.dtype, steps, args.array)
        self._size = min(BATCH, metadata.max_samples)
        self._names: list[str] = args.files
        self.code = 0
        self._all = self._generate()

    def __iter__(self) -> Iterator[tuple[str, int, Array]]:
        return self._all

    def _generate(self) -> Iterator[tuple[str, int, Array]]:
        from nonn.bundle.inputs import expand
        from nonn.errors import DataError, InputError

        for name in self._names:
            try:
                files = list(expand([name]))
            except InputError as exc:
                self._report(exc)
                continue
            for file in files:
                first = 0
                try:
                    for batch in self._reader.read(file, self._size):
                        yield file, first, batch
                        first += len(batch)
                except (DataError, InputError) as exc:
                    self._report(exc)

    def _report(self, error: NonnError) -> None:
        print(f"nonn predict: {error}", file=sys.stderr)
        self.code = self.code or error.exit_code


def _between(interval: tuple[float, float] | None) -> str:
    """A 95 % interval in brackets; nothing where an older aggregator states none."""
    return "" if interval is None else " (95 %: {:.1%} to {:.1%})".format(*interval)


def _line(row: dict[str, Any], num_devices: int) -> str:
    """A row as text."""
    devices = f"{len(row['answered'])} of {num_devices} devices answered"
    if row["degraded"]:
        devices += f" ({', '.join(map(str, row['answered']))})"
    return (
        f"{row['file']}[{row['index']}]: {row['class']}, confidence {row['confidence']:.1%}; "
        f"{devices}, expected accuracy {row['expected_accuracy']:.1%}{_between(row['expected_accuracy_interval'])}"
        + (f", estimated from other sets of {len(row['answered'])}" if row.get("expected_accuracy_estimated") else "")
    )
