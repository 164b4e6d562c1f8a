"""Measure the kernels of onnxruntime's providers, and print the tables of normfuse/emit/kernels.py.

    python tools/measure_kernels.py [--provider cpu|cuda] [--quick]

Which operator loads for which type; how long each spelling of a norm takes against a copy of the tensor; how far it is
from float64 at mean/std 1, 100 and 10000. Spellings are interleaved in one process; medians. On the CPU: CPU time of one
thread. On CUDA: wall time until the device is done, of a batch four times as large, which stays on the device; the native
operators are one more spelling; an operator that falls back to the CPU has no kernel.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from normfuse.emit.custom import emit_custom
from normfuse.emit.fusible import emit_fusible
from normfuse.emit.ort import emit_ort
from normfuse.emit.primitive import emit_primitive
from normfuse.emit.standard import emit_reshaped, emit_standard
from normfuse.emit.target import Provider
from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.editing import Editor, Replacement, initializer
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.reference import evaluate
from normfuse.runtime.session import register_cuda
from normfuse.spec import AffineAxes, AffineLayout, NormSpec, PerChannel, PerGroup, Trailing

F16, BF16, F32, F64 = ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE
TYPES = (F16, BF16, F32, F64)
BOTH, ALONG = AffineLayout(True, True), AffineLayout(True, True, AffineAxes.NORMALISED)
OPSET = 23
NAMES = {Provider.CPU: "CPUExecutionProvider", Provider.CUDA: "CUDAExecutionProvider"}
PROVIDER = Provider.CPU

SPELLINGS: dict[str, Callable[[NormSite, Reading, int], Replacement | Declined]] = {
    "operator": emit_standard,
    "reshaped": emit_reshaped,
    "primitive": emit_primitive,
    "fusible": emit_fusible,
    "custom body": emit_custom,
    "custom": emit_custom,
    "ort": lambda site, reading, opset: emit_ort(site, reading, opset, Provider.CPU),
}


@dataclass(frozen=True)
class Case:
    """A norm, the shape of its x, and the spellings that compete. opset: lower for what later became an operator."""

    norm: str
    spec: NormSpec
    shape: tuple[int, ...]
    spellings: tuple[str, ...]
    residual: bool = False
    opset: int = OPSET


RMS = NormSpec(Trailing((-1,)), 1e-6, centred=False, affine=replace(ALONG, bias=False))
LAYER = NormSpec(Trailing((-1,)), 1e-5, affine=ALONG)
GROUPS = ("operator", "reshaped", "primitive", "custom body")
CASES = (
    Case("group", NormSpec(PerGroup(32), 1e-5, affine=BOTH), (1, 320, 64, 64), GROUPS),
    Case("group", NormSpec(PerGroup(32), 1e-5, affine=BOTH), (8, 512, 16, 16), GROUPS),
    Case("group", NormSpec(PerGroup(8), 1e-5, affine=BOTH), (1, 64, 32, 32, 32), GROUPS),
    Case("instance", NormSpec(PerChannel(), 1e-5, affine=BOTH), (1, 320, 64, 64), ("operator", "primitive")),
    Case("instance", NormSpec(PerChannel(), 1e-5, affine=BOTH), (8, 512, 16, 16), ("operator", "primitive")),
    Case("layer", LAYER, (1, 512, 768), ("operator", "primitive", "custom body")),
    Case("layer", LAYER, (8, 197, 1024), ("operator", "primitive", "custom body")),
    Case("layer, no affine", replace(LAYER, affine=AffineLayout()), (8, 197, 1024), ("operator", "primitive")),
    Case("layer + residual", LAYER, (1, 512, 768), ("operator", "ort"), residual=True),
    Case("rms", RMS, (1, 512, 768), ("operator", "primitive", "custom body")),
    Case("rms", RMS, (8, 197, 1024), ("operator", "primitive", "custom body")),
    Case("rms, opset 22", RMS, (1, 512, 768), ("ort", "primitive", "fusible", "custom body"), opset=22),
    Case("rms, opset 22", RMS, (8, 197, 1024), ("ort", "primitive", "fusible", "custom body"), opset=22),
    Case("layer, opset 16", LAYER, (8, 197, 1024), ("ort", "primitive", "fusible", "custom body"), opset=16),
    Case("rms + residual", RMS, (1, 512, 768), ("operator", "ort"), residual=True),
)  # fmt: skip


def model_of(case: Case, dtype: ir.DataType, spelling: str) -> ir.Model | None:
    """Return the norm alone, from and to float32 where NumPy cannot feed the type; None where it is declined."""
    outer = F32 if dtype == BF16 else dtype
    shape = ir.Shape(case.shape)
    names = ("x", "residual") if case.residual else ("x",)
    inputs = [ir.Value(name=name, shape=shape, type=ir.TensorType(outer)) for name in names]
    nodes: list[ir.Node] = []
    inner = inputs
    if dtype == BF16:
        nodes = [ir.node("Cast", [value], {"to": int(dtype)}) for value in inputs]
        inner = [node.outputs[0] for node in nodes]
        for value, name in zip(inner, names, strict=True):
            value.name, value.dtype, value.shape = f"{name}_half", dtype, shape
    parameters = {
        name: initializer(name, ir.tensor(array.astype(dtype.numpy()), dtype=dtype, name=name))
        for name, array in parameters_of(case).items()
    }
    root = ir.node("Placeholder", [*inner, *parameters.values()], domain="test", name="norm")
    y = root.outputs[0]
    y.name, y.dtype, y.shape = "y", dtype, shape
    nodes.append(root)
    if dtype == BF16:
        y.name = "y_half"
        nodes.append(ir.node("Cast", [y], {"to": int(F32)}))
        y = nodes[-1].outputs[0]
        y.name, y.dtype, y.shape = "y", F32, shape
    graph = ir.Graph(
        inputs, [y], nodes=nodes, initializers=tuple(parameters.values()), opset_imports={"": case.opset}, name="norm"
    )
    model = ir.Model(graph, ir_version=10)
    constants = Constants(model)
    reading = Reading(case.opset, constants, Ranks(constants))
    site = NormSite(
        case.spec,
        Operands(inner[0], residual=inner[1] if case.residual else None, **parameters),
        "placeholder",
        root,
        (root,),
    )
    replacement = SPELLINGS[spelling](site, reading, case.opset)
    if isinstance(replacement, Declined):
        return None
    editor = Editor(model)
    editor.apply(replacement, root)
    editor.finish()
    return model


def parameters_of(case: Case) -> dict[str, np.ndarray]:
    """Return γ and β, as far as the norm has them."""
    rng = np.random.default_rng(1)
    size = case.shape[-1] if case.spec.affine.axes is AffineAxes.NORMALISED else case.shape[1]
    wanted = {"scale": case.spec.affine.scale, "bias": case.spec.affine.bias}
    return {name: rng.uniform(0.5, 1.5, size) for name, present in wanted.items() if present}


def session_of(
    model: ir.Model | None, *, alone: bool = False, native: bool = False
) -> onnxruntime.InferenceSession | None:
    """Return a session of one thread; None where the provider has no kernel.

    alone: fail where a node runs elsewhere; not for spellings that compute shapes, which is the CPU's everywhere.
    native: with our operators.
    """
    if model is None:
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if alone:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        if native and not register_cuda(options):
            return None
        return onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(), options, providers=[NAMES[PROVIDER]]
        )
    except Exception:  # onnxruntime raises one class for each status; each of them means that it does not run
        return None


def copy_of(case: Case, dtype: ir.DataType) -> Callable[[], None]:
    """Return a function that copies a tensor of the size of x; on a device, by a session of Identity alone."""
    if PROVIDER is Provider.CUDA:
        x, y = (ir.Value(name=n, shape=ir.Shape(case.shape), type=ir.TensorType(dtype)) for n in "xy")
        node = ir.node("Identity", [x], outputs=[y])
        graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": OPSET}, name="copy")
        session = session_of(ir.Model(graph, ir_version=10))
        assert session is not None
        return on_device(session, {"x": np.ones(case.shape, dtype.numpy())}, int(dtype))
    source = np.ones(case.shape, dtype.numpy())
    target = np.empty_like(source)
    return lambda: np.copyto(target, source)


def bound(session: onnxruntime.InferenceSession, feeds: dict[str, np.ndarray]) -> Callable[[], None]:
    """Return a function that runs ``session`` into an output that is kept."""
    if PROVIDER is Provider.CUDA:
        return on_device(session, feeds)
    binding = session.io_binding()
    for name, array in feeds.items():
        binding.bind_cpu_input(name, array)
    y = onnxruntime.OrtValue.ortvalue_from_numpy(np.empty_like(feeds["x"]))
    binding.bind_ortvalue_output("y", y)
    return lambda: session.run_with_iobinding(binding)


def on_device(session: onnxruntime.InferenceSession, feeds: dict[str, Any], element: int = 0) -> Callable[[], None]:
    """Return a function that runs ``session`` on tensors that stay on the device. element: for types NumPy has not."""
    binding = session.io_binding()
    for name, array in feeds.items():
        if element == int(BF16):
            raw = array.view(np.uint16)
            value = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, element)
            binding.bind_ortvalue_input(name, value)
        else:
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, "cuda", 0))
    binding.bind_output("y", "cuda")

    def run() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return run


def timed(functions: dict[str, Callable[[], None]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each function, interleaved: of the CPU, or until the device is done."""
    clock = time.perf_counter if PROVIDER is Provider.CUDA else time.process_time
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for index in range(rounds + 2):
        for name, function in functions.items():
            start = clock()
            function()
            if index >= 2:
                taken[name].append(clock() - start)
    return {name: statistics.median(times) for name, times in taken.items()}


@functools.cache
def truth_of(case: Case, dtype: ir.DataType, mean: float) -> tuple[np.ndarray, np.ndarray]:
    """Return x of standard deviation 1 around ``mean``, in ``dtype``, and the norm of it in float64."""
    x = (np.random.default_rng(2).standard_normal(case.shape) + mean).astype(dtype.numpy())
    arrays = {name: array.astype(dtype.numpy()) for name, array in parameters_of(case).items()}
    return x, evaluate(case.spec, {"x": x, **arrays})


def error_of(case: Case, session: onnxruntime.InferenceSession, dtype: ir.DataType, mean: float) -> float:
    """Return the largest error against float64 for x of standard deviation 1 around ``mean``."""
    x, truth = truth_of(case, dtype, mean)
    feeds = {"x": x.astype(np.float32) if dtype == BF16 else x}
    if case.residual:
        feeds["residual"] = np.zeros_like(feeds["x"])
    (y,) = session.run(None, feeds)
    return float(np.abs(y.astype(np.float64) - truth).max())


def kernels() -> Iterator[str]:
    """Yield the table KERNELS, a row an operator: the types for which it loads."""
    calls = {
        "InstanceNormalization": ("InstanceNormalization (x, s, s)", "[2,4,5,4]"),
        "BatchNormalization": ("BatchNormalization (x, s, s, s, s)", "[2,4,5,4]"),
        "GroupNormalization (inlined)": ("GroupNormalization <num_groups = 2> (x, s, s)", "[2,4,5,4]"),
        "LayerNormalization": ("LayerNormalization (x, s, s)", "[2,5,4]"),
        "RMSNormalization": ("RMSNormalization (x, s)", "[2,5,4]"),
        "SimplifiedLayerNormalization": ("SimplifiedLayerNormalization (x, s)", "[2,5,4]"),
        "com.microsoft.SkipLayerNormalization": ("com.microsoft.SkipLayerNormalization (x, x, s, s)", "[2,5,4]"),
        "com.microsoft.SkipSimplifiedLayerNormalization": (
            "com.microsoft.SkipSimplifiedLayerNormalization (x, x, s)",
            "[2,5,4]",
        ),
        "com.microsoft.GroupNorm": ("com.microsoft.GroupNorm <groups = 2, activation = 0> (x, g, g)", "[2,5,4,4]"),
    }
    for name, (call, shape) in calls.items():
        loads = []
        for dtype in TYPES:
            kind = dtype.name.lower()
            text = f"""<ir_version: 10, opset_import: ["": {OPSET}, "com.microsoft": 1]>
                g ({kind}{shape} x, {kind}[4] s, float[4] g) => ({kind}{shape} y) {{ y = {call} }}"""
            if session_of(ir.from_onnx_text(text), alone=PROVIDER is Provider.CUDA) is not None:
                loads.append(dtype.name)
        yield f'    (Provider.{PROVIDER.name}, "{name}"): {{{", ".join(loads)}}},'


def main() -> None:
    """Print what was measured."""
    global PROVIDER
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few rounds only: for trying, not for the table")
    parser.add_argument("--provider", type=Provider, default=Provider.CPU, help="cpu or cuda")
    arguments = parser.parse_args()
    rounds = 3 if arguments.quick else 21
    PROVIDER = arguments.provider
    on_gpu = PROVIDER is Provider.CUDA
    means = (1.0, 1e4) if on_gpu else (1.0, 1e2, 1e4)
    print(f"onnxruntime {onnxruntime.__version__}\n\nKERNELS = {{", *kernels(), "}\n", sep="\n")
    asked = ", ".join(f"{mean:.0e}" for mean in means)
    print(f"| norm | type | x | spelling | times a copy | error at mean/std {asked} |\n|---|---|---|---|---|---|")
    fastest: dict[tuple[str, str], list[str]] = {}
    for listed in CASES:
        case = replace(listed, shape=(4 * listed.shape[0], *listed.shape[1:])) if on_gpu else listed
        spellings = (*case.spellings, "custom") if on_gpu else case.spellings
        for dtype in (F16, BF16, F32) if on_gpu else TYPES:
            sessions = {name: session_of(model_of(case, dtype, name), native=name == "custom") for name in spellings}
            running = {name: session for name, session in sessions.items() if session is not None}
            outer = np.float32 if dtype == BF16 else dtype.numpy()
            feeds = {"x": np.random.default_rng(0).standard_normal(case.shape).astype(outer)}
            if case.residual:
                feeds["residual"] = feeds["x"]
            jobs = {name: bound(session, feeds) for name, session in running.items()}
            seconds = timed({"copy": copy_of(case, dtype), **jobs}, rounds)
            for name in spellings:
                row = f"| {case.norm} | {dtype.name.lower()} | {case.shape} | {name} |"
                if name not in running:
                    print(f"{row} no kernel | |")
                    continue
                errors = ", ".join(f"{error_of(case, running[name], dtype, m):.0e}" for m in means)
                print(f"{row} {seconds[name] / seconds['copy']:.1f} | {errors} |", flush=True)
            if running:
                best = min(running, key=lambda name: seconds[name])
                fastest.setdefault((case.norm, dtype.name), []).append(best)
    print("\nFASTEST = {")
    for (norm, kind), names in fastest.items():
        print(f'    ("{norm}", {kind}): {", ".join(names)},')
    print("}")


if __name__ == "__main__":
    main()
