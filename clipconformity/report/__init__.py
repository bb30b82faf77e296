"""Self-contained HTML reports: the verdict in words, plots, a gallery of samples, tables."""

from clipconformity.report.geometry import write_geometry_report
from clipconformity.report.scores import Run, write_report

__all__ = ["Run", "write_geometry_report", "write_report"]
