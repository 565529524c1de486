"""``student.model = "search:wrn-DEPTH"``: the width of each stage is searched under the limits of the device.

All three stages begin with the smallest width. In each round every stage is widened in turn to the next of the widths
0.25, 0.5, 1, 2 and 4, if the student still fits its device. Each such network learns the whole task from the teacher
for ``student.search_epochs`` epochs, and the next round begins with the one of the least cross entropy on the held-out
split. When no wider one fits, the best of all rounds is taken. Each class of devices is searched for separately.

Source: compact structures searched block by block, recalled; the order and the measure are a substitute.

Limits: greedy, and ranked after few epochs with one seed. A network is trained with all channels of the input, even if
the device sees a view. Limits are checked with parts of equal size, and again before the students are trained.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from nonn.distill.schedule import AssistantTask
from nonn.errors import BudgetError, DataError
from nonn.experiment.keys import distillation_inputs
from nonn.experiment.stages import open_stage
from nonn.experiment.teachers import TrainedTeacher, class_counts, train_assistants, train_teacher
from nonn.experiment.workspace import Workspace
from nonn.files import write_json
from nonn.students.devices import Device, resolve_devices
from nonn.students.sizing import SEARCH, searched_depth
from nonn.trainer import batches

__all__ = ["search_widths"]

FORMAT = 1
_LADDER = ("0.25", "0.5", "1", "2", "4")
_WEIGHTS, _TRAINING = 9002, 300  # streams of random numbers; see nonn.experiment.seeds

Steps = tuple[int, int, int]  # of the ladder, for each stage


def search_widths(space: Workspace) -> Workspace:
    """The workspace with a network in place of every ``search:``; before all other stages of a run.

    Args:
        space: trained networks are kept in ``search/`` in its folder and used again; ``search/search.json`` lists their
            losses. A workspace without ``search:`` is returned unchanged.

    Raises:
        BudgetError: even the smallest widths are over a device's limits.
        DataError: the result of a finished network is damaged.
        NonnError: a network cannot be trained; finished work is kept.
    """
    experiment = space.experiment
    devices, kinds = resolve_devices(experiment.devices), experiment.devices.classes
    starts = itertools.accumulate((kind.count for kind in kinds[:-1]), initial=0)
    alike = [devices[start] for start in starts]  # one device of each class; one of all without classes
    wanted = [device.model or experiment.student.model for device in alike]
    if not any(model.startswith(SEARCH) for model in wanted):
        return space
    searches = [
        _Search(space, device, searched_depth(model)) if model.startswith(SEARCH) else None
        for device, model in zip(alike, wanted, strict=True)
    ]
    for search in filter(None, searches):
        space.networks.check_student(search.device, search.name((0, 0, 0)))  # before the teacher is trained
    teacher = train_assistants(space, train_teacher(space))
    found = [search.run(teacher) if search else None for search in searches]
    write_json(space.folder / "search" / "search.json", [result for result in found if result])
    models = [result["chosen"] if result else model for result, model in zip(found, wanted, strict=True)]
    student, table = experiment.student, experiment.devices
    if kinds:
        classes = tuple(dataclasses.replace(kind, model=model) for kind, model in zip(kinds, models, strict=True))
        table = dataclasses.replace(table, classes=classes)
    if student.model.startswith(SEARCH):
        student = dataclasses.replace(student, model=models[0])
    return space.changed(dataclasses.replace(experiment, student=student, devices=table))


@dataclass(frozen=True)
class _Search:
    """The search for one device, or for all devices of its class."""

    space: Workspace
    device: Device
    depth: int

    def name(self, steps: Steps) -> str:
        return f"staged-wrn-{self.depth}-{'x'.join(_LADDER[step] for step in steps)}"

    def run(self, teacher: TrainedTeacher) -> dict[str, Any]:
        """The chosen network, and the losses of all that were trained."""
        steps: Steps = (0, 0, 0)
        losses = {steps: self._loss(self.name(steps), teacher)}
        while wider := list(self._wider(steps)):
            losses |= {tried: self._loss(self.name(tried), teacher) for tried in wider}
            steps = min(wider, key=lambda tried: losses[tried])
        best = min(losses, key=lambda tried: losses[tried])
        chosen = self.name(best)
        self.space.progress.say(
            f"search for device {self.device.title}: {chosen}, cross entropy {losses[best]:.3f} held out, "
            f"of {len(losses)} networks"
        )
        return {"device": self.device.title, "chosen": chosen, "losses": {self.name(k): v for k, v in losses.items()}}

    def _wider(self, steps: Steps) -> Iterator[Steps]:
        """With one stage widened, if they fit the device."""
        for stage in range(3):
            first, second, third = (step + (i == stage) for i, step in enumerate(steps))
            if steps[stage] + 1 < len(_LADDER):
                try:
                    self.space.networks.check_student(self.device, self.name((first, second, third)))
                except BudgetError:
                    continue
                yield first, second, third

    def _loss(self, name: str, teacher: TrainedTeacher) -> float:
        """Cross entropy on the held-out split of a network that learned the whole task, trained unless it is done."""
        space, experiment = self.space, self.space.experiment
        config = dataclasses.replace(experiment.distill, epochs=experiment.student.search_epochs)
        inputs = {
            "format": FORMAT,
            "teacher": teacher.stage.key,
            "model": name,
            "distill": distillation_inputs(config),
            "seed": space.seed,
        }
        stage = open_stage(space.folder / "search", name, inputs)
        file = stage.folder / "loss.json"
        if not stage.done:
            network = space.networks.assistant(name, _WEIGHTS)
            task = AssistantTask(teacher.network, network, config, class_counts(space))
            space.fit(task, config, stage, _TRAINING, f"search {name}", split=space.lessons)
            held_out = space.data.held_out
            with torch.no_grad():
                network.to(space.device).eval()
                logits = torch.cat([network(x)[1].float().cpu() for x in batches(held_out.inputs, space.device)])
            loss = functional.cross_entropy(logits, torch.from_numpy(held_out.labels))
            write_json(file, {"loss": float(loss)})
            stage.finish()
        try:
            return float(json.loads(file.read_text())["loss"])
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise DataError(f"{file}: not a readable loss ({exc}); remove the folder and run again") from exc
