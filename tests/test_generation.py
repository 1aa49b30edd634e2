"""Pools made for a task: sources, selection, budget, no leakage."""

from __future__ import annotations

import csv
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.model_selection import cross_val_score

import blackbox
from backends.deterministic import DeterministicBackend
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.answers.gatherer import Gatherer
from blackbox.answers.passes import Answers
from blackbox.errors import PromptError
from blackbox.generation import SOURCES, PromptGenerator, SearchState, Task
from blackbox.generation.comparison import answered_prompts, mean_distances
from blackbox.generation.ensemble_selection import EnsembleSelection, out_of_fold_scores
from blackbox.generation.prefix_costs import prefix_costs
from blackbox.generation.schedule import Schedule, make_schedule, min_budget
from blackbox.generation.written import cues_in, instruction_in, predicate_in
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import render_within
from blackbox.protocol import NO_TOKEN, Limits, RenderedPrompt
from eval.studies import prompt_pools
from tests.fakes import CountingBackend, PlainBackend, RefusingBackend, text_of

SAMPLES = Path(blackbox.__file__).parent / "samples" / "train.csv"


def sample(n: int = 64) -> tuple[list[str], list[str]]:
    with SAMPLES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:n]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def task_of(texts, labels, limits=None, description=None, pairs=None) -> Task:
    names, y = np.unique(labels, return_inverse=True)
    examples = list(zip(texts, pairs or [None] * len(texts), strict=True))
    limits = limits or DeterministicBackend().limits
    return Task(examples, y, np.ones(len(y)), names.tolist(), description, limits)


class Pen:
    """Writes the same after everything, and keeps what it was asked."""

    def __init__(self, limits, *texts):
        self.limits, self.texts, self.asked = limits, texts, []

    def __call__(self, requests, n, max_tokens):
        assert all(self.limits.serves(request) for request in requests)
        self.asked += requests
        return [list(self.texts)[:n] for _ in requests]


def proposed(name, task, found=None, write=None, seed=0, n=40):
    write = write or Pen(task.limits)
    stream = SOURCES[name].propose(task, found or SearchState(), write, np.random.default_rng(seed))
    return [prompt for _, prompt in zip(range(n), stream, strict=False)]


CAUSAL = Limits(1000, 0, 2048, True, raw_text=True)
CHAT_ONLY = Limits(20, 0, 2048, False, raw_text=False, chat=True)
BEGUN = Limits(200, 0, 2048, True, raw_text=True, chat=True, answer_prefix=True)
MASKED = Limits(1000, 0, 512, True, raw_text=False, mask=True)


@pytest.mark.parametrize("limits", [CAUSAL, CHAT_ONLY, BEGUN, MASKED])
@pytest.mark.parametrize("pairs", [False, True])
def test_every_source_proposes_prompts_that_are_served(limits, pairs):
    texts, labels = sample(40)
    task = task_of(texts, labels, limits, "What is it about?", texts if pairs else None)
    best = proposed("templates", task, n=6)
    typical = [np.flatnonzero(task.y == label).tolist() for label in range(task.n_classes)]

    write = Pen(limits, " This concerns the matter of ___ here", " Name the topic of it.")
    for name in SOURCES:
        found = proposed(name, task, SearchState(best, typical), write)
        if name in ("written", "demonstrations") and limits.mask:
            continue
        if name == "demonstrations" and not limits.raw_text:
            continue
        assert found, name
        for prompt in found:
            assert task.serves(prompt)
            assert prompt.takes_pair == pairs


def test_phrasings_name_the_classes_and_the_task():
    texts, labels = sample(40)
    asked = proposed("instructions", task_of(texts, labels, BEGUN, "Which desk gets {this}?"))
    shown = [p.render("a text").messages[0].content for p in asked]
    assert any("Which desk gets {this}?" in text for text in shown)
    assert any("account, delivery, product or refund" in text for text in shown)


def test_classes_that_are_numbers_or_very_many_are_not_listed():
    texts, _ = sample(60)
    for labels in ([str(n % 2) for n in range(60)], [f"class {n % 30}" for n in range(60)]):
        task = task_of(texts, labels, BEGUN)
        assert task.listed_names is None
        assert not any("{classes}" in p.template for p in proposed("instructions", task, n=200))


def test_cues_are_found_in_what_an_lm_writes():
    names = ["sports", "world_news"]
    draws = [
        " It is all about sports and more",
        "\nTopic: world news",
        " It was so",
        " It was so",
        "",
        "  ",
        " <b>no</b>",
        " 12 34",
    ]
    cues = cues_in(draws, names)
    assert cues[:4] == [" It", "\nTopic:", " It was", " It is all about"]
    assert not any("<" in cue or "12" in cue for cue in cues)
    assert cues_in([" The mood of it is ___."], names, blank=True) == [" The mood of it is"]
    assert cues_in([" no blank here"], names, blank=True) == []


def test_instructions_are_found_in_what_an_lm_writes():
    assert instruction_in('"Instruction: Say what the text is about."') == (
        "Say what the text is about."
    )
    for draw in ("", "yes", "no end to it at all", "a <user> in it.", "word " * 40 + "."):
        assert instruction_in(draw) is None


def test_no_row_stands_beside_its_own_label():
    texts, labels = sample(64)
    task = task_of(texts, labels)
    typical = [np.flatnonzero(task.y == label).tolist() for label in range(task.n_classes)]
    best = [Prompt("{text} It was {mask}"), Prompt("{text}\nTopic: {mask}")]
    prompts = proposed("demonstrations", task, SearchState(best, typical))
    assert len(prompts) >= 4
    for prompt in prompts:
        assert prompt.has_examples
        shown = Counter()
        for text in texts:
            written = prompt.render(text).text
            assert written.count(text) == 1, "the row is its own example"
            shown[written.removesuffix(text)] += 1
        # one example of each class
        whole = prompt.render("nothing like it").text
        for name in task.names:
            assert len(re.findall(rf"(was|Topic:) {name}\n", whole)) == 1


def test_no_row_stands_beside_its_own_label_when_it_is_cut():
    text = "long " * 200
    prompt = Prompt(f"{{example: {text} || short}} It was great\n{{text}} It was {{mask}}")
    limits = Limits(10, 0, 600, True)
    rendered, cut = render_within(prompt, (text, None), limits)
    assert cut
    assert rendered.text.startswith("short It was great")


def test_an_example_of_a_pair_gives_way_when_both_texts_are_the_row():
    prompt = Prompt("{example: A || B} {example_pair: C || D} yes\n{text} {text_pair} {mask}")
    assert prompt.render("A", "C").text == "B D yes\nA C"
    assert prompt.render("A", "x").text == "A C yes\nA x"
    for bad in (
        "{example: A}{text}{mask}",
        "{example:  || }{text}{mask}",
        "{example_pair: A || B}{text}{text_pair}{mask}",
    ):
        with pytest.raises(PromptError):
            Prompt(bad)


def test_variants_of_the_best_differ_from_them():
    texts, labels = sample(40)
    best = [
        Prompt("{text} It was {mask}"),
        Prompt("{text}\nTopic: {mask}"),
        Prompt("<user>{text}\n\nWhat is it?<assistant>It is about {mask}"),
    ]
    found = proposed("mutations", task_of(texts, labels, BEGUN), SearchState(best))
    assert len(set(found) - set(best)) >= 20
    templates = [prompt.template for prompt in found]
    assert "{text}\nIt was {mask}" in templates
    assert "{text}\nTopic is {mask}" in templates
    assert any(template.endswith("<assistant>It is {mask}") for template in templates)


def answers_of(backend, prompts, texts, top_k=50):
    return Gatherer(backend, [(text, None) for text in texts], top_k).answers(PromptPool(prompts))


def test_what_a_prompt_adds_is_not_how_good_it_is_alone():
    # two prompts that say the same, and one that is worse alone and says something else
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1, 2, 3], 30)
    noise = rng.normal(size=(3, len(y), 4)) * 0.5
    halves = np.eye(4)[y] * [2.5, 2.5, 0, 0], np.eye(4)[y] * [0, 0, 2, 2]
    scores = np.stack([halves[0] + noise[0], halves[0] + noise[0], halves[1] + noise[1]])
    selection = EnsembleSelection(scores, y, np.ones(len(y)))
    losses = selection.single_losses
    assert losses[2] > losses[0]
    selected, gains = selection.select(3)
    assert set(selected[:2]) in ({0, 2}, {1, 2})
    assert min(gains[:2]) > 0.2 > gains[2]


def test_scores_are_of_rows_that_were_not_seen():
    texts, _ = sample(96)
    rng = np.random.default_rng(1)
    y = rng.permutation(np.repeat([0, 1], 48))
    prompts = [Prompt("{text} It was {mask}"), Prompt("{text} This is {mask}")]
    scores = out_of_fold_scores(
        answers_of(DeterministicBackend(), prompts, texts), y, np.ones(96), 2, 0
    )
    # labels that nothing can tell: seen rows would be told nearly without an error
    right = (scores.argmax(axis=2) == y).mean(axis=1)
    assert (right < 0.75).all()


def test_prompts_that_answer_alike_are_recognised():
    backend = DeterministicBackend()
    texts, _ = sample(4)
    prompts = [
        Prompt("{text} It was {mask}"),
        Prompt("{text}  IT WAS {mask}"),
        Prompt("{text} Topic {mask}"),
    ]
    apart = mean_distances(answers_of(backend, prompts, texts))
    assert apart[0, 1] < 1e-6
    assert apart[0, 2] > 0.05


def test_a_short_cue_behind_the_text_costs_least():
    texts = ["a text of some length", "quite another one of them"]
    prompts = [
        Prompt("{text} So {mask}"),
        Prompt("{text} This is an example of {mask}"),
        Prompt("Read this. {text} So {mask}"),
    ]
    requests = [[p.render(text) for text in texts] for p in prompts]
    shared = prefix_costs(requests, texts, prefix_price=0.0)
    assert shared[0] < shared[1] < shared[2]
    in_full = prefix_costs(requests, texts, prefix_price=1.0)
    assert in_full[1] == in_full.max() or in_full[2] == in_full.max()
    assert (in_full > shared).all()


@pytest.mark.parametrize("n", [16, 64, 192, 400, 900])
@pytest.mark.parametrize("n_classes", [2, 8])
def test_a_schedule_keeps_to_its_budget(n, n_classes):
    for budget in (1500, 4000, 20_000):
        plan = make_schedule(n, n_classes, 10, budget)
        first, second, third = plan.rows
        some, better, best = plan.candidates
        passes = (
            some * first
            + better * (second - first)
            + best * (third - second)
            + plan.n_prompts * (n - third)
        )
        assert passes <= budget
        assert 1 <= plan.n_prompts <= 10
        assert some >= plan.n_prompts


def test_a_budget_is_kept_and_everything_counts(tmp_path):
    texts, labels = sample(64)
    for budget in (700, 1500):
        backend = CountingBackend()
        model = PromptBoostingClassifier(
            backend, prompts=PromptGenerator(budget), n_prompts=4, random_state=0, store=False
        )
        model.fit(texts, labels)
        assert model.usage_.passes_made <= budget
        told = model.training_summary_["generation"]
        assert told["passes"] == model.usage_.passes_made
        assert 0.5 * budget < told["passes"] <= budget


def test_many_rows_get_fewer_prompts_within_the_budget_and_none_is_an_error():
    texts, labels = sample(160)
    model = PromptBoostingClassifier(
        "deterministic", prompts=PromptGenerator(900), random_state=0, store=False
    )
    model.fit(texts, labels)
    assert 1 <= len(model.prompts_) < 5
    assert model.usage_.passes_made <= 900
    with pytest.raises(ValueError, match="a generation budget of 100 forward passes is too small"):
        model.set_params(prompts=PromptGenerator(100)).fit(texts, labels)


@pytest.mark.slow
def test_the_same_seed_makes_the_same_pool_with_and_without_a_store(tmp_path):
    texts, labels = sample(24)
    pools = []
    for store in (False, tmp_path / "s.sqlite", tmp_path / "s.sqlite"):
        model = PromptBoostingClassifier(
            "deterministic", prompts=PromptGenerator(900), n_prompts=3, random_state=3, store=store
        )
        pools.append(model.generate_prompts(texts, labels))
    assert pools[0].pool == pools[1].pool == pools[2].pool
    assert model.usage_.passes_made == 0
    assert model.usage_.passes_from_store > 400
    fitted = model.fit(texts, labels)
    assert set(fitted.prompts_) <= set(pools[0].pool)
    assert model.plan(texts, labels).passes_to_make == 0
    other = model.set_params(random_state=4).generate_prompts(texts, labels)
    assert other.pool != pools[0].pool


def test_a_plan_is_what_it_takes_at_most():
    texts, labels = sample(48)
    model = PromptBoostingClassifier(
        "deterministic", prompts=PromptGenerator(900), n_prompts=3, random_state=3, store=False
    )
    plan = model.plan(texts, labels)
    assert plan.at_most
    assert model.fit(texts, labels).usage_.passes_made <= plan.passes_to_make == 900


class Listening(CountingBackend):
    """Also keeps what it was asked to write."""

    def generate(self, prompts, *given, **asked):
        self.calls.append(("generate", list(prompts)))
        return super().generate(prompts, *given, **asked)


def leaks(prompts, texts, labels) -> int:
    """Requests of a cross-validation that show a text of the held-out fold before it is labelled,
    or beside another one."""
    backend = Listening()
    found = 0

    class Watched(PromptBoostingClassifier):
        def fit(self, X, y):
            begun = len(backend.calls)
            super().fit(X, y)
            held_out = set(texts) - set(X)
            assert held_out
            count(begun, held_out, 0)
            return self

        def predict(self, X):
            begun = len(backend.calls)
            predicted = super().predict(X)
            count(begun, set(X), 1)
            return predicted

    def count(begun, held_out, most):
        nonlocal found
        asked = [text_of(request) for _, some in backend.calls[begun:] for request in some]
        assert asked
        found += sum(sum(text in one for text in held_out) > most for one in asked)

    model = Watched(backend, prompts=prompts, n_prompts=4, random_state=0, store=False)
    cross_val_score(model, texts, labels, cv=3)
    return found


def test_no_text_of_a_held_out_fold_reaches_the_lm_while_prompts_are_made():
    texts, _ = sample(72)
    labels = np.random.default_rng(5).permutation(np.repeat(["good", "bad"], 36))
    generator = PromptGenerator(900, ("written", "demonstrations"))
    assert leaks(generator, texts, labels) == 0
    # a pool that was made out of all rows shows them, with their labels
    maker = PromptBoostingClassifier(
        "deterministic", prompts=generator, n_prompts=4, random_state=0, store=False
    )
    pool = maker.generate_prompts(texts, labels).pool
    assert any(prompt.has_examples for prompt in pool)
    assert leaks(pool, texts, labels) > 0


@pytest.mark.slow
def test_many_classes_and_pairs_are_served():
    texts, _ = sample(160)
    labels = [f"intent number {n % 77}" for n in range(154)] + ["intent number 0"] * 6
    model = PromptBoostingClassifier(
        "deterministic",
        prompts=PromptGenerator(4000),
        n_prompts=2,
        random_state=0,
        store=False,
        n_estimators=4,
        cv=None,
    )
    assert len(model.fit(texts, labels).classes_) == 77
    pairs = [(text, other) for text, other in zip(texts, texts[1:] + texts[:1], strict=True)]
    model.set_params(prompts=PromptGenerator(1000)).fit(pairs[:60], [f"{n % 3}" for n in range(60)])
    assert all(prompt.takes_pair for prompt in model.prompts_)


def test_another_lm_writes_for_the_one_that_reads():
    texts, labels = sample(32)
    writer = CountingBackend(seed=7)
    reader = CountingBackend()
    model = PromptBoostingClassifier(
        reader,
        prompts=PromptGenerator(900, writer=writer),
        n_prompts=3,
        random_state=0,
        store=False,
    )
    plan = model.plan(texts, labels)
    assert plan.passes_to_make == 900
    assert not writer.calls
    reader.calls.clear()
    model.fit(texts, labels)
    told = model.training_summary_["generation"]
    assert told["written"] > 0
    assert not writer.calls  # it reads no text
    assert model.usage_.passes_made == told["passes"] <= 900
    assert len(reader.asked) == told["passes"] - told["written"]


@pytest.mark.parametrize("name", list(SOURCES))
def test_each_source_alone_makes_a_pool(name):
    texts, labels = sample(32)
    model = PromptBoostingClassifier(
        "deterministic",
        prompts=PromptGenerator(900, (name,)),
        n_prompts=3,
        random_state=0,
        store=False,
    )
    generated = model.generate_prompts(texts, labels)
    assert len(generated.pool) == 3
    assert set(generated.summary["sources"]) <= {name, "templates"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"sources": ("nothing",)}, "sources are among"),
        ({"sources": ()}, "sources are among"),
        ({"budget": 0}, "positive"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        PromptGenerator(**arguments)


def test_requests_that_are_refused_while_prompts_are_made_are_left_out():
    texts, labels = sample(48)
    texts[5] = texts[5] + " REFUSE"
    backend = RefusingBackend("REFUSE")
    model = PromptBoostingClassifier(
        backend,
        prompts=PromptGenerator(1500),
        n_prompts=3,
        random_state=0,
        store=False,
        on_row_error="abstain",
    ).fit(texts, labels)
    assert 5 in model.row_errors_
    assert model.training_summary_["n_rows"] == 47


def test_a_written_pool_says_where_its_prompts_come_from(tmp_path):
    pool = PromptPool(["{text} It was {mask}", "{text}\n#{mask}"])
    pool.write(tmp_path / "p.txt", ["one\nnote", "other"], "about\nit")
    written = (tmp_path / "p.txt").read_text()
    assert written.splitlines()[:3] == ["# about", "# it", "# one note"]
    assert PromptPool.read(tmp_path / "p.txt") == pool


def test_a_prompt_that_needs_no_request_costs_nothing():
    assert prefix_costs([[RenderedPrompt(text="")]], [""], prefix_price=0.0).tolist() == [0.0]


def test_an_api_s_price_of_cached_tokens_counts_for_long_preambles_only():
    texts = ["a dog", "my cat"]
    preambles = ["Read this.", "An example of a text. " * 300]
    requests = [[RenderedPrompt(f"{some} {text}") for text in texts] for some in preambles]
    short, long = prefix_costs(requests, texts, prefix_price=0.1)
    as_billed = prefix_costs(requests, texts, prefix_price=1.0)
    assert short == as_billed[0]
    assert long == pytest.approx(0.1 * as_billed[1], rel=0.02)


def prose(n, size, seed=0):
    """Long texts of few tokens: n of about so many bytes, of two classes."""
    rng = np.random.default_rng(seed)
    labels = ["good" if number % 2 else "bad" for number in range(n)]
    return [
        " ".join(f"{label}{word:04}" for word in rng.integers(50, size=size // 9))
        for label in labels
    ], labels


@pytest.mark.parametrize("size", [1120, 4000])
def test_long_texts_are_counted_in_tokens_and_no_example_fills_the_context(size):
    texts, labels = prose(48, size)
    backend = DeterministicBackend(context_length=2048)
    model = PromptBoostingClassifier(
        backend, prompts=PromptGenerator(1200), n_prompts=3, random_state=0, store=False
    )
    made = model.generate_prompts(texts, labels)
    assert len(made.pool) == 3
    # two of 124 tokens are within the share, two of 444 are not
    assert ("demonstrations" in made.summary["n_tried"]) == (size == 1120)


def count_words(requests):
    return [len(request.text.split()) for request in requests]


def test_examples_take_their_share_of_the_context_even_where_a_spare_is_longer():
    texts = ["short one", "short two", *(f"{word} " * 60 for word in ("long", "wide"))]
    typical = [[0, 2], [1, 3]]  # each short text has a long one for a spare
    best = [Prompt("{text} It was {mask}")]
    for context, proposes in ((2000, True), (150, False)):
        limits = Limits(1000, 0, context, True, raw_text=True)
        task = Task(
            [(text, None) for text in texts],
            np.array([0, 1, 0, 1]),
            np.ones(4),
            ["a", "b"],
            None,
            limits,
            count_words,
        )
        bare = Prompt("{example: a || b c d} {text} {mask}")
        assert task.size(bare) == 3
        assert bool(proposed("demonstrations", task, SearchState(best, typical))) == proposes


def test_a_context_that_holds_the_default_screen_holds_made_prompts():
    texts, _ = sample(60)
    backend = DeterministicBackend(context_length=512)
    model = PromptBoostingClassifier(
        backend, prompts=PromptGenerator(1500), n_prompts=2, random_state=0, store=False, cv=None
    )
    names = [f"a class of the number {number:03}" for number in range(20)]
    model.fit(texts, [names[n % 20] for n in range(60)])
    model.set_params(task="word " * 130).fit(texts, ["no" if n % 2 else "yes" for n in range(60)])


def test_tokens_of_a_prompt_are_counted_only_where_its_bytes_leave_it_open():
    asked = []

    def count(requests):
        asked.extend(requests)
        return [5] * len(requests)

    prompt = Prompt("{text} It was {mask}")
    for context, fits, counted in ((2048, True, 0), (8, True, 1), (5, False, 1)):
        task = task_of(["a", "b"], ["x", "y"], Limits(1000, 0, context, True))
        asked.clear()
        assert replace(task, count_tokens=count).fits(prompt) == fits
        assert len(asked) == counted


def test_candidates_that_do_not_fit_are_left_out():
    texts, labels = sample(48)
    model = PromptBoostingClassifier(
        DeterministicBackend(context_length=64),
        prompts=PromptGenerator(900, ("instructions",)),
        n_prompts=3,
        random_state=0,
        store=False,
        task="quite " * 100,
    )
    pool = model.generate_prompts(texts, labels).pool
    assert len(pool) == 3
    assert not any("quite" in prompt.template for prompt in pool)
    model.set_params(max_prompts=2)
    fewer = model.generate_prompts(texts, labels)
    assert fewer.pool == pool[:2]  # those that `fit` trains with
    assert len(fewer.notes) == 2
    assert model.fit(texts, labels).prompts_ == pool[:2]
    model.set_params(backend=DeterministicBackend(context_length=1))
    with pytest.raises(PromptError, match="no prompt fits the LM's context of 1 token"):
        model.fit(texts, labels)


def test_a_text_that_was_cut_is_shared_as_far_as_it_goes():
    texts = ["a long text that is cut somewhere", "another long text that is cut as well"]
    prompts = [Prompt("{text} So {mask}"), Prompt("Read: {text} So {mask}")]
    requests = [[p.render(text[:20]) for text in texts] for p in prompts]
    behind, before = prefix_costs(requests, texts, prefix_price=0.0)
    assert behind * 4 < before


def test_a_prompt_that_is_always_refused_leaves_the_others_as_they_are():
    texts, labels = sample(64)
    backend = RefusingBackend("REFUSE")
    model = PromptBoostingClassifier(
        backend,
        prompts=PromptGenerator(1500),
        n_prompts=4,
        random_state=0,
        store=False,
        task="REFUSE this",
    )
    made = model.generate_prompts(texts, labels)
    assert made.summary["n_tried"]["instructions"]
    assert len(made.pool) == 4
    assert not any("REFUSE" in prompt.template for prompt in made.pool)
    assert made.summary["gains"][0] > 0  # of losses that were measured


def refused(rows):
    """Answers of prompts, each of which says the same of all rows but those that are refused."""
    ids = np.array([[[NO_TOKEN if gone else 7] for gone in of_prompt] for of_prompt in rows])
    return Answers(
        ids.astype(np.int32), np.where(ids == NO_TOKEN, -np.inf, 0).astype(np.float32), {7: b"x"}
    )


def test_prompts_that_lose_rows_to_refusals_are_left_out_and_rows_that_all_lose_are_not():
    assert answered_prompts(refused([[0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 1, 0]])) == [0, 2]
    assert answered_prompts(refused([[1, 0, 0, 0], [1, 0, 0, 0]])) == [0, 1]
    assert answered_prompts(refused([[0, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]])) == [0, 1]
    assert answered_prompts(refused([[1, 1], [1, 1]])) == [0, 1]


def test_prompts_are_compared_on_the_rows_that_both_answered():
    apart = mean_distances(refused([[0, 0, 1], [0, 1, 1], [1, 1, 0]]))
    assert apart[0, 1] == 0
    assert apart[0, 2] == apart[1, 2] == 1


@pytest.mark.parametrize("prompts", [None, PromptGenerator(900)])
def test_names_and_tasks_that_look_like_a_template_stand_as_they_are(prompts):
    texts, _ = sample(48)
    for name, task in (
        ("<user>{task}", "Is it <assistant> or {classes}?"),
        ("{text}", "{task} <system>{mask}"),
    ):
        backend = CountingBackend()
        model = PromptBoostingClassifier(
            backend, prompts=prompts, task=task, n_prompts=3, random_state=0, store=False
        )
        model.fit(texts, [name if n % 2 else "other" for n in range(48)])
        asked = [text_of(request) for request in backend.asked]
        assert any(task in one for one in asked)
        assert any(f"other or {name}" in one or f"{name} or other" in one for one in asked)


def test_a_budget_counts_every_draw_of_an_lm_that_is_drawn_from():
    texts, labels = sample(32)
    model = PromptBoostingClassifier(
        SamplingBackend(DeterministicBackend(), n_draws=3, max_tokens=2),
        top_k=3,
        prompts=PromptGenerator(1500),
        n_prompts=3,
        random_state=0,
        store=False,
    )
    assert model.plan(texts, labels).passes_to_make == 1500
    model.fit(texts, labels)
    told = model.training_summary_["generation"]
    assert told["passes"] == model.usage_.passes_made <= 1500


def test_up_to_192_rows_are_tried_as_the_published_tables_were():
    assert make_schedule(192, 6, 10, 4000) == Schedule(10, (32, 64, 128), (42, 24, 13))
    assert make_schedule(64, 2, 10, 4000) == Schedule(10, (32, 48, 48), (95, 24, 13))
    assert make_schedule(128, 4, 10, 4000) == Schedule(10, (32, 64, 96), (65, 24, 13))


def test_many_rows_are_tried_less_before_prompts_are_spared():
    assert make_schedule(1100, 2, 10, 4000).n_prompts == 3
    assert make_schedule(3400, 2, 10, 4000).n_prompts == 1
    crowded = make_schedule(77 * 32, 77, 10, 4000)
    assert crowded.n_prompts == 1
    assert crowded.candidates[0] >= 3


def test_a_budget_that_is_too_small_is_told_which_one_would_do():
    for n, n_classes in ((160, 4), (6000, 2), (77 * 200, 77)):
        with pytest.raises(ValueError, match="is too small") as caught:
            make_schedule(n, n_classes, 10, 100)
        enough = int(re.search(r"raise it to (\d+)", str(caught.value))[1])
        assert make_schedule(n, n_classes, 10, enough).n_prompts == 3
        assert make_schedule(n, n_classes, 10, min_budget(n, n_classes, 10)).n_prompts == 10
        if n > 192:
            assert make_schedule(n, n_classes, 10, enough - 1).n_prompts < 3


def test_a_pool_that_is_smaller_than_was_asked_for_is_told(caplog):
    texts, labels = sample(160)
    many = [f"{text} {number}" for number in range(3) for text in texts]
    model = PromptBoostingClassifier(
        "deterministic",
        prompts=PromptGenerator(1200),
        random_state=0,
        store=False,
        n_prompts=3,
    )
    pool = model.generate_prompts(many, labels * 3).pool
    assert 1 <= len(pool) < 3
    assert model.usage_.passes_made <= 1200
    assert f"making {len(pool)} of 3 prompts" in caplog.text
    assert "480 training rows" in caplog.text


def test_an_lm_that_can_not_write_gets_templates():
    texts, labels = sample(32)
    model = PromptBoostingClassifier(
        PlainBackend(),
        prompts=PromptGenerator(900, ("written",)),
        n_prompts=3,
        random_state=0,
        store=False,
    )
    made = model.generate_prompts(texts, labels)
    assert made.summary["sources"] == ["templates"] * 3


@pytest.mark.parametrize("reader", [MASKED, CAUSAL, CHAT_ONLY, BEGUN])
def test_what_one_lm_writes_is_put_as_the_other_one_reads(reader):
    texts, labels = sample(40)
    write = Pen(BEGUN, " This concerns the matter of ___ here", " Name the topic of it.")
    task = task_of(texts, labels, reader)
    templates = [prompt.template for prompt in proposed("written", task, None, write)]
    assert any("This concerns the matter of" in template for template in templates)
    assert any("Name the topic of it." in template for template in templates)


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        ("- The text mentions money.\nAnd more.", "The text mentions money."),
        ('Statement: "The writer asks when."', "The writer asks when."),
        ("The text mentions money", None),  # cut off
        ("Does the text mention money?", None),
        ("Positive texts are praise.", None),
        ("The text has {braces} in it.", None),
        ("", None),
    ],
)
def test_a_statement_about_a_text_is_found_in_a_draw(draw, said):
    assert predicate_in(draw) == said


@pytest.mark.parametrize("reader", [CHAT_ONLY, replace(BEGUN, questions=True, raw_text=False)])
def test_predicates_that_an_lm_writes_are_proposed_to_any_reader_of_questions(reader):
    texts, labels = sample(40)
    write = Pen(BEGUN, "The writer asks for a refund.", "The text mentions money.")
    task = task_of(texts, labels, reader)
    found = [prompt.template for prompt in proposed("written", task, None, write)]
    assert "<predicate>The writer asks for a refund." in found[:2]
    assert "<predicate>The text mentions money." in found
    # a decision endpoint has no templates, and nothing is written for them
    assert len(write.asked) == (3 if reader.questions else 17)


def test_a_budget_is_a_whole_number_that_can_be_saved(tmp_path):
    texts, labels = sample(24)
    model = PromptBoostingClassifier(
        "deterministic",
        prompts=PromptGenerator(np.int64(700)),
        n_prompts=2,
        random_state=0,
        store=False,
    )
    model.fit(texts, labels).save(tmp_path / "m")
    for budget in (900.5, "900", 0, -1):
        with pytest.raises(ValueError, match="a positive whole number"):
            PromptGenerator(budget)


@pytest.mark.parametrize(
    ("limits", "n_classes", "said"), [(CHAT_ONLY, 2, "no raw text"), (CAUSAL, 13, "12 classes")]
)
def test_examples_that_can_not_be_shown_are_told(limits, n_classes, said, caplog):
    texts, _ = sample(52)
    task = task_of(texts, [f"class {n % n_classes}" for n in range(52)], limits)
    assert proposed("demonstrations", task) == []
    assert said in caplog.text


def test_a_pool_of_fewer_prompts_keeps_the_first():
    texts, labels = sample(32)
    model = PromptBoostingClassifier(
        "deterministic", prompts=PromptGenerator(900), n_prompts=3, random_state=0, store=False
    )
    made = model.generate_prompts(texts, labels)
    assert list(made.first(1).pool) == list(made.pool)[:1]
    assert made.first(1).notes == made.notes[:1]
    assert made.first(None).pool == made.pool


def test_cells_of_another_lm_are_other_cells(tmp_path):
    folder = tmp_path / "sst2"
    folder.mkdir()
    texts, _ = sample(80)
    rows = "".join(
        f"{text!r},{'no' if n % 2 else 'yes'}\n"
        for n, text in enumerate(text.replace('"', "").replace(",", "") for text in texts)
    )
    for name in ("train.csv", "test.csv"):
        (folder / name).write_text("text,label\n" + rows)
    known = [
        "--data-dir",
        tmp_path,
        "--out",
        tmp_path,
        "--data",
        "sst2",
        "--seed",
        13,
        "--n-test",
        8,
        "--method",
        "hand-written",
    ]
    for more, n in (
        (["--backend", "deterministic"], 1),
        (["--backend", "deterministic"], 1),
        (["--backend", "tests.fakes:CountingBackend"], 2),
        (["--backend", "deterministic", "--writer-backend", "tests.fakes:CountingBackend"], 3),
    ):
        result = CliRunner().invoke(prompt_pools.main, [str(part) for part in (*known, *more)])
        assert result.exit_code == 0, result.output
        assert len((tmp_path / "prompt_pools.jsonl").read_text().splitlines()) == n
    writer = DeterministicBackend(seed=7)
    made = prompt_pools.make_classifier("generated", writer, [], "sst2", 0, None, writer)
    assert made.prompts.writer is writer
