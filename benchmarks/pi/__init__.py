"""``make pi``: a cluster of containers with systemd, set up, broken and updated; ``python -m benchmarks.pi``."""
