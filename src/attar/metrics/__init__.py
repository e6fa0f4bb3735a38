"""Measures of what was distilled: pure functions of predictions."""

from attar.metrics.accuracy import accuracy, expected_calibration_error

__all__ = ["accuracy", "expected_calibration_error"]
