"""Distillation: objectives, failout, the differentiable fusion, and the training task of the students."""

from nonn.distill.failout import sample_answering
from nonn.distill.fusion import FusionLayer
from nonn.distill.students import Students
from nonn.distill.task import DistillTask

__all__ = ["DistillTask", "FusionLayer", "Students", "sample_answering"]
