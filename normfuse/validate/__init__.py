"""Verification against the truth: when are two graphs the same?

The truth is the reference graph in float64 (:mod:`oracle`). A candidate passes when its error against that truth is
within a stated factor of what rounding does to the original (:mod:`tolerance`), end to end, between shared values
(:mod:`segments`), and on each provider (:mod:`sessions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from normfuse.packages import make_callable
from normfuse.report.verdict import ValidationReport

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from normfuse.emit.target import Provider
    from normfuse.validate.sessions import RuntimeLimits

__all__ = ["validate"]


def validate(
    reference: str | Path | onnx.ModelProto | ir.Model,
    candidate: str | Path | onnx.ModelProto | ir.Model,
    *,
    providers: Sequence[Provider] | None = None,
    inputs: Path | None = None,
    quick: bool = False,
    limits: RuntimeLimits | None = None,
    libraries: Sequence[Path] | None = None,
) -> ValidationReport:
    """Return whether ``candidate`` computes what ``reference`` does. Neither is changed; their opsets may differ.

    providers: where both graphs run as well; default the CPU.
    inputs: an .npz file or a folder; default are the families "standard normal", "large mean" and "second size" (of
    every dynamic axis). quick: one family, graph optimizations on only. limits: what a child process may cost.
    libraries: custom-op libraries that the sessions register; default are the native operators, where they are built
    and everything runs on the CPU.

    Raises ValidationError where the models do not pair up or the inputs do not fit, ModelIOError where one cannot be
    read.
    """
    from normfuse.emit.target import Provider
    from normfuse.runtime.library import find_library
    from normfuse.validate.run import run

    chosen = (Provider.CPU,) if providers is None else tuple(providers)
    if libraries is None:
        native = find_library()
        libraries = (native.path,) if native.is_usable and native.path and chosen == (Provider.CPU,) else ()
    return run(reference, candidate, chosen, inputs, quick=quick, limits=limits, libraries=tuple(libraries))


make_callable(__name__)
