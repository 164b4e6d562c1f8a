# ruff: noqa: E501 -- a row of a table stays on its line
"""Break the condition of each rule on purpose and see whether the tests notice.

    python tools/mutation_check.py [--count 2000] [WORD]

Every row of MUTATIONS replaces one piece of text in one file of a copy of the package; then the tests of each rule run,
and where they pass, random graphs are moved until one differs from the float64 oracle (caught) or the count is reached
(missed). --graphs leaves the tests out. Exit code 1 where one was missed.
Not in the list: that Add broadcasts no operand, which every linear operator checks again by its number of channels; and
the bounds of float16, which have tests of their own (the graphs are float64).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VALUES, PLACES, BACKWARD, FORWARD, OWN, INPUTS, SPREAD, PLAN, REST, MOVE, BOUND = (
    f"normfuse/passes/{name}.py"
    for name in (
        "affine_rules_values", "affine_rules_places", "affine_backward", "affine_forward", "affine_own", "linear_inputs", "spread", "affine_plan", "affine_rest", "move_affine",
        "cancellation",
    )
)  # fmt: skip

_NOT_POSITIVE = '    if not f.is_positive:\n        return "passes no scale that is not positive"\n'

MUTATIONS: tuple[tuple[str, str, str, str], ...] = (
    ("Relu passes a shift", VALUES, 'if not f.is_linear:\n        return "passes no shift"\n    if not f.is_positive', "if not f.is_positive"),
    ("Relu passes a negative scale", VALUES, _NOT_POSITIVE + "    return Passed(((0, f),), combines", "    return Passed(((0, f),), combines"),
    ("PRelu passes a shift", VALUES, 'if not f.is_linear:\n        return "passes no shift"\n    if not (f.scale', "if not (f.scale"),
    ("PRelu keeps its slope", VALUES, "np.where(negative, 1.0 / wide, wide)", "np.where(negative, wide, wide)"),
    ("PRelu with a negative slope", VALUES, "if not (wide > 0.0).all():", "if False:"),
    ("AveragePool counts its padding", VALUES, 'if padded and attributes.get_int("count_include_pad", 0) != 0:', "if False:"),
    ("pooling along the factors", VALUES, "    along = [axis for axis in f.varies if axis >= 2]", "    along: list[int] = []"),
    ("MaxPool passes a negative scale", VALUES, _NOT_POSITIVE + "    return Passed(((0, f),), shrinks=True)", "    return Passed(((0, f),), shrinks=True)"),
    ("Transpose the wrong way", PLACES, "[int(axis) for axis in np.argsort(perm)] if backward else perm", "perm"),
    ("Reshape repeats in the wrong order", SPREAD, "np.broadcast_to(row, full).reshape(shape)", 'np.broadcast_to(row, full).reshape(shape, order="F")'),
    ("Concat gives every input the first slice", PLACES, "(index, f.take(part, axis)) for index, part in enumerate(parts)))\n    placed = f.placed(parts[place], axis, sum(sizes))\n    return \"joins", "(index, f.take(part - part[0], axis)) for index, part in enumerate(parts)))\n    placed = f.placed(parts[place], axis, sum(sizes))\n    return \"joins"),
    ("Concat forward at the wrong place", PLACES, "placed = f.placed(parts[place], axis, sum(sizes))\n    return \"joins", "placed = f.placed(parts[place] - parts[place][0], axis, sum(sizes))\n    return \"joins"),
    ("Split at the wrong place", PLACES, "placed = f.placed(parts[place], axis, sum(sizes))\n    return \"splits", "placed = f.placed(parts[place] - parts[place][0], axis, sum(sizes))\n    return \"splits"),
    ("Split forward gives every output the first slice", PLACES, "if not backward:\n        return Passed(tuple((index, f.take(part, axis))", "if not backward:\n        return Passed(tuple((index, f.take(part - part[0], axis))"),
    ("Slice from the wrong end", PLACES, "placed = f.placed(indices, axis, size)", "placed = f.placed(indices[::-1], axis, size)"),
    ("Slice forward from the wrong end", PLACES, "f = f.take(indices, axis)", "f = f.take(indices[::-1], axis)"),
    ("Gather of one channel twice", SPREAD, "if not np.array_equal(target[indices], source):", "if False:"),
    ("Gather forward by the first channels", PLACES, "f.take(picked, axis)", "f.take(np.arange(len(picked)), axis)"),
    ("DepthToSpace takes DCR for CRD", PLACES, '== "CRD"', '== "XXX"'),
    ("SpaceToDepth takes CRD for DCR", PLACES, 'node.op_type == "DepthToSpace" and node.attributes', 'node.op_type == "SpaceToDepth" or node.attributes'),
    ("blocks move axes along which the factors vary", PLACES, "if f.varies - {1}:", "if False:"),
    ("ReduceMean over the channels", VALUES, "along = sorted(f.varies & set(axes))", "along: list[int] = []"),
    ("ReduceMean without keepdims", VALUES, "if backward and not keep:\n", "if backward and not keep and f.rank < 3:\n"),
    ("Resize along the factors", VALUES, "        if objection is not None:\n            return objection\n    return passed\n", "    return passed\n"),
    ("Pad with a constant that changes", VALUES, "if (f.scale * fill + f.shift == fill).all():", "if True:"),
    ("Pad forward by the image of its constant", VALUES, "f.scale * fill + f.shift if backward else (fill - f.shift) / f.scale", "f.scale * fill + f.shift"),
    ("Pad along the channels", VALUES, "along = sorted(padded & f.varies)", "along: list[int] = []"),
    ("Add gives both operands the shift", BACKWARD, "sides[index] if index == chosen else scale", "sides[index]"),
    ("Sub keeps the sign of the shift", BACKWARD, "sides = (f, Spread(f.scale, sign * f.shift))", "sides = (f, f)"),
    ("an operand that is read twice", BACKWARD, "if not maps[value].equals(f):", "if False:"),
    ("a value that something else reads", BACKWARD, "if user is reader or is_op", "if True or is_op"),
    ("a graph output changes", BACKWARD, "        if value.is_graph_output():\n", "        if False:\n"),
    ("forward past another reader", FORWARD, "if f.is_identity or (not output.uses()", "if True or (not output.uses()"),
    ("forward past a graph output", FORWARD, "        if value.is_graph_output():\n", "        if False:\n"),
    ("forward a scale through Add", FORWARD, "if not (f.scale == 1.0).all():", "if False:"),
    ("an operator reached on two ways", PLAN, "if node in met:", "if False:"),
    ("the shift into a padded Conv", INPUTS, 'if node.op_type == "Conv" and not _reads_no_padding', "if False and not _reads_no_padding"),
    ("the shift into a ConvTranspose", INPUTS, 'if node.op_type == "ConvTranspose" and not _is_pointwise', "if False and not _is_pointwise"),
    ("Gemm without alpha", INPUTS, 'node.attributes.get_float("alpha", 1.0) * (shift', "1.0 * (shift"),
    ("the groups of a ConvTranspose", INPUTS, 'np.einsum("gio,gi->go", taps', 'np.einsum("gio,gi->go", taps[::-1]'),
    ("a constant divided into", OWN, "return (index, Spread.of(1.0 / row, zeros)) if row.all() else None", "return index, Spread.of(row, zeros)"),
    ("a constant subtracted", OWN, "return index, Spread.of(ones, -row) if index == 0 else Spread.of(-ones, row)", "return index, Spread.of(ones, -row)"),
    ("the shift comes before the scale as it came behind", SPREAD, "self.shift / self.scale)", "self.shift)"),
    ("what stays comes last", FORWARD, "for part, further in ((f, None), *f.split()):", "for part, further in ((f, None), *(pair[::-1] for pair in f.split())):"),
    ("what stays comes first", BACKWARD, "for deeper, part in ((None, f), *f.split()):", "for deeper, part in ((None, f), *(pair[::-1] for pair in f.split())):"),
    ("a rest without its scale", REST, "gamma = affine.scale * np.sqrt(", "gamma = np.sqrt("),
    ("a rest is left where it is as much work", MOVE, "if not is_less or work", "if work"),
    ("halves of float16", MOVE, "half = ground.dtype(x) == ir.DataType.FLOAT16", "half = False"),
    ("a mean far from zero", BOUND, "m, s, b = f.scale * center,", "m, s, b = 0.0 * center,"),
    ("a constant divided by", OWN, 'if node.op_type == "Div" and index == 1:', "if False:"),
)  # fmt: skip

TESTS = ("tests/passes/test_move_affine.py", "tests/passes/test_partial_moves.py")

PROBE = """
import sys
from tests.passes.random_graphs import difference, move_all, random_graph
for seed in range(int(sys.argv[1])):
    proto = random_graph(seed)
    try:
        error = difference(proto, move_all(proto)[0])
    except Exception as problem:
        print(f"caught at seed {seed}: {type(problem).__name__}")
        break
    if not error < 1e-9:
        print(f"caught at seed {seed}: error {error:.1e}")
        break
else:
    print("MISSED")
"""


def tested(folder: str, environment: dict[str, str]) -> str:
    """Return which test of the rules fails in ``folder``; nothing where all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    failed = [line for line in result.stdout.splitlines() if line.startswith("FAILED")]
    return f"caught by {failed[0].split('::')[-1].split(' - ')[0]}" if failed else ""


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("word", nargs="?", default="", help="only mutations whose name contains this")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--graphs", action="store_true", help="by random graphs alone")
    arguments = parser.parse_args()
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "pyproject.toml", folder)
        for part in ("normfuse", "tests"):
            shutil.copytree(ROOT / part, Path(folder) / part, ignore=shutil.ignore_patterns("__pycache__"))
        environment = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        for name, file, old, new in MUTATIONS:
            if arguments.word not in name:
                continue
            path = Path(folder) / file
            text = path.read_text(encoding="utf-8")
            if text.count(old) < 1:
                print(f"{name}: the text to replace is not there")
                missed += 1
                continue
            path.write_text(text.replace(old, new), encoding="utf-8")
            command = [sys.executable, "-c", PROBE, str(arguments.count)]
            verdict = "" if arguments.graphs else tested(folder, environment)
            if not verdict:
                result = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True, check=False
                )
                verdict = result.stdout.strip() or result.stderr.strip()[-200:]
            path.write_text(text, encoding="utf-8")
            missed += "caught" not in verdict
            print(f"{name}: {verdict}", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
