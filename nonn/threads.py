"""Placement and spinning of compute threads, for training on a machine with other load.

The threads of a layer meet at barriers, hundreds of times per step. A thread that arrives early spins. If other
processes run, this has two costs:

- oneDNN's generated kernels spin without end, whatever the wait policy of OpenMP. Two busy processes on one core and
  two threads on the other look balanced to the scheduler. Each barrier then lasts a time slice, and a step takes tens
  of times as long. ``pinned_threads`` gives each thread a core.
- libgomp spins for 300,000 rounds (about 16 ms), OpenBLAS for 2^26 cycles. A thread that has used up its slice by
  spinning waits longer for the next one. ``limit_spinning`` ends spinning after one or two milliseconds, in which an
  idle machine nearly always gets to the next barrier.

Neither changes the number of threads, so neither changes a result. Choosing the number of threads by the load would:
sums over other chunks round differently.

Limits: Linux with libgomp, which PyTorch's wheels contain; elsewhere ``pinned_threads`` does nothing. User settings
take precedence: ``OMP_WAIT_POLICY``, ``GOMP_SPINCOUNT`` and ``OPENBLAS_THREAD_TIMEOUT`` for spinning, ``OMP_PROC_BIND``
and ``GOMP_CPU_AFFINITY`` for places, ``OMP_NUM_THREADS`` for the number of threads. This module does not import torch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import ctypes

__all__ = ["assign_cores", "limit_spinning", "pinned_threads"]

_PLACED_BY_USER = ("OMP_PROC_BIND", "GOMP_CPU_AFFINITY")
_TASKS = "/proc/self/task"


def limit_spinning(environment: MutableMapping[str, str]) -> None:
    """Lets waiting threads sleep after a millisecond or two.

    Args:
        environment: environment of this process before it loads torch or NumPy, which read it once, or of a child.
    """
    if "OMP_WAIT_POLICY" not in environment:
        environment.setdefault("GOMP_SPINCOUNT", "40000")
    environment.setdefault("OPENBLAS_THREAD_TIMEOUT", "20")  # 2^20 cycles


def assign_cores(threads: int, cores: Sequence[frozenset[int]]) -> list[frozenset[int]]:
    """The processors that each thread may run on.

    Args:
        threads: number of threads of one parallel region.
        cores: logical processors of each physical core that the process may use.

    Returns:
        Disjoint sets, one for each thread; empty if threads stay free. They stay free unless there is one for each
        core or for each logical processor: two processes with fewer threads would be pinned to the same cores.
    """
    if threads < 2:
        return []
    if threads == len(cores):
        return list(cores)
    logical = [frozenset({cpu}) for core in cores for cpu in sorted(core)]
    return logical if threads == len(logical) else []


@contextmanager
def pinned_threads(threads: int) -> Iterator[Callable[[], None]]:
    """Keeps the OpenMP threads of the calling thread on different cores.

    Threads and processes started meanwhile inherit the core of the thread that starts them; the threads are freed when
    the context ends.

    Args:
        threads: number of threads of one parallel region, ``torch.get_num_threads()``.

    Yields:
        A check to call before each step, about 20 µs. libgomp ends threads that a smaller region does not need and
        starts them again on the first thread's core; then the check frees all threads until the context ends.
    """
    team = _team(threads)
    if team is None:
        yield lambda: None
        return
    team.pin()
    try:
        yield team.check
    finally:
        team.release()


class _Team:
    """The threads of libgomp's pool of the calling thread, and the processors of each."""

    def __init__(self, library: ctypes.CDLL, places: list[frozenset[int]], allowed: frozenset[int]) -> None:
        self._library, self._places, self._allowed = library, places, allowed
        self._seen: set[str] = set()
        self._pinned = False

    def pin(self) -> None:
        self._run_on(self._places)
        self._seen, self._pinned = set(os.listdir(_TASKS)), True  # noqa: PTH208  (called at every step)

    def check(self) -> None:
        if self._pinned and not self._seen.issuperset(os.listdir(_TASKS)):  # noqa: PTH208
            self.release()

    def release(self) -> None:
        if not self._pinned:
            return
        self._run_on([self._allowed] * len(self._places))
        self._pinned = False
        for thread in set(os.listdir(_TASKS)) - self._seen:  # noqa: PTH208
            with suppress(OSError):  # it has ended meanwhile
                if os.sched_getaffinity(int(thread)) in self._places:
                    os.sched_setaffinity(int(thread), self._allowed)

    def _run_on(self, places: Sequence[frozenset[int]]) -> None:
        """Runs a parallel region in which every thread sets its own processors."""
        import ctypes

        callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)

        def place(_: int | None) -> None:
            with suppress(OSError):  # a container may forbid it
                os.sched_setaffinity(0, places[self._library.omp_get_thread_num()])

        with _deferred_signals():
            self._library.GOMP_parallel(callback(place), None, len(places), 0)


@contextmanager
def _deferred_signals() -> Iterator[None]:
    """Handlers run after the block: an exception that one raises in a callback from C would be lost."""
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():  # Python runs handlers in the main thread only
        yield
        return
    arrived: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced = [number for number, handler in handlers.items() if callable(handler)]
    try:
        for number in replaced:
            signal.signal(number, lambda number, _: arrived.append(number))
        yield
    finally:
        for number in replaced:
            signal.signal(number, handlers[number])
    for late in arrived:
        signal.raise_signal(late)


def _team(threads: int) -> _Team | None:
    """The team to pin; none if threads stay free."""
    if sys.platform != "linux" or any(name in os.environ for name in _PLACED_BY_USER):
        return None
    import ctypes  # every command imports this module, and few train

    allowed = frozenset(os.sched_getaffinity(0))
    places = assign_cores(threads, _cores(allowed))
    try:
        # The library that torch has loaded; another OpenMP runtime has other threads.
        library = ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD) if places else None
    except OSError:
        return None
    return _Team(library, places, allowed) if library else None


def _cores(allowed: frozenset[int]) -> list[frozenset[int]]:
    """The logical processors of each physical core, as far as they are allowed."""
    siblings: dict[str, set[int]] = {}
    for cpu in sorted(allowed):
        file = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        try:
            core = file.read_text()
        except OSError:
            core = str(cpu)
        siblings.setdefault(core, set()).add(cpu)
    return [frozenset(core) for core in siblings.values()]
