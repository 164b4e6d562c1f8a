"""The bodies of ai.normfuse: one for each key, right wherever they run, and never E[x²] − E[x]²."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from normfuse.emit.functions import DOMAIN, SUFFIXES, Signature, body, literals
from normfuse.spec import Activation
from tests.graphs import Array, run

FLOAT = ir.DataType.FLOAT
GROUP: dict[str, int | float] = {"num_groups": 2, "epsilon": 1e-5}


def operators(key: Signature) -> list[str]:
    return [node.op_type for node in body(key)]


def test_the_fast_body() -> None:
    key = Signature("GroupNorm", 17, FLOAT, activation=Activation.SILU)
    computing = [name for name in operators(key) if name not in ("Constant", "ConstantOfShape", "Shape", "Concat")]
    assert computing == [
        "Reshape", "Reshape", "InstanceNormalization", "Reshape", "BatchNormalization", "Sigmoid", "Mul",
    ]  # fmt: skip
    assert (key.operator, key.key) == ("GroupNormSilu", "opset17_float_scale_bias")


@pytest.mark.parametrize("dtype", [ir.DataType.DOUBLE, FLOAT])
def test_types_without_the_kernel_take_means(dtype: ir.DataType) -> None:
    key = Signature("GroupNorm", 17, dtype, scale=False, bias=False)
    assert ("InstanceNormalization" in operators(key)) is (dtype == FLOAT)
    assert operators(key).count("ReduceMean") == (0 if dtype == FLOAT else 2)


@pytest.mark.parametrize("norm", ["GroupNorm", "InstanceNorm"])
@pytest.mark.parametrize("last", [False, True])
def test_by_means_is_the_same_norm(norm: str, last: bool) -> None:
    x = np.random.default_rng(3).standard_normal((2, 8, 4, 8)).astype(np.float32) * 3 + 50
    keys = [Signature(norm, 22, FLOAT, False, False, channels_last=last, by_means=means) for means in (False, True)]
    by_kernel, by_means = (run_body(key, x).astype(np.float64) for key in keys)
    assert "InstanceNormalization" not in operators(keys[1])
    assert keys[1].operator == keys[0].operator
    assert keys[1].key != keys[0].key
    assert np.abs(by_means - by_kernel).max() < 2e-4


@pytest.mark.parametrize("dtype", [ir.DataType.FLOAT16, ir.DataType.BFLOAT16])
def test_half_types_are_widened_once_and_rounded_once(dtype: ir.DataType) -> None:
    function = body(Signature("LayerNorm", 17, dtype, activation=Activation.GELU))
    casts = [node.attributes.get_int("to") for node in function if node.op_type == "Cast"]
    assert list(function)[-1].op_type == "Cast"
    assert casts == [int(FLOAT)] * 3 + [int(dtype)]


def test_names_are_distinct_and_say_the_signature() -> None:
    keys = {
        Signature(norm, opset, dtype, scale, bias, *residual, activation, last, literals(opset, attributes))
        for norm, opset, dtype, scale, bias, residual, activation, last, attributes in itertools.product(
            ("GroupNorm", "InstanceNorm"),
            (7, 17),
            (FLOAT, ir.DataType.DOUBLE),
            (True, False),
            (True, False),
            ((False, False), (True, False), (True, True)),
            SUFFIXES,
            (True, False),
            (GROUP, {"num_groups": 2, "epsilon": 1e-6}, {"num_groups": 2, "axis": -1, "epsilon": 1e-6}),
        )
    }
    # Attributes are numbers in the body below opset 12 only.
    assert len(keys) == 2 * 2 * 2**2 * 3 * len(SUFFIXES) * 2 * (3 + 1)
    names = {f"{key.operator}_{key.key}" for key in keys}
    assert len(names) == len(keys)
    assert all(name.isidentifier() for name in names)
    assert {key.operator for key in keys} == {
        f"{add}{norm}{suffix}{last}{total}"
        for add, total in (("", ""), ("Add", ""), ("Add", "WithSum"))
        for norm in ("GroupNorm", "InstanceNorm")
        for suffix in ("", "Relu", "Silu", "Gelu")
        for last in ("", "ChannelsLast")
    }


def test_only_what_is_complete_has_the_name_of_a_kernel() -> None:
    assert body(Signature("LayerNorm", 17, FLOAT)).name == "LayerNorm"
    assert body(Signature("RMSNorm", 17, FLOAT, bias=False)).name == "RMSNorm"
    assert body(Signature("LayerNorm", 17, FLOAT, bias=False)).name == "LayerNorm_opset17_float_scale"
    assert body(Signature("RMSNorm", 17, FLOAT)).name == "RMSNorm_opset17_float_scale_bias"


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 17, 18, 23])
def test_attributes_are_referred_to_from_opset_12_on(opset: int) -> None:
    key = Signature("GroupNorm", opset, FLOAT, literals=literals(opset, dict(GROUP)))
    references = {a.ref_attr_name for node in body(key) for a in node.attributes.values() if a.is_ref()}
    assert references == ({"epsilon"} if opset < 12 else {"epsilon", "num_groups"})


def test_a_large_mean_does_not_cancel() -> None:
    key = Signature("GroupNorm", 17, FLOAT, scale=False, bias=False)
    x = 1e4 + np.random.default_rng(0).standard_normal((2, 8, 16, 16)).astype(np.float32)
    actual = run_body(key, x)
    wide = x.astype(np.float64).reshape(2, 2, -1)
    expected = (wide - wide.mean(2, keepdims=True)) / np.sqrt(wide.var(2, keepdims=True) + 1e-5)
    # The mean of 2^14 in float32 is off by a few of its units, 2^-10; E[x²] − E[x]² gives NaN here.
    assert np.abs(actual.reshape(2, 2, -1) - expected).max() < 2.0**-6


def test_a_batch_of_zero_is_the_stated_limit() -> None:
    key = Signature("GroupNorm", 17, FLOAT, scale=False, bias=False)
    with pytest.raises(Exception, match="Reshape"):
        run_body(key, np.zeros((0, 8, 4, 4), np.float32))


def run_body(key: Signature, x: Array) -> Array:
    """Run a node that calls the body alone, on onnxruntime."""
    value = ir.Value(name="x", shape=ir.Shape(["N", 8, "H", "W"]), type=ir.TensorType(FLOAT))
    function = body(key)
    attributes = {name: number for name, number in GROUP.items() if name in function.attributes}
    node = ir.node(function.name, [value], attributes, domain=DOMAIN, name="norm")
    y = node.outputs[0]
    y.name, y.dtype, y.shape = "y", FLOAT, value.shape
    graph = ir.Graph([value], [y], nodes=[node], opset_imports={"": key.opset, DOMAIN: 1}, name="g")
    function.overload = ""
    model = ir.Model(graph, ir_version=10, functions=[function])
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    (result,) = run(model, {"x": x})
    return np.asarray(result, np.float32)
