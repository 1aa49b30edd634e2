"""Logit boosting as an `Algorithm`; `blackbox.boosting.logit` has the mathematics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from blackbox.answers import features
from blackbox.answers.features import Matrix
from blackbox.answers.passes import Answers
from blackbox.boosting import logit
from blackbox.boosting.base import Algorithm
from blackbox.boosting.calibration import (
    NAME_PRIOR,
    SCORE_PRIOR,
    FoldFit,
    Folds,
    fit_folds,
    with_all_rows,
)
from blackbox.boosting.early_stopping import (
    EarlyStopping,
    as_decision,
    clip_contributions,
)
from blackbox.boosting.early_stopping_fit import contribution_bounds, fit_early_stopping
from blackbox.boosting.ensemble import Ensemble, Reading, prune_unused
from blackbox.boosting.held_out import HeldOut, calibrate_held_out
from blackbox.boosting.label_words import NamePrior, name_prior
from blackbox.boosting.prompt_choice import PromptChoice
from blackbox.boosting.splits import are_few_labels, stratified_folds
from blackbox.boosting.training import (
    HeldOutPredictions,
    TrainingOptions,
    TrainingResult,
    top_k_coverage,
)
from blackbox.boosting.weak_learner import WeakLearner
from blackbox.experts.base import ExpertInput, ExpertScores, cross_fit
from blackbox.experts.source_readout import SourceReadout

__all__ = ["Logit"]

_ROUNDS, _ROWS_PER_ROUND, _MAX_ROUNDS, _ROUNDS_PER_CLASS = 100, 5, 200, 3
_MAX_ROUNDS_TIMES_CLASSES = 100_000  # a round of many classes takes room in the saved model
_ENOUGH_HELD_OUT = 2000  # rows that determine a temperature and a few weights
_NO_SPREAD = 1e-6
_EVEN_ROWS = 8.0  # of each class, that stand beside few labels in the shares of the classes
_MIN_TEMPERATURE = 0.5  # where calibration may make probabilities surer


@dataclass(frozen=True)
class Logit(Algorithm):
    """Gradient boosting of the multinomial log-loss over soft verbalizers, with calibration.

    A score is linear in standardised log-probabilities; a contribution is clipped to its bounds.
    """

    name: ClassVar[str] = "logit"
    uses_label_words: ClassVar[bool] = True
    uses_experts: ClassVar[bool] = True
    chooses_in_folds: ClassVar[bool] = True
    can_stop_at_risk: ClassVar[bool] = True

    def default_n_estimators(self, weight: float, n_classes: int) -> int:
        """Return 100, or one round per five rows up to 200, or up to three per class if more."""
        most = min(
            max(_MAX_ROUNDS, _ROUNDS_PER_CLASS * n_classes), _MAX_ROUNDS_TIMES_CLASSES // n_classes
        )
        return max(_ROUNDS, min(int(weight) // _ROWS_PER_ROUND, most))

    def holds_out(self, options: TrainingOptions) -> bool:
        """Return whether there is cross-validation."""
        return options.cv is not None

    def fit(
        self,
        answers: Answers,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        options: TrainingOptions,
        rng: np.random.Generator,
        calibration_weight: NDArray[np.float64] | None = None,
        groups: NDArray[np.intp] | None = None,
        experts: Sequence[ExpertInput] = (),
        unlabelled: Answers | None = None,
        choice: PromptChoice | None = None,
    ) -> TrainingResult:
        """Boost on all rows, and calibrate on the held-out rows of cross-validation."""
        rows = _TrainingRows.read(answers, y, sample_weight, options, unlabelled)
        settings = logit.Settings(
            options.rounds(sample_weight.sum()), options.learning_rate, options.tokens_per_class
        )
        # names speak for a class that a fold lacks, or that has no row at all
        by_names = unlabelled is not None or len(np.unique(y)) < options.n_classes
        few = by_names and are_few_labels(y, options.n_classes, groups)
        cv = None if few else options.cv
        folds = stratified_folds(y, cv, rng, groups, may_lack=by_names)
        labelled = (y, sample_weight, options.n_classes)
        spoken = [cross_fit(one, *labelled, folds, groups) for one in experts if folds]
        boosted_folds = _enough_folds(folds)
        whole, *fold_fits = fit_folds(
            rows.matrices,
            *labelled,
            with_all_rows(boosted_folds, len(y)),
            settings,
            rows.scalings,
            same=unlabelled is not None,
        )
        fit = whole.fit
        if not fit.learners and not few:
            raise ValueError(
                "no token tells the classes apart: the LM answers all training texts alike; use "
                "other prompts, more rows, or a higher top_k"
            )
        if folds:
            prior = rows.name_prior(fit, answers, options.label_words)
            of_folds = _Folds(fold_fits, [prior] * len(fold_fits))
            if choice is not None:
                of_folds = of_folds.choose_again(choice, rows, options, settings)
            calibrated = _calibrate(rows, fit, prior, of_folds, calibration_weight, spoken, groups)
        elif options.cv is not None and few:
            calibrated = _calibrate_by_names(rows, fit, answers, options)
        else:
            nothing = NamePrior([], None, *np.zeros((2, len(rows.matrices), options.n_classes)))
            calibrated = _Calibrated(nothing, 1.0, fit.initial)
        held_out, weights = calibrated.held_out, calibrated.expert_weights
        kept = tuple(
            given.fit(*labelled).scaled(weights[scores.name] / scores.spread)
            for given, scores in zip(experts, spoken, strict=bool(folds))
            if scores and scores.name in weights
        )
        boosted = logit.scale_by_temperature(fit.learners, calibrated.temperature)
        needed = {p for one in experts if one.kind.name in weights for p in one.prompts}
        ensemble, prompts = prune_unused(
            self,
            [*calibrated.prior.learners, *boosted],
            rows.readings(),
            calibrated.initial,
            needed,
        )
        if not prompts:
            raise ValueError(
                "with so few labels the names of the classes speak, and no token that the LM "
                "answers spells one: give usual words for them (label_words, --label-word "
                "LABEL=WORD), or label more texts"
            )
        readout = next((one for one in kept if isinstance(one, SourceReadout)), None)
        early_stopping = _early_stopping(
            rows,
            boosted,
            calibrated.prior,
            ensemble.initial,
            prompts,
            held_out,
            groups,
            readout.bounds() if readout else None,
        )
        ensemble = replace(ensemble, early_stopping=early_stopping, experts=kept)
        summary = {"n_rounds": len(fit.learners), **calibrated.figures()}
        if experts:
            summary["experts"] = {
                one.kind.name: round(weights.get(one.kind.name, 0.0), 4) for one in experts
            }
        unseen = None
        if held_out:
            unseen = HeldOutPredictions(boosted_folds, held_out.rows, held_out.probabilities())
        coverage = top_k_coverage(answers.log_probs)
        return TrainingResult(ensemble, prompts, coverage, summary, unseen)

    def contribution(self, ensemble: Ensemble, prompt: int, matrix: Matrix) -> NDArray[np.float64]:
        """Return the prompt's linear score, clipped to its bounds."""
        # row by row in one order of summation, so that a row's answer is its own
        standardised = ensemble.readings[prompt].scaling.apply(matrix).astype(np.float64)
        added = np.einsum("nv,vk->nk", standardised, ensemble.coefficients[prompt])
        bounds = ensemble.early_stopping.low[prompt], ensemble.early_stopping.high[prompt]
        return np.asarray(np.clip(added, *bounds))

    def votes(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return the learner's weighted class scores, less their mean over the classes."""
        standardised = ensemble.readings[learner.prompt].scaling.apply(matrices[learner.prompt])
        scores = learner.weight * logit.class_scores(learner, standardised)
        return np.asarray(scores - scores.mean(axis=1, keepdims=True))

    def token_contributions(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return each token's term of its class's score, less its share of the mean.

        Votes are centred over the K classes: a token's own class keeps (K − 1)/K of the term, and
        each of the others loses 1/K of it.
        """
        n_classes = ensemble.n_classes
        standardised = ensemble.readings[learner.prompt].scaling.apply(matrices[learner.prompt])
        weights = learner.weight * learner.token_weights.astype(np.float64)
        return np.asarray(weights * standardised[:, learner.columns] * (n_classes - 1) / n_classes)

    def token_weights(self, ensemble: Ensemble, prompt: int) -> NDArray[np.float64]:
        """Return the coefficients: what one standard deviation of a token adds to each score."""
        return ensemble.coefficients[prompt]

    def staged_decision(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], initial: NDArray[np.float64]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield the clipped scores after each learner."""
        standardised = [
            reading.scaling.apply(matrix)
            for reading, matrix in zip(ensemble.readings, matrices, strict=True)
        ]
        low, high = ensemble.early_stopping.low, ensemble.early_stopping.high
        added = np.zeros((len(standardised), len(standardised[0]), ensemble.n_classes))
        for learner in ensemble.learners:
            scores = learner.weight * logit.class_scores(learner, standardised[learner.prompt])
            added[learner.prompt] += scores - scores.mean(axis=1, keepdims=True)
            clipped = clip_contributions(added, low, high)
            yield as_decision(initial + clipped.sum(axis=0))


@dataclass(frozen=True)
class _TrainingRows:
    """Training rows as matrices: the tokens, floor and scaling of each prompt, classes, weights."""

    matrices: list[Matrix]
    tokens: list[NDArray[np.int32]]
    floors: list[float]
    scalings: list[logit.Scaling]
    y: NDArray[np.intp]
    sample_weight: NDArray[np.float64]
    n_classes: int
    all_matrices: list[Matrix]
    all_weights: NDArray[np.float64]

    @classmethod
    def read(
        cls,
        answers: Answers,
        y: NDArray[np.intp],
        sample_weight: NDArray[np.float64],
        options: TrainingOptions,
        unlabelled: Answers | None,
    ) -> _TrainingRows:
        matrices, tokens, floors = features.frequent_matrices(
            answers.token_ids, answers.log_probs, sample_weight, options.min_token_share
        )
        everything, weights = matrices, sample_weight
        if unlabelled is not None:
            further = _matrices_of(unlabelled, tokens, floors)
            everything = [np.concatenate(pair) for pair in zip(matrices, further, strict=True)]
            # texts without labels weigh as much as labelled ones do on average
            weights = np.append(weights, np.full(len(further[0]), weights.mean()))
        scalings = [logit.scaling_of(matrix, weights) for matrix in everything]
        labelled = (y, sample_weight, options.n_classes)
        return cls(matrices, tokens, floors, scalings, *labelled, everything, weights)

    def name_prior(
        self, fit: logit.LogitModel, answers: Answers, label_words: Sequence[Sequence[str]]
    ) -> NamePrior:
        """Return the class-name prior under the prompts that boosting reads: it adds no pass."""
        prior = name_prior(
            sorted({learner.prompt for learner in fit.learners}) or range(len(self.tokens)),
            self.tokens,
            answers.token_bytes,
            self.all_matrices,
            self.scalings,
            self.all_weights,
            label_words,
            self.n_classes,
            by_agreement=len(self.all_weights) > len(self.y),
        )
        votes = prior.votes
        return prior if votes is None else replace(prior, votes=votes[: len(self.y)])

    def spread_of(self, fit: logit.LogitModel) -> float:
        """Return the standard deviation of boosted scores: of labelled classes, over all texts."""
        widths = [len(ids) for ids in self.tokens]
        coefficients = logit.coefficients_of(fit.learners, widths, self.n_classes)
        parts = zip(self.scalings, self.all_matrices, coefficients, strict=True)
        scores = sum(scaling.apply(matrix) @ one for scaling, matrix, one in parts)
        seen = np.unique(self.y)  # the others have the score 0
        return max(float(np.std(np.asarray(scores)[:, seen])), _NO_SPREAD)

    def readings(self) -> list[Reading]:
        parts = zip(self.tokens, self.floors, self.scalings, strict=True)
        return [Reading(*part) for part in parts]


@dataclass(frozen=True)
class _Folds:
    """The fits of the folds, and the class-name prior under the prompts of each."""

    fits: Sequence[FoldFit]
    priors: Sequence[NamePrior]

    def choose_again(
        self,
        choice: PromptChoice,
        rows: _TrainingRows,
        options: TrainingOptions,
        settings: logit.Settings,
    ) -> _Folds:
        """Return the same with prompts that each fold chose by the rows that it boosts on."""
        fits, priors = list(self.fits), list(self.priors)
        for number, fold in enumerate(self.fits):
            chosen = choice.by(fold.train)
            if chosen == choice.chosen:
                continue
            answers = choice.candidates.take_prompts(chosen)
            own = _TrainingRows.read(answers, rows.y, rows.sample_weight, options, None)
            (fits[number],) = fit_folds(
                own.matrices,
                own.y,
                own.sample_weight,
                own.n_classes,
                [(fold.train, fold.test)],
                settings,
                own.scalings,
            )
            if self.priors[number].votes is not None:  # no weight for names that aren't kept
                priors[number] = own.name_prior(fits[number].fit, answers, options.label_words)
        return _Folds(fits, priors)


@dataclass(frozen=True)
class _Calibrated:
    """The class-name prior at its weight, and the temperature of the boosted scores.

    `initial` are the scores before the first prompt, over the temperature; `held_out` is None where
    no row could be held out.
    """

    prior: NamePrior
    temperature: float
    initial: NDArray[np.float64]
    held_out: HeldOut | None = None
    n_folds: int = 0

    @property
    def expert_weights(self) -> dict[str, float]:
        """The weights of the other experts that stay."""
        return self.held_out.expert_weights if self.held_out else {}

    def figures(self) -> dict[str, Any]:
        """Return its part of a summary."""
        found: dict[str, Any] = {}
        if self.held_out:
            found |= {
                "temperature": round(self.temperature, 4),
                "name_weight": round(self.held_out.name_weight, 4),
                "cv_log_loss": round(self.held_out.loss, 4),
                "cv_folds": self.n_folds,
            }
        names = {"n_names": len(self.prior.learners), "names_unspelled": self.prior.unspelled}
        return found | names


def _calibrate(
    rows: _TrainingRows,
    fit: logit.LogitModel,
    prior: NamePrior,
    folds: _Folds,
    calibration_weight: NDArray[np.float64] | None,
    spoken: Sequence[ExpertScores | None],
    groups: NDArray[np.intp] | None,
) -> _Calibrated:
    """Calibrate on the rows that the folds hold out."""
    weight = rows.sample_weight if calibration_weight is None else calibration_weight
    held_out = calibrate_held_out(
        folds.fits,
        rows.y,
        rows.sample_weight,
        weight,
        min_temperature=_MIN_TEMPERATURE if calibration_weight is None else 1.0,
        priors=folds.priors,
        experts=[one for one in spoken if one],
        groups=groups,
    )
    temperature = held_out.temperature
    prior = prior.scaled(held_out.name_weight)
    return _Calibrated(prior, temperature, fit.initial / temperature, held_out, len(folds.fits))


def _calibrate_by_names(
    rows: _TrainingRows, fit: logit.LogitModel, answers: Answers, options: TrainingOptions
) -> _Calibrated:
    """Return what the priors say before any label, where no row can be held out."""
    prior = rows.name_prior(fit, answers, options.label_words).scaled(NAME_PRIOR[0])
    temperature = rows.spread_of(fit) / SCORE_PRIOR[0]
    counts = np.bincount(rows.y, rows.sample_weight, options.n_classes)
    initial = temperature * np.log(counts + _EVEN_ROWS)
    return _Calibrated(prior, temperature, initial / temperature)


def _matrices_of(
    answers: Answers, tokens: Sequence[NDArray[np.int32]], floors: Sequence[float]
) -> list[Matrix]:
    """Return the matrix of each prompt's tokens, of answers to other texts."""
    return [
        features.gather(answers.token_ids[p], answers.log_probs[p], ids, floor)
        for p, (ids, floor) in enumerate(zip(tokens, floors, strict=True))
    ]


def _early_stopping(
    rows: _TrainingRows,
    boosted: Sequence[WeakLearner],
    prior: NamePrior,
    initial: NDArray[np.float64],
    prompts: Sequence[int],
    held_out: HeldOut | None,
    groups: NDArray[np.intp] | None,
    late_bounds: NDArray[np.float64] | None,
) -> EarlyStopping:
    """Return bounds and stopping rules of the prompts kept; at a risk only with held-out rows."""
    coefficients = logit.coefficients_of(boosted, [len(ids) for ids in rows.tokens], rows.n_classes)
    added = np.stack([rows.scalings[p].apply(rows.matrices[p]) @ coefficients[p] for p in prompts])
    low, high = contribution_bounds(added, rows.y, rows.sample_weight)
    low, high = low + prior.low[prompts], high + prior.high[prompts]
    if held_out is None:
        clipped = clip_contributions(added, low, high)
        return fit_early_stopping(clipped, initial, low, high, rows.sample_weight)
    return fit_early_stopping(
        held_out.contributions[prompts],
        held_out.initial,
        low,
        high,
        rows.sample_weight[held_out.rows],
        at_risk=True,
        groups=None if groups is None else groups[held_out.rows],
        late=held_out.late,
        late_bounds=late_bounds,
    )


def _enough_folds(folds: Folds) -> Folds:
    """Return the first folds that hold out enough rows together, or all."""
    held_out = np.cumsum([len(test) for _, test in folds])
    return folds[: 1 + int(np.searchsorted(held_out, _ENOUGH_HELD_OUT))]
