"""The report of a bundle: accuracy against failed devices as JSON, table and page. NumPy only, except for drawing."""

from nonn.report.build import build_report
from nonn.report.html import write_report

__all__ = ["build_report", "write_report"]
