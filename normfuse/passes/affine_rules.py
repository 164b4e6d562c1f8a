"""The table: what an affine map may pass, one rule per operator."""

from __future__ import annotations

from collections.abc import Mapping

from normfuse.passes.affine_passing import Rule
from normfuse.passes.affine_rules_places import concat, depth_to_space, gather, reshape, slice_, split, transpose
from normfuse.passes.affine_rules_values import (
    average_pool,
    cast,
    global_average,
    maximum,
    mean,
    pad,
    prelu,
    rectifier,
    resize,
    unchanged,
)

RULES: Mapping[str, Rule] = {
    "Identity": unchanged,
    "Dropout": unchanged,
    "Cast": cast,
    "Relu": rectifier,
    "LeakyRelu": rectifier,
    "PRelu": prelu,
    "AveragePool": average_pool,
    "GlobalAveragePool": global_average,
    "MaxPool": maximum,
    "GlobalMaxPool": maximum,
    "ReduceMean": mean,
    "Transpose": transpose,
    "Reshape": reshape,
    "Flatten": reshape,
    "Squeeze": reshape,
    "Unsqueeze": reshape,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": depth_to_space,
    "Resize": resize,
    "Upsample": resize,
    "Pad": pad,
}
"""Add and Sub, whose shift may go into either operand, have a file of their own in each direction."""
