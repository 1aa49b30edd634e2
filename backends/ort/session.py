"""Sessions of ONNX Runtime, with the settings that every model here runs under."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from backends.openmp import available_cores
from blackbox.errors import MissingDependencyError, ModelNotFoundError

__all__ = ["engine", "metadata", "open_session"]


def open_session(path: Path, n_threads: int | None = None) -> Any:
    """Return an ``onnxruntime.InferenceSession`` of a graph file, on this machine's processor.

    Threads that wait sleep, so that other processes get the processor: spinning gains nothing on a
    quiet machine and takes several times as long on a busy one.

    Parameters
    ----------
    path : Path
        The ``.onnx`` file.
    n_threads : int, optional
        Threads; by default the cores that this process may use (affinity and container quotas).

    Raises
    ------
    MissingDependencyError
        If onnxruntime is not installed.
    ModelNotFoundError
        If the file can't be read.
    """
    runtime = _runtime()
    options = runtime.SessionOptions()
    options.intra_op_num_threads = n_threads or available_cores()
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3  # errors: it warns on stderr about machines, not about models
    try:
        return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class
        why = " ".join(str(error).split())[:200]
        raise ModelNotFoundError(f"{path.name} can't be loaded by ONNX Runtime: {why}") from error


def metadata(session: Any) -> dict[str, str]:
    """Return what the graph's writer noted in the file, such as its tokenizer."""
    return dict(session.get_modelmeta().custom_metadata_map)


def engine() -> str:
    """Return the name and version of the runtime."""
    return f"onnxruntime {_runtime().__version__}"


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "the embedded LM needs onnxruntime: pip install 'promptboosting[local]'"
        ) from error
    onnxruntime.disable_telemetry_events()  # what runs here is nobody else's concern
    return onnxruntime
