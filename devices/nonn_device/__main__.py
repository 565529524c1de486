"""``python -m nonn_device``."""

import sys

from nonn_device.cli import main

if __name__ == "__main__":
    sys.exit(main())
