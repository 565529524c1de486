"""An experiment from data to bundle and report: teacher → partition → students → bundle → report.

Each stage reads what the stage before wrote and writes its own folder under ``runs/<experiment>/``. The test split is
looked at once, at the end, by the bundle stage.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from nonn.bundle import Bundle, InputSpec, Manifest, load_bundle, write_bundle
from nonn.bundle import Student as StudentEntry
from nonn.config import AUTO, Experiment, TrainingConfig
from nonn.console import Tick, bar, say
from nonn.data import Dataset, Split, load_data
from nonn.data.augment import Augment
from nonn.devices import place_students, resolve_devices
from nonn.distill import DistillTask, FusionLayer, Students
from nonn.distill.heads import fit_head
from nonn.distill.schedule import AssistantTask, plan
from nonn.errors import BundleError, ConfigError
from nonn.export import export_onnx, run_onnx
from nonn.export.deploy import Deployed, calibration_sample, deploy, float_reference
from nonn.files import atomic_file, sha256_file, write_json
from nonn.filters import build_graph, correlation
from nonn.fusion import enumerate_subsets
from nonn.partition import Partition, check_parts, check_takes_sizes, make_partition
from nonn.partition.measures import measure
from nonn.partition.redundancy import Design, filters_of_device
from nonn.provenance import code_version
from nonn.report import write_report
from nonn.stages import Stage, exclusive, open_stage
from nonn.students import Student, grouping_pays, measure_cost
from nonn.students.sizing import Sizing, check_device, feature_bytes, size_students
from nonn.subsets import SubsetTable
from nonn.teacher import Normalise, Teacher, TeacherTask, build_teacher, load_weights
from nonn.trainer import Progress, Task, batches, fit
from nonn.views import View, resolve_views, seen, seen_shape

__all__ = ["Run"]

FORMAT = 1  # raised when a stage's files change so that older ones must not be used again
_CHECKED = 64  # held-out samples that every exported student is checked with


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
                "partition.parts = 'auto': a run needs a number; let nonn.pilot.settle choose one, as `nonn run` does"
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

    def execute(self) -> tuple[Bundle, dict[str, Any]]:
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

    def check(self) -> None:
        """Finds out before hours of training what cannot work after them.

        Raises:
            PartitionError: more parts than the teacher has filters.
            BudgetError: a student is over its device's budget.
            ConfigError: a model cannot be made.
        """
        check_parts(self._num_filters, self.experiment.partition.parts)
        sizing = self._sizing
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
        teacher = self._build_teacher()
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
        accuracy = _accuracy(teacher, self.data.held_out, self.device)
        write_json(stage.folder / "teacher.json", {"model": config.model, "held_out_accuracy": accuracy})
        stage.finish()
        say(f"teacher {config.model}: {100 * accuracy:.2f} % on the held-out split")
        return teacher.eval(), stage

    def mentor(self) -> tuple[Teacher, Stage]:
        """Whom the students learn from: the last teacher assistant, or the teacher where there is none."""
        mentor, before = self.teacher()
        config = self.experiment
        for number, step in enumerate(s for s in plan(config.distill) if s.model):
            assistant = self._build_teacher(step.model, 4, number)
            inputs = {"mentor": before.key, "model": step.model, "distill": dataclasses.asdict(config.distill)}
            stage = open_stage(self.folder, step.name, inputs | {"format": FORMAT, "seed": self.seed})
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
                "sizes": self._sizing.sizes,
                "seed": self.seed,
            },
        )
        if not stage.done:
            teacher.to(self.device)
            with torch.no_grad():
                chunks = [teacher.activations(x).cpu() for x in batches(self.data.held_out.inputs, self.device)]
            activations = torch.cat(chunks).numpy()
            graph = build_graph(config.graph, activations)
            made = make_partition(config.partition, graph, self.seed, self._sizing.sizes)
            measures = measure(made, graph, correlation(activations))
            write_json(stage.folder / "partition.json", made.to_json() | {"measures": measures.to_json()})
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
                "format": FORMAT,
                "before": before.key,
                "students": self._sizing.models,
                "views": self._views,
                "sends": [config.student.sends, config.student.send_width],
                "overlap": config.partition.overlap,
                "distill": dataclasses.asdict(config.distill),
                "fusion": config.fusion.train,
                "seed": self.seed,
            },
        )
        students = self._build_students(partition, number)
        file = stage.folder / "students.safetensors"
        if stage.done:
            students.load_state_dict(load_file(file))
            return students.eval(), stage
        mentor, _ = self.mentor()
        filters = filters_of_device(self._design(partition), partition, config.devices.count)
        title = f"{name} {config.devices.count} × {'/'.join(dict.fromkeys(self._sizing.models))}"
        with bar(title, config.distill.epochs, "epochs") as tick:
            grouped = config.distill.grouped and grouping_pays(self.device, self.data.input_shape)
            distill = dataclasses.replace(config.distill, grouped=grouped)
            task = DistillTask(mentor, students, filters, distill, previous=previous, seed=_seed(self.seed, 5, number))
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
                "p_fail": config.devices.p_fail,
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
        bundle = self._build_bundle(students, partition, target)
        with atomic_file(stage.folder / "hash") as file:
            file.write_text(bundle.hash)
        stage.finish()
        return bundle

    def _build_bundle(self, students: Students, partition: Partition, target: Path) -> Bundle:
        """Fits the head, exports the students, records test features and enumerates all answering sets."""
        config, data = self.experiment, self.data
        teacher, _ = self.teacher()
        _, graph, _ = self.partition()
        design = self._design(partition)
        learned = design.parts_of_device(config.devices.count)
        with bar("fusion", 1) as tick:
            head = fit_head(
                config.fusion,
                teacher,
                students,
                data.train,
                data.held_out,
                seed=self.seed,
                augment=self.augment,
                device=self.device,
            )
            tick(1, head.kind)
        deployed, entries, features = list[Deployed](), [], []
        calibration = calibration_sample(data.train.inputs, config.export.calibration, self.seed)
        students.cpu()
        with bar("export", len(learned), "students") as tick:
            for i, student in enumerate(students.apart()):
                view = student.view
                exported = export_onnx(student, student.input_shape, seen(data.held_out.inputs[:_CHECKED], view))
                served = deploy(config.export, i, exported, seen(calibration, view))
                deployed.append(served)
                features.append(served.features(seen(data.test.inputs, view)))
                cost, width = measure_cost(student, student.input_shape), features[i].shape[1]
                entries.append(
                    StudentEntry(
                        i,
                        learned[i][0],
                        f"students/student-{i}{served.suffix}",
                        "",
                        cost.params,
                        cost.macs,
                        0,
                        width,
                        parts=learned[i],
                        view=view,
                        **served.entry(),
                    )
                )
                tick(i + 1, "")
        with bar("all answering sets", 1) as tick:
            table = enumerate_subsets(head, features, data.test.labels)
            tick(1, f"{len(table.correct):,} × {table.samples:,} samples")
        self._check_guarantees(table)
        floats: dict[str, Any] = {}
        if any(served.lossy for served in deployed):
            exact = [
                run_onnx(d.original, seen(data.test.inputs, v)) for d, v in zip(deployed, self._views, strict=True)
            ]
            floats["float32"] = float_reference(enumerate_subsets(head, exact, data.test.labels), deployed)
        cost = measure_cost(teacher, data.input_shape)
        manifest = Manifest(
            experiment=config.experiment.name,
            input=InputSpec(data.input_shape, data.dtype, tuple(data.mean.tolist()), tuple(data.std.tolist())),
            classes=data.classes,
            parts=partition.parts,
            students=tuple(entries),
            files={},
            teacher={
                "model": config.teacher.model,
                "params": cost.params,
                "macs": cost.macs,
                "accuracy": _accuracy(teacher, data.test, self.device),
            },
            data={
                "name": data.name,
                "split": "test",
                "samples": len(data.test),
                "fingerprint": data.fingerprint(),
            },
            provenance={
                "config": dataclasses.asdict(config),
                "code_version": code_version(),
                "partition": json.loads((self.folder / "partition" / "partition.json").read_text())["measures"],
                **floats,
            },
            replicas=design.devices_of_part(config.devices.count),
        )
        recorded = {f"device_{i}": f for i, f in enumerate(features)}
        return write_bundle(
            target,
            manifest,
            {i: served.data for i, served in enumerate(deployed)},
            {
                "fusion.npz": head.to_arrays(),
                "accuracy.npz": {"correct": table.correct, "samples": np.array(table.samples)},
                "features.npz": {"labels": data.test.labels, **recorded},
                "graph.npz": {"weights": graph},
            },
            {f"students/student-{i}.onnx": s.original for i, s in enumerate(deployed) if s.data != s.original},
        )

    def _check_guarantees(self, table: SubsetTable) -> None:
        """Refuses to write a bundle that breaks a promise.

        Raises:
            GuaranteeError: names the answering set that breaks it.
        """
        promised = self.experiment.guarantees
        if not promised.require:
            return
        from nonn_sim.guarantees import check_guarantees  # it judges bundles of any origin, after the fact too
        from nonn_sim.laws import parse_law

        law = parse_law(promised.law or f"independent p={self.experiment.devices.p_fail}", table.num_devices)
        check_guarantees(table, law, promised.require)

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

    def _design(self, partition: Partition) -> Design:
        """Which device learns which parts."""
        return Design(partition.num_parts, self.experiment.partition.overlap)

    def _build_teacher(self, model: str = "", *stream: int) -> Teacher:
        """The untrained teacher, or an assistant of another model with random numbers of its own."""
        config = self.experiment.teacher
        with _seeded(self.seed, *(stream or (0,))):
            return build_teacher(
                dataclasses.replace(config, model=model) if model else config,
                self.data.input_shape,
                self.data.num_classes,
                self._normalise(),
            )

    def _build_students(self, partition: Partition, generation: int) -> Students:
        """Untrained students, every one within its device's budget."""
        config, data = self.experiment, self.data
        design, devices, students = self._design(partition), resolve_devices(config.devices), []
        for i, filters in enumerate(filters_of_device(design, partition, config.devices.count)):
            with _seeded(self.seed, 2, i, *[generation] * bool(generation)):
                student = self._student(i, self._sizing.models[i], len(filters))
            cost = measure_cost(student, student.input_shape)
            check_device(devices[i], self._sizing.models[i], cost, feature_bytes(student, config.export.features))
            students.append(student)
        groups = design.group_of_device(config.devices.count)
        with _seeded(self.seed, 2):
            fusion = FusionLayer(config.fusion.train, [s.width for s in students], groups, data.num_classes)
        return Students(students, fusion)

    def _student(self, device: int, model: str, filters: int) -> Student:
        """An untrained student of a device, with so many filters."""
        config, view = self.experiment.student, self._views[device]
        return Student(
            model,
            seen_shape(self.data.input_shape, view),
            filters,
            self._normalise(view),
            config.sends,
            config.send_width,
            view,
        )

    @cached_property
    def _views(self) -> tuple[View, ...]:
        """Channels that each device sees [N]."""
        return resolve_views(self.experiment.devices, self.data.input_shape[0])

    @cached_property
    def _num_filters(self) -> int:
        """Filters that are cut: of the last teacher assistant, or of the teacher where there is none."""
        teacher = self._build_teacher()
        for number, step in enumerate(s for s in plan(self.experiment.distill) if s.model):
            teacher = self._build_teacher(step.model, 4, number)
        return teacher.num_filters

    @cached_property
    def _sizing(self) -> Sizing:
        """Which model each device runs, and how many filters each part has where that follows from it."""
        config = self.experiment
        return size_students(
            resolve_devices(config.devices),
            self._views,
            Design(config.partition.parts, config.partition.overlap),
            self._num_filters,
            config.student.model,
            self._student,
            config.export.features,
        )

    def _fit(self, task: Task, config: TrainingConfig, stage: Stage, stream: int, progress: Progress) -> None:
        """Trains on the training split, in this stage's folder and with random numbers of its own."""
        fit(
            task,
            self.data.train.inputs,
            self.data.train.labels,
            config,
            stage.folder,
            seed=_seed(self.seed, stream),
            augment=self.augment,
            device=self.device,
            progress=progress,
        )

    def _normalise(self, view: View = ()) -> Normalise:
        """The first layer of a network that sees these channels; none named is all."""
        mean, std = (values[list(view)] if view else values for values in (self.data.mean, self.data.std))
        return Normalise(mean.tolist(), std.tolist(), len(self.data.input_shape) - 1)


def _seed(*stream: int) -> int:
    """A seed for one purpose, unrelated to those of the others."""
    return int(np.random.SeedSequence(stream).generate_state(1)[0])


@contextlib.contextmanager
def _seeded(*stream: int) -> Iterator[None]:
    """Gives a block torch's global generator with a seed of its own, and puts the old state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(*stream))
        yield


def _epochs(tick: Tick) -> Progress:
    """A trainer's progress as a bar's."""
    return lambda done, _total, losses: tick(done, "  ".join(f"{k} {v:.3f}" for k, v in losses.items()))


def _without(config: Any, key: str) -> dict[str, Any]:
    """A configuration as a mapping, without what the result does not depend on."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k != key}


def _save(module: torch.nn.Module, path: Path) -> None:
    with atomic_file(path) as file:
        file.write_bytes(save({k: v.detach().cpu().contiguous() for k, v in module.state_dict().items()}))


def _accuracy(teacher: Teacher, split: Split, device: str) -> float:
    """Share of a split that the teacher gets right."""
    teacher.to(device).eval()
    with torch.no_grad():
        predicted = torch.cat([teacher(x)[1].argmax(dim=1).cpu() for x in batches(split.inputs, device)])
    return float((predicted.numpy() == split.labels).mean())
