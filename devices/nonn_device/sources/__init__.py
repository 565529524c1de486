"""Sources of samples or pictures: ``--source KIND:WHERE?OPTION=VALUE&…``.

==================================  ==================================================================================
``csv:FILE``                        a recording, replayed; ``start``: Unix time of its first sample
``iio:DEVICE,DEVICE``               sensors of Linux IIO, by number or name, as on a Sense HAT; ``rate``
``serial:PORT``                     lines of numbers from a serial port; ``baud``
``mqtt:HOST[:PORT]/TOPIC``          the same lines from an MQTT broker
``-``                               the same lines from standard input, so that any program can feed a node
``v4l2:DEVICE``                     a camera, through ffmpeg; ``rate``, ``delay``
``video:FILE``                      a recorded video, through ffmpeg, replayed; ``start``
``picamera2:NUMBER``                a camera of a Raspberry Pi, where picamera2 is installed
``package.module:factory``          an asynchronous iterator of (time, values) of your own
==================================  ==================================================================================

Every kind also takes ``speed``, how much faster than life a recording is replayed, and ``offset`` (seconds) and
``drift`` (ppm), errors of the node's clock for experiments.

A source yields ``Samples`` in the units of the bundle, with times of the node's ``DataClock``. Each module is imported
only if it is used; ``mqtt`` needs an extra, cameras need programs of the system, and all else the base install.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl

import numpy as np
from numpy.typing import NDArray

from nonn.errors import ConfigError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock

__all__ = [
    "CLOCK_OPTIONS",
    "FORMS",
    "SampleSource",
    "Samples",
    "SourceOptions",
    "check_source",
    "open_source",
    "parse_source",
]

FORMS = (
    "csv:FILE, iio:DEVICE, serial:PORT, mqtt:HOST/TOPIC, - for standard input, v4l2:DEVICE, video:FILE, "
    "picamera2:NUMBER, or package.module:factory in the current folder or on the PYTHONPATH"
)
CLOCK_OPTIONS = ("speed", "offset", "drift")
_CAMERAS = ("v4l2", "video", "picamera2")
# Module and options of each kind.
_KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "csv": ("recording", ("start",)),
    "iio": ("iio", ("rate",)),
    "serial": ("lines", ("baud",)),
    "mqtt": ("mqtt", ()),
    "-": ("lines", ()),
    "v4l2": ("camera", ("rate", "delay")),
    "video": ("camera", ("start",)),
    "picamera2": ("picamera", ()),
}


class Samples(NamedTuple):
    """Samples, or pictures, in the order of their times.

    Attributes:
        times: on the node's clock [n], in seconds.
        values: in the units of the bundle [n, C]; NaN where the sensor gave no number. Pictures [n, C, H, W] in bytes.
    """

    times: NDArray[np.float64]
    values: NDArray[Any]


class SampleSource(Protocol):
    """A source; ends when a recording does."""

    def __call__(self) -> AsyncIterator[Samples]:
        """The samples from now on.

        Raises:
            DataError: the source does not exist, or is not one of the bundle's channels and rate.
        """
        ...


@dataclass(frozen=True)
class SourceOptions:
    """A parsed ``--source``.

    Attributes:
        text: as given, for messages.
        kind: ``csv``, ``iio``, ``serial``, ``mqtt``, ``-``, ``v4l2``, ``video``, ``picamera2``, or ``factory``.
        where: file, device, port, or dotted path.
        options: of the kind; numbers, except for a factory.
    """

    text: str
    kind: str
    where: str
    options: dict[str, Any]

    def clock(self) -> DataClock:
        """The clock of the node."""
        options = self.options
        return DataClock(options.get("speed", 1.0), options.get("offset", 0.0), options.get("drift", 0.0))

    def start_s(self, clock: DataClock) -> float:
        """When a recording starts, in seconds of the data: at ``start``, or now."""
        return self.options["start"] * clock.speed if "start" in self.options else clock.true()


def parse_source(text: str) -> SourceOptions:
    """Reads the option ``--source``.

    Raises:
        ConfigError: the kind or one of its options is unknown, or a value is not a number.
    """
    where, _, query = text.partition("?")
    kind, _, rest = where.partition(":")
    if kind not in _KINDS and kind.replace(".", "_").isidentifier() and rest.isidentifier():
        kind, rest = "factory", where
    elif kind not in _KINDS or bool(rest) == (kind == "-"):
        raise ConfigError(f"--source {text}: must be {FORMS}")
    options: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if kind != "factory" and key not in (known := (*_KINDS[kind][1], *CLOCK_OPTIONS)):
            from nonn.toml import did_you_mean  # 1 MB that a node does not need

            raise ConfigError(f"--source {text}: option '{key}' is unknown; {did_you_mean(key, known)}")
        try:
            options[key] = float(value)
        except ValueError:
            if kind != "factory" or key in CLOCK_OPTIONS:
                raise ConfigError(f"--source {text}: {key}={value} is not a number") from None
            options[key] = value
    for key in ("speed", "rate", "baud"):
        if (kind != "factory" or key == "speed") and not options.get(key, 1.0) > 0:
            raise ConfigError(f"--source {text}: {key} must be above 0")
    return SourceOptions(text, kind, rest, options)


def check_source(options: SourceOptions) -> None:
    """Finds errors before the node joins: a factory or an extra that cannot be imported, a broker without a topic.

    Raises:
        ConfigError, ModuleNotFoundError: see there.
    """
    if options.kind in ("factory", "mqtt"):
        importlib.import_module(f"nonn_device.sources.{options.kind}").parsed(options)


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """A source of a unit's channels, or of its pictures.

    Args:
        options: result of ``parse_source``.
        spec: what the unit measures.
        clock: of the node.

    Raises:
        DataError, ConfigError: it does not exist, or its channels or units do not fit.
    """
    if options.kind != "factory" and bool(spec.frame) != (options.kind in _CAMERAS):
        raise ConfigError(
            f"--source {options.text}: the units of this bundle are cameras; take v4l2:DEVICE, video:FILE, "
            "picamera2:NUMBER or package.module:factory"
            if spec.frame
            else f"--source {options.text}: a camera, but the units of this bundle measure {', '.join(spec.channels)}"
        )
    name = _KINDS[options.kind][0] if options.kind in _KINDS else "factory"
    module = importlib.import_module(f"nonn_device.sources.{name}")
    source: SampleSource = module.open_source(options, spec, clock)
    return source
