"""Fine-tuning baselines, which need gradients: the same LM, tuned on the same rows.

The paper claims to match them; users of a black box could not run them. The LM is a folder or hub
name that transformers loads. It reads a text in a prompt, as for the methods that only call it, and
a classification head replaces the prediction of the next token: with few labels this is much better
than the bare text (Gao et al. 2021; `docs/results.md`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils._param_validation import Interval, StrOptions

from backends.catalogue import CATALOGUE, pull
from backends.hf.tokenizer import PromptTokenizer, load_tokenizer
from backends.transformers import computes_in_bfloat16
from blackbox.answers.texts import check_texts
from blackbox.prompts.template import Prompt
from blackbox.prompts.truncation import render_within
from blackbox.protocol import Limits, RenderedPrompt
from eval.methods.base import Scores

__all__ = ["LEARNING_RATES", "FineTuned", "resolve_folder"]

LEARNING_RATES = {
    "full": 2e-5,
    "lora": 1e-3,
    "ia3": 5e-3,
    "prompt": 3e-3,
    "prefix": 1e-2,
    "adapters": 3e-4,
    "compacter": 3e-3,
    "mix-and-match": 3e-3,
    "ladder": 1e-3,
}
"""Learning rates, chosen on training rows of another seed (`eval.studies.rates`;
`docs/evaluation.md`)."""

_WARMUP_SHARE = 0.1  # of the steps
_MAX_GRADIENT_NORM = 1.0
_VIRTUAL_TOKENS = 20  # of soft prompts and prefixes


class FineTuned(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Fine-tuning of an LM with a classification head.

    Parameters
    ----------
    model : str, optional
        A name of the catalogue (its weights in float32), or a folder or hub name for transformers;
        by default the embedded LM.
    prompt : str, optional
        The template that texts are read in; by default the bare text, or both texts of a pair.
    method : str, default="full"
        ``"full"`` tunes all weights. Through `peft`: ``"lora"``, low-rank updates (Hu et al. 2022);
        ``"ia3"``, rescaled activations (Liu et al. 2022); ``"prompt"``, soft prompts (Lester et al.
        2021); ``"prefix"``, soft keys and values in each layer (Li and Liang 2021). Of
        `eval.methods.tuned_modules`: ``"adapters"``, a bottleneck after each feed-forward block
        (Pfeiffer et al. 2021; Houlsby et al. 2019 have one after each attention as well);
        ``"compacter"`` (Karimi Mahabadi et al. 2021); ``"mix-and-match"``, a prefix and parallel
        adapters (He et al. 2022); ``"ladder"``, a narrow model beside the LM (Sung et al. 2022).
    epochs : int, default=10
        Passes over the training rows; fixed, not chosen on test rows.
    learning_rate : float, optional
        Of AdamW; by default `LEARNING_RATES`.
    batch_size : int, default=8
        Rows per step.
    max_length : int, default=256
        Maximum tokens of a prompt with its text; the text is truncated.
    dtype : {"auto", "float32"}, default="auto"
        Type of the computation; "auto" is bfloat16 if the processor supports it. Weights and the
        optimizer's state are float32.
    random_state : int, default=0
        Seed of the head, the order of rows and dropout.

    Attributes
    ----------
    n_trained_ : int
        Weights that were trained.
    """

    _parameter_constraints: dict[str, list[Any]] = {  # noqa: RUF012
        "model": [str, None],
        "prompt": [str, None],
        "method": [StrOptions(set(LEARNING_RATES))],
        "epochs": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_length": [Interval(Integral, 1, None, closed="left")],
        "dtype": [StrOptions({"auto", "float32"})],
        "random_state": [Integral],
    }

    def __init__(
        self,
        *,
        model: str | None = None,
        prompt: str | None = None,
        method: str = "full",
        epochs: int = 10,
        learning_rate: float | None = None,
        batch_size: int = 8,
        max_length: int = 256,
        dtype: str = "auto",
        random_state: int = 0,
    ) -> None:
        self.model = model
        self.prompt = prompt
        self.method = method
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.max_length = max_length
        self.dtype = dtype
        self.random_state = random_state

    def load(self) -> None:
        """Load the LM."""
        import torch
        from transformers import AutoModel

        source = resolve_folder(self.model or "smollm2-135m")
        self._tokenizer = PromptTokenizer(load_tokenizer(source), masked=False)
        self._lm = AutoModel.from_pretrained(source, dtype=torch.float32)

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Fine-tune on labelled texts."""
        import torch
        from transformers import get_linear_schedule_with_warmup

        self._validate_params()
        if not hasattr(self, "_lm") or hasattr(self, "classes_"):  # none yet, or tuned already
            self.load()
        torch.manual_seed(self.random_state)
        self.classes_, codes = np.unique(np.asarray(y), return_inverse=True)
        self._prepare_lm(len(self.classes_))
        texts, truth = self._encode(X), torch.as_tensor(codes)
        if self.method in ("prefix", "mix-and-match"):
            _start_prefix(self._lm, [token for ids in texts for token in ids])
        both = [*self._lm.parameters(), *self._head.parameters()]
        trained = [weight for weight in both if weight.requires_grad]
        self.n_trained_ = sum(weight.numel() for weight in trained)
        rate = LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate
        optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.01, fused=True)
        steps = self.epochs * -(-len(codes) // self.batch_size)
        schedule = get_linear_schedule_with_warmup(optimizer, round(_WARMUP_SHARE * steps), steps)
        rng = np.random.default_rng(self.random_state)
        self._lm.train()
        for _ in range(self.epochs):
            for rows in _batches(texts, self.batch_size, rng):
                scores = self._scores([texts[row] for row in rows])
                torch.nn.functional.cross_entropy(scores, truth[rows]).backward()
                torch.nn.utils.clip_grad_norm_(trained, _MAX_GRADIENT_NORM)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
        return self

    def predict_proba(self, X: Any) -> Scores:
        """Return class probabilities of shape (n, n_classes)."""
        import torch

        texts = self._encode(X)
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        found = np.zeros((len(texts), len(self.classes_)))
        self._lm.eval()
        with torch.inference_mode():
            for start in range(0, len(order), 32):
                rows = order[start : start + 32]
                scores = self._scores([texts[row] for row in rows])
                found[rows] = torch.softmax(scores.double(), dim=1).numpy()
        return found

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the most probable class of each text."""
        labels: NDArray[Any] = self.classes_[self.predict_proba(X).argmax(axis=1)]
        return labels

    def _encode(self, X: Any) -> list[list[int]]:
        """Return the token ids of each text in its prompt, with the LM's document start."""
        limits = Limits(0, 0, self.max_length + 1, deterministic=True)

        def sizes(requests: Sequence[RenderedPrompt]) -> list[int]:
            return [len(self._tokenizer.encode(request)) for request in requests]

        found = []
        for example in check_texts(X):
            bare = "{text}{mask}" if example[1] is None else "{text}\n{text_pair}{mask}"
            request, _ = render_within(Prompt(self.prompt or bare), example, limits, sizes)
            found.append(self._tokenizer.encode(request))
        return found

    def _scores(self, texts: Sequence[Sequence[int]]) -> Any:
        """Return logits of shape (n, n_classes) for the token ids of n texts."""
        import torch

        last = torch.tensor([len(ids) - 1 for ids in texts])
        width = int(last.max()) + 1
        # padding after a text doesn't change the hidden states of a causal LM
        padded = torch.tensor([[*ids, *[0] * (width - len(ids))] for ids in texts])
        mask = torch.arange(width) <= last[:, None]
        with torch.autocast("cpu", torch.bfloat16, enabled=self._in_bfloat16):
            hidden = self._lm(
                input_ids=padded, attention_mask=mask.long(), use_cache=False
            ).last_hidden_state
            last = last + hidden.shape[1] - width  # soft prompts precede the text
            return self._head(hidden[torch.arange(len(texts)), last]).float()

    def _prepare_lm(self, n_classes: int) -> None:
        import torch

        self._in_bfloat16 = self.dtype == "auto" and computes_in_bfloat16()
        self._head = torch.nn.Linear(self._lm.config.hidden_size, n_classes, bias=False)
        torch.nn.init.normal_(self._head.weight, std=self._lm.config.initializer_range)
        self._lm = _with_method(self._lm, self.method)


def _batches(
    texts: Sequence[Sequence[int]], size: int, rng: np.random.Generator
) -> list[NDArray[np.intp]]:
    """Return all rows in shuffled batches of texts of similar length, to save padding.

    Lengths are sorted within chunks of eight batches, so that batches differ between epochs.
    """
    length = np.array([len(ids) for ids in texts])
    order = rng.permutation(len(texts))
    near = np.concatenate(
        [
            some[np.argsort(length[some], kind="stable")]
            for some in np.split(order, range(8 * size, len(order), 8 * size))
        ]
    )
    batches = np.array_split(near, -(-len(texts) // size))
    return [batches[number] for number in rng.permutation(len(batches))]


def resolve_folder(model: str) -> str:
    """Return a folder or hub name for transformers."""
    if model not in CATALOGUE:
        return model
    from backends.hf.folder import FORM

    return str(pull(model, FORM))


def _with_method(lm: Any, method: str) -> Any:
    """Return the LM with what a method trains; all else is frozen."""
    from eval.methods import tuned_modules

    if method == "full":
        return lm
    if method == "ladder":
        return tuned_modules.Ladder(lm)
    add = {
        "adapters": tuned_modules.add_adapters,
        "compacter": tuned_modules.add_compacters,
        "mix-and-match": tuned_modules.add_parallel_adapters,
    }.get(method)
    if add is not None:
        add(lm)
    if method in ("adapters", "compacter"):
        return lm
    from peft import get_peft_model

    added = [weight for weight in lm.parameters() if weight.requires_grad] if add else []
    tuned = get_peft_model(lm, _peft_configuration(method))
    for weight in added:  # peft freezes all that was there before
        weight.requires_grad = True
    return tuned


def _peft_configuration(method: str) -> Any:
    import peft

    task: Any = peft.TaskType.FEATURE_EXTRACTION
    if method == "lora":
        return peft.LoraConfig(
            task_type=task,
            r=8,
            lora_alpha=16,
            lora_dropout=0.05,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        )
    if method == "ia3":
        return peft.IA3Config(
            task_type=task,
            target_modules=["k_proj", "v_proj", "down_proj"],
            feedforward_modules=["down_proj"],
        )
    if method == "prompt":
        return peft.PromptTuningConfig(task_type=task, num_virtual_tokens=_VIRTUAL_TOKENS)
    return peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=_VIRTUAL_TOKENS)


def _start_prefix(tuned: Any, tokens: Sequence[int]) -> None:
    """Set a prefix to the keys and values of real tokens.

    With few rows a prefix that is drawn at random drowns what the LM reads; so Li and Liang (2021)
    start from words.
    """
    import peft
    import torch

    ids = torch.tensor([list(islice(cycle(tokens), _VIRTUAL_TOKENS))])
    with torch.no_grad():
        known = tuned.get_base_model()(input_ids=ids, use_cache=True).past_key_values
    peft.initialize_kv_prefix_from_past_key_values(tuned, past_key_values=known)
