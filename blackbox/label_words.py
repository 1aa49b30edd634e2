"""The first verbalizer: tokens that spell the name of a class speak for it, before any label does.

What a class is called is known for free, and a language model has seen the word. How much to trust
it is left to cross-validation (`blackbox.logit.calibrate`): names that say nothing weigh next to
nothing.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting import WeakLearner

__all__ = ["folded", "name_learner", "spelled", "words_of"]

_LEAST_START = 3  # letters of a word that a token must have to stand for it
_MOST_TOKENS = 64  # that speak for a class


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
    places = {token: place for place, token in enumerate(token_ids.tolist())}
    everything = list(dict.fromkeys(word for of_class in words for word in of_class))
    tokens = spelled({token: token_bytes[token] for token in places}, everything)
    speaking = [
        [(places[token], 1 / len(tokens[word])) for word in of_class if word in tokens
         for token in tokens[word]][:_MOST_TOKENS]
        for of_class in words
    ]  # fmt: skip
    m = max(map(len, speaking), default=0)
    if not m:
        return None
    columns, weights = np.zeros((len(words), m), np.intp), np.zeros((len(words), m), np.float32)
    for c, spoken in enumerate(speaking):
        for rank, (column, weight) in enumerate(spoken):
            columns[c, rank], weights[c, rank] = column, weight
    weights /= np.maximum(weights.sum(axis=1, keepdims=True), np.float32(1e-9))
    return WeakLearner(prompt, columns, weights, 1.0)
