"""What an ensemble reads of new texts: one matrix a prompt, by top k or by `score`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from blackbox import features, passes
from blackbox.boosting import Matrix
from blackbox.ensemble import Reading
from blackbox.prompts import Example, PromptPool
from blackbox.protocol import Backend, Usage

__all__ = ["Part", "read_matrices"]


@dataclass
class Part:
    """What the LM said of some rows; rows are counted from the first of them.

    Parameters
    ----------
    matrices : list of float32 arrays of shape (n, V_p)
        One a prompt, with the columns of its reading.
    row_errors : dict of int to str
        Rows that the LM refused, with the reasons.
    truncated : set of int
        Rows whose text was cut to fit the LM's context.
    usage : Usage
        What it took.
    """

    matrices: list[Matrix] = field(default_factory=list)
    row_errors: dict[int, str] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)


def read_matrices(
    lm: Backend,
    prompts: PromptPool,
    readings: Sequence[Reading],
    examples: Sequence[Example],
    top_k: int,
) -> Part:
    """Run the prompts over texts and keep what the ensemble reads.

    Parameters
    ----------
    lm : Backend
        The LM. It is asked for the top k of the training: such an answer, kept in a store, serves
        every model that reads the same prompt, as the scores of one model's tokens don't. An LM
        that gives fewer now, and scores, is asked for the tokens themselves.
    prompts : PromptPool
        The prompts of the ensemble.
    readings : sequence of Reading
        Their tokens and floors.
    examples : sequence of Example
        The texts.
    top_k : int
        Next tokens that were read in training; fewer where the LM gives fewer.
    """
    score = getattr(lm, "score", None)
    part = Part()
    if score is not None and lm.limits.max_top_k < top_k and lm.limits.max_score_ids > 0:
        for prompt, reading in zip(prompts, readings, strict=True):
            scored, cut = passes.scores(score, lm, prompt, examples, reading.token_ids.tolist())
            part.matrices.append(np.maximum(scored.log_probs, np.float32(reading.floor)))
            part.row_errors.update(scored.row_errors)
            part.truncated |= cut
            part.usage += scored.usage
        return part
    answers = passes.next_tokens(lm, prompts, examples, min(top_k, lm.limits.max_top_k))
    for number, reading in enumerate(readings):
        ids, values = answers.token_ids[number], answers.log_probs[number]
        part.matrices.append(features.gather(ids, values, reading.token_ids, reading.floor))
    part.row_errors, part.truncated = answers.row_errors, answers.truncated
    part.usage = answers.usage
    return part
