"""Methods that are compared, by their names in a configuration.

A method is a scikit-learn classifier over one backend and one pool of prompts. Its requests go
through the store, and count as its cost whether or not the store had the answers.
"""

from eval.methods.registry import METHODS, Method, Setting, check_options, make

__all__ = ["METHODS", "Method", "Setting", "check_options", "make"]
