"""Prediction of large tables on a Ray cluster, by Ray Data. The extra `ray` installs it."""
