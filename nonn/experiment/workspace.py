"""State that all stages of a run share: the experiment, its folder, its data and untrained networks, the trainer."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nonn.config import Experiment, TrainingConfig, load_experiment
from nonn.data import Dataset, Split, load_data
from nonn.data.augment import Augment
from nonn.distill.heads import HeadFitter
from nonn.errors import ConfigError
from nonn.experiment.losses import event_file, event_writer, write_losses
from nonn.experiment.networks import Networks
from nonn.experiment.precheck import check_before_data
from nonn.experiment.progress import Progress, Silent
from nonn.experiment.seeds import seed_of
from nonn.experiment.stages import Stage, open_stage
from nonn.partition import check_parts, check_takes_sizes
from nonn.students.devices import resolve_devices
from nonn.trainer import Replay, Task, batch_size, fit

__all__ = ["Workspace", "resolve"]


def resolve(experiment: str | Path | Experiment | None, overrides: Sequence[str] = ()) -> Experiment:
    """An experiment from a file or an object, with overrides.

    Args:
        experiment: TOML file or loaded experiment; None is the digits experiment with all defaults.
        overrides: ``section.key=value``, applied in order.

    Raises:
        ConfigError: see ``load_experiment``; also if there are overrides of a loaded experiment, which is changed by
            ``dataclasses.replace``.
    """
    if not isinstance(experiment, Experiment):
        return load_experiment(None if experiment is None else Path(experiment), overrides)
    if overrides:
        raise ConfigError(
            "overrides require an experiment file; pass them to load_experiment, or use dataclasses.replace"
        )
    return experiment


_SILENT = Silent()


@dataclass(frozen=True)
class Workspace:
    """One experiment in one folder.

    Attributes:
        experiment: the experiment.
        runs: folder of all runs.
        place: subfolder of the run for all other stages than the teacher.
        dataset: the data, if already read.
        progress: receives the progress.
        tensorboard: write the losses of each training for TensorBoard too.
        shared: subfolder of the run for the teacher and its stored answers, which places share.

    Raises:
        MissingExtraError: ``tensorboard`` is set, but the package is not installed.
    """

    experiment: Experiment
    runs: Path
    place: str = "."
    dataset: Dataset | None = None
    progress: Progress = _SILENT
    tensorboard: bool = False
    shared: str = "."

    def __post_init__(self) -> None:
        if self.tensorboard:
            event_writer()

    @property
    def root(self) -> Path:
        """The folder of this run."""
        return self.runs / self.experiment.experiment.name

    @property
    def folder(self) -> Path:
        """The folder of the stages after the teacher."""
        return self.root / self.place

    @property
    def common(self) -> Path:
        """The folder of the teacher and its stored answers."""
        return self.root / self.shared

    @property
    def seed(self) -> int:
        """Of everything."""
        return self.experiment.experiment.seed

    @cached_property
    def device(self) -> str:
        """The torch device to train on."""
        return "cuda" if torch.cuda.is_available() else "cpu"

    @cached_property
    def data(self) -> Dataset:
        """The data, read once."""
        if self.dataset is not None:
            return self.dataset
        check_before_data(self.experiment)
        data = load_data(self.experiment.data, self.seed)
        shape = "×".join(map(str, data.input_shape))
        self.progress.say(
            f"data {data.name}: {len(data.train):,} train, {len(data.held_out):,} held out, {len(data.test):,} test; "
            f"{shape} {data.dtype}, {data.num_classes} classes"
        )
        return data

    @cached_property
    def lessons(self) -> Split:
        """What students and heads learn from: the training split, or patches of ``distill.picture`` without labels.

        Raises:
            ConfigError, DataError: see ``cut_patches``.
        """
        distill, train = self.experiment.distill, self.data.train
        if not distill.picture:
            return train
        from nonn.data.patches import cut_patches  # Pillow is not needed otherwise

        seed = seed_of(self.seed, 8)
        patches = cut_patches(Path(distill.picture), distill.patches, self.data.input_shape, seed)
        return Split(patches.astype(train.inputs.dtype), np.zeros(len(patches), dtype=np.int64))

    @cached_property
    def augment(self) -> Augment:
        """Augmentation of training inputs."""
        return Augment(self.experiment.data, self.data.mean, self.data.std)

    @cached_property
    def networks(self) -> Networks:
        """The untrained networks."""
        return Networks(self.experiment, self.data)

    @cached_property
    def heads(self) -> HeadFitter:
        """Fits fusion heads to trained students."""
        data = self.data
        return HeadFitter(self.experiment.fusion, self.lessons, data.held_out, self.seed, self.augment, self.device)

    def changed(self, experiment: Experiment, place: str = "") -> Workspace:
        """A workspace for a changed experiment with the same data.

        Args:
            experiment: the changed experiment.
            place: place of its stages; empty for the same place.
        """
        return dataclasses.replace(self, experiment=experiment, place=place or self.place, dataset=self.data)

    def check(self) -> None:
        """Finds errors before hours of training that would otherwise appear after them.

        Raises:
            PartitionError: more parts than the teacher has filters.
            BudgetError: a student is over its device's budget.
            ConfigError: a model cannot be built, ``partition.parts`` is still ``"auto"``, or ``[sensing]`` does not
                fit the data.
        """
        if self.experiment.sensing.rate_hz:
            self.experiment.sensing.spec(self.data.input_shape)
        check_parts(self.networks.num_filters, self.experiment.partition.num_parts)
        sizing = self.networks.sizing
        if sizing.sizes is not None:
            check_takes_sizes(self.experiment.partition.method)
            devices = resolve_devices(self.experiment.devices)
            for device, model, params in zip(devices, sizing.models, sizing.params, strict=True):
                self.progress.say(f"device {device.title}: {model}, {params:,} parameters")

    def stage(self, name: str, inputs: Mapping[str, Any]) -> Stage:
        """Opens a stage in this place; see ``open_stage``."""
        return open_stage(self.folder, name, inputs)

    def fit(
        self,
        task: Task,
        config: TrainingConfig,
        stage: Stage,
        stream: int,
        title: str,
        replay: Replay | None = None,
        split: Split | None = None,
    ) -> None:
        """Trains on the training split, and writes the mean losses of every epoch into the stage.

        Args:
            task: the training task.
            config: optimiser and schedule.
            stage: stage whose folder has the checkpoint.
            stream: stream of random numbers; see ``nonn.experiment.seeds``.
            title: title of the progress bar.
            replay: stored augmentations; None for new ones.
            split: what is learned from; None for the training split.
        """
        split = split or self.data.train
        samples = len(split)
        if (batch := batch_size(config, samples)) < config.batch:
            self.progress.say(
                f"{title}: batches of {batch}, not {config.batch}, since {samples:,} samples would be "
                f"{samples // config.batch} of them; {samples // batch} steps an epoch (epoch_steps)"
            )
        with (
            self.progress.bar(title, config.epochs, "epochs") as tick,
            event_file(stage.folder) if self.tensorboard else contextlib.nullcontext() as write,
        ):

            def report(done: int, _: int, losses: dict[str, float]) -> None:
                tick(done, "  ".join(f"{k} {v:.3f}" for k, v in losses.items()))
                if write is not None:
                    write(done, losses)

            history = fit(
                task,
                split.inputs,
                split.labels,
                config,
                stage.folder,
                seed=seed_of(self.seed, stream),
                augment=self.augment,
                replay=replay,
                device=self.device,
                progress=report,
            )
        if history:
            write_losses(stage.folder, history)
