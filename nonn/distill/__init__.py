"""Distillation: objectives, failout, the fusion trained through, and the students' training task."""

from nonn.distill.failout import sample_answering
from nonn.distill.fusion import FusionLayer
from nonn.distill.task import DistillTask, Students

__all__ = ["DistillTask", "FusionLayer", "Students", "sample_answering"]
