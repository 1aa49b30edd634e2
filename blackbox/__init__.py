"""Text classification by boosting prompts of a black-box language model, from few labels."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blackbox.estimator import PromptBoostingClassifier
    from blackbox.loading import load_model
    from blackbox.prompts.pool import PromptPool
    from blackbox.prompts.template import Prompt

    __version__: str

__all__ = ["Prompt", "PromptBoostingClassifier", "PromptPool", "load_model"]

_HOMES = {
    "Prompt": "blackbox.prompts.template",
    "PromptBoostingClassifier": "blackbox.estimator",
    "PromptPool": "blackbox.prompts.pool",
    "load_model": "blackbox.loading",
}

if not TYPE_CHECKING:  # else a type checker would take every name for one of ours

    def __getattr__(name: str) -> object:
        """Return a public name, imported on first use: `blackbox --help` needs no scikit-learn."""
        if name == "__version__":
            return version("promptboosting")
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = getattr(import_module(_HOMES[name]), name)
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
