"""Reports: what a compilation did and why, and how exact its result is."""

from compiler.equality.accuracy import Accuracy, MeasurementError, OutputAccuracy, measure_accuracy
from compiler.explain.explanation import Explanation, Near, Step, Story
from compiler.report import Report, make_report, print_report

__all__ = [
    "Accuracy",
    "Explanation",
    "MeasurementError",
    "Near",
    "OutputAccuracy",
    "Report",
    "Step",
    "Story",
    "make_report",
    "measure_accuracy",
    "print_report",
]
