"""All students and their fusion: individual networks as they are deployed, or joint ones as they train."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from nonn.bundle.views import select_view
from nonn.distill.fusion import FusionLayer
from nonn.students import GroupedStudents, Student
from nonn.students.grouped import of_one_architecture

__all__ = ["JointStudents", "Students"]


class Students(nn.Module):
    """All students and the fusion that they are trained through.

    Args:
        students: one student per device [N].
        fusion: fusion of their features.
    """

    def __init__(self, students: Sequence[Student], fusion: FusionLayer) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.fusion = fusion

    def features(self, x: Tensor) -> list[Tensor]:
        """Sent features of each device, N tensors [B, d_i], for raw inputs [B, C, …]."""
        return [student(select_view(x, student.view)) for student in self.individual()]

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of each device, N tensors [B, C_j, …], for raw inputs [B, C, …]."""
        return [student.maps(select_view(x, student.view)) for student in self.individual()]

    def maps_and_features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, C_j, …] and sent features [B, d_i] of each device, for raw inputs [B, C, …]."""
        pairs = [student.maps_and_features(select_view(x, student.view)) for student in self.individual()]
        return [maps for maps, _ in pairs], [features for _, features in pairs]

    def individual(self) -> list[Student]:
        """The students one by one [N]."""
        return [cast("Student", student) for student in self.students]


class JointStudents(nn.Module):
    """The students as one network for training, or as one for each architecture among them.

    ``nonn.students.grouped`` has the reasons.

    Args:
        students: the students; their fusion is shared, not copied.
    """

    def __init__(self, students: Students) -> None:
        super().__init__()
        individual = students.individual()
        self._members = of_one_architecture(individual)
        self.groups = nn.ModuleList([GroupedStudents([individual[i] for i in members]) for members in self._members])
        self.fusion = students.fusion

    def maps(self, x: Tensor) -> list[Tensor]:
        """Feature maps of each device, N tensors [B, C_j, …], for raw inputs [B, C, …]."""
        return self.maps_and_features(x)[0]

    def features(self, x: Tensor) -> list[Tensor]:
        """Sent features of each device, N tensors [B, d_i], for raw inputs [B, C, …]."""
        return self.maps_and_features(x)[1]

    def maps_and_features(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Maps [B, C_j, …] and sent features [B, d_i] of each device, for raw inputs [B, C, …]."""
        learned: dict[int, tuple[Tensor, Tensor]] = {}
        for members, grouped in zip(self._members, self.groups, strict=True):
            learned |= zip(
                members, zip(*cast("GroupedStudents", grouped).maps_and_features(x), strict=True), strict=True
            )
        in_order = [learned[i] for i in range(len(learned))]
        return [maps for maps, _ in in_order], [features for _, features in in_order]

    def copy_back(self, students: Students) -> None:
        """Writes the weights into the original students."""
        individual = students.individual()
        for members, grouped in zip(self._members, self.groups, strict=True):
            cast("GroupedStudents", grouped).copy_to([individual[i] for i in members])
