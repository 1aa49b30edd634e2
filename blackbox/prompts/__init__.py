"""Prompt templates, pools of them, and how a long text is truncated to fit."""
