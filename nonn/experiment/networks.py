"""The untrained networks of an experiment: its teacher, teacher assistants, and students sized to their devices.

Each one is built with a separate seed, so the initial weights do not depend on the other networks.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cached_property

from nonn.bundle.views import WHOLE, View, resolve_views, view_shape
from nonn.config import Experiment
from nonn.data import Dataset
from nonn.distill import FusionLayer, Students
from nonn.distill.schedule import plan
from nonn.experiment.contract import normalisation
from nonn.experiment.seeds import seeded
from nonn.partition import Partition
from nonn.partition.redundancy import Design, filters_of_device
from nonn.students import Student, measure_cost
from nonn.students.devices import Device, resolve_devices
from nonn.students.sizing import Sizing, check_device, check_model, feature_bytes, size_students
from nonn.teacher import Normalise, Teacher, build_teacher

__all__ = ["Networks"]


@dataclass(frozen=True)
class Networks:
    """Builds the networks of one experiment.

    Attributes:
        experiment: experiment with a known number of parts.
        data: determines the inputs and their normalisation.
    """

    experiment: Experiment
    data: Dataset

    def teacher(self) -> Teacher:
        """The untrained teacher.

        Raises:
            ConfigError: it cannot be built.
        """
        return self._teacher("", 0)

    def assistant(self, model: str, number: int) -> Teacher:
        """An untrained teacher assistant of another model.

        Raises:
            ConfigError: it cannot be built.
        """
        return self._teacher(model, 4, number)

    def students(self, partition: Partition, generation: int) -> Students:
        """Untrained students and their fusion.

        Raises:
            BudgetError: a student is over its device's budget.
        """
        config, data = self.experiment, self.data
        design, devices, students = self.design(partition), resolve_devices(config.devices), []
        for i, filters in enumerate(filters_of_device(design, partition, config.devices.count)):
            with seeded(self._seed, 2, i, *[generation] * bool(generation)):
                student = self._student(i, self.sizing.models[i], len(filters))
            cost = measure_cost(student, student.input_shape)
            check_device(devices[i], self.sizing.models[i], cost, feature_bytes(student, config.export.features))
            students.append(student)
        groups = design.group_of_device(config.devices.count)
        with seeded(self._seed, 2):
            fusion = FusionLayer(config.fusion.train, [s.width for s in students], groups, data.num_classes)
        return Students(students, fusion)

    def design(self, partition: Partition) -> Design:
        """The parts that each device learns."""
        return Design(partition.num_parts, self.experiment.partition.overlap)

    @cached_property
    def views(self) -> tuple[View, ...]:
        """The part of the input that each device receives [N]."""
        return resolve_views(self.experiment.devices, self.data.input_shape)

    @cached_property
    def input_shapes(self) -> list[tuple[int, ...]]:
        """Shape of one sample as each device sees it [N]."""
        return [view_shape(self.data.input_shape, view) for view in self.views]

    @cached_property
    def num_filters(self) -> int:
        """Number of filters to cut: of the last teacher assistant, or of the teacher if there is none."""
        teacher = self.teacher()
        for number, step in enumerate(s for s in plan(self.experiment.distill) if s.model):
            teacher = self.assistant(step.model, number)
        return teacher.num_filters

    @cached_property
    def sizing(self) -> Sizing:
        """The model of each device, and the number of filters of each part if it follows from the models."""
        config = self.experiment
        return size_students(
            resolve_devices(config.devices),
            self.input_shapes,
            Design(config.partition.num_parts, config.partition.overlap),
            self.num_filters,
            config.student.model,
            self._student,
            config.export.features,
        )

    def check_student(self, device: Device, model: str) -> None:
        """Checks a model against the limits of a device that learns parts of equal size.

        Raises:
            BudgetError: a limit is exceeded.
        """
        config = self.experiment
        design = Design(config.partition.num_parts, config.partition.overlap)
        learned = len(design.parts_of_device(config.devices.count)[device.number])
        filters = min(learned * math.ceil(self.num_filters / design.num_parts), self.num_filters)
        check_model(device, model, filters, self._student, config.export.features)

    @property
    def _seed(self) -> int:
        return self.experiment.experiment.seed

    def _teacher(self, model: str, *stream: int) -> Teacher:
        """The teacher, or another model if one is named."""
        config, data = self.experiment.teacher, self.data
        with seeded(self._seed, *stream):
            return build_teacher(
                dataclasses.replace(config, model=model, branches=0) if model else config,
                data.input_shape,
                data.num_classes,
                self._normalise() if model else normalisation(config, data),
                self.views,
            )

    def _student(self, device: int, model: str, filters: int) -> Student:
        """An untrained student of a device, with a number of filters."""
        config, view = self.experiment.student, self.views[device]
        return Student(
            model,
            self.input_shapes[device],
            filters,
            self._normalise(view),
            config.sends,
            config.send_width,
            view,
            config.args,
        )

    def _normalise(self, view: View = WHOLE) -> Normalise:
        """The first layer of a network that receives this part of the input."""
        channels = list(view.channels) or slice(None)
        mean, std = self.data.mean[channels], self.data.std[channels]
        return Normalise(mean.tolist(), std.tolist(), len(self.data.input_shape) - 1)
