"""From one version of an operator to another, boundary by boundary."""

from __future__ import annotations

from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, Result, operation_of
from normfuse.passes.opset.rules import LOWERING, MISSING, RAISING
from normfuse.passes.opset.schema import fitted, lowered, raised, schema_at, versions


def convert(context: Context) -> Result:
    """Return what the node of ``context`` does, in the target opset. Raises NoEquivalent."""
    operation = operation_of(context.node)
    source = max((version for version in versions(operation.op_type) if version <= context.source), default=None)
    if source is None:
        # Newer than the opset that it stands in, as onnxruntime writes LayerNormalization: read as its first version.
        source = min(versions(operation.op_type))
    result = (_raise if source <= context.opset else _lower)(operation, source, context)
    if not isinstance(result, Operation):
        return result
    schema = schema_at(result.op_type, context.opset)
    if schema is None:
        raise NoEquivalent("")
    return fitted(result, schema, context)


def _raise(operation: Operation, version: int, context: Context) -> Result:
    while True:
        later = [other for other in versions(operation.op_type) if version < other <= context.opset]
        if not later:
            return operation
        version = min(later)
        rule = RAISING.get((operation.op_type, version))
        if rule is not None:
            result = rule(operation, context)
            if not isinstance(result, Operation):
                return result
            operation = result
        schema = schema_at(operation.op_type, version)
        assert schema is not None
        operation = raised(operation, schema)


def _lower(operation: Operation, version: int, context: Context) -> Result:
    while version > context.opset:
        rule = LOWERING.get((operation.op_type, version))
        earlier = [other for other in versions(operation.op_type) if other < version]
        if rule is None and not earlier:
            rule = MISSING.get(operation.op_type)
            if rule is None:
                raise NoEquivalent("")
        if rule is not None:
            name = operation.op_type
            result = rule(operation, context)
            if not isinstance(result, Operation):
                return result
            operation = result
            if operation.op_type != name:
                earlier = [other for other in versions(operation.op_type) if other < version]
        newer, older = schema_at(operation.op_type, version), schema_at(operation.op_type, max(earlier))
        assert newer is not None
        assert older is not None
        operation = lowered(operation, newer, older)
        version = max(earlier)
    return operation
