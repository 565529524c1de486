"""What can be checked of an experiment before its data are read: guarantees, models, files of weights.

Reading the data may take minutes, training hours; a misspelt guarantee must not be found afterwards. What depends on
the data, such as the size of a student, is checked by ``Workspace.check``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from nonn.config import Experiment, TeacherConfig
from nonn.config.models import NETWORKS, ModelName, Table
from nonn.distill.schedule import plan
from nonn.errors import ConfigError
from nonn.experiment.weights import given_students, partition_of
from nonn.reliability.guarantees import judge
from nonn.reliability.laws import parse_law
from nonn.reliability.subsets import MAX_DEVICES
from nonn.reliability.table import SubsetTable
from nonn.students.devices import failure_law, resolve_devices
from nonn.students.sizing import SEARCH, models_named, searched_depth
from nonn.teacher import Normalise, Teacher, load_weights
from nonn.teacher.dotted import from_factory, is_foreign

__all__ = ["check_before_data"]


def check_before_data(experiment: Experiment) -> None:
    """Finds errors that need no data; takes a second at most.

    Raises:
        ConfigError: a guarantee, law or model is invalid, or a file of weights is missing or of another network.
    """
    _check_guarantees(experiment)
    if (picture := experiment.distill.picture) and not Path(picture).is_file():
        raise ConfigError(f"distill.picture = '{picture}': no such file")
    simreg, teacher = experiment.distill.objectives.simreg, experiment.teacher
    for path in simreg.teachers if simreg.weight else ():
        if not Path(path).is_file():
            raise ConfigError(f"distill.objectives.simreg.teachers: '{path}': no such file")
    for step in plan(experiment.distill):
        if step.model:
            _check_model("teacher", step.model)
    models = [device.model or experiment.student.model for device in resolve_devices(experiment.devices)]
    for model in dict.fromkeys(models):
        if model.startswith(SEARCH):
            searched_depth(model)
            continue
        for name in models_named(model):
            _check_model("student", name)
    if is_foreign(teacher.model):
        _check_foreign(teacher)
    elif teacher.weights and not Path(teacher.weights).is_file():
        raise ConfigError(f"teacher.weights = '{teacher.weights}': no such file")
    if (weights := given_students(experiment.student)) is not None:
        partition_of(weights)


def _check_guarantees(experiment: Experiment) -> None:
    """Parses promises and their law, with a table in which nothing is right."""
    promised, devices = experiment.guarantees, experiment.devices.count
    if not promised.require:
        return
    law = parse_law(promised.law or failure_law(experiment.devices), devices)
    few = min(devices, MAX_DEVICES)  # what a promise says does not depend on their number, only on the law's
    table = SubsetTable(np.zeros(1 << few, dtype=np.int64), 1)
    for text in promised.require:
        judge(table, law if few == devices else parse_law("k-of-n k=0", few), text)


def _check_model(table: Table, model: str) -> None:
    """Whether there is a model of this name; a factory is not called."""
    if not is_foreign(model):
        return
    if rule := ModelName(table).broken(model):  # the experiment may be made by a program
        raise ConfigError(f"{table}.model = '{model}': {rule}")
    NETWORKS[table].load(model, f"{table}.model")


def _check_foreign(config: TeacherConfig) -> None:
    """Builds the teacher, finds its final stage and loads its weights: its factory needs no data."""
    with torch.random.fork_rng(devices=[]):
        network = from_factory("teacher", config.model, config.args)
    Teacher(network, config.features, Normalise((), (), 0))
    if config.weights:
        load_weights(network, Path(config.weights))
