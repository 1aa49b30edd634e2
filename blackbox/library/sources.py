"""Sources for a new task: which models of a library it can start from, and how well each fits.

A source is used where its LM is that of the task, and where it was trained on none of the task's
rows: on those its answers would look too good. It reads those of its prompts that the task asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.passes import Answers
from blackbox.answers.texts import row_digests
from blackbox.boosting.ensemble import Ensemble, with_sources
from blackbox.errors import LibraryError, ModelFileError
from blackbox.experts.source_models import MAX_SOURCES, SourceModel, stack_probabilities
from blackbox.experts.source_readout import (
    SourceInput,
    SourceReadout,
    leave_one_out,
    transfer_score,
)
from blackbox.library.folder import Library
from blackbox.model.model import Model
from blackbox.prompts.inputs import KIND_NAMES, Example, input_kind
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.template import Prompt
from blackbox.protocol import BackendIdentity

__all__ = [
    "Ranked",
    "Sources",
    "as_source",
    "best_of",
    "expert_input",
    "floors_of",
    "probabilities_of",
    "summarise",
    "with_sources_kept",
]

_LEAST_SCORE = 0.01  # nats per row; what a source adds that says nothing is noise around 0


@dataclass(frozen=True)
class Ranked:
    """A source, and how well it fits a task.

    Parameters
    ----------
    source : SourceModel
        The source over the prompts that are shared.
    score : float
        Its leave-one-out LEEP score; see `blackbox.experts.source_readout.transfer_score`.
    probabilities : float64 array of shape (n, Z)
        What it makes of the task's rows.
    names : float64 array of shape (n_classes, Z), or None
        What it makes of the names of the task's classes.
    """

    source: SourceModel
    score: float
    probabilities: NDArray[np.float64]
    names: NDArray[np.float64] | None


@dataclass(frozen=True)
class Sources:
    """The models of a library that a task can start from.

    Parameters
    ----------
    models : dict of str to Model
        Those, by name.
    refused : dict of str to str
        The others, with the reasons.
    """

    models: Mapping[str, Model] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls, library: Library, identity: BackendIdentity, examples: Sequence[Example]
    ) -> Sources:
        """Return the sources of a library for rows of a task.

        Parameters
        ----------
        library : Library
            The library.
        identity : BackendIdentity
            The LM of the task.
        examples : sequence of Example
            The task's labelled rows.
        """
        digests = row_digests(examples)
        kind = input_kind(examples[0][1])
        models, refused = {}, {}
        for name in library.entries:
            try:
                model = library.model(name)
            except (LibraryError, ModelFileError):
                refused[name] = "its file can't be used: remove it, and add it again"
                continue
            differences = model.identity.differences(identity)
            theirs_too = np.intersect1d(digests, _digests_of(model))
            if differences:
                refused[name] = f"of another LM ({'; '.join(differences)})"
            elif model.input_kind != kind:
                refused[name] = f"for {KIND_NAMES[model.input_kind]}"
            elif len(theirs_too):
                refused[name] = f"trained on {len(theirs_too)} of these texts"
            else:
                models[name] = model
        return cls(models, refused)

    def digests(self, kept: Sequence[SourceModel]) -> NDArray[np.uint64] | None:
        """Return the digests of the rows of some sources, ascending; None without any."""
        if not kept:
            return None
        return np.unique(np.concatenate([_digests_of(self.models[one.name]) for one in kept]))

    def prompts(self) -> list[Prompt]:
        """Return the prompts that the sources read, those of most sources first."""
        counts = Counter(prompt for model in self.models.values() for prompt in model.prompts)
        return [prompt for prompt, _ in counts.most_common()]

    def shared(self, pool: PromptPool) -> PromptPool | None:
        """Return the prompts of a pool that a source reads; None if there is none."""
        read = {prompt for model in self.models.values() for prompt in model.prompts}
        shared = [prompt for prompt in pool if prompt in read]
        return PromptPool(shared) if shared else None

    def read(
        self,
        pool: PromptPool,
        answers: Answers,
        sample_weight: NDArray[np.float64],
        names: Answers | None,
    ) -> list[Ranked]:
        """Return the sources that share a prompt with a pool, each with a score of 0.

        Parameters
        ----------
        pool, answers, sample_weight, names
            As for `rank`.
        """
        shared = self.shared(pool)
        if shared is None:
            return []
        floors = floors_of(answers, sample_weight)
        floors_of_shared = [
            floor for prompt, floor in zip(pool, floors, strict=True) if prompt in set(shared)
        ]
        found = []
        for name, model in self.models.items():
            source, of_shared = as_source(name, model, pool), as_source(name, model, shared)
            if source is None or of_shared is None:
                continue
            named = None if names is None else probabilities_of(of_shared, names, floors_of_shared)
            found.append(Ranked(source, 0.0, probabilities_of(source, answers, floors), named))
        return found

    def rank(
        self,
        pool: PromptPool,
        answers: Answers,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        n_classes: int,
        names: Answers | None = None,
    ) -> list[Ranked]:
        """Return the sources that share a prompt with a pool, the best first.

        Parameters
        ----------
        pool : PromptPool
            The prompts of the task.
        answers : Answers
            Of n labelled rows under these prompts, all answered.
        y : int array of shape (n,)
            Their classes, from 0.
        sample_weight : float64 array of shape (n,)
            Their weights.
        n_classes : int
            Number of classes.
        names : Answers, optional
            Of the names of the classes, under the prompts that are `shared`.
        """
        target = np.eye(n_classes)[y]
        ranked = []
        for one in self.read(pool, answers, sample_weight, names):
            left_out = leave_one_out(one.probabilities, target, sample_weight, one.names)
            ranked.append(replace(one, score=transfer_score(left_out, target, sample_weight)))
        return sorted(ranked, key=lambda one: -one.score)

    def rank_labelled(
        self, pool: PromptPool, answers: Answers, labels: Sequence[Any], names: Answers | None
    ) -> list[Ranked]:
        """Return the same from labels, without weights; refused rows are left out."""
        kept = np.array([n for n in range(len(labels)) if n not in answers.row_errors], np.intp)
        classes, y = np.unique(np.array(labels)[kept], return_inverse=True)
        rows = answers.take_rows(kept)
        return self.rank(pool, rows, y.ravel(), np.ones(len(kept)), len(classes), names)

    def token_bytes(self) -> dict[int, bytes]:
        """Return the bytes of each token that the sources read."""
        known: dict[int, bytes] = {}
        for model in self.models.values():
            known |= model.token_bytes
        return known

    def further_prompts(self, ranked: Sequence[Ranked], pool: PromptPool) -> list[Prompt]:
        """Return the prompts that the sources read and a pool lacks, those of the best first."""
        names = [one.source.name for one in ranked]
        ordered = [self.models[name] for name in dict.fromkeys([*names, *self.models])]
        wanted = dict.fromkeys(prompt for model in ordered for prompt in model.prompts)
        there = set(pool)
        return [prompt for prompt in wanted if prompt not in there]


def as_source(name: str, model: Model, pool: PromptPool) -> SourceModel | None:
    """Return a trained model as a source over the prompts of a pool; None if it shares none.

    Its experts are left out: a source reads the answers to prompts alone.

    Parameters
    ----------
    name : str
        Its name in the library.
    model : Model
        The trained model.
    pool : PromptPool
        The prompts of the new task.
    """
    places = {prompt: number for number, prompt in enumerate(pool)}
    shared = [number for number, prompt in enumerate(model.prompts) if prompt in places]
    if not shared:
        return None
    ensemble = model.ensemble
    coefficients, offsets = [], []
    for number in shared:
        scaling = ensemble.readings[number].scaling
        of_units = ensemble.coefficients[number] / scaling.scale[:, None]
        coefficients.append(of_units.astype(np.float16))
        offsets.append(-scaling.mean.astype(np.float64) @ of_units)
    return SourceModel(
        name,
        tuple(str(label) for label in model.classes.tolist()),
        tuple(places[model.prompts[number]] for number in shared),
        tuple(ensemble.readings[number].token_ids for number in shared),
        tuple(coefficients),
        np.array(offsets),
        ensemble.early_stopping.low[shared],
        ensemble.early_stopping.high[shared],
        np.array([ensemble.readings[number].floor for number in shared]),
        ensemble.initial,
    )


def _digests_of(model: Model) -> NDArray[np.uint64]:
    return np.empty(0, np.uint64) if model.row_digests is None else model.row_digests


def floors_of(answers: Answers, sample_weight: NDArray[np.float64]) -> list[float]:
    """Return the floor of each prompt; see `blackbox.answers.features`."""
    return [
        features.floor_of(ids, values, sample_weight)
        for ids, values in zip(answers.token_ids, answers.log_probs, strict=True)
    ]


def probabilities_of(
    source: SourceModel, answers: Answers, floors: Sequence[float]
) -> NDArray[np.float64]:
    """Return what a source makes of answers, under the floors of the new task: (n, Z)."""
    return source.probabilities(
        [
            features.gather(answers.token_ids[p], answers.log_probs[p], ids, floors[p])
            for p, ids in zip(source.prompts, source.token_ids, strict=True)
        ]
    )


def best_of(ranked: Sequence[Ranked]) -> list[Ranked]:
    """Return the sources that a task starts from: the best five that tell its classes apart."""
    return [one for one in ranked if one.score > _LEAST_SCORE][:MAX_SOURCES]


def expert_input(best: Sequence[Ranked]) -> SourceInput | None:
    """Return sources as the evidence of an expert; None if there is none."""
    if not best:
        return None
    evidence = stack_probabilities([one.probabilities for one in best])
    of_names = [one.names for one in best if one.names is not None]
    names = stack_probabilities(of_names) if of_names else None
    prompts = sorted({prompt for one in best for prompt in one.source.prompts})
    return SourceInput(SourceReadout, evidence, tuple(prompts), names)


def with_sources_kept(
    ensemble: Ensemble, best: Sequence[Ranked], prompts: Sequence[int]
) -> Ensemble:
    """Return a trained ensemble with those sources that its expert gives a weight.

    Parameters
    ----------
    ensemble : Ensemble
        The ensemble; without an expert of sources it is returned as it is.
    best : sequence of Ranked
        The sources, as given to `expert_input`.
    prompts : sequence of int
        The prompts of its readings, by their numbers in the pool.
    """
    place = [isinstance(expert, SourceReadout) for expert in ensemble.experts]
    if not any(place):
        return ensemble
    number = place.index(True)
    readout = ensemble.experts[number]
    assert isinstance(readout, SourceReadout)
    sources = [one.source for one in best]
    kept = np.flatnonzero(readout.weights > 0).tolist()
    readout = readout.of([(one, len(sources[one].classes)) for one in kept])
    numbers = {prompt: place for place, prompt in enumerate(prompts)}
    renumbered = [
        replace(sources[one], prompts=tuple(numbers[p] for p in sources[one].prompts))
        for one in kept
    ]
    experts = list(ensemble.experts)
    experts[number] = readout
    stopping = replace(ensemble.early_stopping, late=readout.bounds())
    ensemble = replace(ensemble, experts=tuple(experts), early_stopping=stopping)
    return with_sources(ensemble, renumbered)


def summarise(ranked: Sequence[Ranked], ensemble: Ensemble) -> list[dict[str, Any]]:
    """Return the ranking, and the weights in an ensemble's mixture, as JSON data."""
    readout = next((one for one in ensemble.experts if isinstance(one, SourceReadout)), None)
    kept = [] if readout is None else readout.weights.tolist()
    weights = {s.name: weight for s, weight in zip(ensemble.sources, kept, strict=True)}
    return [
        {
            "name": one.source.name,
            "score": round(one.score, 4),
            "prompts": len(one.source.prompts),
            "weight": round(weights.get(one.source.name, 0.0), 4),
        }
        for one in ranked
    ]
