"""Zero-shot label words, with and without calibration, and in-context demonstrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import Interval

from blackbox.answers.passes import Answers
from blackbox.answers.texts import check_texts
from blackbox.boosting.label_words import spelled
from blackbox.prompts.inputs import Example, texts_of
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import NO_TOKEN, RenderedPrompt
from eval.methods.base import Codes, PromptedClassifier, Scores, require_all_answered

__all__ = [
    "N_PER_CLASS",
    "InContextDemonstrations",
    "LabelWords",
    "calibrate_by_batch",
    "calibrate_contextually",
    "word_scores",
]

CONTENT_FREE = ("N/A", "[MASK]", "")
"""Content-free texts of Zhao et al. (2021)."""

N_PER_CLASS = 4
"""Default number of demonstrations per class."""

_CONTEXT_SHARE = 0.75  # for the longest training row: a test row may be longer


def word_scores(
    answers: Answers,
    words: Sequence[str],
    prompt: int = 0,
    token_bytes: Mapping[int, bytes] | None = None,
) -> Scores:
    """Return the log-probability of each class's label word as the next word.

    The probabilities of the tokens that spell the word are summed; if none of them occurs, those of
    its longest prefix that occurs, of at least three letters and of no other class's word. Case and
    surrounding spaces are ignored. If none was reported, the row's least log-probability is used.

    Parameters
    ----------
    answers : Answers
        Of n rows.
    words : sequence of str
        One per class.
    prompt : int, default=0
        Index of the prompt.
    token_bytes : mapping of int to bytes, optional
        The tokens that occur; by default those of the answers.

    Returns
    -------
    float64 array of shape (n, len(words))
    """
    class_of_token = _tokens_of_words(
        answers.token_bytes if token_bytes is None else token_bytes, words
    )
    ids = answers.token_ids[prompt]
    log_probs = answers.log_probs[prompt].astype(np.float64)
    probabilities = np.exp(log_probs)
    known = np.array(sorted(class_of_token), np.int64)
    scores = np.zeros((len(ids), len(words)))
    if len(known):
        places = np.searchsorted(known, ids).clip(max=len(known) - 1)
        rows, ranks = np.nonzero(known[places] == ids)
        classes = np.array([class_of_token[int(token)] for token in known])[places[rows, ranks]]
        np.add.at(scores, (rows, classes), probabilities[rows, ranks])
    floor = np.where(ids == NO_TOKEN, np.inf, log_probs).min(axis=1, keepdims=True)
    return np.where(scores > 0, np.log(np.maximum(scores, 1e-300)), floor)


def _tokens_of_words(token_bytes: Mapping[int, bytes], words: Sequence[str]) -> dict[int, int]:
    """Map each token that spells a label word to its class."""
    folded = [word.strip().casefold() for word in words]
    alone = {word: c for c, word in enumerate(folded) if folded.count(word) == 1}
    tokens = spelled(token_bytes, list(dict.fromkeys(folded)))
    return {token: alone[word] for word, some in tokens.items() if word in alone for token in some}


def calibrate_contextually(scores: Scores, content_free: Scores) -> Scores:
    """Divide each class's probability by its probability for content-free texts.

    Source: Zhao et al., "Calibrate before use", ICML 2021: W = diag(p_cf)⁻¹, b = 0, with the
    probabilities normalised over the classes and p_cf their mean over content-free inputs.
    """
    given = np.exp(_normalise(content_free)).mean(axis=0)
    return np.asarray(_normalise(scores) - np.log(given))


def calibrate_by_batch(scores: Scores) -> Scores:
    """Divide each class's probability by its mean over the batch, which needs no labels.

    Source: Zhou et al., "Batch calibration", ICLR 2024: the contextual prior is the mean
    probability of each class over the batch.
    """
    normalised = _normalise(scores)
    return np.asarray(normalised - np.log(np.exp(normalised).mean(axis=0)))


def _normalise(scores: Scores) -> Scores:
    highest = scores.max(axis=1, keepdims=True)
    total = np.log(np.exp(scores - highest).sum(axis=1, keepdims=True))
    return np.asarray(scores - highest - total)


class LabelWords(PromptedClassifier):
    """Zero-shot classifier: one prompt, one label word per class; labels are ignored.

    Without labels the classes are those that have a word.

    Parameters
    ----------
    backend, prompts, top_k, random_state
        As for `PromptedClassifier`; the first prompt is used.
    words : dict of label to str
        The label word of each class.
    calibration : {"contextual", "batch"}, optional
        See `calibrate_contextually` and `calibrate_by_batch`.
    """

    def __init__(
        self,
        backend: Any,
        prompts: PromptPool,
        *,
        words: Mapping[str, str],
        calibration: str | None = None,
        top_k: int = 200,
        random_state: int = 0,
    ) -> None:
        super().__init__(backend, prompts, top_k=top_k, random_state=random_state)
        self.words = words
        self.calibration = calibration

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Store the classes, and the answers to content-free texts."""
        given = sorted(self.words) if y is None else np.asarray(y)
        self.classes_, codes = np.unique(given, return_inverse=True)
        self._prepare(list(check_texts(X)), codes)
        if self.calibration == "contextual":
            pair = self.prompts[0].takes_pair
            nothing = [(text, text if pair else None) for text in CONTENT_FREE]
            self.content_free_ = self._run(nothing)
        return self

    def _prepare(self, examples: list[Example], codes: Codes) -> None:
        """Prepare whatever the first request needs."""

    def _request(self, example: Example) -> RenderedPrompt:
        return self.prompts[0].render(*example, masked=self.backend.limits.mask)

    def _run(self, examples: Sequence[Example]) -> Answers:
        requests = [self._request(example) for example in examples]
        answered = self.backend.next_token(requests, min(self.top_k, self.backend.limits.max_top_k))
        require_all_answered(answered.row_errors)
        return Answers(
            answered.token_ids[None], answered.log_probs[None], dict(answered.token_bytes)
        )

    def _answers(self, X: Any) -> Answers:
        return self._run(list(check_texts(X)))

    def _scores(self, answers: Answers) -> Scores:
        words = [self.words[str(label)] for label in self.classes_]
        if self.calibration != "contextual":
            scores = word_scores(answers, words)
            return calibrate_by_batch(scores) if self.calibration == "batch" else scores
        # both must use the same tokens of a word
        occur = answers.token_bytes | self.content_free_.token_bytes
        return calibrate_contextually(
            *(word_scores(some, words, token_bytes=occur) for some in (answers, self.content_free_))
        )


class InContextDemonstrations(LabelWords):
    """In-context learning: training rows with their label words precede each text.

    The evaluation passes only `n_per_class` rows per class, so that a seed shows the same rows at
    every number of labels, and the passes are made once.

    Parameters
    ----------
    backend, prompts, words, calibration, top_k, random_state
        As for `LabelWords`. The prompt is one of raw text.
    n_per_class : int, default=4
        Demonstrations per class; fewer if they don't fit into the LM's context.

    Attributes
    ----------
    n_demonstrations_ : int
        Total number of demonstrations.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "n_per_class": [Interval(Integral, 1, None, closed="left")]
    }

    def __init__(
        self,
        backend: Any,
        prompts: PromptPool,
        *,
        words: Mapping[str, str],
        n_per_class: int = N_PER_CLASS,
        calibration: str | None = None,
        top_k: int = 200,
        random_state: int = 0,
    ) -> None:
        super().__init__(
            backend,
            prompts,
            words=words,
            calibration=calibration,
            top_k=top_k,
            random_state=random_state,
        )
        self.n_per_class = n_per_class

    def _prepare(self, examples: list[Example], codes: Codes) -> None:
        rng = np.random.default_rng(self.random_state)
        words = [self.words[str(label)] for label in self.classes_]
        turns = [
            rng.permutation(np.flatnonzero(codes == c)).tolist() for c in range(len(self.classes_))
        ]
        longest = max(examples, key=lambda example: sum(map(len, texts_of(example))))
        for n in range(self.n_per_class, -1, -1):
            rows = [row for of_class in turns for row in of_class[:n]]
            order = np.random.default_rng(self.random_state).permutation(len(rows))
            self.n_demonstrations_ = len(rows)
            self.demonstrations_ = "".join(
                f"{self._render_text(examples[rows[place]])} {words[codes[rows[place]]]}\n\n"
                for place in order.tolist()
            )
            if self._fits_context(longest):
                break

    def _render_text(self, example: Example) -> str:
        return self.prompts[0].render(*example).text or ""

    def _request(self, example: Example) -> RenderedPrompt:
        return RenderedPrompt(text=self.demonstrations_ + self._render_text(example))

    def _fits_context(self, example: Example) -> bool:
        return self._holds(self._request(example))

    def _holds(self, request: RenderedPrompt) -> bool:
        """Whether a request leaves some of the context free."""
        room = round(_CONTEXT_SHARE * self.backend.limits.context_length)
        counts = self.backend.limits.counts_tokens
        tokens = self.backend.count_tokens([request])[0] if counts else request.n_bytes
        return bool(tokens <= room)
