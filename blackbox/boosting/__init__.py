"""Boosting: from answers and labels to a calibrated ensemble of weak learners."""

ALGORITHM_NAMES = ("logit", "samme")
"""The keys of `blackbox.boosting.algorithms.ALGORITHMS`, for those who need only the names."""
