"""The paper's refinement of prompts, which the evaluation compares with."""

from __future__ import annotations

import csv
import re
from pathlib import Path

import numpy as np
import pytest

import blackbox
from backends.deterministic import DeterministicBackend
from backends.sampling import SamplingBackend
from blackbox import PromptBoostingClassifier
from blackbox.answers.gatherer import Gatherer
from blackbox.generation import Task
from eval.methods.refinement import Refinement, n_candidates
from eval.studies import prompt_pools
from tests.fakes import PlainBackend, RefusingBackend

SAMPLES = Path(blackbox.__file__).parent / "samples" / "train.csv"


def sample(n: int = 64) -> tuple[list[str], list[str]]:
    with SAMPLES.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))[:n]
    return [row["text"] for row in rows], [row["label"] for row in rows]


def classifier(backend, budget, n_prompts, **options) -> PromptBoostingClassifier:
    sources = options.pop("sources", None)
    prompts = Refinement(budget) if sources is None else Refinement(budget, sources)
    return PromptBoostingClassifier(
        backend, prompts=prompts, n_prompts=n_prompts, random_state=0, store=False, **options
    )


def test_prompts_with_the_fewest_training_errors_are_kept():
    texts, labels = sample()
    names, y = np.unique(labels, return_inverse=True)
    backend = DeterministicBackend()
    examples = [(text, None) for text in texts]
    task = Task(examples, y, np.ones(len(y)), names.tolist(), None, backend.limits)
    gatherer = Gatherer(backend, examples, 100)
    made = Refinement(1280).generate(gatherer, task, 5, np.random.default_rng(0))
    assert gatherer.asked <= 1280
    errors = [float(note.split("training error ")[1]) for note in made.notes]
    assert errors == sorted(errors)
    assert len(made.pool) == 5


def test_a_prompt_that_is_always_refused_is_left_out():
    model = classifier(RefusingBackend("REFUSE"), 3000, 4, task="REFUSE this")
    pool = model.generate_prompts(*sample()).pool
    assert len(pool) == 4
    assert not any("REFUSE" in prompt.template for prompt in pool)


def test_a_budget_counts_every_draw_of_an_lm_that_is_drawn_from():
    backend = SamplingBackend(DeterministicBackend(), n_draws=3, max_tokens=2)
    model = classifier(backend, 1500, 3, top_k=3).fit(*sample(32))
    assert model.training_summary_["generation"]["passes"] <= 1500
    assert model.usage_.passes_made <= 1500


def test_a_budget_that_is_too_small_is_told_which_one_would_do():
    with pytest.raises(ValueError, match="raise it to") as caught:
        n_candidates(1000, 10, 500)
    enough = int(re.search(r"raise it to (\d+)", str(caught.value))[1])
    assert n_candidates(1000, 10, enough) == 3


def test_a_pool_that_is_smaller_than_was_asked_for_is_told(caplog):
    texts, labels = sample(160)
    many = [f"{text} {number}" for number in range(3) for text in texts]
    model = classifier("deterministic", 1200, 3)
    pool = model.generate_prompts(many, labels * 3).pool
    assert 1 <= len(pool) < 3
    assert model.usage_.passes_made <= 1200
    assert f"making {len(pool)} of 3 prompts" in caplog.text
    assert "480 training rows" in caplog.text


def test_an_lm_that_can_not_write_gets_templates():
    made = classifier(PlainBackend(), 900, 3, sources=("written",)).generate_prompts(*sample(32))
    assert made.summary["sources"] == ["templates"] * 3


def test_the_study_of_prompt_pools_compares_with_it():
    writer = DeterministicBackend(seed=7)
    made = prompt_pools.make_classifier("refinement", writer, [], "sst2", 0, None, writer)
    assert isinstance(made.prompts, Refinement)
    assert made.prompts.writer is writer
