"""A library: a folder of trained models, from which the training of other tasks starts."""
