"""The child process: ``python -m normfuse.validate.worker JOB.json`` runs onnxruntime so that a crash ends only the
child.

The job names the models, the feeds (npz files), the provider; for each task a ``done<i>.json`` says what happened,
written last.
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from normfuse.validate.placement import Placement, read_placement
from normfuse.validate.sessions import CPU, Array, load_arrays, save_arrays

_BFLOAT16 = 16  # TensorProto.BFLOAT16
_TIMED_RUNS, _TIMED_SECONDS = 5, 0.5


def main(arguments: list[str]) -> int:
    """Run the job file named by the first argument."""
    job: dict[str, Any] = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    _limit_memory(int(job["memory_bytes"]))
    folder = Path(job["folder"])
    for task in job["tasks"]:
        state = _do(job, task, folder)
        target = folder / f"done{task['index']}.json"
        partial = target.with_suffix(".part")
        partial.write_text(json.dumps(state), encoding="utf-8")
        partial.replace(target)
    return 0


def _limit_memory(memory_bytes: int) -> None:
    if not memory_bytes or sys.platform != "linux":
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes if hard < 0 else min(memory_bytes, hard), hard))


def _failed(cause: str, error: object) -> dict[str, str]:
    return {"cause": cause, "words": " ".join(str(error).split())[:500], "provider": ""}


def _do(job: dict[str, Any], task: dict[str, Any], folder: Path) -> dict[str, Any]:
    try:
        import onnxruntime as ort
    except ImportError as error:
        return _failed("NO_RUNTIME", error)
    provider = job["provider"]
    if provider not in ort.get_available_providers():
        return _failed("NO_PROVIDER", f"this onnxruntime has {', '.join(ort.get_available_providers())}")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, task["level"])
    options.enable_profiling = provider != CPU  # there is nothing that the CPU could hand on
    options.profile_file_prefix = str(folder / f"profile{task['index']}")
    try:
        for library in job["libraries"]:
            options.register_custom_ops_library(library)
        session = ort.InferenceSession(task["model"], options, providers=[_with_options(provider)])
    except MemoryError as error:
        return _failed("MEMORY", error)
    except Exception as error:
        # onnxruntime raises a dozen unrelated types here; each means that the model does not load.
        return _failed("LOAD", error)
    used = session.get_providers()[0]
    if used != provider:
        return _failed("FALLBACK", f"asked for {provider}, got {used}")
    names = [output.name for output in session.get_outputs()]
    placement = Placement()
    for index in range(job["feeds"]):
        try:
            outputs = _run(session, names, load_arrays(folder / f"feed{index}.npz"), ort)
        except MemoryError as error:
            return _failed("MEMORY", error)
        except Exception as error:
            return _failed("RUN", error)
        if index == 0 and provider != CPU:
            placement = read_placement(Path(session.end_profiling()), provider)
            if placement.is_all_elsewhere:
                return _failed("FALLBACK", f"asked for {provider}, but {placement.words}")
        save_arrays(folder / f"result{task['index']}_{index}.npz", outputs)
    seconds, differs = 0.0, False
    if job["feeds"]:
        seconds, again = _time(session, names, load_arrays(folder / "feed0.npz"), ort)
        first = load_arrays(folder / f"result{task['index']}_0.npz")
        differs = any(_bits(first[name]) != _bits(again[name]) for name in names)
        if differs:
            save_arrays(folder / f"again{task['index']}.npz", again)
    return {
        "cause": "",
        "words": "",
        "provider": used,
        "version": ort.__version__,
        "seconds": seconds,
        "again": differs,
        "placement": [placement.nodes, placement.elsewhere],
    }


def _time(session: Any, names: list[str], feed: dict[str, Array], ort: Any) -> tuple[float, dict[str, Array]]:
    """Return the median time of up to five runs that together take no more than about half a second, and what the first
    of them gives."""
    taken: list[float] = []
    found: dict[str, Array] = {}
    while len(taken) < _TIMED_RUNS and sum(taken) < _TIMED_SECONDS:
        start = time.perf_counter()
        outputs = _run(session, names, feed, ort)
        taken.append(time.perf_counter() - start)
        found = found or outputs
    return sorted(taken)[len(taken) // 2], found


def _bits(array: Array) -> tuple[object, ...]:
    content = array.tolist() if array.dtype == object else array.tobytes()
    return array.dtype.name, array.shape, content


def _with_options(provider: str) -> str | tuple[str, dict[str, str]]:
    """CUDA without TF32: it would round every float32 product to 10 bits."""
    return (provider, {"use_tf32": "0"}) if provider == "CUDAExecutionProvider" else provider


def _run(session: Any, names: list[str], feed: dict[str, Array], ort: Any) -> dict[str, Array]:
    accepted = {item.name for item in session.get_inputs()}
    accepted |= {item.name for item in session.get_overridable_initializers()}
    values = {name: _to_ort(array, ort) for name, array in feed.items() if name in accepted}
    found = session.run_with_ort_values(names, values)
    return {name: _from_ort(value) for name, value in zip(names, found, strict=True)}


def _to_ort(array: Array, ort: Any) -> Any:
    if array.dtype.name == "bfloat16":
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.ascontiguousarray(array).view(np.uint16), _BFLOAT16)
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array) if array.ndim else array)


def _from_ort(value: Any) -> Array:
    if not value.is_tensor():
        raise TypeError(f"outputs of type {value.data_type()} are not compared")
    if value.element_type() != _BFLOAT16:
        return np.asarray(value.numpy())
    # onnxruntime has no NumPy type for bfloat16: read the bytes.
    if value.device_name().lower() != "cpu":
        raise TypeError("a bfloat16 output that stays on the device cannot be read")
    import ml_dtypes

    size = value.tensor_size_in_bytes()
    content = ctypes.string_at(value.data_ptr(), size) if size else b""
    return np.asarray(np.frombuffer(content, np.uint16).view(ml_dtypes.bfloat16).reshape(value.shape()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
