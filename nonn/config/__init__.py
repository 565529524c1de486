"""The options of an experiment file: one frozen object for each table, with its defaults.

``experiment`` has the tables that every experiment has, ``devices`` the device classes and views, ``objectives`` the
objectives of distillation. torch-free.
"""

from nonn.config.devices import BudgetConfig, DeviceClassConfig, DevicesConfig
from nonn.config.experiment import (
    AUTO,
    DataConfig,
    DistillConfig,
    Experiment,
    ExperimentConfig,
    ExportConfig,
    FusionConfig,
    GraphConfig,
    GuaranteesConfig,
    PartitionConfig,
    SensingConfig,
    StudentConfig,
    StudyConfig,
    TeacherConfig,
    TrainingConfig,
    load_experiment,
)
from nonn.config.objectives import ObjectivesConfig

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
