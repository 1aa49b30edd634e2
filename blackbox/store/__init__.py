"""The forward-pass store: a persistent cache of the language model's answers."""
