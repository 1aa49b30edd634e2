"""Training from end to end: labelled rows, a language model and options become a `Model`.

`fit`, `generate_prompts` and `blackbox.planning.plan` share their first half: rows are checked
(`blackbox.fit_inputs`), and a `Run` states the task and gathers answers of the LM. A plan goes
through the same steps over a stand-in for the LM.
"""

from __future__ import annotations

import functools
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.answers.texts import raise_row_errors, row_digests
from blackbox.assessment import assess, warnings_of
from blackbox.backend import BaseBackend
from blackbox.boosting import training
from blackbox.boosting.ensemble import Ensemble
from blackbox.boosting.label_words import FEW_LABELS
from blackbox.boosting.names_only import SourcesRead, train_on_names
from blackbox.boosting.splits import groups_per_class
from blackbox.errors import BackendError
from blackbox.experts.base import ExpertInput
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.examples import KeptExamples
from blackbox.experts.vectors import Vectors
from blackbox.fit_evidence import (
    TrainingVectors,
    can_weigh_experts,
    names_for_experts,
    read_training_vectors,
    reads_embeddings,
    shows_nearest,
)
from blackbox.fit_inputs import FitOptions, TrainingRows
from blackbox.generation import (
    GeneratedPool,
    PromptGenerator,
    Task,
    best_prompts,
    generator_of,
    named_prompts,
    show_nearest_rows,
)
from blackbox.generation.choose import choose, choose_by_names
from blackbox.library.folder import Library
from blackbox.library.sources import (
    Ranked,
    Sources,
    best_of,
    expert_input,
    summarise,
    with_sources_kept,
)
from blackbox.library.unlabelled import read_without_labels
from blackbox.lm.prices import price_of, rate_of
from blackbox.model.model import Model, Progress
from blackbox.model.reliability import HeldOutRows
from blackbox.prompts.pool import PromptPool
from blackbox.spending import stopping_at_refusals

__all__ = [
    "FitResult",
    "Run",
    "fit",
    "generate_prompts",
    "usable_top_k",
]

_log = logging.getLogger(__name__)

_LOW_COVERAGE = 0.3
_DEFAULT_TOP_K = 200
_SCREENED_WEIGHT = 0.25  # in calibration, of rows by which the prompts were chosen


@dataclass(frozen=True)
class FitResult:
    """A trained model, and what happened to the rows.

    Parameters
    ----------
    model : Model
        What was trained.
    row_errors : dict of int to str
        Rows that were left out, with the reasons.
    truncated_rows : set of int
        Rows whose text was truncated to fit the LM's context.
    """

    model: Model
    row_errors: dict[int, str]
    truncated_rows: set[int]


def usable_top_k(lm: BaseBackend, top_k: int) -> int:
    """Return how many tokens of each answer can be read; logs where they are fewer than asked.

    Raises
    ------
    BackendError
        If the LM gives no log-probabilities.
    """
    most = lm.limits.max_top_k
    if most < 1:
        raise BackendError(f"{lm!r} gives no log-probabilities (max_top_k={most})")
    if top_k > most:
        _warn_of_lowered(top_k, most)
    return min(top_k, most)


@functools.cache  # once, and not for each fit of a cross-validation
def _warn_of_lowered(top_k: int, most: int) -> None:
    # nobody asked for the default, and most APIs give fewer
    level = logging.INFO if top_k == _DEFAULT_TOP_K else logging.WARNING
    _log.log(level, "top_k=%d lowered to %d: the backend gives no more", top_k, most)


class Run:
    """What `fit`, `plan` and `generate_prompts` do first: state the task over some rows and an LM.

    Parameters
    ----------
    rows : TrainingRows
        The rows.
    lm : BaseBackend
        The LM, behind its store and its budget, or a stand-in.
    top_k : int
        Next tokens to read of each answer.
    options : FitOptions
        How to train.
    writer : BaseBackend, optional
        The LM that writes prompts, where it is another.
    progress : callable, optional
        Called with (stage, done, total).
    """

    def __init__(
        self,
        rows: TrainingRows,
        lm: BaseBackend,
        top_k: int,
        options: FitOptions,
        writer: BaseBackend | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.rows, self.options = rows, options
        self.prompts = options.prompts
        self.prefix_price = _prefix_price(lm)
        self.sources = self._sources(lm)
        self.gatherer = Gatherer(lm, rows.texts, top_k, progress, writer, self._raise_refused)
        self.names = Gatherer(lm, names_for_experts(rows, options), top_k)
        self.names.are_candidates = True  # a refused name is no reason to stop
        self.unlabelled = Gatherer(lm, rows.unlabelled, top_k, progress)
        self.unlabelled.are_candidates = True  # nor is a text that isn't trained on
        self.task = Task(
            rows.texts,
            rows.codes,
            options.balanced(rows.codes, rows.weights),
            options.names(rows.classes),
            options.task,
            lm.limits,
            lm.count_tokens if lm.limits.counts_tokens else None,
            rows.groups,
            self.sources.prompts(),
        )

    def _sources(self, lm: BaseBackend) -> Sources:
        """Return the models of other tasks to start from."""
        folder = self.options.library
        if folder is None:
            return Sources()
        boosting = self.options.boosting(self.rows.classes)
        if not boosting.algorithm.uses_experts:
            raise ValueError(
                f"a library has nothing for {boosting.algorithm.name}, which weighs no experts: "
                "train with logit"
            )
        sources = Sources.of(Library.read(folder), lm.identity, self.rows.texts)
        for name, why in sources.refused.items():
            _log.warning("%s: the source %r is not used: %s", folder, name, why)
        if self.rows.is_labelled and not can_weigh_experts(self.rows, self.options):
            _log.warning(
                "%s: no source is used: there are no two rows of each class, to weigh them by",
                folder,
            )
            return Sources(refused=sources.refused)
        return sources

    def name_answers(self, pool: PromptPool) -> Answers | None:
        """Return the answers to the names of the classes, under the prompts that sources read.

        None where there is no source, names aren't used, or one was refused.
        """
        shared = self.sources.shared(pool)
        if shared is None or not self.names.texts:
            return None
        answers = self.names.answers(shared)
        return None if answers.row_errors else answers

    def unlabelled_answers(self, pool: PromptPool) -> Answers | None:
        """Return the answers to texts without labels; None where there are none."""
        if not self.rows.unlabelled:
            return None
        answers = self.unlabelled.answers(pool, stage="texts without labels")
        kept = [row for row in range(len(self.rows.unlabelled)) if row not in answers.row_errors]
        return answers.take_rows(np.array(kept, int)) if kept else None

    def kept_rows(
        self, answers: Answers, vectors: Vectors | None
    ) -> tuple[NDArray[np.bool_], dict[int, str]]:
        """Return which rows got all their answers, and the reasons of the others.

        Raises
        ------
        RowError
            On rows that the LM or the embedding model refuses, under ``on_row_error="raise"``, or
            if a class has none left.
        """
        rows = self.rows
        unanswered = answers.row_errors | (vectors.row_errors if vectors else {})
        refused = {int(rows.positions[place]): why for place, why in unanswered.items()}
        raise_row_errors(refused, self.options.on_row_error)
        row_errors = rows.row_errors | refused
        kept = np.array([place not in unanswered for place in range(len(rows.texts))], bool)
        rows.check_classes(kept, row_errors)
        return kept, row_errors

    def with_library_prompts(self, pool: PromptPool) -> PromptPool:
        """Return a pool with further prompts, of the sources that fit the task best."""
        if not self.options.library_prompts or not self.sources.models:
            return pool
        answers, names = self.gatherer.answers(pool), self.name_answers(pool)
        kept = np.array(
            [n for n in range(len(self.rows.texts)) if n not in answers.row_errors], int
        )
        codes, weights = self.rows.codes[kept], self.rows.weights[kept]
        ranked = self.sources.rank(
            pool,
            answers.take_rows(kept),
            codes,
            self.options.balanced(codes, weights),
            len(self.task.names),
            names,
        )
        further = [
            prompt
            for prompt in self.sources.further_prompts(ranked, pool)
            if self.task.serves(prompt) and self.task.fits(prompt)
        ]
        return PromptPool([*pool, *further[: self.options.library_prompts]])

    def _raise_refused(self, refused: Mapping[int, str]) -> None:
        given = {int(self.rows.positions[place]): why for place, why in refused.items()}
        raise_row_errors(given, self.options.on_row_error)

    def show_nearest(
        self, vectors: Vectors | None, rng: np.random.Generator
    ) -> KeptExamples | None:
        """Fill the slots `{nearest: K}` of the prompts; return the rows that new texts are shown.

        None if no prompt has the slot.

        Raises
        ------
        ValueError
            If one has it, and there are no embeddings or too few rows of a class.
        """
        if not shows_nearest(self.options):
            return None
        if vectors is None:
            raise ValueError(
                "prompts with {nearest: K} find texts by sentence embeddings, and there are none: "
                "name an embedding model (embeddings=, --embeddings)"
            )
        pool = named_prompts(self.options.prompts)
        assert pool is not None
        self.prompts, kept = show_nearest_rows(pool, self.task, vectors.values, rng)
        return kept

    def choose(
        self, rng: np.random.Generator
    ) -> tuple[PromptPool, dict[str, Any], NDArray[np.intp]]:
        """Choose the prompts to train on; see `blackbox.generation.choose.choose`."""
        few = self.rows.unlabelled and self.rows.fewest < FEW_LABELS
        if not self.rows.is_labelled or (few and generator_of(self.prompts) is None):
            pool, summary = choose_by_names(
                self.prompts,
                self.gatherer if not self.rows.is_labelled else self.unlabelled,
                self.task,
                self.options.boosting(self.rows.classes).label_words,
                self.options.max_prompts or self.options.n_prompts,
                self.options.n_screening_rows,
            )
            return pool, summary, np.empty(0, np.intp)
        return choose(
            self.prompts,
            self.gatherer,
            self.task,
            self.options.n_prompts,
            self.options.n_screening_rows,
            rng,
            prefix_price=self.prefix_price,
        )


def fit(
    rows: TrainingRows,
    lm: BaseBackend,
    options: FitOptions,
    rng: np.random.Generator,
    *,
    writer: BaseBackend | None = None,
    embedder: BaseBackend | None = None,
    progress: Progress | None = None,
) -> FitResult:
    """Train a model.

    Parameters
    ----------
    rows : TrainingRows
        The rows to train on.
    lm : BaseBackend
        The LM, behind its store and its budget.
    options : FitOptions
        How to train.
    rng : numpy Generator
        For all that is drawn.
    writer : BaseBackend, optional
        The LM that writes prompts, where it is another.
    embedder : BaseBackend, optional
        The embedding model, behind its store and its budget. Its vectors are the evidence of an
        expert, for algorithms that use experts; where no rows can be held out, it isn't asked.
    progress : callable, optional
        Called with (stage, done, total).

    Raises
    ------
    RowError
        On rows that the LM refuses, under ``on_row_error="raise"``, or if a class has none left.
    BackendError, BudgetError, PromptError
        As the LM, the budget or a prompt has it.
    """
    top_k = usable_top_k(lm, options.top_k)
    run = Run(rows, lm, top_k, options, writer, progress)
    if not rows.is_labelled:
        return _fit_without_labels(run, lm, top_k, rng, embedder)
    boosting = options.boosting(rows.classes)
    with stopping_at_refusals(options.on_row_error):
        embedded, vectors = None, None
        if embedder is not None and reads_embeddings(rows, options):
            embedded = read_training_vectors(embedder, rows, options)
            vectors = embedded.rows
        shown = run.show_nearest(vectors, rng)
        pool, choice, selection_rows = run.choose(rng)
        pool = run.with_library_prompts(pool)
        answers = run.gatherer.answers(pool)
        run.name_answers(pool)
        unlabelled = run.unlabelled_answers(pool)
    kept, row_errors = run.kept_rows(answers, vectors)

    codes, groups = rows.codes[kept], rows.groups[kept]
    weights = options.balanced(codes, rows.weights[kept])
    usable = answers.take_rows(np.flatnonzero(kept))
    ranked = "generation" in choice
    best = _best_prompts(usable, codes, weights, groups, options, rng, ranked=ranked)
    pool, usable = PromptPool(pool[number] for number in best), usable.take_prompts(best)
    unlabelled = None if unlabelled is None else unlabelled.take_prompts(best)
    calibration_weight = None
    if len(selection_rows):
        trust = np.ones(len(rows.texts))
        trust[np.isin(rows.groups, rows.groups[selection_rows])] = _SCREENED_WEIGHT
        calibration_weight = weights * trust[kept]
    experts = []
    if embedded and can_weigh_experts(rows, options):
        evidence = embedded.rows.values[kept]
        experts.append(ExpertInput(EmbeddingReadout, evidence, names=embedded.names))
    ranked_sources = run.sources.rank(
        pool, usable, codes, weights, len(run.task.names), run.name_answers(pool)
    )
    best_sources = best_of(ranked_sources)
    source_input = expert_input(best_sources)
    if source_input is not None:
        experts.append(source_input)
    result = training.boost(
        usable, codes, weights, boosting, rng, calibration_weight, groups, experts, unlabelled
    )
    ensemble = with_sources_kept(result.ensemble, best_sources, result.prompts)
    if embedded is not None and not can_weigh_experts(rows, options):
        near = embedded.nearest_name(kept)
        ensemble = replace(ensemble, experts=() if near is None else (near,))
    truncated = {int(rows.positions[place]) for place in answers.truncated}
    summary = _figures(run, lm, kept, len(truncated), embedded, choice, result)
    if options.library is not None:
        summary["sources"] = summarise(ranked_sources, ensemble)
        summary["sources_refused"] = dict(run.sources.refused)
    summary |= _assessment(rows, kept, weights, result, options, lm.limits.languages)
    prompts = PromptPool(pool[number].template for number in result.prompts)
    shows_examples = any(prompt.nearest for prompt in prompts)
    used = shows_examples or any(not expert.reads_answers for expert in ensemble.experts)
    examples = shown if shows_examples else None
    if used and options.keep_examples and not shows_examples:
        examples = _kept_examples(rows, kept, vectors, run.task.names)
    model = Model(
        classes=rows.classes,
        prompts=prompts,
        ensemble=ensemble,
        token_bytes=_bytes_read(run, answers, ensemble),
        identity=lm.identity,
        top_k=top_k,
        summary=summary,
        embedder_identity=embedder.identity if embedder and used else None,
        examples=examples,
        row_digests=row_digests([rows.texts[place] for place in np.flatnonzero(kept)]),
        held_out=_held_out_rows(
            result.held_out,
            codes,
            weights if calibration_weight is None else calibration_weight,
            groups,
        ),
    )
    _warn_of_unspelled(options, rows.classes, result.summary.get("names_unspelled", ()))
    _warn_of_coverage(top_k, result.coverage)
    if boosting.algorithm.holds_out(boosting):
        _warn_of_single_groups(rows.classes, codes, groups)
    return FitResult(model, row_errors, truncated)


def _fit_without_labels(
    run: Run,
    lm: BaseBackend,
    top_k: int,
    rng: np.random.Generator,
    embedder: BaseBackend | None,
) -> FitResult:
    """Train a model on texts and class names; see `blackbox.boosting.names_only`."""
    rows, options = run.rows, run.options
    if shows_nearest(options):
        raise ValueError("prompts with {nearest: K} show labelled texts: use others without labels")
    boosting = options.boosting(rows.classes)
    with stopping_at_refusals(options.on_row_error):
        embedded, vectors = None, None
        if embedder is not None:
            embedded = read_training_vectors(embedder, rows, options)
            vectors = embedded.rows
        pool, choice, _ = run.choose(rng)
        answers = run.gatherer.answers(pool)
        named = run.name_answers(pool)
    kept, row_errors = run.kept_rows(answers, vectors)
    usable, best_sources = answers.take_rows(np.flatnonzero(kept)), list[Ranked]()

    def read_sources(votes: NDArray[np.float64]) -> SourcesRead | None:
        readout, best = read_without_labels(run.sources, pool, usable, named, votes)
        given = expert_input(best)
        best_sources.extend(best)
        return None if readout is None or given is None else SourcesRead.of(readout, given)

    result = train_on_names(
        usable,
        boosting,
        None if vectors is None else vectors.values[kept],
        None if embedded is None else embedded.names,
        options.max_prompts,
        read_sources if run.sources.models else None,
    )
    ensemble = with_sources_kept(result.ensemble, best_sources, result.prompts)
    truncated = {int(rows.positions[place]) for place in answers.truncated}
    summary = _figures(run, lm, kept, len(truncated), embedded, choice, result)
    summary |= _assessment(
        rows, kept, np.ones(int(kept.sum())), result, options, lm.limits.languages
    )
    if options.library is not None:
        summary["sources"] = summarise(best_sources, ensemble)
        summary["sources_refused"] = dict(run.sources.refused)
    reads_vectors = any(not expert.reads_answers for expert in ensemble.experts)
    model = Model(
        classes=rows.classes,
        prompts=PromptPool(pool[number].template for number in result.prompts),
        ensemble=ensemble,
        token_bytes=_bytes_read(run, answers, ensemble),
        identity=lm.identity,
        top_k=top_k,
        summary=summary,
        embedder_identity=embedder.identity if embedder and reads_vectors else None,
        row_digests=row_digests([rows.texts[place] for place in np.flatnonzero(kept)]),
    )
    _warn_of_unspelled(options, rows.classes, result.summary["names_unspelled"])
    _warn_of_coverage(top_k, result.coverage)
    return FitResult(model, row_errors, truncated)


def _figures(
    run: Run,
    lm: BaseBackend,
    kept: NDArray[np.bool_],
    n_truncated: int,
    embedded: TrainingVectors | None,
    choice: Mapping[str, Any],
    result: training.TrainingResult,
) -> dict[str, Any]:
    """Rows, passes, prompts and rounds, for the summary."""
    rows = run.rows
    n_groups = len(np.unique(rows.groups[kept]))
    names = None if embedded is None else embedded.names
    return {
        "n_rows": int(kept.sum()),
        **({"n_groups": n_groups} if n_groups < kept.sum() else {}),
        "n_rows_left_out": int(rows.n_given - kept.sum()),
        "n_rows_truncated": n_truncated,
        **({"context": lm.describe_context()} if n_truncated else {}),
        "forward_passes": run.gatherer.asked + run.names.asked + run.unlabelled.asked,
        **({"n_rows_without_label": len(rows.unlabelled)} if rows.unlabelled else {}),
        **({"texts_embedded": len(embedded.rows.values)} if embedded else {}),
        **({} if names is None else {"names_embedded": len(names)}),
        **choice,
        "top_k_coverage": round(result.coverage, 4),
        **result.summary,
    }


def _bytes_read(run: Run, answers: Answers, ensemble: Ensemble) -> dict[int, bytes]:
    """The bytes of the tokens that an ensemble reads."""
    known = run.sources.token_bytes() | answers.token_bytes
    return {
        token: known[token] for reading in ensemble.readings for token in reading.token_ids.tolist()
    }


def _held_out_rows(
    held_out: training.HeldOutPredictions | None,
    codes: NDArray[np.intp],
    weights: NDArray[np.float64],
    groups: NDArray[np.intp],
) -> HeldOutRows | None:
    """What the model promises errors by; rows by which prompts were chosen weigh less."""
    if held_out is None:
        return None
    rows = held_out.rows
    return HeldOutRows.of(held_out.probabilities, codes[rows], weights[rows], groups[rows])


def _assessment(
    rows: TrainingRows,
    kept: NDArray[np.bool_],
    weights: NDArray[np.float64],
    result: training.TrainingResult,
    options: FitOptions,
    languages: Sequence[str],
) -> dict[str, Any]:
    """Class counts, held-out quality and warnings, which are logged, for the summary."""
    codes, groups = rows.codes[kept], rows.groups[kept]
    texts = [rows.texts[place] for place in np.flatnonzero(kept)]
    found = None
    if result.held_out is not None:
        found = assess(result.held_out, texts, codes, weights, groups)
    named = rows.classes.tolist()
    given = options.label_words if isinstance(options.label_words, Mapping) else {}
    unspelled = [
        named[c] for c in result.summary.get("names_unspelled", ()) if named[c] not in given
    ]
    lines = warnings_of(found, texts, unspelled, languages)
    for line in lines:
        _log.warning("%s", line)
    counts = np.bincount(codes, minlength=len(rows.classes)).tolist()
    return {
        **({"class_counts": counts} if rows.is_labelled else {}),
        **({"held_out": found} if found else {}),
        **({"warnings": lines} if lines else {}),
    }


def _kept_examples(
    rows: TrainingRows, kept: NDArray[np.bool_], vectors: Vectors | None, names: Sequence[str]
) -> KeptExamples:
    """The texts trained on, with their vectors."""
    assert vectors is not None
    places = np.flatnonzero(kept)
    texts = [rows.texts[place] for place in places]
    # half the digits: they only have to find neighbours, and take half the bytes in a file
    rounded = vectors.values[places].astype(np.float16).astype(np.float32)
    return KeptExamples(texts, rows.codes[places], rounded, names)


def generate_prompts(
    rows: TrainingRows,
    lm: BaseBackend,
    options: FitOptions,
    rng: np.random.Generator,
    *,
    writer: BaseBackend | None = None,
    progress: Progress | None = None,
) -> GeneratedPool:
    """Make a prompt pool for the task of some rows.

    Parameters
    ----------
    rows, lm, options, rng, writer, progress
        As for `fit`.
    """
    top_k = usable_top_k(lm, options.top_k)
    run = Run(rows, lm, top_k, options, writer, progress)
    run.gatherer.are_candidates = True
    generator = generator_of(options.prompts) or PromptGenerator()
    with stopping_at_refusals(options.on_row_error):
        made = generator.generate(
            run.gatherer, run.task, options.n_prompts, rng, prefix_price=run.prefix_price
        )
    return made.first(options.max_prompts)


def _prefix_price(lm: BaseBackend) -> float:
    """Return the price of a token of a cached prefix, as a share of that of any other."""
    if lm.limits.shares_prefixes:
        return 0.0
    price = price_of(rate_of(lm.identity, lm.limits))
    return 1.0 if price is None else price.cached_share


def _best_prompts(
    answers: Answers,
    codes: NDArray[np.intp],
    weights: NDArray[np.float64],
    groups: NDArray[np.intp],
    options: FitOptions,
    rng: np.random.Generator,
    *,
    ranked: bool,
) -> list[int]:
    """The numbers of the prompts to train with; generated ones are ranked already."""
    n_prompts, most = len(answers.token_ids), options.max_prompts
    if most is None or most >= n_prompts:
        return list(range(n_prompts))
    if ranked:
        return list(range(most))
    n_classes = int(codes.max()) + 1
    return best_prompts(answers, codes, weights, n_classes, most, rng, groups)


def _warn_of_unspelled(
    options: FitOptions, classes: NDArray[Any], unspelled: Sequence[int]
) -> None:
    """Warn of label words that no token spells, where the user gave them."""
    given = options.label_words if isinstance(options.label_words, Mapping) else {}
    named = classes.tolist()
    labels = [named[c] for c in unspelled if named[c] in given]
    if labels:
        warnings.warn(
            f"no token that is read spells the label_words of {', '.join(map(repr, labels))}: "
            "give others, or a higher top_k",
            stacklevel=4,
        )


def _warn_of_single_groups(
    classes: NDArray[Any], codes: NDArray[np.intp], groups: NDArray[np.intp]
) -> None:
    """Warn of classes with several rows and a single group, of which none can be held out."""
    single = (np.bincount(codes) > 1) & (groups_per_class(codes, groups) == 1)
    labels = [classes.tolist()[c] for c in np.flatnonzero(single)]
    if labels:
        warnings.warn(
            f"all rows with the label {', '.join(map(repr, labels))} are copies of one text or of "
            "one group, so none can be held out to calibrate probabilities or to choose rounds: "
            "add rows of other groups",
            stacklevel=4,
        )


def _warn_of_coverage(top_k: int, coverage: float) -> None:
    if coverage < _LOW_COVERAGE:
        warnings.warn(
            f"the {top_k} tokens that were read hold {coverage:.0%} of the probability on average: "
            "raise top_k, or use a backend that gives more",
            stacklevel=4,
        )
