"""What a prompt is worth: how much it adds to others, on rows that it was not fitted on.

A pool is judged by the simplest `logit` model of several prompts: one small model a prompt, their
scores added. So each candidate is fitted once, out of fold, and then any pool of candidates is
judged by adding up: the greedy choice of a pool (Caruana et al., "Ensemble selection from libraries
of models", ICML 2004) can look at hundreds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.boosting import calibration, logit
from blackbox.boosting.splits import stratified_folds
from blackbox.boosting.weak_learner import one_blas_thread
from blackbox.protocol import NO_TOKEN, RenderedPrompt

__all__ = [
    "EnsembleSelection",
    "answered",
    "best_prompts",
    "distances",
    "prefix_costs",
    "small_models",
]

_MODEL = logit.Settings(n_estimators=12, learning_rate=0.3, tokens_per_class=16)
_FOLDS, _REPEATS = 4, 2
_SHARE = 0.1  # of rows that must name a token before it is read
_TEMPERATURES = np.geomspace(0.3, 30, 15)
_LEAST_SIZE = 1e-3
_REFUSED = 0.25  # of rows may be lost to what the LM refuses under some prompts only
_LEAST_GROUP = 4  # candidates that have a mean worth the name


def small_models(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    seed: int,
) -> NDArray[np.float64]:
    """What each prompt's own small model says of rows that it was not fitted on.

    Parameters
    ----------
    answers : Answers
        Of n rows under P prompts, all answered.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    n_classes : int
        Number of classes.
    seed : int
        Of the folds.

    Returns
    -------
    float64 array of shape (P, n, n_classes)
        Scores that sum to 0 over the classes and are of size 1 on the average; all 0 where the rows
        are too few for folds.
    """
    rng = np.random.default_rng(seed)
    repeats = [stratified_folds(y, _FOLDS, rng) for _ in range(_REPEATS)]
    scores = np.zeros((len(answers.token_ids), len(y), n_classes))
    matrices, _, _ = features.frequent_matrices(
        answers.token_ids, answers.log_probs, sample_weight, _SHARE
    )
    with one_blas_thread():
        for number, matrix in enumerate(matrices):
            for folds in filter(None, repeats):
                scores[number] += calibration.held_out_scores(
                    [matrix], y, sample_weight, n_classes, folds, _MODEL
                )
    scores -= scores.mean(axis=2, keepdims=True)
    # one voice each, as in boosting, where prompts take turns: a weak one is a burden to a pool
    size = np.sqrt((scores**2).mean(axis=(1, 2), keepdims=True))
    return np.asarray(scores / np.maximum(size, _LEAST_SIZE))


class EnsembleSelection:
    """What pools of candidates are worth.

    Parameters
    ----------
    scores : float64 array of shape (P, n, n_classes)
        Of P candidates and n rows, from `small_models`.
    y : int array of shape (n,)
        Classes from 0.
    sample_weight : float array of shape (n,)
        Weights above 0.
    """

    def __init__(
        self,
        scores: NDArray[np.float64],
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
    ) -> None:
        self.scores = scores
        self._y = y
        self._share = sample_weight / sample_weight.sum()

    def losses(self, base: NDArray[np.float64], candidates: Sequence[int]) -> NDArray[np.float64]:
        """The log-loss of a pool with each candidate added to it, at its best temperature.

        Parameters
        ----------
        base : float64 array of shape (n, n_classes)
            The scores of the pool, added up.
        candidates : sequence of int
            Numbers of candidates.
        """
        together = base + self.scores[list(candidates)]
        best = np.full(len(together), np.inf)
        for temperature in _TEMPERATURES:
            scaled = together / temperature
            highest = scaled.max(axis=2)
            total = highest + np.log(np.exp(scaled - highest[:, :, None]).sum(axis=2))
            right = scaled[:, np.arange(len(self._y)), self._y]
            best = np.minimum(best, (total - right) @ self._share)
        return best

    def alone(self) -> NDArray[np.float64]:
        """The log-loss of each candidate alone."""
        return self.losses(np.zeros(self.scores.shape[1:]), range(len(self.scores)))

    def selection_bias(self, groups: Sequence[str]) -> NDArray[np.float64]:
        """How much better than it is each candidate is likely to look alone, in nats.

        The best of many look better than they are. Each is thought to lie between what was measured
        and the mean of its group, the nearer to the mean the less two halves of the rows agree on
        which candidates are good: shrinkage as by Efron and Morris, "Data analysis using Stein's
        estimator and its generalizations" (1975).

        Parameters
        ----------
        groups : sequence of P str
            Where each candidate comes from.

        Returns
        -------
        float64 array of shape (P,)
        """
        alone = self.alone()
        rank = np.empty(len(self._y), int)
        for label in np.unique(self._y):
            of_class = np.flatnonzero(self._y == label)
            rank[of_class] = np.arange(len(of_class))
        halves = []
        for half in (0, 1):
            rows = rank % 2 == half
            part = EnsembleSelection(self.scores[:, rows], self._y[rows], self._share[rows])
            halves.append(part.alone())
        if len(alone) < _LEAST_GROUP or not all(np.ptp(half) > 0 for half in halves):
            return np.zeros(len(alone))
        together = float(np.asarray(np.corrcoef(halves))[0, 1])
        # of all rows, by what half of them say: Spearman and Brown
        reliability = np.clip(2 * together / (1 + max(together, 0.0)), 0.0, 1.0)
        means = np.full(len(alone), alone.mean())
        for group in set(groups):
            members = [number for number, name in enumerate(groups) if name == group]
            if len(members) >= _LEAST_GROUP:
                means[members] = alone[members].mean()
        return np.asarray((1 - reliability) * (means - alone))

    def pick(
        self,
        n: int,
        costs: NDArray[np.float64] | None = None,
        selection_bias: NDArray[np.float64] | None = None,
    ) -> tuple[list[int], list[float]]:
        """Candidates by what they add to those picked before them, until none is left or n are.

        Parameters
        ----------
        n : int
            How many to pick at most.
        costs : float array of shape (P,), optional
            What is added to the loss for each candidate: a price in nats.
        luck : float array of shape (P,), optional
            What `selection_bias` says. As one of m + 1 a candidate brings that share of its luck to
            a pool.

        Returns
        -------
        picked : list of int
            Numbers of candidates, in the order in which they were picked.
        gains : list of float
            By how much the log-loss fell with each of them.
        """
        left = list(range(len(self.scores)))
        base = np.zeros(self.scores.shape[1:])
        loss = float(np.log(self.scores.shape[2]))  # of knowing nothing
        picked: list[int] = []
        gains: list[float] = []
        while left and len(picked) < n:
            losses = self.losses(base, left)
            priced = losses if costs is None else losses + costs[left]
            if selection_bias is not None:
                priced = priced + selection_bias[left] / (len(picked) + 1)
            place = int(np.argmin(priced))
            number = left.pop(place)
            gains.append(float(loss - losses[place]))
            loss = float(losses[place])
            base += self.scores[number]
            picked.append(number)
        return picked, gains

    def typical(self, picked: Sequence[int]) -> list[list[int]]:
        """For each class its rows, those that a pool is surest of first."""
        scores = self.scores[list(picked)].sum(axis=0)
        margins = scores[np.arange(len(self._y)), self._y] - np.where(
            np.eye(scores.shape[1], dtype=bool)[self._y], -np.inf, scores
        ).max(axis=1)
        return [
            sorted(np.flatnonzero(self._y == label).tolist(), key=lambda row: (-margins[row], row))
            for label in range(scores.shape[1])
        ]


def best_prompts(
    answers: Answers,
    y: NDArray[np.intp],
    sample_weight: NDArray[np.float64],
    n_classes: int,
    n: int,
    rng: np.random.Generator,
) -> list[int]:
    """The n prompts that add most to each other, in the order of their numbers.

    Parameters
    ----------
    answers, y, sample_weight, n_classes
        As for `small_models`.
    n : int
        How many.
    rng : numpy Generator
        For the folds.
    """
    seed = int(rng.integers(2**31))
    worth = EnsembleSelection(
        small_models(answers, y, sample_weight, n_classes, seed), y, sample_weight
    )
    selection_bias = worth.selection_bias([""] * len(answers.token_ids))
    return sorted(worth.pick(n, selection_bias=selection_bias)[0])


def answered(answers: Answers) -> list[int]:
    """The prompts that the LM answers: those under which enough rows are left to compare them on.

    Rows that are refused under one of them are lost to all, so those that lose most are left out.
    A row that is refused under each of them is no prompt's fault.
    """
    refused = answers.token_ids[:, :, 0] == NO_TOKEN
    order = np.argsort(refused.sum(axis=1), kind="stable").tolist()
    lost = refused[order[0]]
    most = lost.sum() + _REFUSED * len(lost)
    staying = []
    for number in order:
        together = lost | refused[number]
        if together.sum() <= most:
            lost = together
            staying.append(number)
    return sorted(staying)


def distances(answers: Answers) -> NDArray[np.float64]:
    """Mean total variation distance between the answers of each two of P prompts.

    Returns a float64 array of shape (P, P) with values in [0, 1]; what is not among the top k
    counts as nothing. Two prompts are compared on the rows that were answered under both, and are
    wholly apart where there is none.
    """
    from scipy.spatial.distance import pdist, squareform

    n_prompts, n, _ = answers.token_ids.shape
    total = np.zeros(n_prompts * (n_prompts - 1) // 2)
    compared = np.zeros(len(total))
    first, second = np.triu_indices(n_prompts, 1)
    there = answers.token_ids[:, :, 0] != NO_TOKEN
    for row in range(n):
        tokens, places = np.unique(answers.token_ids[:, row], return_inverse=True)
        dense = np.zeros((n_prompts, len(tokens)))
        prompts = np.repeat(np.arange(n_prompts), answers.token_ids.shape[2])
        dense[prompts, places.ravel()] = np.exp(answers.log_probs[:, row].ravel())
        both = there[first, row] & there[second, row]
        total += pdist(dense, "cityblock") / 2 * both
        compared += both
    return np.asarray(squareform(np.where(compared, total / np.maximum(compared, 1), 1.0)))


def prefix_costs(
    requests: Sequence[Sequence[RenderedPrompt]], texts: Sequence[str], *, shared: bool
) -> NDArray[np.float64]:
    """What each prompt costs, in requests of average length: 1 is a text read anew with its cue.

    Parameters
    ----------
    requests : sequence of P sequences of RenderedPrompt
        For each prompt the same few texts filled in.
    texts : sequence of str
        Those texts.
    shared : bool
        Whether what requests begin with in common is read once, as by an engine with a prefix
        cache; else each costs what it is long, as with an API that bills all tokens. Where it is
        shared, a text that a prompt begins with costs nothing, as other prompts need it too.
    """
    lengths, costs = [], []
    for of_prompt in requests:
        whole = [_flat(request) for request in of_prompt]
        known = _common(whole)
        lengths += [len(request) for request in whole]
        known_of_each = [
            max(known, _common([request, text]))  # of a text that was cut, what is left of it
            for request, text in zip(whole, texts, strict=True)
        ]
        left = [len(r) - n * shared for r, n in zip(whole, known_of_each, strict=True)]
        costs.append(float(np.mean(left)))
    return np.asarray(costs) / max(float(np.mean(lengths)), 1.0)


def _flat(request: RenderedPrompt) -> str:
    turns = "".join(f"<{turn.role}>{turn.content}" for turn in request.messages)
    return turns + (request.text or "") + request.answer_prefix + (request.after_mask or "")


def _common(requests: list[str]) -> int:
    """Characters that all requests begin with."""
    first, last = min(requests), max(requests)
    pairs = enumerate(zip(first, last, strict=False))
    return next((n for n, (one, other) in pairs if one != other), min(len(first), len(last)))
