"""Profile training and prediction, and plot the share of each part.

    python -m eval.perf.profile [--out docs/images] [--backend onnx] [--model NAME] [--texts N]

Eighty of the bundled messages, ten prompts of the built-in pool: trained and labelled with an empty
store and again with a full one; with ``--texts`` so many made-up texts are labelled. What a part
takes is the time inside of its functions, less that of the parts within.
"""

from __future__ import annotations

import cProfile
import os
import platform
import pstats
import tempfile
import time
from pathlib import Path
from typing import Any

import click

import backends
from blackbox import PromptBoostingClassifier
from blackbox.generation import builtin_pool
from eval.perf.around_lm import make_texts
from eval.studies.screenshots import read_sample

PARTS = {
    "rendering": [("blackbox/answers/requests.py", "render_requests")],
    "keys": [("blackbox/store/stored_backend.py", "_rows_of")],
    "the store": [
        ("blackbox/store/file.py", name)
        for name in ("get", "put", "token_bytes", "claim", "release")
    ],
    "encoding": [("blackbox/store/encoding.py", f"{name}code_block") for name in ("en", "de")],
    "checks of answers": [("blackbox/protocol/answers.py", "__post_init__")],
    "boosting and calibration": [("blackbox/boosting/training.py", "boost")],
}
LM, REST = "forward passes", "all else"
_N_ROWS, _N_PROMPTS = 80, 10


def profile_call(classifier: Any, method: str, *arguments: Any) -> dict[str, float]:
    """Run one call; return its seconds by part."""
    profile = cProfile.Profile()
    started = time.perf_counter()
    profile.runcall(getattr(classifier, method), *arguments)
    total = time.perf_counter() - started
    stats: Any = pstats.Stats(profile)
    usage = classifier.usage_ if method == "fit" else classifier.prediction_usage_
    found = {LM: float(usage.seconds_lm)}
    for part, functions in PARTS.items():
        found[part] = sum(
            times[3]  # with what they call
            for (file, _, name), times in stats.stats.items()
            if any(file.endswith(path) and name == wanted for path, wanted in functions)
        )
    found[REST] = max(total - sum(found.values()), 0.0)
    return found


def measure(lm: Any, folder: Path, n_texts: int | None = None) -> dict[str, dict[str, float]]:
    """Return the seconds by part of each of four runs."""
    rows = read_sample("train.csv")
    rows = rows[:: len(rows) // _N_ROWS][:_N_ROWS]
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    pool = builtin_pool(limits=lm.limits, class_names=sorted(set(labels)))
    new = [row["text"] for row in read_sample("test.csv")[:_N_ROWS]]
    if n_texts is not None:
        new = make_texts(n_texts, seed=1)[0]
    found = {}
    for kind in ("empty store", "full store"):
        classifier = PromptBoostingClassifier(
            lm,
            prompts=pool[:_N_PROMPTS],
            random_state=0,
            store=folder / "p.sqlite",
            embeddings=None,
        )
        found[f"training, {kind}"] = profile_call(classifier, "fit", texts, labels)
        found[f"prediction, {kind}"] = profile_call(classifier, "predict", new)
    return found


def draw_bars(found: dict[str, dict[str, float]], path: Path) -> None:
    """Draw one bar per run, its parts as shares."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 3.2), layout="constrained")
    names = list(found)
    left = [0.0] * len(names)
    for part in (LM, *PARTS, REST):
        shares = [100 * run[part] / sum(run.values()) for run in found.values()]
        axes.barh(names, shares, left=left, label=part)
        left = [before + share for before, share in zip(left, shares, strict=True)]
    for place, run in enumerate(found.values()):
        axes.text(101, place, f"{sum(run.values()):.1f} s", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xlabel("share of the time in percent")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.4, 1.32), frameon=False)
    figure.savefig(path, dpi=120)


@click.command()
@click.option("--out", default=Path("docs/images"), type=click.Path(path_type=Path))
@click.option("--backend", default="onnx", show_default=True)
@click.option("--model")
@click.option("--texts", type=click.IntRange(1), help="Label so many made-up texts.")
def main(out: Path, backend: str, model: str | None, texts: int | None) -> None:
    """Print seconds by part, and draw them to OUT/profile.png."""
    lm = backends.load(backend, **({} if model is None else {"model": model}))
    with tempfile.TemporaryDirectory() as folder:
        found = measure(lm, Path(folder), texts)
    click.echo("| run | " + " | ".join((LM, *PARTS, REST)) + " |")
    click.echo("|---" * (3 + len(PARTS)) + "|")
    for name, run in found.items():
        click.echo(f"| {name} | " + " | ".join(f"{s:.2f}" for s in run.values()) + " |")
    out.mkdir(parents=True, exist_ok=True)
    draw_bars(found, out / "profile.png")
    click.echo(
        f"\nseconds; {_N_ROWS} texts for training, {texts or _N_ROWS} labelled, {_N_PROMPTS} "
        f"prompts; {lm!r}; {platform.machine()}, {os.cpu_count()} cores"
    )


if __name__ == "__main__":
    main()
