"""Random sums of parallel branches: convolutions of every geometry, poolings, norms, the value itself, constants."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from tests.folding import Array, build


def point(rank: int) -> tuple[list[int], list[int], list[int]]:
    """Kernel, dilations and pads of a pointwise convolution."""
    return [1] * rank, [1] * rank, [0] * 2 * rank


@dataclass
class Writer:
    """Writes one graph as text; ``draw(n)`` returns a number below n."""

    random: np.random.Generator
    rank: int
    channels: int
    stride: int
    lines: list[str]
    arrays: dict[str, Array]

    def draw(self, count: int) -> int:
        return int(self.random.integers(count))

    def name(self, prefix: str) -> str:
        return f"{prefix}{len(self.lines)}_{len(self.arrays)}"

    def constant(self, *shape: int) -> str:
        name = self.name("w")
        self.arrays[name] = np.asarray(self.random.normal(size=shape), np.float32)
        return name

    def node(self, op_type: str, inputs: list[str], attributes: str = "") -> str:
        name = self.name("v")
        brackets = f" <{attributes}>" if attributes else ""
        self.lines.append(f"{name} = {op_type}{brackets} ({', '.join(inputs)})")
        return name

    def conv(self, x: str, inputs: int, outputs: int, grid: tuple[list[int], list[int], list[int]], stride: int) -> str:
        """Write a Conv: kernel, dilations and pads are given, groups and bias are drawn."""
        kernel, dilations, pads = grid
        groups = [g for g in (1, 2, 4) if inputs % g == 0 and outputs % g == 0]
        group = groups[self.draw(len(groups))]
        operands = [x, self.constant(outputs, inputs // group, *kernel)]
        if self.draw(2):
            operands.append(self.constant(outputs))
        text = f"strides = {[stride] * self.rank}, dilations = {dilations}, pads = {pads}, group = {group}"
        return self.node("Conv", operands, text)

    def pad(self, x: str, pads: list[int]) -> str:
        """Write a Pad of the spatial axes, with zeros or now and then with another value."""
        amounts = self.name("w")
        self.arrays[amounts] = np.array([0, 0, *pads[: self.rank], 0, 0, *pads[self.rank :]])
        operands = [x, amounts]
        if self.draw(3) == 0:
            operands.append(self.constant())
        return self.node("Pad", operands)

    def norm(self, x: str) -> str:
        operands = [x, *(self.constant(self.channels) for _ in range(3))]
        variance = self.name("w")
        self.arrays[variance] = self.random.uniform(0.5, 2.0, self.channels).astype(np.float32)
        return self.node("BatchNormalization", [*operands, variance])

    def grid(self, slack: int) -> tuple[list[int], list[int], list[int]]:
        """Draw kernel, dilations and pads; the pads of each axis leave ``slack``, split at random, if they can."""
        kernel = [1 + self.draw(4) for _ in range(self.rank)]
        dilations = [1 + self.draw(2) if k > 1 else 1 for k in kernel]
        both = [max(0, d * (k - 1) + slack) for k, d in zip(kernel, dilations, strict=True)]
        begins = [self.draw(total + 1) for total in both]
        return kernel, dilations, begins + [total - begin for total, begin in zip(both, begins, strict=True)]

    def branch(self, slack: int) -> str:
        """Write one branch of x; its output has the size of the others, as far as a branch of its kind can."""
        channels, stride, kind = self.channels, self.stride, self.draw(9)
        if kind == 0 and stride == 1:
            return "x"
        if kind == 1 and stride == 1:
            return self.norm("x")
        if kind == 2:
            kernel, _, pads = self.grid(slack)
            text = f"kernel_shape = {kernel}, pads = {pads}, strides = {[stride] * self.rank}"
            small = all(max(a, b) < k for a, b, k in zip(pads, pads[self.rank :], kernel, strict=False))
            return (
                self.node("AveragePool", ["x"], f"{text}, count_include_pad = {self.draw(4) and 1}") if small else "x"
            )
        if kind == 3:
            middle = self.conv("x", channels, channels, point(self.rank), 1)
            return self.conv(middle, channels, channels, self.grid(slack), stride)
        if kind == 4:
            middle = self.conv("x", channels, channels, self.grid(slack), 1)
            return self.conv(middle, channels, channels, point(self.rank), stride)
        if kind == 5 and self.rank == 2:
            weight = self.constant(channels, channels, 1 + self.draw(3), 1 + self.draw(3))
            pad = ("SAME_UPPER", "SAME_LOWER")[self.draw(2)]
            return self.node("Conv", ["x", weight], f'auto_pad = "{pad}", strides = {[stride] * self.rank}')
        if kind == 6:
            kernel, dilations, pads = self.grid(slack)
            outside = [self.draw(pad + 1) for pad in pads]
            framed = self.pad(self.conv("x", channels, channels, point(self.rank), 1) if self.draw(2) else "x", outside)
            inside = [pad - out for pad, out in zip(pads, outside, strict=True)]
            return self.conv(framed, channels, channels, (kernel, dilations, inside), stride)
        result = self.conv("x", channels, channels, self.grid(slack), stride)
        return self.norm(result) if self.draw(2) else result


def random_branches(seed: int) -> onnx.ModelProto:
    """Return a model whose output is a random sum of two to five branches, with a constant or a norm now and then."""
    random = np.random.default_rng(seed)
    rank = int(random.choice([1, 2, 2, 2, 3]))
    writer = Writer(random, rank, int(random.choice([2, 4])), int(random.choice([1, 1, 1, 2])), [], {})
    slack = writer.draw(3) - 1 if writer.draw(3) == 0 else 0
    total = writer.branch(slack)
    for _ in range(1 + writer.draw(4)):
        operands = [total, writer.branch(slack)]
        total = writer.node(("Add", "Add", "Sub")[writer.draw(3)], operands[:: 1 if writer.draw(2) else -1])
        if writer.draw(4) == 0:
            total = writer.node("Add", [total, writer.constant(writer.channels, *[1] * rank)])
        if writer.draw(5) == 0:
            total = writer.norm(total)
    size = {1: "17", 2: "9,8", 3: "6,5,7"}[rank]
    head = f"g (float[2,{writer.channels},{size}] x) => (float[{','.join('abcde'[: rank + 2])}] y)"
    return build(f"{head} {{ {' '.join(writer.lines)} y = Relu ({total}) }}", writer.arrays)
