"""Stored tensors, read and made by the short way: a model has thousands, and onnx_ir's own way is a general one.

Each function returns what onnx_ir's counterpart does; a tensor of an unusual kind takes the long way.
"""

from __future__ import annotations

import functools
import math
from typing import TypeGuard

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Array = npt.NDArray[np.generic]

_MOST_IN_PROTO = 1 << 16
"""Larger arrays are not copied into a message before they are saved, in bytes."""


@functools.cache
def _layout(data_type: int) -> tuple[int, np.dtype[np.generic] | None]:
    """Return the bits of an element, and the NumPy type of its little-endian bytes where they are whole ones."""
    dtype = ir.DataType(data_type)
    if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING):
        return 0, None
    bits = int(dtype.bitwidth)
    return bits, dtype.numpy().newbyteorder("<") if bits >= 8 else None


_type_of = functools.cache(ir.DataType.from_numpy)


def is_external(tensor: object) -> TypeGuard[ir.ExternalTensor]:
    """Whether ``tensor`` lies in a file of its own (``isinstance`` is slow on onnx_ir's tensors: they are protocols)."""
    return issubclass(type(tensor), ir.ExternalTensor)


def is_lazy(tensor: object) -> TypeGuard[ir.LazyTensor]:
    """Whether ``tensor`` is computed when it is read."""
    return issubclass(type(tensor), ir.LazyTensor)


def byte_size(tensor: ir.TensorProtocol) -> int:
    """Return ``tensor.nbytes``."""
    if type(tensor) is ir.TensorProtoTensor:
        bits, dtype = _layout(tensor.raw.data_type)
        if dtype is not None:
            size: int = math.prod(tensor.raw.dims) * bits // 8
            return size
    return tensor.nbytes


def array_of(tensor: ir.TensorProtocol) -> Array:
    """Return ``tensor.numpy()``."""
    if type(tensor) is ir.TensorProtoTensor:
        raw = tensor.raw
        _, dtype = _layout(raw.data_type)
        if dtype is not None and raw.HasField("raw_data"):
            return np.frombuffer(raw.raw_data, dtype).reshape(tuple(raw.dims))
    return np.asarray(tensor.numpy())


def tensor_of(array: Array) -> ir.TensorProtocol:
    """Return ``array`` as a tensor to store; ``ir.Tensor(array)``, but small ones are encoded at once."""
    dtype = _type_of(array.dtype)
    _, encoded = _layout(dtype.value)
    if encoded is None or array.nbytes > _MOST_IN_PROTO:
        return ir.Tensor(array, dtype=dtype)
    content = np.ascontiguousarray(array).astype(encoded, copy=False).tobytes()
    return ir.TensorProtoTensor(onnx.TensorProto(data_type=dtype.value, dims=array.shape, raw_data=content))
