"""Print the README's table: which spelling of a norm is read, and what each form writes for it.

    python tools/coverage.py [--opset N]

One probe model a spelling, fused in every form for onnxruntime's CPU; a cell holds the operators that come out.
"""

from __future__ import annotations

import argparse
import logging

import onnx_ir as ir

import normfuse
from normfuse import Form, Target

NAMES = {
    "BatchNormalization": "BN",
    "InstanceNormalization": "IN",
    "GroupNormalization": "GN",
    "LayerNormalization": "LN",
    "RMSNormalization": "RMSN",
}
MEAN = "m = ReduceMean (x, axes) d = Sub (x, m) q = Mul (d, d) v = ReduceMean (q, axes) e = Add (v, eps) r = Sqrt (e)"
SQUARES = "q = Mul (x, x) v = ReduceMean (q, axes) e = Add (v, eps) r = Sqrt (e)"
PROBES = {
    "BatchNormalization": "y = BatchNormalization (x, c, c, c, c)",
    "InstanceNormalization": "y = InstanceNormalization (x, c, c)",
    "GroupNormalization": "y = GroupNormalization <num_groups = 2> (x, c, c)",
    "LayerNormalization": "y = LayerNormalization (x, w, w)",
    "RMSNormalization": "y = RMSNormalization (x, w)",
    "Reshape · InstanceNormalization · Reshape · Mul · Add": "g = Reshape (x, to) n = InstanceNormalization (g, one, zero) "
    "s = Shape (x) b = Reshape (n, s) t = Mul (b, c11) y = Add (t, c11)",
    "LayerNorm decomposed (Sub, Mul, ReduceMean, Sqrt, Div …)": f"{MEAN} n = Div (d, r) t = Mul (n, w) y = Add (t, w)",
    "LayerNorm decomposed, no affine": f"{MEAN} y = Div (d, r)",
    "RMSNorm decomposed (Reciprocal)": f"{SQUARES} i = Reciprocal (r) n = Mul (x, i) y = Mul (n, w)",
    "InstanceNorm decomposed": f"{MEAN} n = Div (d, r) t = Mul (n, c11) y = Add (t, c11)".replace("axes", "spatial"),
    "GroupNorm decomposed": f"g = Reshape (x, to) {MEAN.replace('(x', '(g').replace('axes', 'two')} n = Div (d, r) "
    "s = Shape (x) b = Reshape (n, s) t = Mul (b, c11) y = Add (t, c11)",
    "com.microsoft SkipLayerNormalization": "p = Reshape (x, flat) o = com.microsoft.SkipLayerNormalization (p, p, w, w) "
    "s = Shape (x) y = Reshape (o, s)",
    "SimplifiedLayerNormalization": "y = SimplifiedLayerNormalization (x, w)",
    "com.microsoft GroupNorm (NHWC, SiLU)": "y = com.microsoft.GroupNorm <groups = 2, activation = 1> (x, c, c)",
    "com.microsoft and ATen norms by name": "y = com.microsoft.QOrderedLayerNormalization (x, c)",
}


def probe(nodes: str, opset: int) -> ir.Model:
    """Return a model of one norm of x (N, 4, 6, 4)."""
    return ir.from_onnx_text(f"""<ir_version: 10, opset_import: ["": {opset}, "com.microsoft": 1]>
        g (float[N,4,6,4] x) => (float[N,4,6,4] y)
        <float[4] w = {{1, 2, 3, 4}}, float[4] c = {{4, 3, 2, 1}}, float[4,1,1] c11 = {{4, 3, 2, 1}}, float eps = {{1e-5}},
         int64[1] axes = {{-1}}, int64[2] spatial = {{2, 3}}, int64[1] two = {{2}}, int64[3] to = {{0, 2, -1}},
         int64[3] flat = {{0, -1, 4}}, float[2] one = {{1, 1}}, float[2] zero = {{0, 0}}> {{ {nodes} }}""")


def words(model: ir.Model) -> str:
    """Name what a model consists of: its norm operators with the shortest names, or the number of elementary ones."""
    names = []
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            names.append(f"{node.domain} {node.op_type}")
        elif node.op_type in NAMES or "LayerNormalization" in node.op_type:
            names.append(NAMES.get(node.op_type, node.op_type))
    between = any(node.op_type == "Reshape" for node in model.graph) and "IN" in names
    if not names:
        return f"{len(model.graph)} elementary"
    return ("Reshape·" if between else "") + "·".join(names)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--opset", type=int, default=23)
    opset = parser.parse_args().opset
    logging.disable(logging.WARNING)
    print(f"| spelling (opset {opset}) | read as | {' | '.join(form.value for form in Form)} |")
    print("|---" * (2 + len(Form)) + "|")
    for name, nodes in PROBES.items():
        model = probe(nodes, opset)
        report = normfuse.inspect(model, Target(Form.STANDARD))
        cells = [report.norms[0].norm if report.norms else "by name" if report.declined else "not found"]
        for form in Form:
            fused, outcome = normfuse.fuse(model, Target(form, native=False))
            lacks_kernel = any("has no kernel" in entry.reason for entry in outcome.declined)
            cells.append(words(fused) if outcome.rewrites else "no kernel: stays" if lacks_kernel else "stays")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
