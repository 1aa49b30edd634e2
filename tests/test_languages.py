"""Languages: built-in prompts in several, by choice or by the texts, and their truncation."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib import resources

import pytest
from click.testing import CliRunner

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier, load_model
from blackbox.cli import main
from blackbox.generation import builtin_pool
from blackbox.generation.builtin import read_templates
from blackbox.languages import LANGUAGES, common_languages
from blackbox.protocol import Limits

FULL = Limits(
    max_top_k=5,
    max_score_ids=0,
    context_length=512,
    deterministic=True,
    chat=True,
    answer_prefix=True,
)
CONVERSATIONS = Limits(
    max_top_k=5,
    max_score_ids=0,
    context_length=512,
    deterministic=True,
    raw_text=False,
    chat=True,
)
GERMAN = [
    f"{text} {number}"
    for number in range(1, 5)
    for text in (
        "Das Essen war hervorragend und wir kommen gerne wieder, Tisch",
        "Leider war die Bedienung unfreundlich und das Zimmer laut, Nummer",
    )
]
LABELS = ["gut", "schlecht"] * 4
ENGLISH = [
    f"What have you got for the {number} of us, and how does it taste?" for number in range(8)
]


def fit(texts, lm=None, **parameters):
    given = {"store": False, "embeddings": None, "random_state": 0, "n_estimators": 5, "cv": None}
    classifier = PromptBoostingClassifier(lm or DeterministicBackend(), **given | parameters)
    return classifier.fit(texts, LABELS)


def templates(pool):
    return [prompt.template for prompt in pool]


@pytest.mark.parametrize("language", LANGUAGES)
def test_each_language_has_prompts_for_each_kind_of_lm_and_of_text(language):
    for limits in (FULL, CONVERSATIONS):
        for kind in ("text", "pair"):
            plain = builtin_pool(kind=kind, limits=limits, languages=[language])
            asked = builtin_pool(
                kind=kind,
                limits=limits,
                languages=[language],
                class_names=["aa", "bb", "cc"],
                task="T?",
            )
            assert len(plain) >= (3 if kind == "pair" else 8)
            assert len(asked) > len(plain)
            assert any("T?" in template for template in templates(asked))
            listed = [one for one in templates(asked) if "aa" in one and "bb" in one]
            assert listed or kind == "pair"
            assert all((" or " in one) == (language == "en") for one in listed)


def test_each_file_of_templates_is_a_language_or_another_known_one():
    folder = resources.files("blackbox.generation").joinpath("templates")
    found = {one.name.removesuffix(".txt") for one in folder.iterdir()}
    assert found == {*LANGUAGES, "more", "questions"}


def test_scripts_without_spaces_have_none_before_the_answer():
    for prompt in read_templates("zh", limits=FULL, class_names=["体育", "政治"]):
        assert " " not in prompt.template.replace("\n", "")
        assert not prompt.render("土耳其三面环海。").text or not (
            prompt.render("土耳其三面环海。").text or ""
        ).endswith(" ")
    assert any(
        "体育、政治" in one.template
        for one in read_templates("zh", limits=FULL, class_names=["体育", "政治"])
    )


def test_prompts_of_several_languages_stand_together_once():
    german, english = (
        builtin_pool(limits=FULL, languages=[one], task="T?") for one in ("de", "en")
    )
    both = builtin_pool(limits=FULL, languages=["en", "de"], task="T?")
    assert templates(both)[: len(english)] == templates(english)
    assert set(templates(both)) == {*templates(english), *templates(german)}
    assert len(set(templates(both))) == len(both) < len(english) + len(german)


def test_the_languages_of_the_texts_are_found():
    pytest.importorskip("py3langid", reason="the `local` extra")
    assert common_languages(ENGLISH) == {"en": 1.0}
    assert common_languages(GERMAN) == {"de": 1.0}
    assert common_languages(ENGLISH + GERMAN) == {"en": 0.5, "de": 0.5}
    chinese = "在战争开始时，它们大多在海面上航行，但随着雷达的发展被迫潜入水下。"
    assert common_languages([chinese] * 3) == {"zh": 1.0}
    assert common_languages(["تركيا محاطة بالبحار من ثلاث جهات."] * 3) == {"ar": 1.0}
    assert common_languages(["ok", "1 2 3"]) == {}


def test_a_language_is_chosen_for_the_prompts():
    trained = fit(GERMAN, languages="de", n_prompts=100)
    german = builtin_pool(limits=FULL, languages=["de"])
    assert set(templates(trained.prompts_)) <= set(templates(german))
    assert trained.training_summary_["prompt_languages"] == ["de"]
    assert fit(GERMAN).training_summary_["prompt_languages"] == ["en"]
    assert fit(ENGLISH, languages="auto").training_summary_["prompt_languages"] == ["en"]


def test_an_lm_that_knows_english_alone_is_asked_in_english():
    pytest.importorskip("py3langid", reason="the `local` extra")
    lm = DeterministicBackend()
    assert fit(GERMAN, lm=lm, languages="auto").training_summary_["prompt_languages"] == [
        "en",
        "de",
    ]
    for known, asked in ((("en",), ["en"]), (("en", "fr"), ["en"]), (("de",), ["en", "de"])):
        lm.limits = replace(lm.limits, languages=known)
        trained = fit(GERMAN, lm=lm, languages="auto")
        assert trained.training_summary_["prompt_languages"] == asked
    assert fit(GERMAN, lm=lm, languages=["fr"]).training_summary_["prompt_languages"] == ["fr"]


def test_named_prompts_need_no_language_and_no_detector(monkeypatch):
    monkeypatch.setattr("blackbox.languages.count_languages", lambda texts: pytest.fail("loaded"))
    trained = fit(GERMAN, languages="auto", prompts=["{text} Das ist {mask}"])
    assert "prompt_languages" not in trained.training_summary_


def test_a_language_without_prompts_is_refused_with_those_that_have_some():
    with pytest.raises(ValueError, match=r"languages has \['xx'\]: .* in ar, de, en"):
        fit(GERMAN, languages=["de", "xx"])
    with pytest.raises(ValueError, match="languages"):
        fit(GERMAN, languages=[])


class TestCommand:
    @pytest.fixture
    def table(self, tmp_path):
        path = tmp_path / "texte.csv"
        rows = [f'"{text}",{label}' for text, label in zip(GERMAN, LABELS, strict=True)]
        path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
        return path

    def run(self, *arguments):
        return CliRunner().invoke(main, [str(one) for one in arguments])

    def test_it_trains_with_prompts_in_a_language(self, table, tmp_path):
        out = tmp_path / "m.blackbox"
        done = self.run(
            "train",
            table,
            "--backend",
            "deterministic",
            "--language",
            "de",
            "--language",
            "fr",
            "--out",
            out,
            "--json",
            "--no-store",
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["training"]["prompt_languages"] == ["de", "fr"]
        assert all("text" in prompt for prompt in templates(load_model(out).prompts_))

    def test_it_says_in_which_languages_it_asked(self, table, tmp_path):
        pytest.importorskip("py3langid", reason="the `local` extra")
        done = self.run(
            "train",
            table,
            "--backend",
            "deterministic",
            "--language",
            "auto",
            "--out",
            tmp_path / "m",
            "--no-store",
        )
        assert "prompts were tried in these languages: en, de (--language)" in done.stderr

    def test_prompts_of_a_file_have_no_language(self, table, tmp_path):
        pool = tmp_path / "pool.txt"
        pool.write_text("{text} Es war {mask}\n", encoding="utf-8")
        done = self.run(
            "train", table, "--language", "de", "--prompts", pool, "--out", tmp_path / "m"
        )
        assert done.exit_code == 2
        assert "--language is of built-in prompts, and --prompts names others" in done.output

    def test_auto_stands_alone(self, table, tmp_path):
        out = tmp_path / "m"
        done = self.run("train", table, "--language", "auto", "--language", "de", "--out", out)
        assert done.exit_code == 2
        assert "--language auto stands alone" in done.output

    def test_an_unknown_language_is_refused(self, table, tmp_path):
        done = self.run("train", table, "--language", "xx", "--out", tmp_path / "m")
        assert done.exit_code == 2
        assert "'xx' is not one of 'ar', 'de'" in done.output
