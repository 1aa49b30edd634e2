"""The language model behind its store and its budget, and what it costs."""
