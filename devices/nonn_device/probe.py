"""What a device can do, measured: an entry of ``[[devices.classes]]`` to paste into an experiment file.

Speed is that of ONNX Runtime, with one thread and without spinning as a node runs it, on four 3-wide convolutions with
32 filters: a student's work in the middle of its network. Memory is what is free while this process, which has the
runtime loaded as a node would, is running. A link is measured against an aggregator: the round trip of a call without
content, and how much longer one with a quarter of a megabyte takes.

Needs the base install alone: the network is a file, ``probe.onnx``, which scripts/make_probe.py writes.

Limits: a student of few filters per layer reaches less, since a layer costs some time whatever it multiplies; speed of
a hot processor may be half of a cool one's. Run it when the device is as it will be.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nonn.client import Client
from nonn.errors import InputError, NonnError

__all__ = ["Measured", "available_ram_bytes", "device_entry", "measure_link", "measure_macs_per_s"]

PROBE = Path(__file__).with_name("probe.onnx")
PROBE_MACS = 4 * 32 * 32 * 9 * 32 * 32  # four layers of 32 × 32 filters, 3 wide, at 32 × 32 positions
_SHAPE = (1, 32, 32, 32)
_LINK_BYTES = 256 * 1024
_CALLS = 15


@dataclass(frozen=True)
class Measured:
    """What was measured of this device.

    Attributes:
        macs_per_s: multiply-accumulates per second.
        ram_bytes: free memory.
        link_bytes_per_s: to the address; 0 where none was given, or the link is too fast to tell.
        link_latency_s: there and back; 0 where no address was given.
    """

    macs_per_s: float
    ram_bytes: int
    link_bytes_per_s: float = 0.0
    link_latency_s: float = 0.0


def measure_macs_per_s(seconds: float = 1.0) -> float:
    """Multiply-accumulates per second of ONNX Runtime on one thread, the median over so many seconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(PROBE, options, providers=["CPUExecutionProvider"])
    inputs = {"input": np.ones(_SHAPE, np.float32)}
    session.run(None, inputs)  # allocates
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - start)
    return PROBE_MACS / statistics.median(times)


def available_ram_bytes(meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that is free now, in this process's control group if that has less; 0 where Linux does not say."""
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
    """Latency there and back in seconds, and bytes per second towards an aggregator (0: too fast to tell).

    Raises:
        UnreachableError: nobody answers there.
        ConfigError: it is not an aggregator.
    """
    client.metadata()  # connects, and says what is wrong

    def call(num_bytes: int) -> float:
        # An input of a shape that no network takes: it is read whole and refused, so nothing is computed.
        start = time.perf_counter()
        try:
            client.infer(np.zeros((1, num_bytes), np.uint8))
        except InputError:
            return time.perf_counter() - start
        raise NonnError(f"{client.address}: took an input of {num_bytes} bytes that it should have refused")

    small = [call(1) for _ in range(_CALLS)]
    large = [call(_LINK_BYTES) for _ in range(_CALLS)]
    longer = statistics.median(large) - statistics.median(small)
    noise = statistics.median(abs(t - statistics.median(small)) for t in small)
    return statistics.median(small), _LINK_BYTES / longer if longer > 2 * noise else 0.0


def device_entry(name: str, measured: Measured) -> str:
    """The measurement as a TOML table."""
    text = '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
    lines = [
        "[[devices.classes]]",
        f"name = {text}",
        "count = 1",
        f"ram_bytes = {measured.ram_bytes:_}",
        f"macs_per_s = {measured.macs_per_s:.3g}",
    ]
    if measured.link_latency_s:
        lines.append(f"link_latency_s = {measured.link_latency_s:.3g}")
        known = measured.link_bytes_per_s
        lines.append(f"link_bytes_per_s = {known:.3g}" if known else "# link_bytes_per_s: too fast to tell")
    lines.append("p_fail = 0.1  # how often it is away: yours to say")
    return "\n".join(lines) + "\n"
