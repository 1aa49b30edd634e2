"""Compare ways to classify texts that users would pick: processor seconds and accuracy.

    python -m eval.perf.users_picks --data-dir DIR [--data sst2 --data trec] [--way "ours" …]

The same training and test rows, each way in a process of its own, one after the other, with one
thread and its own defaults, but SetFit ends after 100 steps where its default takes more. The
language model is the embedded one, for everybody else as a folder of transformers in float32; the
embedding model is the embedded all-MiniLM-L6-v2. Every start includes about a second of this
script's own imports. A way whose package isn't installed is skipped by name. Needs the extras
`local`, `transformers` and `eval`, and for all ways the packages `lm_eval`, `skorch`, `setfit` and
`sentence-transformers`; nothing is read from a hub.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import numpy as np

from backends.catalogue import pull
from backends.hf.folder import FORM
from blackbox.generation import builtin_pool
from blackbox.prompts.template import Prompt
from blackbox.protocol import Limits
from eval.data.data_sets import DataSet, Rows, read_data_set

OURS = "ours, without embeddings"
_MODEL, _EMBEDDINGS = "smollm2-135m", "all-minilm-l6-v2"
_BATCH, _SETFIT_STEPS = 16, 100
_EMBEDDING_PACKAGES = {"setfit", "sentence_transformers"}
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "PROMPTBOOSTING_STORE": "off",
    "TOKENIZERS_PARALLELISM": "false",
}
_LIMITS = Limits(max_top_k=200, max_score_ids=0, context_length=2048, deterministic=True)


class Clock:
    """Processor seconds between its marks.

    Attributes
    ----------
    seconds : dict of str to float
        Of each step, by name.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._before = 0.0  # a process counts from its own start, imports included

    def mark(self, step: str) -> None:
        """End a step."""
        now = time.process_time()
        self.seconds[step] = now - self._before
        self._before = now


@dataclass(frozen=True)
class Task:
    """The input that each way gets.

    Parameters
    ----------
    data : DataSet
        With the classes' words and the prompt of ways that use one.
    train, test : Rows
        Drawn from it.
    templates : list of str
        The ten prompts that our classifier chose.
    lm, embeddings : str
        The folders of the two models.
    """

    data: DataSet
    train: Rows
    test: Rows
    templates: list[str]
    lm: str
    embeddings: str


Way = Callable[[Clock, Task], Sequence[str]]
"""Called with a clock and a task; returns a label for each test row."""


def _ours(options: dict[str, Any]) -> Way:
    def way(clock: Clock, task: Task) -> Sequence[str]:
        from blackbox import PromptBoostingClassifier

        classifier = PromptBoostingClassifier(
            "onnx", backend_options={"n_threads": 1}, random_state=13, **options
        )
        clock.mark("start")
        classifier.fit(task.train.texts, task.train.labels)
        clock.mark("training")
        labels = [str(label) for label in classifier.predict(task.test.texts)]
        clock.mark("prediction")
        click.echo(json.dumps([prompt.template for prompt in classifier.prompts_]))
        return labels

    return way


def _plain(clock: Clock, task: Task) -> Sequence[str]:
    """Score the first token of each class's word after padded batches; prompts are averaged."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.lm, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(task.lm).eval()
    words = [task.data.words()[label] for label in task.data.classes]
    tokens = [tokenizer.encode(" " + word, add_special_tokens=False)[0] for word in words]
    clock.mark("start")
    clock.mark("training")
    scores = np.zeros((len(task.test), len(words)))
    for template in task.templates:
        prompt = Prompt(template)
        for begin in range(0, len(task.test), _BATCH):
            requests = [prompt.render(text) for text in task.test.texts[begin : begin + _BATCH]]
            written = [
                request.text
                if request.text is not None
                else tokenizer.apply_chat_template(
                    [{"role": m.role, "content": m.content} for m in request.messages],
                    tokenize=False,
                    add_generation_prompt=True,
                )
                + request.answer_prefix
                for request in requests
            ]
            batch = tokenizer(written, return_tensors="pt", padding=True)
            with torch.inference_mode():
                logits = model(**batch).logits[:, -1].log_softmax(-1)
            scores[begin : begin + _BATCH] += logits[:, tokens].numpy()
    clock.mark("prediction")
    return [task.data.classes[code] for code in scores.argmax(axis=1)]


def _one_prompt(clock: Clock, task: Task) -> Sequence[str]:
    return _plain(clock, replace(task, templates=[task.data.card.manual_prompt]))


def _lm_eval(clock: Clock, task: Task) -> Sequence[str]:
    """Run a task of multiple choice from a local file."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    words = [task.data.words()[label] for label in task.data.classes]
    before = task.data.card.manual_prompt.removesuffix(" {mask}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "test.jsonl"
        lines = [
            {"asked": before.replace("{text}", text), "answer": task.data.classes.index(label)}
            for text, label in zip(task.test.texts, task.test.labels, strict=True)
        ]
        path.write_text("\n".join(map(json.dumps, lines)), "utf-8")
        local = {
            "task": "local",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{asked}}",
            "doc_to_choice": words,
            "doc_to_target": "{{answer}}",
            "metric_list": [{"metric": "acc"}],
        }
        lm = HFLM(pretrained=task.lm, device="cpu", batch_size=_BATCH)
        clock.mark("start")
        clock.mark("training")
        found = simple_evaluate(lm, tasks=[local], device="cpu", bootstrap_iters=0)
        clock.mark("prediction")
    samples = sorted(found["samples"]["local"], key=lambda sample: sample["doc_id"])
    return [
        task.data.classes[int(np.argmax([float(choice[0]) for choice in sample["filtered_resps"]]))]
        for sample in samples
    ]


def _skorch(name: str) -> Way:
    def way(clock: Clock, task: Task) -> Sequence[str]:
        import skorch.llm

        options = {"random_state": 13} if name == "FewShotClassifier" else {}
        classifier = getattr(skorch.llm, name)(task.lm, **options)
        classifier.fit(
            task.train.texts, task.train.labels
        )  # loads the model and draws its examples
        clock.mark("start")
        clock.mark("training")
        labels = [str(label) for label in classifier.predict(task.test.texts)]
        clock.mark("prediction")
        return labels

    return way


def _setfit(clock: Clock, task: Task) -> Sequence[str]:
    from datasets import Dataset
    from setfit import SetFitModel, Trainer, TrainingArguments

    model = SetFitModel.from_pretrained(task.embeddings, device="cpu")
    rows = Dataset.from_dict({"text": task.train.texts, "label": task.train.labels})
    clock.mark("start")
    with tempfile.TemporaryDirectory() as folder:
        many = n_pairs(task.train.labels) > _SETFIT_STEPS * _BATCH
        options = {"max_steps": _SETFIT_STEPS} if many else {}
        given = TrainingArguments(output_dir=folder, report_to="none", seed=13, **options)
        Trainer(model=model, args=given, train_dataset=rows).train()
    clock.mark("training")
    labels = [str(label) for label in model.predict(task.test.texts)]
    clock.mark("prediction")
    return labels


def _regression(clock: Clock, task: Task) -> Sequence[str]:
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    encoder = SentenceTransformer(task.embeddings, device="cpu")
    clock.mark("start")
    model = LogisticRegression(max_iter=2000).fit(
        encoder.encode(task.train.texts), task.train.labels
    )
    clock.mark("training")
    labels = [str(label) for label in model.predict(encoder.encode(task.test.texts))]
    clock.mark("prediction")
    return labels


WAYS: dict[str, tuple[Way, tuple[str, ...]]] = {
    OURS: (_ours({"embeddings": "none"}), ("onnxruntime",)),
    "ours": (
        _ours({"embeddings": "onnx", "embeddings_options": {"n_threads": 1}}),
        ("onnxruntime",),
    ),
    "transformers script, one prompt": (_one_prompt, ("transformers", "torch")),
    "transformers script, our ten prompts": (_plain, ("transformers", "torch")),
    "lm-evaluation-harness": (_lm_eval, ("lm_eval", "torch")),
    "skorch, zero-shot": (_skorch("ZeroShotClassifier"), ("skorch", "torch")),
    "skorch, few-shot": (_skorch("FewShotClassifier"), ("skorch", "torch")),
    "SetFit": (_setfit, ("setfit",)),
    "embeddings and logistic regression": (_regression, ("sentence_transformers",)),
}
"""Each way, and the packages that it needs."""


def n_pairs(labels: Sequence[str]) -> int:
    """Return the number of pairs of texts that SetFit trains on by default."""
    alike = sum(n * (n + 1) // 2 for n in Counter(labels).values())
    unlike = len(labels) * (len(labels) + 1) // 2 - alike
    return 2 * max(alike, unlike)


def measure(way: str, task: Task) -> dict[str, Any]:
    """Return a way's accuracy and seconds in this process, and the prompts where it chose some."""
    clock, printed = Clock(), io.StringIO()
    with contextlib.redirect_stdout(printed):
        labels = list(WAYS[way][0](clock, task))
    right = np.mean(np.array(labels) == np.array(task.test.labels))
    chosen = json.loads(printed.getvalue().splitlines()[-1]) if way.startswith("ours") else []
    return {**clock.seconds, "accuracy": float(right), "templates": chosen}


def _in_process(way: str, options: Sequence[str], given: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, "-m", "eval.perf.users_picks", *options, "--serve", way]
    started = time.perf_counter()
    done = subprocess.run(
        command,
        input=json.dumps(given),
        env=os.environ | _ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"{way}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found | {"wall": time.perf_counter() - started}


@click.command()
@click.option("--data-dir", required=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--data", "names", multiple=True, default=("sst2", "trec"), show_default=True)
@click.option("--way", "ways", multiple=True, type=click.Choice(list(WAYS)), default=list(WAYS))
@click.option("--shots", default=16, show_default=True, help="Training rows per class.")
@click.option("--n-test", default=100, show_default=True)
@click.option("--seed", default=13, show_default=True)
@click.option("--serve", "served", hidden=True)
def main(
    data_dir: Path,
    names: tuple[str, ...],
    ways: tuple[str, ...],
    shots: int,
    n_test: int,
    seed: int,
    served: str | None,
) -> None:
    """Print a table for each data set."""
    sets = [read_data_set(name, data_dir) for name in names]
    if served:
        data = sets[0]
        task = Task(data, data.draw(shots, seed), data.test_rows(n_test), **json.load(sys.stdin))
        click.echo(json.dumps(measure(served, task)))
        return
    pool = [prompt.template for prompt in builtin_pool(limits=_LIMITS)][:10]
    ready = [way for way in ways if all(map(find_spec, WAYS[way][1]))]
    needed = {package for way in ready for package in WAYS[way][1]}
    folders = {
        "lm": str(pull(_MODEL, FORM)) if "torch" in needed else "",
        "embeddings": str(pull(_EMBEDDINGS)) if needed & _EMBEDDING_PACKAGES else "",
    }
    for way in ways:
        if way not in ready:
            packages = ", ".join(WAYS[way][1])
            click.echo(f"{way}: skipped, not all of {packages} are installed", err=True)
    click.echo(
        "| data set | way | start | training | prediction | in all | wall | accuracy |\n"
        + "|---" * 8
        + "|"
    )
    for data in sets:
        templates = pool
        for way in ready:
            options = ["--data-dir", str(data_dir), "--data", data.name, "--shots", str(shots)]
            options += ["--n-test", str(n_test), "--seed", str(seed)]
            found = _in_process(way, options, {"templates": templates, **folders})
            if way == OURS:
                templates = found["templates"]
            steps = [found[step] for step in ("start", "training", "prediction")]
            cells = " | ".join(f"{seconds:.1f}" for seconds in (*steps, sum(steps), found["wall"]))
            click.echo(f"| {data.name} | {way} | {cells} | {100 * found['accuracy']:.0f} |")
    click.echo(
        f"\nProcessor seconds, one thread; {shots} training rows per class, {n_test} test rows, "
        f"seed {seed}; {platform.machine()}, {os.cpu_count()} cores; load {os.getloadavg()[0]:.0f}"
    )


if __name__ == "__main__":
    main()
