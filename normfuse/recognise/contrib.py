"""The norms of other operator domains: onnxruntime's own, and plugins that are known by name.

Source: onnxruntime docs/ContribOperators.md and onnxruntime/core/graph/contrib_ops (1.32).
"""

from __future__ import annotations

import onnx_ir as ir

from normfuse.graph.reading import input_at
from normfuse.graph.site import Declined, NormSite, Operands, Reading
from normfuse.recognise.standard import epsilon, extra_outputs, trailing_norm, unreadable
from normfuse.spec import Activation, AffineAxes, AffineLayout, NormSpec, PerGroup, Trailing

_MICROSOFT = "com.microsoft"
_SKIP_EPSILON = 1e-12
"""The default of the Skip operators (contrib_ops/bert_defs.cc)."""


def simplified_layer_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """SimplifiedLayerNormalization: RMS norm. onnxruntime writes it in the default domain, where no standard has it."""
    if node.op_type != "SimplifiedLayerNormalization" or node.domain not in ("", "ai.onnx", _MICROSOFT):
        return None
    return trailing_norm(node, reading, centred=False)


def skip_layer_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """SkipLayerNormalization: layer norm of ``input + skip + bias`` along the last axis.

    Inputs (input, skip, gamma[, beta[, bias]]); outputs (output, mean, inv_std_var, input_skip_bias_sum).
    """
    if node.op_type != "SkipLayerNormalization" or node.domain != _MICROSOFT:
        return None
    return _skip_norm(node, centred=True, bias=input_at(node, 3), residual_bias=input_at(node, 4))


def skip_simplified_layer_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """SkipSimplifiedLayerNormalization: RMS norm of ``input + skip + bias``; inputs (input, skip, gamma[, bias])."""
    if node.op_type != "SkipSimplifiedLayerNormalization" or node.domain != _MICROSOFT:
        return None
    return _skip_norm(node, centred=False, bias=None, residual_bias=input_at(node, 3))


def _skip_norm(
    node: ir.Node, *, centred: bool, bias: ir.Value | None, residual_bias: ir.Value | None
) -> NormSite | Declined:
    objection = unreadable(node, inputs=3)
    if objection is not None:
        return objection
    x, residual, scale = node.inputs[:3]
    assert x is not None
    spec = NormSpec(
        Trailing((-1,)),
        epsilon(node, _SKIP_EPSILON),
        centred=centred,
        affine=AffineLayout(True, bias is not None, AffineAxes.NORMALISED),
    )
    operands = Operands(x, scale, bias, residual=residual, residual_bias=residual_bias)
    return NormSite(spec, operands, f"{_MICROSOFT}.{node.op_type}", node, (node,), extra_outputs(node))


def microsoft_group_norm(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """com.microsoft.GroupNorm and SkipGroupNorm: x (N, H, W, C), gamma and beta (C); SiLU where ``activation`` is 1.

    SkipGroupNorm: inputs (X, gamma, beta, skip[, bias]); outputs (Y, S) with S = X + skip + bias.
    """
    if node.op_type not in ("GroupNorm", "SkipGroupNorm") or node.domain != _MICROSOFT:
        return None
    skips = node.op_type == "SkipGroupNorm"
    objection = unreadable(node, inputs=4 if skips else 3)
    if objection is not None:
        return objection
    groups = node.attributes.get_int("groups", 0)
    if groups < 1:
        return Declined(f"groups must be positive; it is {groups}", node)
    activation = node.attributes.get_int("activation", 0)
    if activation not in (0, 1):
        return Declined(f"activation {activation} is unknown: onnxruntime defines 0, none, and 1, SiLU", node)
    residual = input_at(node, 3) if skips else None
    if residual is not None and (residual.shape is None or residual.shape.rank() != 4):
        # skip may also be (N, C) or (N, 1, 1, C), of which only the latter adds as ONNX broadcasts.
        return Declined(f"the rank of skip '{residual.name}' is not known to be 4", node)
    x, scale, bias = node.inputs[:3]
    assert x is not None
    spec = NormSpec(
        PerGroup(groups),
        epsilon(node),
        affine=AffineLayout(True, True),
        channel_axis=-1 if node.attributes.get_int("channels_last", 1) == 1 else 1,
        activation=Activation.SILU if activation == 1 else Activation.NONE,
    )
    operands = Operands(x, scale, bias, residual=residual, residual_bias=input_at(node, 4) if skips else None)
    return NormSite(spec, operands, f"{_MICROSOFT}.{node.op_type}", node, (node,), extra_outputs(node))


def known_by_name(node: ir.Node, reading: Reading) -> NormSite | Declined | None:
    """Norms of domains that no runtime here runs: always declined, never guessed."""
    name = node.op_type
    if node.domain == "org.pytorch.aten" and name == "ATen":
        attribute = node.attributes.get("operator")
        operator = "" if attribute is None or attribute.is_ref() else attribute.as_string()
        if operator not in _ATEN:
            return None
        name = f"ATen {operator}"
    elif node.domain == _MICROSOFT and name == "EmbedLayerNormalization":
        return Declined(f"{name} of domain {node.domain} is recognised by name only: it is an embedding too", node)
    elif (node.domain, name) not in _NAMES:
        return None
    return Declined(f"{name} of domain {node.domain} is recognised by name only: no runtime here runs it", node)


_ATEN = frozenset(
    {"batch_norm", "cudnn_batch_norm", "instance_norm", "group_norm", "layer_norm", "native_layer_norm", "rms_norm"}
)

_NAMES = frozenset(
    {
        ("org.pytorch._caffe2", "GroupNorm"),
        ("trt.plugins", "InstanceNormalization_TRT"),
        ("trt.plugins", "GroupNormalizationPlugin"),
        ("trt.plugins", "LayerNorm"),
        ("trt.plugins", "RMSNorm"),
        (_MICROSOFT, "QOrderedLayerNormalization"),
    }
)
