"""Students, and what they cost a device."""

from nonn.students.budget import Cost, check_budget, measure_cost
from nonn.students.student import Student

__all__ = ["Cost", "Student", "check_budget", "measure_cost"]
