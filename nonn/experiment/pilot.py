"""``partition.parts = "auto"``: which redundancy design serves best under the experiment's failure law.

How many parts there should be cannot be read off the teacher: a probe of its own filters says what perfect students
would reach, and there one part (full-task copies) always wins, since nothing is ever lost. What small students can
learn decides. So every design is tried: its students are distilled for ``partition.pilot_epochs``, the experiment's
head is fitted, and all answering sets are enumerated on the held-out split and weighed by the failure law
(``guarantees.law``; without one every device fails independently with its ``p_fail``).

Limits: a pilot ranks designs by how they start. The split that chooses the design also chose λ, for every design
alike; the test split is not looked at.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nonn.cli.console import say
from nonn.config import AUTO, Experiment
from nonn.data import Dataset
from nonn.enumeration import enumerate_subsets
from nonn.experiment.run import Run
from nonn.experiment.stages import open_stage
from nonn.files import write_json
from nonn.partition.redundancy import Design
from nonn.students.devices import failure_law

__all__ = ["Trial", "designs", "settle"]

FORMAT = 1


@dataclass(frozen=True)
class Trial:
    """What a pilot found of one design.

    Attributes:
        parts: M.
        overlap: r.
        expected_accuracy: on the held-out split under the failure law.
        bytes_per_answer: that all devices send.
    """

    parts: int
    overlap: int
    expected_accuracy: float
    bytes_per_answer: int


def designs(num_devices: int) -> tuple[Design, ...]:
    """Designs that are tried: M parts for every divisor M of N, and N parts with an overlap of 2 and of N/2."""
    found = [Design(m) for m in range(1, num_devices + 1) if num_devices % m == 0]
    found += [Design(num_devices, r) for r in sorted({2, num_devices // 2}) if 1 < r < num_devices]
    return tuple(found)


def settle(experiment: Experiment, runs: Path, place: str = ".", dataset: Dataset | None = None) -> Experiment:
    """The experiment with a number of parts and an overlap.

    Args:
        experiment: one that says ``partition.parts = "auto"``; any other comes back as it is.
        runs: folder of all runs; pilots are kept and resumed under ``pilot/`` in the experiment's.
        place: folder inside the run's own.
        dataset: the data, where it was read already.

    Returns:
        The experiment with the design of the best expected accuracy; of equals, the one that sends the fewest bytes.

    Raises:
        NonnError: a design cannot be trained; what was done is kept.
    """
    if experiment.partition.parts != AUTO:
        return experiment
    folder = runs / experiment.experiment.name / place / "pilot"
    trials: list[Trial] = []
    for design in designs(experiment.devices.count):
        name = f"{place}/pilot/parts-{design.num_parts}-overlap-{design.overlap}"
        run = Run(_pilot(experiment, design), runs, place=name, dataset=dataset)
        dataset = run.data
        trials.append(_trial(run, design))
        say(
            f"pilot: {design.num_parts} parts, overlap {design.overlap}: expected accuracy "
            f"{100 * trials[-1].expected_accuracy:.2f} % held out, {trials[-1].bytes_per_answer:,} bytes an answer"
        )
    best = max(trials, key=lambda trial: (trial.expected_accuracy, -trial.bytes_per_answer))
    write_json(
        folder / "pilot.json",
        {
            "law": _law_text(experiment),
            "chosen": dataclasses.asdict(best),
            "trials": [dataclasses.asdict(t) for t in trials],
        },
    )
    say(f"pilot: {best.parts} parts with overlap {best.overlap} it is; {folder / 'pilot.json'}")
    chosen = dataclasses.replace(experiment.partition, parts=best.parts, overlap=best.overlap)
    return dataclasses.replace(experiment, partition=chosen)


def _pilot(experiment: Experiment, design: Design) -> Experiment:
    """The experiment with one design and few epochs."""
    epochs = min(experiment.partition.pilot_epochs, experiment.distill.epochs)
    return dataclasses.replace(
        experiment,
        partition=dataclasses.replace(experiment.partition, parts=design.num_parts, overlap=design.overlap),
        distill=dataclasses.replace(experiment.distill, epochs=epochs),
    )


def _trial(run: Run, design: Design) -> Trial:
    """Trains and judges one design unless that is done."""
    config = run.experiment
    run.check()
    students, _, before = run.students()
    inputs = {"format": FORMAT, "students": before.key, "fusion": dataclasses.asdict(config.fusion)}
    stage = open_stage(run.folder, "trial", inputs | {"law": _law_text(config)})
    file = stage.folder / "trial.json"
    if not stage.done:
        teacher, _ = run.teacher()
        head = run.heads.fit(teacher, students)
        features = run.heads.held_out_features(students)
        table = enumerate_subsets(head, features, run.data.held_out.labels)
        from nonn.reliability.laws import parse_law  # a failure law means the same here as in the simulator

        weights = parse_law(_law_text(config), config.devices.count).probabilities()
        expected = float(np.dot(weights, table.accuracy))
        trial = Trial(design.num_parts, design.overlap, expected, 4 * sum(students.fusion.widths))
        write_json(file, dataclasses.asdict(trial))
        stage.finish()
    values: dict[str, Any] = json.loads(file.read_text())
    return Trial(**values)


def _law_text(experiment: Experiment) -> str:
    return experiment.guarantees.law or failure_law(experiment.devices)
