"""Verification against the truth: when are two graphs the same?

The truth is the reference graph in float64 (:mod:`oracle`), or the torch module that was exported (:mod:`torch_module`).
A candidate passes when its error against that truth is within a stated factor of what rounding does to the original
(:mod:`tolerance`), end to end, between shared values (:mod:`segments`), and on each provider (:mod:`sessions`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normfuse.packages import make_callable
from normfuse.report.verdict import ValidationReport

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

    from normfuse.emit.target import Provider
    from normfuse.report.records import Rewrite
    from normfuse.validate.sessions import RuntimeLimits

__all__ = ["validate"]


def validate(
    reference: Any,
    candidate: str | Path | onnx.ModelProto | ir.Model,
    *,
    providers: Sequence[str | Provider] | None = None,
    inputs: Path | Sequence[Mapping[str, Any]] | None = None,
    quick: bool = False,
    locate: bool = False,
    rewrites: Sequence[Rewrite] = (),
    replay: Callable[[Collection[str]], ir.Model] | None = None,
    levels: Sequence[str] = ("off", "all"),
    limits: RuntimeLimits | None = None,
    libraries: Sequence[Path] | None = None,
) -> ValidationReport:
    """Return whether ``candidate`` computes what ``reference`` does. Neither is changed; their opsets may differ.

    reference: a path, an onnx.ModelProto, an onnx_ir.Model; or the torch.nn.Module that ``candidate`` was exported from,
    which is then judged norm layer by norm layer as well.
    providers: where both run as well, by name: "cpu" (default), "cuda", "tensorrt", …, or "cpu@/venv/bin/python" for
    the onnxruntime of another environment. levels: of onnxruntime's optimization: "off", "basic", "extended", "all".
    inputs: an .npz file, a folder, or one dictionary of arrays per sample; default are the families of
    :mod:`families`. quick: one family, graph optimizations on only.
    locate: also follow the error from value to value and, with ``rewrites`` of a fusion report and ``replay`` (which
    makes a part of them), find the first rewrite after which the verdict flips.
    limits: what a child process may cost. libraries: custom-op libraries that the sessions register; default are the
    native operators, where they are built and everything runs on the CPU, or on CUDA.

    Raises ValidationError where the models do not pair up or the inputs do not fit, ModelIOError where one cannot be
    read, UnsupportedForm for an unknown provider or level, TypeError for an argument of another type.
    """
    from normfuse import io
    from normfuse.errors import ModelIOError, NormfuseError
    from normfuse.runtime.library import find_cuda_library, find_library
    from normfuse.validate.arguments import check_arguments
    from normfuse.validate.backends import parse_backend
    from normfuse.validate.on_backend import Runner
    from normfuse.validate.run import Task, run
    from normfuse.validate.sessions import parse_level

    check_arguments(
        reference, candidate, inputs, limits, {"providers": providers, "levels": levels, "libraries": libraries}
    )
    named = ("cpu",) if providers is None else providers
    backends = tuple(dict.fromkeys(parse_backend(name) for name in named))
    chosen = ("all",) if quick else levels
    if libraries is None:
        on_cuda = set(backends) == {parse_backend("cuda")}
        native = find_cuda_library() if on_cuda else find_library()
        is_served = on_cuda or set(backends) == {parse_backend("cpu")}
        libraries = (native.path,) if native.is_usable and native.path and is_served else ()
    runner = Runner(limits, tuple(libraries), tuple(parse_level(level) for level in chosen))
    if hasattr(reference, "named_modules"):
        from normfuse.validate.torch_module import validate_module

        return validate_module(reference, candidate, backends, inputs, runner, quick=quick)
    task = Task.load(reference, candidate, backends, runner, quick=quick)
    try:
        report = run(task, inputs)
        if not locate:
            return report
        from normfuse.validate.locate import located

        return located(report, task, inputs, rewrites, replay)
    except NormfuseError:
        raise
    except Exception as error:
        # Models are not checked beforehand, which takes long: where something fails on one that is no valid ONNX, that
        # is why. Any other failure is a defect of ours, and stays what it is.
        for subject in (task.reference, task.candidate):
            objection = io.objection(subject.model)
            if objection is not None:
                raise ModelIOError(f"{subject.role}: not a valid ONNX model: {objection}") from error
        raise


make_callable(__name__)
