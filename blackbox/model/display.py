"""What a trained ensemble reads, in words that are safe to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from blackbox.boosting.ensemble import Ensemble
from blackbox.prompts.pool import PromptPool

__all__ = ["learned_html", "printable", "prompt_tokens", "word_of"]

_TOKENS = 6  # of each class in a notebook
_CLASSES = 12


def printable(text: str) -> str:
    """Text that is safe to show: control and other unprintable characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def word_of(token_bytes: Mapping[int, bytes], token: int) -> str:
    """A token as text; what is no character by itself shows as such."""
    return token_bytes[token].decode("utf-8", "replace")


def prompt_tokens(
    ensemble: Ensemble, prompt: int, classes: Sequence[Any], token_bytes: Mapping[int, bytes]
) -> dict[str, list[tuple[str, float]]]:
    """The verbalizers of one prompt in one: for each class (token, weight), the largest first.

    A weight below 0 speaks against the class. Under ``"logit"`` it is what one standard deviation
    of the token's log-probability adds to the score of the class.
    """
    ids = ensemble.readings[prompt].token_ids.tolist()
    found = {}
    for label, weights in zip(classes, ensemble.token_weights(prompt).T, strict=True):
        order = np.argsort(-np.abs(weights), kind="stable").tolist()
        found[str(label)] = [
            (word_of(token_bytes, ids[place]), float(weights[place]))
            for place in order
            if weights[place]
        ]
    return found


def learned_html(
    prompts: PromptPool,
    ensemble: Ensemble,
    classes: Sequence[Any],
    token_bytes: Mapping[int, bytes],
) -> str:
    """Prompts and the tokens that speak for each class, for a notebook."""
    rows = []
    for number, prompt in enumerate(prompts):
        spoken = prompt_tokens(ensemble, number, classes, token_bytes)
        cells = []
        for label, tokens in list(spoken.items())[:_CLASSES]:
            words = ", ".join(
                f"<code>{escape(printable(token))}</code>"
                for token, weight in tokens[:_TOKENS]
                if weight > 0
            )
            cells.append(f"<b>{escape(printable(label))}</b>: {words}")
        if len(spoken) > _CLASSES:
            cells.append(f"and {len(spoken) - _CLASSES} more classes")
        rows.append(
            f"<tr><td><code>{escape(printable(prompt.template))}</code></td>"
            f"<td>{'<br>'.join(cells)}</td></tr>"
        )
    return (
        f"<details><summary>{len(ensemble.learners)} weak learners over {len(prompts)} prompts, "
        f"{len(classes)} classes</summary><table><thead><tr><th>prompt</th>"
        f"<th>tokens that speak for a class</th></tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></details>"
    )
