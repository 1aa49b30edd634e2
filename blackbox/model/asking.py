"""The asking of a model's prompts about new texts: all of them, or until the class is settled.

Matrices come from the top k, or from `score`. With early stopping, prompts are asked one after the
other until the class of a text is settled. Scores of experts are known before the first prompt.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features, passes
from blackbox.answers.features import Matrix
from blackbox.backend import BaseBackend
from blackbox.boosting.early_stopping import as_decision
from blackbox.boosting.ensemble import Ensemble, Reading
from blackbox.prompts.inputs import Example
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.question import Question
from blackbox.prompts.template import Prompt
from blackbox.protocol import Usage

__all__ = [
    "PromptAnswers",
    "ScoredTexts",
    "read_all_prompts",
    "read_matrices",
    "read_with_early_stopping",
]

_SAMPLE = 8  # texts on which the shared prefixes of prompts are measured
_CHARACTERS = 4  # per token, about


@dataclass
class PromptAnswers:
    """Answers of the LM on some rows, as matrices; row numbers start at the first of them.

    Parameters
    ----------
    matrices : list of float32 arrays of shape (n, V_p)
        One per prompt, with the columns of its reading.
    row_errors : dict of int to str
        Rows that the LM refused, with the reasons.
    truncated : set of int
        Rows whose text was truncated to fit the LM's context.
    usage : Usage
        Usage of these passes.
    """

    matrices: list[Matrix] = field(default_factory=list)
    row_errors: dict[int, str] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)


def read_matrices(
    lm: BaseBackend,
    prompts: PromptPool,
    readings: Sequence[Reading],
    examples: Sequence[Example],
    top_k: int,
) -> PromptAnswers:
    """Return the log-probabilities that an ensemble reads, from passes of prompts over texts.

    Parameters
    ----------
    lm : BaseBackend
        The LM. It is asked for the top k of the training: a cached top k serves every model that
        reads the same prompt, unlike the scores of one model's tokens. Only an LM that gives fewer
        than that, and supports `score`, is asked to score the tokens.
    prompts : PromptPool
        The prompts of the ensemble.
    readings : sequence of Reading
        Their tokens and floors.
    examples : sequence of Example
        The texts.
    top_k : int
        Number of next tokens read in training; fewer are read where the LM gives fewer.
    """
    if lm.limits.max_top_k >= top_k or lm.limits.max_score_ids == 0:
        return _read_top_k(lm, prompts, readings, examples, top_k)
    part = PromptAnswers()
    for prompt, reading in zip(prompts, readings, strict=True):
        if isinstance(prompt, Question):  # the ids of its options are not the LM's
            read = _read_top_k(lm, [prompt], [reading], examples, top_k)
        else:
            scored, cut = passes.scores(lm, prompt, examples, reading.token_ids.tolist())
            matrix = np.maximum(scored.log_probs, np.float32(reading.floor))
            read = PromptAnswers([matrix], dict(scored.row_errors), cut, scored.usage)
        part.matrices += read.matrices
        part.row_errors.update(read.row_errors)
        part.truncated |= read.truncated
        part.usage += read.usage
    return part


def _read_top_k(
    lm: BaseBackend,
    prompts: Sequence[Prompt],
    readings: Sequence[Reading],
    examples: Sequence[Example],
    top_k: int,
) -> PromptAnswers:
    """Return what `read_matrices` does, from the most likely tokens."""
    answers = passes.next_tokens(lm, prompts, examples, min(top_k, lm.limits.max_top_k))
    matrices = [
        features.gather(ids, values, reading.token_ids, reading.floor)
        for ids, values, reading in zip(answers.token_ids, answers.log_probs, readings, strict=True)
    ]
    return PromptAnswers(matrices, answers.row_errors, answers.truncated, answers.usage)


@dataclass
class ScoredTexts:
    """The decision scores of n texts, with usage and errors.

    Parameters
    ----------
    scores : float64 array of shape (n, n_classes), or (n,) for two classes
        As from `Ensemble.decision`, over the prompts asked; NaN for rows that the LM refused.
    n_asked : int array of shape (n,)
        Number of prompts asked per row.
    matrices : list of float32 arrays of shape (n, V_p)
        The matrix of each prompt, NaN for refused rows; empty with early stopping.
    row_errors, truncated, usage
        As in `PromptAnswers`.
    """

    scores: NDArray[np.float64]
    n_asked: NDArray[np.intp]
    matrices: list[Matrix] = field(default_factory=list)
    row_errors: dict[int, str] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    usage: Usage = field(default_factory=Usage)


def read_all_prompts(
    lm: BaseBackend,
    prompts: PromptPool,
    ensemble: Ensemble,
    examples: Sequence[Example],
    top_k: int,
    initial: NDArray[np.float64] | None = None,
) -> ScoredTexts:
    """Return the scores of texts from all prompts.

    Parameters
    ----------
    lm, prompts, examples, top_k
        As for `read_matrices`.
    ensemble : Ensemble
        The trained ensemble.
    initial : float64 array of shape (n, n_classes), optional
        As from `Ensemble.initial_scores`, where there are experts.
    """
    n = len(examples)
    part = read_matrices(lm, prompts, ensemble.readings, examples, top_k)
    answered = np.array([row not in part.row_errors for row in range(n)], bool)
    scores = ensemble.empty_scores(n)
    start = ensemble.initial if initial is None else initial[answered]
    scores[answered] = ensemble.decision([matrix[answered] for matrix in part.matrices], start)
    for matrix in part.matrices:
        matrix[~answered] = np.nan
    n_asked = np.full(n, len(prompts), np.intp)
    return ScoredTexts(scores, n_asked, part.matrices, part.row_errors, part.truncated, part.usage)


def read_with_early_stopping(
    lm: BaseBackend,
    prompts: PromptPool,
    ensemble: Ensemble,
    examples: Sequence[Example],
    top_k: int,
    rule: str,
    initial: NDArray[np.float64] | None = None,
) -> ScoredTexts:
    """Return the scores of texts, asking prompt after prompt until the class is settled.

    Where the LM evaluates shared prefixes once, asking single prompts may cost more than it saves;
    then several are asked together.

    Parameters
    ----------
    lm, prompts, examples, top_k
        As for `read_matrices`.
    ensemble : Ensemble
        The trained ensemble with its early-stopping rules.
    rule : {"exact", "risk"}
        As for `blackbox.boosting.early_stopping.EarlyStopping.settled`.
    initial : float64 array of shape (n, n_classes), optional
        As from `Ensemble.initial_scores`, where there are experts. They may settle a text before
        any prompt is asked.
    """
    n, order = len(examples), ensemble.early_stopping.order.tolist()
    result = ScoredTexts(ensemble.empty_scores(n), np.zeros(n, np.intp))
    start = np.tile(ensemble.initial, (n, 1)) if initial is None else initial
    scores = start.copy()
    matrices = [np.zeros((n, len(one.token_ids)), np.float32) for one in ensemble.readings]
    settled = ensemble.early_stopping.settled(scores, 0, "exact")
    result.scores[settled] = as_decision(scores[settled])
    waiting = np.flatnonzero(~settled)
    costs = _costs(lm, [prompts[prompt] for prompt in order], examples)
    n_before = 0
    for n_asked in ensemble.early_stopping.stages(rule, costs):
        if not len(waiting):
            return result
        some = order[n_before:n_asked]
        part = read_matrices(
            lm,
            PromptPool(prompts[prompt] for prompt in some),
            [ensemble.readings[prompt] for prompt in some],
            [examples[row] for row in waiting.tolist()],
            top_k,
        )
        result.usage += part.usage
        result.truncated |= {int(waiting[place]) for place in part.truncated}
        result.row_errors |= {int(waiting[place]): why for place, why in part.row_errors.items()}
        result.n_asked[waiting] = n_before = n_asked
        answered = np.ones(len(waiting), bool)
        answered[list(part.row_errors)] = False
        waiting = waiting[answered]
        for prompt, matrix in zip(some, part.matrices, strict=True):
            matrices[prompt][waiting] = matrix[answered]
            scores[waiting] += ensemble.contribution(prompt, matrix[answered])
        if n_asked < len(prompts):
            done = ensemble.early_stopping.settled(scores[waiting], n_asked, rule)
            result.scores[waiting[done]] = as_decision(scores[waiting[done]])
            waiting = waiting[~done]
    # a row that was asked all prompts gets the scores without stopping, to the last bit
    everything = [matrix[waiting] for matrix in matrices]
    result.scores[waiting] = ensemble.decision(everything, start[waiting])
    return result


def _costs(
    lm: BaseBackend, prompts: Sequence[Prompt], examples: Sequence[Example]
) -> NDArray[np.float64]:
    """Return the characters that the LM reads per group of prompts, for `EarlyStopping.stages`.

    They are measured on a few texts; a shared prefix counts once where the LM shares prefixes.
    """
    some = examples[:_SAMPLE]
    sent = [_approximate_text(lm, prompt, example) for prompt in prompts for example in some]
    starts = np.arange(len(prompts)) * len(some)
    # characters that each request adds to those before it, from the first of each prompt on
    adds = np.tile([float(len(request)) for request in sent], (len(prompts), 1))
    if lm.limits.shares_prefixes and not lm.limits.mask:
        known = np.tril(_common_prefix_lengths(sent), -1)
        adds -= np.maximum.accumulate(known[:, ::-1], axis=1)[:, ::-1][:, starts].T
    adds[np.arange(len(sent)) < starts[:, None]] = 0.0
    costs = np.zeros((len(prompts) + 1, len(prompts) + 1))
    costs[:-1, 1:] = np.cumsum(adds, axis=1)[:, starts + len(some) - 1]
    return costs


def _approximate_text(lm: BaseBackend, prompt: Prompt, example: Example) -> str:
    """Return about what is sent: a long text is truncated without counting its tokens."""
    room = _CHARACTERS * lm.limits.context_length
    text, second = example
    rest = second[:room] if isinstance(second, str) else second
    request = prompt.render_for(lm.limits, text[:room], rest, row=example)
    turns = [message.content for message in request.messages]
    asked = request.question.words if request.question else ""
    parts = [request.text or "", *turns, asked, request.answer_prefix, request.after_mask or ""]
    if request.image is not None:
        n = _CHARACTERS * lm.limits.tokens_of_image(request)
        parts.insert(0, request.image.digest.ljust(n)[:n])
    return "".join(parts)


def _common_prefix_lengths(texts: Sequence[str]) -> NDArray[np.intp]:
    """Return the length of the common prefix of every two texts: (n, n), 0 on the diagonal."""
    order = sorted(range(len(texts)), key=texts.__getitem__)
    neighbours = itertools.pairwise(order)
    steps = np.array(
        [_common_prefix(texts[one], texts[other]) for one, other in neighbours], np.intp
    )
    shared = np.zeros((len(texts), len(texts)), np.intp)
    for place in range(len(steps)):
        shared[place, place + 1 :] = np.minimum.accumulate(steps[place:])
    ranks = np.argsort(order)
    return (shared + shared.T)[np.ix_(ranks, ranks)]


def _common_prefix(one: str, other: str) -> int:
    """Return the length of the common prefix, by bisection: a loop over characters is slow."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
