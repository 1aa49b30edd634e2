"""Reports: one page with nothing from outside, a card, plots, and what a notebook shows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("jinja2", reason="a report needs the `report` extra")
pytest.importorskip("matplotlib", reason="a report needs the `report` extra")

from matplotlib.figure import Figure

from blackbox import PromptBoostingClassifier, load_model, plotting
from blackbox.cli import main
from blackbox.explain import describe_learners
from blackbox.report import gather, render_card, render_html
from blackbox.wording import prompt_tokens

EVIL = "<script>alert(1)</script>"
TEXTS = ["match goal", "bank loan", "goal team", "loan market", "team match", "market bank"] * 4
LABELS = ["sport", "money"] * 12
BACKEND = ["--backend", "deterministic", "--no-store"]


def trained(labels=LABELS, **options):
    options = {"n_prompts": 3, "random_state": 0, "store": False, "n_estimators": 12} | options
    return PromptBoostingClassifier("deterministic", **options).fit(TEXTS, labels)


@pytest.fixture
def table(tmp_path):
    rows = [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    rows[3] = "a secret text about the loan,sport"
    (tmp_path / "held-out.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "held-out.csv"


def run(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


class Reader(HTMLParser):
    """Tags that are open, and what they refer to."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.references = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.references += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action")]
        if tag not in ("meta", "br", "img", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open
        assert self.open.pop() == tag


def read(page):
    reader = Reader()
    reader.feed(page)
    assert reader.open == []
    return reader


class TestPage:
    def test_of_a_model_alone(self, tmp_path):
        trained().save(tmp_path / "m")
        done = run(tmp_path / "m", "--out", tmp_path / "r.html")
        assert done.exit_code == 0, done.output
        page = (tmp_path / "r.html").read_text()
        read(page)
        assert "What it is worth" not in page
        for prompt in load_model(tmp_path / "m", backend="deterministic").prompts_:
            assert prompt.template.split("{")[0].split("\n")[0] in page

    @pytest.mark.parametrize("algorithm", ["logit", "samme"])
    def test_with_labelled_rows(self, tmp_path, table, algorithm):
        trained(algorithm=algorithm).save(tmp_path / "m")
        done = run(tmp_path / "m", table, "--out", tmp_path / "r.html", *BACKEND)
        assert done.exit_code == 0, done.output
        page = (tmp_path / "r.html").read_text()
        reader = read(page)
        # marks of a picture refer to each other, and nothing refers to anything outside
        assert all(reference.startswith("#") for reference in reader.references)
        assert "http://" not in page
        assert "https://" not in page
        assert "script" not in reader.tags
        assert reader.tags.count("svg") >= 1
        assert "24 rows of held-out.csv" in page
        assert "secret" not in page

    def test_mistakes_only_with_leave(self, tmp_path, table):
        trained().save(tmp_path / "m")
        run(tmp_path / "m", table, "--out", tmp_path / "r.html", "--include-texts", *BACKEND)
        page = (tmp_path / "r.html").read_text()
        assert "a secret text about the loan" in page
        assert "most confident mistakes" in page
        assert run(tmp_path / "m", "--out", tmp_path / "r.html", "--include-texts").exit_code == 2

    def test_what_a_model_says_is_text_and_never_markup(self):
        labels = [EVIL if label == "sport" else "money" for label in LABELS]
        classifier = trained(labels, prompts=[EVIL + " {text} {mask}", "{text} about {mask}"])
        classifier.token_bytes_ = dict.fromkeys(classifier.token_bytes_, EVIL.encode())
        rows = EVIL, [(f"{text} {EVIL}", None) for text in TEXTS], np.zeros(24, int)
        page = render_html(gather(classifier, EVIL, rows, include_texts=True))
        assert "script" not in read(page).tags
        assert page.count("&lt;script&gt;") > 10
        assert EVIL not in page
        body = render_card(gather(classifier, "m", rows)).split("---\n", 2)[2]
        assert EVIL not in re.sub(r"`+.*?`+", "", body)
        shown = classifier._repr_html_()
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
        assert EVIL not in shown.partition("<details><summary>12 weak")[2]

    def test_rows_without_an_answer(self, tmp_path):
        trained().save(tmp_path / "m")
        (tmp_path / "d.csv").write_text('text,label\nmatch,sport\n"",money\nbank,money\n')
        done = run(tmp_path / "m", tmp_path / "d.csv", "--out", tmp_path / "r.html", *BACKEND)
        assert done.exit_code == 0, done.output
        assert "66.7% of the rows" in (tmp_path / "r.html").read_text()

    def test_a_folder_that_is_not_there(self, tmp_path):
        trained().save(tmp_path / "m")
        assert run(tmp_path / "m", "--out", tmp_path / "none" / "r.html").exit_code == 2


def test_a_card_has_the_metadata_of_the_hub(tmp_path, table):
    yaml = pytest.importorskip("yaml")
    trained().save(tmp_path / 'a "model"')
    done = run(tmp_path / 'a "model"', table, "--out", tmp_path / "card.md", "--format", "card",
               *BACKEND)  # fmt: skip
    assert done.exit_code == 0, done.output
    card = (tmp_path / "card.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    told = yaml.safe_load(metadata)
    assert told["pipeline_tag"] == "text-classification"
    (result,) = told["model-index"][0]["results"]
    assert told["model-index"][0]["name"] == 'a "model"'
    assert 0.5 < result["metrics"][0]["value"] < 1
    assert "secret" not in body
    assert json.dumps('a "model"') in body
    # code with bars and backticks stays in its cell
    classifier = trained(prompts=["`a` | {text} {mask}"])
    row = next(line for line in render_card(gather(classifier, "m")).splitlines() if "`a`" in line)
    assert row.count(" | ") == 1


class TestTokens:
    def test_weights_are_what_learners_say_together(self):
        classifier = trained()
        told = prompt_tokens(
            classifier.ensemble_, 0, classifier.classes_.tolist(), classifier.token_bytes_
        )
        template = classifier.prompts_[0].template
        spoken = {"money": {}, "sport": {}}
        for learner in describe_learners(classifier):
            if learner["prompt"] == template:
                for label, tokens in learner["tokens"].items():
                    for token, weight in tokens:
                        spoken[label][token] = (
                            spoken[label].get(token, 0.0) + weight * learner["weight"]
                        )
        names = {*spoken["money"], *spoken["sport"]}
        for label, other in (("money", "sport"), ("sport", "money")):
            found = dict(told[label])
            for token in names:
                both = spoken[label].get(token, 0.0), spoken[other].get(token, 0.0)
                assert found.get(token, 0.0) == pytest.approx((both[0] - both[1]) / 2, abs=1e-6)
            sizes = [abs(weight) for _, weight in told[label]]
            assert sizes == sorted(sizes, reverse=True)


class TestPlots:
    def test_each_draws_on_what_it_is_given(self):
        classifier = trained()
        axes = Figure().subplots(2, 2).ravel()
        probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [np.nan, np.nan]])
        codes = np.array([0, 1, 1, 0])
        assert plotting.plot_rounds([0.5, 0.75], axes[0]) is axes[0]
        assert plotting.plot_reliability(codes, probabilities, axes[1]) is axes[1]
        points = np.concatenate([np.asarray(c.get_offsets()) for c in axes[1].collections])
        assert points == pytest.approx(np.array([[0.6, 0.0], [0.8, 1.0], [0.9, 1.0]]))
        assert plotting.plot_confusion([[2, 1], [0, 3]], ["a", "b $x$"], axes[2]) is axes[2]
        assert [t.get_text() for t in axes[2].texts] == ["2", "1", "0", "3"]
        assert plotting.plot_tokens(classifier, 0, ax=axes[3]) is axes[3]
        assert len(axes[3].patches) > 2
        axes[0].figure.canvas.draw()


def test_a_notebook_shows_parameters_and_what_was_learned():
    assert "weak learners over" not in PromptBoostingClassifier()._repr_html_()
    classifier = trained()
    shown = classifier._repr_mimebundle_()["text/html"]
    assert "PromptBoostingClassifier" in shown
    assert f"12 weak learners over {len(classifier.prompts_)} prompts, 2 classes" in shown
