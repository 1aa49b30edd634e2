"""The interface of a boosting algorithm."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from blackbox.answers.features import Matrix
from blackbox.boosting.early_stopping import as_decision
from blackbox.boosting.weak_learner import WeakLearner, softmax

if TYPE_CHECKING:
    from blackbox.answers.passes import Answers
    from blackbox.boosting.ensemble import Ensemble
    from blackbox.boosting.prompt_choice import PromptChoice
    from blackbox.boosting.training import TrainingOptions, TrainingResult
    from blackbox.experts.base import ExpertInput

__all__ = ["Algorithm"]


class Algorithm(ABC):
    """A boosting algorithm: trains an ensemble, and turns its learners into predictions.

    To add one, write a subclass in a module of its own, as a frozen dataclass without fields, and
    implement what is abstract here. Then add an instance to
    `blackbox.boosting.algorithms.ALGORITHMS` and its name to `blackbox.boosting.ALGORITHM_NAMES`.
    Estimator, command, saved model, reports and explanations find it there; nothing else compares
    names.

    An algorithm holds no state. All that training finds is in the `Ensemble`, which hands itself to
    the methods below. The scores of an ensemble must be its `initial` plus the `contribution` of
    each prompt, up to rounding, and each contribution must lie within the bounds of
    `Ensemble.early_stopping`: early stopping is exact only then.

    Throughout, `matrices` are one float32 array of shape (n, V_p) per prompt of the ensemble:
    log-probabilities of the tokens that its `Reading` names, not standardised.

    Attributes
    ----------
    name : str
        The name by which users choose it, and by which a saved model refers to it.
    uses_label_words : bool
        Whether `TrainingOptions.label_words` make a difference.
    uses_experts : bool
        Whether `fit` weighs experts; others ignore them.
    chooses_in_folds : bool
        Whether each fold of `fit` chooses its own prompts, where it is told how; others need none.
    can_stop_at_risk : bool
        Whether `fit` may learn leads for ``early_stop="risk"``; that takes contributions to the
        scores of held-out rows.
    """

    name: ClassVar[str]
    uses_label_words: ClassVar[bool] = False
    uses_experts: ClassVar[bool] = False
    chooses_in_folds: ClassVar[bool] = False
    can_stop_at_risk: ClassVar[bool] = False

    @abstractmethod
    def default_n_estimators(self, weight: float, n_classes: int) -> int:
        """Return the number of rounds to boost where the user gives none.

        Parameters
        ----------
        weight : float
            Summed weight of the training rows.
        n_classes : int
            Number of classes.
        """

    @abstractmethod
    def holds_out(self, options: TrainingOptions) -> bool:
        """Return whether `fit` would hold rows out, to calibrate or to choose the rounds."""

    @abstractmethod
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
        """Train an ensemble; see `blackbox.boosting.training.boost`, which calls this.

        Raises
        ------
        ValueError
            If there is nothing to learn from the answers.
        """

    @abstractmethod
    def contribution(self, ensemble: Ensemble, prompt: int, matrix: Matrix) -> NDArray[np.float64]:
        """Return what one prompt adds to the scores, within its bounds: (n, n_classes)."""

    @abstractmethod
    def votes(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return what one learner adds, before bounds and normalisation: (n, n_classes)."""

    @abstractmethod
    def token_contributions(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], learner: WeakLearner
    ) -> NDArray[np.float64]:
        """Return what each token of a learner adds to the score of its class.

        On the scale of `votes`; of shape (n, n_classes, m), as `WeakLearner.columns` per row.
        """

    @abstractmethod
    def token_weights(self, ensemble: Ensemble, prompt: int) -> NDArray[np.float64]:
        """Return the weight of each token of a prompt for and against each class: (V, n_classes).

        All learners of the prompt together.
        """

    @abstractmethod
    def staged_decision(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], initial: NDArray[np.float64]
    ) -> Iterator[NDArray[np.float64]]:
        """Yield `decision` after each learner."""

    def decision(
        self, ensemble: Ensemble, matrices: Sequence[Matrix], initial: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the scores of all learners, in the form that `as_decision` gives them."""
        return as_decision(initial + ensemble.contributions(matrices).sum(axis=0))

    def probabilities(self, decision: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return class probabilities of shape (n, n_classes): by default the softmax of scores."""
        if decision.ndim == 1:
            decision = np.column_stack([np.zeros_like(decision), decision])
        return softmax(decision)

    def prompt_votes(self, ensemble: Ensemble, matrices: Sequence[Matrix]) -> NDArray[np.float64]:
        """Return what each prompt adds, on the scale of `votes`: (P, n, n_classes).

        By default its contribution, within bounds.
        """
        return ensemble.contributions(matrices)

    def check(self, ensemble: Ensemble) -> None:
        """Check an ensemble that was read from a file for what `fit` guarantees.

        Raises
        ------
        ValueError
            If this algorithm could not have made it.
        """
        return  # bounds and finite numbers are checked for all algorithms
