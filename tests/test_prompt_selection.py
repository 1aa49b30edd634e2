"""Held-out rows are honest about a choice of prompts: folds choose by the rows they boost on."""

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.answers.gatherer import Gatherer
from blackbox.boosting import logit_algorithm
from blackbox.boosting.prompt_choice import PromptChoice
from blackbox.generation.builtin import builtin_pool
from blackbox.generation.screen import Screening, screen
from blackbox.library.folder import Library
from blackbox.prompts.pool import PromptPool
from eval.studies.chance import PROMPTS, fit_at_random
from tests.test_experts import texts_of

TEXTS = [f"text {number} of {word}" for number in range(12) for word in ("tin", "lead")]
LABELS = np.arange(24) % 2


def test_a_fold_has_its_own_choice_in_the_places_that_are_left():
    def by(found):
        return PromptChoice(None, [2, 5, 7], lambda rows: found).by(np.arange(3))

    assert by([2, 5, 7]) == [2, 5, 7]
    assert by([0, 5, 9]) == [0, 5, 9]
    assert by([1, 3, 5]) == [1, 5, 3]


def test_no_label_of_another_row_ranks_the_prompts():
    seen = np.arange(0, 24, 3)

    def ranked(labels):
        backend = DeterministicBackend()
        gatherer = Gatherer(backend, [(text, None) for text in TEXTS], 20)
        pool = PromptPool(PROMPTS[:12])
        weights = np.ones(24)
        return screen(gatherer, pool, labels, weights, 6, 48, np.random.default_rng(0)).ranked_by(
            seen
        )

    first = ranked(LABELS)
    others = 1 - LABELS
    others[seen] = LABELS[seen]
    assert ranked(others) == first
    assert ranked(1 - LABELS * (np.arange(24) % 4 < 2)) != first  # those of its own rows do


@pytest.mark.parametrize(
    ("n_rows", "options"),
    [(16, {"prompts": None}), (40, {"prompts": PROMPTS[:20], "max_prompts": 2})],
)
def test_labels_at_random_look_at_random_however_prompts_were_chosen(n_rows, options):
    said = [
        fit_at_random(n_rows, seed, **options).training_summary_["held_out"]["accuracy"]
        for seed in range(6)
    ]
    # where folds don't choose, 40 rows say 62% with a standard error of 2 under `max_prompts`
    assert np.mean(said) < 0.57


@pytest.fixture
def alone(monkeypatch):
    """Folds that were boosted by themselves, as those are that chose other prompts."""
    found = []
    real = logit_algorithm.fit_folds

    def noted(matrices, y, weight, n_classes, folds, *more, **how):
        found.extend(test for _, test in folds if len(folds) == 1 and len(test))
        return real(matrices, y, weight, n_classes, folds, *more, **how)

    monkeypatch.setattr(logit_algorithm, "fit_folds", noted)
    return found


def fitted(texts, labels, backend="deterministic", **options):
    given = {"prompts": PROMPTS[:20], "max_prompts": 3, "label_words": None} | options
    return PromptBoostingClassifier(
        backend, embeddings=None, random_state=0, store=False, **given
    ).fit(texts, labels)


def test_folds_choose_without_a_forward_pass(alone):
    assert fitted(TEXTS, LABELS).training_summary_["forward_passes"] == 24 * 20
    assert alone


@pytest.mark.parametrize(
    ("labels", "options"),
    [
        (LABELS, {"n_screening_rows": 23}),
        (LABELS, {"algorithm": "samme"}),
        (LABELS, {"cv": None}),
        ([["odd", "red"] if label else ["even"] for label in LABELS], {}),
        ([*LABELS.tolist(), None], {"classes": [0, 1], "label_words": {}}),
    ],
    ids=["more rows", "samme", "no folds", "several labels", "texts without labels"],
)
def test_elsewhere_no_fold_chooses(labels, options, alone):
    fitted([*TEXTS, "another"][: len(labels)], labels, **options)
    assert not alone


@pytest.mark.parametrize("options", [{"n_screening_rows": 23}, {"algorithm": "samme"}])
def test_rows_that_chose_for_all_folds_are_worth_a_quarter(options):
    held_out = fitted(TEXTS, LABELS, **options).model_.held_out
    assert set(held_out.weight.tolist()) == {0.25}
    assert set(fitted(TEXTS, LABELS).model_.held_out.weight.tolist()) == {1.0}


class RefusingBackend(DeterministicBackend):
    """A backend that refuses long texts."""

    def _take(self, read):
        usage, _ = super()._take(read)
        return usage, {place: "too long" for place, one in enumerate(read) if one.n > 400}


def test_refused_rows_cost_no_pass_of_another_candidate():
    texts = [f"{text} or {number}" for number in range(3) for text in TEXTS][:50]

    def passes():
        options = {"prompts": None, "max_prompts": None, "on_row_error": "abstain"}
        given = fitted(texts, np.arange(50) % 2, RefusingBackend(), **options)
        return given.training_summary_["forward_passes"]

    without = passes()
    for place in (0, 5, 10):
        texts[place] = " ".join(["long"] * 500 + [str(place)])
    assert passes() == without  # 47 rows are left, and all 50 were screened on in part


@pytest.mark.filterwarnings("ignore:no token that is read spells")
def test_names_get_no_weight_where_the_model_has_none():
    words = [given.decode().strip() for given in DeterministicBackend().token_bytes.values()]
    drawn = np.random.default_rng(0)
    for _ in range(4):
        some = dict(enumerate(drawn.choice(words, 2, replace=False).tolist()))
        summary = fitted(TEXTS, LABELS, top_k=3, label_words=some).training_summary_
        assert summary["n_names"] or not summary["name_weight"]


def test_prompts_of_a_library_stand_once_in_the_choice_of_a_fold(tmp_path):
    texts, labels = texts_of(60, 1)
    known = [prompt.template for prompt in builtin_pool(limits=DeterministicBackend().limits)][:12]
    source = fitted(texts, labels, prompts=known, max_prompts=None)
    source.save(tmp_path / "source.blackbox")
    Library.open(tmp_path / "library").add(
        tmp_path / "source.blackbox", licence="CC0", note="a test"
    )
    options = {"prompts": None, "library": tmp_path / "library", "library_prompts": 3}
    for seed in range(4):
        texts, labels = texts_of(36, seed + 5)
        found = fitted(texts, labels, max_prompts=None, **options)
        assert found.training_summary_["cv_folds"] == 5


def test_a_class_with_a_single_row_left_does_not_end_the_choice_of_a_fold(monkeypatch):
    ranked = []
    real = Screening.ranked_by

    def noted(self, rows):
        ranked.append(np.ptp(self.losses_by(rows)) > 0)
        return real(self, rows)

    monkeypatch.setattr(Screening, "ranked_by", noted)
    labels = np.array([0] * 11 + [1] * 11 + [2] * 2)
    fitted(TEXTS, labels, prompts=None, max_prompts=None)
    assert ranked
    assert all(ranked)
