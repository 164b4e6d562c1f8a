"""The parent's side of the runtime: a child process runs the sessions, and whatever happens to it becomes a value.

A crash, a hang, a model that does not load, a missing kernel, a missing onnxruntime, an absent provider and a silent
fallback to another provider each end as a :class:`Failure` with the runtime's own words; nothing escapes as a result.
"""

from __future__ import annotations

import enum
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from normfuse.errors import UnsupportedForm
from normfuse.validate.placement import Placement

# Not taken from rounding: the child starts half a second sooner without onnx_ir.
Array = npt.NDArray[Any]

CPU = "CPUExecutionProvider"
_MODULE = "normfuse.validate.worker"
_ROOT = Path(__file__).resolve().parents[2]


class Cause(enum.Enum):
    """Why there is no result."""

    NO_RUNTIME = "onnxruntime is not installed"
    NO_PROVIDER = "the provider is not available"
    FALLBACK = "the session fell back to another provider"
    LOAD = "the model does not load"
    RUN = "the model does not run"
    CRASH = "the runtime crashed"
    HANG = "the runtime did not finish"
    MEMORY = "the runtime ran out of memory"


@dataclass(frozen=True, slots=True)
class Failure:
    """No result: the cause, and what the runtime printed."""

    cause: Cause
    words: str

    def __str__(self) -> str:
        return f"{self.cause.value}: {self.words}" if self.words else self.cause.value


@dataclass(frozen=True, slots=True)
class Results:
    """One dictionary of outputs per feed. ``provider`` as the session reports it.

    version: of onnxruntime. seconds: of one run on the first feed, the median of a few. placement: of its nodes, where
    the provider is not the CPU. again: the outputs of a second run on the first feed; None where they are the same, bit
    by bit.
    """

    outputs: tuple[dict[str, Array], ...]
    provider: str
    version: str = ""
    seconds: float = math.nan
    placement: Placement = field(default_factory=Placement)
    again: dict[str, Array] | None = None


class Level(enum.Enum):
    """How far onnxruntime optimizes a graph when it loads it, by onnxruntime's own names."""

    OFF = "ORT_DISABLE_ALL"
    BASIC = "ORT_ENABLE_BASIC"
    EXTENDED = "ORT_ENABLE_EXTENDED"
    ALL = "ORT_ENABLE_ALL"

    @property
    def words(self) -> str:
        """How a report calls it."""
        return {"OFF": "optimizations off", "ALL": "optimizations on"}.get(
            self.name, f"optimizations {self.name.lower()}"
        )


def parse_level(text: str) -> Level:
    """Return the level named ``text``. Raises UnsupportedForm for an unknown one."""
    if text.upper() not in Level.__members__:
        known = ", ".join(name.lower() for name in Level.__members__)
        raise UnsupportedForm(f"unknown optimization level '{text}'; known: {known}")
    return Level[text.upper()]


@dataclass(frozen=True, slots=True)
class Task:
    """One session: a model file, and how far onnxruntime optimizes it."""

    model: Path
    level: Level


@dataclass(frozen=True, slots=True)
class RuntimeLimits:
    """What one child may cost. Memory is the address space on Linux, not applied where a GPU driver maps more."""

    seconds: float = 300.0
    memory_bytes: int = 32 * 2**30
    command: tuple[str, ...] = ("-m", _MODULE)


def run_tasks(
    tasks: Sequence[Task],
    feeds: Sequence[Mapping[str, Array]],
    provider: str,
    *,
    limits: RuntimeLimits | None = None,
    libraries: Sequence[Path] = (),
    python: str = sys.executable,
) -> tuple[Results | Failure, ...]:
    """Run each task on every feed in child processes; one answer per task, in order.

    provider: onnxruntime's name. python: whose onnxruntime it is. The child does the tasks one after the other; if it
    dies in one, that task gets the failure and a new child goes on with the next.
    """
    limits = limits or RuntimeLimits()
    with tempfile.TemporaryDirectory(prefix="normfuse-") as folder:
        home = Path(folder)
        for index, feed in enumerate(feeds):
            save_arrays(home / f"feed{index}.npz", feed)
        answers: list[Results | Failure] = []
        while len(answers) < len(tasks):
            answers.extend(_child(home, tasks, len(answers), len(feeds), provider, limits, libraries, python))
    return tuple(answers)


def _child(
    home: Path,
    tasks: Sequence[Task],
    first: int,
    feeds: int,
    provider: str,
    limits: RuntimeLimits,
    libraries: Sequence[Path],
    python: str,
) -> list[Results | Failure]:
    """Start one child at task ``first``; return its answers up to and including the one it died in."""
    job = home / f"job{first}.json"
    job.write_text(
        json.dumps(
            {
                "folder": str(home),
                "tasks": [
                    {"index": index, "model": str(task.model.resolve()), "level": task.level.value}
                    for index, task in enumerate(tasks)
                    if index >= first
                ],
                "feeds": feeds,
                "provider": provider,
                "libraries": [str(path) for path in libraries],
                "memory_bytes": limits.memory_bytes if provider == CPU else 0,
            }
        ),
        encoding="utf-8",
    )
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), environment.get("PYTHONPATH", "")]))
    log = home / f"log{first}.txt"
    code: int | None
    with log.open("wb") as sink:
        try:
            finished = subprocess.run(
                [python, *limits.command, str(job)],
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                timeout=limits.seconds,
                env=environment,
                check=False,
            )
            code = finished.returncode
        except subprocess.TimeoutExpired:
            code = None
    answers: list[Results | Failure] = []
    for index in range(first, len(tasks)):
        answer = _read(home, index, feeds)
        if answer is None:
            return [*answers, _death(code, log, limits)]
        answers.append(answer)
    return answers


def _read(home: Path, index: int, feeds: int) -> Results | Failure | None:
    """Return what the child wrote for one task; None if it did not get that far."""
    record = home / f"done{index}.json"
    if not record.exists():
        return None
    state: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
    if state["cause"]:
        return Failure(Cause[state["cause"]], state["words"])
    outputs = tuple(load_arrays(home / f"result{index}_{feed}.npz") for feed in range(feeds))
    nodes, elsewhere = state.get("placement", (0, ()))
    placement = Placement(nodes, tuple((ran_by, node) for ran_by, node in elsewhere))
    again = load_arrays(home / f"again{index}.npz") if state.get("again") else None
    return Results(
        outputs, state["provider"], state.get("version", ""), state.get("seconds", math.nan), placement, again
    )


def _death(code: int | None, log: Path, limits: RuntimeLimits) -> Failure:
    words = _last_lines(log)
    if code is None:
        return Failure(Cause.HANG, f"no answer within {limits.seconds:g} s")
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return Failure(Cause.MEMORY if name == "SIGKILL" else Cause.CRASH, f"{name}; {words}" if words else name)
    return Failure(Cause.CRASH, f"exit status {code}; {words}" if words else f"exit status {code}")


def _last_lines(log: Path) -> str:
    text = log.read_text(encoding="utf-8", errors="replace").strip()
    return " | ".join(text.splitlines()[-3:])[-500:]


def save_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write named arrays. Names are stored beside them (a name may hold any character); bfloat16 travels as uint16."""
    content: dict[str, Array] = {"names": np.array(list(arrays), dtype=np.str_)}
    for index, array in enumerate(arrays.values()):
        item = np.asarray(array)
        is_bfloat = item.dtype.name == "bfloat16"
        content[f"{'b' if is_bfloat else 'a'}{index}"] = item.view(np.uint16) if is_bfloat else item
    np.savez(path, **content)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, Array]:
    """Read what :func:`save_arrays` wrote; bfloat16 comes back as such."""
    with np.load(path, allow_pickle=True) as content:
        found: dict[str, Array] = {}
        for index, name in enumerate(content["names"]):
            key = f"a{index}"
            found[str(name)] = content[key] if key in content else _as_bfloat16(content[f"b{index}"])
    return found


def _as_bfloat16(array: Array) -> Array:
    import ml_dtypes  # not there in every environment whose onnxruntime is run

    return np.asarray(array.view(ml_dtypes.bfloat16))
