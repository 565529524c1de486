"""The teacher: model zoo, features by hook, its training task."""

from nonn.teacher.task import TeacherTask
from nonn.teacher.teacher import Normalise, Teacher, build_teacher, load_weights
from nonn.teacher.wrn import WideResNet, pool, wrn

__all__ = ["Normalise", "Teacher", "TeacherTask", "WideResNet", "build_teacher", "load_weights", "pool", "wrn"]
