"""Data sets of the evaluation."""
