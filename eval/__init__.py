"""Batch evaluation; runs from the checkout as `python -m eval…` and is not installed."""
