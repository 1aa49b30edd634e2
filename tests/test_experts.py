"""Experts: out-of-fold scores, the gate, prediction with and without them, and their files."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox.boosting.calibration import calibrate
from blackbox.boosting.expert_selection import select_experts
from blackbox.boosting.splits import stratified_folds
from blackbox.errors import ModelFileError, RowError
from blackbox.experts.base import ExpertInput, ExpertScores, cross_fit
from blackbox.experts.embeddings import EmbeddingReadout
from blackbox.experts.vectors import read_vectors
from blackbox.explain import explain
from blackbox.fitting import fit as fitting
from blackbox.fitting.inputs import check_rows
from blackbox.fitting.options import FitOptions
from blackbox.model.file import read_model, write_model
from blackbox.protocol import Embeddings

PRIOR = (0.0, 3.0)
TOPICS = {
    "sport": ["match", "goal", "team", "coach", "league", "score"],
    "money": ["bank", "market", "shares", "profit", "loan", "price"],
    "food": ["bread", "soup", "cook", "taste", "dinner", "cheese"],
}


def texts_of(n, seed, noise=3):
    """Texts with two words of their topic and some of any, and their topics."""
    rng = np.random.default_rng(seed)
    every = [word for words in TOPICS.values() for word in words]
    texts, labels = [], []
    for number in range(n):
        topic = list(TOPICS)[number % 3]
        words = [*rng.choice(TOPICS[topic], 2), *rng.choice(every, noise)]
        texts.append(" ".join(rng.permutation(words)))
        labels.append(topic)
    return texts, labels


class CountingEmbedder(DeterministicBackend):
    """Embeddings of the deterministic backend; counts texts, and refuses some."""

    def __init__(self, refused=()):
        super().__init__(seed=1)
        self.asked, self.refused = 0, set(refused)

    def embed(self, texts):
        self.asked += len(texts)
        made = super().embed(texts)
        errors = {row: "refused" for row, text in enumerate(texts) if text in self.refused}
        vectors = made.vectors.copy()
        vectors[list(errors)] = np.nan
        return Embeddings(vectors, errors, made.usage)


def options(**changes):
    given = {
        "prompts": ["{text} It was {mask}", "{text}\nTopic: {mask}"],
        "n_prompts": 2,
        "max_prompts": None,
        "n_screening_rows": 8,
        "task": None,
        "class_names": None,
        "label_words": "names",
        "algorithm": "logit",
        "n_estimators": 10,
        "learning_rate": 1.0,
        "tokens_per_class": 8,
        "cv": 5,
        "validation_fraction": 0.5,
        "top_k": 50,
        "min_token_share": 0.1,
        "on_row_error": "raise",
        "class_weight": None,
    }
    return FitOptions(**given | changes)


def fit(texts, labels, embedder, **changes):
    chosen = options(**changes)
    rows = check_rows(texts, labels, None, None, chosen)
    rng = np.random.default_rng(0)
    return fitting.fit(rows, DeterministicBackend(), chosen, rng, embedder=embedder)


@pytest.fixture(scope="module")
def model():
    return fit(*texts_of(60, 0), CountingEmbedder()).model


def vectors_of(n, seed, strength, n_classes=3, d=40):
    """Unit vectors that say as much of their class, and the classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    centres = np.random.default_rng(99).normal(size=(n_classes, d))
    vectors = rng.normal(size=(n, d)) + strength * centres[y]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), y


class TestReadout:
    def test_it_finds_the_classes_of_new_rows(self):
        vectors, y = vectors_of(60, 0, 1.0)
        unseen, truth = vectors_of(300, 1, 1.0)
        readout = EmbeddingReadout.fit(vectors, y, np.ones(60), 3)
        scores = readout.scores(unseen)
        assert (scores.argmax(axis=1) == truth).mean() > 0.9
        assert scores.sum(axis=1) == pytest.approx(np.zeros(300), abs=1e-6)

    def test_a_class_without_rows_gets_the_mean_score(self):
        vectors, y = vectors_of(60, 0, 1.0)
        kept = y < 2
        alone = EmbeddingReadout.fit(vectors[kept], y[kept], np.ones(kept.sum()), 2)
        among = EmbeddingReadout.fit(vectors[kept], y[kept], np.ones(kept.sum()), 3)
        scores = among.scores(vectors)
        np.testing.assert_allclose(scores[:, :2], alone.scores(vectors), atol=1e-5)
        assert not scores[:, 2].any()

    def test_a_weight_is_as_many_copies(self):
        vectors, y = vectors_of(30, 0, 0.5)
        weights = 1.0 + np.arange(30) % 3
        copies = np.repeat(np.arange(30), weights.astype(int))
        weighted = EmbeddingReadout.fit(vectors, y, weights, 3)
        copied = EmbeddingReadout.fit(vectors[copies], y[copies], np.ones(len(copies)), 3)
        assert weighted.scores(vectors) == pytest.approx(copied.scores(vectors), abs=1e-3)

    @pytest.mark.parametrize(("n_classes", "n"), [(2, 4), (150, 300)])
    def test_few_rows_and_many_classes_are_served(self, n_classes, n):
        vectors, y = vectors_of(n, 0, 2.0, n_classes, 384)
        readout = EmbeddingReadout.fit(vectors, y, np.ones(n), n_classes)
        assert (readout.scores(vectors).argmax(axis=1) == y).mean() > 0.95

    def test_a_name_is_one_more_labelled_row_in_every_fold(self):
        vectors, y = vectors_of(12, 0, 0.3)
        names, _ = vectors_of(3, 5, 3.0)
        folds = stratified_folds(y, 4, np.random.default_rng(0))
        given = ExpertInput(EmbeddingReadout, vectors, names=names)
        found = cross_fit(given, y, np.ones(12), 3, folds)
        train, held_out = folds[0]
        rows, labels = np.vstack([vectors[train], names]), np.append(y[train], np.arange(3))
        by_hand = EmbeddingReadout.fit(rows, labels, np.ones(len(labels)), 3)
        wanted = by_hand.scores(vectors[held_out]) / found.spread
        assert found.scores[held_out] == pytest.approx(wanted, abs=1e-6)

    def test_rows_that_are_all_alike_say_nothing(self):
        vectors = np.tile(np.eye(1, 8, dtype=np.float32), (12, 1))
        given = ExpertInput(EmbeddingReadout, vectors)
        folds = stratified_folds(np.arange(12) % 2, 3, np.random.default_rng(0))
        assert cross_fit(given, np.arange(12) % 2, np.ones(12), 2, folds) is None


def out_of_fold_accuracy(vectors, y, groups=None):
    folds = stratified_folds(y, 5, np.random.default_rng(0), groups)
    given = ExpertInput(EmbeddingReadout, vectors)
    scores = cross_fit(given, y, np.ones(len(y)), int(y.max()) + 1, folds)
    return (scores.scores.argmax(axis=1) == y).mean()


class TestOutOfFold:
    def test_random_labels_are_not_given_away(self):
        vectors, _ = vectors_of(400, 0, 1.0, d=384)
        y = np.random.default_rng(1).integers(0, 4, 400)
        # every row is its own nearest neighbour: a leak would show as an accuracy near 1
        assert out_of_fold_accuracy(vectors, y) < 0.25 + 4 * np.sqrt(0.25 * 0.75 / 400)

    def test_random_labels_of_copies_are_not_given_away(self):
        vectors, _ = vectors_of(100, 0, 1.0, d=384)
        y = np.random.default_rng(1).integers(0, 4, 100)
        copied, groups = np.repeat(vectors, 4, axis=0), np.repeat(np.arange(100), 4)
        assert out_of_fold_accuracy(copied, y[groups], groups) < 0.25 + 4 * np.sqrt(0.1875 / 100)
        assert out_of_fold_accuracy(copied, y[groups]) > 0.9  # so the groups are what prevents it

    def test_scores_have_variance_one(self):
        vectors, y = vectors_of(60, 0, 1.0)
        folds = stratified_folds(y, 5, np.random.default_rng(0))
        given = ExpertInput(EmbeddingReadout, vectors)
        found = cross_fit(given, y, np.ones(60), 3, folds)
        assert (found.scores**2).mean() == pytest.approx(1)
        assert found.scores.sum(axis=1) == pytest.approx(np.zeros(60), abs=1e-6)


def said(strength, n=120, seed=0):
    """Scores of an expert that is right to some degree, and the classes."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 3
    scores = strength * (np.eye(3)[y] - 1 / 3) + rng.normal(size=(n, 3))
    scores -= scores.mean(axis=1, keepdims=True)
    return ExpertScores("some", scores / np.sqrt((scores**2).mean()), *PRIOR), y


class TestGate:
    def test_an_expert_that_tells_stays_and_one_that_does_not_goes(self):
        boosted = np.random.default_rng(5).normal(size=(120, 3))
        good, y = said(2.0)
        assert select_experts(boosted, y, np.ones(120), [], [good]) == [good]
        dropped = [
            select_experts(boosted, y, np.ones(120), [], [said(0.0, seed=seed)[0]]) == []
            for seed in range(10)
        ]
        assert sum(dropped) >= 7

    def test_an_expert_that_is_expected_to_help_stays_without_a_test(self):
        boosted = np.random.default_rng(5).normal(size=(120, 3))
        y = np.arange(120) % 3
        noise = [said(0.0, seed=seed)[0] for seed in range(2)]
        expected = replace(noise[0], mean=0.5)
        assert select_experts(boosted, y, np.ones(120), [], [noise[1], expected]) == [expected]

    def test_rows_of_one_group_are_one_observation(self):
        boosted = np.zeros((12, 3))
        good, y = said(0.6, n=12, seed=3)
        copied = np.repeat(np.arange(12), 50)
        many = ExpertScores("some", good.scores[copied], *PRIOR)
        ones = np.ones(len(copied)) / 50
        kept = select_experts(boosted[copied], y[copied], ones, [], [many])
        grouped = select_experts(boosted[copied], y[copied], ones, [], [many], groups=copied)
        assert bool(grouped) == bool(select_experts(boosted, y, np.ones(12), [], [good]))
        assert kept  # 600 rows would have been sure


def test_the_weights_of_several_experts_are_where_the_penalised_loss_is_least():
    one, y = said(1.5)
    other = said(0.7, seed=9)[0]
    boosted = np.random.default_rng(5).normal(size=(120, 3)) + np.eye(3)[y]
    found = calibrate(boosted, y, np.ones(120), experts=[one, other])

    def penalised(factor, weights):
        mixed = factor * boosted + weights[0] * one.scores + weights[1] * other.scores
        losses = np.log(np.exp(mixed).sum(axis=1)) - mixed[np.arange(120), y]
        return losses.sum() + 1.5 * (weights[0] ** 2 + weights[1] ** 2)

    least = penalised(1 / found.temperature, found.weights)
    for number in range(2):
        for change in (-0.02, 0.02):
            moved = list(found.weights)
            moved[number] += change
            assert penalised(1 / found.temperature, moved) > least


class TestTraining:
    def test_an_expert_that_helps_is_kept_and_named(self, model):
        assert [expert.name for expert in model.ensemble.experts] == ["embeddings"]
        assert model.summary["experts"]["embeddings"] > 0
        assert model.embedder_identity == CountingEmbedder().identity

    def test_without_an_embedder_the_model_is_as_it_was(self):
        found = fit(*texts_of(60, 0), None).model
        assert found.ensemble.experts == ()
        assert "experts" not in found.summary
        assert found.embedder_identity is None

    @pytest.mark.parametrize("changes", [{"algorithm": "samme"}, {"cv": None}])
    def test_an_embedder_that_can_not_be_used_is_not_asked(self, changes):
        embedder = CountingEmbedder()
        found = fit(*texts_of(30, 0), embedder, **changes).model
        assert embedder.asked == 0
        assert found.ensemble.experts == ()

    def test_names_are_embedded_where_they_are_words_and_may_be_used(self):
        texts, labels = texts_of(60, 0)
        codes = [str(list(TOPICS).index(label)) for label in labels]
        for given, changes, more in (
            (labels, {}, 3),
            (labels, {"label_words": None}, 0),
            (codes, {}, 0),
            (codes, {"class_names": {"0": "a", "1": "b", "2": "c"}}, 3),
        ):
            embedder = CountingEmbedder()
            fit(texts, given, embedder, **changes)
            assert embedder.asked == 60 + more

    def test_an_expert_that_says_nothing_is_dropped_and_prediction_does_not_ask(self):
        texts, labels = texts_of(60, 0)

        class Constant(CountingEmbedder):
            def embed(self, texts):
                return Embeddings.of(np.ones((len(texts), 64)))

        found = fit(texts, labels, Constant()).model
        assert found.summary["experts"] == {"embeddings": 0.0}
        assert found.embedder_identity is None
        embedder = CountingEmbedder()
        found.predict(DeterministicBackend(), texts[:5], embedder=embedder)
        assert embedder.asked == 0

    def test_a_row_that_the_embedder_refuses_is_left_out_or_an_error(self):
        texts, labels = texts_of(60, 0)
        embedder = CountingEmbedder([texts[7]])
        with pytest.raises(RowError, match="refused"):
            fit(texts, labels, embedder)
        found = fit(texts, labels, embedder, on_row_error="abstain")
        assert found.row_errors == {7: "refused"}

    def test_pairs_are_read_with_their_distance_and_product(self):
        embedder = CountingEmbedder()
        found = read_vectors(embedder, [("a match", "a goal"), ("bread", "soup")])
        first, second = (
            embedder.embed(t).vectors for t in (["a match", "bread"], ["a goal", "soup"])
        )
        wanted = np.hstack([first, second, np.abs(first - second), first * second]) / 2
        assert found.values == pytest.approx(wanted)
        assert found.values.dtype == np.float32


class TestPrediction:
    def test_scores_are_those_of_the_prompts_and_the_experts(self, model):
        texts, _ = texts_of(40, 1)
        lm, embedder = DeterministicBackend(), CountingEmbedder()
        predictions, evidence = model.read(lm, texts, embedder=embedder)
        alone = replace(model, ensemble=replace(model.ensemble, experts=()))
        prompts_only, _ = alone.read(lm, texts)
        added = evidence.expert_scores.sum(axis=0)
        assert predictions.scores == pytest.approx(prompts_only.scores + added, abs=1e-9)
        assert embedder.asked == 40
        *_, last = model.staged_scores(evidence)
        assert last == pytest.approx(predictions.scores, abs=1e-5)

    def test_experts_raise_the_accuracy_here(self, model):
        texts, labels = texts_of(300, 1)
        lm = DeterministicBackend()
        alone = fit(*texts_of(60, 0), None).model.predict(lm, texts)
        both = model.predict(lm, texts, embedder=CountingEmbedder())
        right = [(found.labels() == labels).mean() for found in (alone, both)]
        assert right[1] > right[0]

    def test_without_the_embedding_model_there_is_an_error_that_says_so(self, model):
        with pytest.raises(ValueError, match="embedding model"):
            model.predict(DeterministicBackend(), ["a match"])

    @pytest.mark.parametrize("n", [600, pytest.param(10_000, marks=pytest.mark.slow)])
    def test_stopping_early_changes_no_label_and_may_ask_no_prompt(self, model, n):
        texts, _ = texts_of(n, 2, noise=1)
        lm = DeterministicBackend()
        # a weight at which some texts are settled by the expert alone
        sure = replace(model.ensemble, experts=tuple(e.scaled(4) for e in model.ensemble.experts))
        for ensemble in (model.ensemble, sure):
            some = replace(model, ensemble=ensemble)
            every = some.predict(lm, texts, embedder=CountingEmbedder())
            early = some.predict(lm, texts, "exact", embedder=CountingEmbedder())
            assert (every.codes == early.codes).all()
        assert early.prompts_asked.min() == 0
        assert early.prompts_asked.max() > 0

    def test_a_text_that_the_embedder_refuses_gets_no_answer_and_costs_no_prompt(self, model):
        texts, _ = texts_of(5, 3)
        embedder = CountingEmbedder([texts[2]])
        for rule in (None, "exact"):
            found = model.predict(DeterministicBackend(), texts, rule, embedder=embedder)
            assert found.row_errors == {2: "refused"}
            assert found.codes[2] == -1
            assert found.prompts_asked[2] == 0

    def test_an_explanation_tells_what_each_expert_said(self, model):
        explained = explain(
            model, DeterministicBackend(), "the match and the goal", CountingEmbedder()
        )
        (expert,) = explained["experts"]
        assert expert["name"] == "embeddings"
        assert set(expert["votes"]) == set(TOPICS)
        assert expert["says"].startswith(
            "sentence embeddings: most like the training rows of sport"
        )


class TestFile:
    def test_a_model_comes_back_and_holds_no_text_and_no_vector(self, model, tmp_path):
        texts, _ = texts_of(60, 0)
        write_model(tmp_path / "m", model)
        back = read_model(tmp_path / "m")
        lm, embedder = DeterministicBackend(), CountingEmbedder()
        before, after = (m.predict(lm, texts, embedder=embedder) for m in (model, back))
        assert (before.scores == after.scores).all()
        assert back.embedder_identity == model.embedder_identity
        with zipfile.ZipFile(tmp_path / "m") as archive:
            described = archive.read("model.json").decode()
            arrays = np.load(io.BytesIO(archive.read("arrays.npz")))
        assert not any(text in described for text in texts)
        kept = {name: arrays[name].shape for name in arrays if name.startswith("expert")}
        assert kept == {"expert_0_coefficients": (64, 3), "expert_0_intercept": (3,)}

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"experts": ["unknown"]}, "unknown expert"),
            ({"experts": ["embeddings", "embeddings"]}, "occurs twice"),
            ({"experts": "embeddings"}, "no names"),
            ({"experts": []}, "nothing reads"),
            ({"embedding_model": None}, "readers without"),
            ({"algorithm": "samme"}, "experts|bounds|weight"),
        ],
    )
    def test_a_file_whose_experts_do_not_fit_is_refused(self, model, tmp_path, changed, message):
        with pytest.raises(ModelFileError, match=message):
            read_model(self.altered(model, tmp_path, changed, {}))

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros((64, 2), np.float32),
            np.zeros((64, 3), np.float64),
            np.zeros((0, 3), np.float32),
            np.zeros(3, np.float32),
            np.full((64, 3), np.nan, np.float32),
            np.full((64, 3), 1e20, np.float32),
            None,
        ],
    )
    def test_an_array_of_an_expert_that_does_not_fit_is_refused(self, model, tmp_path, array):
        with pytest.raises(ModelFileError):
            read_model(self.altered(model, tmp_path, {}, {"expert_0_coefficients": array}))

    def test_a_file_of_the_version_before_experts_is_read(self, tmp_path):
        old = fit(*texts_of(30, 0), None).model
        write_model(tmp_path / "m", old)
        path = self.altered(old, tmp_path, {"format_version": 4}, {}, "experts", "embedding_model")
        assert read_model(path).ensemble.experts == ()

    @staticmethod
    def altered(model, folder, described, arrays, *removed):
        write_model(folder / "m", model)
        with zipfile.ZipFile(folder / "m") as archive:
            told = json.loads(archive.read("model.json")) | described
            packed = dict(np.load(io.BytesIO(archive.read("arrays.npz"))))
        told = {key: value for key, value in told.items() if key not in removed}
        packed = {key: value for key, value in (packed | arrays).items() if value is not None}
        out = io.BytesIO()
        np.savez_compressed(out, **packed)
        with zipfile.ZipFile(folder / "n", "w") as archive:
            archive.writestr("model.json", json.dumps(told))
            archive.writestr("arrays.npz", out.getvalue())
        return folder / "n"
