"""Measures of what was distilled: pure functions of predictions."""

from attar.metrics.accuracy import accuracy, expected_calibration_error, negative_log_likelihood
from attar.metrics.ranking import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    kendall_tau,
    label_robust_score,
    rank_correlation,
)
from attar.metrics.retrieval import recall_at

__all__ = [
    "accuracy",
    "augmentation_robust_score",
    "expected_calibration_error",
    "hard_label_recovery",
    "improvement_over_random",
    "kendall_tau",
    "label_robust_score",
    "negative_log_likelihood",
    "rank_correlation",
    "recall_at",
]
