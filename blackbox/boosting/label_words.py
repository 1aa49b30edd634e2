"""The first verbalizer: tokens that spell the name of a class speak for it, before any label does.

What a class is called is known for free, and a language model has seen the word. How much to trust
it is left to cross-validation (`blackbox.boosting.calibration`): names that say nothing weigh next
to nothing.
"""

from __future__ import annotations

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

__all__ = [
    "NamePrior",
    "check_labels",
    "folded",
    "given_words",
    "name_learner",
    "name_prior",
    "spelled",
    "words_of",
]

_LEAST_START = 3  # letters of a word that a token must have to stand for it
_MOST_TOKENS = 64  # that speak for a class
_MOST_SHOWN = 10  # labels that a message names
_NO_SPREAD = 1e-6  # of what names say: they say the same of all rows


def folded(text: str) -> str:
    """A word or a token with its case and the spaces around it taken off."""
    return unicodedata.normalize("NFC", text).strip().casefold()


def words_of(name: str) -> list[str]:
    """The words of a name, folded, each once: ``"cardArrival_2"`` has card and arrival.

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
    found = map(folded, "".join(parts).split())
    return list(dict.fromkeys(word for word in found if len(word) > 1 or not word.isascii()))


def check_labels(parameter: str, given: Mapping[Any, Any], labels: Sequence[Any]) -> None:
    """Refuse a parameter that has something for what is no label.

    Raises
    ------
    ValueError
        With the labels that there are, or the first of them.
    """
    unknown = sorted(map(str, set(given) - set(labels)))
    if unknown:
        known = ", ".join(repr(label) for label in labels[:_MOST_SHOWN])
        more = ", …" if len(labels) > _MOST_SHOWN else ""
        raise ValueError(
            f"{parameter} has {unknown}, which are no labels; the labels are {known}{more}"
        )


def given_words(
    given: Mapping[Any, str | Sequence[str]], classes: Sequence[Any], names: Sequence[str]
) -> list[list[str]]:
    """For each class its words as given, or those of its name where none are.

    Raises
    ------
    ValueError
        On words of something that is no class, or that are no words.
    """
    check_labels("label_words", given, classes)
    found = []
    for label, name in zip(classes, names, strict=True):
        if label not in given:
            found.append(words_of(name))
            continue
        words = given[label]
        several = [words] if isinstance(words, str) else words
        if not isinstance(several, list | tuple) or not all(isinstance(w, str) for w in several):
            raise ValueError(
                f"label_words of {label!r} must be a word or a list of words, got {words!r}"
            )
        found.append([folded(word) for some in several for word in some.split()])
    return found


def spelled(token_bytes: Mapping[int, bytes], words: Sequence[str]) -> dict[str, list[int]]:
    """The tokens that spell each word, where there are any.

    Case and spaces around a token don't matter. For a word that no token spells stand those of its
    longest beginning that occurs, of at least three letters and shared with no other of the words.

    Parameters
    ----------
    token_bytes : mapping of int to bytes
        The tokens that occur.
    words : sequence of str
        Folded words, each once.
    """
    tokens: dict[str, list[int]] = {}
    for token, spelling in token_bytes.items():
        tokens.setdefault(folded(spelling.decode("utf-8", "replace")), []).append(token)
    begin = Counter(word[:n] for word in words for n in range(_LEAST_START, len(word) + 1))
    found = {}
    for word in words:
        starts = (word[:n] for n in range(len(word), min(_LEAST_START, len(word)) - 1, -1))
        # a whole word is itself, whatever else it begins
        fitting = (s for s in starts if s in tokens and (s == word or begin[s] == 1))
        start = next(fitting, None)
        if start is not None:
            found[word] = tokens[start]
    return found


def name_learner(
    prompt: int,
    token_ids: NDArray[np.int32],
    token_bytes: Mapping[int, bytes],
    words: Sequence[Sequence[str]],
) -> WeakLearner | None:
    """A weak learner in which each class is spoken for by the words of its name.

    The words of a name weigh the same, and so do the tokens of a word. None where no token spells
    any of them.

    Parameters
    ----------
    prompt : int
        The prompt's number.
    token_ids : int32 array of shape (V,)
        What is read of its answers, in ascending order.
    token_bytes : mapping of int to bytes
        Of at least those tokens.
    words : sequence of sequence of str
        For each class the words of its name.
    """
    everything = list(dict.fromkeys(word for of_class in words for word in of_class))
    if not everything:
        return None
    places = {token: place for place, token in enumerate(token_ids.tolist())}
    tokens = spelled({token: token_bytes[token] for token in places}, everything)
    speaking = [
        [
            (places[token], 1 / len(tokens[word]))
            for word in of_class
            if word in tokens
            for token in tokens[word]
        ][:_MOST_TOKENS]
        for of_class in words
    ]
    m = max(map(len, speaking), default=0)
    if not m:
        return None
    columns, weights = np.zeros((len(words), m), np.intp), np.zeros((len(words), m), np.float32)
    for c, spoken in enumerate(speaking):
        for rank, (column, weight) in enumerate(spoken):
            columns[c, rank], weights[c, rank] = column, weight
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))
    return WeakLearner(prompt, columns, weights, 1.0)


@dataclass(frozen=True)
class NamePrior:
    """What the names of the classes say under P prompts.

    Parameters
    ----------
    learners : list of WeakLearner
        At most one a prompt.
    votes : float64 array of shape (n, n_classes), or None
        What they say of the training rows together, with variance 1; None where that is nothing.
    low, high : float64 arrays of shape (P, n_classes)
        The least and the most that they say of any training row, by prompt.
    unspelled : list of int
        Classes with words that no token spells under any prompt.
    """

    learners: list[WeakLearner]
    votes: NDArray[np.float64] | None
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    unspelled: list[int] = field(default_factory=list)

    def scaled(self, weight: float) -> NamePrior:
        """The same, times a weight; without learners where that is 0."""
        learners = [replace(one, weight=one.weight * weight) for one in self.learners if weight]
        return replace(self, learners=learners, low=self.low * weight, high=self.high * weight)


def name_prior(
    prompts: Sequence[int],
    tokens: Sequence[NDArray[np.int32]],
    token_bytes: Mapping[int, bytes],
    matrices: Sequence[Matrix],
    scalings: Sequence[Scaling],
    sample_weight: NDArray[np.float64],
    words: Sequence[Sequence[str]],
    n_classes: int,
) -> NamePrior:
    """The learners of the names under some prompts, with the same weight each.

    Parameters
    ----------
    prompts : sequence of int
        The prompts under which names may speak, of P.
    tokens, matrices, scalings : sequences of P
        What is read of each prompt, the log-probabilities, and how they are standardised.
    token_bytes : mapping of int to bytes
        Of all those tokens.
    sample_weight : float64 array of shape (n,)
        Weights of the training rows.
    words : sequence of sequence of str
        For each class the words of its name; empty where names shall say nothing.
    n_classes : int
        Number of classes.
    """
    learners = []
    votes = np.zeros((len(matrices[0]), n_classes))
    low, high = np.zeros((2, len(matrices), n_classes))
    found = np.zeros(n_classes, bool)
    for prompt in prompts:
        learner = name_learner(prompt, tokens[prompt], token_bytes, words)
        if learner is None:
            continue
        learners.append(learner)
        found |= learner.token_weights.any(axis=1)
        alone, widths = replace(learner, prompt=0), [len(tokens[prompt])]
        (spoken,) = coefficients_of([alone], widths, n_classes)
        said = scalings[prompt].apply(matrices[prompt]) @ spoken
        votes += said
        low[prompt], high[prompt] = said.min(axis=0), said.max(axis=0)
    unspelled = [c for c, some in enumerate(words) if some and not found[c]]
    # the mean of the votes is zero, as each token's is
    spread = float(np.sqrt((sample_weight @ votes**2).mean() / sample_weight.sum()))
    if spread <= _NO_SPREAD:
        return NamePrior([], None, 0 * low, 0 * high, unspelled)
    return replace(
        NamePrior(learners, None, low, high, unspelled).scaled(1 / spread), votes=votes / spread
    )
