"""Find the library of native operators, and try whether it loads here.

The library is built by pip beside this package; where pip finds nvcc, a second one that has kernels for GPUs as well. Each
is looked for, in this order:

1. the file that the environment variable NORMFUSE_OPS_LIBRARY names, or NORMFUSE_CUDA_OPS_LIBRARY,
2. ``native/`` in every folder of this package: an editable install has two of them,
3. ``build/native/`` of a checkout, where ``cmake -S normfuse/native -B build/native`` leaves it.

Nothing here needs onnxruntime: the library depends on no other and is loaded by itself.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "NORMFUSE_OPS_LIBRARY"
CUDA_VARIABLE = "NORMFUSE_CUDA_OPS_LIBRARY"
OLDEST_RUNTIME = (1, 17)
"""The oldest onnxruntime that has what the library asks of it."""

_NAMES = ("libnormfuse_ops.so", "libnormfuse_ops.dylib", "libnormfuse_ops.dll")
_CUDA_NAMES = ("libnormfuse_ops_cuda.so",)


@dataclass(frozen=True, slots=True)
class Library:
    """What is known of the library. ``problem`` is None where it can be used, else says why not."""

    path: Path | None
    instruction_set: str | None = None
    problem: str | None = None

    @property
    def is_usable(self) -> bool:
        """Whether onnxruntime can be given this library."""
        return self.path is not None and self.problem is None


def find_library() -> Library:
    """Return the library in use, loaded once to learn its instruction set, or why there is none."""
    return _probe(VARIABLE, os.environ.get(VARIABLE, ""), _NAMES, "a C++17 compiler (GCC or Clang)")


def find_cuda_library() -> Library:
    """Return the library with kernels for GPUs, or why there is none. It loads on a machine without a GPU too."""
    return _probe(CUDA_VARIABLE, os.environ.get(CUDA_VARIABLE, ""), _CUDA_NAMES, "nvcc 12 or newer")


@functools.cache
def _probe(variable: str, named: str, names: tuple[str, ...], needs: str) -> Library:
    if named:
        path = Path(named)
        return _loaded(path) if path.is_file() else Library(None, problem=f"{variable} names no file: {named}")
    for path in _places(names):
        if path.is_file():
            return _loaded(path)
    return Library(None, problem=f"not built: it needs {needs} when normfuse is installed")


def _places(names: tuple[str, ...]) -> Iterator[Path]:
    package = sys.modules[__name__.partition(".")[0]]
    folders = [Path(entry) for entry in package.__path__]
    for folder in [
        *(folder / "native" for folder in folders),
        *(folder.parent / "build" / "native" for folder in folders),
    ]:
        for name in names:
            yield folder / name


def _loaded(path: Path) -> Library:
    try:
        library = ctypes.CDLL(str(path))
        ask = library.normfuse_instruction_set
    except (OSError, AttributeError) as error:
        return Library(path, problem=f"does not load: {' '.join(str(error).split())}")
    ask.restype = ctypes.c_char_p
    return Library(path, instruction_set=ask().decode())
