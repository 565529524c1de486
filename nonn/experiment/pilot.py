"""``partition.parts = "auto"``: chooses the best redundancy design under the experiment's failure law.

The best number of parts cannot be derived from the teacher: a probe of its filters gives the accuracy of perfect
students, for which one part (full-task copies) always wins, since nothing is lost. It depends on what small students
can learn. So every design is tried: its students are distilled for ``partition.pilot_epochs``, the experiment's head is
fitted, and all subsets are enumerated on the held-out split and weighted by the failure law (``guarantees.law``;
without one every device fails independently with its ``p_fail``).

Limits: a pilot ranks designs after few epochs. The split that chooses the design also chose λ, for every design alike;
the test split is not used.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from nonn.config import AUTO, Experiment
from nonn.documents import read
from nonn.enumeration import evaluate_subsets
from nonn.errors import DataError
from nonn.experiment.keys import stage_inputs
from nonn.experiment.search import search_widths
from nonn.experiment.training import train
from nonn.experiment.workspace import Workspace
from nonn.files import write_json
from nonn.partition.redundancy import Design
from nonn.reliability.laws import parse_law
from nonn.students.devices import failure_law

__all__ = ["Trial", "choose_design", "designed", "designs"]

FORMAT = 1


@dataclass(frozen=True)
class Trial:
    """Result of a pilot for one design.

    Attributes:
        parts: number of parts M.
        overlap: overlap r.
        expected_accuracy: expected accuracy on the held-out split under the failure law.
        bytes_per_answer: bytes that all devices send for an answer.
    """

    parts: int
    overlap: int
    expected_accuracy: float
    bytes_per_answer: int


def designs(num_devices: int) -> tuple[Design, ...]:
    """Designs to try: M parts for every divisor M of N, and N parts with an overlap of 2 and of N/2."""
    found = [Design(m) for m in range(1, num_devices + 1) if num_devices % m == 0]
    found += [Design(num_devices, r) for r in sorted({2, num_devices // 2}) if 1 < r < num_devices]
    return tuple(found)


def designed(space: Workspace) -> Workspace:
    """The workspace whose experiment leaves no choice open: networks by search, then parts and overlap by pilots.

    Raises:
        NonnError: as ``search_widths`` and ``choose_design``.
    """
    return choose_design(search_widths(space))


def choose_design(space: Workspace) -> Workspace:
    """The workspace with a number of parts and an overlap.

    Args:
        space: workspace with ``partition.parts = "auto"``; any other is returned unchanged. Pilots are kept and
            resumed under ``pilot/`` in its folder.

    Returns:
        The workspace with the design of the highest expected accuracy; of equals, the one that sends the fewest bytes.

    Raises:
        NonnError: a design cannot be trained; finished work is kept.
        DataError: the result of a finished pilot is damaged.
    """
    experiment = space.experiment
    if experiment.partition.parts != AUTO:
        return space
    trials: list[Trial] = []
    for design in designs(experiment.devices.count):
        place = f"{space.place}/pilot/parts-{design.num_parts}-overlap-{design.overlap}"
        trial = _trial(space.changed(_pilot(experiment, design), place), design)
        space.progress.say(
            f"pilot: {trial.parts} parts, overlap {trial.overlap}: expected accuracy "
            f"{100 * trial.expected_accuracy:.2f} % held out, {trial.bytes_per_answer:,} bytes per answer"
        )
        trials.append(trial)
    best = max(trials, key=lambda trial: (trial.expected_accuracy, -trial.bytes_per_answer))
    file = space.folder / "pilot" / "pilot.json"
    write_json(
        file,
        {
            "law": _law_text(experiment),
            "chosen": dataclasses.asdict(best),
            "trials": [dataclasses.asdict(t) for t in trials],
        },
    )
    space.progress.say(f"pilot: chose {best.parts} parts with overlap {best.overlap}; {file}")
    chosen = dataclasses.replace(experiment.partition, parts=best.parts, overlap=best.overlap)
    return space.changed(dataclasses.replace(experiment, partition=chosen))


def _pilot(experiment: Experiment, design: Design) -> Experiment:
    """The experiment with one design and few epochs."""
    epochs = min(experiment.partition.pilot_epochs, experiment.distill.epochs)
    return dataclasses.replace(
        experiment,
        partition=dataclasses.replace(experiment.partition, parts=design.num_parts, overlap=design.overlap),
        distill=dataclasses.replace(experiment.distill, epochs=epochs),
    )


def _trial(space: Workspace, design: Design) -> Trial:
    """Trains and evaluates one design unless it is done."""
    config = space.experiment
    trained = train(space)
    students = trained.students.network
    inputs = {
        "format": FORMAT,
        "students": trained.students.stage.key,
        "fusion": stage_inputs(config.fusion),
        "law": _law_text(config),
    }
    stage = space.stage("trial", inputs)
    file = stage.folder / "trial.json"
    if not stage.done:
        head = space.heads.fit(trained.teacher.network, students)
        law = parse_law(_law_text(config), config.devices.count)
        features = space.heads.held_out_features(students)
        evidence = evaluate_subsets(head, features, space.data.held_out.labels, [law])
        expected = float(np.dot(evidence.weights(law), evidence.table.accuracy))
        trial = Trial(design.num_parts, design.overlap, expected, 4 * sum(students.fusion.widths))
        write_json(file, dataclasses.asdict(trial))
        stage.finish()
    try:
        return read(Trial, file)
    except (OSError, DataError) as exc:
        raise DataError(f"{stage.folder}: not a readable pilot ({exc}); remove the folder and run again") from exc


def _law_text(experiment: Experiment) -> str:
    return experiment.guarantees.law or failure_law(experiment.devices)
