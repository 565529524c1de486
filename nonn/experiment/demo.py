"""The demonstration: a trained bundle on real device processes that are killed one after another.

At every number of failures the whole test split is sent to the aggregator, one sample per request, while the next
node process gets SIGKILL in the middle of the stream. Every answer is compared with the offline fusion of exactly the
subset that it reports; the accuracy of a full pass is compared with the bundle's table.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nonn.answer import Answer
from nonn.bundle import Bundle
from nonn.client import Client
from nonn.cluster import LocalCluster
from nonn.config import Experiment
from nonn.errors import NonnError
from nonn.experiment.progress import Progress, Silent
from nonn.experiment.run import Result, execute
from nonn.experiment.stages import exclusive
from nonn.experiment.workspace import Workspace, resolve
from nonn.reliability.subsets import mask_of, members
from nonn.report import write_report
from nonn.report.document import LiveMeasurement

__all__ = ["demo", "kill_one_by_one"]

_CONCURRENCY = 8
_ROUNDS = 5  # passes over samples answered by another subset; one is enough unless a node fails briefly


def demo(
    experiment: str | Path | Experiment | None = None,
    *,
    runs: str | Path = "runs",
    overrides: Sequence[str] = (),
    progress: Progress | None = None,
    tensorboard: bool = False,
) -> Result:
    """Runs an experiment, then streams its test split through a live cluster whose devices are killed.

    Args:
        experiment: file or loaded experiment; None is the digits experiment.
        runs: folder of all runs.
        overrides: ``section.key=value``, as for ``--set``.
        progress: receives the progress; None shows nothing.
        tensorboard: write the losses of each training into its folder for TensorBoard too.

    Returns:
        The result of the run; its report has ``measured_live``.

    Raises:
        NonnError: the experiment cannot be run, or the cluster does not start.
    """
    space = Workspace(
        resolve(experiment, overrides), Path(runs), progress=progress or Silent(), tensorboard=tensorboard
    )
    with exclusive(space.root):
        result = execute(space)
    bundle = result.bundle
    order = np.random.default_rng(space.seed).permutation(bundle.num_devices)[:-1].tolist()
    with space.progress.bar("live: one node killed after another", len(order) + 1, "levels") as tick:
        measured = kill_one_by_one(bundle, space.data.test.inputs, order, lambda level: tick(level, ""))
    report = write_report(bundle, result.folder / "report", measured_live=measured)
    return dataclasses.replace(result, report=report)


def kill_one_by_one(
    bundle: Bundle, inputs: NDArray[Any], order: Sequence[int], progress: Callable[[int], None] = lambda level: None
) -> list[LiveMeasurement]:
    """Measures a live cluster while its nodes get SIGKILL.

    Args:
        bundle: bundle with recorded features of the same samples.
        inputs: test inputs [n, …].
        order: devices to kill, in this order.
        progress: called with the number of finished levels.

    Returns:
        A measurement for 0 … len(order) failures; ``requests`` includes those in flight at the kill.
    """
    answering, rows = set(range(bundle.num_devices)), []
    with LocalCluster(bundle.path) as cluster, Client(cluster.address) as client:
        for failed, victim in enumerate([None, *order]):
            answering -= {victim}
            rows.append(_level(bundle, inputs, client, cluster, frozenset(answering), victim))
            progress(failed + 1)
    return rows


def _level(
    bundle: Bundle,
    inputs: NDArray[Any],
    client: Client,
    cluster: LocalCluster,
    answering: frozenset[int],
    victim: int | None,
) -> LiveMeasurement:
    """Sends every sample until all are answered by exactly the remaining devices; the victim dies in the first pass."""
    features, labels = bundle.features
    predicted: dict[int, int] = {}
    sent = lost = mismatched = 0
    for attempt in range(_ROUNDS):
        waiting = [i for i in range(len(inputs)) if i not in predicted]
        if not waiting:
            break
        sent += len(waiting)
        samples = [inputs[i : i + 1] for i in waiting]
        answers = _stream(client, cluster, samples, victim if attempt == 0 else None)
        for i, answer in zip(waiting, answers, strict=True):
            if isinstance(answer, NonnError):
                lost += 1
                continue
            label = int(answer.labels[0])
            arrived = {d: features[d][i : i + 1] for d in members(answer.mask)}
            mismatched += label != int(bundle.head.logits(arrived).astype(np.float32).argmax())
            if answer.mask == mask_of(answering):
                predicted[i] = label
    correct = sum(int(predicted[i] == labels[i]) for i in predicted)
    return LiveMeasurement(
        failed=bundle.num_devices - len(answering),
        answered=tuple(sorted(answering)),
        accuracy=correct / len(labels),
        predicted=bundle.accuracies.stated(mask_of(answering)).accuracy,
        requests=sent,
        lost=lost,
        mismatched=mismatched,
    )


def _stream(
    client: Client, cluster: LocalCluster, samples: Sequence[NDArray[Any]], victim: int | None
) -> list[Answer | NonnError]:
    """Sends every sample; a victim gets SIGKILL when a tenth of them are answered, while others are in flight."""
    kill_at, done = len(samples) // 10, itertools.count(1)

    def ask(sample: NDArray[Any]) -> Answer | NonnError:
        try:
            return client.infer(sample)
        except NonnError as exc:
            return exc
        finally:
            if next(done) == kill_at and victim is not None:
                cluster.kill(victim)

    with ThreadPoolExecutor(_CONCURRENCY, thread_name_prefix="demo") as pool:
        return list(pool.map(ask, samples))
