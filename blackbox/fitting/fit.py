"""Training from end to end: labelled rows, a language model and options become a `Model`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.passes import Answers
from blackbox.answers.texts import row_digests
from blackbox.backend import BaseBackend
from blackbox.boosting import training
from blackbox.boosting.splits import groups_per_class
from blackbox.experts.base import ExpertInput
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.examples import KeptExamples
from blackbox.experts.vectors import Vectors
from blackbox.fitting.evidence import (
    TrainingVectors,
    can_weigh_experts,
    read_training_vectors,
    reads_embeddings,
)
from blackbox.fitting.inputs import TrainingRows
from blackbox.fitting.multilabel import fit_multilabel
from blackbox.fitting.multilabel_rows import MultilabelRows
from blackbox.fitting.options import FitOptions
from blackbox.fitting.out_of_scope import OutsideRows, TrainedRows, notice_outside
from blackbox.fitting.prompt_selection import Selection, select_prompts
from blackbox.fitting.run import (
    FitResult,
    Run,
    usable_top_k,
)
from blackbox.fitting.saved_options import describe_options
from blackbox.fitting.summary import (
    assessment,
    bytes_read,
    figures,
    warn_of_coverage,
    warn_of_unspelled,
)
from blackbox.fitting.without_labels import fit_without_labels
from blackbox.generation.choose import Choice
from blackbox.library.sources import (
    Ranked,
    best_of,
    expert_input,
    summarise,
    with_sources_kept,
)
from blackbox.model.model import Model, Progress
from blackbox.model.reliability import HeldOutRows
from blackbox.prompts.pool import PromptPool
from blackbox.spending import stopping_at_refusals

__all__ = ["fit"]


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
    if options.class_descriptions and embedder is None and options.library is None:
        raise ValueError(
            "class_descriptions are read by embeddings and by a library, and this training has "
            "neither: take embeddings, or describe the classes in task"
        )
    if not rows.is_labelled:
        return fit_without_labels(run, lm, top_k, rng, embedder)
    if isinstance(rows, MultilabelRows):
        return fit_multilabel(run, rows, lm, top_k, rng, embedder, progress)
    with stopping_at_refusals(options.on_row_error):
        asked = _ask(run, rows, options, rng, embedder)
    kept, row_errors = run.kept_rows(asked.answers, asked.vectors)
    asked, trained, chosen = _select(run, asked, kept, rng)
    ranked = run.sources.rank(
        asked.pool,
        trained.answers,
        trained.codes,
        trained.weights,
        len(run.task.names),
        run.name_answers(asked.pool),
    )
    boosting = options.boosting(rows.classes)
    result = training.boost(
        trained.answers,
        trained.codes,
        trained.weights,
        boosting,
        rng,
        None if chosen.trust is None else trained.weights * chosen.trust,
        trained.groups,
        _experts(rows, options, asked.embedded, trained, best_of(ranked)),
        asked.unlabelled,
        chosen.again,
    )
    ensemble = with_sources_kept(result.ensemble, best_of(ranked), result.prompts)
    if asked.embedded is not None and not can_weigh_experts(rows, options):
        near = asked.embedded.nearest_name(kept)
        ensemble = replace(ensemble, experts=() if near is None else (near,))
    truncated = {int(rows.positions[place]) for place in asked.answers.truncated}
    summary = figures(run, lm, kept, len(truncated), asked.embedded, asked.choice.summary, result)
    if options.library is not None:
        summary["sources"] = summarise(ranked, ensemble)
        summary["sources_refused"] = dict(run.sources.refused)
    summary |= assessment(rows, kept, trained.weights, result, options, lm.limits.languages)
    detector = None
    if options.none_of_these is not None:
        outside = None if asked.embedded is None else asked.embedded.outside
        detector, summary["none_of_these"] = notice_outside(
            options.none_of_these,
            ensemble,
            result,
            trained,
            _given_weights(rows, kept, options),
            OutsideRows.of(asked.outside, outside),
        )
    summary["options"] = describe_options(
        options, rows.classes.tolist(), embeds=embedder is not None
    )
    model = Model(
        classes=rows.classes,
        prompts=PromptPool(asked.pool[number].template for number in result.prompts),
        ensemble=ensemble,
        token_bytes=bytes_read(run, asked.answers, ensemble),
        identity=lm.identity,
        top_k=top_k,
        summary=summary,
        row_digests=row_digests([rows.texts[place] for place in np.flatnonzero(kept)]),
        source_digests=run.sources.digests(ensemble.sources),
        held_out=_held_out_rows(result.held_out, rows, kept, chosen.trust, options),
        out_of_scope=detector,
        order=options.order(rows.classes),
    )
    model = _with_examples(model, rows, kept, options, asked, embedder, run.task.names)
    warn_of_unspelled(options, rows.classes, result.summary.get("names_unspelled", ()))
    warn_of_coverage(top_k, result.coverage)
    if boosting.algorithm.holds_out(boosting) and not rows.reads_names:
        _warn_of_single_groups(rows.classes, trained.codes, trained.groups)
    return FitResult(model, row_errors, truncated)


@dataclass(frozen=True)
class _Asked:
    """The prompts that were asked for a training, and the answers.

    Parameters
    ----------
    pool : PromptPool
        The prompts.
    choice : Choice
        How they were chosen.
    answers : Answers
        Of the training rows.
    unlabelled, outside : Answers, optional
        Of texts without labels, and of texts of none of the classes.
    embedded : TrainingVectors, optional
        The embeddings.
    shown : KeptExamples, optional
        The texts that prompts with `{nearest: K}` show.
    """

    pool: PromptPool
    choice: Choice
    answers: Answers
    unlabelled: Answers | None
    outside: Answers | None
    embedded: TrainingVectors | None
    shown: KeptExamples | None

    @property
    def vectors(self) -> Vectors | None:
        """The embeddings of the training rows."""
        return None if self.embedded is None else self.embedded.rows

    def take_prompts(self, numbers: Sequence[int]) -> _Asked:
        """Return the same of some of the prompts; `answers` are as they were."""
        return replace(
            self,
            pool=PromptPool(self.pool[number] for number in numbers),
            unlabelled=None if self.unlabelled is None else self.unlabelled.take_prompts(numbers),
            outside=None if self.outside is None else self.outside.take_prompts(numbers),
        )


def _ask(
    run: Run,
    rows: TrainingRows,
    options: FitOptions,
    rng: np.random.Generator,
    embedder: BaseBackend | None,
) -> _Asked:
    """Ask the embedding model and the LM all that a training takes."""
    embedded = None
    if embedder is not None and reads_embeddings(rows, options):
        embedded = read_training_vectors(embedder, rows, options)
    shown = run.show_nearest(None if embedded is None else embedded.rows, rng)
    choice = run.choose(rng)
    pool = run.with_library_prompts(choice.pool)
    answers = run.gatherer.answers(pool)
    run.name_answers(pool)
    return _Asked(
        pool,
        choice,
        answers,
        run.unlabelled_answers(pool),
        run.outside_answers(pool),
        embedded,
        shown,
    )


def _select(
    run: Run, asked: _Asked, kept: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[_Asked, TrainedRows, Selection]:
    """Return what was asked of the prompts to train with, the rows under them, and their choice."""
    rows, options = run.rows, run.options
    codes, groups = rows.codes[kept], rows.groups[kept]
    weights = options.balanced(codes, rows.weights[kept])
    answers = asked.answers.take_rows(np.flatnonzero(kept))
    chosen = select_prompts(run, asked.choice, asked.pool, answers, kept, codes, weights, rng)
    vectors = None if asked.vectors is None else asked.vectors.values[kept]
    trained = TrainedRows(answers.take_prompts(chosen.prompts), codes, groups, weights, vectors)
    return asked.take_prompts(chosen.prompts), trained, chosen


def _experts(
    rows: TrainingRows,
    options: FitOptions,
    embedded: TrainingVectors | None,
    trained: TrainedRows,
    sources: Sequence[Ranked],
) -> list[ExpertInput]:
    """Return the evidence of the experts whose weights are fitted."""
    experts = []
    if embedded is not None and can_weigh_experts(rows, options):
        assert trained.vectors is not None
        experts.append(ExpertInput(EmbeddingReadout, trained.vectors, names=embedded.names))
    of_sources = expert_input(sources)
    return experts if of_sources is None else [*experts, of_sources]


def _with_examples(
    model: Model,
    rows: TrainingRows,
    kept: NDArray[np.bool_],
    options: FitOptions,
    asked: _Asked,
    embedder: BaseBackend | None,
    names: Sequence[str],
) -> Model:
    """Return a model with its embedding model, if it reads one, and the texts that it keeps."""
    if embedder is None or not model.reads_vectors:
        return model
    examples = asked.shown if model.shows_examples else None
    if options.keep_examples and not model.shows_examples:
        examples = _kept_examples(rows, kept, asked.vectors, names)
    return replace(model, embedder_identity=embedder.identity, examples=examples)


def _held_out_rows(
    held_out: training.HeldOutPredictions | None,
    rows: TrainingRows,
    kept: NDArray[np.bool_],
    trust: NDArray[np.float64] | None,
    options: FitOptions,
) -> HeldOutRows | None:
    """Return the held-out rows of a model; rows by which prompts were chosen are worth less."""
    if held_out is None:
        return None
    codes, groups, at = rows.codes[kept], rows.groups[kept], held_out.rows
    given = _given_weights(rows, kept, options)
    worth = given / given.mean() * (1.0 if trust is None else trust)
    return HeldOutRows.of(held_out.probabilities, codes[at], worth[at], groups[at])


def _given_weights(
    rows: TrainingRows, kept: NDArray[np.bool_], options: FitOptions
) -> NDArray[np.float64]:
    """Return the weights of texts in promised shares, to which class weights are nothing."""
    return options.without_class_weights(rows.codes[kept], rows.weights[kept], rows.classes)


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
