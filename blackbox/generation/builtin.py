"""The built-in prompts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import resources

from blackbox.generation.questions import class_questions
from blackbox.generation.task import join_names
from blackbox.languages import LANGUAGES
from blackbox.prompts.pieces import literal
from blackbox.prompts.pool import PromptPool, unescape
from blackbox.prompts.question import parse_prompt
from blackbox.prompts.template import Prompt
from blackbox.protocol import Limits

__all__ = ["builtin_pool", "read_templates"]

_FILLED = re.compile(r"\{(classes|task)\}")
_UNBEGUN = "! "  # before templates for LMs that can't continue a begun answer


def builtin_pool(
    *,
    kind: str = "text",
    limits: Limits,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
    languages: Sequence[str] = ("en",),
) -> PromptPool:
    """Return the built-in prompts that suit a task and a backend, in some languages.

    For a backend that takes questions as they are, these are questions: about the classes, and
    built-in ones, in English. Those for images are in English too.
    """
    if limits.questions:
        asked = class_questions(class_names or (), task, kind=kind, limits=limits)
        general = read_templates("questions", kind=kind, limits=limits)
        return PromptPool([*asked, *general])
    return PromptPool(
        prompt
        for language in (languages if kind != "image" else ("en",))
        for prompt in read_templates(
            language, kind=kind, limits=limits, class_names=class_names, task=task
        )
    )


def read_templates(
    name: str,
    *,
    kind: str = "text",
    limits: Limits,
    class_names: Sequence[str] | None = None,
    task: str | None = None,
) -> list[Prompt]:
    """Return the prompts of a file of the package that suit a task and a backend.

    The file is one of `LANGUAGES`, ``"more"`` or ``"questions"``; the latter are in English.
    """
    language = name if name in LANGUAGES else "en"
    words = {"classes": join_names(class_names or [""], language), "task": literal(task or "")}
    filled = []
    folder = resources.files("blackbox.generation").joinpath("templates")
    text = folder.joinpath(f"{name}.txt").read_text("utf-8")
    for line in text.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        if ("{classes}" in line and not class_names) or ("{task}" in line and not task):
            continue
        if line.startswith(_UNBEGUN) and limits.answer_prefix:
            continue
        # in one pass: the name of a class may be that of a slot
        template = _FILLED.sub(lambda slot: words[slot[1]], unescape(line.removeprefix(_UNBEGUN)))
        prompt = parse_prompt(template)
        if prompt.input_kind == kind and prompt.is_served(limits):
            filled.append(prompt)
    return filled
