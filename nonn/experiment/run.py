"""An experiment from data to bundle and report: teacher → partition → students → bundle → report.

Each stage reads what the stage before wrote and writes its own folder under ``runs/<experiment>/``. The test split is
looked at once, at the end, by the bundle stage.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from nonn.bundle import Bundle, load_bundle
from nonn.cli.console import Tick, bar, say
from nonn.config import AUTO, Experiment, TrainingConfig
from nonn.data import Dataset, load_data
from nonn.data.augment import Augment
from nonn.distill import DistillTask, Students
from nonn.distill.heads import HeadFitter
from nonn.distill.schedule import AssistantTask, plan
from nonn.documents import to_json
from nonn.errors import BundleError, ConfigError
from nonn.experiment.bundling import build_bundle
from nonn.experiment.networks import Networks
from nonn.experiment.placement import place_students
from nonn.experiment.seeds import seed_of
from nonn.experiment.stages import Stage, exclusive, open_stage
from nonn.files import atomic_file, sha256_file, write_json
from nonn.partition import Partition, check_parts, check_takes_sizes, make_partition
from nonn.partition.graph import build_graph, correlation
from nonn.partition.measures import measure
from nonn.partition.redundancy import filters_of_device
from nonn.report import write_report
from nonn.report.document import Report
from nonn.students import grouping_pays
from nonn.students.devices import failure_law, resolve_devices
from nonn.teacher import Teacher, TeacherTask, load_weights, measure_accuracy
from nonn.trainer import Progress, Task, batches, fit

__all__ = ["Run"]

FORMAT = 1  # raised when a stage's files change so that older ones must not be used again
STUDENTS_FORMAT = 2  # the same, for what distillation makes


@dataclass(frozen=True)
class Run:
    """One experiment. A stage's method runs the stage unless it is done, and gives its result.

    Attributes:
        experiment: what to do; its number of parts is settled.
        runs: folder of all runs.
        place: folder inside the run's own for all stages but the teacher, which all places share.
        dataset: the data, where it was read already.

    Raises:
        ConfigError: ``partition.parts`` is still ``"auto"``.
    """

    experiment: Experiment
    runs: Path
    place: str = "."
    dataset: Dataset | None = None

    def __post_init__(self) -> None:
        if self.experiment.partition.parts == AUTO:
            raise ConfigError(
                "partition.parts = 'auto': a run needs a number; nonn.experiment.pilot.settle chooses one"
            )

    @property
    def root(self) -> Path:
        """The folder of this run."""
        return self.runs / self.experiment.experiment.name

    @property
    def folder(self) -> Path:
        """The folder of the stages after the teacher."""
        return self.root / self.place

    @property
    def seed(self) -> int:
        """Of everything."""
        return self.experiment.experiment.seed

    def execute(self) -> tuple[Bundle, Report]:
        """Runs every stage that is not done yet.

        Returns:
            The bundle and the report.

        Raises:
            NonnError: something is wrong with the configuration, the data or a file; what was done is kept.
        """
        with exclusive(self.root):
            self.check()
            bundle = self.bundle()
            if self.experiment.devices.classes:
                self._place(bundle)
            return bundle, write_report(bundle, self.folder / "report")

    @cached_property
    def device(self) -> str:
        """The torch device to train on."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def data(self) -> Dataset:
        """The data, read once."""
        if self.dataset is not None:
            return self.dataset
        data = load_data(self.experiment.data, self.seed)
        shape = "×".join(map(str, data.input_shape))
        say(
            f"data {data.name}: {len(data.train):,} train, {len(data.held_out):,} held out, {len(data.test):,} test; "
            f"{shape} {data.dtype}, {data.num_classes} classes"
        )
        return data

    @cached_property
    def augment(self) -> Augment:
        """Variation of training inputs."""
        return Augment(self.experiment.data, self.data.mean, self.data.std)

    @cached_property
    def networks(self) -> Networks:
        """The untrained networks."""
        return Networks(self.experiment, self.data)

    @cached_property
    def heads(self) -> HeadFitter:
        """Fits fusion heads to trained students."""
        data = self.data
        return HeadFitter(self.experiment.fusion, data.train, data.held_out, self.seed, self.augment, self.device)

    def check(self) -> None:
        """Finds out before hours of training what cannot work after them.

        Raises:
            PartitionError: more parts than the teacher has filters.
            BudgetError: a student is over its device's budget.
            ConfigError: a model cannot be made.
        """
        check_parts(self.networks.num_filters, self.experiment.partition.num_parts)
        sizing = self.networks.sizing
        if sizing.sizes is not None:
            check_takes_sizes(self.experiment.partition.method)
            devices = resolve_devices(self.experiment.devices)
            for device, model, params in zip(devices, sizing.models, sizing.params, strict=True):
                say(f"device {device.title}: {model}, {params:,} parameters")

    def teacher(self) -> tuple[Teacher, Stage]:
        """The trained teacher."""
        config = self.experiment.teacher
        inputs: dict[str, Any] = {
            "format": FORMAT,
            "seed": self.seed,
            "data": self.data.fingerprint(),
            "augment": _without(self.experiment.data, "path"),
            "teacher": _without(config, "weights"),
        }
        if config.weights and Path(config.weights).is_file():
            inputs["weights"] = sha256_file(Path(config.weights))
        teacher = self.networks.teacher()
        if config.weights and "weights" not in inputs:
            load_weights(teacher.network, Path(config.weights))  # says what is wrong with the path
        stage = open_stage(self.root, "teacher", inputs)
        if stage.done:
            teacher.load_state_dict(load_file(stage.folder / "teacher.safetensors"))
            return teacher.eval(), stage
        if config.weights:
            load_weights(teacher.network, Path(config.weights))
        else:
            with bar(f"teacher {config.model}", config.epochs, "epochs") as tick:
                task = TeacherTask(teacher, config.label_smoothing)
                self._fit(task, config, stage, 1, _epochs(tick))
        _save(teacher, stage.folder / "teacher.safetensors")
        accuracy = measure_accuracy(teacher, self.data.held_out, self.device)
        write_json(stage.folder / "teacher.json", {"model": config.model, "held_out_accuracy": accuracy})
        stage.finish()
        say(f"teacher {config.model}: {100 * accuracy:.2f} % on the held-out split")
        return teacher.eval(), stage

    def mentor(self) -> tuple[Teacher, Stage]:
        """Whom the students learn from: the last teacher assistant, or the teacher where there is none."""
        mentor, before = self.teacher()
        config = self.experiment
        for number, step in enumerate(s for s in plan(config.distill) if s.model):
            assistant = self.networks.assistant(step.model, number)
            inputs = {"mentor": before.key, "model": step.model, "distill": dataclasses.asdict(config.distill)}
            stage = open_stage(self.folder, step.name, inputs | {"format": STUDENTS_FORMAT, "seed": self.seed})
            file = stage.folder / "assistant.safetensors"
            if stage.done:
                assistant.load_state_dict(load_file(file))
            else:
                with bar(f"{step.name} {step.model}", config.distill.epochs, "epochs") as tick:
                    task = AssistantTask(mentor, assistant, config.distill)
                    self._fit(task, config.distill, stage, 100 + number, _epochs(tick))
                _save(assistant, file)
                stage.finish()
            mentor, before = assistant.eval(), stage
        return mentor, before

    def partition(self) -> tuple[Partition, NDArray[np.float32], Stage]:
        """The parts and the filter graph [C, C] they were cut from."""
        teacher, before = self.mentor()
        config = self.experiment
        stage = open_stage(
            self.folder,
            "partition",
            {
                "format": FORMAT,
                "teacher": before.key,
                "graph": dataclasses.asdict(config.graph),
                "partition": {"method": config.partition.method, "parts": config.partition.parts},
                "sizes": self.networks.sizing.sizes,
                "seed": self.seed,
            },
        )
        if not stage.done:
            teacher.to(self.device)
            with torch.no_grad():
                chunks = [teacher.activations(x).cpu() for x in batches(self.data.held_out.inputs, self.device)]
            activations = torch.cat(chunks).numpy()
            graph = build_graph(config.graph, activations)
            made = make_partition(config.partition, graph, self.seed, self.networks.sizing.sizes)
            measures = measure(made, graph, correlation(activations))
            write_json(stage.folder / "partition.json", made.to_json() | {"measures": to_json(measures)})
            with atomic_file(stage.folder / "graph.npz") as file, file.open("wb") as target:
                np.savez_compressed(target, weights=graph.weights.astype(np.float32))
            stage.finish()
            say(f"partition {made.method}: sizes {', '.join(map(str, made.sizes))}")
        partition = Partition.from_json(json.loads((stage.folder / "partition.json").read_text()))
        with np.load(stage.folder / "graph.npz") as arrays:
            return partition, arrays["weights"], stage

    def students(self) -> tuple[Students, Partition, Stage]:
        """The distilled students and the fusion they were trained through: the last generation of them."""
        partition, _, before = self.partition()
        students: Students | None = None
        for number, step in enumerate(s for s in plan(self.experiment.distill) if not s.model):
            students, before = self._generation(number, step.name, partition, students, before)
        assert students is not None
        return students, partition, before

    def _generation(
        self, number: int, name: str, partition: Partition, previous: Students | None, before: Stage
    ) -> tuple[Students, Stage]:
        """One generation of students; the answers of the previous one, if any, take the place of the teacher's."""
        config = self.experiment
        stage = open_stage(
            self.folder,
            name,
            {
                "format": STUDENTS_FORMAT,
                "before": before.key,
                "students": self.networks.sizing.models,
                "views": self.networks.views,
                "sends": [config.student.sends, config.student.send_width],
                "overlap": config.partition.overlap,
                "distill": dataclasses.asdict(config.distill),
                "fusion": config.fusion.train,
                "seed": self.seed,
            },
        )
        students = self.networks.students(partition, number)
        file = stage.folder / "students.safetensors"
        if stage.done:
            students.load_state_dict(load_file(file))
            return students.eval(), stage
        mentor, _ = self.mentor()
        filters = filters_of_device(self.networks.design(partition), partition, config.devices.count)
        title = f"{name} {config.devices.count} × {'/'.join(dict.fromkeys(self.networks.sizing.models))}"
        with bar(title, config.distill.epochs, "epochs") as tick:
            grouped = config.distill.grouped and grouping_pays(self.device, self.data.input_shape)
            distill = dataclasses.replace(config.distill, grouped=grouped)
            seed = seed_of(self.seed, 5, number)
            task = DistillTask(mentor, students, filters, distill, previous=previous, seed=seed)
            self._fit(task, config.distill, stage, 3 + 1000 * number, _epochs(tick))
        task.finish()
        _save(students, file)
        stage.finish()
        return students.eval(), stage

    def bundle(self) -> Bundle:
        """The bundle, with the accuracy of every answering set on the test split."""
        students, partition, before = self.students()
        config = self.experiment
        stage = open_stage(
            self.folder,
            "bundle.build",
            {
                "format": FORMAT,
                "students": before.key,
                "fusion": dataclasses.asdict(config.fusion),
                "export": dataclasses.asdict(config.export),
                "law": failure_law(config.devices),
                "guarantees": dataclasses.asdict(config.guarantees),
                "name": config.experiment.name,
            },
        )
        target = self.folder / "bundle"
        if stage.done:
            try:
                bundle = load_bundle(target)
                if bundle.hash == (stage.folder / "hash").read_text():
                    return bundle
            except (BundleError, OSError) as exc:
                say(f"the bundle is built again: {exc}")
        teacher, _ = self.teacher()
        _, graph, partitioned = self.partition()
        measures = json.loads((partitioned.folder / "partition.json").read_text())["measures"]
        bundle = build_bundle(
            target,
            self.networks,
            teacher,
            students,
            partition,
            graph,
            measures=measures,
            fitter=self.heads,
        )
        with atomic_file(stage.folder / "hash") as file:
            file.write_text(bundle.hash)
        stage.finish()
        return bundle

    def _place(self, bundle: Bundle) -> None:
        """Says which machine should run which student, and writes it beside the bundle.

        Raises:
            GuaranteeError: no placement reaches ``devices.goal``.
        """
        seats = place_students(bundle, self.experiment.devices)
        for seat in seats:
            what = "left out" if seat.student is None else f"student {seat.student}, {1000 * seat.latency_s:.3g} ms"
            say(f"placement: device {seat.title}: {what}")
        write_json(self.folder / "placement.json", [dataclasses.asdict(seat) for seat in seats])

    def _fit(self, task: Task, config: TrainingConfig, stage: Stage, stream: int, progress: Progress) -> None:
        """Trains on the training split, in this stage's folder and with random numbers of its own."""
        fit(
            task,
            self.data.train.inputs,
            self.data.train.labels,
            config,
            stage.folder,
            seed=seed_of(self.seed, stream),
            augment=self.augment,
            device=self.device,
            progress=progress,
        )


def _epochs(tick: Tick) -> Progress:
    """A trainer's progress as a bar's."""
    return lambda done, _total, losses: tick(done, "  ".join(f"{k} {v:.3f}" for k, v in losses.items()))


def _without(config: Any, key: str) -> dict[str, Any]:
    """A configuration as a mapping, without what the result does not depend on."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k != key}


def _save(module: torch.nn.Module, path: Path) -> None:
    with atomic_file(path) as file:
        file.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))
