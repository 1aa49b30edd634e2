"""`blackbox quickstart`."""

from __future__ import annotations

import io
import time
from importlib import resources
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from blackbox.cli import common
from blackbox.cli.help import Command, option
from blackbox.cli.options import STORE, json_option, seed_option
from blackbox.cli.train import class_counts
from blackbox.plurals import counted
from blackbox.progress import ProgressDisplay

_PROMPTS = 6  # four fewer than by default, to be quick


@click.command("quickstart", cls=Command, example="blackbox quickstart")
@option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("quickstart.blackbox"),
    show_default=True,
    group="Output",
    help="File of the trained model.",
)
@seed_option
@json_option
def command(out: Path, seed: int, as_json: bool) -> None:
    """Train and evaluate a classifier on bundled sample data.

    Downloads the embedded LM and its embedding model once, trains on 160 customer messages and
    tests on 80 others.
    """
    from backends import onnx, onnx_embeddings
    from backends.catalogue import CATALOGUE, EMBEDDING_MODELS
    from blackbox.lm.connect import EMBEDDED

    common.check_target(out)
    progress = ProgressDisplay()
    _fetch("language model", CATALOGUE[onnx.DEFAULT_MODEL], onnx.FORM, progress)
    _fetch("embedding model", EMBEDDING_MODELS[EMBEDDED], onnx_embeddings.FORM, progress)
    click.get_current_context().meta[STORE] = None  # the default one: what Ctrl-C leaves
    started = time.perf_counter()
    try:
        result, learners = _run(out, seed, progress)
    finally:
        progress.close()
    result["seconds"] = round(time.perf_counter() - started, 1)
    if as_json:
        common.echo_json(result)
    else:
        _show(result, learners)


def _fetch(what: str, model: Any, form: Any, progress: ProgressDisplay) -> None:
    """Download a model of the catalogue, unless that was done before."""
    from backends.catalogue import pull

    started = time.perf_counter()
    pull(model.name, form, progress=progress)
    common.say(f"{what} {model.name} ready ({time.perf_counter() - started:.0f} s)")


def _run(
    out: Path, seed: int, progress: ProgressDisplay
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train, test and compare with a baseline; all three share their forward passes."""
    import numpy as np
    from sklearn.base import clone

    import backends
    from blackbox import PromptBoostingClassifier
    from blackbox.boosting.baseline import best_single_learner
    from blackbox.explain import describe_learners
    from blackbox.lm.client import find_store
    from blackbox.metrics import wilson_interval
    from blackbox.store.file import open_store
    from blackbox.store.stored_backend import StoredBackend

    train, test = _sample("train"), _sample("test")
    common.say(f"training on customer messages: {class_counts(train)} …")
    lm = backends.load()
    truth = np.array(test.labels)
    with TemporaryDirectory() as folder:
        # a store for this run, also where the user wants none
        store = find_store(None) or open_store(Path(folder) / "passes.sqlite")
        classifier = PromptBoostingClassifier(
            lm, n_prompts=_PROMPTS, random_state=seed, store=store, callback=progress
        )
        classifier.fit(train.texts, train.labels)
        classifier.save(out)
        progress.close()
        common.say_training_facts(classifier)
        common.say(f"testing on {len(test.texts)} others …")
        right = int((classifier.predict(test.texts) == truth).sum())
        # the same answers of the LM, all of them in the store by now
        alone = clone(classifier).set_params(embeddings=None).fit(train.texts, train.labels)
        right_alone = int((alone.predict(test.texts) == truth).sum())
        single = best_single_learner(
            StoredBackend(lm, store),
            classifier.prompts_,
            train.texts,
            train.labels,
            test.texts,
            classifier.top_k_,
        )
    low, high = wilson_interval(right, len(truth))
    labels, counts = np.unique(np.array(train.labels), return_counts=True)
    usage = classifier.usage_ + classifier.prediction_usage_
    return {
        "accuracy": right / len(truth),
        "accuracy_low": low,
        "accuracy_high": high,
        "majority_accuracy": float((truth == labels[counts.argmax()]).mean()),
        "lm_alone_accuracy": right_alone / len(truth),
        "best_prompt_accuracy": float((single == truth).mean()),
        "forward_passes": usage.passes_made,
        "lm_tokens": usage.tokens,
        "lm_tokens_evaluated": usage.tokens_evaluated,
        "seconds": 0.0,
        "model_path": str(out),
        "usage": usage.as_dict(),
    }, describe_learners(classifier.model_, 3)


def _sample(split: str) -> Any:
    from blackbox.tables import read_examples

    name = f"{split}.csv"
    data = resources.files("blackbox").joinpath("samples", name).read_bytes()
    return read_examples(name, stream=io.BytesIO(data))


def _show(result: dict[str, Any], learners: list[dict[str, Any]]) -> None:
    from blackbox.cli.inspect import show_learner

    click.echo("\naccuracy on test messages")
    click.echo(
        f"  {common.percent(result['accuracy']):>6}  this classifier (95% interval "
        f"{common.percent(result['accuracy_low'])} to {common.percent(result['accuracy_high'])})"
    )
    click.echo(
        f"  {common.percent(result['lm_alone_accuracy']):>6}  the same without sentence embeddings"
    )
    click.echo(
        f"  {common.percent(result['best_prompt_accuracy']):>6}  the same language model with its "
        "best single prompt and verbalizer"
    )
    click.echo(f"  {common.percent(result['majority_accuracy']):>6}  majority class")
    from_store = result["usage"]["passes_from_store"]
    known = f" ({from_store} more from the store)" if from_store else ""
    click.echo(
        f"\n{counted(result['forward_passes'], 'forward pass')}{known}, "
        f"{counted(result['lm_tokens'], 'token')} "
        f"({result['lm_tokens_evaluated']} evaluated, the others from the prefix cache), "
        f"{result['seconds']:.0f} s"
    )
    click.echo("\nthe three strongest weak learners")
    for learner in learners:
        show_learner(learner)
    path = result["model_path"]
    click.echo(f'\nsaved to {path}; try\n  blackbox inspect {path} --text "where is my parcel?"')
    click.echo("and with a table of your own, with the columns text and label,")
    click.echo("  blackbox train messages.csv --out messages.blackbox")
