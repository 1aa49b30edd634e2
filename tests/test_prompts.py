"""Prompts: templates parse or say where they don't, render for each kind of LM, and fit."""

from __future__ import annotations

import contextlib
import re
import time
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from blackbox.errors import PromptError
from blackbox.generation import builtin_pool
from blackbox.prompts.pieces import literal
from blackbox.prompts.pool import PromptPool, read_with_notes
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import render_within, size_of
from blackbox.protocol import Limits, Message

LIMITS = Limits(
    max_top_k=5,
    max_score_ids=0,
    context_length=64,
    deterministic=True,
    chat=True,
    answer_prefix=True,
)


def test_a_causal_lm_gets_what_stands_before_the_mask_without_trailing_spaces():
    rendered = Prompt("{text} It was {mask}, they say.").render("Nice.")
    assert rendered.text == "Nice. It was"
    assert not rendered.masked


def test_a_new_line_before_the_mask_is_kept():
    assert Prompt("{text}\nTopic:\n{mask}").render("Nice.").text == "Nice.\nTopic:\n"


def test_a_masked_lm_gets_both_sides_of_the_mask():
    rendered = Prompt("{text} It was {mask}, they say.").render("Nice.", masked=True)
    assert (rendered.text, rendered.after_mask) == ("Nice. It was ", ", they say.")
    assert rendered.masked


def test_doubled_braces_are_braces_and_braces_of_the_text_stay():
    rendered = Prompt("{{x}} {text} is {mask}").render("a {mask} and {text}")
    assert rendered.text == "{x} a {mask} and {text} is"


def test_a_conversation_renders_turns_and_the_begun_answer():
    prompt = Prompt("<system>Be brief.<user>What is it?\n{text}<assistant>It is a {mask}")
    rendered = prompt.render("a cat")
    assert rendered.messages == (
        Message("system", "Be brief."),
        Message("user", "What is it?\na cat"),
    )
    assert rendered.answer_prefix == "It is a"


def test_an_answer_may_begin_with_the_mask():
    rendered = Prompt("<user>{text}<assistant>{mask}").render("a cat")
    assert rendered.answer_prefix == ""
    assert rendered.messages == (Message("user", "a cat"),)


def test_a_pair_fills_both_slots():
    prompt = Prompt("{text} So: {text_pair}? {mask}")
    assert prompt.takes_pair
    assert prompt.render("One.", "Two").text == "One. So: Two?"


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("It was {mask}", "no {text}"),
        ("{text} It was", "needs one {mask}"),
        ("{text} {mask} {mask}", "it has 2"),
        ("{text} {label} {mask}", "{label} at character 8"),
        ("{text} { {mask}", "{ at character 8"),
        ("{text} } {mask}", "} at character 8"),
        ("{text} {} {mask}", "{} at character 8"),
        ("<user>{text} {foo}<assistant>{mask}", "{foo} at character 14"),
        ("<user>{text} {mask}<assistant>so", "belongs into the <assistant> turn"),
        ("<user>{text} {mask}", "turns must be"),
        ("<assistant>{text}<user>{mask}", None),
        ("<user>{text}<user>again<assistant>{mask}", "turns must be"),
    ],
)
def test_what_is_no_template_is_refused_with_the_place(template, said):
    if said is None:
        assert not Prompt(template).is_chat  # an odd raw text, but a text
        return
    with pytest.raises(PromptError) as caught:
        Prompt(template)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_text_behind_the_mask_is_for_masked_lms_only():
    prompt = Prompt("It was {mask}: {text}")
    with pytest.raises(PromptError, match="never sees it"):
        prompt.render("x")
    assert prompt.render("x", masked=True).after_mask == ": x"


def test_pairs_and_single_texts_are_not_mixed_up():
    with pytest.raises(PromptError, match=r"takes \{text_pair\}"):
        Prompt("{text} {text_pair} {mask}").render("one")
    with pytest.raises(PromptError, match=r"has no \{text_pair\}"):
        Prompt("{text} {mask}").render("one", "two")


def test_a_conversation_is_not_for_a_masked_lm():
    with pytest.raises(PromptError, match="conversation"):
        Prompt("<user>{text}<assistant>{mask}").render("x", masked=True)


@given(st.text(alphabet=st.characters(exclude_characters="{}", codec="utf-8"), max_size=60))
def test_any_template_survives_the_pool_file(tmp_path_factory, extra):
    prompt = Prompt(f"{extra.replace('<', '')}{{text}}{extra}{{mask}}")
    path = tmp_path_factory.mktemp("pool") / "pool.txt"
    PromptPool([prompt]).write(path)
    assert list(PromptPool.read(path)) == [prompt]


def test_a_pool_file_takes_comments_blank_lines_and_escapes(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_text("# mine\n\n{text}\\nTopic: {mask}\n\\#{text} {mask}\n", encoding="utf-8")
    assert [p.template for p in PromptPool.read(path)] == [
        "{text}\nTopic: {mask}",
        "#{text} {mask}",
    ]


def test_a_bad_line_of_a_pool_file_is_named(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_text("{text} {mask}\n{text} {nope} {mask}\n", encoding="utf-8")
    with pytest.raises(PromptError, match=r"pool\.txt, line 2: .*nope"):
        PromptPool.read(path)


def test_a_missing_or_empty_pool_file_is_one_line(tmp_path):
    with pytest.raises(PromptError, match="No such file"):
        PromptPool.read(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    with pytest.raises(PromptError, match="no prompts"):
        PromptPool.read(tmp_path / "empty.txt")


def test_a_pool_drops_duplicates_and_keeps_order():
    pool = PromptPool(["{text} b {mask}", "{text} a {mask}", "{text} b {mask}"])
    assert [p.template for p in pool] == ["{text} b {mask}", "{text} a {mask}"]


def count_words(requests):
    return [len((request.text or "").split()) for request in requests]


def test_a_text_too_long_is_cut_and_the_template_never():
    prompt = Prompt("{text} It was {mask}")
    rendered, cut = render_within(prompt, ("word " * 500, None), LIMITS, count_words)
    assert cut
    assert rendered.text.endswith(" It was")
    assert count_words([rendered])[0] == LIMITS.context_length - 1


def test_of_a_pair_the_longer_text_is_cut_first():
    prompt = Prompt("{text} | {text_pair} | {mask}")
    rendered, cut = render_within(prompt, ("a " * 500, "short one"), LIMITS, count_words)
    assert cut
    assert rendered.text.endswith("| short one |")


def test_without_a_tokenizer_a_byte_counts_as_a_token():
    prompt = Prompt("{text} It was {mask}")
    rendered, cut = render_within(prompt, ("ä" * 500, None), LIMITS)
    assert cut
    assert rendered.n_bytes <= LIMITS.context_length - 1


def test_a_template_that_fills_the_context_is_refused():
    with pytest.raises(PromptError, match="alone fills the context"):
        render_within(Prompt("{text}" + " word" * 100 + "{mask}"), ("x", None), LIMITS, count_words)


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("नमस्ते दुनिया", ["न", "नम", "नमस्", "नमस्ते", "नमस्ते ", "नमस्ते दु"]),
        ("a👩‍👩‍👧b", ["a", "a👩‍👩‍👧"]),
        ("cafe\u0301s", ["c", "ca", "caf", "cafe\u0301"]),
        ("x" + "\u0301" * 200, ["x" + "\u0301" * 40]),  # no character that anyone writes
    ],
)
def test_truncation_leaves_no_half_of_a_character(text, whole):
    def count_characters(requests):
        return [len(one.text) for one in requests]

    found = set()
    for room in range(3, 3 + len(text)):
        limits = replace(LIMITS, context_length=room, bytes_per_token=1)
        rendered, cut = render_within(
            Prompt("{text}: {mask}"), (text, None), limits, count_characters
        )
        found.add(rendered.text.removesuffix(":") if cut else text)
    assert set(whole) <= found
    for one in found - {text}:
        rest = text[len(one) :]
        assert unicodedata.category(rest[0])[0] != "M" or "\u0301" * 9 in text
        assert not one.endswith("\u200d")


def test_the_built_in_pool_is_large_and_grows_with_what_the_user_says():
    plain = builtin_pool(limits=LIMITS)
    named = builtin_pool(limits=LIMITS, class_names=["good", "not_good"])
    asked = builtin_pool(limits=LIMITS, class_names=["good", "bad"], task="Is it {good}?\nSay it.")
    assert 24 <= len(plain) < len(named) < len(asked)
    assert any("good or not good" in p.template for p in named)
    assert any("Is it {good}? Say it." in (p.render("x").text or "") for p in asked)


def test_a_backend_without_begun_answers_gets_no_conversations():
    limits = Limits(max_top_k=5, max_score_ids=0, context_length=64, deterministic=True)
    assert not any(p.is_chat for p in builtin_pool(limits=limits))


def test_a_backend_for_conversations_only_gets_those_that_it_serves():
    limits = Limits(
        max_top_k=5,
        max_score_ids=0,
        context_length=64,
        deterministic=True,
        raw_text=False,
        chat=True,
    )
    pool = builtin_pool(limits=limits)
    assert all(prompt.is_chat and not prompt.render("x").answer_prefix for prompt in pool)


def test_a_masked_lm_gets_no_conversations():
    limits = Limits(
        max_top_k=5,
        max_score_ids=0,
        context_length=64,
        deterministic=True,
        raw_text=False,
        mask=True,
    )
    pool = builtin_pool(limits=limits)
    assert len(pool) >= 24
    assert not any(prompt.is_chat for prompt in pool)


def test_the_built_in_pool_for_pairs_takes_pairs():
    pool = builtin_pool(kind="pair", limits=LIMITS)
    assert len(pool) >= 10
    assert all(prompt.takes_pair for prompt in pool)


def test_a_part_of_a_pool_is_a_pool():
    pool = PromptPool(["{text} a {mask}", "{text} b {mask}", "{text} c {mask}"])
    assert pool[:2] == PromptPool(["{text} a {mask}", "{text} b {mask}"])
    assert pool[-1].template == "{text} c {mask}"
    with pytest.raises(PromptError, match="at least one prompt"):
        pool[3:]


PARTS = [
    "<",
    ">",
    "{",
    "}",
    "user",
    "assistant",
    "<user>",
    "{<}",
    "||",
    "{mask}",
    "{text}",
    "a",
    " ",
]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_literal_text_stands_in_a_template_as_it_is(said):
    words = " ".join(said.split())
    raw = Prompt(f"{literal(said)}: {{text}} {{mask}}")
    assert not raw.is_chat
    assert raw.render("T").text == f"{words}: T"
    sent = Prompt(f"<user>{{text}} ({literal(said)})<assistant>{{mask}}").render("T")
    assert sent.messages == (Message("user", f"T ({words})"),)


def test_an_example_of_two_texts_gives_way_to_a_single_text_that_is_its_first():
    prompt = Prompt("{example: A || B} {example_pair: C || D} yes\n{text} {mask}")
    assert prompt.render("A").text == "B D yes\nA"
    assert prompt.render("B").text == "A C yes\nB"


def test_a_prompt_is_as_long_as_the_longest_that_it_may_become():
    prompt = Prompt("{example: a b || c} x {example: d || e f g} y\n{text} {mask}")
    assert size_of(prompt, LIMITS, count_words) == 2 + 3 + 2
    assert size_of(Prompt("{text} äb {mask}"), LIMITS) == len(" äb".encode())


@pytest.mark.posix
def test_a_pool_that_can_not_be_written_leaves_what_was_there(tmp_path):
    path = tmp_path / "pool.txt"
    PromptPool(["{text} a {mask}"]).write(path)
    with pytest.raises(UnicodeEncodeError):
        PromptPool(["{text} b {mask}", "{text} \ud800 {mask}"]).write(path)
    assert path.read_text() == "{text} a {mask}\n"
    assert list(tmp_path.iterdir()) == [path]
    for target, said in (("/dev/full", "is no file"), (tmp_path / "none" / "p", "No such file")):
        with pytest.raises(PromptError, match=f"can't be written: .*{said}"):
            PromptPool(["{text} a {mask}"]).write(target)


def test_comments_belong_to_the_prompt_below_them(tmp_path):
    path = tmp_path / "pool.txt"
    path.write_text("# about\n# one\n{text} a {mask}\n\n{text} b {mask}\n#three\n{text} c {mask}\n")
    assert [note for _, note in read_with_notes(path)] == ["about one", "", "three"]


# the grammar of an example, as a regular expression that takes cubic time where it doesn't match
EXAMPLE = re.compile(r"\{(example(?:_pair)?):\s*(.*?)\s*\|\|\s*(.*?)\s*\}", re.DOTALL)
SPELLING = st.lists(
    st.sampled_from(
        ["example", "_pair", ":", "|", "||", " ", "\n", "\x1f", "\u2003", "a", "é", "<"]
    ),
    max_size=12,
).map("".join)


@given(st.one_of(SPELLING, SPELLING.map("example:{}".format), st.text()))
@example("example: a ||| b || c ")
@example("example: || b")
@example("example_pair:a||b")
def test_an_example_is_read_as_its_grammar_says(inside):
    inside = inside.translate({ord("{"): "(", ord("}"): ")"})
    found = EXAMPLE.fullmatch(f"{{{inside}}}")
    template = f"{{{inside}}}{{text}}{{mask}}"
    if inside in ("text", "text_pair", "mask", "<"):
        return
    if not (found and found[2] and found[3]):
        with pytest.raises(PromptError, match="is no slot"):
            Prompt(template)
    elif found[1] == "example_pair":
        with pytest.raises(PromptError, match="follows its"):
            Prompt(template)
    else:
        assert Prompt(template).render("another").text == f"{found[2]}another"
        assert Prompt(template).render(found[2]).text == f"{found[3]}{found[2]}".rstrip(" \t")


@pytest.mark.parametrize(
    "template",
    [
        "{example:" + " " * 50_000 + "}",
        "{example:" + " " * 50_000 + "|} {text} {mask}",
        "{example: a" + " |" * 25_000 + "} {text} {mask}",
        "{example: a" + " " * 50_000 + "|| b" + " " * 50_000 + "c} {text} {mask}",
        "{example_pair:" + " ||" * 17_000 + "}",
        "{example: a || b}" * 3_000 + "{text} {mask}",
        "{" * 50_000,
        "}" * 50_000,
        "{{" * 25_000 + "{text} {mask}",
        "{<}" * 17_000 + "{text} {mask}",
        "<user>" * 8_000 + "{text}<assistant>{mask}",
        "{text}" * 8_000 + "{mask}",
    ],
    ids=lambda template: template[:20],
)
def test_a_hostile_template_takes_no_long_time(template):
    started = time.process_time()
    with contextlib.suppress(PromptError):
        Prompt(template).render("a text of some words")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("slot", ["{text}", "{text_pair}"])
def test_a_text_stands_in_a_prompt_eight_times_at_most(slot):
    rest = "" if slot == "{text}" else "{text} "
    Prompt(rest + f"{slot} " * 8 + "{mask}")
    with pytest.raises(PromptError, match="has 1000 places for one text; 8 are the most"):
        Prompt(rest + f"{slot} " * 1000 + "{mask}")


def test_an_error_shows_the_beginning_of_a_long_template():
    with pytest.raises(PromptError, match="it has 0") as caught:
        Prompt("{text}" + "word " * 10_000)
    assert len(str(caught.value)) < 300
    with pytest.raises(PromptError, match="is no slot") as caught:
        Prompt("{text} {mask} {" + "word " * 10_000 + "}")
    assert len(str(caught.value)) < 600
