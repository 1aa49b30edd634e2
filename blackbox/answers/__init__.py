"""Forward passes over texts, and their answers as matrices of log-probabilities."""
