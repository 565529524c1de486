"""The options of an experiment file: one frozen object for each table, with its defaults.

``experiment`` is the whole file and the tables about it as a whole; ``data``, ``training``, ``partition``, ``devices``
and ``fusion`` have the tables of the stages, ``objectives`` the objectives of distillation. torch-free.
"""

from nonn.config.data import DataConfig, SensingConfig
from nonn.config.devices import BudgetConfig, DeviceClassConfig, DevicesConfig
from nonn.config.experiment import Experiment, ExperimentConfig, GuaranteesConfig, StudyConfig, load_experiment
from nonn.config.fusion import ExportConfig, FusionConfig
from nonn.config.objectives import ObjectivesConfig
from nonn.config.partition import AUTO, GraphConfig, PartitionConfig
from nonn.config.training import DistillConfig, StudentConfig, TeacherConfig, TrainingConfig

__all__ = [
    "AUTO",
    "BudgetConfig",
    "DataConfig",
    "DeviceClassConfig",
    "DevicesConfig",
    "DistillConfig",
    "Experiment",
    "ExperimentConfig",
    "ExportConfig",
    "FusionConfig",
    "GraphConfig",
    "GuaranteesConfig",
    "ObjectivesConfig",
    "PartitionConfig",
    "SensingConfig",
    "StudentConfig",
    "StudyConfig",
    "TeacherConfig",
    "TrainingConfig",
    "load_experiment",
]
