"""Display of a trained model: escaped text, tokens per prompt, HTML for notebooks."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np

from blackbox.model.model import Model
from blackbox.model.summary import training_facts, training_warnings
from blackbox.plurals import counted

__all__ = ["model_html", "printable", "prompt_tokens", "word_of"]

_TOKENS = 6  # per class in a notebook
_CLASSES = 12


def printable(text: str) -> str:
    """Return text that is safe to show: with unprintable characters escaped."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def word_of(token_bytes: Mapping[int, bytes], token: int) -> str:
    """Return a token as text, with the replacement character for invalid UTF-8."""
    return token_bytes[token].decode("utf-8", "replace")


def prompt_tokens(model: Model, prompt: int) -> dict[str, list[tuple[str, float]]]:
    """Return the merged verbalizers of one prompt: for each class (token, weight) pairs.

    The largest absolute weight comes first; a negative weight counts against the class. Under
    ``"logit"`` it is the change of the class score per standard deviation of the token's
    log-probability.
    """
    ids = model.ensemble.readings[prompt].token_ids.tolist()
    verbalizers = {}
    weights_by_class = model.ensemble.token_weights(prompt).T
    for label, weights in zip(model.classes.tolist(), weights_by_class, strict=True):
        order = np.argsort(-np.abs(weights), kind="stable").tolist()
        verbalizers[str(label)] = [
            (word_of(model.token_bytes, ids[place]), float(weights[place]))
            for place in order
            if weights[place]
        ]
    return verbalizers


def model_html(model: Model) -> str:
    """Return an HTML table of prompts and the tokens of each class, for a notebook."""
    rows = []
    for number, prompt in enumerate(model.prompts):
        verbalizers = prompt_tokens(model, number)
        cells = []
        for label, tokens in list(verbalizers.items())[:_CLASSES]:
            words = ", ".join(
                f"<code>{escape(printable(token))}</code>"
                for token, weight in tokens[:_TOKENS]
                if weight > 0
            )
            cells.append(f"<b>{escape(printable(label))}</b>: {words}")
        if len(verbalizers) > _CLASSES:
            cells.append(f"and {len(verbalizers) - _CLASSES} more classes")
        rows.append(
            f"<tr><td><code>{escape(printable(prompt.template))}</code></td>"
            f"<td>{'<br>'.join(cells)}</td></tr>"
        )
    n_learners, n_prompts = len(model.ensemble.learners), len(model.prompts)
    facts = [
        f"{name}: {words}" for name, words in training_facts(model.classes.tolist(), model.summary)
    ]
    facts += [f"warning: {line}" for line in training_warnings(model.summary)]
    said = "".join(f"<li>{escape(printable(fact))}</li>" for fact in facts)
    return (
        f"<ul>{said}</ul><details><summary>{counted(n_learners, 'weak learner')} over "
        f"{counted(n_prompts, 'prompt')}, "
        f"{counted(len(model.classes), 'class')}</summary><table><thead><tr><th>prompt</th>"
        f"<th>tokens of each class</th></tr></thead><tbody>{''.join(rows)}</tbody>"
        "</table></details>"
    )
