"""Training from end to end: labelled rows, a language model and options become a `Model`."""
