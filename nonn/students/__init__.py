"""Students, and their cost on a device."""

from nonn.students.budget import Cost, check_budget, measure_cost
from nonn.students.grouped import GroupedStudents, grouping_pays
from nonn.students.student import Student

__all__ = ["Cost", "GroupedStudents", "Student", "check_budget", "grouping_pays", "measure_cost"]
