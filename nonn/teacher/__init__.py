"""The teacher: model zoo, features by hook, its training task."""

from nonn.teacher.branches import Branches
from nonn.teacher.convnet import pool
from nonn.teacher.task import TeacherTask, measure_accuracy, measure_outcomes
from nonn.teacher.teacher import Normalise, Teacher, build_teacher, load_weights
from nonn.teacher.wrn import WideResNet
from nonn.teacher.zoo import make_network

__all__ = [
    "Branches",
    "Normalise",
    "Teacher",
    "TeacherTask",
    "WideResNet",
    "build_teacher",
    "load_weights",
    "make_network",
    "measure_accuracy",
    "measure_outcomes",
    "pool",
]
