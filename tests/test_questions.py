"""Questions: closed options as prompts, by letters on any LM, as they are where it takes them."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest

from backends.deterministic import DeterministicBackend
from blackbox import PromptBoostingClassifier
from blackbox.backend import BaseBackend
from blackbox.boosting.label_words import name_learner
from blackbox.errors import PromptError
from blackbox.generation.builtin import builtin_pool
from blackbox.generation.sources import SOURCES
from blackbox.generation.task import SearchState, Task
from blackbox.loading import load_model
from blackbox.prompts.pool import PromptPool
from blackbox.prompts.question import Question, parse_prompt
from blackbox.prompts.template import Prompt
from blackbox.protocol import (
    NO_TOKEN,
    BackendIdentity,
    ClosedQuestion,
    Limits,
    Message,
    TokenLogProbs,
    Usage,
    id_of_option,
)

LIMITS = Limits(max_top_k=50, max_score_ids=0, context_length=500, deterministic=True)
CHAT = dataclasses.replace(LIMITS, chat=True)
BEGUN = dataclasses.replace(CHAT, answer_prefix=True)
MASKED = dataclasses.replace(LIMITS, mask=True)
ASKED = dataclasses.replace(LIMITS, raw_text=False, questions=True)

TOPIC = "<choice>What is it about?<option>World<option>Sci/Tech"


@pytest.mark.parametrize(
    ("line", "kind", "options"),
    [
        ("<predicate>It is good.", "predicate", ("yes", "no")),
        (TOPIC, "choice", ("World", "Sci/Tech")),
        ("<scale pair reversed>How alike?<option>not<option>very", "scale", ("not", "very")),
        (
            "<choice> Which {{one}}? <option> a {<}option> b <option>c",
            "choice",
            ("a <option> b", "c"),
        ),
    ],
)
def test_a_line_is_a_question_and_survives_the_pool_file(tmp_path, line, kind, options):
    question = parse_prompt(line)
    assert isinstance(question, Question)
    assert (question.kind, question.options) == (kind, options)
    path = tmp_path / "pool.txt"
    PromptPool([line, "{text} It was {mask}"]).write(path)
    assert list(PromptPool.read(path)) == [question, parse_prompt("{text} It was {mask}")]
    again = Question.of(
        kind,
        question.instructions,
        options if kind != "predicate" else (),
        about=question.input_kind,
        is_reversed=question.is_reversed,
    )
    assert (again.instructions, again.options) == (question.instructions, question.options)
    assert question.opposite().opposite() == again


def test_a_question_that_was_asked_can_be_pickled():
    question = parse_prompt("<choice>What is it?<option>a lamp<option>a bag")
    asked = question.render("It broke.")
    assert pickle.loads(pickle.dumps(question)).render("It broke.") == asked


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("<predicate>", "empty question"),
        ("<predicate>Is it?<option>yes<option>no", "they are yes and no"),
        ("<choice>Which?<option>a", "has 1 option; a choice has 2 to 255"),
        ("<choice>Which?<option>a<option>", "empty question or option"),
        ("<choice>Which?<option>a<option>A", "an option twice"),
        ("<scale>How?" + "".join(f"<option>{n}" for n in range(11)), "a scale has 2 to 10"),
        ("<predicate>Is {text} good?", "has the slot {text}, and a question has none"),
        ("<predicate>Is { it?", "is no slot"),
    ],
)
def test_a_bad_question_is_one_line_that_says_what_is_wrong(line, said):
    with pytest.raises(PromptError) as caught:
        parse_prompt(line)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_lm_gets_an_instruction_with_lettered_options_in_the_form_that_it_serves():
    question = parse_prompt(TOPIC)
    asked = "A rocket.\n\nWhat is it about?\nA. World\nB. Sci/Tech"
    assert question.render_for(LIMITS, "A rocket.").text == f"{asked}\nAnswer:"
    begun = question.render_for(BEGUN, "A rocket.")
    assert (begun.messages, begun.answer_prefix) == ((Message("user", asked),), "Answer:")
    (turn,) = question.render_for(CHAT, "A rocket.").messages
    assert turn.content == f"{asked}\nAnswer with the letter only."
    assert question.render_for(MASKED, "A rocket.").masked
    turned = question.opposite().render_for(LIMITS, "A rocket.").text
    assert "A. Sci/Tech\nB. World" in turned


def test_an_lm_that_takes_questions_gets_text_and_question():
    rendered = parse_prompt(TOPIC).opposite().render_for(ASKED, "A rocket.")
    assert rendered.text == "A rocket."
    assert rendered.question == ClosedQuestion("choice", "What is it about?", ("Sci/Tech", "World"))
    assert ASKED.serves(rendered)
    assert not LIMITS.serves(rendered)
    assert not parse_prompt("{text} It was {mask}").is_served(ASKED)


def test_a_question_about_pairs_names_both_texts():
    question = parse_prompt("<predicate pair>Text 2 follows from text 1.")
    assert question.render_for(ASKED, "It rains.", "It is wet.").text == (
        "Text 1: It rains.\nText 2: It is wet."
    )
    with pytest.raises(PromptError, match="pairs of texts but there is one text"):
        question.render("alone")


def test_more_options_than_letters_are_for_decision_endpoints_only():
    question = Question.of("choice", "Which?", [f"option {n}" for n in range(27)])
    assert question.is_served(ASKED)
    assert not question.is_served(LIMITS)
    with pytest.raises(PromptError, match="27 options, and an LM that answers by letters takes 26"):
        question.render_for(LIMITS, "x")


def answers_of(*rows: dict[str, float]) -> TokenLogProbs:
    """Answers with the probabilities of tokens, each row in descending order."""
    names = sorted({name for row in rows for name in row})
    width = max(map(len, rows))
    ids = np.full((len(rows), width), NO_TOKEN, np.int32)
    values = np.full((len(rows), width), -np.inf, np.float32)
    for place, row in enumerate(rows):
        for column, (name, share) in enumerate(sorted(row.items(), key=lambda one: -one[1])):
            ids[place, column], values[place, column] = names.index(name), np.log(share)
    errors = {place: "refused" for place, row in enumerate(rows) if not row}
    names_of = {token: name.encode() for token, name in enumerate(names)}
    return TokenLogProbs(ids, values, names_of, errors, Usage(passes_made=len(rows)))


def shares_of(read: TokenLogProbs, row: int) -> dict[str, float]:
    """The probability of each option in a row."""
    found = zip(read.token_ids[row].tolist(), read.log_probs[row].tolist(), strict=True)
    return {read.token_bytes[token].decode(): np.exp(value) for token, value in found}


def test_the_spellings_of_a_letter_are_added_up_and_the_rest_is_left_out():
    question = parse_prompt("<choice>Which?<option>x<option>y")
    read = question.read(
        answers_of(
            {" A": 0.3, "A": 0.1, "B": 0.2, " a": 0.15, "The": 0.1}, {}, {"B": 0.6, "C": 0.3}
        )
    )
    assert shares_of(read, 0) == pytest.approx({"x": 0.4 / 0.6, "y": 0.2 / 0.6}, rel=1e-6)
    assert read.row_errors == {1: "refused"}
    assert (read.token_ids[1] == NO_TOKEN).all()
    # A is no likelier than what is left: a bit less than C, and less than the rest of 0.1
    assert shares_of(read, 2) == pytest.approx({"y": 0.6 / 0.7, "x": 0.1 / 0.7}, rel=1e-6)
    assert read.usage.passes_made == 3


def test_a_reversed_question_reads_the_same_options_from_the_opposite_letters():
    question = parse_prompt("<choice reversed>Which?<option>x<option>y")
    read = question.read(answers_of({"A": 0.8, "B": 0.2}))
    assert shares_of(read, 0) == pytest.approx({"y": 0.8, "x": 0.2})
    assert set(read.token_ids[0].tolist()) == set(question.option_ids)


def test_an_answer_without_any_letter_speaks_for_no_option():
    read = parse_prompt(TOPIC).read(answers_of({"The": 0.9}, {"A": 0.5}))
    assert shares_of(read, 0) == pytest.approx({"World": 0.5, "Sci/Tech": 0.5})


def test_drawn_letters_are_small():
    read = parse_prompt(TOPIC).read(answers_of({"a": 0.75, "b": 0.25}))
    assert shares_of(read, 0) == pytest.approx({"World": 0.75, "Sci/Tech": 0.25})


def test_the_ids_of_options_are_no_ids_of_a_tokenizer():
    assert all(2**30 <= id_of_option(option) < 2**31 for option in ("yes", "no", "", "a" * 999))


class OpinionatedBackend(BaseBackend):
    """Answers questions about a text, and nothing else, by the words that the text has."""

    identity = BackendIdentity("opinionated", "in-process", "words")
    limits = dataclasses.replace(ASKED, max_top_k=255, shares_prefixes=True)

    def next_token(self, prompts, top_k):
        """Each option whose word stands in the text is likely."""
        rows = []
        for prompt in prompts:
            options = prompt.question.options
            if prompt.question.kind == "predicate":
                hits = [float("good" in prompt.text), float("good" not in prompt.text)]
            else:
                hits = [float(option in prompt.text) for option in options]
            shares = (np.array(hits) + 0.2) / (sum(hits) + 0.2 * len(hits))
            order = np.argsort(-shares)
            rows.append([(id_of_option(options[n]), np.log(shares[n])) for n in order])
        ids = np.full((len(rows), top_k), NO_TOKEN, np.int32)
        values = np.full((len(rows), top_k), -np.inf, np.float32)
        for row, found in enumerate(rows):
            ids[row, : len(found)] = [token for token, _ in found]
            values[row, : len(found)] = [value for _, value in found]
        names = {id_of_option(o): o.encode() for p in prompts for o in p.question.options}
        return TokenLogProbs(ids, values, names, {}, Usage(passes_made=len(prompts)))


TEXTS = [f"a {word} thing {n}" for word in ("good", "bad") for n in range(8)]
LABELS = ["pos"] * 8 + ["neg"] * 8
QUESTIONS = ["<predicate>It is praise.", "<scale>How good?<option>bad<option>so so<option>good"]


def test_a_classifier_over_questions_predicts_explains_itself_and_is_saved(tmp_path):
    classifier = PromptBoostingClassifier(backend=OpinionatedBackend(), prompts=QUESTIONS)
    classifier.fit(TEXTS, LABELS)
    assert classifier.predict(["a good day", "a bad day"]).tolist() == ["pos", "neg"]
    learner = classifier.explain("a good day")["learners"][0]
    assert learner["prompt"] in QUESTIONS
    named = {entry["token"] for entry in learner["tokens"]}
    assert named <= {"yes", "no", "bad", "so so", "good"}
    path = tmp_path / "asked.model"
    classifier.save(path)
    again = load_model(path, backend=OpinionatedBackend())
    assert list(again.prompts_) == list(classifier.prompts_)
    probabilities = classifier.predict_proba(["a good day"])
    assert again.predict_proba(["a good day"]) == pytest.approx(probabilities)


class LetteredBackend(DeterministicBackend):
    """The deterministic LM, some of whose tokens are letters."""

    def __init__(self):
        super().__init__()
        self.token_bytes = {**self.token_bytes, 3: b" A", 4: b"B", 5: b" C"}


@pytest.mark.parametrize("early_stop", [None, "exact"])
def test_a_pool_mixes_clozes_and_questions(early_stop):
    pool = ["{text} It was {mask}", *QUESTIONS, "<choice reversed>Which?<option>pos<option>neg"]
    classifier = PromptBoostingClassifier(
        backend=LetteredBackend(), prompts=pool, early_stop=early_stop
    )
    classifier.fit(TEXTS, LABELS)
    assert set(classifier.prompts_) == set(map(parse_prompt, pool))
    assert classifier.predict(TEXTS).tolist() == LABELS


def test_an_lm_that_gives_fewer_tokens_in_prediction_scores_clozes_and_is_asked_questions():
    pool = ["{text} It was {mask}", *QUESTIONS]
    classifier = PromptBoostingClassifier(backend=LetteredBackend(), prompts=pool).fit(
        TEXTS, LABELS
    )
    expected = classifier.predict(TEXTS).tolist()
    fewer = LetteredBackend()
    fewer.limits = dataclasses.replace(fewer.limits, max_top_k=100)
    assert classifier.model_.predict(fewer, TEXTS).labels().tolist() == expected


def test_samme_reads_questions_too():
    classifier = PromptBoostingClassifier(
        backend=OpinionatedBackend(), prompts=QUESTIONS, algorithm="samme"
    )
    assert classifier.fit(TEXTS, LABELS).predict(["a bad day"]).tolist() == ["neg"]


def task_of(limits: Limits, names=("World", "Sci/Tech"), pair=False) -> Task:
    """A task of two rows of each class."""
    examples = [("one", "two" if pair else None)] * (2 * len(names))
    y = np.repeat(np.arange(len(names)), 2)
    return Task(examples, y, np.ones(len(y)), names, None, limits)


def proposed(task: Task) -> list[Prompt]:
    """All that the source of questions has for a task."""
    rng = np.random.default_rng(0)
    return list(SOURCES["questions"].propose(task, SearchState(), lambda *_: [], rng))


def test_questions_about_the_classes_come_first():
    which = "<choice>Which of these describes the text best?<option>World<option>Sci/Tech"
    first = proposed(task_of(LIMITS))[:4]
    assert [prompt.template for prompt in first] == [
        which,
        which.replace("<choice>", "<choice reversed>"),
        '<predicate>"World" describes the text.',
        '<predicate>"Sci/Tech" describes the text.',
    ]


@pytest.mark.parametrize("limits", [LIMITS, ASKED, CHAT, MASKED])
@pytest.mark.parametrize("pair", [False, True])
def test_all_proposed_questions_suit_the_task(limits, pair):
    task = task_of(limits, pair=pair)
    found = proposed(task)
    assert len(set(found)) == len(found) > 8
    assert all(task.serves(prompt) and task.fits(prompt) for prompt in found)


def test_classes_without_readable_names_are_not_asked_about():
    assert all("describes" not in p.template for p in proposed(task_of(LIMITS, ("0", "1"))))
    many = [f"class {n}" for n in range(30)]
    kinds = [question.kind for question in proposed(task_of(LIMITS, many))[:30]]
    assert kinds == ["predicate"] * 30
    assert proposed(task_of(ASKED, many))[0].options == tuple(many)


def test_the_built_in_pool_of_an_lm_that_takes_questions_is_questions():
    pool = builtin_pool(limits=ASKED, class_names=["a b", "c d"])
    assert all(isinstance(prompt, Question) for prompt in pool)
    classifier = PromptBoostingClassifier(backend=OpinionatedBackend()).fit(TEXTS, LABELS)
    assert classifier.predict(["a good day", "a bad day"]).tolist() == ["pos", "neg"]
    classifier = PromptBoostingClassifier(backend=OpinionatedBackend(), prompts="auto")
    assert classifier.fit(TEXTS, LABELS).predict(["a bad day"]).tolist() == ["neg"]


def test_an_option_that_is_the_whole_name_of_a_class_speaks_for_it():
    names = {
        id_of_option(option): option.encode() for option in ("Sci/Tech", "World news", "World")
    }
    ids = np.array(sorted(names), np.int32)
    learner = name_learner(0, ids, names, [["sci", "tech"], ["world", "news"]])
    assert learner is not None
    spoken = [names[int(ids[column])] for column in learner.columns[:, 0]]
    assert spoken == [b"Sci/Tech", b"World news"]
    assert learner.token_weights[:, 0].tolist() == [1.0, 1.0]


def test_class_names_of_several_words_are_label_words_of_a_choice():
    labels = ["very good" if label == "pos" else "really bad" for label in LABELS]
    choice = "<choice>Which?<option>good<option>really bad<option>very good"
    classifier = PromptBoostingClassifier(backend=OpinionatedBackend(), prompts=[choice])
    classifier.fit(
        [text.replace("good", "very good").replace("bad", "really bad") for text in TEXTS], labels
    )
    assert classifier.training_summary_["names_unspelled"] == []
    assert classifier.training_summary_["n_names"] == 1
