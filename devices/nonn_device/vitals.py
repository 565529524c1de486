"""What a device says about its own process."""

from __future__ import annotations

import os
import platform
from pathlib import Path

__all__ = ["peak_bytes", "processor", "resident_bytes"]


def resident_bytes() -> int:
    """Memory that this process holds; 0 where the system does not say it the way Linux does."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def peak_bytes(*, reset: bool = False) -> int:
    """The most memory that this process has held since it began, or since the last ``reset``; 0 as above.

    Args:
        reset: start to count anew now.
    """
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is held now
        # Not getrusage: after exec it still has the peak of the process that forked this one.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
    except (OSError, ValueError, StopIteration):
        return 0


def processor() -> str:
    """The processor of this device, for messages."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model", "Hardware")))
    return next((f"{platform.machine()}, {name}" for name in named if name), platform.machine())
