"""Plans: the passes of the run to the last one, and its tokens."""

import json
from dataclasses import replace

import pytest

from blackbox import PromptBoostingClassifier
from blackbox.tables import read_examples
from tests.fakes import CountingBackend
from tests.test_budgets import Uncounted

TEXTS = [f"text {number} is {'lovely' if number % 2 else 'dull'}" for number in range(60)]
LABELS = [number % 2 for number in range(60)]
PROMPTS = ["{text} It was {mask}", "{text} A {mask}"]
PROBED = 32


def asked(backend, model):
    """Passes that the plan itself made, which are those of the probe."""
    before = len(backend.asked)
    plan = model.plan(TEXTS, LABELS)
    return plan, len(backend.asked) - before


@pytest.mark.parametrize("has_store", [True, False])
@pytest.mark.parametrize("texts", [TEXTS, [*TEXTS[:30], *TEXTS[:30]]], ids=["distinct", "twice"])
@pytest.mark.parametrize(
    "parameters",
    [{"prompts": PROMPTS}, {"n_prompts": 3}, {"n_prompts": 3, "n_screening_rows": 10}],
    ids=["given", "chosen", "chosen on few rows"],
)
def test_the_passes_of_a_plan_are_those_of_the_run(tmp_path, has_store, texts, parameters):
    backend = CountingBackend()
    store = tmp_path / "s" if has_store else False
    model = PromptBoostingClassifier(backend, store=store, random_state=0, **parameters)
    plan = model.plan(texts, LABELS)
    assert len(backend.asked) <= PROBED
    backend.calls.clear()
    model.fit(texts, LABELS)
    assert plan.passes_to_make == model.usage_.passes_made == len(backend.asked)
    assert plan.passes == model.usage_.passes_made + model.usage_.passes_from_store
    low, expected, worst = plan.tokens
    assert low <= model.usage_.tokens <= worst
    if "prompts" in parameters:
        assert low == expected == worst


def test_what_the_store_has_is_not_planned_again(tmp_path):
    backend = CountingBackend()
    model = PromptBoostingClassifier(backend, n_prompts=3, store=tmp_path / "s", random_state=0)
    model.fit(TEXTS, LABELS)
    plan = model.plan(TEXTS, LABELS)
    assert plan.passes_to_make == plan.tokens[2] == 0
    assert plan.passes == plan.passes_from_store == model.usage_.passes_made
    more = PromptBoostingClassifier(
        backend, prompts=[*model.prompts_, "{text} So {mask}"], store=tmp_path / "s"
    )
    assert more.plan(TEXTS, LABELS).passes_to_make == len(TEXTS)


def test_a_plan_stores_nothing_and_learns_nothing(tmp_path):
    model = PromptBoostingClassifier(CountingBackend(), store=tmp_path / "s", prompts=PROMPTS)
    first, second = model.plan(TEXTS, LABELS), model.plan(TEXTS, LABELS)
    assert first.passes_to_make == second.passes_to_make == 120
    assert not hasattr(model, "ensemble_")


def test_tokens_without_a_tokenizer_are_called_an_estimate():
    backend = Uncounted(CountingBackend())
    plan = PromptBoostingClassifier(backend, prompts=PROMPTS).plan(TEXTS, LABELS)
    assert not plan.tokens_counted
    assert plan.tokens[1] > 0
    assert plan.example_token_ids is None
    assert plan.example == f"{TEXTS[0]} It was"


def test_an_lm_of_unknown_price_is_not_probed_and_its_cost_is_unknown():
    backend = CountingBackend()
    backend.identity = replace(backend.identity, provider="unheard-of", endpoint="http")
    plan, probed = asked(backend, PromptBoostingClassifier(backend, prompts=PROMPTS))
    assert probed == 0
    assert plan.cost is plan.seconds is plan.price_source is None


def test_a_free_lm_is_probed_for_its_time():
    backend = CountingBackend()
    plan, probed = asked(backend, PromptBoostingClassifier(backend, prompts=PROMPTS))
    assert 0 < probed <= PROBED
    assert plan.cost == (0, 0, 0)
    assert 0 < plan.seconds[0] <= plan.seconds[2]
    assert json.loads(json.dumps(plan.as_dict()))["passes"] == 120


@pytest.mark.data
@pytest.mark.parametrize("name", ["trec", "sst2", "agnews"])
def test_plans_hold_on_real_texts(benchmark_data, tmp_path, name):
    examples = read_examples(benchmark_data / name / "train.csv")
    texts, labels = examples.texts[:150], examples.labels[:150]
    for parameters in ({"prompts": PROMPTS}, {}):
        model = PromptBoostingClassifier(
            CountingBackend(), store=tmp_path / f"{len(parameters)}", random_state=0, **parameters
        )
        plan = model.plan(texts, labels)
        model.fit(texts, labels)
        assert plan.passes_to_make == model.usage_.passes_made
        assert plan.tokens[0] <= model.usage_.tokens <= plan.tokens[2]
        if parameters:
            assert plan.tokens[1] == pytest.approx(model.usage_.tokens, rel=0.02)


@pytest.mark.lm
def test_plans_count_as_the_embedded_lm_does(lm, tmp_path):
    model = PromptBoostingClassifier(lm, prompts=PROMPTS, store=tmp_path / "s", random_state=0)
    plan = model.plan(TEXTS[:12], LABELS[:12])
    model.fit(TEXTS[:12], LABELS[:12])
    # two prompts, and sentence embeddings
    assert plan.passes_to_make == model.usage_.passes_made == 3 * 12
    assert plan.tokens[1] == model.usage_.tokens
    assert plan.example.endswith(f"{TEXTS[0]} It was")
    assert plan.example_token_ids
