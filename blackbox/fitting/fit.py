"""Training from end to end: labelled rows, a language model and options become a `Model`."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.texts import row_digests
from blackbox.backend import BaseBackend
from blackbox.boosting import training
from blackbox.boosting.splits import groups_per_class
from blackbox.experts.base import ExpertInput
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.examples import KeptExamples
from blackbox.experts.vectors import Vectors
from blackbox.fitting.evidence import (
    can_weigh_experts,
    read_training_vectors,
    reads_embeddings,
)
from blackbox.fitting.inputs import FitOptions, TrainingRows
from blackbox.fitting.multilabel import fit_multilabel
from blackbox.fitting.multilabel_rows import MultilabelRows
from blackbox.fitting.out_of_scope import OutsideRows, TrainedRows, notice_outside
from blackbox.fitting.run import (
    FitResult,
    Run,
    selected_prompts,
    trust_in_calibration,
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
from blackbox.library.sources import (
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
        outside = run.outside_answers(pool)
    kept, row_errors = run.kept_rows(answers, vectors)

    codes, groups = rows.codes[kept], rows.groups[kept]
    weights = options.balanced(codes, rows.weights[kept])
    usable = answers.take_rows(np.flatnonzero(kept))
    ranked = "generation" in choice
    best = selected_prompts(usable, codes, weights, groups, options.max_prompts, rng, ranked=ranked)
    pool, usable = PromptPool(pool[number] for number in best), usable.take_prompts(best)
    unlabelled = None if unlabelled is None else unlabelled.take_prompts(best)
    outside = None if outside is None else outside.take_prompts(best)
    trust = trust_in_calibration(rows, selection_rows, kept)
    calibration_weight = None if trust is None else weights * trust
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
    summary = figures(run, lm, kept, len(truncated), embedded, choice, result)
    if options.library is not None:
        summary["sources"] = summarise(ranked_sources, ensemble)
        summary["sources_refused"] = dict(run.sources.refused)
    summary |= assessment(rows, kept, weights, result, options, lm.limits.languages)
    detector = None
    if options.none_of_these is not None:
        detector, told = notice_outside(
            options.none_of_these,
            ensemble,
            result,
            TrainedRows(
                usable, codes, groups, weights, None if vectors is None else vectors.values[kept]
            ),
            OutsideRows.of(outside, None if embedded is None else embedded.outside),
        )
        summary["none_of_these"] = told
    summary["options"] = describe_options(
        options, rows.classes.tolist(), embeds=embedder is not None
    )
    prompts = PromptPool(pool[number].template for number in result.prompts)
    shows_examples = any(prompt.nearest for prompt in prompts)
    used = shows_examples or ensemble.reads_vectors
    used |= detector is not None and detector.reads_vectors
    examples = shown if shows_examples else None
    if used and options.keep_examples and not shows_examples:
        examples = _kept_examples(rows, kept, vectors, run.task.names)
    model = Model(
        classes=rows.classes,
        prompts=prompts,
        ensemble=ensemble,
        token_bytes=bytes_read(run, answers, ensemble),
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
        out_of_scope=detector,
        order=options.order(rows.classes),
    )
    warn_of_unspelled(options, rows.classes, result.summary.get("names_unspelled", ()))
    warn_of_coverage(top_k, result.coverage)
    if boosting.algorithm.holds_out(boosting) and not rows.reads_names:
        _warn_of_single_groups(rows.classes, codes, groups)
    return FitResult(model, row_errors, truncated)


def _held_out_rows(
    held_out: training.HeldOutPredictions | None,
    codes: NDArray[np.intp],
    weights: NDArray[np.float64],
    groups: NDArray[np.intp],
) -> HeldOutRows | None:
    """Return the held-out rows of a model; rows by which prompts were chosen weigh less."""
    if held_out is None:
        return None
    rows = held_out.rows
    return HeldOutRows.of(held_out.probabilities, codes[rows], weights[rows], groups[rows])


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
