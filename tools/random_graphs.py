"""Move affine maps in random graphs and compare with the float64 oracle.

    python tools/random_graphs.py --count 2000 [--first 0]

Prints how many graphs absorbed something, how often each rule fired, and the seeds of graphs that went wrong.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    """Parse the command line and run."""
    from tests.passes.random_graphs import count_rules, difference, move_all, random_graph

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    fired: Counter[str] = Counter()
    absorbed, wrong, norms, left = 0, [], 0, 0
    began = time.perf_counter()
    for seed in range(arguments.first, arguments.first + arguments.count):
        proto = random_graph(seed)
        model, moves, _ = move_all(proto)
        norms += sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
        left += sum(node.op_type == "BatchNormalization" for node in model.graph)
        absorbed += bool(moves)
        fired.update(count_rules(moves).keys())
        error = difference(proto, model)
        if not error < 1e-9:
            wrong.append((seed, error))
    seconds = time.perf_counter() - began
    print(f"{arguments.count} graphs in {seconds:.0f} s, {absorbed} absorbed something; {norms} norms, {left} left")
    for name, count in sorted(fired.items()):
        print(f"{count:6} {name}")
    print("wrong:", wrong or "none")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
