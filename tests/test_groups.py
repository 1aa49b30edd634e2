"""Rows that are not independent: copies of a text, and groups that the user names."""

from __future__ import annotations

import csv
import io

import numpy as np
import pandas as pd
import pytest
import sklearn
from click.testing import CliRunner
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold, cross_validate

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.boosting import calibration, samme
from blackbox.boosting.early_stopping import NEVER
from blackbox.boosting.early_stopping_fit import risk_leads
from blackbox.boosting.splits import (
    balanced_rows,
    groups_per_class,
    stratified_folds,
    stratified_split,
)
from blackbox.cli import main
from blackbox.generation import PromptGenerator, Task
from blackbox.generation.demonstrations import _rows
from blackbox.generation.ensemble_selection import EnsembleSelection
from blackbox.generation.written import _draw

WORDS = ["goal", "match", "bank", "stock"]
TEXTS = [
    f"{word} and {WORDS[(i + j) % 4]} n{4 * i + j}"
    for i in range(7)
    for j, word in enumerate(WORDS)
]
LABELS = [str(WORDS.index(text.split()[0]) // 2) for text in TEXTS]
PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}"]


def classifier(**options):
    options = {"prompts": PROMPTS, "random_state": 0, "store": False, "top_k": 60} | options
    return PromptBoostingClassifier("deterministic", **options)


def random_rows(seed):
    """Classes and groups of some rows: mixed, pure, or of very different sizes."""
    rng = np.random.default_rng(seed)
    n, n_classes, n_groups = rng.integers([20, 2, 6], [200, 6, 60]).tolist()
    groups = rng.integers(0, n_groups, n)
    if seed % 3 == 1:
        groups = np.minimum((rng.pareto(1, n) * 3).astype(int), n_groups)
    y = rng.integers(0, n_classes, n) if seed % 3 else rng.integers(0, n_classes, 99)[groups]
    return np.unique(y, return_inverse=True)[1], groups


def imbalance(y, tests):
    shares = np.array([np.bincount(y[rows], minlength=y.max() + 1) for rows in tests])
    return np.sqrt(((shares / np.bincount(y) - 1 / len(tests)) ** 2).mean())


def test_a_group_is_in_one_fold_and_each_class_among_the_training_rows_of_each():
    ours, sklearns = [], []
    for seed in range(150):
        y, groups = random_rows(seed)
        folds = stratified_folds(y, 5, np.random.default_rng(seed), groups)
        assert len(folds) == (n if (n := min(5, groups_per_class(y, groups).min())) > 1 else 0)
        for train, test in folds:
            assert not set(groups[train]) & set(groups[test])
            assert set(y[train]) == set(y)
            assert sorted([*train, *test]) == list(range(len(y)))
        if folds:
            held_out = [test.tolist() for _, test in folds]
            assert sorted(row for rows in held_out for row in rows) == list(range(len(y)))
            oracle = StratifiedGroupKFold(len(folds), shuffle=True, random_state=seed)
            ours.append(imbalance(y, held_out))
            sklearns.append(imbalance(y, [test for _, test in oracle.split(y, y, groups)]))
    assert len(ours) > 100
    assert np.mean(ours) < np.mean(sklearns)


def test_a_group_is_in_one_part_of_a_validation_split():
    shares = []
    for seed in range(100):
        y, groups = random_rows(seed)
        train, held_out = stratified_split(y, 0.3, np.random.default_rng(seed), groups)
        assert not set(groups[train]) & set(groups[held_out])
        assert sorted([*train, *held_out]) == list(range(len(y)))
        if len(held_out):
            assert set(y[train]) == set(y[held_out]) == set(y)
            shares.append(len(held_out) / len(y))
    assert len(shares) > 70
    assert np.median(shares) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("split", [stratified_folds, stratified_split, balanced_rows])
def test_groups_of_one_row_change_nothing_and_copies_go_where_one_would(split):
    y = np.random.default_rng(0).integers(0, 3, 40)
    number = {stratified_folds: 4, stratified_split: 0.4, balanced_rows: 20}[split]
    plain = split(y, number, np.random.default_rng(1))
    alone = split(y, number, np.random.default_rng(1), np.arange(40) * 7)
    assert np.array_equal(flat(plain), flat(alone))
    if split is not balanced_rows:
        copies = split(np.tile(y, 4), number, np.random.default_rng(1), np.tile(np.arange(40), 4))
        first = [rows[rows < 40] for rows in flat(copies, whole=True)]
        assert np.array_equal(np.concatenate(first), flat(plain))


def flat(parts, whole=False):
    rows = [
        np.asarray(part) for some in parts for part in (some if type(some) is tuple else [some])
    ]
    return rows if whole else np.concatenate([np.atleast_1d(row) for row in rows])


def test_the_same_seed_makes_the_same_folds():
    y, groups = random_rows(1)
    some, other = (stratified_folds(y, 5, np.random.default_rng(3), groups) for _ in range(2))
    assert np.array_equal(flat(some), flat(other))


def test_rows_to_try_prompts_on_are_of_different_groups_first():
    y, groups = np.repeat([0, 1], 20), np.repeat(np.arange(10), 4)
    order = balanced_rows(y, 10, np.random.default_rng(0), groups)
    assert sorted(groups[order]) == list(range(10))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"algorithm": "samme"},
        {"prompts": None, "n_prompts": 3},
        {"max_prompts": 1},
        {"prompts": PromptGenerator(2000, ["templates"]), "n_prompts": 2},
    ],
    ids=["logit", "samme", "screen", "max_prompts", "auto"],
)
def test_no_copy_is_held_out_from_the_rows_that_its_copies_are_in(options, monkeypatch):
    checked = []

    def check(seen, unseen):
        copies = {row.tobytes() for row in np.column_stack(seen)}
        assert not copies & {row.tobytes() for row in np.column_stack(unseen)}
        checked.append(len(seen))

    def fit_folds(matrices, y, weight, n_classes, folds, *more, real=calibration.fit_folds, **how):
        for train, test in folds:
            if sum(m.shape[1] for m in matrices) > 20:  # fewer tokens tell few texts apart
                check([m[train] for m in matrices], [m[test] for m in matrices])
        return real(matrices, y, weight, n_classes, folds, *more, **how)

    def fit_samme(matrices, *args, validation, real=samme.fit_samme, **kwargs):
        check(matrices, validation[0])
        return real(matrices, *args, validation=validation, **kwargs)

    for module in ("blackbox.boosting.calibration", "blackbox.boosting.logit_algorithm"):
        monkeypatch.setattr(f"{module}.fit_folds", fit_folds)
    monkeypatch.setattr(samme, "fit_samme", fit_samme)
    classifier(**options).fit(TEXTS * 3 + TEXTS[:9], LABELS * 3 + LABELS[:9])
    assert checked


@pytest.mark.parametrize("algorithm", ["logit", "samme"])
def test_a_row_four_times_is_a_row_of_weight_four(algorithm):
    copies = classifier(algorithm=algorithm).fit(TEXTS * 4, LABELS * 4)
    weights = classifier(algorithm=algorithm).fit(TEXTS, LABELS, np.full(len(TEXTS), 4.0))
    new = [f"a {word} or not" for word in WORDS]
    assert copies.predict_proba(new) == pytest.approx(weights.predict_proba(new), abs=1e-5)
    for name in ("temperature", "cv_log_loss", "name_weight"):
        one, other = (model.training_summary_.get(name, 0) for model in (copies, weights))
        assert one == pytest.approx(other, abs=2e-3)
    assert copies.training_summary_["n_groups"] == len(TEXTS)
    assert "n_groups" not in weights.training_summary_


def test_copies_of_noise_do_not_look_learnable():
    labels = np.random.default_rng(0).permutation(LABELS)
    model = classifier().fit(TEXTS * 4, np.tile(labels, 4))
    assert model.training_summary_["cv_log_loss"] > 0.5


def folds_of(model, monkeypatch, X, y, **given):
    """The (training, held-out) rows of a fit's calibration."""
    seen = []
    real = calibration.fit_folds
    monkeypatch.setattr(
        "blackbox.boosting.logit_algorithm.fit_folds",
        lambda *args, **how: seen.extend(args[4]) or real(*args, **how),
    )
    model.fit(X, y, **given)
    return seen


def test_groups_that_are_given_are_in_one_fold_and_share_their_texts(monkeypatch):
    customers = np.array([f"customer {i % 9}" for i in range(len(TEXTS))], object)
    texts = [*TEXTS, TEXTS[0], TEXTS[1]]  # the last two are of other customers
    groups = [*customers, customers[5], None]
    for train, test in folds_of(
        classifier(cv=3), monkeypatch, texts, [*LABELS, *LABELS[:2]], groups=groups
    ):
        told = np.array([*customers, customers[5], customers[1]], object)
        told[told == customers[5]] = customers[0]  # a text of both makes one group of them
        assert not set(told[train]) & set(told[test])


def test_groups_are_aligned_with_rows_and_missing_ones_are_none(monkeypatch):
    groups = pd.Series([float(i % 9) for i in range(len(TEXTS))])
    groups[3:9] = np.nan
    groups[20] = pd.NA
    weights = np.ones(len(TEXTS))
    weights[[0, 11]] = 0
    model = classifier().fit(TEXTS, LABELS, weights, groups)
    kept = np.delete(groups.to_numpy(object), [0, 11])
    n_missing = sum(not isinstance(one, float) or one != one for one in kept)
    different = {one for one in kept if isinstance(one, float) and one == one}
    assert model.training_summary_["n_groups"] == n_missing + len(different)


@pytest.mark.parametrize(
    ("groups", "error", "words"),
    [
        ([1, 2], ValueError, "28 texts and groups of shape"),
        ([[1, 2]] * 28, ValueError, "one group per text"),
        (np.array([{}] * 28, object), TypeError, "row 0: a group is a str or a number, got dict"),
    ],
)
def test_groups_of_another_number_or_kind_are_refused(groups, error, words):
    with pytest.raises(error, match=words):
        classifier().fit(TEXTS, LABELS, groups=groups)


def test_a_class_of_one_group_is_not_calibrated_and_that_is_said():
    texts, labels = [*TEXTS, *["a film"] * 6], [*LABELS, *["2"] * 6]
    with pytest.warns(UserWarning, match="label '2' are copies of one text or of one group"):
        model = classifier().fit(texts, labels)
    assert "temperature" not in model.training_summary_
    with pytest.warns(UserWarning, match="'2'"):
        model = classifier(algorithm="samme").fit(texts, labels)
    assert model.training_summary_["n_rows_validation"] == 0
    assert {"n_groups": 29}.items() <= model.training_summary_.items()


def test_groups_reach_a_fit_through_metadata_routing():
    groups = np.arange(len(TEXTS)) % 6
    with sklearn.config_context(enable_metadata_routing=True):
        model = classifier().set_fit_request(groups=True)
        scores = cross_validate(
            model, TEXTS, LABELS, cv=GroupKFold(2), params={"groups": groups}, return_estimator=True
        )
    assert all(one.training_summary_["n_groups"] == 3 for one in scores["estimator"])


def test_a_plan_and_a_generated_pool_know_of_groups():
    groups = np.arange(len(TEXTS)) % 9
    model = classifier(prompts=None, n_prompts=3)
    plan = model.plan(TEXTS, LABELS, groups=groups)
    model.fit(TEXTS, LABELS, groups=groups)
    assert plan.passes_to_make == model.usage_.passes_made
    maker = classifier(prompts=PromptGenerator(budget=1500), n_prompts=2)
    made = maker.generate_prompts(TEXTS * 2, LABELS * 2, groups=[*groups, *groups])
    assert len(made.pool) == 2


def test_copies_count_once_for_leads_at_a_risk():
    rng = np.random.default_rng(0)
    contributions = rng.normal(size=(4, 12, 2)) + np.array([3.0, 0.0])
    copies = np.repeat(contributions, 4, axis=1)
    groups = np.repeat(np.arange(12), 4)
    initial, order, weights = np.zeros(2), np.arange(4), np.ones(48)
    assert (risk_leads(copies, initial, order, weights, groups) == NEVER).all()
    assert (risk_leads(copies, initial, order, weights)[:-1] < NEVER).all()


def test_halves_of_the_rows_share_no_group():
    rng = np.random.default_rng(0)
    scores, y = rng.normal(size=(40, 24, 2)), np.arange(24) % 2  # noise: halves should disagree
    copies, labels, groups = np.repeat(scores, 4, axis=1), np.repeat(y, 4), np.repeat(range(24), 4)
    plain = EnsembleSelection(scores, y, np.ones(24)).selection_bias
    grouped = EnsembleSelection(copies, labels, np.ones(96), groups=groups).selection_bias
    assert grouped == pytest.approx(plain)


def test_texts_that_are_shown_to_an_lm_that_writes_are_different():
    task = task_of(TEXTS[:4] * 5, [0, 0, 1, 1] * 5, np.tile(np.arange(4), 5))
    assert len({task.examples[row] for row in _draw(task, np.random.default_rng(0), 6)}) == 4


def test_a_row_whose_group_has_other_texts_is_no_demonstration():
    task = task_of(
        [f"film {n}" for n in range(8)], [0, 0, 1, 1] * 2, np.array([0, 1, 2, 3, 4, 5, 0, 6])
    )
    shown = _rows(task, [[0, 1, 4, 5], [6, 2, 3, 7]], 0)
    assert shown == [(1, 4), (2, 3)]


def task_of(texts, y, groups):
    examples = [(text, None) for text in texts]
    return Task(
        examples,
        np.array(y),
        np.ones(len(y)),
        ["a", "b"],
        None,
        DeterministicBackend().limits,
        None,
        groups,
    )


def test_prompts_are_generated_on_some_groups_and_calibrated_on_others():
    copies = 3
    texts = [f"{word} {i}" for i in range(16) for word in WORDS]
    labels = [WORDS.index(text.split()[0]) // 2 for text in texts]
    maker = classifier(prompts=PromptGenerator(budget=4000), n_prompts=2)
    made = maker.generate_prompts(texts * copies, labels * copies)
    groups = np.tile(np.arange(len(texts)), copies)
    unseen = set(groups) - set(groups[made.selection_rows])
    assert len(unseen) >= len(texts) // 4


def table(rows, columns):
    text = io.StringIO()
    csv.writer(text).writerows([columns, *rows])
    return text.getvalue()


def test_the_command_takes_groups_from_a_column(tmp_path):
    groups = [f"c{i % 9}" if i > 4 else "" for i in range(len(TEXTS))]
    data, pool = tmp_path / "data.csv", tmp_path / "pool.txt"
    data.write_text(table(zip(TEXTS, LABELS, groups, strict=True), ["text", "label", "customer"]))
    pool.write_text("{text} It was {mask}\n")
    common = ["--backend", "deterministic", "--prompts", str(pool), "--no-store", "--seed", "0"]
    made = {}
    for name, more in (("with", ["--group-column", "customer"]), ("without", [])):
        out = tmp_path / f"{name}.blackbox"
        args = ["train", str(data), "--out", str(out), *common, *more]
        result = CliRunner().invoke(main, args)
        assert result.exit_code == 0, result.output
        assert ("28 rows of 14 groups" in result.output) == bool(more)
        made[name] = out.read_bytes()
    model = PromptBoostingClassifier(
        "deterministic", prompts=["{text} It was {mask}"], random_state=0, store=False
    )
    model.fit(TEXTS, LABELS, groups=[group or None for group in groups])
    model.save(tmp_path / "library.blackbox")
    assert made["with"] == (tmp_path / "library.blackbox").read_bytes() != made["without"]
    wrong = CliRunner().invoke(main, ["plan", str(data), *common, "--group-column", "thread"])
    assert wrong.exit_code == 1
    assert "'thread'" in wrong.output
    twice = CliRunner().invoke(main, ["plan", str(data), *common, "--group-column", "label"])
    assert "named twice" in twice.output


def test_a_fold_may_lack_a_class_of_a_single_row_where_that_is_allowed():
    y = np.array([0] * 10 + [1] * 9 + [2])
    rng = np.random.default_rng
    assert stratified_folds(y, 5, rng(0)) == []
    folds = stratified_folds(y, 5, rng(0), may_lack=True)
    assert len(folds) == 5
    assert sorted(np.concatenate([test for _, test in folds]).tolist()) == list(range(20))
    assert sum(2 not in y[train] for train, _ in folds) == 1
    assert all(np.bincount(y[test], minlength=2)[:2].min() >= 1 for _, test in folds)
    # where each class has enough rows, nothing changes
    even = np.arange(20) % 4
    for one, other in zip(
        stratified_folds(even, 5, rng(1)),
        stratified_folds(even, 5, rng(1), may_lack=True),
        strict=True,
    ):
        assert all((a == b).all() for a, b in zip(one, other, strict=True))
