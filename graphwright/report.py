"""Reports: what a compilation did, and how exact its result is."""

from compiler.equality.accuracy import Accuracy, MeasurementError, OutputAccuracy, measure_accuracy
from compiler.page.history import History, Rewrite, Step
from compiler.report import Report, make_report, print_report

__all__ = [
    "Accuracy",
    "History",
    "MeasurementError",
    "OutputAccuracy",
    "Report",
    "Rewrite",
    "Step",
    "make_report",
    "measure_accuracy",
    "print_report",
]
