"""From texts to the language model's answers, as matrices of log-probabilities."""
