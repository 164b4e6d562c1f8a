"""Export a torch module for inference, with every normalization still visible.

torch's dynamo exporter folds Conv+BatchNormalization itself when it optimizes, without looking at training mode
So it runs with ``optimize=False`` here, and :mod:`normfuse.export.cleaning` removes what
it leaves behind; folding norms is the business of :func:`normfuse.fuse`.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normfuse.errors import ExportError, MissingDependency
from normfuse.export import examples

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

log = logging.getLogger(__name__)

Progress = Callable[[str], None]

# torch 2.13 has its own translations for 18 to 23 (torch.onnx._constants.ONNX_MAX_OPSET); 24 and 25 come from
# onnxscript's version converter. At 26 and 27 torch labels a graph of newer operators "opset 18" and says nothing.
NEWEST_OPSET = 25
OLDEST_OPSET = 17
DEFAULT_OPSET = 23
_OLDEST_OF_TORCH = 18
_NAMED_AT_MOST = 4


def closest_opset(opset: int | None) -> int | None:
    """Return the opset nearest to ``opset`` that :func:`export` writes; None for its default."""
    return None if opset is None else min(max(opset, OLDEST_OPSET), NEWEST_OPSET)


class TrainModeWarning(UserWarning):
    """A module was in train mode; it was exported as it behaves in eval mode."""


def export(
    module: torch.nn.Module,
    inputs: torch.Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    input_names: Sequence[str] | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    opset: int | None = None,
    progress: Progress | None = None,
) -> ir.Model:
    """Return ``module`` in eval mode as an ONNX model: checker-valid, norms unfused, weights copied.

    inputs: one example per argument of ``module.forward``; a mapping is passed by keyword. ``input_names`` renames the
    graph's inputs, in order. dynamic: ``{"x": {0: "batch"}}``, by input name; an example of size 1 along such an axis
    is widened to 2, because torch treats size 1 as a constant. opset: 17 to 25, by default 23.
    The modules' train flags are put back as they were, also when the export fails.

    Warns TrainModeWarning when something was in train mode.
    Raises ExportError when torch cannot trace or translate the module, when the model cannot be written at ``opset``,
    or when the module normalises by batch statistics although it has running ones; MissingDependency without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "torch", "exporting a torch module") from error
    from normfuse.export import cleaning, naming, translation

    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"export needs a torch.nn.Module; got {examples.article(type(module).__name__)}")
    opset = DEFAULT_OPSET if opset is None else opset
    if not isinstance(opset, int) or not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        raise ExportError(f"opset {opset} cannot be written; choose {OLDEST_OPSET} to {NEWEST_OPSET}")
    say = progress or log.debug
    arguments, keywords = examples.arguments(inputs)
    names = examples.names(module, arguments, keywords, input_names)
    axes = examples.dynamic_axes(dynamic or {}, names, [*arguments, *keywords.values()])
    arguments, keywords = examples.widened(arguments, keywords, axes)

    _warn_if_training(module)
    say(f"tracing {type(module).__name__}")
    with _evaluating(module), _quiet():
        try:
            program = torch.onnx.export(
                module,
                # Without keyword arguments torch takes a trailing dict for them; an empty one keeps ours positional.
                arguments if keywords else (*arguments, {}),
                kwargs=keywords or None,
                input_names=input_names,
                dynamic_shapes=examples.dynamic_shapes(axes, len(arguments), tuple(keywords)),
                opset_version=max(opset, _OLDEST_OF_TORCH),
                custom_translation_table=translation.translations(),
                dynamo=True,
                optimize=False,
                verbose=False,
            )
        except Exception as error:
            raise ExportError(f"torch cannot export {type(module).__name__}: {_first_cause(error)}") from error
    if program is None:
        raise ExportError(f"torch exported nothing for {type(module).__name__}")
    _refuse_batch_statistics(program.exported_program)
    say("folding constants")
    with _quiet():
        model: ir.Model = cleaning.clean(program.model)
        naming.name_outputs(model.graph, _output_names(program.exported_program))
    say("checking")
    with _quiet():
        return cleaning.conclude(model, opset)


def _warn_if_training(module: torch.nn.Module) -> None:
    if module.training:
        names = f"{type(module).__name__} was"
    else:
        outermost: list[str] = []
        for name, part in module.named_modules():
            if part.training and not any(name.startswith(f"{outer}.") for outer in outermost):
                outermost.append(name)
        if not outermost:
            return
        more = len(outermost) - _NAMED_AT_MOST
        names = ", ".join(outermost[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")
        names = f"{names} of {type(module).__name__} {'was' if len(outermost) == 1 else 'were'}"
    warnings.warn(f"{names} in train mode: exported as in eval mode, and put back", TrainModeWarning, stacklevel=3)


@contextlib.contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put ``module`` in eval mode, and each of its parts back to its own flag afterwards.

    ``eval`` and ``train`` are called because a module may hang work on them (merging adapters); the flags are set
    after that, because a module may also ignore them (a frozen norm).
    """
    flags = [(part, part.training) for part in module.modules()]
    training = module.training
    try:
        module.eval()
        for part, _ in flags:
            part.training = False
        yield
    finally:
        module.train(training)
        for part, flag in flags:
            part.training = flag


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's and onnxscript's remarks on their own internals from the user; prints go to our debug log."""
    loggers = [logging.getLogger(name) for name in ("torch", "torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    printed = io.StringIO()
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if printed.getvalue():
            log.debug("printed during the export: %s", printed.getvalue().rstrip())


def _refuse_batch_statistics(program: Any) -> None:
    """Raise ExportError where a batch norm with running statistics uses those of the batch even in eval mode.

    torch writes such a node as an inference BatchNormalization: other numbers, and no word about it.
    The arguments of every batch norm operator of ATen begin (x, weight, bias, running mean, running var, training, …).
    """
    if program is None:
        return
    for node in program.graph.nodes:
        if "batch_norm" not in str(node.target) or len(node.args) < 6:
            continue
        if node.args[5] is True and node.args[3] is not None:
            raise ExportError(
                f"'{node.name}' normalises by batch statistics even in eval mode although it has running ones "
                "(F.batch_norm with training=True), and torch would write the running ones; "
                "pass running_mean=None to keep the behaviour"
            )


def _output_names(program: Any) -> tuple[str | None, ...]:
    """Return a name for each output that ``forward`` returns under a key, None for the others, in the graph's order."""
    if program is None:
        return ()
    specification = program.call_spec.out_spec
    leaves = [f"#{index}" for index in range(specification.num_leaves)]
    found: dict[str, str] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                walk(part, f"{path}.{key}" if path else str(key))
        elif isinstance(value, (tuple, list)) and path:
            for index, part in enumerate(value):
                walk(part, f"{path}.{index}")
        elif isinstance(value, str) and path:
            found[value] = path

    walk(specification.unflatten(leaves), "")
    return tuple(found.get(leaf) for leaf in leaves)


def _first_cause(error: BaseException) -> str:
    """Return one line that says what went wrong at the bottom of ``error``."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
