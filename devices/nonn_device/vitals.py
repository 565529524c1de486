"""Memory of this process, the processor it runs on, and the charge of the battery."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

__all__ = ["battery_percent", "can_limit_memory", "peak_bytes", "processor", "release_code", "resident_bytes"]

_MADV_DONTNEED = 4  # of Linux


def resident_bytes() -> int:
    """Resident memory of this process; 0 if the system does not report it as Linux does."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def peak_bytes(*, reset: bool = False) -> int:
    """Peak resident memory since the process started, or since the last ``reset``; 0 as in ``resident_bytes``.

    Args:
        reset: reset the peak first.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): sets the peak to the current value
        # Not getrusage: after exec it still has the peak of the process that forked this one.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except (OSError, ValueError, StopIteration):
        return 0


def release_code() -> None:
    """Unmaps the code of the program and its libraries; code that runs again is mapped again, from the page cache.

    Most of it runs at the start only: to load a student, ONNX Runtime registers every one of its operators. Anonymous
    memory stays as it is. Does nothing on systems other than Linux.
    """
    try:
        lines = Path("/proc/self/smaps").read_text().splitlines()
    except OSError:
        return
    madvise, bounds = ctypes.CDLL(None).madvise, list[str]()
    for line in lines:
        fields = line.split()
        if not fields[0].endswith(":"):
            bounds = fields[0].split("-") if fields[1] == "r-xp" and fields[-1].startswith("/") else []
        elif bounds and fields[:2] == ["Anonymous:", "0"]:  # a page that was changed would be lost
            start, end = (int(bound, 16) for bound in bounds)
            madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def can_limit_memory(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> bool:
    """Whether the kernel can limit the memory of this process's control group; true if that is unknown."""
    try:
        group = next(line[3:] for line in own.read_text().splitlines() if line.startswith("0::"))
        # A version 2 hierarchy without the memory controller has no such file in any group.
        return not (groups / "cgroup.controllers").exists() or (groups / group.strip("/") / "memory.max").exists()
    except (OSError, StopIteration):
        return True


def processor() -> str:
    """Name of this device's processor, for messages."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "Hardware")))
    return next((f"{platform.machine()}, {name}" for name in named if name), platform.machine())


def battery_percent(root: Path = Path("/sys/class/power_supply")) -> int | None:
    """Charge of this device's battery in percent; None if it has none, or does not report it."""
    for supply in sorted(root.glob("*")):
        try:
            # A supply of scope Device is a battery of a mouse or a pen.
            scope = (supply / "scope").read_text().strip() if (supply / "scope").exists() else "System"
            if (supply / "type").read_text().strip() == "Battery" and scope == "System":
                return max(0, min(100, int((supply / "capacity").read_text())))
        except (OSError, ValueError):
            continue
    return None
