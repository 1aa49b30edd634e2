"""Proposes prompts for a task and chooses among them on training rows."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

from blackbox.prompts import Prompt, PromptPool, unescape
from blackbox.protocol import Limits

__all__ = ["builtin_pool"]

_UNBEGUN = "! "  # before templates for LMs that can't continue a begun answer


def builtin_pool(
    *,
    pair: bool,
    limits: Limits,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
) -> PromptPool:
    """The built-in prompts that suit a task and a backend."""
    filled = []
    text = resources.files("blackbox").joinpath("builtin_prompts.txt").read_text("utf-8")
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if ("{classes}" in line and not class_names) or ("{task}" in line and not task):
            continue
        if line.startswith(_UNBEGUN) and limits.answer_prefix:
            continue
        template = unescape(line.removeprefix(_UNBEGUN))
        if class_names:
            template = template.replace("{classes}", _listed(class_names))
        template = template.replace("{task}", _literal(task or ""))
        prompt = Prompt(template)
        if prompt.takes_pair == pair and _is_served(prompt, limits):
            filled.append(prompt)
    return PromptPool(filled)


def _is_served(prompt: Prompt, limits: Limits) -> bool:
    if limits.mask and prompt.is_chat:
        return False
    pair = "b" if prompt.takes_pair else None
    return limits.serves(prompt.render("a", pair, masked=limits.mask))


def _listed(names: Sequence[str]) -> str:
    shown = [_literal(name.replace("_", " ").strip()) for name in names]
    return shown[0] if len(shown) == 1 else ", ".join(shown[:-1]) + " or " + shown[-1]


def _literal(text: str) -> str:
    return " ".join(text.split()).replace("{", "{{").replace("}", "}}")
