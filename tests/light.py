"""Programs run as on a device: nothing but the base install can be imported."""

from __future__ import annotations

import subprocess
import sys

from tests.serving import TIMEOUT_S

# Everything that the base install does not have, and scipy and networkx by name.
BLOCKED = (
    "torch",
    "networkx",
    "scipy",
    "sklearn",
    "onnx",
    "pyarrow",
    "PIL",
    "matplotlib",
    "rich",
    "prometheus_client",
    "aiohttp",
    "opentelemetry",
    "cryptography",
    "zeroconf",
    "segno",
)
BLOCKER = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
"""


def python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end; its standard input is empty."""
    command = [sys.executable, "-c", BLOCKER + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, stdin=subprocess.DEVNULL)
