"""Backends that compute jobs: processes of this machine, or a Ray cluster.

Jobs share nothing, so they can use any number of workers. Results are in the order of the jobs and do not depend on the
backend.
"""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from nonn.errors import ConfigError, MissingExtraError

__all__ = ["BACKENDS", "map_jobs", "on_ray"]

BACKENDS = ("local", "ray")

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


def map_jobs(
    function: Callable[[Job], Outcome], jobs: Sequence[Job], backend: str = "local", workers: int = 0
) -> list[Outcome]:
    """Calls a function for every job.

    Args:
        function: a function of a module, so that other processes can import it.
        jobs: its arguments; jobs and outcomes are sent between processes.
        backend: ``local`` or ``ray``. Ray joins the cluster of ``RAY_ADDRESS``, or starts one on this machine.
        workers: local processes; 0 is one for each core that this process may use. A single job, or a single worker,
            needs no process.

    Raises:
        ConfigError: there is no such backend.
        MissingExtraError: Ray is not installed.
    """
    if backend == "ray":
        return list(on_ray(function, jobs))
    if backend != "local":
        raise ConfigError(f"backend '{backend}': unknown; choose one of: {', '.join(BACKENDS)}")
    # Not os.cpu_count(): a container or taskset may allow fewer cores than the machine has.
    workers = min(workers or len(os.sched_getaffinity(0)), len(jobs))
    if workers <= 1:
        return [function(job) for job in jobs]
    import multiprocessing  # here, since it takes 50 ms and every command reads the names of the backends
    from concurrent.futures import ProcessPoolExecutor

    # Fresh processes: a fork would copy locks that threads of gRPC hold.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent) as pool:
        return list(pool.map(function, jobs))


def _end_with_parent() -> None:
    """Ends this worker with its parent: after a SIGTERM or SIGKILL of the parent it would wait for jobs forever."""
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


def on_ray(function: Callable[[Job], Outcome], jobs: Sequence[Job], *, gpu: bool = False) -> Iterator[Outcome]:
    """One Ray task for each job; yields their outcomes in the order of the jobs, each when it is there.

    Args:
        function: as for ``map_jobs``.
        jobs: its arguments.
        gpu: each task has a GPU to itself, if the cluster has any.

    Raises:
        MissingExtraError: Ray is not installed.
    """
    try:
        ray = importlib.import_module("ray")
    except ImportError as exc:
        raise MissingExtraError("ray", "ray") from exc
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, include_dashboard=False)
    try:
        has_gpu = gpu and ray.cluster_resources().get("GPU", 0) >= 1
        task: Any = ray.remote(num_gpus=1)(function) if has_gpu else ray.remote(function)
        for outcome in [task.remote(job) for job in jobs]:
            yield ray.get(outcome)
    finally:
        if started:
            ray.shutdown()
