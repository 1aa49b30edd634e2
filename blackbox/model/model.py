"""`Model`, the result of training: prompts, weak learners, experts and calibration.

`Model.predict` is the only place where a class is chosen; the estimator, the command, the service,
explanations and reports all call it. A model holds no language model: the caller passes the LM,
wrapped by a store and a budget as needed.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.answers.texts import CheckedTexts, check_texts, raise_row_errors, row_digests
from blackbox.backend import BaseBackend
from blackbox.boosting.early_stopping import argmax_with_ties
from blackbox.boosting.ensemble import Ensemble
from blackbox.experts.examples import KeptExamples
from blackbox.model.asking import ScoredTexts, read_all_prompts, read_with_early_stopping
from blackbox.model.expert_answers import ask_experts
from blackbox.model.ordered import median_codes
from blackbox.model.out_of_scope import OutOfScopeDetector, TextEvidence
from blackbox.model.predictions import NO_ANSWER, NONE_OF_THESE, Predictions, labels_of
from blackbox.model.reliability import HeldOutRows, Promise, prediction_sets
from blackbox.model.summary import held_out_of
from blackbox.plurals import counted
from blackbox.prompts.inputs import KIND_NAMES, Example
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import BackendIdentity, Usage
from blackbox.spending import stopping_at_refusals

__all__ = ["Evidence", "Model", "Progress"]

Progress = Callable[[str, int, int], None]
"""Callback with (stage, done, total) as work progresses."""

_CHUNK = 512  # rows whose answers are in memory at a time


@dataclass(frozen=True)
class Evidence:
    """The evidence of a prediction: the answers to prompts, and the scores of experts.

    Parameters
    ----------
    matrices : list of P float32 arrays of shape (n, V_p)
        The log-probabilities that the ensemble reads per prompt; NaN without an answer.
    expert_scores : float64 array of shape (J, n, n_classes)
        What each expert adds to the scores; NaN without an answer.
    vectors : float32 array of shape (n, d), optional
        The embeddings, where the model reads them; NaN without an answer.
    """

    matrices: list[Matrix]
    expert_scores: NDArray[np.float64]
    vectors: NDArray[np.float32] | None = None

    def take_rows(self, rows: slice | NDArray[Any]) -> Evidence:
        """Return the evidence of some of the rows."""
        return Evidence(
            [matrix[rows] for matrix in self.matrices],
            self.expert_scores[:, rows],
            None if self.vectors is None else self.vectors[rows],
        )


@dataclass(frozen=True)
class Model:
    """A trained classifier.

    Parameters
    ----------
    classes : array of shape (n_classes,)
        The labels: str, int, bool or float.
    prompts : PromptPool
        The prompt of each of the ensemble's readings.
    ensemble : Ensemble
        Weak learners, tokens and scales.
    token_bytes : dict of int to bytes
        The bytes of each token that the ensemble reads.
    identity : BackendIdentity
        The LM of the training.
    top_k : int
        Number of next tokens that are read per answer.
    summary : dict
        Figures of the training, as JSON data.
    embedder_identity : BackendIdentity, optional
        The embedding model of the training; None if neither experts nor prompts read vectors.
    examples : KeptExamples, optional
        Training texts: those that its prompts show, or that it keeps on request to explain
        predictions by the nearest ones.
    row_digests : uint64 array, optional
        Digests of the texts whose labels were learned, ascending, by which they are recognised.
    source_digests : uint64 array, optional
        The same of the models of a library that it reads.
    held_out : HeldOutRows, optional
        Training rows under models that had not seen them, by which errors are promised.
    out_of_scope : OutOfScopeDetector, optional
        Notices texts of none of the classes; they get its label.
    order : int array of shape (n_classes,), optional
        The codes of the classes from the lowest to the highest, where they have an order; the
        median class is predicted then (`blackbox.model.ordered`).
    """

    classes: NDArray[Any]
    prompts: PromptPool
    ensemble: Ensemble
    token_bytes: dict[int, bytes]
    identity: BackendIdentity
    top_k: int
    summary: dict[str, Any] = field(default_factory=dict)
    embedder_identity: BackendIdentity | None = None
    examples: KeptExamples | None = None
    row_digests: NDArray[np.uint64] | None = None
    source_digests: NDArray[np.uint64] | None = None
    held_out: HeldOutRows | None = None
    out_of_scope: OutOfScopeDetector | None = None
    order: NDArray[np.intp] | None = None

    def ordered_labels(self) -> list[str] | None:
        """Return the labels from the lowest to the highest; None if they have no order."""
        return None if self.order is None else list(map(str, self.classes[self.order].tolist()))

    @property
    def several_labels(self) -> bool:
        """Whether a text may have several labels; see `blackbox.model.multilabel`."""
        return False

    @property
    def cell_type(self) -> type:
        """The type of `Predictions.cells`."""
        return str

    @property
    def takes_pair(self) -> bool:
        """Whether the model classifies pairs of texts."""
        return self.prompts[0].takes_pair

    @property
    def input_kind(self) -> str:
        """The kind of input that the model classifies: ``"text"``, ``"pair"`` or ``"image"``."""
        return self.prompts[0].input_kind

    def __repr__(self) -> str:
        found = held_out_of(self.summary)
        quality = f", accuracy {found['accuracy']:.1%} on held-out rows" if found else ""
        return (
            f"<Model of {counted(len(self.classes), 'class')}: {self.ensemble.algorithm.name} over "
            f"{counted(len(self.prompts), 'prompt')}, LM {self.identity.model!r}{quality}>"
        )

    def trained_on(self, texts: Any, *, with_sources: bool = False) -> NDArray[np.bool_]:
        """Return for each text or pair whether it was trained on with a label: (n,).

        All False where the model doesn't know its training texts, as files of old versions.

        Parameters
        ----------
        texts : sequence of str, of (text, text_pair), array, frame or CheckedTexts
            n texts.
        with_sources : bool, default=False
            Whether to count texts that models of a library which it reads were trained on, on which
            it may look too good as well.
        """
        digests = [row_digests([one])[0] for one in check_texts(texts)]
        known = [self.row_digests, self.source_digests if with_sources else None]
        found = np.zeros(len(digests), bool)
        for one in known:
            found |= False if one is None else np.isin(digests, one)
        return found

    def promise(self, max_error: float) -> Promise:
        """Return the least probability of a label for a promised error; see `HeldOutRows.promise`.

        Parameters
        ----------
        max_error : float
            The share of wrong labels among those given, above 0 and below 1.

        Raises
        ------
        ValueError
            If it can't be promised, with what is missing.
        """
        if self.order is not None:
            raise ValueError(
                "an error rate is promised of the most probable class, and this model predicts the "
                "median of ordered ones: train without ordered"
            )
        return self._held_out().promise(max_error)

    def prediction_sets(
        self, probabilities: NDArray[np.float64], coverage: float
    ) -> NDArray[np.bool_]:
        """Return which classes are in the prediction set of each text: (n, n_classes).

        Parameters
        ----------
        probabilities : float64 array of shape (n, n_classes)
            Of `predict`.
        coverage : float
            The share of texts whose set holds the right class; see `HeldOutRows.set_threshold`.

        Raises
        ------
        ValueError
            If there are too few held-out rows for that.
        """
        return prediction_sets(probabilities, self._held_out().set_threshold(coverage))

    def _held_out(self) -> HeldOutRows:
        if self.held_out is None:
            raise ValueError(
                "this model has no held-out rows to promise anything by: label texts (two of each "
                "class, or four per class on average where their names speak too) and train with "
                "cross-validation; a merged model, and one of an older version, has none either"
            )
        return self.held_out

    @property
    def reads_vectors(self) -> bool:
        """Whether it needs the sentence embeddings of texts."""
        detector = self.out_of_scope
        return (
            self.shows_examples
            or self.ensemble.reads_vectors
            or (detector is not None and detector.reads_vectors)
        )

    @property
    def shows_examples(self) -> bool:
        """Whether a prompt shows the training texts that are nearest to a text."""
        return any(prompt.nearest for prompt in self.prompts)

    @property
    def held_texts(self) -> str:
        """What texts of a training the model's file holds, in words; "" if none."""
        held = []
        if self.examples is not None:
            rows = counted(len(self.examples.texts), "training row")
            held.append(f"the texts and vectors of {rows}")
        if any(prompt.has_examples for prompt in self.prompts):
            held.append("labelled texts in its prompts")
        return " and ".join(held)

    @property
    def n_name_learners(self) -> int:
        """Number of learners, the first ones, that are the class-name prior and not boosted."""
        # a file may hold any value
        n = self.summary.get("n_names")
        return min(max(n, 0), len(self.ensemble.learners)) if isinstance(n, int) else 0

    def predict(
        self,
        lm: BaseBackend,
        texts: Any,
        early_stop: str | None = None,
        *,
        embedder: BaseBackend | None = None,
        on_row_error: str = "abstain",
        progress: Progress | None = None,
    ) -> Predictions:
        """Return predictions for texts.

        Parameters
        ----------
        lm : BaseBackend
            The LM, with its store and its budget.
        texts : sequence of str, of (text, text_pair), array, frame or CheckedTexts
            n texts.
        early_stop : {"exact", "risk"}, optional
            Early stopping: ask no more prompts about a text once its class can't change
            (``"exact"``) or rarely would (``"risk"``).
        embedder : BaseBackend, optional
            The embedding model, with its store and its budget; needed where the model has an
            `embedder_identity`, and not asked elsewhere.
        on_row_error : {"raise", "abstain"}, default="abstain"
            How to handle a row that is empty or that the LM refuses.
        progress : callable, optional
            Called with ("predicting", done, total).

        Raises
        ------
        ValueError
            If the texts are pairs and the model takes single texts, or the other way round; with
            ``"risk"``, if the model was trained without its thresholds; with early stopping, if it
            notices texts of none of its classes. If there is no `embedder`, where one is needed.
        RowError
            If a row got no answer, under ``on_row_error="raise"``.
        """
        self.check_early_stop(early_stop)
        return self._predict(
            lm, embedder, texts, early_stop, on_row_error, progress, keep_evidence=False
        )[0]

    def read(
        self,
        lm: BaseBackend,
        texts: Any,
        *,
        embedder: BaseBackend | None = None,
        on_row_error: str = "abstain",
        progress: Progress | None = None,
    ) -> tuple[Predictions, Evidence]:
        """Return predictions for texts, and the evidence that they were made from.

        Parameters
        ----------
        lm, texts, embedder, on_row_error, progress
            As for `predict`.
        """
        return self._predict(lm, embedder, texts, None, on_row_error, progress, keep_evidence=True)

    def staged_scores(self, evidence: Evidence) -> Iterator[NDArray[np.float64]]:
        """Yield the scores after each weak learner; those of experts are in all of them.

        Parameters
        ----------
        evidence : Evidence
            From `read`.
        """
        answered = np.asarray(~np.isnan(evidence.matrices[0]).any(axis=1))
        some = evidence.take_rows(answered)
        initial = self.ensemble.initial_scores(some.expert_scores)
        for scores in self.ensemble.staged_decision(some.matrices, initial):
            full = np.full((len(answered), *scores.shape[1:]), np.nan)
            full[answered] = scores
            yield full

    def codes_of(self, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the class code of each row of scores, or of probabilities.

        Parameters
        ----------
        scores : float64 array of shape (n, n_classes), or (n,) for two classes
            NaN rows get `NO_ANSWER`.
        """
        if self.order is not None:
            return self.codes_of_probabilities(self.ensemble.probabilities(scores))
        return _codes(scores, argmax_with_ties)

    def codes_of_probabilities(self, probabilities: NDArray[np.float64]) -> NDArray[np.intp]:
        """Return the class code of each row of probabilities; see `codes_of`."""
        if self.order is not None:
            return _codes(probabilities, functools.partial(median_codes, order=self.order))
        return _codes(probabilities, argmax_with_ties)

    def labels_of(
        self, codes: NDArray[np.intp], abstain_label: Any, row_errors: dict[int, str]
    ) -> Any:
        """Return the labels of class codes; see `Predictions.labels`."""
        return labels_of(self.classes, codes, abstain_label, row_errors)

    def _predict(
        self,
        lm: BaseBackend,
        embedder: BaseBackend | None,
        texts: Any,
        early_stop: str | None,
        on_row_error: str,
        progress: Progress | None,
        *,
        keep_evidence: bool,
    ) -> tuple[Predictions, Evidence]:
        started = time.perf_counter()
        examples = self._check_kind(texts)
        n = len(examples)
        row_errors = dict(examples.refused)
        raise_row_errors(row_errors, on_row_error)
        rows = np.array([row for row in range(n) if row not in row_errors], np.intp)
        scores, asked = self.ensemble.empty_scores(n), np.zeros(n, np.intp)
        widths = [len(one.token_ids) for one in self.ensemble.readings] if keep_evidence else []
        n_experts = len(self.ensemble.experts) if keep_evidence else 0
        evidence = Evidence(
            [np.full((n, width), np.nan, np.float32) for width in widths],
            np.full((n_experts, n, self.ensemble.n_classes), np.nan),
        )
        truncated, usage = set[int](), Usage()
        unusual = np.full(n, np.nan)
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            with stopping_at_refusals(on_row_error):
                heard = ask_experts(
                    self.ensemble,
                    embedder,
                    [examples[row] for row in chunk],
                    for_others=self.reads_vectors,
                )
            usage += heard.usage
            errors = {int(chunk[place]): why for place, why in heard.row_errors.items()}
            row_errors |= errors
            raise_row_errors(errors, on_row_error)
            kept = np.array([row not in errors for row in chunk.tolist()], bool)
            chunk, spoken = chunk[kept], heard.scores[:, kept]
            vectors = None if heard.vectors is None else heard.vectors[kept]
            some = [examples[row] for row in chunk]
            prompts = self._prompts_for(some, vectors, lm)
            with stopping_at_refusals(on_row_error):
                part = self._read_chunk(lm, prompts, some, early_stop, spoken)
            usage += part.usage
            errors = {int(chunk[place]): why for place, why in part.row_errors.items()}
            row_errors |= errors
            raise_row_errors(errors, on_row_error)
            truncated |= {int(chunk[place]) for place in part.truncated}
            scores[chunk], asked[chunk] = part.scores, part.n_asked
            if self.out_of_scope is not None:
                seen = self.scope_evidence(part.scores, part.matrices, vectors)
                unusual[chunk] = self.out_of_scope.scores(seen)
            for matrix, values in zip(evidence.matrices, part.matrices, strict=False):
                matrix[chunk] = values
            if keep_evidence:
                evidence.expert_scores[:, chunk] = spoken
                evidence = _with_vectors(evidence, chunk, vectors)
            if progress:
                progress("predicting", min(start + _CHUNK, len(rows)), len(rows))
        codes, found = self.codes_of(scores), None
        if self.out_of_scope is not None:
            found = self.out_of_scope.judge(unusual)
            codes[found.rejected] = NONE_OF_THESE
        predicted = Predictions(
            self.classes,
            codes,
            scores,
            None if early_stop else self.ensemble.probabilities(scores),
            asked,
            row_errors,
            truncated,
            replace(usage, seconds_total=time.perf_counter() - started),
            out_of_scope=found,
        )
        return self._predictions(predicted), evidence

    def _predictions(self, predicted: Predictions) -> Predictions:
        """Return predictions in the form that this kind of model gives them."""
        return predicted

    def scope_evidence(
        self,
        scores: NDArray[np.float64],
        matrices: Sequence[Matrix],
        vectors: NDArray[np.float32] | None,
    ) -> TextEvidence:
        """Return what an `OutOfScopeDetector` reads of texts.

        Parameters
        ----------
        scores : float64 array of shape (n, n_classes), or (n,) for two classes
            Decision scores; NaN without an answer.
        matrices : sequence of float32 arrays of shape (n, V_p)
            The log-probabilities that the ensemble reads per prompt.
        vectors : float32 array of shape (n, d), optional
            Sentence embeddings, where the model reads them.
        """
        return TextEvidence(
            self.ensemble.probabilities(scores), self.ensemble.standardised(matrices), vectors
        )

    def _prompts_for(
        self, examples: Sequence[Example], vectors: NDArray[np.float32] | None, lm: BaseBackend
    ) -> PromptPool:
        """Return the prompts, with the training texts that they show of each text."""
        if not self.shows_examples or self.examples is None or vectors is None:
            return self.prompts
        return self.examples.bind(self.prompts, examples, vectors, lm.limits)

    def _read_chunk(
        self,
        lm: BaseBackend,
        prompts: PromptPool,
        examples: Sequence[Example],
        early_stop: str | None,
        expert_scores: NDArray[np.float64],
    ) -> ScoredTexts:
        initial = np.broadcast_to(
            self.ensemble.initial_scores(expert_scores), (len(examples), self.ensemble.n_classes)
        )
        asked = (lm, prompts, self.ensemble, examples, self.top_k)
        if early_stop is not None:
            return read_with_early_stopping(*asked, early_stop, initial)
        return read_all_prompts(*asked, initial)

    def check_early_stop(self, early_stop: str | None) -> None:
        """Raise ValueError if predictions of this model can't stop early by a rule."""
        if early_stop is not None and self.out_of_scope is not None:
            raise ValueError(
                "a model that notices texts of none of its classes takes the answers to all "
                "prompts: predict without early stopping"
            )
        if early_stop is not None and self.order is not None:
            raise ValueError(
                "the median of ordered classes takes the answers to all prompts: predict without "
                "early stopping"
            )
        if early_stop == "risk" and not self.ensemble.early_stopping.knows_risk:
            raise ValueError(
                'this model has no thresholds for early_stop="risk": use early_stop="exact", or '
                'train with algorithm="logit", several prompts, cv, and 20 rows or more'
            )

    def _check_kind(self, texts: Any) -> CheckedTexts:
        examples = check_texts(texts)
        if examples.kind != self.input_kind:
            raise ValueError(
                f"X holds {KIND_NAMES[examples.kind]} but the model was trained on "
                f"{KIND_NAMES[self.input_kind]}"
            )
        return examples


def _codes(
    scores: NDArray[np.float64], choose: Callable[[NDArray[np.float64]], NDArray[np.intp]]
) -> NDArray[np.intp]:
    """Return the class of each row of scores, by a rule; NaN rows get `NO_ANSWER`."""
    codes = np.full(len(scores), NO_ANSWER, np.intp)
    answered = ~np.isnan(scores if scores.ndim == 1 else scores[:, 0])
    codes[answered] = choose(scores[answered])
    return codes


def _with_vectors(
    evidence: Evidence, rows: NDArray[np.intp], vectors: NDArray[np.float32] | None
) -> Evidence:
    """Return evidence with the embeddings of some rows, in place where it has any."""
    if vectors is None:
        return evidence
    known = evidence.vectors
    if known is None:
        n = evidence.expert_scores.shape[1]
        known = np.full((n, vectors.shape[1]), np.nan, np.float32)
    known[rows] = vectors
    return replace(evidence, vectors=known)
