"""What is compared: every method by its name in a configuration.

A method is a scikit-learn classifier over one backend and one pool of prompts. What it asks the LM
for goes through the store, and is charged to it whether or not the store had it.
"""

from eval.methods.registry import METHODS, Method, Setting, check_options, make

__all__ = ["METHODS", "Method", "Setting", "check_options", "make"]
