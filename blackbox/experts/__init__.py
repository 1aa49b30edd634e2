"""Experts: whatever else than the prompts scores the classes of a text."""
