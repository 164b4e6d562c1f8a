"""What onnx says of an operator at a version: signature and types; and the steps that need no rule of their own.

Most versions only widened types or changed words. Going up, a node that uses nothing that is gone stays. Going down, an
attribute that says what the older version did anyway is dropped; an input that it lacks must be absent.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence

import onnx
import onnx.defs
import onnx_ir as ir

from normfuse.passes.opset.operation import Context, NoEquivalent, Operation, operation_of

Schema = onnx.defs.OpSchema

_EXACT_IN: dict[ir.DataType, tuple[ir.DataType, ...]] = {
    ir.DataType.BOOL: (ir.DataType.UINT8, ir.DataType.INT32, ir.DataType.INT64),
    ir.DataType.UINT8: (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.INT8: (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.UINT16: (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.INT16: (ir.DataType.INT32, ir.DataType.INT64, ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.INT32: (ir.DataType.INT64, ir.DataType.DOUBLE),
    ir.DataType.UINT32: (ir.DataType.INT64, ir.DataType.DOUBLE),
    ir.DataType.FLOAT16: (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.BFLOAT16: (ir.DataType.FLOAT, ir.DataType.DOUBLE),
    ir.DataType.FLOAT: (ir.DataType.DOUBLE,),
}
"""Types that hold every value of a type, the narrowest first."""

_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT, ir.DataType.DOUBLE})
_COMPARING = frozenset(
    {
        "Max",
        "Min",
        "Greater",
        "Less",
        "Equal",
        "Pad",
        "Clip",
        "Relu",
        "ReduceMax",
        "ReduceMin",
        "TopK",
        "MaxPool",
        "Where",
    }
)
"""Operators that only compare and move values: integers may pass through a float type that holds them."""

_NEUTRAL: dict[str, object] = {"dilations": 1, "consumed_inputs": None}
"""Attributes without a default in the schema: the entry that says nothing, or None where any value says nothing."""


@functools.cache
def versions(op_type: str) -> tuple[int, ...]:
    """Return the versions of an operator of the default domain, the oldest first."""
    return _all_versions().get(op_type, ())


@functools.cache
def _all_versions() -> dict[str, tuple[int, ...]]:
    found: dict[str, list[int]] = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "":
            found.setdefault(schema.name, []).append(schema.since_version)
    return {name: tuple(sorted(since)) for name, since in found.items()}


@functools.cache
def schema_at(op_type: str, opset: int) -> Schema | None:
    """Return the definition that holds in ``opset``; None where the operator is unknown there."""
    if not any(version <= opset for version in versions(op_type)):
        return None
    return onnx.defs.get_schema(op_type, opset, "")


def is_valid(op_type: str, opset: int) -> bool:
    """Whether ``opset`` has the operator, and not as a deprecated one."""
    schema = schema_at(op_type, opset)
    return schema is not None and not schema.deprecated


def raised(operation: Operation, schema: Schema) -> Operation:
    """Return ``operation`` as the next version spells it, where no rule says more."""
    return operation.without(*(name for name in _NEUTRAL if _NEUTRAL[name] is None and name not in schema.attributes))


def lowered(operation: Operation, newer: Schema, older: Schema) -> Operation:
    """Return ``operation`` as the version before spells it, where no rule says more."""
    for name in tuple(operation.attributes):
        if name in older.attributes or name not in newer.attributes:
            continue
        default = onnx.helper.get_attribute_value(newer.attributes[name].default_value)
        value = operation.attribute(name)
        if name in _NEUTRAL:
            neutral = all(entry == _NEUTRAL[name] for entry in value)
        else:
            neutral = value == (default.decode() if isinstance(default, bytes) else default)
        if not neutral:
            raise NoEquivalent(f"its {name} is {value}, which version {older.since_version} cannot say")
        operation = operation.without(name)
    return operation


def fitted(operation: Operation, schema: Schema, context: Context) -> Operation | tuple[ir.Value, ...]:
    """Return ``operation`` where ``schema`` allows it, with Casts around it where only a wider type is allowed.

    Raises NoEquivalent, naming the attribute, input or type that is not.
    """
    _check_signature(operation, schema)
    wide = _wider_types(operation, schema, context)
    if not wide:
        return operation
    if any(attribute.type == ir.AttributeType.GRAPH for attribute in operation.attributes.values()):
        raise NoEquivalent(f"version {schema.since_version} does not take {_names(set(wide.values()))}")
    inputs: list[ir.Value | None] = []
    for formal, value in _formals(schema.inputs, operation.inputs):
        dtype = wide.get(formal.type_str)
        if value is not None and dtype is not None and context.type_of(value) != dtype:
            inputs.append(context.cast(value, dtype))
        else:
            inputs.append(value)
    results: list[ir.Value] = []
    attributes = dict(operation.attributes)
    node = ir.node(operation.op_type, inputs, attributes=attributes, num_outputs=operation.outputs)
    context.add(node)
    for (formal, old), new in zip(_formals(schema.outputs, tuple(context.node.outputs)), node.outputs, strict=False):
        dtype, own = wide.get(formal.type_str), None if old is None else old.dtype
        if own is None:
            raise NoEquivalent(f"the type of '{'' if old is None else old.name}' is unknown")
        new.dtype = own if dtype is None else dtype
        results.append(new if new.dtype == own else context.op("Cast", new, dtype=own, to=int(own)))
    return tuple(results)


def has_room(node: ir.Node, opset: int) -> bool:
    """Whether ``opset`` lets ``node`` list as many inputs as it does; omitted ones at the end count too."""
    schema = schema_at(node.op_type, opset)
    return schema is None or len(node.inputs) <= schema.max_input


def check_written(node: ir.Node, opset: int) -> None:
    """Raise NoEquivalent where ``opset`` does not have ``node`` as it is written: a rule's own or a norm's."""
    schema = schema_at(node.op_type, opset)
    if node.domain != "" or not versions(node.op_type):
        return
    if schema is None:
        raise NoEquivalent(f"{node.op_type}, which it is made of, came with opset {min(versions(node.op_type))}")
    operation = operation_of(node)
    allowed = {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in schema.type_constraints}
    try:
        _check_signature(operation, schema)
        for formals, values in ((schema.inputs, operation.inputs), (schema.outputs, tuple(node.outputs))):
            _check_types(formals, values, allowed, opset)
    except NoEquivalent as reason:
        raise NoEquivalent(f"it would be made of {node.op_type}, and {reason}") from None


def _check_types(
    formals: Sequence[Schema.FormalParameter],
    values: tuple[ir.Value | None, ...],
    allowed: Mapping[str, frozenset[str]],
    opset: int,
) -> None:
    for formal, value in _formals(formals, values):
        spelled = None if value is None or value.type is None else _spelled(value.type)
        if value is None or value.name == "" or spelled is None:
            continue
        if spelled not in allowed.get(formal.type_str, frozenset({formal.type_str})):
            raise NoEquivalent(f"opset {opset} does not take {spelled} there")


def _check_signature(operation: Operation, schema: Schema) -> None:
    version = schema.since_version
    for name in operation.attributes:
        if name not in schema.attributes:
            raise NoEquivalent(f"version {version} has no attribute '{name}'")
    for name, attribute in schema.attributes.items():
        if attribute.required and name not in operation.attributes:
            raise NoEquivalent(f"version {version} needs the attribute '{name}'")
    if not schema.min_input <= len(operation.inputs) <= schema.max_input:
        raise NoEquivalent(f"version {version} does not take {len(operation.inputs)} inputs")
    if operation.outputs > schema.max_output:
        raise NoEquivalent(f"version {version} does not have {operation.outputs} outputs")


def _formals(
    formals: Sequence[Schema.FormalParameter], values: tuple[ir.Value | None, ...]
) -> Iterator[tuple[Schema.FormalParameter, ir.Value | None]]:
    """Pair each value with its parameter; the last, when variadic, takes all that are left."""
    for index, value in enumerate(values):
        if formals:
            yield formals[min(index, len(formals) - 1)], value


def _wider_types(operation: Operation, schema: Schema, context: Context) -> dict[str, ir.DataType]:
    """Return the type that each type parameter must be widened to: it has several types, or one that is not allowed."""
    allowed = {entry.type_param_str: frozenset(entry.allowed_type_strs) for entry in schema.type_constraints}
    for formals, values in ((schema.inputs, operation.inputs), (schema.outputs, tuple(context.node.outputs))):
        _check_types(
            formals, tuple(value if _holds_no_tensor(value) else None for value in values), allowed, context.opset
        )
    bound: dict[str, set[ir.DataType]] = {}
    for formal, value in _formals(schema.inputs, operation.inputs):
        dtype = _tensor_type(value)
        if dtype is None or (str(formal.option).endswith("Variadic") and not formal.is_homogeneous):
            continue
        bound.setdefault(formal.type_str, set()).add(dtype)
    wide: dict[str, ir.DataType] = {}
    for parameter, dtypes in bound.items():
        possible = allowed.get(parameter, frozenset({parameter}))
        if len(dtypes) == 1 and _type_string(next(iter(dtypes))) in possible:
            continue
        wide[parameter] = _widest(operation, dtypes, possible, schema.since_version, context.opset)
    for formal, value in _formals(schema.outputs, tuple(context.node.outputs[: operation.outputs])):
        dtype = _tensor_type(value)
        if dtype is None or formal.type_str in bound:
            continue
        if _type_string(dtype) not in allowed.get(formal.type_str, frozenset({formal.type_str})):
            if dtype == ir.DataType.BFLOAT16 and context.opset < 13:
                raise NoEquivalent("bfloat16 came with opset 13")
            raise NoEquivalent(f"version {schema.since_version} does not give {_names({dtype})}")
    return wide


def _widest(
    operation: Operation, dtypes: set[ir.DataType], possible: frozenset[str], version: int, opset: int
) -> ir.DataType:
    if ir.DataType.BFLOAT16 in dtypes and opset < 13:
        raise NoEquivalent("bfloat16 came with opset 13")
    candidates = [{dtype, *_EXACT_IN.get(dtype, ())} for dtype in dtypes]
    common = set.intersection(*candidates)
    if operation.op_type not in _COMPARING:
        common = {wide for wide in common if wide in _FLOATS or not dtypes & _FLOATS}
        if not dtypes <= _FLOATS:
            common -= _FLOATS
    first = next(iter(dtypes))
    for dtype in (first, *_EXACT_IN.get(first, ())):
        if dtype in common and _type_string(dtype) in possible:
            return dtype
    raise NoEquivalent(f"version {version} does not take {_names(dtypes)}")


def _names(types: object) -> str:
    assert isinstance(types, set)
    return " with ".join(
        sorted(entry.name.lower() if isinstance(entry, ir.DataType) else str(entry) for entry in types)
    )


def _tensor_type(value: ir.Value | None) -> ir.DataType | None:
    """Return the element type of a tensor; None for sequences, optionals and what is unknown."""
    if value is None or value.name == "":
        return None
    if value.type is None:
        return None if value.const_value is None else value.const_value.dtype
    return value.dtype if isinstance(value.type, ir.TensorType) else None


def _holds_no_tensor(value: ir.Value | None) -> bool:
    return value is not None and value.type is not None and not isinstance(value.type, ir.TensorType)


def _spelled(type_: ir.TypeProtocol) -> str | None:
    """Return a type as schemas spell it: "tensor(float)", "optional(seq(tensor(int64)))"."""
    if isinstance(type_, ir.TensorType):
        return None if type_.dtype == ir.DataType.UNDEFINED else _type_string(type_.dtype)
    for kind, word in ((ir.SequenceType, "seq"), (ir.OptionalType, "optional")):
        if isinstance(type_, kind):
            inner = _spelled(type_.elem_type)
            return None if inner is None else f"{word}({inner})"
    return None


def _type_string(dtype: ir.DataType) -> str:
    return f"tensor({dtype.name.lower()})"
