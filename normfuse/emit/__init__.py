"""Emitters: from a NormSite to the nodes of one form; one emitter a form."""

from __future__ import annotations

from collections.abc import Callable

from normfuse.emit.primitive import emit_primitive
from normfuse.emit.standard import emit_standard, operator_of, takes_reshapes
from normfuse.emit.target import Form
from normfuse.graph.editing import Replacement
from normfuse.graph.reading import is_standard
from normfuse.graph.site import Declined, NormSite, Reading
from normfuse.spec import Activation

Emitter = Callable[[NormSite, Reading, int], Replacement | Declined]

EMITTERS: dict[Form, Emitter] = {
    Form.STANDARD: emit_standard,
    Form.PRIMITIVE: emit_primitive,
}


def emit(site: NormSite, form: Form, reading: Reading, opset: int) -> Replacement | Declined:
    """Return ``site`` written anew in ``form`` with the operators of ``opset``; decides, changes nothing.

    The new nodes already count as readers of their operands: apply the replacement, or take it back with
    :func:`normfuse.emit.writing.detach`. Raises KeyError for a form that has no emitter (AUTO).
    """
    return EMITTERS[form](site, reading, opset)


def is_written(site: NormSite, form: Form, opset: int) -> bool:
    """Whether ``site`` is already in ``form``, so that emitting it again would only change names."""
    if form is Form.AUTO:
        return True
    if form is not Form.STANDARD or site.spec.activation is not Activation.NONE or site.operands.residual is not None:
        return False
    if not all(is_standard(node) for node in site.interior):
        return False
    root, operators = site.root, {node.op_type for node in site.interior}
    if "Reshape" in operators:
        return operator_of(site, opset) == "InstanceNormalization" and takes_reshapes(site)
    if root.op_type == "GroupNormalization":
        return opset >= 21  # also with as many groups as channels: an InstanceNormalization is no gain
    if root.op_type == "BatchNormalization" and (
        root.attributes.get_int("training_mode", 0) == 1 or len(root.outputs) > 1
    ):
        return False  # read as inference because asked to: it is written as inference
    return root.op_type == operator_of(site, opset)
