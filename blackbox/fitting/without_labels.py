"""Training from texts and class names, without a label."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.texts import row_digests
from blackbox.backend import BaseBackend
from blackbox.boosting.names_only import SourcesRead, train_on_names
from blackbox.fitting.evidence import (
    read_training_vectors,
    shows_nearest,
)
from blackbox.fitting.run import FitResult, Run
from blackbox.fitting.saved_options import describe_options
from blackbox.fitting.summary import (
    assessment,
    bytes_read,
    figures,
    warn_of_coverage,
    warn_of_unspelled,
)
from blackbox.library.sources import (
    Ranked,
    expert_input,
    summarise,
    with_sources_kept,
)
from blackbox.library.unlabelled import read_without_labels
from blackbox.model.model import Model
from blackbox.prompts.pool import PromptPool
from blackbox.spending import stopping_at_refusals

__all__ = ["fit_without_labels"]


def fit_without_labels(
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
        choice = run.choose(rng)
        pool = choice.pool
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
    summary = figures(run, lm, kept, len(truncated), embedded, choice.summary, result)
    summary |= assessment(
        rows, kept, np.ones(int(kept.sum())), result, options, lm.limits.languages
    )
    summary["options"] = describe_options(
        options, rows.classes.tolist(), embeds=embedder is not None
    )
    if options.library is not None:
        summary["sources"] = summarise(best_sources, ensemble)
        summary["sources_refused"] = dict(run.sources.refused)
    model = Model(
        classes=rows.classes,
        prompts=PromptPool(pool[number].template for number in result.prompts),
        ensemble=ensemble,
        token_bytes=bytes_read(run, answers, ensemble),
        identity=lm.identity,
        top_k=top_k,
        summary=summary,
        embedder_identity=embedder.identity if embedder and ensemble.reads_vectors else None,
        row_digests=row_digests([]),  # the label of none of them was learned
        source_digests=run.sources.digests(ensemble.sources),
        order=options.order(rows.classes),
    )
    warn_of_unspelled(options, rows.classes, result.summary["names_unspelled"])
    warn_of_coverage(top_k, result.coverage)
    return FitResult(model, row_errors, truncated)
