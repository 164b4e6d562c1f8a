"""Merge parallel linear branches of one value that meet in a sum into one Conv (RepVGG, MobileOne, ACNet, Diverse Branch).

``Σ_b (W_b ∗ x + v_b) = (Σ_b W_b) ∗ x + Σ_b v_b`` where every W_b is laid on one grid of taps: kernels of several sizes,
dilations and paddings, the identity, a BatchNormalization of x, an average pooling, a convolution behind a pointwise one.
Summed in float64 and rounded once. Never where the one Conv would take more multiply-adds than the branches did.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from normfuse.affine import Array, ChannelAffine, Float64, FoldError, check_range, conv_outputs, fold_shift
from normfuse.graph.editing import Replacement, initializer, removal_refusal
from normfuse.graph.site import Declined, Reading
from normfuse.passes.branches import Branch, Trace, read_branch, spatial_sizes, traces
from normfuse.passes.linear import Linear, like, read_linear
from normfuse.passes.stencil import Sizes, Stencil, covers, total, total_work
from normfuse.passes.sums import Sum, Term, read_sum
from normfuse.recognise.affine_chain import Norms, per_channel

_LARGEST_LOSS = 2.0
"""How much more rounding a channel may get from a norm whose mean lies far from zero.

The Convs beside it read the same x, and round products of its mean already. The budget of validation is 3 times the error
of the original for an output, 5 for a channel."""


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Branches that one Conv can replace. stencil: their sum. work: its multiply-adds, or those of the one branch."""

    branches: tuple[Branch, ...]
    stencil: Stencil
    work: int

    @property
    def is_merger(self) -> bool:
        """Whether something is gained: at least two branches, of which one is a Conv already."""
        return len(self.branches) > 1 and any(branch.trace.convolutions for branch in self.branches)


@dataclass(frozen=True, slots=True, eq=False)
class Joint:
    """A group as the Conv that takes its place. model: the Conv whose name, metadata and type it carries on."""

    group: Group
    weight: Array
    bias: Array
    model: ir.Node


@dataclass(frozen=True, slots=True, eq=False)
class Merge:
    """A merge that is decided: ``removes`` go; the joints, and the operands that are no part of one, make the sum."""

    summed: Sum
    norms: tuple[ir.Node, ...]
    removes: tuple[ir.Node, ...]
    joints: tuple[Joint, ...]
    rest: tuple[Term, ...]

    @property
    def root(self) -> ir.Node:
        """The node whose output is the sum."""
        return self.summed.root

    @property
    def output(self) -> ir.Value:
        """The value of the sum."""
        return self.root.outputs[0]

    @property
    def into(self) -> ir.Node:
        """A Conv that carries on its name."""
        return self.joints[0].model

    @property
    def note(self) -> str:
        """What was merged, in words."""
        return "; ".join(
            f"{len(joint.group.branches)} branches of '{joint.group.branches[0].trace.source.name}' as one Conv"
            for joint in self.joints
        )

    def replacement(self) -> Replacement:
        """Return the change, ready for the editor."""
        nodes: list[ir.Node] = []
        constants: list[ir.Value] = []
        for joint in self.joints:
            conv, values = _written(joint)
            nodes.append(conv)
            constants.extend(values)
        result = nodes[0].outputs[0]
        others = [(1, conv.outputs[0]) for conv in nodes[1:]] + [(term.sign, term.value) for term in self.rest]
        for sign, operand in others:
            added = ir.Node("", "Add" if sign > 0 else "Sub", [result, operand])
            added.outputs[0].type = self.output.type
            nodes.append(added)
            result = added.outputs[0]
        return Replacement(self.removes, tuple(nodes), ((self.output, result),), tuple(constants))


def _written(joint: Joint) -> tuple[ir.Node, tuple[ir.Value, ...]]:
    """Return the Conv of a joint, reading what its branches read now, and its initializers."""
    weight = joint.model.inputs[1]
    name = f"{weight.name if weight is not None and weight.name else 'weight'}_merged"
    arrays = {name: joint.weight, f"{name}_bias": joint.bias} if joint.bias.any() else {name: joint.weight}
    constants = tuple(
        initializer(key, ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype))) for key, array in arrays.items()
    )
    grids = joint.group.stencil.grids
    axes = {
        "kernel_shape": [grid.kernel for grid in grids],
        "strides": [grid.stride for grid in grids],
        "dilations": [grid.dilation for grid in grids],
        "pads": [*(grid.begin for grid in grids), *(grid.end for grid in grids)],
    }
    attributes: dict[str, ir.Attr] = {key: ir.AttrInt64s(key, values) for key, values in axes.items()}
    attributes["group"] = ir.AttrInt64("group", joint.group.stencil.group)
    node, index = joint.group.branches[0].trace.at
    conv = like(joint.model, "Conv", [node.inputs[index], *constants], attributes)
    conv.outputs[0].type = joint.model.outputs[0].type
    return conv, constants


def merge_branches(graph: Iterable[ir.Node], norms: Norms, reading: Reading) -> list[Merge | Declined]:
    """Decide, for each sum of ``graph``, which of its operands become one Conv. Changes nothing."""
    outcomes: list[Merge | Declined] = []
    for node in graph:
        summed = read_sum(node, reading)
        if summed is not None:
            outcomes.extend(_decide(summed, norms, reading))
    return outcomes


def _decide(summed: Sum, norms: Norms, reading: Reading) -> list[Merge | Declined]:
    members = _common_source(summed, reading)
    readings = [read_linear(trace.convolutions[0], reading) for trace in members.values() if trace.convolutions]
    linear = next((each for each in readings if isinstance(each, Linear)), None)
    if linear is None:
        return [_not_merged(each.at, each.reason) for each in readings if isinstance(each, Declined)]
    branches: dict[Term, Branch] = {}
    declined: list[Merge | Declined] = []
    for term, trace in members.items():
        branch = read_branch(trace, linear.channels, norms, reading)
        if isinstance(branch, Declined):
            declined.append(_not_merged(_norm_of(trace, norms) or branch.at, branch.reason))
        else:
            branches[term] = branch.times(term.sign)
    source = next(iter(members.values())).source
    groups, reasons = gather(list(branches.values()), spatial_sizes(source, linear.channels.rank - 2))
    for branch, reason in reasons.items():
        at = _norm_of(branch.trace, norms) or next(iter(branch.trace.nodes), summed.root)
        declined.append(_not_merged(at, reason))
    mergers = [group for group in groups if group.is_merger]
    if not mergers:
        return declined
    taken = {branch for group in mergers for branch in group.branches}
    others = [term for term in summed.terms if branches.get(term) not in taken]
    shift, rest = _constant_part(others, linear, reading)
    try:
        # What is added once goes into the first of them.
        joints = [
            _joint(mergers[0], shift, linear),
            *(_joint(group, np.zeros_like(shift), linear) for group in mergers[1:]),
        ]
    except FoldError as error:
        return [*declined, Declined(f"its branches are not merged: {error}", summed.root)]
    nodes = [node for group in mergers for branch in group.branches for node in branch.trace.nodes]
    merge = Merge(summed, tuple(node for node in nodes if node in norms), (*nodes, *summed.nodes), tuple(joints), rest)
    objection = removal_refusal(merge.removes, {merge.output})
    return [*declined, merge if objection is None else objection]


def _common_source(summed: Sum, reading: Reading) -> dict[Term, Trace]:
    """Return the operands that come linearly from one value, that from which most do, a Conv among them."""
    by_source: dict[ir.Value, dict[Term, Trace]] = {}
    for term in summed.terms:
        for trace in traces((term.node, term.index), reading):
            by_source.setdefault(trace.source, {})[term] = trace
    with_conv = [members for members in by_source.values() if any(trace.convolutions for trace in members.values())]
    largest = max(with_conv, key=len, default={})
    return largest if len(largest) > 1 else {}


def _norm_of(trace: Trace, norms: Norms) -> ir.Node | None:
    return next((node for node in trace.nodes if node in norms), None)


def _not_merged(at: ir.Node, reason: str) -> Declined:
    return Declined(f"not merged with the branches beside it: {reason}", at)


def gather(branches: list[Branch], sizes: Sizes) -> tuple[list[Group], dict[Branch, str]]:
    """Put branches together where one Conv does their work; return the groups, and why some branches stay alone.

    From the largest kernel to the smallest, a norm whose mean lies far away last, each joins the first group whose Conv,
    with it, takes no more multiply-adds than the group and the branch do apart, the addition between them included.
    """
    groups: list[Group] = []
    obstacles: dict[Branch, str] = {}
    for branch in sorted(branches, key=lambda each: (each.far is None, each.stencil.work), reverse=True):
        for index, group in enumerate(groups):
            try:
                groups[index] = _joined(group, branch, sizes)
                break
            except FoldError as error:
                obstacles.setdefault(branch, str(error))
        else:
            groups.append(Group((branch,), branch.stencil, branch.work))
    alone = {group.branches[0] for group in groups if len(group.branches) == 1}
    return groups, {branch: reason for branch, reason in obstacles.items() if branch in alone}


def _joined(group: Group, branch: Branch, sizes: Sizes) -> Group:
    """Return ``group`` with ``branch``.

    Raises FoldError where they make no Conv, one that takes more work, or one that loses too much accuracy.
    """
    work = total_work(group.stencil, branch.stencil, sizes)
    apart = group.work + branch.work + branch.stencil.outputs
    if work > apart:
        raise FoldError(f"one Conv would take {work} multiply-adds a position, apart they take {apart}")
    whole = total(group.stencil, branch.stencil, sizes)
    if not covers(whole, group.stencil, branch.stencil):
        raise FoldError("one Conv would read what neither of them reads")
    if branch.far is not None:
        before = group.stencil.rounding(branch.far.moment) + branch.far.error
        if (whole.rounding(branch.far.moment) > _LARGEST_LOSS**2 * before).any():
            raise FoldError(branch.far.reason)
    return Group((*group.branches, branch), whole, work)


def _constant_part(terms: list[Term], linear: Linear, reading: Reading) -> tuple[Float64, tuple[Term, ...]]:
    """Return the sum of the operands that are one constant per channel, and the other operands."""
    shift, rest = np.zeros(linear.channels.count), []
    for term in terms:
        row = per_channel(term.node, term.value, linear.channels, reading, is_second=term.index == 1)
        if row is None:
            rest.append(term)
        else:
            shift = shift + term.sign * row
    return shift, tuple(rest)


def _joint(group: Group, shift: Float64, linear: Linear) -> Joint:
    """Return ``group`` and ``shift`` as one Conv, rounded to the type of ``linear``. Raises FoldError by its range."""
    weight, dtype = group.stencil.weight, linear.weight.dtype
    whole = ChannelAffine(np.ones(shift.size), group.stencil.bias + shift)
    check_range(weight, whole, conv_outputs(weight.shape), dtype)
    model = next(branch.trace.convolutions[0] for branch in group.branches if branch.trace.convolutions)
    return Joint(group, np.asarray(weight.astype(dtype)), fold_shift(None, whole, dtype), model)
