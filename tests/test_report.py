"""Reports: one page with nothing from outside, a card, plots, and what a notebook shows."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("jinja2", reason="a report needs the `report` extra")
pytest.importorskip("matplotlib", reason="a report needs the `report` extra")

from matplotlib.figure import Figure

from blackbox import PromptBoostingClassifier, load_model, plotting
from blackbox.answers.texts import CheckedTexts
from blackbox.cli import main
from blackbox.cli.report import hub_metadata
from blackbox.explain import describe_learners
from blackbox.model.display import prompt_tokens
from blackbox.protocol import BackendIdentity
from blackbox.report import (
    HubMetadata,
    collect_report_data,
    measure_model,
    render_card,
    render_html,
)

EVIL = "<script>alert(1)</script>"
TEXTS = ["match goal", "bank loan", "goal team", "loan market", "team match", "market bank"] * 4
LABELS = ["sport", "money"] * 12
PROMPTS = ["{text} It was {mask}", "{text}\nTopic: {mask}", "{text} This is about {mask}"]
BACKEND = ["--backend", "deterministic", "--no-store"]


def about(classifier, name, rows=None, *, include_texts=False):
    """Return what a report says of a classifier, measured where there are rows."""
    measured = None
    if rows is not None:
        source, texts, codes = rows
        measured = measure_model(
            classifier.model_,
            classifier.connect(),
            source,
            CheckedTexts(texts),
            codes,
            include_texts=include_texts,
        )
    cost = getattr(classifier, "usage_", None)
    return collect_report_data(classifier.model_, name, measured, cost)


def trained(labels=LABELS, **options):
    options = {"prompts": PROMPTS, "random_state": 0, "store": False, "n_estimators": 12} | options
    return PromptBoostingClassifier("deterministic", **options).fit(TEXTS, labels)


@pytest.fixture
def table(tmp_path):
    rows = [f"{text},{label}" for text, label in zip(TEXTS, LABELS, strict=True)]
    # one text with either label, so that one of the two rows is a mistake
    rows[2:4] = ["a secret text about the loan,sport", "a secret text about the loan,money"]
    (tmp_path / "held-out.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "held-out.csv"


def run(*arguments):
    return CliRunner().invoke(main, ["report", *map(str, arguments)])


class Reader(HTMLParser):
    """Tags that are open, and what they refer to."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.references, self.ids = [], [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [v for k, v in attrs if k == "id"]
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
        assert "<h2>Evaluation" not in page
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
        assert all(reference[1:] in reader.ids for reference in reader.references)
        assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(reader.ids)
        assert len(set(reader.ids)) == len(reader.ids) > 0
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
        evil = dict.fromkeys(classifier.token_bytes_, EVIL.encode())
        classifier.model_ = replace(classifier.model_, token_bytes=evil)
        rows = EVIL, [(f"{text} {EVIL}", None) for text in TEXTS], np.zeros(24, int)
        page = render_html(about(classifier, EVIL, rows, include_texts=True))
        assert "script" not in read(page).tags
        assert page.count("&lt;script&gt;") > 10
        assert EVIL not in page
        body = render_card(about(classifier, "m", rows)).split("---\n", 2)[2]
        assert EVIL not in re.sub(r"`+.*?`+", "", body)
        shown = classifier._repr_html_()
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
        assert EVIL not in shown.partition("<details><summary>12 weak")[2]

    def test_rows_without_an_answer(self):
        texts = [("match", None), ("", None), ("bank", None)]
        page = render_html(about(trained(), "m", ("d", texts, np.array([1, 0, 0]))))
        assert "66.7% of the rows" in page

    def test_it_tells_what_training_and_measuring_took(self, table, tmp_path):
        classifier = trained()
        rows = "d", [(text, None) for text in TEXTS], np.array([0, 1] * 12)
        usage = classifier.usage_
        took = f"{usage.passes_made} forward passes made, 0 from the store, {usage.tokens} tokens"
        for page in (
            render_html(about(classifier, "m", rows)),
            render_card(about(classifier, "m", rows)),
        ):
            assert f"{took}, US$0" in page
            assert "72 forward passes made" in page
        classifier.save(tmp_path / "m")
        loaded = load_model(tmp_path / "m", backend="deterministic")
        assert about(loaded, "m").cost is None
        n = usage.passes_made
        assert f"{n} forward passes, including cached ones" in render_html(about(loaded, "m"))
        loaded.model_ = replace(loaded.model_, summary={"forward_passes": EVIL})
        page = render_html(about(loaded, "m"))
        assert "an unknown number of forward passes" in page
        assert EVIL not in page

    def test_what_is_left_out_of_many_classes_is_said(self, monkeypatch):
        monkeypatch.setattr("blackbox.report.render._MAX_CLASSES", 1)
        rows = "d", [(text, None) for text in TEXTS], np.array([0, 1] * 12)
        facts = about(trained(), "m", rows)
        page = render_html(facts)
        assert "Not shown for more than 1 class (there are 2)" in page
        assert "and 1 more classes" in page
        assert "not shown for more than 1 class (there are 2)" in render_card(facts)

    def test_a_name_is_quoted_for_the_shell_and_for_python(self):
        name = "a \"m\" 'x'; rm -rf ~"
        pres = [
            p.partition("</pre>")[0]
            for p in render_html(about(trained(), name)).split('<pre tabindex="0">')[1:]
        ]
        shell, python = (unescape(one) for one in pres)
        assert shlex.split(shell.splitlines()[0])[2] == name
        call = next(line for line in python.splitlines() if "load_model(" in line)
        assert ast.literal_eval(call.partition("load_model(")[2][:-1]) == name

    def test_what_scrolls_is_reached_by_keyboard(self):
        rows = "d", [(text, None) for text in TEXTS], np.array([0, 1] * 12)
        page = render_html(about(trained(), "m", rows, include_texts=True))
        for scrolls in re.findall(r"<pre[^>]*>|<div class=.wide.[^>]*>", page):
            assert 'tabindex="0"' in scrolls
            assert scrolls.startswith("<pre") or "aria-label" in scrolls

    @pytest.mark.posix
    def test_it_is_not_written_over_what_it_is_about(self, tmp_path, table):
        trained().save(tmp_path / "m")
        before = (tmp_path / "m").read_bytes(), table.read_bytes()
        (tmp_path / "link").symlink_to(tmp_path / "m")
        for out in (tmp_path / "m", tmp_path / "link", table):
            done = run(tmp_path / "m", table, "--out", out, *BACKEND)
            assert done.exit_code == 2
            assert "give another file" in done.output
        assert before == ((tmp_path / "m").read_bytes(), table.read_bytes())

    def test_a_folder_that_is_not_there(self, tmp_path):
        trained().save(tmp_path / "m")
        assert run(tmp_path / "m", "--out", tmp_path / "none" / "r.html").exit_code == 2


def test_the_ending_of_a_report_decides_its_format_or_is_refused(tmp_path):
    trained().save(tmp_path / "m")
    for name, begins in (("r.html", "<!doctype"), ("r.HTM", "<!doctype"), ("r.md", "---\n")):
        assert run(tmp_path / "m", "--out", tmp_path / name).exit_code == 0
        assert (tmp_path / name).read_text().startswith(begins)
    for name, kind, said in (
        ("r.pdf", (), "an HTML page (.html) or a model card (.md)"),
        ("r.html", ("--format", "card"), "is not the ending of --format card"),
        ("r.md", ("--format", "html"), "is not the ending of --format html"),
    ):
        done = run(tmp_path / "m", "--out", tmp_path / name, *kind)
        assert done.exit_code == 2
        assert said in " ".join(done.output.split())
    assert run(tmp_path / "m", "--out", tmp_path / "CARD", "--format", "card").exit_code == 0
    assert (tmp_path / "CARD").read_text().startswith("---")


def test_a_card_names_licence_base_models_and_languages_where_they_are_known(tmp_path):
    yaml = pytest.importorskip("yaml")

    def metadata(hub):
        facts = replace(about(trained(), "m"), hub=hub)
        return yaml.safe_load(render_card(facts).split("---\n", 2)[1])

    known = metadata(HubMetadata("apache-2.0", ("a/b", "c/d"), ("no", "de")))
    assert known["license"] == "apache-2.0"
    assert known["base_model"] == ["a/b", "c/d"]
    assert known["language"] == ["no", "de"]  # and not false, as YAML reads it without quotes
    assert not {"license", "base_model", "language"} & metadata(HubMetadata()).keys()
    trained().save(tmp_path / "m")
    done = run(tmp_path / "m", "--out", tmp_path / "c.md", "--license", "mit", "--language", "de")
    assert done.exit_code == 0
    card = (tmp_path / "c.md").read_text()
    assert 'license: "mit"' in card
    assert "pypi.org" not in card  # the index has no such page


def test_the_catalogue_knows_origin_and_licence_of_the_embedded_lm():
    lm = BackendIdentity("onnx", "in-process", "smollm2-135m")
    embedder = BackendIdentity("onnx", "in-process", "all-minilm-l6-v2")
    found = hub_metadata(SimpleNamespace(identity=lm, embedder_identity=embedder), None, ())
    assert found.licence == "apache-2.0"
    assert found.base_models == (
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        "sentence-transformers/all-MiniLM-L6-v2",
    )
    assert found.languages == ("en",)


def test_a_card_has_the_metadata_of_the_hub(tmp_path, table):
    yaml = pytest.importorskip("yaml")
    trained().save(tmp_path / 'a "model"')
    done = run(
        tmp_path / 'a "model"', table, "--out", tmp_path / "card.md", "--format", "card", *BACKEND
    )
    assert done.exit_code == 0, done.output
    card = (tmp_path / "card.md").read_text()
    _, metadata, body = card.split("---\n", 2)
    told = yaml.safe_load(metadata)
    assert told["pipeline_tag"] == "text-classification"
    (result,) = told["model-index"][0]["results"]
    assert told["model-index"][0]["name"] == 'a "model"'
    assert 0.5 < result["metrics"][0]["value"] < 1
    assert "secret" not in body
    assert "load_model('a \"model\"')" in body
    # code with bars and backticks stays in its cell
    classifier = trained(prompts=["`a` | {text} {mask}"])
    row = next(line for line in render_card(about(classifier, "m")).splitlines() if "`a`" in line)
    assert row.count(" | ") == 1


def test_a_card_tells_what_the_page_tells():
    rows = "d", [(text, None) for text in TEXTS], np.array([0, 1] * 12)
    classifier = trained()
    card = render_card(about(classifier, "m", rows))
    assert "| after round | 1 | 3 | 6 | 9 | 12 |" in card
    assert "| | `money` | `sport` |" in card
    assert "| mean confidence | accuracy | rows |" in card
    assert "mistakes" not in card
    card = render_card(about(classifier, "m", rows, include_texts=True))
    assert "| `match goal` | `money` | `sport` |" in card


def test_a_card_stays_markdown_whatever_a_model_says():
    yaml = pytest.importorskip("yaml")
    labels = [f"sport\n\n{EVIL}" if label == "sport" else "money" for label in LABELS]
    rows = f"d\n{EVIL}", [(f"{text}\n\n{EVIL}", None) for text in TEXTS], np.array([0, 1] * 12)
    facts = about(trained(labels), "😀\n.blackbox", rows, include_texts=True)
    facts.language_model["provider"] = f"x\n\n{EVIL}"
    _, metadata, body = render_card(facts).split("---\n", 2)
    assert yaml.safe_load(metadata)["model-index"][0]["name"] == "😀\\n.blackbox"
    for line in body.splitlines():
        assert EVIL not in re.sub(r"`[^`]+`", "", line)


class TestTokens:
    def test_weights_are_what_learners_say_together(self):
        classifier = trained()
        told = prompt_tokens(classifier.model_, 0)
        template = classifier.prompts_[0].template
        spoken = {"money": {}, "sport": {}}
        for learner in describe_learners(classifier.model_):
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
        assert plotting.plot_tokens(classifier.model_, 0, ax=axes[3]) is axes[3]
        assert len(axes[3].patches) > 2
        axes[0].figure.canvas.draw()


def test_a_notebook_shows_parameters_and_what_was_learned():
    assert "weak learners over" not in PromptBoostingClassifier()._repr_html_()
    classifier = trained()
    shown = classifier._repr_mimebundle_()["text/html"]
    assert "PromptBoostingClassifier" in shown
    assert f"12 weak learners over {len(classifier.prompts_)} prompts, 2 classes" in shown
