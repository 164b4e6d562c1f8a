"""The library for GPUs. What needs a GPU is skipped without one; that the library loads and serves the CPU is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import normfuse
from normfuse.runtime import session as module
from normfuse.runtime.library import CUDA_VARIABLE, Library, find_cuda_library
from tests.native.grid import TYPES, UNIT, Node, expected, feeds, model, variants

CUDA = "CUDAExecutionProvider"


def needs_cuda_library() -> Path:
    """Skip the test where the library for GPUs is not built, with the reason; else return its path."""
    library = find_cuda_library()
    if not library.is_usable or library.path is None:
        pytest.skip(f"the library for GPUs is {library.problem}")
    return library.path


def needs_gpu() -> None:
    """Skip the test without an onnxruntime that has the CUDA provider, or without a GPU."""
    needs_cuda_library()
    if CUDA not in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has no CUDA provider")
    probe = model([Node("LayerNorm", (1, 8))], "float32")
    if onnxruntime.InferenceSession(probe.SerializeToString(), providers=[CUDA]).get_providers()[0] != CUDA:
        pytest.skip("onnxruntime's CUDA provider does not load here: there is no GPU, or its libraries are missing")


def test_a_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CUDA_VARIABLE, "/no/such/file")
    assert find_cuda_library().problem == "NORMFUSE_CUDA_OPS_LIBRARY names no file: /no/such/file"


def test_it_loads_without_a_driver_and_serves_the_cpu() -> None:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(str(needs_cuda_library()))
    node = Node("GroupNorm", (2, 6, 5, 5), 3)
    content = model([node], "float64", functions=False)
    values = feeds(content, "float64")
    cpu = onnxruntime.InferenceSession(content.SerializeToString(), options, providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(cpu.run(None, values)[0], expected(node, "float64", values)[0], atol=1e-12)


def test_only_sessions_on_cuda_register_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The providers decide which library is registered: one of the CPU would take nodes away from another device."""
    registered: list[str] = []
    monkeypatch.setattr(module, "_register", lambda _options, library: registered.append(str(library.path)))
    monkeypatch.setattr(module, "find_library", lambda: Library(Path("cpu")))
    monkeypatch.setattr(module, "find_cuda_library", lambda: Library(Path("cuda")))

    class Session:
        def __init__(
            self, _model: object, _options: object, providers: list[str], disabled_optimizers: list[str]
        ) -> None:
            self.providers = [entry if isinstance(entry, str) else entry[0] for entry in providers]

        def get_providers(self) -> list[str]:
            return self.providers

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: ["TensorrtExecutionProvider", CUDA, "CPUExecutionProvider"]
    )
    cases: list[tuple[Any, list[str]]] = [
        (None, ["cpu"]),
        (["CPUExecutionProvider"], ["cpu"]),
        ([CUDA], ["cuda"]),
        ([(CUDA, {"use_tf32": "0"}), "CPUExecutionProvider"], ["cuda"]),
        (["TensorrtExecutionProvider", CUDA, "CPUExecutionProvider"], []),
    ]
    for providers, expected_library in cases:
        registered.clear()
        normfuse.session(b"", providers)
        assert registered == expected_library


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("last", [False, True])
def test_every_operator_on_the_gpu(dtype: str, last: bool) -> None:
    """Float64 has no kernel for GPUs: its nodes run on the twin of the CPU."""
    needs_gpu()
    nodes = variants((2, 5, 7, 12) if last else (2, 12, 5, 7), 4, axis=-2, last=last)
    content = model(nodes, dtype, functions=False)
    values = feeds(content, dtype)
    found = normfuse.session(content, [CUDA, "CPUExecutionProvider"]).run(None, values)
    truths = [truth for node in nodes for truth in expected(node, dtype, values)]
    for result, truth in zip(found, truths, strict=True):
        size = np.max(np.abs(truth))
        allowed = UNIT[dtype] * np.abs(truth) + 16 * max(UNIT["float64"], min(UNIT[dtype], 2.0**-24)) * size
        assert np.all(np.abs(result - truth) <= allowed)
