"""``package.module:factory``: samples from a program of your own.

The factory is called with the unit's ``SensingSpec``, the node's ``DataClock`` and the options after ``?``, and returns
an asynchronous iterator of ``(time, values)``: values [C] or [n, C] in the units and order of ``spec.channels``; times
of that clock in seconds, or None for now. For a camera values are one picture [C, H, W], or several [n, C, H, W], in
bytes; larger ones than ``spec.frame`` are reduced. ``speed``, ``offset`` and ``drift`` belong to the clock.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np

from nonn.errors import ConfigError, DataError
from nonn.sensing import SensingSpec
from nonn.sensing.clock import DataClock
from nonn_device.sources import CLOCK_OPTIONS, FORMS, Samples, SampleSource, SourceOptions
from nonn_device.sources.frames import fitted

__all__ = ["open_source", "parsed"]


def parsed(options: SourceOptions) -> Callable[..., Any]:
    """The factory, of a module in the current folder or on the ``PYTHONPATH``.

    Raises:
        ConfigError: it cannot be imported.
    """
    from nonn.toml.registry import import_path  # 1 MB that other sources do not need

    try:
        factory: Callable[..., Any] = import_path(options.where)
    except AttributeError as exc:
        raise ConfigError(f"--source {options.text}: {exc}") from exc
    except ImportError as exc:
        raise ConfigError(f"--source {options.text}: {exc}; must be {FORMS}") from exc
    return factory


def open_source(options: SourceOptions, spec: SensingSpec, clock: DataClock) -> SampleSource:
    """Calls the factory.

    Raises:
        ConfigError: it cannot be imported, or does not accept the options.
    """
    factory = parsed(options)
    keywords = {key: value for key, value in options.options.items() if key not in CLOCK_OPTIONS}
    try:
        iterator = factory(spec, clock, **keywords)
    except TypeError as exc:
        raise ConfigError(f"--source {options.text}: {exc}") from exc
    return lambda: _samples(iterator, spec, clock, options.text)


async def _samples(iterator: Any, spec: SensingSpec, clock: DataClock, text: str) -> AsyncIterator[Samples]:
    async for stamps, given in iterator:
        if spec.frame:
            values = fitted(np.asarray(given), spec, f"--source {text}")
        else:
            values = np.atleast_2d(np.asarray(given, np.float64))
            if values.shape[1] != len(spec.channels):
                raise DataError(
                    f"--source {text}: {values.shape[1]} values a sample; the unit has {len(spec.channels)} channels "
                    f"({', '.join(spec.channels)})"
                )
        now = clock()
        if stamps is None:
            times = now - np.arange(len(values) - 1, -1, -1) / spec.rate_hz
        else:
            times = np.atleast_1d(np.asarray(stamps, np.float64))
        yield Samples(times, values)
