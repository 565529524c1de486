"""Measures a device and formats the result as an entry of ``[[devices.classes]]`` for an experiment file.

Speed is measured with ONNX Runtime, one thread and no spinning, as on a node, on four 3-wide convolutions with 32
filters, typical of the middle of a student's network. Memory is the free memory while this process runs with the
runtime loaded, as a node would. The link to an aggregator is measured with calls: the round trip of a small one, and
the additional time of one with a quarter of a megabyte.

Needs only the base install: the network is a file, ``probe.onnx``, which scripts/make_probe.py writes.

Limits: a student with few filters per layer is slower, since each layer has a fixed cost; a hot processor may have half
the speed of a cool one. Run it under the conditions of use.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nonn.client import Client
from nonn.errors import InputError, NonnError
from nonn.toml import toml_value
from nonn_device.energy import Energy

__all__ = [
    "LINK_BYTES",
    "PROBE_MACS",
    "Measured",
    "available_ram_bytes",
    "device_entry",
    "measure_link",
    "measure_macs_per_s",
    "probe",
    "send",
]

PROBE = Path(__file__).with_name("probe.onnx")
PROBE_MACS = 4 * 32 * 32 * 9 * 32 * 32  # four layers of 32 × 32 filters, 3 wide, at 32 × 32 positions
_SHAPE = (1, 32, 32, 32)
LINK_BYTES = 256 * 1024
_CALLS = 15


@dataclass(frozen=True)
class Measured:
    """Measurements of this device.

    Attributes:
        macs_per_s: multiply-accumulates per second.
        ram_bytes: free memory.
        link_bytes_per_s: to the address; 0 without an address, or if the link is too fast to measure.
        link_latency_s: round trip; 0 without an address.
    """

    macs_per_s: float
    ram_bytes: int
    link_bytes_per_s: float = 0.0
    link_latency_s: float = 0.0


def probe() -> Callable[[], object]:
    """A function that runs the probe once: ``PROBE_MACS`` multiply-accumulates on one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
    inputs = {"input": np.ones(_SHAPE, np.float32)}
    session.run(None, inputs)  # allocates
    return lambda: session.run(None, inputs)


def measure_macs_per_s(seconds: float = 1.0) -> float:
    """Multiply-accumulates per second of ONNX Runtime on one thread; the median of runs over ``seconds``."""
    run = probe()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return PROBE_MACS / statistics.median(times)


def available_ram_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Free memory, limited by this process's control group; 0 if the system does not report it as Linux does."""
    try:
        fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError, IndexError):
        return 0
    try:
        limit = int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text())
    except (OSError, ValueError):  # no limit reads "max"
        return free
    return max(0, min(free, limit))


def measure_link(client: Client) -> tuple[float, float]:
    """Round trip in seconds, and bytes per second to an aggregator (0: too fast to measure).

    Raises:
        UnreachableError: no answer at the address.
        ConfigError: the server is not an aggregator.
    """
    client.metadata()  # connects, and raises a clear error if that fails

    small = [send(client, 1) for _ in range(_CALLS)]
    large = [send(client, LINK_BYTES) for _ in range(_CALLS)]
    longer = statistics.median(large) - statistics.median(small)
    noise = statistics.median(abs(t - statistics.median(small)) for t in small)
    return statistics.median(small), LINK_BYTES / longer if longer > 2 * noise else 0.0


def send(client: Client, num_bytes: int = LINK_BYTES) -> float:
    """Seconds of a call that sends so many bytes.

    Raises:
        NonnError: the aggregator accepts it.
    """
    # An input whose shape no network accepts: the server reads it whole and refuses it, so nothing is computed.
    start = time.perf_counter()
    try:
        client.infer(np.zeros((1, num_bytes), np.uint8))
    except InputError:
        return time.perf_counter() - start
    raise NonnError(f"{client.address}: accepted an input of {num_bytes} bytes that it should have refused")


def device_entry(name: str, measured: Measured, energy: Energy | None = None) -> str:
    """The measurement as a TOML table."""
    lines = [
        "[[devices.classes]]",
        f"name = {toml_value(name)}",
        "count = 1",
        f"ram_bytes = {measured.ram_bytes:_}",
        f"macs_per_s = {measured.macs_per_s:.3g}",
    ]
    if measured.link_latency_s:
        lines.append(f"link_latency_s = {measured.link_latency_s:.3g}")
        known = measured.link_bytes_per_s
        lines.append(f"link_bytes_per_s = {known:.3g}" if known else "# link_bytes_per_s: too fast to measure")
    if energy is not None:
        lines.append(f"joule_per_mac = {energy.joule_per_mac:.3g}  # {energy.meter}")
        if energy.joule_per_byte:
            lines.append(f"joule_per_byte = {energy.joule_per_byte:.3g}")
    lines.append("p_fail = 0.1  # not measured: set the share of time that the device does not answer")
    return "\n".join(lines) + "\n"
