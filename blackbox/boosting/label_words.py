"""Label words: the class-name prior, whose verbalizers are tokens that spell the class names.

Class names are known before any label, and a language model has seen the words. Cross-validation
fits the weight of this prior (`blackbox.boosting.calibration`): names that mean nothing get a
weight near 0.
"""

from __future__ import annotations

import functools
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.logit import Scaling, coefficients_of
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.prompts.inputs import Example

__all__ = [
    "NamePrior",
    "agreement",
    "check_labels",
    "folded",
    "given_words",
    "name_learner",
    "name_prior",
    "name_votes",
    "spelled",
    "texts_of_names",
    "words_of",
]

_MIN_PREFIX = 3  # letters of a word that a token must share to stand for it
_MAX_TOKENS = 64  # per class
_MAX_KNOWN = 2**16  # tokens whose folded form is remembered: each prompt reads the same ones
_MAX_SHOWN = 10  # labels that a message names
_NO_SPREAD = 1e-6  # of the votes: they are the same for all rows


def folded(text: str) -> str:
    """Return a word or a token without case and surrounding spaces."""
    return unicodedata.normalize("NFC", text).strip().casefold()


@functools.lru_cache(_MAX_KNOWN)
def _folded_token(spelling: bytes) -> str:
    return folded(spelling.decode("utf-8", "replace"))


def words_of(name: str) -> list[str]:
    """Return the distinct words of a name, folded: card and arrival of ``"cardArrival_2"``.

    A single Latin letter is no word.
    """
    parts, previous = [], ""
    for char in unicodedata.normalize("NFC", name):
        if unicodedata.category(char)[0] not in "LM":  # letters, and marks on them
            parts.append(" ")
        elif previous.islower() and char.isupper():
            parts.append(" " + char)
        else:
            parts.append(char)
        previous = char
    words = map(folded, "".join(parts).split())
    return list(dict.fromkeys(word for word in words if len(word) > 1 or not word.isascii()))


def check_labels(parameter: str, given: Mapping[Any, Any], labels: Sequence[Any]) -> None:
    """Raise if a parameter mentions unknown labels.

    Raises
    ------
    ValueError
        With the known labels, or the first of them.
    """
    unknown = sorted(map(str, set(given) - set(labels)))
    if unknown:
        known = ", ".join(repr(label) for label in labels[:_MAX_SHOWN])
        more = ", …" if len(labels) > _MAX_SHOWN else ""
        raise ValueError(
            f"{parameter} has {unknown}, which are no labels; the labels are {known}{more}"
        )


def given_words(
    given: Mapping[Any, str | Sequence[str]], classes: Sequence[Any], names: Sequence[str]
) -> list[list[str]]:
    """Return per class the words given for it, or else the words of its name.

    Parameters
    ----------
    given : mapping of label to str or sequence of str
        Words of some of the classes.
    classes : sequence
        The labels.
    names : sequence of str
        Their names, in the same order.

    Raises
    ------
    ValueError
        If `given` mentions an unknown label, or a value is not a word or a list of words.
    """
    check_labels("label_words", given, classes)
    words_per_class = []
    for label, name in zip(classes, names, strict=True):
        if label not in given:
            words_per_class.append(words_of(name))
            continue
        words = given[label]
        several = [words] if isinstance(words, str) else words
        if not isinstance(several, list | tuple) or not all(isinstance(w, str) for w in several):
            raise ValueError(
                f"label_words of {label!r} must be a word or a list of words, got {words!r}"
            )
        words_per_class.append([folded(word) for some in several for word in some.split()])
    return words_per_class


def texts_of_names(names: Sequence[str], *, pair: bool) -> list[Example]:
    """Return class names as texts; none where one has no letter, or inputs are more than texts."""
    words = [name.replace("_", " ").strip() for name in names]
    readable = not pair and all(any(map(str.isalpha, name)) for name in words)
    return [(name, None) for name in words] if readable else []


def spelled(token_bytes: Mapping[int, bytes], words: Sequence[str]) -> dict[str, list[int]]:
    """Return the tokens that spell each word, for the words that some token spells.

    Case and spaces around a token don't matter. A word that no token spells is represented by the
    tokens of its longest prefix that occurs, of at least three letters and shared with no other
    word.

    Parameters
    ----------
    token_bytes : mapping of int to bytes
        The tokens that occur.
    words : sequence of str
        Distinct folded words.

    Returns
    -------
    dict of str to list of int
    """
    starts_of = {
        word: [word[:n] for n in range(len(word), min(_MIN_PREFIX, len(word)) - 1, -1)]
        for word in words
    }
    wanted = {start for starts in starts_of.values() for start in starts}
    tokens: dict[str, list[int]] = {}
    for token, form in zip(token_bytes, map(_folded_token, token_bytes.values()), strict=True):
        if form in wanted:
            tokens.setdefault(form, []).append(token)
    prefixes = Counter(word[:n] for word in words for n in range(_MIN_PREFIX, len(word) + 1))
    spelling_tokens = {}
    for word, starts in starts_of.items():
        # a whole word stands for itself, whatever other words begin with it
        fitting = (s for s in starts if s in tokens and (s == word or prefixes[s] == 1))
        start = next(fitting, None)
        if start is not None:
            spelling_tokens[word] = tokens[start]
    return spelling_tokens


def name_learner(
    prompt: int,
    token_ids: NDArray[np.int32],
    token_bytes: Mapping[int, bytes],
    words: Sequence[Sequence[str]],
) -> WeakLearner | None:
    """Return the weak learner whose verbalizer is the words of the class names, or None.

    The words of a name have equal weights, and so do the tokens of a word. A token that has all
    words of a name, as an option of a question may, speaks for that class alone. None means that no
    token spells any of the words.

    Parameters
    ----------
    prompt : int
        The prompt's number.
    token_ids : int32 array of shape (V,)
        The tokens that are read of its answers, in ascending order.
    token_bytes : mapping of int to bytes
        Of at least those tokens.
    words : sequence of sequence of str
        Per class the words of its name.
    """
    everything = list(dict.fromkeys(word for of_class in words for word in of_class))
    if not everything:
        return None
    places = {token: place for place, token in enumerate(token_ids.tolist())}
    tokens = spelled({token: token_bytes[token] for token in places}, everything)
    shortest = min((sum(map(len, some)) for some in words if len(some) > 1), default=0)
    whole = {
        tuple(words_of(token_bytes[token].decode("utf-8", "replace"))): place
        for token, place in places.items()
        if shortest and len(token_bytes[token]) >= shortest  # no other can have all the words
    }
    verbalizer = [
        [(whole[tuple(of_class)], 1.0)]
        if len(of_class) > 1 and tuple(of_class) in whole
        else [
            (places[token], 1 / len(tokens[word]))
            for word in of_class
            if word in tokens
            for token in tokens[word]
        ][:_MAX_TOKENS]
        for of_class in words
    ]
    m = max(map(len, verbalizer), default=0)
    if not m:
        return None
    columns, weights = np.zeros((len(words), m), np.intp), np.zeros((len(words), m), np.float32)
    for c, weighted in enumerate(verbalizer):
        for rank, (column, weight) in enumerate(weighted):
            columns[c, rank], weights[c, rank] = column, weight
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))
    return WeakLearner(prompt, columns, weights, 1.0)


@dataclass(frozen=True)
class NamePrior:
    """The class-name prior under P prompts.

    Parameters
    ----------
    learners : list of WeakLearner
        At most one per prompt.
    votes : float64 array of shape (n, n_classes), or None
        Their summed votes on the training rows, with variance 1; None if all rows get the same.
    low, high : float64 arrays of shape (P, n_classes)
        Per prompt the least and the largest vote on any training row.
    unspelled : list of int
        Classes with words that no token spells under any prompt.
    """

    learners: list[WeakLearner]
    votes: NDArray[np.float64] | None
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    unspelled: list[int] = field(default_factory=list)

    def scaled(self, weight: float) -> NamePrior:
        """Return this prior times a weight; without learners if that is 0."""
        learners = [replace(one, weight=one.weight * weight) for one in self.learners if weight]
        return replace(self, learners=learners, low=self.low * weight, high=self.high * weight)


def name_votes(
    prompts: Sequence[int],
    tokens: Sequence[NDArray[np.int32]],
    token_bytes: Mapping[int, bytes],
    matrices: Sequence[Matrix],
    scalings: Sequence[Scaling],
    words: Sequence[Sequence[str]],
    n_classes: int,
) -> tuple[list[WeakLearner], NDArray[np.float64], list[int]]:
    """Return the learners of the class names under some prompts, and what each says of n rows.

    Parameters
    ----------
    prompts, tokens, token_bytes, matrices, scalings, words, n_classes
        As for `name_prior`.

    Returns
    -------
    learners : list of WeakLearner
        At most one per prompt.
    votes : float64 array of shape (len(learners), n, n_classes)
        With mean 0 over the rows that the scalings are of.
    unspelled : list of int
        Classes with words that no token spells under any prompt.
    """
    learners, votes = [], []
    is_spelled = np.zeros(n_classes, bool)
    for prompt in prompts:
        learner = name_learner(prompt, tokens[prompt], token_bytes, words)
        if learner is None:
            continue
        learners.append(learner)
        is_spelled |= learner.token_weights.any(axis=1)
        alone, widths = replace(learner, prompt=0), [len(tokens[prompt])]
        (coefficients,) = coefficients_of([alone], widths, n_classes)
        votes.append(scalings[prompt].apply(matrices[prompt]) @ coefficients)
    unspelled = [c for c, some in enumerate(words) if some and not is_spelled[c]]
    shape = (len(learners), len(matrices[0]), n_classes)
    return learners, np.array(votes, np.float64).reshape(shape), unspelled


def name_prior(
    prompts: Sequence[int],
    tokens: Sequence[NDArray[np.int32]],
    token_bytes: Mapping[int, bytes],
    matrices: Sequence[Matrix],
    scalings: Sequence[Scaling],
    sample_weight: NDArray[np.float64],
    words: Sequence[Sequence[str]],
    n_classes: int,
    *,
    by_agreement: bool = False,
) -> NamePrior:
    """Return the class-name prior under some prompts.

    The prompts have equal weights, or those of their `agreement`.

    Parameters
    ----------
    prompts : sequence of int
        The prompts to use, of P.
    tokens, matrices, scalings : sequences of P
        Per prompt the tokens that are read, their log-probabilities on n rows, and their scaling.
    token_bytes : mapping of int to bytes
        Of all those tokens.
    sample_weight : float64 array of shape (n,)
        Weights of the training rows.
    words : sequence of sequence of str
        Per class the words of its name; empty for no prior.
    n_classes : int
        Number of classes.
    by_agreement : bool, default=False
        Whether prompts are weighed by their agreement, which takes more texts than a few labels.
    """
    learners, by_prompt, unspelled = name_votes(
        prompts, tokens, token_bytes, matrices, scalings, words, n_classes
    )
    shares = agreement(by_prompt) if by_agreement else np.ones(len(learners))
    low, high = np.zeros((2, len(matrices), n_classes))
    votes = np.zeros((len(matrices[0]), n_classes))
    for learner, added in zip(learners, by_prompt * shares[:, None, None], strict=True):
        votes += added
        low[learner.prompt], high[learner.prompt] = added.min(axis=0), added.max(axis=0)
    # the mean of the votes is zero, as each token's is
    spread = float(np.sqrt((sample_weight @ votes**2).mean() / sample_weight.sum()))
    if spread <= _NO_SPREAD:
        return NamePrior([], None, 0 * low, 0 * high, unspelled)
    weighted = [
        replace(one, weight=one.weight * float(share))
        for one, share in zip(learners, shares, strict=True)
        if share
    ]
    prior = NamePrior(weighted, None, low, high, unspelled).scaled(1 / spread)
    return replace(prior, votes=votes / spread)


def agreement(votes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how much each prompt varies with the others: the first principal component, (P,).

    Parameters
    ----------
    votes : float64 array of shape (P, n, n_classes)
        What each prompt says of n texts, with mean 0 over the texts.

    Returns
    -------
    float64 array of shape (P,)
        Not negative, of length 1; zeros where nothing varies. Prompts that vary against the others
        get 0.
    """
    if not votes.size or votes.std() <= _NO_SPREAD:
        return np.zeros(len(votes))
    flat = votes.reshape(len(votes), -1)
    first = np.linalg.eigh(flat @ flat.T)[1][:, -1]
    shares = np.maximum(first * (1 if first.sum() > 0 else -1), 0)
    return np.asarray(shares / np.linalg.norm(shares))
