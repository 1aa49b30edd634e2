"""Registry of the methods, by their names in a configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blackbox import PromptBoostingClassifier, PromptPool
from blackbox.lm.connect import choose_embeddings
from blackbox.prompts.template import Prompt
from eval.methods.chosen_once import ChosenOnce
from eval.methods.embeddings import CachedEmbeddings, VectorCache
from eval.methods.label_words import InContextDemonstrations, LabelWords
from eval.methods.linear import JointRegression, LinearDiscriminant, ProductOfRegressions
from eval.methods.neighbours import KnnPrompting
from eval.methods.retrieved import RetrievedDemonstrations
from eval.methods.single import BestWeakLearner, UniformAverage
from eval.methods.without_lm import Majority, SentenceEmbeddings, TfIdf

__all__ = ["METHODS", "Method", "Setting", "check_options", "make"]


@dataclass(frozen=True)
class Setting:
    """Inputs from which a method's classifier is made.

    Parameters
    ----------
    backend : BaseBackend or None
        The LM; None for methods that need none.
    pool : PromptPool or None
        The prompts of the data set, or None for the program's own.
    words : mapping of label to str
        The label word of each class.
    manual_prompt : str
        The prompt of the methods that use a single one.
    seed : int
        Random seed.
    top_k : int
        Number of next tokens that are read.
    options : mapping
        More parameters of the method, from the configuration.
    class_shares : mapping of label to float
        Of the rows of the whole training split.
    model : str or None
        The LM's name or folder, for methods that need its weights.
    vectors : VectorCache
        A cache of embeddings and other vectors of texts.
    library : Path or None
        A library of models of the configuration's other data sets, for methods that read one.
    """

    backend: Any
    pool: PromptPool | None
    words: Mapping[str, str]
    manual_prompt: str
    seed: int
    top_k: int = 200
    options: Mapping[str, Any] = field(default_factory=dict)
    class_shares: Mapping[str, float] = field(default_factory=dict)
    model: str | None = None
    vectors: VectorCache = field(default_factory=lambda: VectorCache(None))
    library: Path | None = None


@dataclass(frozen=True)
class Method:
    """Factory of a method's classifier, and what the method needs.

    Parameters
    ----------
    make : callable
        From a `Setting` to an untrained classifier.
    needs : {"pool", "words", "lm", "nothing", "weights", "gradients", "training"}
        ``"pool"`` reads the pool's answers on training and test rows and nothing else; ``"words"``
        has one prompt and a word for each class; ``"lm"`` has requests of its own; ``"nothing"``
        uses no LM; ``"weights"`` reads the LM's weights, ``"gradients"`` in a process of its own,
        whose memory is measured, and ``"training"`` trains another model in such a process.
    uses_labels : bool
        Whether it uses the labels of training rows.
    shows_rows : bool
        Whether its option `n_per_class` sets the training rows per class.
    starts_unlabelled : bool
        Whether it can be trained on texts without labels, although it uses labels.
    reads_library : bool
        Whether it reads a library of models of the other data sets, which read the pool's prompts.
    reads_unlabelled : bool
        Whether it reads the texts of a draw of 0 labels beside the labelled rows.
    chooses_prompts : bool
        Whether it screens the program's own prompts.
    """

    make: Callable[[Setting], Any]
    needs: str = "pool"
    uses_labels: bool = True
    shows_rows: bool = False
    starts_unlabelled: bool = False
    reads_library: bool = False
    reads_unlabelled: bool = False
    chooses_prompts: bool = False

    @property
    def asks(self) -> bool:
        """Whether the method sends requests to an LM."""
        return self.needs in ("pool", "words", "lm")

    @property
    def reads_pool(self) -> bool:
        """Whether the method reads the answers to a configuration's prompts."""
        return self.needs == "pool" or self.reads_library

    @property
    def works_unlabelled(self) -> bool:
        """Whether the method needs no labels."""
        return self.starts_unlabelled or not self.uses_labels

    @property
    def needs_weights(self) -> bool:
        """Whether the method needs the weights of the LM."""
        return self.needs in ("weights", "gradients")

    @property
    def runs_alone(self) -> bool:
        """Whether it has a process of its own, whose memory is measured."""
        return self.needs in ("gradients", "training")


def _over_pool(kind: Callable[..., Any], **given: Any) -> Callable[[Setting], Any]:
    def make_one(setting: Setting) -> Any:
        return kind(
            setting.backend,
            setting.pool,
            top_k=setting.top_k,
            random_state=setting.seed,
            **given,
            **setting.options,
        )

    return make_one


def _over_words(kind: Callable[..., Any], **given: Any) -> Callable[[Setting], Any]:
    def make_one(setting: Setting) -> Any:
        pool = PromptPool([Prompt(setting.manual_prompt)])
        return kind(
            setting.backend,
            pool,
            words=setting.words,
            top_k=setting.top_k,
            random_state=setting.seed,
            **given,
            **setting.options,
        )

    return make_one


def _boosting(
    kind: Callable[..., Any] = PromptBoostingClassifier, *, embeds: bool = False, **given: Any
) -> Callable[[Setting], Any]:
    def make_one(setting: Setting) -> Any:
        # the LM alone, with the names of the classes, unless a method says otherwise
        options = {
            "prompts": setting.pool,
            "embeddings": CachedEmbeddings(setting.vectors) if embeds else None,
            "library": setting.library,
            **given,
            **setting.options,
        }
        if setting.class_shares and options.get("algorithm") != "samme":
            options = {"classes": sorted(setting.class_shares)} | options
        n = options.pop("first_prompts", None)
        if n is not None and not (isinstance(n, int) and n > 0):
            raise ValueError(f"first_prompts must be a positive number, got {n!r}")
        if n is not None and options["prompts"] is not None:
            options["prompts"] = PromptPool(options["prompts"])[:n]
        return kind(
            setting.backend,
            store=False,
            random_state=setting.seed,
            **({"top_k": setting.top_k} | options),
        )

    return make_one


def _as_it_comes(setting: Setting, kind: Callable[..., Any] = PromptBoostingClassifier) -> Any:
    """Return the program with its defaults, which has embeddings beside an LM in this process."""
    embeds = setting.backend is not None and choose_embeddings("auto", setting.backend) is not None
    return _boosting(kind, prompts=None, embeds=embeds)(setting)


def _chosen_once(setting: Setting) -> Any:
    return _as_it_comes(setting, ChosenOnce)


def _without_lm(kind: Callable[..., Any]) -> Callable[[Setting], Any]:
    return lambda setting: kind(random_state=setting.seed, **setting.options)


def _over_embeddings(setting: Setting) -> Any:
    return SentenceEmbeddings(
        random_state=setting.seed,
        embeddings=CachedEmbeddings(setting.vectors),
        **setting.options,
    )


def _retrieving(setting: Setting) -> Any:
    given = {"embeddings": CachedEmbeddings(setting.vectors), "calibration": "batch"}
    return _over_words(RetrievedDemonstrations, **given)(setting)


def _over_hidden_states(setting: Setting) -> Any:
    from eval.methods.hidden_states import HiddenStates

    return HiddenStates(
        model=setting.model,
        vectors=setting.vectors,
        random_state=setting.seed,
        **setting.options,
    )


def _published(name: str) -> Callable[[Setting], Any]:
    def make_one(setting: Setting) -> Any:
        from eval.methods import published

        of_lm = {} if name == "SetFit" else {"model": setting.model, "words": setting.words}
        given = {"random_state": setting.seed} | of_lm | dict(setting.options)
        return getattr(published, name)(**given)

    return make_one


def _fine_tuned(method: str) -> Callable[[Setting], Any]:
    def make_one(setting: Setting) -> Any:
        from eval.methods.gradients import FineTuned

        given = {"prompt": setting.manual_prompt} | dict(setting.options)
        return FineTuned(model=setting.model, method=method, random_state=setting.seed, **given)

    return make_one


METHODS: dict[str, Method] = {
    "majority": Method(
        lambda setting: Majority(setting.class_shares), "nothing", uses_labels=False
    ),
    "label words": Method(_over_words(LabelWords), "words", uses_labels=False),
    "label words, contextual calibration": Method(
        _over_words(LabelWords, calibration="contextual"), "words", uses_labels=False
    ),
    "label words, batch calibration": Method(
        _over_words(LabelWords, calibration="batch"), "words", uses_labels=False
    ),
    "demonstrations": Method(_over_words(InContextDemonstrations), "words", shows_rows=True),
    "demonstrations, contextual calibration": Method(
        _over_words(InContextDemonstrations, calibration="contextual"), "words", shows_rows=True
    ),
    "demonstrations, batch calibration": Method(
        _over_words(InContextDemonstrations, calibration="batch"), "words", shows_rows=True
    ),
    "kNN prompting": Method(_over_pool(KnnPrompting)),
    "best weak learner": Method(_over_pool(BestWeakLearner)),
    "uniform average": Method(_over_pool(UniformAverage)),
    "joint regression": Method(_over_pool(JointRegression)),
    "product of regressions": Method(_over_pool(ProductOfRegressions)),
    "linear discriminant": Method(_over_pool(LinearDiscriminant)),
    "PromptBoosting": Method(_boosting(algorithm="samme")),
    "PromptBoosting, all labels": Method(_boosting(algorithm="samme", validation_fraction=0.0)),
    "ours": Method(_boosting(), starts_unlabelled=True),
    "ours, with embeddings": Method(_boosting(embeds=True), starts_unlabelled=True),
    "ours, with a library": Method(
        _boosting(embeds=True), "lm", starts_unlabelled=True, reads_library=True
    ),
    "ours, as it comes": Method(_as_it_comes, "lm", starts_unlabelled=True, chooses_prompts=True),
    "ours, prompts chosen once": Method(_chosen_once, "lm", chooses_prompts=True),
    "ours, with texts without labels": Method(
        _as_it_comes, "lm", reads_unlabelled=True, chooses_prompts=True
    ),
    "ours, own pool": Method(
        _boosting(prompts=None), "lm", starts_unlabelled=True, chooses_prompts=True
    ),
    "ours, generated pool": Method(_boosting(prompts="auto"), "lm"),
    "demonstrations, retrieved": Method(_retrieving, "words"),
    "SetFit": Method(_published("SetFit"), "training"),
    "skorch, zero-shot": Method(_published("ZeroShot"), "gradients", uses_labels=False),
    "skorch, few-shot": Method(_published("FewShot"), "gradients"),
    "hidden states": Method(_over_hidden_states, "weights"),
    "TF-IDF": Method(_without_lm(TfIdf), "nothing"),
    "sentence embeddings": Method(_over_embeddings, "nothing"),
    **{
        name: Method(_fine_tuned(method), "gradients")
        for name, method in (
            ("full fine-tuning", "full"),
            ("LoRA", "lora"),
            ("(IA)³", "ia3"),
            ("prompt tuning", "prompt"),
            ("prefix tuning", "prefix"),
            ("adapters", "adapters"),
            ("Compacter", "compacter"),
            ("mix-and-match adapter", "mix-and-match"),
            ("ladder side-tuning", "ladder"),
        )
    },
}
"""By name; a configuration may give options, such as ``ours`` with ``top_k: 20``."""


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Raise if the method lacks an option or doesn't accept its value.

    Raises
    ------
    TypeError, ValueError
        The message names the option.
    """
    made = make(name, Setting(None, None, {}, "{text} {mask}", 0, options=options))
    if hasattr(made, "_parameter_constraints"):
        made._validate_params()


def make(name: str, setting: Setting) -> Any:
    """Return an untrained classifier.

    Raises
    ------
    KeyError
        If there is no such method.
    """
    return METHODS[name].make(setting)
