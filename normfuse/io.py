"""Load and save models: external data checked and resolved, output complete or absent."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from normfuse.errors import ModelIOError
from normfuse.graph.reading import with_subgraphs
from normfuse.memory import uncollected

logger = logging.getLogger(__name__)

_LARGEST_INLINE = 1 << 30
"""Models with more bytes of weights than this are saved with external data: a protobuf message ends at 2 GB."""

_SMALLEST_EXTERNAL = 1024
"""Tensors below this stay in the model file, where shapes and scalars can be read without the data file."""


_SPARSE, _TRAINING = "normfuse.sparse_initializers", "normfuse.training_info"


@runtime_checkable
class Fingerprinted(Protocol):
    """A tensor whose bytes are expensive, and that has a cheaper way to tell itself from others."""

    def fingerprint(self) -> bytes:
        """Return bytes that differ where the tensors do."""
        ...


@uncollected
def load(path: str | os.PathLike[str]) -> ir.Model:
    """Return the model at ``path``; weights in external files stay there, mapped when they are read.

    An unsorted graph is sorted. Raises ModelIOError, one line, for: no such file, not an ONNX model, a truncated one,
    external data that is missing, too short or outside the model's folder, a graph with a cycle.
    """
    path = Path(path)
    model = _deserialize(_read_proto(path), path)
    _resolve_external_data(model, path)
    _sort(model, path)
    return model


def _read_proto(path: Path) -> onnx.ModelProto:
    if path.is_dir():
        raise ModelIOError(f"{path}: is a folder, not an ONNX file")
    try:
        proto = onnx.load(os.fspath(path), load_external_data=False)
    except FileNotFoundError:
        raise ModelIOError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelIOError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # onnx picks a reader by the file's suffix; each fails in its own way
        raise ModelIOError(f"{path}: not an ONNX model, or a truncated one ({_first_line(error)})") from None
    if not proto.HasField("graph") or proto.ir_version == 0:
        raise ModelIOError(f"{path}: not an ONNX model: it has no graph or no IR version")
    return proto


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@uncollected
def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Return ``proto`` as an onnx_ir model; its graph is sorted where it was not. Raises ModelIOError as load does."""
    path = Path(proto.graph.name or "model")
    model = _deserialize(proto, path)
    _sort(model, path)
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return ``model`` as a message, with what onnx_ir does not carry put back where it was."""
    proto = ir.to_proto(model)
    for info in model.meta.get(_TRAINING, ()):
        proto.training_info.append(info)
    if model.meta.get(_SPARSE):
        for graph, target in zip(with_subgraphs(model.graph), _proto_graphs(proto.graph), strict=True):
            target.sparse_initializer.extend(graph.meta.get(_SPARSE, ()))
    return proto


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    """Deserialize; sparse initializers and training information, which onnx_ir drops, travel in ``meta``."""
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # a malformed message can fail anywhere inside the deserializer
        raise ModelIOError(f"{path}: not a valid ONNX model ({_first_line(error.__cause__ or error)})") from None
    if proto.training_info:
        model.meta[_TRAINING] = list(proto.training_info)
    sources = list(_proto_graphs(proto.graph))
    if any(graph.sparse_initializer for graph in sources):
        model.meta[_SPARSE] = True
        for source, graph in zip(sources, with_subgraphs(model.graph), strict=True):
            if source.sparse_initializer:
                graph.meta[_SPARSE] = list(source.sparse_initializer)
    return model


def _proto_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """Yield the same graphs in the same order."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from _proto_graphs(attribute.g)
            elif attribute.type == onnx.AttributeProto.GRAPHS:
                for inner in attribute.graphs:
                    yield from _proto_graphs(inner)


def _resolve_external_data(model: ir.Model, path: Path) -> None:
    folder = path.resolve().parent
    sizes: dict[str, int] = {}
    for name, tensor in _external_tensors(model):
        tensor.base_dir = os.fspath(folder)
        location = os.fspath(tensor.location)
        if location not in sizes:
            sizes[location] = _size_of(folder, location, name, path)
        end = (tensor.offset or 0) + (tensor.length if tensor.length is not None else tensor.nbytes)
        if end > sizes[location]:
            raise ModelIOError(
                f"{path}: external data of '{name}' ends at byte {end}, but '{location}' has {sizes[location]} bytes"
            )


def _size_of(folder: Path, location: str, name: str, path: Path) -> int:
    target = (folder / location).resolve()
    if os.path.isabs(location) or not target.is_relative_to(folder):
        raise ModelIOError(f"{path}: external data of '{name}' points outside the model's folder: '{location}'")
    if not target.is_file():
        raise ModelIOError(f"{path}: external data of '{name}' is missing: no file '{location}' beside the model")
    return target.stat().st_size


def _external_tensors(model: ir.Model) -> Iterator[tuple[str, ir.ExternalTensor]]:
    for graph in _all_graphs(model):
        for name, value in graph.initializers.items():
            if isinstance(value.const_value, ir.ExternalTensor):
                yield name, value.const_value
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    yield node.name or node.op_type, attribute.value


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every function's, with their subgraphs."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from with_subgraphs(graph)


def _sort(model: ir.Model, path: Path) -> None:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        if _is_sorted(graph):
            continue
        try:
            graph.sort()
        except ValueError:
            raise ModelIOError(f"{path}: graph '{graph.name}' has a cycle") from None
        logger.info("%s: graph '%s' was not sorted; sorted it", path, graph.name)


def _is_sorted(graph: ir.Graph) -> bool:
    """Whether every node of ``graph`` and its subgraphs stands behind the nodes that it reads."""
    later = set(graph.all_nodes())
    for node in graph.all_nodes():
        # A node with subgraphs comes before what they hold, and they may read what comes before it.
        later.discard(node)
        for value in node.inputs:
            if value is not None and value.producer() in later:
                return False
    return True


@uncollected
def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write ``model`` to ``path``; the file is complete or absent, and an older one stays until the new one stands.

    External data goes to ``NAME.<hash>.data`` beside it where the model came with external data or is too large for
    one file; the data file of an older version of ``path`` is removed last. The same model gives the same bytes.
    Raises ModelIOError when ``path`` is a folder, its folder is missing, or the disk is full.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelIOError(f"{path}: is a folder; name a file to write")
    folder = path.resolve().parent
    if not folder.is_dir():
        raise ModelIOError(f"{path}: no such folder: {folder}")
    _internalise_attributes(model)
    location = _data_name(model, path.name) if _needs_external_data(model) else None
    fresh_data = location is not None and not (folder / location).exists()
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as scratch:
            staged = Path(scratch) / path.name
            _write(model, staged, location)
            if location is not None and (Path(scratch) / location).exists():
                _flush(Path(scratch) / location)
                os.replace(Path(scratch) / location, folder / location)
            _flush(staged)
            os.replace(staged, path)
    except OSError as error:
        if fresh_data and location is not None:
            with contextlib.suppress(OSError):
                (folder / location).unlink()
        raise ModelIOError(f"{path}: cannot be written: {error.strerror or error}") from None
    except (ir.serde.SerdeError, EncodeError, ValueError) as error:
        raise ModelIOError(f"{path}: cannot be written: {_first_line(error)}") from None
    _remove_stale_data(folder, path.name, location)


def _write(model: ir.Model, path: Path, location: str | None) -> None:
    """Write the model file and, where ``location`` names one, its data file beside it; ``model`` stays as it is."""
    values = [value for graph in with_subgraphs(model.graph) for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    try:
        if location is not None:
            ir.external_data.unload_from_model(model, path.parent, location, size_threshold_bytes=_SMALLEST_EXTERNAL)
        path.write_bytes(to_proto(model).SerializeToString(deterministic=True))
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def _tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    for graph in with_subgraphs(model.graph):
        for name, value in graph.initializers.items():
            if value.const_value is not None:
                yield name, value.const_value


def _needs_external_data(model: ir.Model) -> bool:
    total = 0
    for _, tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor | ir.LazyTensor):  # lazy ones are made of external ones
            return True
        total += tensor.nbytes
    return total > _LARGEST_INLINE


def _internalise_attributes(model: ir.Model) -> None:
    """Read tensors of attributes into memory: onnx_ir writes only initializers to external data."""
    for graph in _all_graphs(model):
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                    tensor = attribute.value
                    copy = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
                    node.attributes[name] = ir.AttrTensor(name, copy)


def _data_name(model: ir.Model, name: str) -> str:
    """Return ``NAME.<hash>.data``; the hash covers names, types, shapes and a sample of every large tensor."""
    digest = hashlib.blake2b(digest_size=8)
    for key, tensor in _tensors(model):
        digest.update(f"{key}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        if tensor.nbytes > _SMALLEST_EXTERNAL:
            digest.update(_sample(tensor))
    return f"{name}.{digest.hexdigest()}.data"


def _sample(tensor: ir.TensorProtocol) -> bytes:
    """Return some bytes from all over ``tensor`` without reading the whole of it."""
    if isinstance(tensor, Fingerprinted):
        return tensor.fingerprint()
    if tensor.dtype.bitwidth < 8:
        return tensor.tobytes()[:4096]
    array = np.asarray(tensor.numpy()).reshape(-1)
    step = max(1, array.size // 4096)
    return np.ascontiguousarray(array[::step]).tobytes()


def _remove_stale_data(folder: Path, name: str, keep: str | None) -> None:
    pattern = re.compile(re.escape(name) + r"\.[0-9a-f]{16}\.data")
    for entry in folder.iterdir():
        if pattern.fullmatch(entry.name) and entry.name != keep:
            with contextlib.suppress(OSError):
                entry.unlink()
