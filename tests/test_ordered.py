"""Ordered labels: the median class, in every face of a model."""

from __future__ import annotations

import csv
import json
import warnings
import zipfile

import numpy as np
import pytest
from click.testing import CliRunner

from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main
from blackbox.errors import ModelFileError
from blackbox.library.merging import merge_models
from blackbox.model.file import read_model
from blackbox.model.ordered import evaluate_order, mean_absolute_error, median_codes, order_of
from tests.fakes import CountingBackend
from tests.test_names_only import names_of_the_lm

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]
ORDER = ("poor", "fair", "good", "superb")
WORDS = (("dull", "bad"), ("slow", "flat"), ("nice", "warm"), ("great", "grand"))


def texts_of(n, seed=0):
    """Distinct texts of two words of their class, one in three of a neighbouring one."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(n):
        code = number % 4
        near = int(np.clip(code + rng.choice([-1, 0, 1]), 0, 3))
        words = [rng.choice(WORDS[code]), rng.choice(WORDS[near])]
        texts.append(" ".join([*words, f"no{number}x{seed}"]))
        labels.append(ORDER[code])
    return texts, labels


def classifier(**options):
    given = {"prompts": PROMPTS, "random_state": 0, "store": False, "ordered": True}
    return PromptBoostingClassifier("deterministic", **given | options)


@pytest.fixture(scope="module")
def trained():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return classifier(classes=list(ORDER)).fit(*texts_of(120))


class TestOrder:
    def test_the_order_is_that_of_the_names(self):
        classes = np.array(sorted(ORDER))
        order = order_of(classes, ORDER)
        assert classes[order].tolist() == list(ORDER)

    @pytest.mark.parametrize(
        ("labels", "ordered"),
        [
            ([1, 2, 10], [1, 2, 10]),
            (["1", "10", "2"], ["1", "2", "10"]),
            (["-1", "0.5", "0"], ["-1", "0", "0.5"]),
            ([0.5, 1.5], [0.5, 1.5]),
        ],
    )
    def test_numbers_have_their_own(self, labels, ordered):
        classes = np.unique(labels)
        assert classes[order_of(classes, None)].tolist() == ordered

    @pytest.mark.parametrize("labels", [["bad", "good"], ["1", "1.0"], ["1", "nan"]])
    def test_others_have_none(self, labels):
        with pytest.raises(ValueError, match="name them from the lowest to the highest"):
            order_of(np.unique(labels), None)


class TestMedian:
    def test_the_median_by_hand(self):
        order = np.array([2, 0, 1])
        shares = np.array([[0.3, 0.3, 0.4], [0.1, 0.6, 0.3], [0.0, 0.5, 0.5], [0.2, 0.2, 0.6]])
        assert median_codes(shares, order).tolist() == [0, 1, 2, 2]

    def test_it_minimises_the_expected_error(self):
        rng = np.random.default_rng(0)
        shares = rng.dirichlet(np.ones(5), 200)
        order = rng.permutation(5)
        places = np.argsort(order)
        steps = np.abs(places[:, None] - places[None])
        expected = shares @ steps
        found = median_codes(shares, order)
        assert expected[np.arange(200), found] == pytest.approx(expected.min(axis=1))

    def test_errors_are_counted_in_steps(self):
        order = np.array([1, 0, 2])  # 1 < 0 < 2
        truth, given = np.array([1, 1, 0, 2]), np.array([1, 2, 2, 2])
        assert mean_absolute_error(truth, given, order) == pytest.approx((0 + 2 + 1 + 0) / 4)
        weight = np.array([1.0, 0, 1, 2])
        assert mean_absolute_error(truth, given, order, weight) == pytest.approx(1 / 4)
        perfect = evaluate_order(truth, truth, order)
        assert perfect.mean_absolute_error == 0
        assert perfect.quadratic_kappa == pytest.approx(1)

    def test_rows_without_an_answer_are_not_counted(self):
        order = np.arange(3)
        found = evaluate_order(np.array([0, 2, -2]), np.array([-1, 1, 0]), order)
        assert found.mean_absolute_error == 1
        none = evaluate_order(np.array([0]), np.array([-1]), order)
        assert none.mean_absolute_error is None
        assert none.quadratic_kappa is None
        same = evaluate_order(np.array([1, 1]), np.array([1, 1]), order)
        assert (same.mean_absolute_error, same.quadratic_kappa) == (0, None)


class TestEstimator:
    def test_predictions_are_medians_of_the_probabilities(self, trained):
        texts, _ = texts_of(60, seed=1)
        shares = trained.predict_proba(texts)
        columns = np.searchsorted(trained.classes_, ORDER)
        medians = (np.cumsum(shares[:, columns], axis=1) < 0.5 - 1e-9).sum(axis=1)
        given = trained.predict(texts)
        assert given.tolist() == [ORDER[place] for place in medians]
        assert (trained.labels_from_proba(shares) == given).all()
        assert (list(trained.staged_predict(texts))[-1] == given).all()
        assert (given != trained.classes_[shares.argmax(axis=1)]).any()

    def test_the_probabilities_are_those_without_an_order(self, trained):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = classifier(classes=list(ORDER), ordered=False).fit(*texts_of(120))
        texts, _ = texts_of(20, seed=1)
        np.testing.assert_array_equal(plain.predict_proba(texts), trained.predict_proba(texts))

    def test_the_summary_has_the_error_beside_baselines(self, trained):
        found = trained.training_summary_["held_out"]
        assert 0 <= found["mean_absolute_error"] < found["middle_class_error"]
        assert found["middle_class_error"] == pytest.approx(1.0)
        assert found["tfidf_error"] > 0

    def test_stars_need_no_names(self):
        texts, labels = texts_of(80)
        stars = [ORDER.index(label) + 1 for label in labels]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = classifier().fit(texts, stars)
        assert model.model_.order.tolist() == [0, 1, 2, 3]
        assert np.abs(model.predict(texts) - stars).mean() < 0.5

    def test_a_model_without_labels_has_the_order_of_its_names(self):
        names = names_of_the_lm(3)[::-1]
        model = classifier(classes=names, embeddings=None).fit(texts_of(40)[0])
        assert model.model_.ordered_labels() == names

    def test_no_order_is_an_error_before_anything_is_asked(self):
        lm = CountingBackend()
        with pytest.raises(ValueError, match="only numbers have one of their own"):
            classifier().set_params(backend=lm).fit(*texts_of(40))
        assert lm.calls == []

    def test_what_takes_the_most_probable_class_is_refused(self, trained):
        model = trained.__sklearn_clone__().set_params(early_stop="exact")
        model.model_ = trained.model_
        with pytest.raises(ValueError, match="takes the answers to all prompts"):
            model.predict(["a"])
        model.set_params(early_stop=None, max_error=0.2, abstain_label="?")
        with pytest.raises(ValueError, match="predicts the median of ordered ones"):
            model.predict(["a"])

    def test_texts_of_no_class_stay_so(self):
        texts, labels = texts_of(120)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = classifier(classes=list(ORDER), none_of_these="none").fit(texts, labels)
        given = model.predict([*texts[:8], "comet moon planet star"])
        assert set(given[:8]) <= {*ORDER, "none"}
        assert given[-1] == "none"

    def test_explanations_say_the_prediction(self, trained):
        texts, _ = texts_of(20, seed=1)
        for text in texts:
            assert trained.explain(text)["prediction"] == trained.predict([text])[0]


class TestFile:
    def test_a_file_keeps_the_order(self, trained, tmp_path):
        trained.save(tmp_path / "m.blackbox")
        read = load_model(tmp_path / "m.blackbox", backend="deterministic").set_params(store=False)
        texts, _ = texts_of(40, seed=1)
        assert (read.predict(texts) == trained.predict(texts)).all()
        assert read.model_.ordered_labels() == list(ORDER)

    @pytest.mark.parametrize(
        "order", [[0, 1, 2], [0, 1, 2, 2], [0, 1, 2, 4], "0123", [0.0, 1, 2, 3]]
    )
    def test_an_impossible_order_is_refused(self, trained, tmp_path, order):
        trained.save(tmp_path / "m.blackbox")
        with zipfile.ZipFile(tmp_path / "m.blackbox") as archive:
            told = json.loads(archive.read("model.json")) | {"order": order}
            arrays = archive.read("arrays.npz")
        with zipfile.ZipFile(tmp_path / "bad.blackbox", "w") as archive:
            archive.writestr("model.json", json.dumps(told))
            archive.writestr("arrays.npz", arrays)
        with pytest.raises(ModelFileError):
            read_model(tmp_path / "bad.blackbox")

    def test_merged_models_have_one_order(self, trained):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            plain = classifier(ordered=False).fit(*texts_of(60, seed=2))
            other = classifier(classes=list(ORDER)).fit(*texts_of(60, seed=2))
        with pytest.raises(ModelFileError, match="the order of their classes differs"):
            merge_models(trained.model_, plain.model_)
        assert merge_models(trained.model_, other.model_).ordered_labels() == list(ORDER)


@pytest.fixture
def files(trained, tmp_path):
    trained.save(tmp_path / "m.blackbox")
    for name, n, seed in (("train.csv", 60, 0), ("new.csv", 40, 1)):
        with (tmp_path / name).open("w", newline="") as file:
            rows = zip(*texts_of(n, seed), strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    (tmp_path / "prompts.txt").write_text("\n".join(p.replace("\n", "\\n") for p in PROMPTS))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--backend", "deterministic"])


class TestCommand:
    def test_train_says_how_far_predictions_are_off(self, files):
        train = (
            *("train", files / "train.csv", "--no-store", "--prompts", files / "prompts.txt"),
            *("--out", files / "n.blackbox"),
        )
        told = run(*train, "--ordered", "--classes", ",".join(ORDER))
        assert told.exit_code == 0, told.output
        assert "mean absolute error" in told.stderr
        assert "steps; always the middle class 1.000" in told.stderr
        assert read_model(files / "n.blackbox").ordered_labels() == list(ORDER)
        told = run(*train, "--ordered")
        assert told.exit_code != 0
        assert "name them from the lowest to the highest" in told.stderr
        assert "Traceback" not in told.output

    def test_predict_and_evaluate_use_the_median(self, files, trained):
        told = run(
            *("predict", files / "m.blackbox", files / "new.csv", "--out", files / "o.csv"),
            "--no-store",
        )
        assert told.exit_code == 0, told.output
        texts, labels = texts_of(40, seed=1)
        given = trained.predict(texts)
        with (files / "o.csv").open(newline="") as file:
            assert [row["prediction"] for row in csv.DictReader(file)] == given.tolist()
        told = run("evaluate", files / "m.blackbox", files / "new.csv", "--no-store")
        assert "mean abs. error" in told.stdout
        found = json.loads(
            run("evaluate", files / "m.blackbox", files / "new.csv", "--no-store", "--json").stdout
        )
        steps = [abs(ORDER.index(a) - ORDER.index(b)) for a, b in zip(given, labels, strict=True)]
        assert found["ordered"]["mean_absolute_error"] == pytest.approx(np.mean(steps))
        assert found["accuracy"] == pytest.approx(np.mean(given == labels))
        told = run(
            *("predict", files / "m.blackbox", files / "new.csv", "--out", files / "o.csv"),
            *("--max-error", 0.2),
        )
        assert told.exit_code == 2
        assert "predicts the median of ordered ones" in " ".join(told.stderr.split())

    def test_inspect_shows_the_order(self, files):
        told = run("inspect", files / "m.blackbox")
        assert f"ordered classes      {' < '.join(ORDER)}" in told.stdout
        assert json.loads(run("inspect", files / "m.blackbox", "--json").stdout)["order"] == list(
            ORDER
        )


def test_a_report_has_the_error(files):
    pytest.importorskip("jinja2", reason="a report needs the `report` extra")
    pytest.importorskip("matplotlib", reason="a report needs the `report` extra")
    for name in ("report.html", "card.md"):
        told = run(
            *("report", files / "m.blackbox", files / "new.csv", "--out", files / name),
            "--no-store",
        )
        assert told.exit_code == 0, told.output
        page = (files / name).read_text().lower()
        assert page.count("mean absolute error") >= 2


def test_the_service_gives_the_median(files, trained):
    pytest.importorskip("fastapi", reason="the service needs the `serve` extra")
    from tests.serving import running, served

    texts, _ = texts_of(40, seed=1)
    given = trained.predict(texts).tolist()
    with running(served(files / "m.blackbox")) as client:
        _, _, body = client.predict({"texts": texts})
        assert [one["label"] for one in body["predictions"]] == given
        _, _, described = client.get("/v1/model")
        assert described["order"] == list(ORDER)
        question = {
            "type": "choice",
            "name": "quality",
            "instructions": "How good?",
            "choices": [{"value": label} for label in ORDER],
        }
        for text, label in zip(texts[:8], given, strict=False):
            asked = {"input": text, "questions": [question]}
            _, _, body = client.ask("POST", "/v1/decisions", asked)
            assert body["answers"][0]["choice"] == label


@pytest.mark.slow
def test_the_study_compares_ways_to_use_an_order(tmp_path):
    from eval.studies import ordered

    folder = tmp_path / "tweet_sentiment"
    folder.mkdir()
    names = dict(zip(ORDER, (*ordered.TWEETS, "positive"), strict=True))
    rng = np.random.default_rng(0)
    with (tmp_path / "graded.txt").open("w") as file:
        for number, (text, label) in enumerate(zip(*texts_of(1200), strict=True)):
            rating = (ORDER.index(label) - 1.5) * 2 + rng.uniform(-1, 1)
            file.write(f"{number}\t{rating}\t{text}\n")
    for part, n in (("train", 400), ("test", 210)):
        texts, labels = texts_of(n, seed=len(part))
        with (folder / f"{part}.csv").open("w", newline="") as file:
            rows = zip(texts, map(names.get, labels), strict=True)
            csv.writer(file).writerows([("text", "label"), *rows])
    told = CliRunner().invoke(
        ordered.main,
        [
            *("--data-dir", str(tmp_path), "--graded", str(tmp_path / "graded.txt")),
            *("--shots", "8", "--backend", "deterministic"),
            *("--store", str(tmp_path / "passes.sqlite")),
        ],
        catch_exceptions=False,
    )
    rows = [line.strip("| ").split(" | ") for line in told.output.splitlines() if line[:2] == "| "]
    errors = {(row[0], row[2]): float(row[3].split(" ± ")[0]) for row in rows[1:]}
    assert len(errors) == 10
    assert errors["films", "median"] <= errors["films", "most probable class"]
