"""Independent jobs on the cores of this machine or on a Ray cluster."""

from nonn.jobs.backends import BACKENDS, map_jobs

__all__ = ["BACKENDS", "map_jobs"]
