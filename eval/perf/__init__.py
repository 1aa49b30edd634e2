"""Measurements of speed and memory: each a script that prints ratios of one run."""
