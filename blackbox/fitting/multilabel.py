"""Training where a text may have several labels: one binary model per label, one set of passes.

*Binary relevance*: each label is learned for itself, with its own calibration and threshold, and
all labels read the same answers of the LM to the same prompts.
"""

from __future__ import annotations

import logging
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
from blackbox.boosting.thresholds import MOST_PROBABLE, best_f1_threshold, with_odds
from blackbox.experts.base import ExpertInput
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.fitting.assessment import warnings_of
from blackbox.fitting.evidence import TrainingVectors, read_training_vectors, reads_embeddings
from blackbox.fitting.multilabel_assessment import assess_labels
from blackbox.fitting.multilabel_rows import MultilabelRows
from blackbox.fitting.prompt_selection import select_prompts
from blackbox.fitting.run import FitResult, Run
from blackbox.fitting.saved_options import describe_options
from blackbox.fitting.summary import bytes_read, figures, warn_of_coverage
from blackbox.model.model import Model, Progress
from blackbox.model.multilabel import MultilabelModel
from blackbox.plurals import counted
from blackbox.prompts.inputs import Example
from blackbox.prompts.pool import PromptPool
from blackbox.spending import stopping_at_refusals

__all__ = ["fit_multilabel"]

_log = logging.getLogger(__name__)

_SHOWN = 10  # labels that a warning names


@dataclass(frozen=True)
class _Rows:
    """The data that every label is trained on: n rows, their labels, and what the LM answered."""

    texts: list[Example]
    answers: Answers
    targets: NDArray[np.bool_]
    weights: NDArray[np.float64]
    calibration_weight: NDArray[np.float64] | None
    groups: NDArray[np.intp]
    vectors: NDArray[np.float32] | None


def fit_multilabel(
    run: Run,
    rows: MultilabelRows,
    lm: BaseBackend,
    top_k: int,
    rng: np.random.Generator,
    embedder: BaseBackend | None,
    progress: Progress | None,
) -> FitResult:
    """Train a model of several labels per text; see `blackbox.fitting.fit.fit`."""
    options = run.options
    with stopping_at_refusals(options.on_row_error):
        embedded = None
        if embedder is not None and reads_embeddings(rows, options):
            embedded = read_training_vectors(embedder, rows, options)
        choice = run.choose(rng)
        pool = choice.pool
        answers = run.gatherer.answers(pool)
    kept, row_errors = run.kept_rows(answers, None if embedded is None else embedded.rows)
    weights, usable = rows.weights[kept], answers.take_rows(np.flatnonzero(kept))
    codes = np.unique(rows.codes[kept], return_inverse=True)[1]
    of_sets = options.balanced(codes, weights)
    chosen = select_prompts(run, choice, pool, usable, kept, codes, of_sets, rng)
    pool = PromptPool(pool[number] for number in chosen.prompts)
    shared = _Rows(
        [rows.texts[place] for place in np.flatnonzero(kept)],
        usable.take_prompts(chosen.prompts),
        rows.targets[kept],
        weights,
        chosen.trust,
        rows.groups[kept],
        None if embedded is None else embedded.rows.values[kept],
    )
    results = _train_labels(shared, rows, run, rng, progress)
    odds = _natural_odds(shared, balanced=options.class_weight == "balanced")
    thresholds = _thresholds(results, shared, odds)
    truncated = {int(rows.positions[place]) for place in answers.truncated}
    summary = _summary(run, lm, rows, kept, len(truncated), embedded, choice.summary, results)
    summary["options"] = describe_options(
        rows.given or options, rows.labels.tolist(), embeds=embedder is not None
    )
    assessed, by_label = _assessment(shared, rows, results, thresholds, odds, lm)
    embedded_by = None if embedder is None else embedder.identity

    def model_of(
        name: str, result: training.TrainingResult | None, figures_of: dict[str, Any]
    ) -> Model | None:
        if result is None:
            return None
        return Model(
            classes=np.array([f"not {name}", name]),
            prompts=PromptPool(pool[number].template for number in result.prompts),
            ensemble=result.ensemble,
            token_bytes=bytes_read(run, answers, result.ensemble),
            identity=lm.identity,
            top_k=top_k,
            summary=result.summary | figures_of,
            embedder_identity=embedded_by if result.ensemble.experts else None,
        )

    used = sorted({number for one in results if one is not None for number in one.prompts})
    model = MultilabelModel.of(
        rows.labels,
        list(map(model_of, rows.names, results, by_label)),
        thresholds,
        _smoothed_shares(shared.targets, weights),
        PromptPool(pool[number].template for number in used),
        summary=summary | assessed,
        row_digests=row_digests(shared.texts),
        indicator=rows.indicator,
    )
    warn_of_coverage(top_k, summary["top_k_coverage"])
    return FitResult(model, row_errors, truncated)


def _train_labels(
    shared: _Rows,
    rows: MultilabelRows,
    run: Run,
    rng: np.random.Generator,
    progress: Progress | None,
) -> list[training.TrainingResult | None]:
    """Return what was trained for each label; None for one that can't be learned.

    Raises
    ------
    ValueError
        If none can.
    """
    # a label is the same whatever other labels there are
    seed = int(rng.integers(2**31))
    results: list[training.TrainingResult | None] = []
    unlearned: ValueError | None = None
    for label in range(len(rows.labels)):
        result = None
        if 0 < shared.targets[:, label].mean() < 1:
            try:
                result = _train_label(shared, label, rows.words[label], run, seed)
            except ValueError as error:  # the LM answers all texts alike, for all it says of it
                unlearned = error
        results.append(result)
        if progress:
            progress("labels", label + 1, len(rows.labels))
    if not any(results):
        assert unlearned is not None
        raise unlearned
    _warn_of_unlearned(shared.targets, rows.names, results)
    if run.options.cv is not None:
        _warn_of_uncalibrated(rows.names, results)
    return results


def _train_label(
    shared: _Rows, label: int, words: Sequence[str], run: Run, seed: int
) -> training.TrainingResult:
    codes = shared.targets[:, label].astype(np.intp)
    weights = run.options.balanced(codes, shared.weights)
    calibration_weight = None
    if shared.calibration_weight is not None:
        calibration_weight = weights * shared.calibration_weight
    boosting = replace(
        run.options.boosting(run.rows.classes), n_classes=2, label_words=[[], list(words)]
    )
    experts = []
    if shared.vectors is not None and boosting.algorithm.uses_experts:
        experts.append(ExpertInput(EmbeddingReadout, shared.vectors))
    return training.boost(
        shared.answers,
        codes,
        weights,
        boosting,
        np.random.default_rng([seed, label]),
        calibration_weight,
        shared.groups,
        experts,
    )


def _natural_odds(shared: _Rows, *, balanced: bool) -> NDArray[np.float64]:
    """Return by what the odds of each label's probabilities are those of the texts: (n_labels,).

    Balanced weights raise the odds of a rare label, and texts have it no more often for that.
    """
    with_label = shared.weights @ shared.targets
    if not balanced:
        return np.ones(len(with_label))
    return np.asarray(with_label / np.maximum(shared.weights.sum() - with_label, 1e-9))


def _thresholds(
    results: Sequence[training.TrainingResult | None], shared: _Rows, odds: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return from which probability on a text gets each label: (n_labels,).

    F1 is expected by natural odds.
    """
    thresholds = np.full(len(results), MOST_PROBABLE)
    for label, result in enumerate(results):
        if result is not None and result.held_out is not None:
            found = result.held_out
            probabilities = with_odds(found.probabilities[:, 1], odds[label])
            best = best_f1_threshold(probabilities, shared.weights[found.rows])
            thresholds[label] = round(float(with_odds(best, 1 / odds[label])), 6)
    return thresholds


def _smoothed_shares(
    targets: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the share of rows with each label, with half a row more of either kind."""
    total = weights.sum()
    return np.asarray((weights @ targets + 0.5) / (total + 1))


def _summary(
    run: Run,
    lm: BaseBackend,
    rows: MultilabelRows,
    kept: NDArray[np.bool_],
    n_truncated: int,
    embedded: TrainingVectors | None,
    choice: dict[str, Any],
    results: Sequence[training.TrainingResult | None],
) -> dict[str, Any]:
    """Return figures of the training, as JSON data."""
    learned = [one for one in results if one is not None]
    weights = [one.summary["experts"] for one in learned if "experts" in one.summary]
    joint = {
        "n_rounds": sum(one.summary["n_rounds"] for one in learned),
        "n_labels": len(results),
    }
    if weights:
        joint["experts"] = {
            name: round(float(np.mean([one[name] for one in weights])), 4) for name in weights[0]
        }
    result = replace(learned[0], summary=joint)
    return {
        **figures(run, lm, kept, n_truncated, embedded, choice, result),
        "class_counts": rows.targets[kept].sum(axis=0).tolist(),
        "n_rows_without_any_label": int((~rows.targets[kept].any(axis=1)).sum()),
    }


def _assessment(
    shared: _Rows,
    rows: MultilabelRows,
    results: Sequence[training.TrainingResult | None],
    thresholds: NDArray[np.float64],
    odds: NDArray[np.float64],
    lm: BaseBackend,
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return held-out quality and warnings, which are logged, and the figures of each label."""
    overall, by_label, lines = assess_labels(
        [None if one is None else one.held_out for one in results],
        shared.texts,
        shared.targets,
        shared.weights,
        shared.groups,
        thresholds,
        odds,
        rows.names,
    )
    lines += warnings_of(None, shared.texts, _unspelled(rows, results), lm.limits.languages)
    for line in lines:
        _log.warning("%s", line)
    found: dict[str, Any] = {"held_out_labels": overall} if overall else {}
    return found | ({"warnings": lines} if lines else {}), by_label


def _unspelled(
    rows: MultilabelRows, results: Sequence[training.TrainingResult | None]
) -> list[Any]:
    """Return the labels with words of which no token spells any."""
    return [
        label
        for label, result in zip(rows.labels.tolist(), results, strict=True)
        if result is not None and result.summary.get("names_unspelled")
    ]


def _warn_of_unlearned(
    targets: NDArray[np.bool_],
    names: Sequence[str],
    results: Sequence[training.TrainingResult | None],
) -> None:
    shares = targets.mean(axis=0)
    unlearned = np.array([result is None for result in results])
    for holds, said in (
        (shares == 1, "on all training texts, so always predicted"),
        (shares == 0, "on no training text, so never predicted"),
        ((shares > 0) & (shares < 1), "not learned, as the LM answers all texts alike"),
    ):
        some = [names[label] for label in np.flatnonzero(holds & unlearned).tolist()]
        if some:
            warnings.warn(f"{_listed(some)}: {said}", stacklevel=5)


def _warn_of_uncalibrated(
    names: Sequence[str], results: Sequence[training.TrainingResult | None]
) -> None:
    some = [
        name
        for name, result in zip(names, results, strict=True)
        if result is not None and result.held_out is None
    ]
    if some:
        warnings.warn(
            f"{_listed(some)}: on a single text or group, or missing on a single one, so none can "
            "be held out: probabilities are not calibrated, and the threshold is 0.5; add texts",
            stacklevel=5,
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_SHOWN]))
    more = f" and {counted(len(names) - _SHOWN, 'other label')}" if len(names) > _SHOWN else ""
    return f"{'label' if len(names) == 1 else 'labels'} {shown}{more}"
