"""ATen operators whose translation by torch hides a norm, translated as what they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import opset18 as op


def instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Return ``(x − μ) / sqrt(σ² + eps) · weight + bias``, per (sample, channel) or, where μ and σ² run, per channel.

    x: (N, C, *spatial). With running statistics this is inference batch norm, and is written so; torch reshapes x to
    (1, N·C, *spatial) and repeats the statistics N times, which ties the graph to a batch size or computes the
    repetition.
    """
    channels = op.Shape(x, start=1, end=2)
    one: Any = op.Constant(value_float=1.0)
    zero: Any = op.Constant(value_float=0.0)
    weight = op.Expand(op.CastLike(one, x), channels) if weight is None else weight
    bias = op.Expand(op.CastLike(zero, x), channels) if bias is None else bias
    if use_input_stats or running_mean is None:
        return op.InstanceNormalization(x, weight, bias, epsilon=eps)
    return op.BatchNormalization(x, weight, bias, running_mean, running_var, epsilon=eps)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return our translations in the form of torch.onnx.export's ``custom_translation_table``."""
    return {torch.ops.aten.instance_norm.default: instance_norm}
