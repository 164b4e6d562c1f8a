"""Load and save models: external data checked and resolved, output complete or absent."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import onnx
import onnx_ir as ir
from google.protobuf.message import EncodeError

from normfuse.errors import ModelIOError
from normfuse.graph.reading import subgraphs, with_subgraphs
from normfuse.graph.tensors import byte_size, is_external, is_lazy
from normfuse.memory import uncollected

logger = logging.getLogger(__name__)

_LARGEST_INLINE = 1 << 30
"""Models with more bytes of weights than this are saved with external data: a protobuf message ends at 2 GB."""

_SMALLEST_EXTERNAL = 1024
"""Tensors below this stay in the model file, where shapes and scalars can be read without the data file."""


_SPARSE, _TRAINING = "normfuse.sparse_initializers", "normfuse.training_info"
_LISTED = "normfuse.listed_initializers"


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
    path = _as_path(path)
    model = _deserialize(_read_proto(path), path)
    _resolve_external_data(model, path)
    _sort(model, path)
    return model


def _as_path(path: object) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise ModelIOError(f"a file is named by a text or a path; got {type(path).__name__}")
    if "\0" in os.fspath(path):
        raise ModelIOError(f"no file has a name with a null character: {os.fspath(path)!r}")
    return Path(path)


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


def _deepest_line(error: BaseException) -> str:
    """Return what went wrong at the bottom: onnx_ir wraps an error once for every level of the message."""
    while error.__cause__ is not None:
        error = error.__cause__
    return _first_line(error)


@uncollected
def from_proto(proto: onnx.ModelProto) -> ir.Model:
    """Return ``proto`` as an onnx_ir model; its graph is sorted where it was not. Raises ModelIOError as load does."""
    path = Path(proto.graph.name or "model")
    model = _deserialize(proto, path)
    _sort(model, path)
    return model


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """Return ``model`` as a message, with what onnx_ir does not carry put back where it was."""
    with _unlisted(model):
        proto = ir.to_proto(model)
    for info in model.meta.get(_TRAINING, ()):
        proto.training_info.append(info)
    if model.meta.get(_SPARSE):
        for graph, target in zip(with_subgraphs(model.graph), _proto_graphs(proto.graph), strict=True):
            target.sparse_initializer.extend(graph.meta.get(_SPARSE, ()))
    return proto


@contextlib.contextmanager
def _unlisted(model: ir.Model) -> Iterator[None]:
    """Hide the types of initializers from onnx_ir, which would add them to ``value_info`` where they were not."""
    hidden: list[tuple[ir.Value, ir.TypeProtocol | None, ir.Shape | None]] = []
    for graph in with_subgraphs(model.graph):
        listed = graph.meta.get(_LISTED)
        if listed is None:  # no file of ours: written as onnx_ir does
            continue
        for name, value in graph.initializers.data.items():
            if name not in listed and not value.is_graph_input() and not value.is_graph_output():
                hidden.append((value, value.type, value.shape))
                value.type = value.shape = None
    try:
        yield
    finally:
        for value, kind, shape in hidden:
            value.type, value.shape = kind, shape


def objection(model: ir.Model) -> str | None:
    """Return what onnx.checker has against ``model``, in one line, or None."""
    try:
        proto = to_proto(model)
    except ir.serde.SerdeError as error:
        return _deepest_line(error)
    for tensor in proto.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:  # looked at when it was loaded
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.ClearField("dims")
            tensor.dims.append(0)
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        return _first_line(error)
    return None


def _deserialize(proto: onnx.ModelProto, path: Path) -> ir.Model:
    """Deserialize, with what onnx_ir drops.

    Types of function inputs are put where onnx_ir writes them; sparse initializers, training information and which
    initializers ``value_info`` lists travel in ``meta``.
    """
    try:
        model = ir.from_proto(proto)
    except Exception as error:  # a malformed message can fail anywhere inside the deserializer
        raise ModelIOError(f"{path}: not a valid ONNX model ({_deepest_line(error)})") from None
    for function in proto.functions:
        _restore_input_types(function, model.functions[function.domain, function.name, function.overload])
    if proto.training_info:
        model.meta[_TRAINING] = list(proto.training_info)
    for source, graph in zip(_proto_graphs(proto.graph), with_subgraphs(model.graph), strict=True):
        graph.meta[_LISTED] = frozenset(graph.initializers.data.keys() & {info.name for info in source.value_info})
        if source.sparse_initializer:
            model.meta[_SPARSE] = True
            graph.meta[_SPARSE] = list(source.sparse_initializer)
    return model


def _restore_input_types(source: onnx.FunctionProto, function: ir.Function) -> None:
    infos = {info.name: info for info in source.value_info}
    for value in function.inputs:
        if value.name in infos:
            ir.serde.deserialize_value_info_proto(infos[value.name], value)


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
        for name, value in graph.initializers.data.items():
            tensor = value.const_value
            if is_external(tensor):
                yield name, tensor
        for node, attribute in _external_attributes(graph):
            yield node.name or node.op_type, attribute.value


def _external_attributes(graph: ir.Graph) -> Iterator[tuple[ir.Node, ir.Attr]]:
    for node in graph:
        for attribute in node.attributes.data.values():
            if attribute.type is ir.AttributeType.TENSOR and is_external(attribute.value):
                yield node, attribute


def _all_graphs(model: ir.Model) -> Iterator[ir.Graph]:
    """Yield the main graph and every function's, with their subgraphs."""
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        yield from with_subgraphs(graph)


def _sort(model: ir.Model, path: Path) -> None:
    for graph in (model.graph, *(function.graph for function in model.functions.values())):
        if _is_sorted(graph, set()):
            continue
        try:
            graph.sort()
        except ValueError:
            raise ModelIOError(f"{path}: graph '{graph.name}' has a cycle") from None
        logger.info("%s: graph '%s' was not sorted; sorted it", path, graph.name)


def _is_sorted(graph: ir.Graph, passed: set[ir.Node | None]) -> bool:
    """Whether every node of ``graph`` and its subgraphs stands behind the nodes that it reads.

    passed: the nodes before ``graph``, which its nodes may read; those of ``graph`` are added.
    """
    passed.add(None)  # what no node produces
    for node in graph:
        for value in node.inputs:
            if value is not None and value.producer() not in passed:
                return False
        if not all(_is_sorted(inner, passed) for inner in subgraphs(node)):
            return False
        passed.add(node)
    return True


@uncollected
def save(model: ir.Model, path: str | os.PathLike[str]) -> None:
    """Write ``model`` to ``path``; the file is complete or absent, and an older one stays until the new one stands.

    External data goes to ``NAME.<hash>.data`` beside it where the model came with external data or is too large for
    one file; the data file of an older version of ``path`` is removed last. The same model gives the same bytes.
    Raises ModelIOError when ``path`` is a folder or a device, its folder is missing, or the disk is full.
    """
    if not isinstance(model, ir.Model):
        raise ModelIOError(f"save takes an onnx_ir.Model; got {type(model).__name__}")
    path = _as_path(path)
    if path.is_dir():
        raise ModelIOError(f"{path}: is a folder; name a file to write")
    target = path.resolve()  # of a link: the file behind it, beside which its data belongs
    folder, name = target.parent, target.name
    if not folder.is_dir():
        raise ModelIOError(f"{path}: no such folder: {folder}")
    if target.exists() and not target.is_file():
        raise ModelIOError(f"{path}: is no regular file; name a file to write")
    _internalise_attributes(model)
    tensors = list(_tensors(model))
    location = _data_name(tensors, name) if _need_external_data(tensors) else None
    try:
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
            _write(model, Path(scratch) / name, location)
            for file in Path(scratch).iterdir():
                _flush(file)
            with _alone_in(folder):
                _put_in_place(Path(scratch), folder, name, location)
    except OSError as error:
        raise ModelIOError(f"{path}: cannot be written: {error.strerror or error}") from None
    except (ir.serde.SerdeError, EncodeError, ValueError) as error:
        raise ModelIOError(f"{path}: cannot be written: {_deepest_line(error)}") from None


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold the lock of ``folder``: who saves there at the same time waits, and sees no data file without its model."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _put_in_place(scratch: Path, folder: Path, name: str, location: str | None) -> None:
    """Rename the data file, then the model file, then remove the data of the version that was replaced."""
    fresh = None if location is None or (folder / location).exists() else folder / location
    try:
        if location is not None and (scratch / location).exists():
            os.replace(scratch / location, folder / location)
        os.replace(scratch / name, folder / name)
    except BaseException:
        if fresh is not None:
            fresh.unlink(missing_ok=True)
        raise
    _remove_stale_data(folder, name, location)


def _write(model: ir.Model, path: Path, location: str | None) -> None:
    """Write the model file and, where ``location`` names one, its data file beside it; ``model`` stays as it is."""
    if location is None:
        path.write_bytes(to_proto(model).SerializeToString(deterministic=True))
        return
    values = [value for graph in with_subgraphs(model.graph) for value in graph.initializers.values()]
    tensors = [value.const_value for value in values]
    try:
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
        for name, value in graph.initializers.data.items():
            if value.const_value is not None:
                yield name, value.const_value


def _need_external_data(tensors: Iterable[tuple[str, ir.TensorProtocol]]) -> bool:
    total = 0
    for _, tensor in tensors:
        if is_external(tensor) or is_lazy(tensor):  # lazy ones are made of external ones
            return True
        total += byte_size(tensor)
    return total > _LARGEST_INLINE


def _internalise_attributes(model: ir.Model) -> None:
    """Read tensors of attributes into memory: onnx_ir writes only initializers to external data."""
    for graph in _all_graphs(model):
        for node, attribute in list(_external_attributes(graph)):
            tensor = attribute.as_tensor()
            copy = ir.Tensor(np.array(tensor.numpy()), dtype=tensor.dtype, name=tensor.name)
            node.attributes[attribute.name] = ir.AttrTensor(attribute.name, copy)


def _data_name(tensors: Iterable[tuple[str, ir.TensorProtocol]], name: str) -> str:
    """Return ``NAME.<hash>.data``; the hash covers names, types, shapes and a sample of every large tensor."""
    digest = hashlib.blake2b(digest_size=8)
    for key, tensor in tensors:
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
