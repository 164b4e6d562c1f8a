"""What torch's exporter leaves behind, removed: after this, a graph reads as the module was written.

Two steps: :func:`clean` works on the graph at the opset torch wrote; :func:`conclude` brings it to the opset asked
for and lets onnx's checker see it. Nothing here touches a norm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxscript.optimizer

from normfuse.errors import ExportError, UnsupportedForm
from normfuse.export import naming
from normfuse.passes.convert_opset import convert_opset

# Larger constants are folded only by the operators of FOLDED_WHEN_LARGE, which reparametrise a weight (weight norm,
# weight standardisation): without that, no norm behind it could be folded into the weight.
SMALL = 8192
FOLDED_WHEN_LARGE = frozenset(
    (
        *("Add", "Div", "Mul", "Pow", "Reciprocal", "Sqrt", "Sub", "BatchNormalization"),
        *("ReduceL2", "ReduceMean", "ReduceSum", "Expand", "Reshape", "Unsqueeze"),
    )
)
# A constant that is one number repeated is written out up to here: γ and β of a norm, not a feature map.
WRITTEN_OUT = 65536
_UNLIMITED = 1 << 40
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_CONVOLUTIONS = ("Conv", "ConvTranspose")


def clean(model: ir.Model) -> ir.Model:
    """Return ``model`` with its constants folded, lifted, named and owned, and without torch's oddities, in place."""
    common.InlinePass()(model)
    common.RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    naming.name_derived_weights(model.graph)
    _fold(model)
    if _resolve_casts(model):
        _fold(model)
    _shorten_scales(model.graph)
    _write_out_repeated(model.graph)
    _drop_zero_biases(model.graph)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    common.RemoveUnusedNodesPass()(model)
    common.RemoveUnusedOpsetsPass()(model)
    _separate_outputs(model)
    common.NameFixPass()(model)
    naming.name_constants(model)
    _own_tensors(model.graph)
    naming.trim_metadata(model)
    return model


def conclude(model: ir.Model, opset: int) -> ir.Model:
    """Return ``model`` at ``opset``, in the IR version that goes with it, known to be valid.

    Raises ExportError when the model cannot be written at ``opset`` or onnx's checker finds it invalid.
    """
    written = model.opset_imports.setdefault("", opset)
    if written == 18 and opset == 17:
        try:
            convert_opset(model, opset)
        except UnsupportedForm as error:
            raise ExportError(str(error)) from None
    elif written != opset:
        # torch's converter reports a failure only to its log, and leaves the model as it was.
        raise ExportError(
            f"torch wrote opset {written} where {opset} was asked for; it has no conversion for this module"
        )
    identifiers = [onnx.helper.make_opsetid("", opset)]
    model.ir_version = onnx.helper.find_min_ir_version_for(identifiers)
    try:
        common.CheckerPass(full_check=True)(model)
    except Exception as error:
        cause = next((line.strip() for line in str(error.__cause__ or error).splitlines() if line.strip()), "")
        raise ExportError(f"torch wrote an invalid model at opset {opset}: {cause}") from error
    return model


def _fold(model: ir.Model) -> None:
    onnxscript.optimizer.fold_constants(
        model, input_size_limit=SMALL, output_size_limit=_UNLIMITED, should_fold=_should_fold
    )


def _should_fold(node: ir.Node) -> bool | None:
    """Return True to fold a large constant, False to keep a node, None for onnxscript's rule (inputs up to SMALL)."""
    sizes = [tensor.size for value in node.inputs if value is not None and (tensor := value.const_value) is not None]
    produced = _size_of_result(node)
    if produced is not None and produced > max(512 * 512, sum(sizes)):
        return False
    if max(sizes, default=0) <= SMALL or node.op_type not in FOLDED_WHEN_LARGE:
        return None
    # NumPy would sum thousands of squares in half precision, which no runtime does.
    return not any(value is not None and value.dtype in _HALF for value in node.inputs)


def _size_of_result(node: ir.Node) -> int | None:
    """Return the number of elements of the first output, None where it is not known before running."""
    shape = node.outputs[0].shape
    if shape is not None and shape.is_static():
        return math.prod(shape.numpy())
    if node.op_type == "Expand" and (target := _constant(node.inputs[1])) is not None:
        return int(np.prod(target.numpy()))
    return None


def _resolve_casts(model: ir.Model) -> bool:
    """Turn every CastLike into a Cast, or into nothing where the types agree already; return whether there was one."""
    found = [node for node in model.graph if node.op_type == "CastLike" and node.domain == ""]
    if not found:
        return False
    if any(_type(node.inputs[index]) is None for node in found for index in (0, 1)):
        common.ShapeInferencePass()(model)
    for node in found:
        x, like = node.inputs[0], node.inputs[1]
        target = _type(like)
        if x is None or target is None or node.outputs[0].is_graph_output():
            continue
        if _type(x) == target:
            ir.convenience.replace_all_uses_with(node.outputs[0], x)
            model.graph.remove(node, safe=True)
            continue
        cast = ir.node("Cast", [x], {"to": int(target)}, name=node.name)
        cast.outputs[0].name, cast.outputs[0].type = node.outputs[0].name, ir.TensorType(target)
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [cast], node.outputs, cast.outputs)
    return True


def _type(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


def _shorten_scales(graph: ir.Graph) -> None:
    """Give RMSNormalization without weight a scale of the normalised axes; torch writes ones in the shape of x."""
    for node in graph:
        if node.op_type != "RMSNormalization":
            continue
        x, scale = node.inputs[0], node.inputs[1]
        maker = scale.producer() if scale is not None else None
        if x is None or x.shape is None or maker is None or maker.op_type != "ConstantOfShape":
            continue
        sizes = [size for size in x.shape[node.attributes.get_int("axis", -1) :] if isinstance(size, int)]
        if len(sizes) != -node.attributes.get_int("axis", -1):
            continue
        node.replace_input_with(1, _initializer(graph, f"{node.name}.scale", _filled(maker, sizes)))


def _write_out_repeated(graph: ir.Graph) -> None:
    """Replace ConstantOfShape of a constant shape by an initializer: γ, β of a norm without affine."""
    for node in [node for node in graph if node.op_type == "ConstantOfShape"]:
        shape, output = _constant(node.inputs[0]), node.outputs[0]
        if shape is None or output.is_graph_output() or np.prod(shape.numpy()) > WRITTEN_OUT:
            continue
        array = _filled(node, [int(size) for size in shape.numpy()])
        value = _initializer(graph, f"{output.name}.written_out", array)
        ir.convenience.replace_all_uses_with(output, value)
        graph.remove(node, safe=True)


def _filled(node: ir.Node, sizes: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return the one value that a ConstantOfShape repeats, in the shape ``sizes``; it repeats float32 0 by default."""
    attribute = node.attributes.get("value")
    value = np.zeros(1, dtype=np.float32) if attribute is None else attribute.as_tensor().numpy()
    return np.broadcast_to(value.reshape(()), tuple(sizes))


def _initializer(graph: ir.Graph, name: str, array: np.ndarray[Any, Any]) -> ir.Value:
    value = ir.val(name, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value


def _constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    return None if value is None else ir.convenience.get_const_tensor(value)


def _drop_zero_biases(graph: ir.Graph) -> None:
    """Remove the zeros that torch gives a convolution without bias; Conv3d gets them as [C, 2]."""
    for node in graph:
        if node.op_type not in _CONVOLUTIONS or len(node.inputs) < 3:
            continue
        bias = node.inputs[2]
        if bias is not None and _is_zero(bias) and not _is_parameter(bias):
            node.resize_inputs(2)


def _is_zero(value: ir.Value) -> bool:
    maker = value.producer()
    if maker is not None and maker.op_type in ("Expand", "CastLike", "Cast") and maker.inputs[0] is not None:
        return _is_zero(maker.inputs[0])
    tensor = _constant(value)
    return tensor is not None and not np.any(tensor.numpy())


def _is_parameter(value: ir.Value) -> bool:
    """A parameter of the module that happens to be zero is the user's own."""
    return "pkg.torch.onnx.original_node_name" in value.metadata_props


def _separate_outputs(model: ir.Model) -> None:
    """Put an Identity before every output that is an input or another output, and keep the inputs' names."""
    names = [value.name for value in model.graph.inputs]
    common.OutputFixPass()(model)
    for value, name in zip(model.graph.inputs, names, strict=True):
        if value.name == name:
            continue
        for output in model.graph.outputs:
            if output.name == name:
                output.name = f"{name}.output"
        value.name = name


def _own_tensors(graph: ir.Graph) -> None:
    """Copy every initializer, so that training the module on does not change the exported model."""
    for value in graph.initializers.values():
        tensor = value.const_value
        if tensor is None:
            continue
        array = np.array(tensor.numpy(), copy=True, order="C")
        value.const_value = ir.Tensor(array, dtype=tensor.dtype, shape=ir.Shape(array.shape), name=value.name)
