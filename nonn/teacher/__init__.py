"""The teacher: model zoo, features by hook, its training task."""

from nonn.teacher.convnet import pool
from nonn.teacher.task import TeacherTask, measure_accuracy
from nonn.teacher.teacher import Normalise, Teacher, build_teacher, load_weights
from nonn.teacher.wrn import WideResNet, wrn

__all__ = [
    "Normalise",
    "Teacher",
    "TeacherTask",
    "WideResNet",
    "build_teacher",
    "load_weights",
    "measure_accuracy",
    "pool",
    "wrn",
]
