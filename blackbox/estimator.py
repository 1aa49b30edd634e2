"""`PromptBoostingClassifier`: the one place where prompts, LM, verbalizers and boosting meet.

`fit` reads top to bottom: check the input, reach the LM, choose prompts, run forward passes, boost.
Prediction runs the prompts that the ensemble reads and adds up its learners.
"""

from __future__ import annotations

import copy
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, _check_y, check_is_fitted

from blackbox.answers.features import Matrix
from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.answers.texts import CheckedTexts, check_texts
from blackbox.backend import BaseBackend, as_backend
from blackbox.boosting import ALGORITHM_NAMES, training
from blackbox.boosting.algorithms import ALGORITHMS
from blackbox.boosting.early_stopping import RULES, argmax_with_ties
from blackbox.boosting.label_words import check_labels, given_words
from blackbox.errors import BackendError, BackendIdentityError, RowError
from blackbox.generation import (
    GeneratedPool,
    PromptGenerator,
    Prompts,
    Task,
    best_prompts,
    candidates,
    generator_of,
)
from blackbox.generation.choose import choose
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.model.display import learned_html
from blackbox.model.file import SavedModel, write_model
from blackbox.model.prediction import (
    EarlyStopped,
    PromptAnswers,
    read_matrices,
    read_with_early_stopping,
)
from blackbox.planning import DryRunBackend, Plan, make_plan, probe_seconds
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Example
from blackbox.protocol import Usage
from blackbox.store.file import StoreFile

__all__ = ["ProgressCallback", "PromptBoostingClassifier"]

_log = logging.getLogger(__name__)

_CHUNK = 512  # rows whose full answers are in memory at a time in prediction
_LOW_COVERAGE = 0.3
_TRUST = 0.25  # in what rows say of calibration by which the prompts were chosen

ProgressCallback = Callable[[str, int, int], None]
_Read = Callable[[BaseBackend, Sequence[Example], NDArray[np.intp]], PromptAnswers | EarlyStopped]


class PromptBoostingClassifier(TransformerMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A text classifier boosted out of the next-token predictions of a language model.

    The LM is only called. Each text goes into a handful of prompts; a verbalizer says which of the
    LM's next tokens speak for which class; boosting weighs many such weak learners. Source of the
    idea and of ``algorithm="samme"``: Hou et al., "PromptBoosting: Black-Box Text Classification
    with Ten Forward Passes", ICML 2023.

    Parameters
    ----------
    backend : str or Backend, default="llamacpp"
        What runs forward passes: a name (`backends.names()`), ``"module:Class"``, or an object with
        the methods of `blackbox.protocol.Backend`. Clones share it.
    model : str, optional
        The LM, as the backend names it; by default the backend's own choice.
    backend_options : dict, optional
        More arguments for a backend that is given by name. Never put a key here: backends read
        keys from the environment.
    prompts : sequence of str or Prompt, path of a pool file, "auto" or PromptGenerator, optional
        The prompts to use. By default `n_prompts` are chosen from the built-in pool by a screen on
        training rows. With ``"auto"`` they are made for the task, out of training rows alone, in
        4,000 forward passes; a `PromptGenerator` says how.
    n_prompts : int, default=10
        Prompts to choose when `prompts` doesn't name them.
    max_prompts : int, optional
        Prompts that the model keeps, at most: those that add most to each other on the training
        rows. Each prompt is a forward pass for every text that is labelled.
    n_screening_rows : int, default=48
        Training rows, balanced over the classes, on which candidate prompts are tried out.
    task : str, optional
        One line that says what is asked of a text, such as "What is the topic of this news?"; it
        adds instruction prompts to the candidates.
    class_names : dict, optional
        A readable name for each class, for prompts; by default the labels, where they are words.
    label_words : "names", dict or None, default="names"
        Words that speak for each class before any label does, in ``"logit"``: those of the names
        of the classes (`class_names`), or of a dict from labels to a word or words, in which a
        label that is left out keeps its name. Cross-validation finds how much they weigh, which is
        little where they say little; without `cv` they aren't used. None uses none.
    algorithm : {"logit", "samme"}, default="logit"
        ``"logit"`` is gradient boosting over soft verbalizers and the better one; ``"samme"`` is
        the paper's AdaBoost over hard votes.
    n_estimators : int, optional
        Rounds; by default 200 for ``"samme"``, and for ``"logit"`` 100, or one for five training
        rows (by weight) where that is more, up to 1,000, and fewer with more than 100 classes.
    learning_rate : float, default=1.0
        How much of its Newton step each round of ``"logit"`` makes.
    tokens_per_class : int, default=32
        Tokens that speak for a class in one round of ``"logit"``.
    cv : int or None, default=5
        Folds in which ``"logit"`` calibrates its probabilities, over passes already made. With
        None, or a class of a single row, they are left as they are, which is too sure of itself.
    validation_fraction : float, default=0.5
        Share of the training rows on which ``"samme"`` picks the number of rounds. With 0 it keeps
        all rounds.
    top_k : int, default=200
        Next tokens that are read of each answer; fewer where the backend gives fewer.
    min_token_share : float, default=0.1
        ``"logit"`` reads tokens that are among the top k in at least this share of training rows.
    on_row_error : {"raise", "abstain"}, default="raise"
        What to do with a row that is empty or that the LM refuses. ``"abstain"``: left out in
        `fit`; in prediction its probabilities are NaN and its label is `abstain_label`. Reasons
        stand in `row_errors_`.
    abstain_label : object, optional
        The label for rows without an answer; without one `predict` raises for them.
    early_stop : {"exact", "risk"}, optional
        Whether `predict` stops asking the LM about a text when its class is settled: for certain
        (``"exact"``, the same labels as with all prompts), or with a chance of about half a percent
        that a label changes (``"risk"``, for models of ``"logit"`` that were cross-validated).
        Probabilities always take all prompts.
    class_weight : dict or "balanced", optional
        Weights of the classes, as elsewhere in scikit-learn.
    random_state : int, RandomState or None, default=None
        Seed of everything that is drawn. The same seed gives the same model.
    store : path, StoreFile or False, optional
        Where answers of the LM are kept, so that none is paid for twice; by default a file in the
        user's cache directory, or what the environment's `PROMPTBOOSTING_STORE` names ("off" for
        none). With False they are not kept.
    max_forward_passes, max_tokens, max_cost, max_seconds : number, optional
        What one call of `fit` or of a method that predicts may spend: forward passes and tokens
        that the store doesn't have, US dollars, seconds. What doesn't fit is not sent, and the call
        ends with `BudgetError`; what was answered is in the store.
    callback : callable, optional
        Called with (stage, done, total) as work goes on.

    Attributes
    ----------
    classes_ : array of shape (n_classes,)
        The labels.
    prompts_ : PromptPool
        The prompts that the ensemble reads.
    ensemble_ : Ensemble
        Learners, tokens and scales.
    estimator_weights_ : float array of shape (n_learners,)
        The weight of each weak learner.
    token_bytes_ : dict of int to bytes
        The bytes of each token that the ensemble reads.
    lm_identity_ : BackendIdentity
        The LM that was trained with.
    top_k_ : int
        Next tokens that were read of each answer.
    training_summary_ : dict
        Rows, rounds, prompts tried, cross-validated losses, coverage of the top k.
    usage_ : Usage
        What the last `fit` took: passes made and passes out of the store, tokens, seconds, cost.
    prediction_usage_ : Usage
        The same of the last prediction.
    prompts_asked_ : int array of shape (n_samples,)
        Prompts that each row of the last `predict` with `early_stop` was asked under.
    row_errors_ : dict of int to str
        Rows of the last call that got no answer, with the reasons.
    truncated_rows_ : set of int
        Rows of the last call whose text was cut to fit the LM's context.

    Examples
    --------
    >>> from blackbox import PromptBoostingClassifier
    >>> texts = ["how lovely", "how dull", "a lovely day", "so dull a day"] * 4
    >>> classifier = PromptBoostingClassifier(backend="deterministic", random_state=0)
    >>> classifier.fit(texts, ["good", "bad", "good", "bad"] * 4).predict(["lovely", "dull"])
    array(['good', 'bad'], dtype='<U4')
    """

    top_k_: int
    usage_: Usage

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "backend": "no_validation",  # type: ignore[dict-item]
        "model": [str, Path, None],
        "backend_options": [Mapping, None],
        "prompts": ["array-like", str, Path, PromptPool, PromptGenerator, None],
        "n_prompts": [Interval(Integral, 1, None, closed="left")],
        "max_prompts": [Interval(Integral, 1, None, closed="left"), None],
        "n_screening_rows": [Interval(Integral, 2, None, closed="left")],
        "task": [str, None],
        "class_names": [Mapping, None],
        "label_words": [StrOptions({"names"}), Mapping, None],
        "algorithm": [StrOptions(set(ALGORITHM_NAMES))],
        "n_estimators": [Interval(Integral, 1, None, closed="left"), None],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "tokens_per_class": [Interval(Integral, 1, None, closed="left")],
        "cv": [Interval(Integral, 2, None, closed="left"), None],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "top_k": [Interval(Integral, 1, None, closed="left")],
        "min_token_share": [Interval(Real, 0, 1, closed="both")],
        "on_row_error": [StrOptions({"raise", "abstain"})],
        "abstain_label": "no_validation",  # type: ignore[dict-item]
        "store": "no_validation",  # type: ignore[dict-item]
        "max_forward_passes": [Interval(Integral, 0, None, closed="left"), None],
        "max_tokens": [Interval(Integral, 0, None, closed="left"), None],
        "max_cost": [Interval(Real, 0, None, closed="left"), None],
        "max_seconds": [Interval(Real, 0, None, closed="left"), None],
        "early_stop": [StrOptions(set(RULES)), None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "random_state": ["random_state"],
        "callback": [callable, None],
    }

    def __init__(
        self,
        backend: Any = "llamacpp",
        *,
        model: str | Path | None = None,
        backend_options: Mapping[str, Any] | None = None,
        prompts: Prompts = None,
        n_prompts: int = 10,
        max_prompts: int | None = None,
        n_screening_rows: int = 48,
        task: str | None = None,
        class_names: Mapping[Any, str] | None = None,
        label_words: Mapping[Any, str | Sequence[str]] | str | None = "names",
        algorithm: str = "logit",
        n_estimators: int | None = None,
        learning_rate: float = 1.0,
        tokens_per_class: int = 32,
        cv: int | None = 5,
        validation_fraction: float = 0.5,
        top_k: int = 200,
        min_token_share: float = 0.1,
        on_row_error: str = "raise",
        abstain_label: Any = None,
        store: StoreFile | str | Path | bool | None = None,
        max_forward_passes: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        max_seconds: float | None = None,
        early_stop: str | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: Any = None,
        callback: ProgressCallback | None = None,
    ) -> None:
        self.backend = backend
        self.model = model
        self.backend_options = backend_options
        self.prompts = prompts
        self.n_prompts = n_prompts
        self.max_prompts = max_prompts
        self.n_screening_rows = n_screening_rows
        self.task = task
        self.class_names = class_names
        self.label_words = label_words
        self.algorithm = algorithm
        self.n_estimators = n_estimators
        self.learning_rate = learning_rate
        self.tokens_per_class = tokens_per_class
        self.cv = cv
        self.validation_fraction = validation_fraction
        self.top_k = top_k
        self.min_token_share = min_token_share
        self.on_row_error = on_row_error
        self.abstain_label = abstain_label
        self.store = store
        self.max_forward_passes = max_forward_passes
        self.max_tokens = max_tokens
        self.max_cost = max_cost
        self.max_seconds = max_seconds
        self.early_stop = early_stop
        self.class_weight = class_weight
        self.random_state = random_state
        self.callback = callback

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train on labelled texts.

        Parameters
        ----------
        X : sequence of str, of (text, text_pair), or array or frame with one or two columns
            Texts.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weights; a weight of 2 is a row that stands twice.

        Raises
        ------
        ValueError, TypeError
            On bad arguments, fewer than two classes, or texts that aren't texts.
        RowError
            On rows that are empty or that the LM refuses, under ``on_row_error="raise"``.
        DataError
            If the LM's answers don't fit in memory, which is known before anything is spent, or
            the matrices that are made of them.
        BackendError
            If the LM can't be reached or can't serve the prompts.
        BudgetError
            If a budget is reached. The same call goes on from there, with a store.
        """
        started = time.perf_counter()
        self._validate_params()
        rng = self._generator()
        examples = check_texts(X)
        row_errors, truncated = self._begin()
        self._refuse_rows(examples.refused, row_errors)
        rows, codes, weights = self._check_targets(examples, y, sample_weight)
        plan = self._training_plan()
        lm = self._reach()
        paid, writer = self._paid(lm)
        gatherer = Gatherer(
            paid, [examples[row] for row in rows], self.top_k_, self.callback, writer
        )
        try:
            task = self._task([examples[row] for row in rows], codes, weights)
            pool, tried, selection_rows = self._choose(gatherer, task, rng)
            answers = gatherer.answers(pool)
        finally:
            self._account(paid, writer, started)
        truncated |= {int(rows[place]) for place in answers.truncated}
        refused = {int(rows[place]): why for place, why in answers.row_errors.items()}
        self._refuse_rows(refused, row_errors)
        kept = np.array([place not in answers.row_errors for place in range(len(rows))], bool)
        self._check_emptied(codes, kept)

        balanced = self._balance(codes[kept], weights[kept])
        usable = answers.take_rows(np.flatnonzero(kept))
        best = self._best_prompts(usable, codes[kept], balanced, "generation" in tried, rng)
        pool, usable = PromptPool(pool[number] for number in best), usable.take_prompts(best)
        judged = None
        if len(selection_rows):
            trust = np.ones(len(rows))
            trust[selection_rows] = _TRUST
            judged = balanced * trust[kept]
        result = training.boost(usable, codes[kept], balanced, plan, rng, judged)
        self.ensemble_ = result.ensemble
        self.prompts_ = PromptPool(pool[number] for number in result.prompts)
        self.token_bytes_ = {
            token: answers.token_bytes[token]
            for reading in result.ensemble.readings
            for token in reading.token_ids.tolist()
        }
        self._set_learned(
            {
                "n_rows": int(kept.sum()),
                "n_rows_left_out": int(len(examples) - kept.sum()),
                "n_rows_truncated": len(truncated),
                "forward_passes": gatherer.asked,
                **tried,
                "top_k_coverage": round(result.coverage, 4),
                **result.summary,
            }
        )
        self.usage_ = replace(self.usage_, seconds_total=time.perf_counter() - started)
        self._warn_of_words(result.summary.get("names_unspelled", ()))
        if result.coverage < _LOW_COVERAGE:
            warnings.warn(
                f"the {self.top_k_} tokens that were read hold {result.coverage:.0%} of the "
                "probability on average: raise top_k, or use a backend that gives more",
                stacklevel=2,
            )
        return self

    def plan(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Plan:
        """What `fit` on these texts will take, by going through it without the LM's answers.

        Forward passes are exact, as long as the LM refuses no row. Where prompts are to be chosen,
        which ones is not known yet, and tokens are a range. An LM that costs nothing is asked for a
        few passes, to learn how long they take.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`. A `random_state` that is no seed draws other rows in `fit`.
        """
        self._validate_params()
        rng = self._generator()
        examples = check_texts(X)
        row_errors, _ = self._begin()
        self._refuse_rows(examples.refused, row_errors)
        rows, codes, weights = self._check_targets(examples, y, sample_weight)
        self._training_plan()
        lm = self._reach()
        texts = [examples[row] for row in rows]
        paid, writer = self._paid(lm)
        dry_run = DryRunBackend(paid)
        writes = None if writer is None else DryRunBackend(writer)
        gatherer = Gatherer(dry_run, texts, self.top_k_, writer=writes)
        task = self._task(texts, codes, weights)
        tries = candidates(self.prompts, task)
        pool, tried, _ = self._choose(gatherer, task, rng)
        guessed = dry_run.needs_unknown_answers or (
            writes is not None and writes.needs_unknown_answers
        )
        is_open = tried["n_prompts_tried"] > len(pool) and guessed
        gatherer.answers(pool)
        return make_plan(
            dry_run,
            tries if is_open else pool,
            len(pool),
            texts,
            probe_seconds(lm, tries, texts, self.top_k_),
            most=tried["generation"]["budget"] if is_open and "generation" in tried else None,
            writer=writes,
        )

    def generate_prompts(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> GeneratedPool:
        """Make a prompt pool out of labelled texts, as `fit` does with ``prompts="auto"``.

        The same rows, parameters and seed make the same pool. `usage_` says what it took.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        """
        started = time.perf_counter()
        self._validate_params()
        rng = self._generator()
        examples = check_texts(X)
        row_errors, _ = self._begin()
        self._refuse_rows(examples.refused, row_errors)
        rows, codes, weights = self._check_targets(examples, y, sample_weight)
        paid, writer = self._paid(self._reach())
        texts = [examples[row] for row in rows]
        gatherer = Gatherer(paid, texts, self.top_k_, self.callback, writer)
        try:
            generator = generator_of(self.prompts) or PromptGenerator()
            made = generator.generate(
                gatherer,
                self._task(texts, codes, weights),
                self.n_prompts,
                rng,
                shared_prefixes=self._lm.limits.shares_prefixes,
            )
        finally:
            self._account(paid, writer, started)
        return made.first(self.max_prompts)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Scores of shape (n_samples, n_classes), or (n_samples,) for two classes.

        NaN for rows without an answer under ``on_row_error="abstain"``.
        """
        examples = self._readable(X)
        n_classes = self.ensemble_.n_classes
        scores = np.full((len(examples), n_classes) if n_classes > 2 else len(examples), np.nan)

        def read(
            lm: BaseBackend, texts: Sequence[Example], rows: NDArray[np.intp]
        ) -> PromptAnswers:
            part = read_matrices(lm, self.prompts_, self.ensemble_.readings, texts, self.top_k_)
            answered = [row for row in range(len(rows)) if row not in part.row_errors]
            scores[rows[answered]] = self.ensemble_.decision([m[answered] for m in part.matrices])
            return part

        self._in_chunks(examples, read)
        return scores

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of shape (n_samples, n_classes), columns as in `classes_`.

        NaN for rows without an answer under ``on_row_error="abstain"``.
        """
        decision = self.decision_function(X)
        return self.ensemble_.probabilities(decision)

    def predict(self, X: Any) -> NDArray[Any]:
        """The most probable class of each text.

        Raises
        ------
        RowError
            If a row got no answer and there is no `abstain_label`.
        ValueError
            If the model doesn't know at what risk it may stop, under ``early_stop="risk"``.
        """
        if self.early_stop is None:
            return self._labels(self.decision_function(X))
        return self._predict_settled(X, self.early_stop)

    def labels_from_proba(self, probabilities: NDArray[np.float64]) -> NDArray[Any]:
        """The labels that `predict` gives, from what `predict_proba` returned."""
        return self._labels(probabilities)

    def staged_decision_function(self, X: Any) -> Iterator[NDArray[np.float64]]:
        """`decision_function` after each weak learner, all from one set of forward passes.

        The first ones of ``"logit"`` are the names of the classes (`label_words`), one a prompt:
        `training_summary_` has their number as ``n_names``.
        """
        matrices, answered = self._read(X)
        for scores in self.ensemble_.staged_decision([matrix[answered] for matrix in matrices]):
            full = np.full((len(answered), *scores.shape[1:]), np.nan)
            full[answered] = scores
            yield full

    def staged_predict(self, X: Any) -> Iterator[NDArray[Any]]:
        """`predict` after each weak learner, all from one set of forward passes."""
        for scores in self.staged_decision_function(X):
            yield self._labels(scores)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """The log-probabilities that the ensemble reads, of shape (n_samples, n_features).

        None is below its prompt's floor. NaN for rows without an answer under
        ``on_row_error="abstain"``.
        """
        matrices, _ = self._read(X)
        return np.concatenate(matrices, axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """A name for each column of `transform`: prompt, token id and token."""
        check_is_fitted(self, "ensemble_")
        return np.array(
            [
                f"prompt{prompt}_{token}_{self.token_bytes_[token].decode('utf-8', 'replace')}"
                for prompt, reading in enumerate(self.ensemble_.readings)
                for token in reading.token_ids.tolist()
            ],
            dtype=object,
        )

    def save(self, path: str | Path) -> None:
        """Write the trained model: a small zip of readable JSON and plain arrays, no pickle."""
        check_is_fitted(self, "ensemble_")
        write_model(
            path,
            SavedModel(
                classes=self.classes_,
                prompts=self.prompts_,
                ensemble=self.ensemble_,
                token_bytes=self.token_bytes_,
                identity=self.lm_identity_,
                top_k=self.top_k_,
                summary=self.training_summary_,
            ),
        )

    def restore(self, saved: SavedModel) -> Self:
        """Take over what a saved model learned."""
        self.classes_ = saved.classes
        self.prompts_ = saved.prompts
        self.ensemble_ = saved.ensemble
        self.token_bytes_ = saved.token_bytes
        self.lm_identity_ = saved.identity
        self.top_k_ = saved.top_k
        self._begin()
        self._set_learned(saved.summary)
        return self

    def connect(self) -> BaseBackend:
        """Reach the LM that answers, and check that it is the one that was trained with.

        Raises
        ------
        BackendIdentityError
            If another LM answers.
        """
        if getattr(self, "_lm", None) is None:
            lm = self._connect()
            differences = self.lm_identity_.differences(lm.identity)
            if differences and not getattr(self, "_allow_other_lm", False):
                raise BackendIdentityError(
                    "another LM answers than the one this model was trained with ("
                    + "; ".join(differences)
                    + "): give the same LM, or allow another (allow_other_lm, --allow-other-lm)"
                )
            self._lm = lm
        return self._lm

    def _paid(self, lm: BaseBackend) -> tuple[BaseBackend, BaseBackend | None]:
        """The LM behind a store and a budget, as the parameters say, with a new account.

        And one that writes prompts, where that is another, on the same account.
        """
        budget = Budget(self.max_forward_passes, self.max_tokens, self.max_cost, self.max_seconds)
        meter = Meter(budget)
        paid = with_store_and_budget(lm, self.store, budget, meter)
        generator = generator_of(self.prompts)
        if generator is None or generator.writer is None:
            return paid, None
        return paid, with_store_and_budget(as_backend(generator.writer), self.store, budget, meter)

    def _account(self, paid: Any, writer: Any, started: float) -> None:
        usage = paid.usage if writer is None else paid.usage + writer.usage
        self.usage_ = replace(usage, seconds_total=time.perf_counter() - started)

    def __sklearn_clone__(self) -> Self:
        # an engine is shared and not copied, whatever its class says of copies; so is a callback
        bare = copy.copy(self)
        bare.backend, bare.callback = None, None
        cloned: Self = super(PromptBoostingClassifier, bare).__sklearn_clone__()
        cloned.backend, cloned.callback = self.backend, self.callback
        return cloned

    def __getstate__(self) -> dict[str, Any]:
        # an engine is never pickled: it is reached again on first use
        return {key: value for key, value in super().__getstate__().items() if key != "_lm"}

    def _repr_html_inner(self) -> str:
        return str(super()._repr_html_inner()) + self._learned_html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle: dict[str, str] = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] += self._learned_html()
        return bundle

    def _learned_html(self) -> str:
        """What was learned, below scikit-learn's own picture of the parameters."""
        if not hasattr(self, "ensemble_"):
            return ""
        classes = self.classes_.tolist()
        return learned_html(self.prompts_, self.ensemble_, classes, self.token_bytes_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = []  # texts have none
        tags.non_deterministic = False
        return tags

    def _connect(self) -> BaseBackend:
        if not isinstance(self.backend, str):
            return as_backend(self.backend)
        import backends

        options = dict(self.backend_options or {})
        if self.model is not None:
            options["model"] = str(self.model)
        return backends.load(self.backend, **options)

    def _usable_top_k(self) -> int:
        most = self._lm.limits.max_top_k
        if most < 1:
            raise BackendError(f"{self._lm!r} gives no log-probabilities (max_top_k={most})")
        if self.top_k > most:
            _log.warning("top_k=%d lowered to %d: the backend gives no more", self.top_k, most)
        return min(self.top_k, most)

    def _generator(self) -> np.random.Generator:
        return np.random.default_rng(check_random_state(self.random_state).randint(2**31))

    def _reach(self) -> BaseBackend:
        """The LM; sets `lm_identity_` and `top_k_`."""
        lm = self._lm = self._connect()
        self.lm_identity_ = lm.identity
        self.top_k_ = self._usable_top_k()
        return lm

    def _check_targets(
        self, examples: CheckedTexts, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]:
        """Rows to train on, their classes and weights; sets `classes_`."""
        if y is None:
            raise ValueError("requires y to be passed, but the target y is None: give the labels")
        labels: NDArray[Any] = _check_y(y, estimator=self)
        if len(labels) != len(examples):
            raise ValueError(
                f"Found input variables with inconsistent numbers of samples: {len(examples)} "
                f"texts and {len(labels)} labels"
            )
        check_classification_targets(labels)
        weights = _check_sample_weight(
            sample_weight, np.empty((len(labels), 0)), dtype=np.float64, ensure_non_negative=True
        )
        given = None if self.class_weight == "balanced" else self.class_weight
        weights = weights * compute_sample_weight(given, labels)
        usable = weights > 0
        if not usable.any():
            raise ValueError("all sample weights are zero: nothing to train on")
        self.classes_, codes = np.unique(labels[usable], return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(
                "the training rows hold only one class "
                f"({self.classes_[0]!r}); a classifier needs at least two"
            )
        usable[list(examples.refused)] = False
        rows = np.flatnonzero(usable)
        codes = np.searchsorted(self.classes_, labels[rows])
        self._check_emptied(codes, np.ones(len(rows), bool))
        return rows, codes, weights[rows]

    def _balance(
        self, codes: NDArray[np.intp], weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Weights under which all classes weigh the same, where that was asked for."""
        if self.class_weight != "balanced":
            return weights
        totals = np.bincount(codes, weights=weights)
        return np.asarray(weights * (totals.mean() / totals)[codes])

    def _check_emptied(self, codes: NDArray[np.intp], kept: NDArray[np.bool_]) -> None:
        counts = np.bincount(codes[kept], minlength=len(self.classes_))
        if (counts == 0).any():
            empty = self.classes_[int(np.argmin(counts))]
            raise RowError(
                f"class {str(empty)!r} has no usable row left: all of them are empty or were "
                "refused by the LM",
                dict(self.row_errors_),
            )

    def _choose(
        self, gatherer: Gatherer, task: Task, rng: np.random.Generator
    ) -> tuple[PromptPool, dict[str, Any], NDArray[np.intp]]:
        """The prompts to train on, the summary of their choice, and rows they were selected on."""
        return choose(
            self.prompts,
            gatherer,
            task,
            self.n_prompts,
            self.n_screening_rows,
            rng,
            shared_prefixes=self._lm.limits.shares_prefixes,
        )

    def _best_prompts(
        self,
        answers: Answers,
        codes: NDArray[np.intp],
        weights: NDArray[np.float64],
        in_order: bool,
        rng: np.random.Generator,
    ) -> list[int]:
        """The places of the prompts to train with; those made for the task stand in order."""
        n_prompts = len(answers.token_ids)
        if self.max_prompts is None or self.max_prompts >= n_prompts:
            return list(range(n_prompts))
        if in_order:
            return list(range(self.max_prompts))
        return best_prompts(answers, codes, weights, len(self.classes_), self.max_prompts, rng)

    def _task(
        self,
        texts: Sequence[tuple[str, str | None]],
        codes: NDArray[np.intp],
        weights: NDArray[np.float64],
    ) -> Task:
        return Task(
            texts,
            codes,
            self._balance(codes, weights),
            self._names(),
            self.task,
            self._lm.limits,
            self._lm.count_tokens if self._lm.limits.counts_tokens else None,
        )

    def _training_plan(self) -> training.TrainingOptions:
        return training.TrainingOptions(
            algorithm=ALGORITHMS[self.algorithm],
            n_classes=len(self.classes_),
            n_estimators=self.n_estimators,
            learning_rate=self.learning_rate,
            tokens_per_class=self.tokens_per_class,
            cv=self.cv,
            validation_fraction=self.validation_fraction,
            min_token_share=self.min_token_share,
            label_words=self._label_words(),
        )

    def _names(self) -> list[str]:
        """What the classes are called."""
        given = self.class_names or {}
        check_labels("class_names", given, self.classes_.tolist())
        return [str(given.get(label, label)) for label in self.classes_.tolist()]

    def _label_words(self) -> list[list[str]]:
        """For each class the words that speak for it; no classes where none shall."""
        if self.label_words is None:
            return []
        given = {} if isinstance(self.label_words, str) else self.label_words
        return given_words(given, self.classes_.tolist(), self._names())

    def _warn_of_words(self, unspelled: Sequence[int]) -> None:
        """Names may say nothing; words that somebody gave should."""
        given = self.label_words if isinstance(self.label_words, Mapping) else {}
        classes = self.classes_.tolist()
        labels = [classes[c] for c in unspelled if classes[c] in given]
        if labels:
            warnings.warn(
                f"no token that is read spells the label_words of {', '.join(map(repr, labels))}: "
                "give others, or a higher top_k",
                stacklevel=3,
            )

    def _begin(self) -> tuple[dict[int, str], set[int]]:
        """Forget what the last call said of its rows; also return where this one says it.

        A call works with what it got here: another thread may begin one of its own meanwhile.
        """
        row_errors, truncated = dict[int, str](), set[int]()
        self.row_errors_, self.truncated_rows_ = row_errors, truncated
        return row_errors, truncated

    def _refuse_rows(self, reasons: Mapping[int, str], row_errors: dict[int, str]) -> None:
        """Apply the row policy to rows without an answer."""
        row_errors.update(reasons)
        if reasons and self.on_row_error == "raise":
            first = min(reasons)
            others = f" (and {len(reasons) - 1} rows more)" if len(reasons) > 1 else ""
            raise RowError(
                f"row {first}: {reasons[first]}{others}; fix or remove it, or set "
                "on_row_error='abstain'",
                dict(reasons),
            )

    def _set_learned(self, summary: dict[str, Any]) -> None:
        self.training_summary_ = summary
        self.estimators_ = list(self.ensemble_.learners)
        self.estimator_weights_ = np.array([learner.weight for learner in self.estimators_])

    def _labels(self, scores: NDArray[np.float64]) -> NDArray[Any]:
        missing = np.isnan(scores.reshape(len(scores), -1)[:, 0])
        if missing.any() and self.abstain_label is None:
            reasons = dict(self.row_errors_)
            raise RowError(
                f"{int(missing.sum())} rows got no answer (the first is row "
                f"{int(np.flatnonzero(missing)[0])}): set abstain_label to label them",
                reasons,
            )
        labels = self.classes_[argmax_with_ties(np.nan_to_num(scores))]
        if missing.any():
            labels = labels.astype(object)
            labels[missing] = self.abstain_label
        return labels

    def _read(self, X: Any) -> tuple[list[Matrix], NDArray[np.bool_]]:
        """The matrices that the ensemble reads, NaN without an answer; and where there is one."""
        examples = self._readable(X)
        readings = self.ensemble_.readings
        matrices = [
            np.full((len(examples), len(reading.token_ids)), np.nan, np.float32)
            for reading in readings
        ]

        def read(
            lm: BaseBackend, texts: Sequence[Example], rows: NDArray[np.intp]
        ) -> PromptAnswers:
            part = read_matrices(lm, self.prompts_, readings, texts, self.top_k_)
            for matrix, values in zip(matrices, part.matrices, strict=True):
                matrix[rows] = values
            return part

        answered = self._in_chunks(examples, read)
        for matrix in matrices:
            matrix[~answered] = np.nan
        return matrices, answered

    def _predict_settled(self, X: Any, rule: str) -> NDArray[Any]:
        """`predict` that stops early; sets `prompts_asked_`."""
        self._validate_params()
        examples = self._readable(X)
        if rule == "risk" and not self.ensemble_.early_stopping.knows_risk:
            able = " or ".join(name for name, one in ALGORITHMS.items() if one.can_stop_at_risk)
            raise ValueError(
                'this model doesn\'t know at what risk it may stop: use early_stop="exact", or '
                f'train with algorithm="{able}", several prompts, cv, and 20 rows or more'
            )
        codes = np.full(len(examples), -1)
        self.prompts_asked_ = asked = np.zeros(len(examples), np.intp)

        def read(lm: BaseBackend, texts: Sequence[Example], rows: NDArray[np.intp]) -> EarlyStopped:
            part = read_with_early_stopping(
                lm,
                self.prompts_,
                self.ensemble_,
                texts,
                self.top_k_,
                rule,
                shared_prefixes=lm.limits.shares_prefixes,
            )
            codes[rows], asked[rows] = part.codes, part.n_asked
            return part

        answered = self._in_chunks(examples, read)
        scores = np.eye(len(self.classes_))[codes]
        scores[~answered] = np.nan
        return self._labels(scores)

    def _readable(self, X: Any) -> CheckedTexts:
        """Texts that the trained model takes."""
        check_is_fitted(self, "ensemble_")
        examples = check_texts(X)
        if examples.pair != self.prompts_[0].takes_pair:
            kinds = ("pairs", "single texts") if examples.pair else ("single texts", "pairs")
            raise ValueError(f"X holds {kinds[0]} and the model was trained on {kinds[1]}")
        return examples

    def _in_chunks(self, examples: CheckedTexts, read: _Read) -> NDArray[np.bool_]:
        """Have texts read, chunk by chunk, and keep account; also return which got an answer."""
        lm = self.connect()
        row_errors, truncated = self._begin()
        self._refuse_rows(examples.refused, row_errors)
        rows = np.array([row for row in range(len(examples)) if row not in examples.refused])
        started = time.perf_counter()
        paid, _ = self._paid(lm)
        self.prediction_usage_ = usage = Usage()
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            part = read(paid, [examples[row] for row in chunk], chunk)
            truncated |= {int(chunk[place]) for place in part.truncated}
            self.prediction_usage_ = usage = usage + part.usage
            errors = {int(chunk[place]): why for place, why in part.row_errors.items()}
            self._refuse_rows(errors, row_errors)
            if self.callback:
                self.callback("predicting", min(start + _CHUNK, len(rows)), len(rows))
        self.prediction_usage_ = replace(usage, seconds_total=time.perf_counter() - started)
        answered = np.ones(len(examples), bool)
        answered[list(row_errors)] = False
        return answered
