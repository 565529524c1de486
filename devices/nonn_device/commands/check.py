"""``nonn-device check``: measures a student on this device in a separate process."""

from __future__ import annotations

import argparse
import json

from nonn_device.self_test import self_test

__all__ = ["run"]


def run(arguments: argparse.Namespace) -> int:
    """Measures a student on this device and prints the result."""
    print(json.dumps(self_test(arguments.bundle, arguments.student, arguments.runtime, arguments.library)))
    return 0
