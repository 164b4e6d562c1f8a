"""Elementary operators that onnxruntime fuses when it loads the model: for norms whose opset has no operator.

``Pow · ReduceMean · Add · Sqrt · Div · Mul`` of the last axis becomes SimplifiedLayerNormalization, and with
``ReduceMean · Sub`` before it and ``Add`` behind LayerNormalization: the kernels of the operators that came with opset 23
and 17, from a model that every runtime reads and onnx.checker knows. Mul for the square, Reciprocal for the root and a
missing γ are not fused. Nor is float64; and a LayerNormalization of what a Cast made is fused into a model that does not
load. Measured: onnxruntime 1.32, CPU, opsets 7 to 22. Source: core/optimizer/layer_norm_fusion.cc.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from normfuse.emit.primitive import emit_primitive
from normfuse.emit.writing import HALVES, output_type, type_of, wide_type
from normfuse.graph.editing import Replacement
from normfuse.graph.reading import is_op
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import AffineAxes, Trailing

_FUSED = (
    Counter("Pow ReduceMean Add Sqrt Div Mul".split()),
    Counter("ReduceMean Sub Pow ReduceMean Add Sqrt Div Mul Add".split()),
)


def is_fusible(site: NormSite, opset: int) -> bool:
    """Whether ``site`` is of a kind that is fused, and older than its operator: from then on ``opset`` says it in one."""
    spec, operands, own = site.spec, site.operands, type_of(site)
    if site.extra_outputs or opset >= (17 if spec.centred else 23):
        return False
    if spec.statistics != Trailing((-1,)) or spec.affine.axes is not AffineAxes.NORMALISED or operands.scale is None:
        return False
    if any(value is not None and not _is_vector(value) for value in (operands.scale, operands.bias)):
        return False
    if not spec.centred:
        return operands.bias is None and wide_type(site) == ir.DataType.FLOAT
    exact = own == output_type(site) == wide_type(site) == ir.DataType.FLOAT
    return exact and operands.bias is not None and not _is_cast(operands.x)


def is_fused(site: NormSite) -> bool:
    """Whether ``site`` is written in the operators that are fused; half types between Casts."""
    operators = Counter(node.op_type for node in site.interior)
    casts = operators.pop("Cast", 0)
    return operators in _FUSED and (casts > 0 or type_of(site) not in HALVES)


def emit_fusible(site: NormSite, reading: Reading, opset: int) -> Replacement | Declined:
    """Write ``site``, of which :func:`is_fusible` holds, in the operators that are fused."""
    return emit_primitive(site, reading, opset, squares_by_power=True)


def _is_cast(x: ir.Value) -> bool:
    """Whether a Cast made x; onnxruntime takes Identity and Dropout away before it fuses."""
    node = x.producer()
    while node is not None and is_op(node, "Identity", "Dropout") and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return is_op(node, "Cast")


def _is_vector(value: ir.Value) -> bool:
    return value.shape is not None and value.shape.rank() == 1
