"""Assessment of a training with several labels per text: held-out quality beside a baseline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blackbox.boosting.thresholds import best_f1_threshold, with_odds
from blackbox.boosting.training import HeldOutPredictions
from blackbox.fitting.assessment import (
    LEAST_GAIN,
    NOISE,
    mean_and_error,
    name_of_baseline,
    tfidf_features,
    tfidf_probabilities,
)
from blackbox.metrics import f1_scores
from blackbox.prompts.inputs import Example

__all__ = ["assess_labels"]

_TINY = 1e-15
_SHOWN = 5


@dataclass(frozen=True)
class _HeldOutLabel:
    """One label on rows that its model was not boosted on, by that model and by TF-IDF."""

    label: int
    rows: NDArray[np.intp]
    truth: NDArray[np.bool_]
    weight: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    tfidf: NDArray[np.float64]
    threshold: float
    odds: float

    @property
    def natural(self) -> NDArray[np.float64]:
        """The probabilities at the odds of the texts, as those of TF-IDF are."""
        return with_odds(self.probabilities, self.odds)

    def counts(self, *, tfidf: bool = False) -> NDArray[np.float64]:
        """Return the weights of right labels, of given ones, and of those there are: (3,)."""
        chosen = self.chosen(tfidf=tfidf)
        return np.array([self.weight @ one for one in (chosen & self.truth, chosen, self.truth)])

    def chosen(self, *, tfidf: bool = False) -> NDArray[np.bool_]:
        if tfidf:
            return self.tfidf > best_f1_threshold(self.tfidf, self.weight)
        return self.probabilities > self.threshold

    def losses(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the log-loss of each row."""
        of_truth = np.where(self.truth, probabilities, 1 - probabilities)
        return -np.log(np.maximum(of_truth, _TINY))

    def is_at_chance(self, groups: NDArray[np.intp]) -> bool:
        """Whether the label can't be told from its share of the rows."""
        share = np.full(len(self.truth), self.weight @ self.truth / self.weight.sum())
        of_shares = self.losses(share)
        weight = self.weight / self.weight.sum()
        gain, error = mean_and_error(
            of_shares - self.losses(self.natural), weight, groups[self.rows]
        )
        return gain <= max(LEAST_GAIN * float(of_shares @ weight), NOISE * error)


def assess_labels(
    held_out: Sequence[HeldOutPredictions | None],
    texts: Sequence[Example],
    targets: NDArray[np.bool_],
    sample_weight: NDArray[np.float64],
    groups: NDArray[np.intp],
    thresholds: NDArray[np.float64],
    odds: NDArray[np.float64],
    names: Sequence[str],
) -> tuple[dict[str, Any] | None, list[dict[str, Any]], list[str]]:
    """Return how good the labels are on held-out rows, beside TF-IDF, and what to beware of.

    All figures are weighted as the training rows are. *TF-IDF* is that of
    `blackbox.fitting.assessment.assess`, for each label in its folds, and with a threshold by the
    same rule. Each label has held-out rows of its own, which are all rows up to 2,000.

    Parameters
    ----------
    held_out : sequence of n_labels HeldOutPredictions or None
        Predictions for rows that the label's model was not boosted on; None where there are none.
    texts : sequence of (str, str or None)
        The n texts or pairs that were trained on.
    targets : bool array of shape (n, n_labels)
        Which text has which label.
    sample_weight, groups
        As for `assess`.
    thresholds : float64 array of shape (n_labels,)
        A label is given to rows of a larger probability.
    odds : float array of shape (n_labels,)
        By what the odds of each label's probabilities are those of the texts, at which log-losses
        are compared; 1 but for balanced weights.
    names : sequence of n_labels str
        The labels.

    Returns
    -------
    overall : dict or None
        `n_rows`, `n_labels`, `micro_f1`, `macro_f1`, `hamming_loss`, `log_loss`, the same of
        `tfidf_…`, and `subset_accuracy` over the `n_rows_whole` rows on which all labels were held
        out; None where there are no held-out rows.
    by_label : list of n_labels dict
        `precision`, `recall` and `f1` of each, empty where there are no held-out rows.
    warnings : list of str
    """
    known = _held_out_labels(held_out, texts, targets, sample_weight, thresholds, odds)
    by_label: list[dict[str, Any]] = [{} for _ in held_out]
    if not known:
        return None, by_label, []
    for one in known:
        right, given, support = one.counts().tolist()
        by_label[one.label] = {
            "precision": round(right / given, 4) if given else 0.0,
            "recall": round(right / support, 4) if support else 0.0,
            "f1": round(float(f1_scores(right, given, support)), 4),
        }
    overall = {
        "n_rows": max(len(one.rows) for one in known),
        "n_labels": len(known),
        **_figures(known),
        **{f"tfidf_{name}": value for name, value in _figures(known, tfidf=True).items()},
        **_subset_accuracy(known, sample_weight, len(held_out)),
        **name_of_baseline(texts),
    }
    return overall, by_label, _warnings(known, overall, groups, names)


def _held_out_labels(
    held_out: Sequence[HeldOutPredictions | None],
    texts: Sequence[Example],
    targets: NDArray[np.bool_],
    sample_weight: NDArray[np.float64],
    thresholds: NDArray[np.float64],
    odds: NDArray[np.float64],
) -> list[_HeldOutLabel]:
    if not any(held_out):
        return []
    rng = np.random.default_rng(0)
    features = tfidf_features(texts, rng)
    known = []
    for label, found in enumerate(held_out):
        if found is None:
            continue
        codes, rows = targets[:, label].astype(np.intp), found.rows
        by_words = tfidf_probabilities(features, codes, sample_weight, 2, found.folds, rng)
        known.append(
            _HeldOutLabel(
                label,
                rows,
                targets[rows, label],
                sample_weight[rows],
                found.probabilities[:, 1],
                by_words[rows, 1],
                float(thresholds[label]),
                float(odds[label]),
            )
        )
    return known


def _figures(known: Sequence[_HeldOutLabel], *, tfidf: bool = False) -> dict[str, float]:
    counts = np.array([one.counts(tfidf=tfidf) for one in known])
    total = sum(float(one.weight.sum()) for one in known)
    wrong = sum(float(one.weight @ (one.chosen(tfidf=tfidf) != one.truth)) for one in known)
    loss = sum(float(one.weight @ one.losses(one.tfidf if tfidf else one.natural)) for one in known)
    return {
        "micro_f1": round(float(f1_scores(*counts.sum(axis=0))), 4),
        "macro_f1": round(float(f1_scores(*counts.T).mean()), 4),
        "hamming_loss": round(wrong / total, 4),
        "log_loss": round(loss / total, 4),
    }


def _subset_accuracy(
    known: Sequence[_HeldOutLabel], sample_weight: NDArray[np.float64], n_labels: int
) -> dict[str, Any]:
    """Return the share of rows whose labels are all right, if all have held-out rows in common."""
    n_known, n_right = np.zeros((2, len(sample_weight)), np.intp)
    for one in known:
        n_known[one.rows] += 1
        n_right[one.rows] += one.chosen() == one.truth
    whole = n_known == n_labels
    if not whole.any():
        return {}
    share = np.average(n_right[whole] == n_labels, weights=sample_weight[whole])
    return {"n_rows_whole": int(whole.sum()), "subset_accuracy": round(float(share), 4)}


def _warnings(
    known: Sequence[_HeldOutLabel],
    overall: dict[str, Any],
    groups: NDArray[np.intp],
    names: Sequence[str],
) -> list[str]:
    lines = []
    at_chance = [names[one.label] for one in known if one.is_at_chance(groups)]
    if at_chance:
        some = ", ".join(map(repr, at_chance[:_SHOWN]))
        more = f" and {len(at_chance) - _SHOWN} more" if len(at_chance) > _SHOWN else ""
        lines.append(
            f"on held-out rows these labels can't be told from chance: {some}{more}; check them, "
            "add texts that have them, or give usual words for them (label_words)"
        )
    losses = np.concatenate([one.losses(one.tfidf) - one.losses(one.natural) for one in known])
    weight = np.concatenate([one.weight for one in known])
    group = np.concatenate([groups[one.rows] for one in known])
    lead, error = mean_and_error(losses, weight / weight.sum(), group)
    if lead < -NOISE * error:
        lines.append(
            f"on held-out rows this model (log-loss {overall['log_loss']:.3f}, micro F1 "
            f"{overall['micro_f1']:.1%}) is clearly worse than {overall.get('baseline', 'TF-IDF')} "
            f"with a logistic regression for each label ({overall['tfidf_log_loss']:.3f}, "
            f"{overall['tfidf_micro_f1']:.1%}), which needs no LM; try prompts generated for the "
            "task (prompts auto), more labels, another LM, or embeddings"
        )
    return lines
