from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from nonn_device.worker import INLINE_S, REMEMBERED_RUNS, Worker

from nonn.errors import OverloadError
from tests.serving import TIMEOUT_S

SAMPLE = np.zeros((1, 4), np.float32)


class Student:
    """Notes in which thread it runs, and takes as long on the clock as it is told."""

    def __init__(self) -> None:
        self.now, self.takes_s, self.running = 0.0, 0.0, 0
        self.threads: list[bool] = []
        self.block: threading.Event | None = None
        self.started = threading.Event()

    def clock(self) -> Any:
        return self.now

    def __call__(self, batch: Any) -> Any:
        self.running += 1
        assert self.running == 1, "two runs at once"
        self.threads.append(threading.current_thread() is threading.main_thread())
        self.started.set()
        if self.block is not None:
            assert self.block.wait(TIMEOUT_S)
        self.now += self.takes_s * len(batch)
        self.running -= 1
        return batch


def test_short_runs_move_into_the_event_loop_and_long_ones_out_again() -> None:
    async def scenario() -> Any:
        student = Student()
        worker = Worker(student, 4, student.clock)
        student.takes_s = INLINE_S / 10
        for _ in range(REMEMBERED_RUNS + 1):
            await worker(SAMPLE)
        await worker(np.zeros((20, 4), np.float32))  # twenty of them take too long
        student.takes_s = INLINE_S * 2  # the device has become slow, which the last runs show
        for _ in range(REMEMBERED_RUNS + 1):
            await worker(SAMPLE)
        worker.close()
        return student.threads

    inline = asyncio.run(scenario())
    assert inline[: REMEMBERED_RUNS + 2] == [False] * REMEMBERED_RUNS + [True, False]
    assert inline[-1] is False


def test_runs_that_wait_for_another_machine_never_block_the_event_loop() -> None:
    async def scenario() -> Any:
        student = Student()
        worker = Worker(student, 4, student.clock, inline=False)
        student.takes_s = INLINE_S / 10
        for _ in range(REMEMBERED_RUNS + 2):
            await worker(SAMPLE)
        worker.close()
        return student.threads

    assert asyncio.run(scenario()) == [False] * (REMEMBERED_RUNS + 2)


def test_a_full_queue_refuses_and_names_the_limit() -> None:
    async def scenario() -> None:
        student = Student()
        student.block = threading.Event()
        worker = Worker(student, 2)
        waiting = [asyncio.ensure_future(worker(SAMPLE)) for _ in range(2)]
        await asyncio.to_thread(student.started.wait, TIMEOUT_S)
        with pytest.raises(OverloadError, match=r"2 requests are waiting for this device, its limit \(--max-queue\)"):
            await worker(SAMPLE)
        student.block.set()
        await asyncio.gather(*waiting)
        await worker(SAMPLE)
        worker.close()

    asyncio.run(scenario())


def test_no_run_starts_during_a_run_whose_caller_has_given_up() -> None:
    async def scenario() -> None:
        student = Student()
        worker = Worker(student, 4, student.clock)
        student.block = threading.Event()
        first = asyncio.ensure_future(worker(SAMPLE))
        await asyncio.to_thread(student.started.wait, TIMEOUT_S)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        # Its thread still runs: what comes now must wait for it, however short it is known to be.
        worker._shortest_s = 0.0
        second = asyncio.ensure_future(worker(SAMPLE))
        await asyncio.sleep(0)
        assert not second.done()
        student.block.set()
        await second
        await asyncio.sleep(0)
        assert worker._waiting == 0
        assert await worker(SAMPLE) is SAMPLE
        assert student.threads == [False, False, True]
        worker.close()

    asyncio.run(scenario())
