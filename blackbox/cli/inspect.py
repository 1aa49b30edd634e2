"""`blackbox inspect`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from blackbox.cli import common, label_sets
from blackbox.cli.help import Command, option
from blackbox.cli.lm_options import LmOptions, lm_options
from blackbox.cli.options import json_option

_SMALL = 1e-6  # scores that are equal but for their last digits


@click.command(
    "inspect",
    cls=Command,
    example='blackbox inspect messages.blackbox --text "where is my parcel?"',
)
@click.argument("model_path", metavar="MODEL", type=click.Path(path_type=Path))
@option("--text", group="Data", help="Explain the prediction for this text.")
@option(
    "--image",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    group="Data",
    advanced=True,
    help="Explain the prediction for this image, with --text for its text.",
)
@option(
    "--text-pair", group="Data", advanced=True, help="The second text, for a model of text pairs."
)
@option(
    "--learners",
    type=click.IntRange(min=0),
    default=10,
    show_default=True,
    group="Output",
    help="Number of weak learners to show.",
)
@lm_options
@json_option
def command(
    model_path: Path,
    text: str | None,
    text_pair: str | None,
    image: Path | None,
    learners: int,
    lm: LmOptions,
    as_json: bool,
) -> None:
    """Show the prompts and weak learners of MODEL, or with --text explain one prediction.

    With --image it explains the prediction for an image.
    """
    from blackbox.explain import describe_experts, describe_learners, explain
    from blackbox.lm.budgets import Budget
    from blackbox.lm.client import with_store_and_budget
    from blackbox.model.file import read_model

    if text is None and text_pair is not None:
        raise click.UsageError("--text-pair requires --text")
    trained = read_model(model_path)
    if text is None and image is None:  # a model alone needs no LM to be shown
        described = {
            "language_model": trained.identity.as_dict(),
            "algorithm": trained.ensemble.algorithm.name,
            "classes": [str(label) for label in trained.classes.tolist()],
            "order": trained.ordered_labels(),
            **label_sets.describe(trained),
            "top_k": trained.top_k,
            "training": trained.summary,
            "experts": describe_experts(trained),
            "n_training_texts": 0 if trained.examples is None else len(trained.examples.texts),
            "prompts": _prompts(trained),
            "learners": describe_learners(trained),
        }
        if as_json:
            common.echo_json(described)
        else:
            _show_model(described, learners)
        return
    if (trained.input_kind == "image") != (image is not None):
        need = "images: give --image" if image is None else "texts: drop --image"
        raise click.UsageError(f"this model was trained on {need}")
    if trained.takes_pair != (text_pair is not None):
        need = "pairs: give --text-pair too" if text_pair is None else "single texts"
        raise click.UsageError(f"this model was trained on {need}")
    client = with_store_and_budget(lm.connect(trained, model_path), None, Budget())
    embedder = lm.connect_embedder(trained, model_path)
    if embedder is not None:
        embedder = with_store_and_budget(embedder, None, Budget())
    example: Any = text if text_pair is None else (text, text_pair)
    if image is not None:
        example = image if text is None else (image, text)
    explained = explain(trained, client, example, embedder)
    if not trained.several_labels:
        explained["prediction"] = str(explained["prediction"])
    if as_json:
        common.echo_json(explained | {"usage": client.usage.as_dict()})
    else:
        _show_prediction(explained, learners)


def _prompts(trained: Any) -> list[dict[str, Any]]:
    weights = [0.0] * len(trained.prompts)
    for learner in trained.ensemble.learners:
        weights[learner.prompt] += learner.weight
    return [
        {"prompt": prompt.template, "weight": weight, "n_tokens": len(reading.token_ids)}
        for prompt, weight, reading in zip(
            trained.prompts, weights, trained.ensemble.readings, strict=True
        )
    ]


def _is_mirrored(explained: dict[str, Any]) -> bool:
    """Whether all that speaks for one of two classes speaks against the other, as much."""
    parts = [*explained["experts"], *explained["prompts"], *explained["learners"]]
    same_tokens = all(
        len({token["class"] for token in learner["tokens"] if token["token"] == text}) == 2
        for learner in explained["learners"]
        for text in {token["token"] for token in learner["tokens"]}
    )
    return same_tokens and all(abs(sum(part["votes"].values())) < _SMALL for part in parts)


def _line(template: str) -> str:
    from blackbox.model.display import printable

    return printable(template)


def _show_model(described: dict[str, Any], n_learners: int) -> None:
    from blackbox.model.summary import training_facts, training_warnings

    lm, training = described["language_model"], described["training"]
    facts = [
        ("LM", f"{lm['model']} ({lm['provider']})"),
        (
            "algorithm",
            f"{described['algorithm']}, {len(described['learners'])} weak learners, "
            f"top {described['top_k']} tokens",
        ),
        (
            "ordered classes" if described["order"] else "classes",
            (" < " if described["order"] else ", ").join(
                (described["order"] or described["classes"])[:20]
            ),
        ),
        *training_facts(described["classes"], training),
        *(("warning", line) for line in training_warnings(training)),
    ]
    for expert in described["experts"]:
        weight = expert["weight"]
        shown = f", weight {weight:.3f}" if isinstance(weight, float) else ""
        facts.append(("expert", f"{expert['title']} ({expert['reads']['model']}){shown}"))
    if described["n_training_texts"]:
        facts.append(("texts", f"{described['n_training_texts']} of the training are in the file"))
    for name, words in facts:
        click.echo(f"{name:<20} {_line(words)}")
    if "labels" in described:
        label_sets.show_labels(described["labels"])
    click.echo("\nprompts, with the summed weight of their learners")
    for prompt in sorted(described["prompts"], key=lambda entry: -entry["weight"]):
        click.echo(f"  {prompt['weight']:8.3f}  {_line(prompt['prompt'])}")
    shown = described["learners"][:n_learners]
    if shown:
        click.echo(f"\nstrongest weak learners ({len(shown)})")
    for learner in shown:
        show_learner(learner)
    if len(described["learners"]) > len(shown):
        n_more = len(described["learners"]) - len(shown)
        click.echo(f"\n{n_more} more weak learners: --learners N, or --json")


def show_learner(learner: dict[str, Any]) -> None:
    """Print one weak learner on standard output."""
    click.echo(f"\n  {_round(learner)}, weight {learner['weight']:.3f}: {_line(learner['prompt'])}")
    by_class = learner["tokens"]
    if len(by_class) == 2:  # what counts against the one counts for the other
        by_class = {
            name: [(token, weight) for token, weight in tokens if weight > 0]
            for name, tokens in by_class.items()
        }
    for name, tokens in list(by_class.items())[:12]:
        if not tokens:
            continue
        click.echo(f"    {_line(name)}: {common.describe_tokens(tokens)}")
    if len(learner["tokens"]) > 12:
        click.echo(f"    and {len(learner['tokens']) - 12} more classes")


def _round(learner: dict[str, Any]) -> str:
    words = f"round {learner['round']}" if learner["round"] else "class names"
    return f"{_line(learner['label'])}, {words}" if "label" in learner else words


def _show_prediction(explained: dict[str, Any], n_learners: int) -> None:
    prediction, thresholds = explained["prediction"], explained.get("thresholds", {})
    if isinstance(prediction, list):
        prediction = ", ".join(map(str, prediction)) or "no label"
    click.echo(f"prediction  {_line(prediction)}")
    ranked = sorted(explained["probabilities"].items(), key=lambda item: -item[1])[:12]
    for name, probability in ranked:
        given = f"  (given above {thresholds[name]:.3f})" if name in thresholds else ""
        click.echo(f"  {probability:6.3f}  {_line(name)}{given}")
    names = [name for name, _ in ranked[:6]]
    if "none_of_these" in explained:
        told = explained["none_of_these"]
        click.echo(f"\nnone of these ({_line(str(told['label']))}): {told['says']}")
        for name, value in told["measures"].items():
            click.echo(f"  {value:+6.2f}  {name.replace('_', ' ')}")
    for expert in explained["experts"]:
        click.echo(f"\n{_line(expert['says'])}")
    if "nearest" in explained:
        click.echo("\nthe nearest training texts")
        for one in explained["nearest"]:
            shown = " ⏎ ".join(part for part in (one["text"], one["text_pair"]) if part)
            click.echo(f"  {one['similarity']:6.2f}  {_line(one['label'])}: {_line(shown)}")
    if len(names) == 2 and not thresholds and _is_mirrored(explained):
        one, other = map(_line, names)
        click.echo(f"\ncontribution of each prompt to the score of {one} ({other}: the opposite)")
        names = names[:1]
    else:
        click.echo("\ncontribution of each prompt to the scores of " + ", ".join(map(_line, names)))
    for expert in explained["experts"]:
        votes = "  ".join(f"{expert['votes'][name]:+6.2f}" for name in names)
        click.echo(f"  {votes}  ({_line(expert['name'])})")
    for prompt in explained["prompts"]:
        votes = "  ".join(f"{prompt['votes'][name]:+6.2f}" for name in names)
        click.echo(f"  {votes}  {_line(prompt['prompt'])}")
    shown = explained["learners"][:n_learners]
    if shown:
        click.echo(f"\nweak learners with the largest votes ({len(shown)})")
    for learner in shown:
        click.echo(f"\n  {_round(learner)}: {_line(learner['prompt'])}")
        for name in learner["votes"] if "label" in learner else names:
            tokens = [token for token in learner["tokens"] if token["class"] == name]
            tokens.sort(key=lambda token: -abs(token["adds"]))
            behind = "  ".join(
                f"{token['adds']:+.3f} “{_line(token['token'])}” ({token['log_prob']:.2f})"
                for token in tokens[:6]
            )
            click.echo(f"    {learner['votes'][name]:+.3f}  {_line(name)}: {behind}")
    if len(explained["learners"]) > len(shown):
        n_more = len(explained["learners"]) - len(shown)
        click.echo(f"\n{n_more} more weak learners: --learners N, or --json")
