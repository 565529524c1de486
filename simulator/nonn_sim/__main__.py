"""``python -m nonn_sim``."""

import sys

from nonn_sim.cli import main

if __name__ == "__main__":
    sys.exit(main())
