"""From matrices and labels to a calibrated ensemble of weak learners."""
