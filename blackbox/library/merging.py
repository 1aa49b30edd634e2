"""Merging: two models of the same classes, trained apart, become one, without a forward pass.

The scores of the merged model are the mean of the scores of both, weighted by their training rows.
Each was calibrated on its own held-out rows; a mean of calibrated scores is no surer than the surer
of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.early_stopping import no_bounds
from blackbox.boosting.ensemble import Ensemble, Reading
from blackbox.boosting.logit import Scaling
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.errors import ModelFileError
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.model.model import Model
from blackbox.prompts.pool import PromptPool

__all__ = ["merge_models"]


def merge_models(one: Model, other: Model) -> Model:
    """Return the model whose scores are the mean of those of two, weighted by their rows.

    Where both read a prompt, the bounds of what it adds are the means of theirs. The merged model
    has no thresholds for early stopping at a risk, and keeps no texts of the training.

    Raises
    ------
    ModelFileError
        If the two are not of the same LM, classes and kind, or can't be merged.
    """
    _check(one, other)
    rows = [_n_rows(model) for model in (one, other)]
    parts = [
        _Part(model, n / sum(rows), bool(number))
        for number, (model, n) in enumerate(zip((one, other), rows, strict=True))
    ]
    prompts = PromptPool([*one.prompts, *other.prompts])
    numbers = {prompt: number for number, prompt in enumerate(prompts)}
    n_classes = len(one.classes)
    low, high = (np.zeros((len(prompts), n_classes)) for _ in range(2))
    initial = np.zeros(n_classes)
    readings: list[Reading] = []
    for prompt in prompts:
        readings.append(_merged_reading([part.reading(prompt) for part in parts]))
    learners: list[list[WeakLearner]] = [[], []]
    for part in parts:
        initial += part.share * part.model.ensemble.initial
        for number, prompt in enumerate(part.model.prompts):
            place = numbers[prompt]
            shift = part.shift(number, readings[place])
            initial += shift
            stopping = part.model.ensemble.early_stopping
            low[place] += part.share * stopping.low[number] - shift
            high[place] += part.share * stopping.high[number] - shift
        for count, learner in enumerate(part.model.ensemble.learners):
            place = numbers[part.model.prompts[learner.prompt]]
            is_boosted = count >= part.model.n_name_learners
            learners[is_boosted].append(part.learner(learner, place, readings[place]))
    ensemble = Ensemble(
        one.ensemble.algorithm,
        [*learners[0], *learners[1]],
        readings,
        initial,
        replace(no_bounds(len(prompts), n_classes), low=low, high=high),
        _merged_experts(parts),
    )
    return Model(
        classes=one.classes,
        prompts=prompts,
        ensemble=ensemble,
        token_bytes=one.token_bytes | other.token_bytes,
        identity=one.identity,
        top_k=one.top_k,
        summary=_summary(one, other, rows, len(learners[0]), len(learners[1])),
        embedder_identity=one.embedder_identity or other.embedder_identity,
        row_digests=_digests(one, other),
        order=one.order,
    )


def _check(one: Model, other: Model) -> None:
    differences = one.identity.differences(other.identity)
    embedders = one.embedder_identity, other.embedder_identity
    if embedders[0] is not None and embedders[1] is not None:
        differences = differences or embedders[0].differences(embedders[1])
    reasons = {
        "one gives several labels per text": one.several_labels or other.several_labels,
        f"they are of different LMs ({'; '.join(differences)})": bool(differences),
        "their classes differ": one.classes.tolist() != other.classes.tolist(),
        "they are for inputs of different kinds": one.input_kind != other.input_kind,
        "they read different numbers of tokens (top_k)": one.top_k != other.top_k,
        "only models of logit can be": not all(
            model.ensemble.algorithm.uses_experts for model in (one, other)
        ),
        "one started from models of a library: train it without": bool(
            one.ensemble.sources or other.ensemble.sources
        ),
        "the order of their classes differs": _order(one) != _order(other),
        "one notices texts of none of its classes: train both without none_of_these": bool(
            one.out_of_scope or other.out_of_scope
        ),
        "the prompts of one show texts of its training": one.shows_examples or other.shows_examples,
        "one has no number of training rows": min(_n_rows(one), _n_rows(other)) < 1,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ModelFileError(f"these models can't be merged: {reason}")


def _order(model: Model) -> list[int] | None:
    return None if model.order is None else model.order.tolist()


def _n_rows(model: Model) -> int:
    n = model.summary.get("n_rows")
    return n if type(n) is int else 0


@dataclass(frozen=True)
class _Part:
    """A model, with its share in the merged one."""

    model: Model
    share: float
    is_second: bool

    def reading(self, prompt: Any) -> Reading | None:
        places = [n for n, one in enumerate(self.model.prompts) if one == prompt]
        return self.model.ensemble.readings[places[0]] if places else None

    def shift(self, number: int, merged: Reading) -> NDArray[np.float64]:
        """Return what a prompt adds more to each score by its own means than by the merged ones."""
        own = self.model.ensemble.readings[number]
        columns = np.searchsorted(merged.token_ids, own.token_ids)
        distance = (merged.scaling.mean[columns] - own.scaling.mean) / own.scaling.scale
        coefficients = self.model.ensemble.coefficients[number]
        return np.asarray(self.share * (distance.astype(np.float64) @ coefficients))

    def learner(self, learner: WeakLearner, place: int, merged: Reading) -> WeakLearner:
        """Return a learner of the model, over the merged reading of its prompt."""
        own = self.model.ensemble.readings[learner.prompt]
        columns = np.searchsorted(merged.token_ids, own.token_ids)[learner.columns]
        # no scale is larger than the merged one, so no weight of a token grows above 1 by this
        factors = merged.scaling.scale[columns] / own.scaling.scale[learner.columns]
        weights = learner.token_weights * factors
        largest = max(float(np.abs(weights).max()), 1.0)
        return WeakLearner(
            place,
            columns,
            (weights / largest).astype(np.float32),
            learner.weight * self.share * largest,
        )


def _merged_reading(readings: Sequence[Reading | None]) -> Reading:
    """Return a reading of the tokens of one or two readings, with the means of their scalings."""
    given = [one for one in readings if one is not None]
    token_ids = np.unique(np.concatenate([one.token_ids for one in given]))
    mean, scale, count = np.zeros((3, len(token_ids)))
    for one in given:
        columns = np.searchsorted(token_ids, one.token_ids)
        mean[columns] += one.scaling.mean
        scale[columns] += one.scaling.scale
        count[columns] += 1
    scaling = Scaling((mean / count).astype(np.float32), (scale / count).astype(np.float32))
    return Reading(token_ids, float(np.mean([one.floor for one in given])), scaling)


def _merged_experts(parts: Sequence[_Part]) -> tuple[EmbeddingReadout, ...]:
    found = [
        (part.share, expert)
        for part in parts
        for expert in part.model.ensemble.experts
        if isinstance(expert, EmbeddingReadout)
    ]
    if not found:
        return ()
    coefficients = sum(share * expert.coefficients.astype(np.float64) for share, expert in found)
    intercept = sum(share * expert.intercept for share, expert in found)
    return (EmbeddingReadout(np.asarray(coefficients, np.float32), np.asarray(intercept)),)


def _digests(one: Model, other: Model) -> NDArray[np.uint64] | None:
    """Return the digests of all rows; None where those of one are unknown."""
    if one.row_digests is None or other.row_digests is None:
        return None
    return np.union1d(one.row_digests, other.row_digests)


def _summary(
    one: Model, other: Model, rows: Sequence[int], n_names: int, n_boosted: int
) -> dict[str, Any]:
    losses = [model.summary.get("cv_log_loss") for model in (one, other)]
    experts = [model.summary.get("experts") for model in (one, other)]
    shown = [
        name
        for model in (one, other)
        for name in (model.summary.get("generation") or {}).get("sources", ())
    ]
    return {
        "n_rows": sum(rows),
        "merged": [
            {"n_rows": n, "cv_log_loss": loss} for n, loss in zip(rows, losses, strict=True)
        ],
        "n_rounds": n_boosted,
        "n_names": n_names,
        **({"experts": next(filter(None, experts))} if any(experts) else {}),
        # a library refuses a model whose prompts show texts
        **({"generation": {"sources": shown}} if shown else {}),
    }
