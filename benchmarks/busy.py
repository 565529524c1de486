"""One epoch of training next to two busy processes: ``python benchmarks/bench.py busy``.

Two child processes train the same epochs in turn: one like the command line (``nonn.threads``), one with PyTorch's
defaults for waiting and placement. ``digits`` distils eight students in one grouped network on 8×8 pixels, ``images``
trains a teacher wrn-16-2 on 32×32. A slowdown is the median with two busy processes ÷ the median without, a cost the
median of the ratios of neighbours in time; the figure is the larger of the two workloads. Random images, seed 0.

=====================================  ================================================================================
``train_busy_slowdown``                as ``nonn`` trains
``train_busy_slowdown_plain``          with PyTorch's defaults; depends on where the scheduler puts the threads
``train_idle_cost_percent``            cost of ``nonn.threads`` on an idle machine
=====================================  ================================================================================
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from nonn.threads import limit_spinning

Figures = dict[str, float]

WORKS = ("digits", "images")
IDLE_ROUNDS, BUSY_ROUNDS, PLAIN_ROUNDS = 15, 7, 3
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OPENBLAS_THREAD_TIMEOUT", "OMP_PROC_BIND", "OMP_NUM_THREADS")


def bench_busy() -> Figures:
    """The figures of the table above."""
    clean = {name: value for name, value in os.environ.items() if name not in _WAITING}
    ours, plain = dict(clean), clean | {"OMP_PROC_BIND": "false"}
    limit_spinning(ours)
    with ExitStack() as stack:
        train = {name: stack.enter_context(_child(env)) for name, env in (("nonn", ours), ("plain", plain))}
        for epoch in train.values():
            for work in WORKS:
                epoch(work)  # warm-up
        idle: dict[str, dict[str, list[float]]] = {way: {work: [] for work in WORKS} for way in train}
        for number in range(IDLE_ROUNDS):
            for work in WORKS:
                for way in ("nonn", "plain") if number % 2 else ("plain", "nonn"):
                    idle[way][work].append(train[way](work))
        slowdown = dict.fromkeys(train, 0.0)
        for way, rounds in (("nonn", BUSY_ROUNDS), ("plain", PLAIN_ROUNDS)):
            for work in WORKS:
                beside = []
                for _ in range(rounds):
                    with _busy(2):
                        beside.append(train[way](work))
                ratio = statistics.median(beside) / statistics.median(idle[way][work])
                slowdown[way] = max(slowdown[way], ratio)
    cost = max(
        statistics.median(a / b for a, b in zip(idle["nonn"][work], idle["plain"][work], strict=True)) for work in WORKS
    )
    return {
        "train_busy_slowdown": slowdown["nonn"],
        "train_busy_slowdown_plain": slowdown["plain"],
        "train_idle_cost_percent": 100 * (cost - 1),
    }


@contextmanager
def _child(environment: dict[str, str]) -> Iterator[Callable[[str], float]]:
    """A process that trains an epoch of a workload on demand and returns its seconds."""
    command = [sys.executable, __file__, "--child"]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        asked, answers = process.stdin, process.stdout

        def epoch(work: str) -> float:
            print(work, file=asked, flush=True)
            return float(answers.readline())

        try:
            yield epoch
        finally:
            process.kill()


@contextmanager
def _busy(number: int) -> Iterator[None]:
    """Runs ``number`` busy processes while the block runs."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        time.sleep(0.2)  # until Python has started
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def _serve() -> None:
    """The child: reads names of workloads, prints seconds."""
    import tempfile
    from pathlib import Path

    import numpy as np
    import torch

    from nonn.config import DataConfig, DistillConfig, TeacherConfig
    from nonn.data.augment import Augment
    from nonn.distill import DistillTask, FusionLayer, Students
    from nonn.students import Student
    from nonn.teacher import Normalise, TeacherTask, build_teacher
    from nonn.trainer import fit

    def train(work: str) -> float:
        digits = work == "digits"
        classes, width, shape, samples = (10, 16, (1, 8, 8), 1024) if digits else (100, 16, (3, 32, 32), 512)
        mean, std = [127.0] * shape[0], [64.0] * shape[0]
        rng = np.random.default_rng(0)
        inputs, labels = rng.integers(0, 256, (samples, *shape), np.uint8), rng.integers(0, classes, samples)
        torch.manual_seed(0)
        normalise = Normalise(mean, std, 2)
        teacher = build_teacher(TeacherConfig(model="wrn-16-2"), shape, classes, normalise)
        config: DistillConfig | TeacherConfig
        task: DistillTask | TeacherTask
        if digits:
            students = [Student("wrn-10-1", shape, width, normalise) for _ in range(8)]
            fusion = FusionLayer("zero-fill", [width] * 8, list(range(8)), classes)
            filters = [list(range(width * i, width * (i + 1))) for i in range(8)]
            config = DistillConfig(epochs=1, grouped=True)
            task = DistillTask(teacher.eval(), Students(students, fusion), filters, config)
        else:
            config = TeacherConfig(epochs=1, label_smoothing=0.1)
            task = TeacherTask(teacher, config)
        augment = Augment(DataConfig(noise=0.2), mean, std)
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            fit(task, inputs, labels, config, Path(folder), seed=0, augment=augment)
            return time.perf_counter() - start

    for line in sys.stdin:
        print(train(line.strip()), flush=True)


if __name__ == "__main__":
    if sys.argv[1:] == ["--child"]:
        _serve()
    else:
        for key, value in bench_busy().items():
            print(f"{key:40} {value:.4g}")
