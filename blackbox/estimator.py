"""`PromptBoostingClassifier`: the scikit-learn estimator over `blackbox.fitting` and `Model`.

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
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from blackbox.answers.frames import label_names, labels_of, to_rows, with_names_only
from blackbox.answers.label_sets import has_label_sets, read_label_sets
from blackbox.answers.texts import CheckedTexts, check_texts
from blackbox.boosting import ALGORITHM_NAMES
from blackbox.boosting.early_stopping import RULES
from blackbox.boosting.ensemble import Ensemble
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.clients import Clients, ClientSupport, Engines
from blackbox.explain import explain
from blackbox.fitting.fit import fit
from blackbox.fitting.generate import generate_prompts
from blackbox.fitting.inputs import TrainingRows, check_rows
from blackbox.fitting.multilabel_rows import check_multilabel_rows
from blackbox.fitting.options import FitOptions
from blackbox.generation import GeneratedPool, PromptGenerator, Prompts
from blackbox.model.display import model_html
from blackbox.model.file import write_model
from blackbox.model.model import Evidence, Model, Progress
from blackbox.model.multilabel import MultilabelModel
from blackbox.model.predictions import NO_ANSWER, Predictions
from blackbox.model.reliability import Promise
from blackbox.model.suggestion import suggest
from blackbox.planning import Plan, plan
from blackbox.progress import ProgressDisplay
from blackbox.prompts.pool import PromptPool
from blackbox.protocol import BackendIdentity, Usage
from blackbox.sklearn_compat import (
    CallbackSupport,
    FitTasks,
    Interval,
    StrOptions,
    with_callbacks,
)
from blackbox.store.file import StoreFile

__all__ = ["PromptBoostingClassifier"]


class PromptBoostingClassifier(
    ClientSupport,
    CallbackSupport,
    TransformerMixin,  # type: ignore[misc]
    ClassifierMixin,  # type: ignore[misc]
    BaseEstimator,  # type: ignore[misc]
):
    """A text classifier that boosts the next-token predictions of a black-box language model.

    Each text is put into a few prompts; a verbalizer maps the LM's next tokens to classes; boosting
    weights many such weak learners. The LM itself is never trained. Source of the idea and of
    ``algorithm="samme"``: Hou et al., "PromptBoosting: Black-Box Text Classification with Ten
    Forward Passes", ICML 2023.

    Parameters
    ----------
    backend : str or Backend, optional
        The backend that runs forward passes: a name (`backends.names()`), ``"module:Class"``, or an
        object with the members of `blackbox.protocol.Backend`. Clones share it. By default the
        embedded LM (``"onnx"``), or ``"llamacpp"`` where `model` is a ``.gguf`` file.
    model : str, optional
        Name or path of the LM for the backend; by default the backend's own default.
    backend_options : dict, optional
        Further arguments of a backend given by name. Never put an API key here: backends read keys
        from the environment.
    embeddings : str or Backend, default="auto"
        The embedding model whose vectors are evidence beside the prompts, as an expert of
        ``"logit"`` whose weight cross-validation fits: a name (`backends.embedding_names()`, or a
        model of the catalogue), ``"module:Class"``, or an object with `identity`, `limits` and
        `embed`. ``"auto"`` is the catalogue's all-MiniLM-L6-v2 on this machine for LMs that run in
        this process, and none for all others, whose texts may cost money. None (or ``"none"``) uses
        the LM alone.
    embeddings_model : str, optional
        Name or path of the model, for embeddings given by name.
    embeddings_options : dict, optional
        Further arguments of embeddings given by name; never a key.
    keep_examples : bool, default=False
        Keep the training texts and their vectors in the model, where it reads embeddings, so that
        an explanation shows the nearest labelled ones. Whoever has the model has the texts.
    library : str or Path, optional
        A folder of models of other tasks that were trained with the same LM (`blackbox library`).
        Those that fit the training rows best are an expert of ``"logit"``, whose weight
        cross-validation fits; their prompts come first among the candidates. Training asks each
        prompt that they read about the class names too. The model keeps what it needs of them.
    library_prompts : int, default=0
        Further prompts of the best of these models to ask beside `n_prompts`, at most. A model of
        the library reads those of its prompts alone that are asked.
    prompts : sequence of str or Prompt, path of a pool file, "auto" or PromptGenerator, optional
        The prompts to use. By default `n_prompts` are chosen from the built-in pool by screening on
        training rows. With ``"auto"`` they are generated for the task from training rows alone, in
        4,000 forward passes; a `PromptGenerator` configures that.
    n_prompts : int, default=10
        Number of prompts to choose when `prompts` is not given or ``"auto"``.
    max_prompts : int, optional
        Largest number of prompts in the model: those that complement each other best on the
        training rows are kept. Each prompt costs one forward pass per text in prediction.
    n_screening_rows : int, default=48
        Number of training rows, balanced over the classes, on which candidates are screened. With
        no more rows than that, each fold of ``"logit"`` chooses its own prompts too.
    task : str, optional
        Description of the task in one line, such as "What is the topic of this news?"; it adds
        instruction prompts to the candidates.
    classes : sequence of labels, optional
        The classes, to train on their names without labels: ``fit(texts)``. With labels, those
        that they may be; of an indicator matrix, the labels of its columns.
    languages : str or sequence of str, default="en"
        Languages of the built-in prompts, by their ISO 639 codes
        (`blackbox.languages.LANGUAGES`). ``"auto"`` is English and the common languages of the
        training texts, but for those that the LM doesn't know.
    none_of_these : str, int, float or bool, optional
        The label of texts of none of the classes: `predict` gives it to texts that are more unusual
        than 95% of held-out training rows. Rows with this label in `fit` are examples of such
        texts, and no class; a few of them help much, and there may be none. Takes ``"logit"`` with
        `cv` and 19 labelled rows or more. See docs/none-of-these.md.
    ordered : bool, default=False
        Whether the classes have an order, as stars have: that in which `classes` names them, or
        that of labels that are numbers. `predict` gives the median class then, whose expected
        distance from the right one is least. See docs/method.md#ordered-labels.
    class_names : dict, optional
        A readable name of each class, for prompts; by default those of a data set's `ClassLabel`,
        or the labels, where they are words.
    class_descriptions : dict, optional
        What a class is, in some words, such as "invoices, payments and refunds"; of some labels or
        all. Embeddings and the models of a library read it after the name, wherever they read
        names: most of all without labels. The LM isn't shown it; say it in `task` for that.
    label_words : "names", dict or None, default="names"
        Label words of the classes, which form a prior in ``"logit"``: the words of the class names
        (`class_names`), or a dict from labels to a word or words; a label that is left out keeps
        its name. Cross-validation fits the weight of the prior; without `cv` it is not used. None
        uses no prior.
    algorithm : {"logit", "samme"}, default="logit"
        ``"logit"`` is gradient boosting over soft verbalizers, and more accurate; ``"samme"`` is
        the paper's AdaBoost over hard votes.
    n_estimators : int, optional
        Rounds of boosting; by default 200 for ``"samme"``, and for ``"logit"`` 100, or one per five
        training rows (by weight) where that is more, up to 200, or up to three per class where
        that is more.
    learning_rate : float, default=1.0
        Share of the Newton step that each round of ``"logit"`` makes.
    tokens_per_class : int, default=32
        Tokens per class of a verbalizer of ``"logit"``.
    cv : int or None, default=5
        Folds of the cross-validation that calibrates the probabilities of ``"logit"``, without new
        forward passes; no more than it takes to hold out 2,000 rows are used. With None, or a class
        of a single row, they are not calibrated and overconfident.
    validation_fraction : float, default=0.5
        Share of the training rows held out by ``"samme"`` to choose the number of rounds. With 0
        all rounds are kept.
    top_k : int, default=200
        Number of most likely next tokens that are read per answer; fewer where the backend gives
        fewer.
    min_token_share : float, default=0.1
        Share of training rows in which a token must be reported to be read by ``"logit"``, where
        answers have 200 tokens; in proportion less where they have fewer.
    on_row_error : {"raise", "abstain"}, default="raise"
        How to handle a row that is empty or that the LM refuses. With ``"abstain"`` `fit` leaves it
        out; in prediction its probabilities are NaN and its label is `abstain_label`. The reasons
        are in `row_errors_`.
    abstain_label : object, optional
        The label of rows without an answer; without it `predict` raises a `RowError` for them.
    max_error : float, optional
        The largest share of wrong labels among those that `predict` gives: it withholds the labels
        of texts below a probability that held-out training rows give, and labels them with
        `abstain_label`. See `Model.promise`.
    early_stop : {"exact", "risk"}, optional
        Early stopping: `predict` asks no more prompts about a text once its class is certain
        (``"exact"``, the same labels as with all prompts), or changes with a probability of about
        half a percent (``"risk"``, for cross-validated models of ``"logit"``). Probabilities always
        take all prompts.
    class_weight : dict or "balanced", optional
        Weights of the classes, as in scikit-learn.
    random_state : int, RandomState or None, default=None
        Seed of all random choices. The same seed gives the same model.
    store : path, StoreFile or False, optional
        The store that caches the LM's answers, so that none is paid for twice; by default a file in
        the user's cache directory, or the path in the environment variable `PROMPTBOOSTING_STORE`
        ("off" for no store). False uses no store.
    max_forward_passes, max_tokens, max_cost, max_seconds : number, optional
        Budget of one call of `fit` or of a prediction method: forward passes and tokens that are
        not in the store, US dollars, seconds. Requests beyond it are not sent, and the call raises
        `BudgetError`; all answers are in the store.
    callback : callable, optional
        Called with (stage, done, total) as work progresses. With scikit-learn 1.9, `set_callbacks`
        takes that package's callbacks for `fit`, such as ``sklearn.callback.ProgressBar()``.
    verbose : bool, default=False
        Whether to show progress on standard error: a bar on a terminal and in a notebook, a line
        every ten seconds elsewhere.

    Attributes
    ----------
    model_ : Model
        The trained model; `classes_`, `prompts_`, `ensemble_` and others are its parts.
    classes_ : array of shape (n_classes,)
        The labels.
    feature_names_in_ : str array of shape (n_columns,)
        Names of the columns, where `fit` was given a frame.
    prompts_ : PromptPool
        The prompts that the ensemble reads.
    ensemble_ : Ensemble
        Weak learners, tokens and scales.
    estimator_weights_ : float array of shape (n_learners,)
        The weight of each weak learner.
    token_bytes_ : dict of int to bytes
        The bytes of each token that the ensemble reads.
    lm_identity_ : BackendIdentity
        The LM of the training.
    top_k_ : int
        Number of next tokens that are read per answer.
    training_summary_ : dict
        Figures of the training: rows, rounds, prompts tried, cross-validated losses, coverage of
        the top k.
    usage_ : Usage
        Usage of the last `fit`: forward passes made and cached, tokens, seconds, cost.
    prediction_usage_ : Usage
        Usage of the last prediction.
    prompts_asked_ : int array of shape (n_samples,)
        Number of prompts asked per row in the last prediction; fewer with `early_stop`.
    row_errors_ : dict of int to str
        Rows of the last call without an answer, with the reasons.
    truncated_rows_ : set of int
        Rows of the last call whose text was truncated to fit the LM's context.
    out_of_scope_ : OutOfScope or None
        How unusual the texts of the last prediction are, with `none_of_these`: their scores, and
        their p-values as texts of the known classes.

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

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "backend": "no_validation",  # type: ignore[dict-item]
        "model": [str, Path, None],
        "backend_options": [Mapping, None],
        "embeddings": "no_validation",  # type: ignore[dict-item]
        "embeddings_model": [str, Path, None],
        "embeddings_options": [Mapping, None],
        "keep_examples": ["boolean"],
        "library": [str, Path, None],
        "library_prompts": [Interval(Integral, 0, None, closed="left")],
        "prompts": ["array-like", str, Path, PromptPool, PromptGenerator, None],
        "n_prompts": [Interval(Integral, 1, None, closed="left")],
        "max_prompts": [Interval(Integral, 1, None, closed="left"), None],
        "n_screening_rows": [Interval(Integral, 2, None, closed="left")],
        "task": [str, None],
        "classes": ["array-like", None],
        "none_of_these": [str, Integral, Real, "boolean", None],
        "ordered": ["boolean"],
        "languages": [str, "array-like"],
        "class_names": [Mapping, None],
        "class_descriptions": [Mapping, None],
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
        "max_error": [Interval(Real, 0, 1, closed="neither"), None],
        "early_stop": [StrOptions(set(RULES)), None],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "random_state": ["random_state"],
        "callback": [callable, None],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        backend: Any = None,
        *,
        model: str | Path | None = None,
        backend_options: Mapping[str, Any] | None = None,
        embeddings: Any = "auto",
        embeddings_model: str | Path | None = None,
        embeddings_options: Mapping[str, Any] | None = None,
        keep_examples: bool = False,
        library: str | Path | None = None,
        library_prompts: int = 0,
        prompts: Prompts = None,
        n_prompts: int = 10,
        max_prompts: int | None = None,
        n_screening_rows: int = 48,
        task: str | None = None,
        classes: Sequence[Any] | None = None,
        none_of_these: Any = None,
        ordered: bool = False,
        languages: Sequence[str] | str = "en",
        class_names: Mapping[Any, str] | None = None,
        class_descriptions: Mapping[Any, str] | None = None,
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
        max_error: float | None = None,
        early_stop: str | None = None,
        class_weight: Mapping[Any, float] | str | None = None,
        random_state: Any = None,
        callback: Progress | None = None,
        verbose: bool = False,
    ) -> None:
        self.backend = backend
        self.model = model
        self.backend_options = backend_options
        self.embeddings = embeddings
        self.embeddings_model = embeddings_model
        self.embeddings_options = embeddings_options
        self.keep_examples = keep_examples
        self.library = library
        self.library_prompts = library_prompts
        self.prompts = prompts
        self.n_prompts = n_prompts
        self.max_prompts = max_prompts
        self.n_screening_rows = n_screening_rows
        self.task = task
        self.classes = classes
        self.none_of_these = none_of_these
        self.ordered = ordered
        self.languages = languages
        self.class_names = class_names
        self.class_descriptions = class_descriptions
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
        self.max_error = max_error
        self.early_stop = early_stop
        self.class_weight = class_weight
        self.random_state = random_state
        self.callback = callback
        self.verbose = verbose

    @with_callbacks
    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Return the classifier, trained on labelled texts, or on texts and class names alone.

        Parameters
        ----------
        X : sequence of str, of (text, text_pair), or array or frame with one or two columns
            Texts. A frame is of pandas or polars, a table of Arrow, or a data set of `datasets`,
            and its columns are sequences; see docs/recipes.md.
        y : array-like of shape (n_samples,), optional
            Labels; or, where a text may have several, an indicator matrix of shape (n_samples,
            n_labels), dense or sparse, or a list of labels for each text. A frame names its labels
            by its columns, and `classes` those of a matrix. Without them, and with `classes`, the
            class names are the verbalizers, and the texts tell what the LM likes to say anyway; how
            good that is remains unknown. With `classes`, some labels may be missing (None, NaN):
            those texts tell the same.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the rows; in what is fitted, a weight of 2 counts as a row that occurs twice,
            and weights that sum to 1 as a single row, while the draws of rows for screening and for
            folds don't depend on weights. A row of weight 0 is left out; texts without a label
            count alike otherwise.
        groups : array-like of shape (n_samples,), optional
            Which rows belong together, such as texts of one customer or one thread. Rows of one
            group are not independent, so cross-validation never holds one out and trains on
            another. Copies of a text are of one group anyway. A row whose group is missing (None,
            NaN) is one of its own.

        Raises
        ------
        ValueError, TypeError
            On bad arguments, fewer than two classes, or rows that are not texts.
        RowError
            On rows that are empty or that the LM refuses, under ``on_row_error="raise"``.
        DataError
            If the LM's answers don't fit in memory (checked before anything is spent), or the
            matrices made of them.
        BackendError
            If the LM can't be reached or can't serve the prompts.
        BudgetError
            If a budget is reached. With a store, the same call resumes from there.
        """
        started = time.perf_counter()
        tasks = FitTasks(self, X, y)
        rng, options, rows = self._begin(X, y, sample_weight, groups)
        columns = self._columns_of(X)
        clients, engines = self._training_clients(rows, options)
        try:
            result = fit(
                rows,
                clients.lm,
                options,
                rng,
                writer=clients.writer,
                embedder=clients.embedder,
                progress=self._progress(tasks),
            )
        finally:
            self.usage_ = clients.usage(started)
        self._set_trained(result.model, columns, engines)
        tasks.end(model_=result.model)
        self.row_errors_, self.truncated_rows_ = result.row_errors, result.truncated_rows
        return self

    def plan(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> Plan:
        """Return the estimated cost of `fit` on these texts, by a dry run.

        The number of forward passes is exact if the LM refuses no row. Where prompts are still to
        be chosen, tokens are a range. A free LM is probed with a few passes, to measure time; that
        of an API comes from the requests that it has answered, at least those of its own probe.

        Parameters
        ----------
        X, y, sample_weight, groups
            As for `fit`. If `random_state` is not an int, `fit` draws other rows.
        """
        rng, options, rows = self._begin(X, y, sample_weight, groups)
        started = time.perf_counter()
        clients, engines = self._training_clients(rows, options)
        seconds_loading = time.perf_counter() - started
        return plan(
            rows,
            clients.lm,
            options,
            rng,
            writer=clients.writer,
            embedder=clients.embedder,
            probe=engines.lm,
            embedder_probe=engines.embedder,
            seconds_loading=seconds_loading,
        )

    def generate_prompts(
        self,
        X: Any,
        y: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
        groups: ArrayLike | None = None,
    ) -> GeneratedPool:
        """Return a prompt pool generated from labelled texts, as by ``prompts="auto"`` in `fit`.

        The same rows, parameters and seed give the same pool. `usage_` has its cost.

        Parameters
        ----------
        X, y, sample_weight, groups
            As for `fit`.
        """
        started = time.perf_counter()
        rng, options, rows = self._begin(X, y, sample_weight, groups)
        clients, _ = self._training_clients(rows, options, embeds=False)
        try:
            return generate_prompts(
                rows, clients.lm, options, rng, writer=clients.writer, progress=self._progress()
            )
        finally:
            self.usage_ = clients.usage(started)

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return scores of shape (n_samples, n_classes), or (n_samples,) for two classes.

        NaN for rows without an answer under ``on_row_error="abstain"``.
        """
        return self._predict(X).scores

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class probabilities of shape (n_samples, n_classes), columns as in `classes_`.

        Where texts have several labels, each probability is of its own, and rows have no sum of 1.
        NaN for rows without an answer under ``on_row_error="abstain"``.
        """
        probabilities = self._predict(X).probabilities
        assert probabilities is not None
        return probabilities

    def predict_log_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the natural logarithms of `predict_proba`."""
        with np.errstate(divide="ignore"):
            return np.asarray(np.log(self.predict_proba(X)))

    def predict(self, X: Any) -> Any:
        """Return the most probable class of each text, or all of its labels.

        Returns
        -------
        array of shape (n_samples,), or what `fit` was given
            Where texts have several labels: an int indicator matrix of shape (n_samples, n_labels)
            after `fit` with a matrix, and a list of tuples of labels after `fit` with lists. A text
            has the labels whose probability is above ``model_.thresholds``.

        Raises
        ------
        RowError
            If a row got no answer and there is no `abstain_label`.
        ValueError
            Under ``early_stop="risk"``, if the model was trained without its thresholds. If
            `max_error` can't be promised, or is given with `early_stop` or without `abstain_label`.
        """
        promise = self._promise()  # before anything is asked
        if promise is None:
            return self._predict(X, self.early_stop).labels(self.abstain_label)
        return self._predict(X).keeping(promise).labels(self.abstain_label)

    def score(self, X: Any, y: Any, sample_weight: ArrayLike | None = None) -> float:
        """Return the accuracy on texts; of several labels per text the share whose all are right.

        Parameters
        ----------
        X : sequence of str, of (text, text_pair), or array or frame with one or two columns
            Texts.
        y : as for `fit`
            Their labels.
        sample_weight : array-like of shape (n_samples,), optional
            Weights of the texts.

        Raises
        ------
        RowError
            If a row got no answer and there is no `abstain_label`; with one, the row is wrong.
        """
        check_is_fitted(self, "model_")
        if not isinstance(self.model_, MultilabelModel):
            return float(super().score(X, labels_of(y), sample_weight))
        truth = read_label_sets(labels_of(y), self.classes_.tolist()).targets
        check_consistent_length(X, truth, sample_weight)
        predictions = self._predict(X)
        if self.abstain_label is None:
            predictions.labels()  # raises for a row without an answer, as `predict` does
        right = (truth == predictions.codes).all(axis=1)
        weights = None if sample_weight is None else np.asarray(sample_weight, np.float64)
        return float(np.average(right, weights=weights))

    def predict_set(self, X: Any, coverage: float = 0.9) -> NDArray[np.bool_]:
        """Return the prediction set of each text: the classes among which the right one is.

        Parameters
        ----------
        X : sequence of str, of (text, text_pair), or array or frame with one or two columns
            Texts.
        coverage : float, default=0.9
            The share of texts whose set holds the right class; see `Model.prediction_sets`.

        Returns
        -------
        bool array of shape (n_samples, n_classes)
            Columns as in `classes_`; no class for rows without an answer.

        Raises
        ------
        ValueError
            If the model has too few held-out rows for that; before anything is asked.
        """
        check_is_fitted(self, "model_")
        self.model_.prediction_sets(np.empty((0, len(self.classes_))), coverage)
        return self.model_.prediction_sets(self.predict_proba(X), coverage)

    def suggest(self, X: Any, n: int = 20) -> NDArray[np.intp]:
        """Return the rows of the texts to label next, by what their labels would teach.

        Each stands for a cluster of texts, and clusters of which the model is uncertain come first;
        see `blackbox.model.suggestion`. Texts that the model was trained on with a label, copies,
        and texts without an answer are left out.

        Parameters
        ----------
        X : sequence of str, of (text, text_pair), or array or frame with one or two columns
            Texts without labels. All are put to the LM: draw some of very many.
        n : int, default=20
            Number of texts to choose.

        Returns
        -------
        int array of shape (n,)
            Indices into `X`, first the text to label first; fewer if there are no more.

        Raises
        ------
        RowError
            If a row got no answer, under ``on_row_error="raise"``.
        """
        clients, examples = self._clients_for(X)
        found = suggest(
            self.model_,
            clients.lm,
            examples,
            n,
            embedder=clients.embedder,
            on_row_error=self.on_row_error,
            progress=self._progress(),
        )
        self.row_errors_, self.truncated_rows_ = found.row_errors, found.truncated_rows
        self.prediction_usage_ = found.usage
        return found.rows

    def labels_from_proba(self, probabilities: NDArray[np.float64]) -> Any:
        """Return the labels that `predict` gives, from the result of `predict_proba`.

        Raises
        ------
        ValueError
            With `none_of_these`, as probabilities don't tell which texts are of none of the
            classes. If `max_error` can't be promised, or takes another option.
        """
        check_is_fitted(self, "model_")
        if self.model_.out_of_scope is not None:
            raise ValueError(
                "probabilities don't tell which texts are of none of the classes, which this model "
                "notices: use predict"
            )
        codes, promise = self.model_.codes_of_probabilities(probabilities), self._promise()
        if promise is not None:
            codes[list(promise.withheld(probabilities))] = NO_ANSWER
        return self.model_.labels_of(codes, self.abstain_label, {})

    def staged_decision_function(self, X: Any) -> Iterator[NDArray[np.float64]]:
        """Yield `decision_function` after each weak learner, all from one set of forward passes.

        The first learners of ``"logit"`` are the class-name prior (`label_words`), one per prompt:
        ``training_summary_["n_names"]`` is their number.
        """
        _, evidence = self._read_for_stages(X)
        yield from self.model_.staged_scores(evidence)

    def staged_predict(self, X: Any) -> Iterator[NDArray[Any]]:
        """Yield `predict` after each weak learner, all from one set of forward passes.

        Raises
        ------
        ValueError
            With `none_of_these` or `max_error`, which take the whole model; before anything is
            asked.
        """
        check_is_fitted(self, "model_")
        whole = self.model_.out_of_scope is not None or self.max_error is not None
        if whole and not self.model_.several_labels:
            raise ValueError(
                "none_of_these and max_error take the whole model, so its stages have no labels: "
                "use staged_decision_function"
            )
        predictions, evidence = self._read_for_stages(X)
        for scores in self.model_.staged_scores(evidence):
            codes = self.model_.codes_of(scores)
            yield self.model_.labels_of(codes, self.abstain_label, predictions.row_errors)

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Return the log-probabilities that the ensemble reads: (n_samples, n_features).

        No value is below its prompt's floor. NaN for rows without an answer under
        ``on_row_error="abstain"``.
        """
        return np.concatenate(self._read(X)[1].matrices, axis=1)

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
        clients = self._clients()
        return explain(self.model_, clients.lm, text, clients.embedder)

    def save(self, path: str | Path) -> None:
        """Write the trained model to a file: a small zip of JSON and arrays, without pickle."""
        check_is_fitted(self, "model_")
        write_model(path, self.model_)

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
        """Weak learners, tokens and scales."""
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
        """The LM of the training."""
        return self.model_.identity

    @property
    def top_k_(self) -> int:
        """Number of next tokens that are read per answer."""
        return self.model_.top_k

    @property
    def training_summary_(self) -> dict[str, Any]:
        """Figures of the training."""
        return self.model_.summary

    def _begin(
        self, X: Any, y: ArrayLike | None, sample_weight: ArrayLike | None, groups: ArrayLike | None
    ) -> tuple[np.random.Generator, FitOptions, TrainingRows]:
        """Check parameters and rows, as `fit`, `plan` and `generate_prompts` do first."""
        self._validate_params()
        rng = np.random.default_rng(check_random_state(self.random_state).randint(2**31))
        options = FitOptions(**{one.name: getattr(self, one.name) for one in fields(FitOptions)})
        if self.classes is not None:
            options = replace(options, classes=np.asarray(labels_of(self.classes), object).tolist())
        labels, weights, groups = labels_of(y), to_rows(sample_weight), to_rows(groups)
        if self.class_names is None:
            names = label_names(y, labels, weights, options.classes)
            names.pop(self.none_of_these, None)
            options = replace(options, class_names=names or None)
        if has_label_sets(labels):
            several, options = check_multilabel_rows(X, labels, weights, groups, options)
            return rng, options, several
        rows = check_rows(X, labels, weights, groups, options)
        return rng, options, rows.enough()

    def _columns_of(self, X: Any) -> NDArray[np.object_] | None:
        """Return the names of a frame's columns, checked as scikit-learn does; None without any."""
        blank = copy.copy(self)  # a `fit` that fails leaves the names of the last one
        _validate_names(blank, X, reset=True)
        return getattr(blank, "feature_names_in_", None)

    def _set_trained(
        self, model: Model, columns: NDArray[np.object_] | None, engines: Engines
    ) -> None:
        """Set all that a training leaves, together, once it has succeeded."""
        self.model_ = model
        self._set_engines(engines)
        if columns is not None:
            self.feature_names_in_ = columns
            model.summary["columns"] = columns.tolist()
        elif hasattr(self, "feature_names_in_"):
            del self.feature_names_in_

    def _check_columns(self, X: Any) -> None:
        """Compare the names of a frame's columns with those of the training.

        As every estimator of scikit-learn: other names are an error, and none a warning. Where
        `fit` saw none, there is nothing to compare.
        """
        if hasattr(self, "feature_names_in_"):
            _validate_names(self, X, reset=False)

    def _clients_for(self, X: Any) -> tuple[Clients, CheckedTexts]:
        """Connect what a prediction asks, after a check of its texts."""
        check_is_fitted(self, "model_")
        examples = check_texts(X)
        self._check_columns(X)
        return self._clients(), examples

    def _predict(self, X: Any, early_stop: str | None = None) -> Predictions:
        clients, examples = self._clients_for(X)
        predictions = self.model_.predict(
            clients.lm,
            examples,
            early_stop,
            embedder=clients.embedder,
            on_row_error=self.on_row_error,
            progress=self._progress(),
        )
        return self._remember(predictions)

    def _read(self, X: Any) -> tuple[Predictions, Evidence]:
        clients, examples = self._clients_for(X)
        predictions, evidence = self.model_.read(
            clients.lm,
            examples,
            embedder=clients.embedder,
            on_row_error=self.on_row_error,
            progress=self._progress(),
        )
        return self._remember(predictions), evidence

    def _promise(self) -> Promise | None:
        """Return what `max_error` promises, after a check of what it takes; None without it."""
        if self.max_error is None:
            return None
        check_is_fitted(self, "model_")
        self._validate_params()
        if self.early_stop is not None:
            raise ValueError("max_error takes probabilities, and early_stop gives none: set one")
        if self.abstain_label is None:
            raise ValueError("max_error withholds labels: set abstain_label to put in their place")
        return self.model_.promise(self.max_error)

    def _read_for_stages(self, X: Any) -> tuple[Predictions, Evidence]:
        """Return what `_read` does; raise before anything is asked where there are no stages."""
        check_is_fitted(self, "model_")
        if self.model_.several_labels:
            raise ValueError("there are no stages of several labels: each is boosted for itself")
        return self._read(X)

    def _progress(self, tasks: FitTasks | None = None) -> Progress | None:
        """Return what is called as work progresses, if anything is."""
        shown = ProgressDisplay() if self.verbose else None
        called = [one for one in (self.callback, shown, tasks or None) if one is not None]

        def call_all(stage: str, done: int, total: int) -> None:
            for one in called:
                one(stage, done, total)

        return call_all if called else None

    def _remember(self, predictions: Predictions) -> Predictions:
        """Set the attributes that describe the last prediction."""
        self.row_errors_ = predictions.row_errors
        self.truncated_rows_ = predictions.truncated_rows
        self.prompts_asked_ = predictions.prompts_asked
        self.out_of_scope_ = predictions.out_of_scope
        self.prediction_usage_ = predictions.usage
        return predictions

    def __sklearn_clone__(self) -> Self:
        # engine and callback are shared and never copied, even where their class allows copies
        bare = copy.copy(self)
        bare.backend = bare.callback = bare.embeddings = None
        cloned: Self = super(PromptBoostingClassifier, bare).__sklearn_clone__()
        cloned.backend, cloned.callback = self.backend, self.callback
        cloned.embeddings = self.embeddings
        return cloned

    def _repr_html_inner(self) -> str:
        return str(super()._repr_html_inner()) + self._model_html()

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        bundle: dict[str, str] = super()._repr_mimebundle_(**kwargs)
        if "text/html" in bundle:
            bundle["text/html"] += self._model_html()
        return bundle

    def _model_html(self) -> str:
        """Return the trained model as HTML, shown below scikit-learn's table of parameters."""
        return model_html(self.model_) if hasattr(self, "model_") else ""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.string = True
        tags.target_tags.required = True
        tags.classifier_tags.multi_label = True
        tags.transformer_tags.preserves_dtype = []  # texts have none
        tags.non_deterministic = False
        return tags


def _validate_names(estimator: BaseEstimator, X: Any, *, reset: bool) -> None:
    validate_data(
        estimator, with_names_only(X), reset=reset, skip_check_array=True, ensure_2d=False
    )
