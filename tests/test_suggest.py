"""Suggestions of texts to label next: the choice, the estimator and the command."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from click.testing import CliRunner

from blackbox import PromptBoostingClassifier
from blackbox.cli import main
from blackbox.errors import RowError
from blackbox.model.suggestion import choose_spread, evidence_vectors, uncertainty
from tests.fakes import CountingBackend, RefusingBackend

PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]
SPORT, MONEY = ("match", "goal", "team", "player"), ("bank", "loan", "market", "price")


def texts_of(n, seed=0):
    """Distinct texts, of two classes in turn."""
    rng = np.random.default_rng(seed)
    texts, labels = [], []
    for number in range(n):
        words = list(rng.choice((SPORT, MONEY)[number % 2], 2))
        texts.append(" ".join([*words, f"no{number}x{seed}"]))
        labels.append(("sport", "money")[number % 2])
    return texts, labels


def trained_on(lm="deterministic", n=40, **options):
    options = {"prompts": PROMPTS, "random_state": 0, "store": False} | options
    return PromptBoostingClassifier(lm, **options).fit(*texts_of(n))


@pytest.fixture(scope="module")
def trained():
    return trained_on()


class TestChoice:
    def test_uncertainty_is_one_less_the_margin_of_the_two_most_probable(self):
        shares = np.array([[0.5, 0.5, 0.0], [0.1, 0.7, 0.2], [0.0, 0.0, 1.0]])
        assert uncertainty(shares).tolist() == pytest.approx([1.0, 0.5, 0.0])
        assert uncertainty(np.empty((0, 2))).tolist() == []

    def test_each_cluster_gives_the_row_nearest_to_its_centre_the_heaviest_first(self):
        # three groups on a circle, of which the model is certain of the largest
        angles = np.array([0.0, 0.1, 0.2, 1.9, 2.0, 2.1, 4.0, 4.05, 4.1, 4.15, 4.2])
        vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        weights = np.array([0.2] * 3 + [0.9] * 3 + [0.01] * 5)
        assert choose_spread(weights, vectors, 3).tolist() == [4, 1, 8]

    def test_near_copies_come_last_whatever_their_weight(self):
        rng = np.random.default_rng(0)
        some = rng.normal(size=(6, 50))
        copies = some[:1] + 1e-9 * rng.normal(size=(20, 50))
        vectors = np.concatenate([some, copies])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        weights = np.concatenate([np.full(6, 0.1), np.ones(20)])
        chosen = choose_spread(weights, vectors, 26).tolist()
        assert sorted(chosen) == list(range(26))
        first = choose_spread(weights, vectors, 6).tolist()
        assert set(first) - {0, *range(6, 26)} == set(range(1, 6))  # and one of the others

    def test_where_the_model_is_certain_of_all_the_choice_is_still_spread(self):
        vectors = np.repeat(np.eye(3), 4, axis=0)
        assert sorted(choose_spread(np.zeros(12), vectors, 3) // 4) == [0, 1, 2]

    def test_no_more_rows_than_there_are(self):
        assert sorted(choose_spread(np.ones(2), np.eye(2), 5)) == [0, 1]
        assert choose_spread(np.ones(0), np.empty((0, 3)), 5).tolist() == []


class TestEstimator:
    def test_of_copies_one_is_chosen_at_most(self, trained):
        texts = texts_of(100, seed=1)[0]
        rows = trained.suggest([*texts, *texts[:50]], 30)
        assert len(set(rows.tolist())) == 30
        assert rows.max() < 100
        assert len(trained.suggest(texts[:7] * 3, 30)) == 7

    def test_they_are_farther_apart_than_the_most_uncertain_ones(self, trained):
        texts = texts_of(200, seed=2)[0]
        rows = trained.suggest(texts, 10)
        predictions, evidence = trained.model_.read(trained.connect(), texts)
        vectors = evidence_vectors(trained.model_, evidence)
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(200))
        margins = 1 - uncertainty(predictions.probabilities)

        def nearest(some):
            return np.sort(vectors[some] @ vectors[some].T, axis=1)[:, -2].mean()

        assert nearest(rows) < nearest(np.argsort(margins)[:10])

    def test_texts_that_were_labelled_are_left_out(self, trained):
        lm = CountingBackend()
        model = trained_on(lm)
        old, new = texts_of(40)[0], texts_of(10, seed=1)[0]
        lm.calls.clear()
        rows = model.suggest([*old, *new], 20)
        assert sorted(rows.tolist()) == list(range(40, 50))
        assert len(lm.asked) == 10 * len(model.prompts_)
        assert trained.suggest(old, 20).tolist() == []

    def test_a_model_without_labels_suggests_of_its_own_texts(self):
        from tests.test_names_only import NAMES

        texts = texts_of(40)[0]
        model = PromptBoostingClassifier(
            "deterministic", prompts=PROMPTS, classes=NAMES, store=False, random_state=0
        ).fit(texts)
        rows = model.suggest(texts, 5)
        assert len(rows) == 5
        labels = np.full(40, None, object)
        labels[rows] = [NAMES[place % 3] for place in range(5)]
        again = model.fit(texts, labels).suggest(texts, 40)
        assert set(again.tolist()) == set(range(40)) - set(rows.tolist())

    @pytest.mark.parametrize("options", [{"embeddings": "deterministic"}, {"algorithm": "samme"}])
    def test_every_kind_of_model_suggests(self, options):
        model = trained_on(**options)
        texts = texts_of(60, seed=1)[0]
        rows = model.suggest(texts)
        assert len(rows) == 20
        assert (model.suggest(texts) == rows).all()

    def test_rows_without_an_answer_follow_the_policy(self):
        model = trained_on(RefusingBackend("refuse"))
        texts = [*texts_of(6, seed=1)[0], "refuse this", ""]
        with pytest.raises(RowError):
            model.suggest(texts)
        model.set_params(on_row_error="abstain")
        assert sorted(model.suggest(texts).tolist()) == list(range(6))
        assert set(model.row_errors_) == {6, 7}

    def test_a_number_below_one_is_refused(self, trained):
        with pytest.raises(ValueError, match="n must be at least 1, got 0"):
            trained.suggest(["a text"], 0)


def invoke(*arguments):
    return CliRunner().invoke(main, ["suggest", *map(str, arguments)])


class TestCommand:
    @pytest.fixture
    def folder(self, tmp_path, trained):
        trained.save(tmp_path / "m.blackbox")
        texts, labels = texts_of(60, seed=3)
        rows = [
            (number, text, label if number < 10 else "")
            for number, (text, label) in enumerate(zip(texts, labels, strict=True))
        ]
        rows += [(60, texts[30], ""), (61, "", ""), (62, texts_of(1)[0][0], "")]
        with (tmp_path / "t.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("id", "text", "label"), *rows])
        return tmp_path

    def suggest(self, folder, *options, data="t.csv"):
        return invoke(
            folder / "m.blackbox",
            folder / data,
            "--backend",
            "deterministic",
            "--no-store",
            *options,
        )

    def test_it_writes_a_table_to_label(self, folder):
        result = self.suggest(folder, "--n", "5", "--out", folder / "out.csv")
        assert result.exit_code == 0, result.output
        with (folder / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["id", "text", "label", "prediction", "probability"]
        assert len(rows) == 5
        assert all(10 <= int(row["id"]) < 60 for row in rows)
        assert {row["label"] for row in rows} == {""}
        assert {row["prediction"] for row in rows} <= {"sport", "money"}
        assert all(0.5 <= float(row["probability"]) <= 1 for row in rows)
        for words in (
            "5 texts of 50 suggested",
            "left out: 10 rows with a label, 1 row that the model was trained on, 1 copy, 1 row "
            "without an answer (row 62: empty text)",
        ):
            assert words in result.stderr

    def test_the_labelled_table_trains(self, folder):
        self.suggest(folder, "--n", "40", "--out", folder / "out.csv")
        with (folder / "out.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        truth = dict(zip(*texts_of(60, seed=3), strict=True))
        for row in rows:
            row["label"] = truth[row["text"]]
        with (folder / "labelled.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        (folder / "p.txt").write_text("\n".join(p.replace("\n", "\\n") for p in PROMPTS))
        result = CliRunner().invoke(
            main,
            [
                *("train", str(folder / "labelled.csv"), "--out", str(folder / "m2.blackbox")),
                *("--backend", "deterministic", "--no-store", "--prompts", str(folder / "p.txt")),
            ],
        )
        assert result.exit_code == 0, result.output

    def test_standard_output_is_the_default_and_a_column_of_labels_is_added(self, folder):
        with (folder / "bare.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("text",), *((text,) for text in texts_of(30, seed=4)[0])])
        result = self.suggest(folder, "--n", "3", "--label-column", "kind", data="bare.csv")
        rows = list(csv.DictReader(io.StringIO(result.stdout)))
        assert [list(row) for row in rows] == [["text", "kind", "prediction", "probability"]] * 3

    def test_json_lists_the_rows(self, folder):
        result = self.suggest(folder, "--n", "4", "--json")
        found = json.loads(result.stdout)
        assert len(found["suggestions"]) == 4
        assert set(found["suggestions"][0]) == {"row", "text", "prediction", "probability"}
        counts = {name: found[name] for name in ("rows", "labelled", "candidates", "abstained")}
        assert counts == {"rows": 53, "labelled": 10, "candidates": 50, "abstained": 1}
        assert (found["trained_on"], found["copies"], found["out"]) == (1, 1, None)
        assert found["usage"]["passes_made"] > 0

    def test_a_copy_of_a_labelled_row_is_no_text_to_label(self, folder):
        rows = [("Where is my parcel?", ""), ("I lost my key", ""), ("What a day", "")]
        with (folder / "copies.csv").open("w", newline="") as file:
            labelled = ("Where is my parcel?", "delivery")
            csv.writer(file).writerows([("text", "label"), *rows, labelled, ("", "none")])
        found = json.loads(self.suggest(folder, "--json", data="copies.csv").stdout)
        assert {one["text"] for one in found["suggestions"]} == {"I lost my key", "What a day"}
        assert (found["rows"], found["labelled"], found["copies"]) == (3, 2, 1)
        told = self.suggest(folder, data="copies.csv").stderr
        assert "left out: 2 rows with a label, 1 copy" in told
        assert "drawn at random" not in told

    def test_of_many_rows_some_are_drawn(self, folder):
        first = self.suggest(folder, "--candidates", "20", "--json")
        again = self.suggest(folder, "--candidates", "20", "--json")
        found, same = (json.loads(one.stdout) for one in (first, again))
        assert found["suggestions"] == same["suggestions"]
        assert (
            found["candidates"] + found["copies"] + found["abstained"] + found["trained_on"] == 20
        )
        rows = [one["row"] for one in found["suggestions"]]
        assert max(rows) > 30
        told = self.suggest(folder, "--candidates", "20", "--n", "2")
        assert "20 of 53 rows without a label were drawn at random" in told.stderr

    def test_jsonl_keeps_its_keys(self, folder):
        lines = [{"text": text, "more": [1]} for text in texts_of(8, seed=5)[0]]
        (folder / "t.jsonl").write_text("\n".join(map(json.dumps, lines)))
        self.suggest(folder, "--n", "2", "--out", folder / "o.jsonl", data="t.jsonl")
        rows = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
        assert [set(row) for row in rows] == [
            {"text", "more", "label", "prediction", "probability"}
        ] * 2
        assert {row["label"] for row in rows} == {None}

    def test_mistakes_are_told_in_a_line(self, folder):
        (folder / "full.csv").write_text("text,label\none,sport\ntwo,money\n")
        (folder / "known.csv").write_text("text,label\none,sport\none,\n")
        (folder / "taken.csv").write_text("text,prediction\none,sport\n")
        for options, data, words, code in (
            ((), "full.csv", "all 2 rows have a label in column 'label'", 1),
            ((), "known.csv", "all texts of rows without a label have one in another row", 1),
            ((), "taken.csv", "column 'prediction' exists, and suggest adds it", 1),
            (("--text-column", "words"), "t.csv", "words", 1),
            (("--json", "--out", "-"), "t.csv", "both write to standard output", 2),
            (("--out", folder / "t.csv"), "t.csv", "is an input of this command", 2),
            (("--text-pair-column", "id"), "t.csv", "trained on single texts", 2),
            (("--n", "0"), "t.csv", "--n", 2),
        ):
            result = self.suggest(folder, *options, data=data)
            assert result.exit_code == code, result.output
            assert words in result.stderr
            assert "Traceback" not in result.stderr
