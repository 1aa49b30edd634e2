"""`PromptBoostingClassifier`: the scikit-learn face of `blackbox.fitting` and `blackbox.model`.

Parameters, tags, cloning and representation; training is in `blackbox.fitting`, prediction in
`blackbox.model.model`.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from blackbox import fitting
from blackbox.answers.features import Matrix
from blackbox.backend import BaseBackend, as_backend
from blackbox.boosting import ALGORITHM_NAMES
from blackbox.boosting.early_stopping import RULES
from blackbox.boosting.ensemble import Ensemble
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.explain import explain
from blackbox.fit_inputs import FitOptions, TrainingRows, check_rows
from blackbox.generation import GeneratedPool, PromptGenerator, Prompts, generator_of
from blackbox.lm.budgets import Budget, Meter
from blackbox.lm.client import with_store_and_budget
from blackbox.lm.connect import check_identity, connect
from blackbox.model.display import model_html
from blackbox.model.file import write_model
from blackbox.model.model import Model, Predictions, Progress, labels_of
from blackbox.planning import Plan, plan
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import BackendIdentity, Usage
from blackbox.store.file import StoreFile

__all__ = ["PromptBoostingClassifier"]


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
    model_ : Model
        What was trained; `classes_`, `prompts_`, `ensemble_` and the like are its parts.
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

    model_: Model
    usage_: Usage

    # of this process alone: neither parameters nor part of a pickle
    _lm: BaseBackend | None = None
    _allow_other_lm: bool = False

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
        callback: Progress | None = None,
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
        rng, options, rows = self._begin(X, y, sample_weight)
        lm, writer = self._with_store_and_budget(self._connect())
        try:
            result = fitting.fit(rows, lm, options, rng, writer=writer, progress=self.callback)
        finally:
            self.usage_ = _usage(lm, writer, started)
        self.model_ = result.model
        self.row_errors_, self.truncated_rows_ = result.row_errors, result.truncated_rows
        return self

    def plan(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Plan:
        """Estimate what `fit` on these texts will take, without the LM's answers.

        Forward passes are exact, as long as the LM refuses no row. Where prompts are to be chosen,
        which ones is not known yet, and tokens are a range. An LM that costs nothing is asked for a
        few passes, to learn how long they take.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`. A `random_state` that is no seed draws other rows in `fit`.
        """
        rng, options, rows = self._begin(X, y, sample_weight)
        probe = self._connect()
        lm, writer = self._with_store_and_budget(probe)
        return plan(rows, lm, options, rng, writer=writer, probe=probe)

    def generate_prompts(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> GeneratedPool:
        """Make a prompt pool out of labelled texts, as `fit` does with ``prompts="auto"``.

        The same rows, parameters and seed make the same pool. `usage_` is what it took.

        Parameters
        ----------
        X, y, sample_weight
            As for `fit`.
        """
        started = time.perf_counter()
        rng, options, rows = self._begin(X, y, sample_weight)
        lm, writer = self._with_store_and_budget(self._connect())
        try:
            return fitting.generate_prompts(
                rows, lm, options, rng, writer=writer, progress=self.callback
            )
        finally:
            self.usage_ = _usage(lm, writer, started)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return scores of shape (n_samples, n_classes), or (n_samples,) for two classes.

        NaN for rows without an answer under ``on_row_error="abstain"``.
        """
        return self._predict(X).scores

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities of shape (n_samples, n_classes), columns as in `classes_`.

        NaN for rows without an answer under ``on_row_error="abstain"``.
        """
        probabilities = self._predict(X).probabilities
        assert probabilities is not None
        return probabilities

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text.

        Raises
        ------
        RowError
            If a row got no answer and there is no `abstain_label`.
        ValueError
            If the model doesn't know at what risk it may stop, under ``early_stop="risk"``.
        """
        return self._predict(X, self.early_stop).labels(self.abstain_label)

    def labels_from_proba(self, probabilities: NDArray[np.float64]) -> NDArray[Any]:
        """Return the labels that `predict` gives, from what `predict_proba` returned."""
        return self._labels(probabilities, {})

    def staged_decision_function(self, X: Any) -> Iterator[NDArray[np.float64]]:
        """Yield `decision_function` after each weak learner, all from one set of forward passes.

        The first learners of ``"logit"`` are the class-name prior (`label_words`), one per prompt:
        `training_summary_` has their number as ``n_names``.
        """
        _, matrices = self._read(X)
        yield from self.model_.staged_scores(matrices)

    def staged_predict(self, X: Any) -> Iterator[NDArray[Any]]:
        """Yield `predict` after each weak learner, all from one set of forward passes."""
        predictions, matrices = self._read(X)
        for scores in self.model_.staged_scores(matrices):
            yield self._labels(scores, predictions.row_errors)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the log-probabilities that the ensemble reads: (n_samples, n_features).

        None is below its prompt's floor. NaN for rows without an answer under
        ``on_row_error="abstain"``.
        """
        return np.concatenate(self._read(X)[1], axis=1)

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[np.object_]:
        """Return a name for each column of `transform`: prompt, token id and token."""
        check_is_fitted(self, "model_")
        return np.array(
            [
                f"prompt{prompt}_{token}_{self.token_bytes_[token].decode('utf-8', 'replace')}"
                for prompt, reading in enumerate(self.ensemble_.readings)
                for token in reading.token_ids.tolist()
            ],
            dtype=object,
        )

    def explain(self, text: Any) -> dict[str, Any]:
        """Explain the prediction for one text; see `blackbox.explain.explain`."""
        lm = self._client()
        return explain(self.model_, lm, text)

    def save(self, path: str | Path) -> None:
        """Write the trained model: a small zip of readable JSON and plain arrays, no pickle."""
        check_is_fitted(self, "model_")
        write_model(path, self.model_)

    def connect(self) -> BaseBackend:
        """Return the LM; of a trained classifier, after a check that it was trained with it.

        Raises
        ------
        BackendIdentityError
            If another LM answers.
        """
        if self._lm is None:
            lm = connect(self.backend, self.model, self.backend_options)
            if hasattr(self, "model_") and not self._allow_other_lm:
                check_identity(self.lm_identity_, lm)
            self._lm = lm
        return self._lm

    @property
    def classes_(self) -> NDArray[Any]:
        """The labels."""
        return self.model_.classes

    @property
    def prompts_(self) -> PromptPool:
        """The prompts that the ensemble reads."""
        return self.model_.prompts

    @property
    def ensemble_(self) -> Ensemble:
        """Learners, tokens and scales."""
        return self.model_.ensemble

    @property
    def estimators_(self) -> list[WeakLearner]:
        """The weak learners."""
        return list(self.model_.ensemble.learners)

    @property
    def estimator_weights_(self) -> NDArray[np.float64]:
        """The weight of each weak learner."""
        return np.array([learner.weight for learner in self.model_.ensemble.learners])

    @property
    def token_bytes_(self) -> dict[int, bytes]:
        """The bytes of each token that the ensemble reads."""
        return self.model_.token_bytes

    @property
    def lm_identity_(self) -> BackendIdentity:
        """The LM that was trained with."""
        return self.model_.identity

    @property
    def top_k_(self) -> int:
        """Next tokens that are read of each answer."""
        return self.model_.top_k

    @property
    def training_summary_(self) -> dict[str, Any]:
        """How training went."""
        return self.model_.summary

    def _begin(
        self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None
    ) -> tuple[np.random.Generator, FitOptions, TrainingRows]:
        """Check parameters and rows; `fit`, `plan` and `generate_prompts` begin with it."""
        self._validate_params()
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        options = FitOptions(**{one.name: getattr(self, one.name) for one in fields(FitOptions)})
        return rng, options, check_rows(X, y, sample_weight, options)

    def _connect(self) -> BaseBackend:
        """The LM to train with."""
        self._lm = connect(self.backend, self.model, self.backend_options)
        return self._lm

    def _with_store_and_budget(self, lm: BaseBackend) -> tuple[BaseBackend, BaseBackend | None]:
        """The LM behind its store and its budget, and one that writes prompts, if it is another.

        Both share one budget.
        """
        budget = Budget(self.max_forward_passes, self.max_tokens, self.max_cost, self.max_seconds)
        meter = Meter(budget)
        generator = generator_of(self.prompts)
        writer = None if generator is None else generator.writer
        return (
            with_store_and_budget(lm, self.store, budget, meter),
            None
            if writer is None
            else with_store_and_budget(as_backend(writer), self.store, budget, meter),
        )

    def _predict(self, X: Any, early_stop: str | None = None) -> Predictions:
        lm = self._client()
        predictions = self.model_.predict(
            lm, X, early_stop, on_row_error=self.on_row_error, progress=self.callback
        )
        return self._remember(predictions)

    def _read(self, X: Any) -> tuple[Predictions, list[Matrix]]:
        lm = self._client()
        predictions, matrices = self.model_.read(
            lm, X, on_row_error=self.on_row_error, progress=self.callback
        )
        return self._remember(predictions), matrices

    def _client(self) -> BaseBackend:
        """The LM of a prediction, behind its store and its budget."""
        check_is_fitted(self, "model_")
        self._validate_params()
        return self._with_store_and_budget(self.connect())[0]

    def _remember(self, predictions: Predictions) -> Predictions:
        """Set the attributes that describe the last prediction."""
        self.row_errors_ = predictions.row_errors
        self.truncated_rows_ = predictions.truncated_rows
        self.prompts_asked_ = predictions.prompts_asked
        self.prediction_usage_ = predictions.usage
        return predictions

    def _labels(self, scores: NDArray[np.float64], row_errors: dict[int, str]) -> NDArray[Any]:
        codes = self.model_.codes_of(scores)
        return labels_of(self.classes_, codes, self.abstain_label, row_errors)

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
        return str(super()._repr_html_inner()) + self._model_html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle: dict[str, str] = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] += self._model_html()
        return bundle

    def _model_html(self) -> str:
        """The trained model, below scikit-learn's own picture of the parameters."""
        return model_html(self.model_) if hasattr(self, "model_") else ""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = []  # texts have none
        tags.non_deterministic = False
        return tags


def _usage(lm: BaseBackend, writer: BaseBackend | None, started: float) -> Usage:
    """What one or two LMs took since they were reached."""
    usage = lm.usage if writer is None else lm.usage + writer.usage
    return replace(usage, seconds_total=time.perf_counter() - started)
