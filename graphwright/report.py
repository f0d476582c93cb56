"""Reports: what a compilation did, and how exact its result is."""

from compiler.equality.accuracy import Accuracy, MeasurementError, OutputAccuracy, measure_accuracy
from compiler.report import Report, make_report, print_report

__all__ = [
    "Accuracy",
    "MeasurementError",
    "OutputAccuracy",
    "Report",
    "make_report",
    "measure_accuracy",
    "print_report",
]
