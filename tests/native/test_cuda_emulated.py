"""The CUDA kernels on the CPU: what they compute, and that no barrier is missing. Speed, and the GPU, are another matter."""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TOOLS = str(Path(__file__).resolve().parents[2] / "tools")
SEEDS = (0, 1, 2)
"""0 lets threads go on in order and copies come as late as may be; the others draw both."""


@pytest.fixture(scope="module")
def tools() -> Iterator[Any]:
    """The modules of tools/ that check the kernels on a GPU as well."""
    pytest.importorskip("torch")
    sys.path.insert(0, TOOLS)
    try:
        yield importlib.import_module("cuda_norms"), importlib.import_module("check_cuda")
    finally:
        sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def folder(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the emulation is compiled: NORMFUSE_EMULATED, or a new folder."""
    if compiled := os.environ.get("NORMFUSE_EMULATED"):
        return Path(compiled).resolve()
    if shutil.which("c++") is None:
        pytest.skip("there is no C++ compiler")
    where = tmp_path_factory.mktemp("emulated")
    tools[1].emulated(str(where))
    return where


def kernels(tools: Any, folder: Path, seed: int) -> Any:
    return tools[0].Kernels(folder / "libnormfuse_emulated.so", "cpu", seed)


def wrong(tools: Any, folder: Path, seed: int, cases: list[Any]) -> list[str]:
    """Return the failures of ``cases`` by every strategy, of which there has to be one at least."""
    emulated = kernels(tools, folder, seed)
    outcomes = [outcome for case in cases for outcome in tools[0].outcomes(emulated, case)]
    assert len(outcomes) >= len(cases) > 0
    return [str(outcome) for outcome in outcomes if outcome.wrong]


@pytest.mark.parametrize(
    ("kind", "channels_last"),
    [
        ("LayerNorm", False),
        ("RMSNorm", False),
        ("GroupNorm", False),
        ("GroupNorm", True),
        ("InstanceNorm", False),
        ("InstanceNorm", True),
    ],
)
def test_odd_shapes_by_every_strategy(tools: Any, folder: Path, kind: str, channels_last: bool) -> None:
    """Every type and alignment, with scale, bias, residual, sum and activation or without."""
    cases = [
        case
        for case in tools[0].cases()
        if (case.norm.kind, case.norm.channels_last, case.family) == (kind, channels_last, "N(0, 1)")
        and math.prod(case.norm.shape) <= 2600
    ]
    # Behind sanitizers everything takes ten times as long.
    step = 6 if "NORMFUSE_EMULATED" in os.environ else 2
    assert not wrong(tools, folder, 0, cases[::step])
    assert not wrong(tools, folder, 7, cases[1::step])


@pytest.mark.parametrize("seed", SEEDS)
def test_rows_of_clusters_and_of_chunks(tools: Any, folder: Path, seed: int) -> None:
    """Rows that several blocks share, more rows than clusters, so that the ring of slots goes round."""
    norms = tools[0]
    dtype = list(norms.TYPES)[seed]
    assert not wrong(
        tools,
        folder,
        seed,
        [
            norms.Case(
                norms.Norm("LayerNorm", (7, 1, 32800 // dtype.itemsize, 1), dtype, "gelu", residual=True, sum=True)
            ),
            norms.Case(norms.Norm("RMSNorm", (4, 1, 49152 // dtype.itemsize, 1), dtype)),
            norms.Case(norms.Norm("GroupNorm", (1, 3, 5, 2056), dtype, "silu")),
            norms.Case(norms.Norm("GroupNorm", (1, 2, 12, 600), dtype, "relu", affine=False, channels_last=True)),
        ],
    )


def test_extreme_inputs(tools: Any, folder: Path) -> None:
    norms = tools[0]
    dtypes = list(norms.TYPES)
    cases = [
        norms.Case(norms.Norm(kind, shape, dtypes[i % 3], channels_last=last), family)
        for i, family in enumerate(norms.FILLS)
        for kind, shape, last in (
            ("LayerNorm", (3, 1, 768, 1), False),
            ("RMSNorm", (3, 1, 96, 1), False),
            ("GroupNorm", (1, 4, 3, 96), True),
        )
    ]
    assert not wrong(tools, folder, 5, cases)


def test_the_order_of_threads_changes_no_bit(tools: Any, folder: Path) -> None:
    import torch

    norms = tools[0]
    for norm in (
        norms.Norm("LayerNorm", (3, 1, 4104, 1), torch.float16, residual=True, sum=True),
        norms.Norm("GroupNorm", (1, 2, 12, 344), torch.float32, "silu"),
        norms.Norm("GroupNorm", (1, 3, 8, 33), torch.bfloat16, channels_last=True),
    ):
        call = norms.Call(kernels(tools, folder, 0), norm)
        for plan in norms.variants(call):
            results = []
            for seed in SEEDS:
                call.kernels = kernels(tools, folder, seed)
                call.plan = plan
                call.prepare()
                call.run()
                results.append(call.y.view(torch.uint8).clone())
            assert all(torch.equal(results[0], other) for other in results[1:]), str(plan)


RIGHT = ("right", "copied", "cluster")
FOUND = {
    "part of a warp": "hang: every thread waits",
    "misaligned": "load: misaligned address",
    "awaited twice": "hang: every thread waits",
    "copied past the end": "bulk copy: past the shared memory of the launch",
    "copied in part": "bulk copy: its size is no multiple of 16 bytes",
    "ends while read": "read of the shared memory of a block that has ended",
    "waits for nobody": "hang: a block waits for another one of its cluster",
}
SEEN = ("without barrier", "overwritten while read", "not awaited")


@pytest.mark.parametrize("name", [*RIGHT, *FOUND, *SEEN])
def test_the_emulation_finds_faults(folder: Path, name: str) -> None:
    """A fault is named, or the result of one seed is another one than it should be."""
    library = ctypes.CDLL(str(folder / "libnormfuse_faults.so"))
    library.emulation_fault.restype = ctypes.c_char_p
    size = 128 if name == "cluster" else 64
    values = [float(i) for i in range(1, 65)]
    expected = [values[32 * (1 - i // 64) + i % 64 // 2] if name == "cluster" else values[i ^ 1] for i in range(size)]
    messages, results = set(), []
    for seed in SEEDS:
        library.emulation_seed(ctypes.c_uint64(seed))
        y = (ctypes.c_float * 128)()
        messages.add(library.emulation_fault(name.encode(), (ctypes.c_float * 64)(*values), y))
        results.append(list(y)[:size])
    if name in FOUND:
        assert messages == {FOUND[name].encode()}
    else:
        assert messages == {None}
        assert all(result == expected for result in results) == (name in RIGHT)
