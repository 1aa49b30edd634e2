"""Labelled texts with their embeddings, and those of them that are nearest to a text.

A model keeps training texts to show them in its prompts (`{nearest: K}`,
`blackbox.prompts.template`), or, on request, to explain predictions by the nearest ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from blackbox.prompts.inputs import Example, Labelled
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import Limits

__all__ = ["KeptExamples"]

_CHUNK = 512  # texts whose similarities to all examples are in memory at a time
_MAX_SHARE = 0.4  # of the context, for labelled texts
_BYTES_PER_TOKEN = 2.0  # of a text, at least, where a tokenizer counts


@dataclass(frozen=True)
class KeptExamples:
    """Labelled texts with their embeddings.

    Parameters
    ----------
    texts : sequence of Example
        n texts, or pairs.
    codes : int array of shape (n,)
        Their classes, as indices into `names`.
    vectors : float32 array of shape (n, d)
        Their vectors, as from `blackbox.experts.vectors.read_vectors`.
    names : sequence of str
        The names of the classes, as prompts show them.
    """

    texts: Sequence[Example]
    codes: NDArray[np.intp]
    vectors: NDArray[np.float32]
    names: Sequence[str]

    def nearest(self, vector: NDArray[np.float32], n: int) -> list[tuple[int, float]]:
        """Return the numbers of the nearest n examples and their cosine similarities.

        Parameters
        ----------
        vector : float32 array of shape (d,)
            The vector of a text.
        n : int
            How many; ties go to the first.
        """
        cosines = _unit(self.vectors) @ _unit(vector[None])[0]
        order = np.argsort(-cosines, kind="stable")[:n].tolist()
        return [(number, float(cosines[number])) for number in order]

    def bind(
        self,
        pool: PromptPool,
        texts: Sequence[Example],
        vectors: NDArray[np.float32],
        limits: Limits,
        folds: tuple[NDArray[np.intp], NDArray[np.intp]] | None = None,
    ) -> PromptPool:
        """Return a pool whose prompts with `{nearest: K}` show the nearest examples of each text.

        A text is never shown to itself: examples with the same words are left out, and so are those
        of its fold.

        Parameters
        ----------
        pool : PromptPool
            Prompts with and without the slot.
        texts : sequence of Example
            m texts, or pairs.
        vectors : float32 array of shape (m, d)
            Their vectors.
        limits : Limits
            Of the LM. Long examples are cut at their ends, so that all fit its context.
        folds : (int array of shape (m,), int array of shape (n,)), optional
            The folds of the texts, and of the examples.
        """
        most = max(prompt.nearest for prompt in pool)
        if not most:
            return pool
        shown: dict[Example, list[list[Labelled]]] = {}
        max_bytes = _max_bytes(limits, most * len(self.names))
        cut = [_cut(text, max_bytes) for text in self.texts]
        for start in range(0, len(texts), _CHUNK):
            some = slice(start, start + _CHUNK)
            allowed = None if folds is None else folds[0][some, None] != folds[1]
            found = self._nearest_of_classes(texts[some], vectors[some], most, allowed)
            for text, by_class in zip(texts[some], found, strict=True):
                shown[text] = [
                    [(cut[number], self.names[self.codes[number]]) for number in ranked]
                    for ranked in by_class
                ]
        of_size = {
            k: {text: list(chain(*reversed(ranks[:k]))) for text, ranks in shown.items()}
            for k in {prompt.nearest for prompt in pool}
            if k
        }
        return PromptPool(
            prompt.showing(of_size[prompt.nearest]) if prompt.nearest else prompt for prompt in pool
        )

    def _nearest_of_classes(
        self,
        texts: Sequence[Example],
        vectors: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.bool_] | None,
    ) -> list[list[list[int]]]:
        """Return for each text its k nearest examples of each class, by rank.

        The first list has the nearest of each class, the second the next ones, and so on; each
        begins with the one that is least like the text.
        """
        cosines = _unit(vectors) @ _unit(self.vectors).T
        if allowed is not None:
            cosines[~allowed] = -np.inf
        words = [_words(text) for text in self.texts]
        places: dict[Example, list[int]] = {}
        for number, text in enumerate(words):
            places.setdefault(text, []).append(number)
        for row, text in enumerate(texts):
            cosines[row, places.get(_words(text), [])] = -np.inf
        found: list[list[list[int]]] = [[[] for _ in range(k)] for _ in texts]
        for code in range(len(self.names)):
            own = np.flatnonzero(self.codes == code)
            order = own[np.argsort(-cosines[:, own], axis=1, kind="stable")]
            for row, ranked in enumerate(order.tolist()):
                seen: set[Example] = set()  # copies of a text are shown once
                for number in ranked:
                    if len(seen) == k or cosines[row, number] == -np.inf:
                        break
                    if words[number] not in seen:
                        found[row][len(seen)].append(number)
                        seen.add(words[number])
        for row, by_rank in enumerate(found):
            for ranked in by_rank:
                ranked.sort(key=lambda number: cosines[row, number])
        return found


def _max_bytes(limits: Limits, n_shown: int) -> int:
    """Return how many bytes of each text are shown."""
    bytes_per_token = _BYTES_PER_TOKEN if limits.counts_tokens else limits.bytes_per_token
    return int(_MAX_SHARE * limits.context_length * bytes_per_token / n_shown)


def _cut(text: Example, most: int) -> Example:
    first, second = (
        part.encode("utf-8", "replace")[:most].decode("utf-8", "ignore").strip()
        if isinstance(part, str)
        else part
        for part in text
    )
    return str(first), second


def _words(text: Example) -> Example:
    first, second = text
    return " ".join(first.split()), " ".join(second.split()) if isinstance(second, str) else second


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny))
