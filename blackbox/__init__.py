"""Accurate text classifiers from a few labels and a language model that can only be called."""

from blackbox.estimator import PromptBoostingClassifier, load_model
from blackbox.prompts import Prompt, PromptPool

__all__ = ["Prompt", "PromptBoostingClassifier", "PromptPool", "load_model"]
