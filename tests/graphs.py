"""Building and running the small models that the tests are about."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime

from normfuse.graph.channels import Ranks
from normfuse.graph.constants import Constants
from normfuse.graph.reading import bodies
from normfuse.graph.site import Reading

Array = npt.NDArray[np.generic]


def model_of(text: str) -> ir.Model:
    """Return the model that ``text`` states in ONNX's textual syntax, shapes inferred."""
    proto = onnx.parser.parse_model(text)
    return ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))


def reading_of(model: ir.Model, *, lift_flagged: bool = False) -> Reading:
    """Return what a recogniser knows of the main graph of ``model``."""
    constants = Constants(model)
    (_, opset), *_ = bodies(model)
    return Reading(opset, constants, Ranks(constants), lift_flagged)


def node_types(model: ir.Model) -> list[str]:
    """Return the operators of the main graph in order."""
    return [node.op_type for node in model.graph]


def run(model: ir.Model, feeds: Mapping[str, Array]) -> list[npt.NDArray[Any]]:
    """Return the outputs of ``model`` on onnxruntime's CPU, with its optimizer off: the graph as it is written."""
    return list(_session(model).run(None, dict(feeds)))


def is_runnable(model: ir.Model) -> bool:
    """Whether onnxruntime's CPU has a kernel for every node of ``model``."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    try:
        _session(model)
    except state.NotImplemented:
        return False
    except state.InvalidGraph as error:
        if "Type Error" not in str(error):
            raise
        return False  # its own operators do not even admit a type that no provider has
    return True


def _session(model: ir.Model) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    content = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
