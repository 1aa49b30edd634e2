"""Sources for a task without labels: what their classes mean is read from the names of its classes.

A source reads the name of a class as it reads a text: one that takes *joy* for a positive review
means *joy* by *positive*, more or less. Which sources to believe is seen on texts without labels,
from what class names alone predict there (`blackbox.boosting.label_words`). Labels that come later
only add to the counts (`blackbox.experts.source_readout`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.boosting.weak_learner import softmax
from blackbox.experts.source_readout import SourceReadout, leave_one_out, transfer_score
from blackbox.library.sources import Ranked, Sources, best_of, expert_input
from blackbox.prompts.pool import PromptPool

__all__ = ["read_without_labels"]


def read_without_labels(
    sources: Sources,
    pool: PromptPool,
    answers: Answers,
    names: Answers | None,
    votes: NDArray[np.float64],
) -> tuple[SourceReadout | None, list[Ranked]]:
    """Return a readout of the sources that agree with class names, and those sources.

    The probability of a class is that by its name times that by the sources: the score of a text is
    its votes plus its score by the readout.

    Parameters
    ----------
    sources : Sources
        The models of a library.
    pool : PromptPool
        The prompts of the task.
    answers : Answers
        Of n texts without labels, all answered.
    names : Answers, optional
        Of the names of the classes, under the prompts that `Sources.shared` returns; without them
        no source is read.
    votes : float64 array of shape (n, n_classes)
        What class names alone predict for the texts, with variance 1: `NamePrior.votes`.

    Returns
    -------
    SourceReadout or None
        None if no source agrees with the names.
    list of Ranked
        The best five, in the order of their scores: the mean gain in log-likelihood, over the
        shares of the classes, of the classes that are likely by their names.
    """
    likely, each, none = softmax(votes), np.ones(len(votes)), np.zeros(len(votes))
    ranked = []
    for one in sources.read(pool, answers, each, names):
        seen = leave_one_out(one.probabilities, likely, none, one.names)
        ranked.append(replace(one, score=transfer_score(seen, likely, each)))
    best = best_of(sorted(ranked, key=lambda one: -one.score))
    given = expert_input(best)
    if given is None or given.names is None:
        return None, []
    return SourceReadout.of_names(given.evidence, given.names, likely), best
