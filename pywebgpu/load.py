"""ONNX bytes or file to a typed `Graph`.

Reads, validates and converts; functions are inlined, older operator forms rewritten to the newest
(`passes/upgrade.py`), types inferred and constants folded on the way (`infer/engine.py`). What
comes out follows opset `LATEST` of the default domain. Optimisation is the passes' business.
"""

from __future__ import annotations

import ast
import contextlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto
from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

from .codegen.dims import Dim, Expr, dim_str, symbol, symbols
from .errors import InputError, ModelError, PywebgpuError, UnsupportedError
from .graph import Graph, Node, SizeCheck, TensorType, outer_names, subgraphs
from .infer import DataDependent, Problems, infer_graph, symbolic, unbound_sizes
from .infer.fallback import is_known, unknown
from .infer.registry import assume
from .onnx_types import DTYPE_ATTRIBUTES, LATEST, OLDEST, array_of, dtype_of
from .passes.upgrade import normalise_attributes, upgrade

_MOST_NODES = 1 << 20
_TWO_GIB = 2**31 - 1
_REMEDY_BROKEN = "Export the model again, or check that the file was copied completely"
_ONNX_DOMAINS = ("", "ai.onnx")


Source = str | os.PathLike[str] | bytes | ModelProto


def load(
    source: Source, name: str = "", fixed: Mapping[str, np.ndarray[Any, Any]] | None = None
) -> Graph:
    """Read a model and type it completely.

    Args:
        source: path of an ONNX file, its bytes, or a parsed model.
        name: what to call the model; by default the file's stem or the graph's own name.
        fixed: inputs that are to be constants, and their values. A model in which a shape
            depends on the elements of an input can be compiled for given elements.

    Raises:
        InputError: no such file.
        ModelError: the bytes are no valid ONNX model.
        UnsupportedError: some nodes can not be typed; the message lists them all.
    """
    problems = Problems()
    graph = load_leniently(source, problems, name, fixed)
    if problems.unsupported:
        raise combined(problems)
    return graph


def load_leniently(
    source: Source,
    problems: Problems,
    name: str = "",
    fixed: Mapping[str, np.ndarray[Any, Any]] | None = None,
) -> Graph:
    """As `load`, but collects unsupported nodes in `problems` and carries on without them."""
    with judged(source):
        return _load(source, problems, name, fixed)


@contextlib.contextmanager
def judged(source: Source | Graph) -> Iterator[None]:
    """Where work on a model stumbles, ONNX's full inference says whether that is the model's fault:
    it knows every operator's rules, and is too slow to ask about models that work.

    Raises:
        ModelError: in place of what was raised, where ONNX finds a contradiction.
    """
    try:
        yield
    except PywebgpuError:
        raise
    except Exception as error:
        found = None if isinstance(source, Graph) else _contradiction(source)
        if found is None:
            raise
        where, what = found
        raise ModelError(
            "the model contradicts itself", where=where, got=what, remedy=_REMEDY_BROKEN
        ) from error


def _contradiction(source: Source) -> tuple[str, str] | None:
    """The model, and what ONNX's inference has against it."""
    model, _, stem = _read(source)
    # What exporters claim of results is often wrong, and nobody uses it.
    del model.graph.value_info[:]
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        # The end of the last line, behind the names of its own errors.
        line = str(error).strip().splitlines()[-1].rpartition("Error] ")[2]
        return f"model '{stem}'" if stem else "model", line[:300]
    except Exception:  # nothing that it can judge: beyond 2 GiB, or of types that it lacks
        return None
    return None


def _load(
    source: Source,
    problems: Problems,
    name: str,
    fixed: Mapping[str, np.ndarray[Any, Any]] | None,
) -> Graph:
    model, folder, stem = _read(source)
    where = f"model '{name or stem}'" if name or stem else "model"
    _check_texts(model, where)
    opsets = _opsets(model, where)
    model = _inline(model, where)
    _load_external(model, folder, where)
    declared = _declared_outputs(model, where)
    _check(model, opsets, where)
    graph = _graph(model.graph, opsets, where, None)
    graph.name = name or stem or model.graph.name or "model"
    _fix(graph, fixed or {}, where)
    version = problems.opset = opsets[""]
    _newest(graph)
    infer_graph(graph, problems, upgrade, version)
    _add_unknown(graph, problems)
    graph.prune()
    for node, size in unbound_sizes(graph):
        error = DataDependent(
            "the size of an output depends on data",
            where=node.where(),
            got=size,
            remedy="Cut the model before this node, or fix the input that decides it",
        )
        problems.unsupported.append((node, error))
    for output, type_ in declared.items():
        graph.types.setdefault(output, type_)  # behind a node that could not be typed
    return graph


def _add_unknown(graph: Graph, problems: Problems) -> None:
    """Unknown operators that inference did not come to: behind others, or in bodies."""
    told = {error.where for _, error in problems.unsupported}

    def look(nodes: Iterable[Node]) -> None:
        for node in nodes:
            if node.where() not in told and not is_known(node):
                told.add(node.where())
                problems.unsupported.append((node, unknown(node)))
            for body in subgraphs(node):
                look(body.nodes)

    for node in graph.nodes:
        look(body_node for body in subgraphs(node) for body_node in body.nodes)
    look(problems.blocked)


def _declared_outputs(model: ModelProto, where: str) -> dict[str, TensorType]:
    """What the file says of its outputs, where it says all of it."""
    found = {}
    for value in model.graph.output:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and tensor.HasField("shape"):
            with contextlib.suppress(UnsupportedError, ModelError):
                found[value.name] = _type(value.name, value.type, where)
    return found


def _newest(graph: Graph) -> None:
    """Say of a graph and its bodies that they follow the newest opset: rewriting sees to it."""
    graph.opsets[""] = LATEST
    for node in graph.nodes:
        for body in subgraphs(node):
            _newest(body)


def _fix(graph: Graph, fixed: Mapping[str, np.ndarray[Any, Any]], where: str) -> None:
    """Turn inputs into constants. Sizes that they share with other inputs are known then, too."""
    for name, given in fixed.items():
        at = f"{where} input '{name}'"
        if name not in graph.inputs:
            expected = ", ".join(graph.inputs) or "no inputs"
            raise InputError("no such input", where=at, expected=expected)
        array = np.asarray(given)
        type_ = graph.types[name]
        fits = len(type_.shape) == array.ndim
        for dim, size in zip(type_.shape, array.shape, strict=False):
            known = symbolic.rewrite(dim, graph.equal)
            atom = symbolic.lone_atom(known)
            if atom is not None:
                assume(graph, atom, size)
            elif not isinstance(known, int):
                graph.checks.append(SizeCheck(known, size, at))
            fits = fits and (known == size or not isinstance(known, int))
        if not fits:
            raise InputError("wrong shape", where=at, got=list(array.shape), expected=type_)
        with np.errstate(all="ignore"):
            value = array.astype(type_.dtype.numpy)
        number = array.dtype.kind in "biuf" or array.dtype.name == type_.dtype.ml_dtype
        if not number or not (type_.dtype.is_float or (value == array).all()):
            raise InputError(
                "a value is not of the input's type",
                where=at,
                got=f"{array.dtype} {array.ravel()[:8].tolist()}",
                expected=type_.dtype.value,
            )
        graph.inputs.remove(name)
        graph.constants[name] = value
        graph.types[name] = TensorType(type_.dtype, tuple(array.shape))


def combined(problems: Problems) -> UnsupportedError:
    """All unsupported nodes as one error."""
    errors = [error for _, error in problems.unsupported]
    if len(errors) == 1:
        return errors[0]
    lines = [f"{e.where}: {e.what}" for e in errors[:20]]
    if len(errors) > 20:
        lines.append(f"and {len(errors) - 20} more")
    remedies = list(dict.fromkeys(e.remedy for e in errors if e.remedy))
    return UnsupportedError(
        f"{len(errors)} nodes are not supported",
        where="model",
        got="; ".join(lines),
        remedy=remedies[0] if remedies else "",
    )


# Reading


def _read(
    source: str | os.PathLike[str] | bytes | ModelProto,
) -> tuple[ModelProto, Path | None, str]:
    """The parsed model, its folder (for external data) and a name."""
    if isinstance(source, ModelProto):
        copy = ModelProto()
        copy.CopyFrom(source)
        return copy, None, ""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _parse(bytes(source), "model"), None, ""
    path = Path(source)
    if path.is_dir():
        raise InputError("a folder is not an ONNX file", where=str(path), expected="a .onnx file")
    try:
        size = path.stat().st_size
        if size > _TWO_GIB:
            raise ModelError(
                "the file is larger than a protobuf message may be",
                where=str(path),
                got=f"{size} bytes",
                expected=f"at most {_TWO_GIB} bytes",
                remedy="Save it with onnx.save(..., save_as_external_data=True)",
            )
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            "the file can not be read",
            where=str(path),
            got=error.strerror or str(error),
            remedy="Check the path and its permissions",
        ) from error
    return _parse(data, str(path)), path.parent, path.stem


def _parse(data: bytes, where: str) -> ModelProto:
    model = ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError) as error:
        raise ModelError(
            "not an ONNX model: the protobuf message can not be parsed",
            where=where,
            got=f"{len(data)} bytes, {error}",
            remedy=_REMEDY_BROKEN,
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise ModelError(
            "not an ONNX model: it has no graph or no opset",
            where=where,
            got=f"{len(data)} bytes",
            remedy=_REMEDY_BROKEN,
        )
    return model


def _check_texts(model: ModelProto, where: str) -> None:
    """Names must be text: protobuf hands out bytes that are not UTF-8 as they are."""

    def texts(graph: GraphProto) -> Iterable[object]:
        yield graph.name
        yield from (tensor.name for tensor in graph.initializer)
        for value in (*graph.input, *graph.output):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        for node in graph.node:
            yield from (node.op_type, node.domain, node.name, *node.input, *node.output)
            for attribute in node.attribute:
                yield attribute.name
                for body in (attribute.g, *attribute.graphs):
                    yield from texts(body)

    functions = (text for f in model.functions for text in (f.name, f.domain, *f.input, *f.output))
    domains = (entry.domain for entry in model.opset_import)
    for text in (*domains, *functions, *texts(model.graph)):
        if not isinstance(text, str):
            raise ModelError("a name is not UTF-8", where=where, got=text, remedy=_REMEDY_BROKEN)


def _opsets(model: ModelProto, where: str) -> dict[str, int]:
    opsets: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain in _ONNX_DOMAINS else entry.domain
        opsets[domain] = entry.version
    version = opsets.setdefault("", LATEST)
    if version < OLDEST and _as_in_oldest(model.graph, version):
        version = opsets[""] = OLDEST
    if not OLDEST <= version <= LATEST:
        newer = version > LATEST
        raise UnsupportedError(
            f"opset {version} is {'newer' if newer else 'older'} than what is supported",
            where=where,
            got=version,
            expected=f"{OLDEST} to {LATEST}",
            remedy=(
                f"Export with opset_version={LATEST}"
                if newer
                else "Convert the model with onnx.version_converter.convert_version(model, 13)"
            ),
        )
    return opsets


def _as_in_oldest(graph: GraphProto, version: int) -> bool:
    """Whether every operator was in this opset what it is in the oldest one that is supported."""
    for node in graph.node:
        if node.domain not in _ONNX_DOMAINS:
            continue
        if not (onnx.defs.has(node.op_type, version) and onnx.defs.has(node.op_type, OLDEST)):
            return False
        then, later = (onnx.defs.get_schema(node.op_type, v) for v in (version, OLDEST))
        if then.since_version != later.since_version:
            return False
        bodies = (a.g for a in node.attribute if a.HasField("g"))
        if not all(_as_in_oldest(body, version) for body in bodies):
            return False
    return True


def _inline(model: ModelProto, where: str) -> ModelProto:
    """Model-local functions expanded where they are called."""
    if not model.functions:
        return model
    _refuse_explosion(model, where)
    from onnx import inliner

    try:
        return inliner.inline_local_functions(model)
    except Exception as error:  # the binding raises bare RuntimeErrors
        raise ModelError(
            "the model's functions can not be inlined", where=where, got=_brief(error)
        ) from error


def _refuse_explosion(model: ModelProto, where: str) -> None:
    """Functions that call one another can stand for more nodes than any memory holds."""
    bodies = {(f.domain, f.name): f for f in model.functions}
    counts: dict[tuple[str, str], int] = {}

    def count(node: NodeProto) -> int:
        key = node.domain, node.op_type
        if key not in counts:
            counts[key] = 1  # of no function, or of one that calls itself, which the inliner tells
            if key in bodies:
                counts[key] = sum(map(count, bodies[key].node))
        return counts[key]

    total = sum(map(count, model.graph.node))
    if total > _MOST_NODES:
        raise ModelError(
            "the model's functions stand for too many nodes",
            where=where,
            got=f"{total:,} nodes",
            expected=f"at most {_MOST_NODES:,}",
        )


def _load_external(model: ModelProto, folder: Path | None, where: str) -> None:
    for tensor in _tensors(model.graph):
        if not uses_external_data(tensor):
            continue
        location = next((e.value for e in tensor.external_data if e.key == "location"), "")
        if folder is None:
            raise ModelError(
                "the model's weights are in another file, which bytes can not name",
                where=f"{where} tensor '{tensor.name}'",
                got=location,
                remedy="Give the path of the model instead of its bytes",
            )
        path = folder / location
        if not location or Path(location).is_absolute() or ".." in Path(location).parts:
            raise ModelError(
                "an external data file must lie beside the model",
                where=f"{where} tensor '{tensor.name}'",
                got=location,
                expected="a relative path without '..'",
            )
        if not path.is_file():
            raise ModelError(
                "an external data file is missing",
                where=f"{where} tensor '{tensor.name}'",
                got=str(path),
                expected="a file beside the model",
                remedy="Copy the file to this place, or save the model again in one piece",
            )
        try:
            load_external_data_for_tensor(tensor, str(folder))
        except Exception as error:
            raise ModelError(
                "an external data file does not hold what the model expects",
                where=f"{path} tensor '{tensor.name}'",
                got=_brief(error),
                remedy=_REMEDY_BROKEN,
            ) from error
        tensor.data_location = TensorProto.DEFAULT
        del tensor.external_data[:]


def _tensors(graph: GraphProto) -> Iterable[TensorProto]:
    """All tensors in a graph and its bodies."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for body in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _tensors(body)


def _brief(error: BaseException) -> str:
    """The first sentence of an error from a library."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def _check(model: ModelProto, opsets: dict[str, int], where: str) -> None:
    """ONNX's own checker, unless unknown operators would stop it: those are reported together."""
    for node in model.graph.node:
        domain = "" if node.domain in _ONNX_DOMAINS else node.domain
        if domain not in opsets:
            opsets[domain] = 1
    if any(_unknown(node, opsets) for node in model.graph.node):
        return
    weights = [(t, t.raw_data) for t in model.graph.initializer if len(t.raw_data) > 1 << 16]
    if sum(len(data) for _, data in weights) > 1 << 30:
        return  # the checker serialises the model, which protobuf refuses beyond 2 GiB
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if value.type.HasField("tensor_type") and not tensor.HasField("shape"):
            _type(value.name, value.type, f"{where} input '{value.name}'")  # raises
    for value in model.graph.output:
        # Many exporters leave these out, the checker insists, and inference finds them anyway.
        if value.type.WhichOneof("value") in (None, "tensor_type"):
            value.type.tensor_type.shape.SetInParent()
            value.type.tensor_type.elem_type = value.type.tensor_type.elem_type or TensorProto.FLOAT
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise ModelError(
            "the model is not valid ONNX", where=where, got=_brief(error), remedy=_REMEDY_BROKEN
        ) from error
    except Exception as error:
        raise ModelError(
            "the model can not be checked", where=where, got=_brief(error), remedy=_REMEDY_BROKEN
        ) from error


def _unknown(node: NodeProto, opsets: dict[str, int]) -> bool:
    domain = "" if node.domain in _ONNX_DOMAINS else node.domain
    if domain:
        return False
    return not onnx.defs.has(node.op_type, opsets[""], "")


# Conversion


def _graph(proto: GraphProto, opsets: dict[str, int], where: str, outer: Graph | None) -> Graph:
    graph = Graph(
        name=proto.name,
        inputs=[],
        outputs=[o.name for o in proto.output],
        nodes=[],
        types={},
        constants={},
        opsets=dict(opsets),
    )
    for tensor in proto.initializer:
        at = f"{where} initializer '{tensor.name}'"
        if tensor.name in graph.constants:
            raise ModelError("two initializers have one name", where=at)
        dtype, array = array_of(tensor, at)
        graph.constants[tensor.name] = array
        graph.types[tensor.name] = TensorType(dtype, tuple(array.shape))
    for sparse in proto.sparse_initializer:
        name = sparse.values.name
        dtype, array = _dense(sparse, f"{where} initializer '{name}'")
        graph.constants[name] = array
        graph.types[name] = TensorType(dtype, tuple(array.shape))
    for value in proto.input:
        if value.name in graph.constants:
            continue  # an initializer with a default that a caller could override: a constant here
        at = f"{where} input '{value.name}'"
        if value.name in graph.inputs:
            raise ModelError("two inputs have one name", where=at)
        graph.inputs.append(value.name)
        # What a body is given is typed where it is known: at its node.
        if outer is None or value.type.tensor_type.HasField("shape"):
            graph.types[value.name] = _type(value.name, value.type, at)
    _name_sizes(graph)
    nodes = [_node(n, i, opsets, f"{where}", graph) for i, n in enumerate(proto.node)]
    _unique(nodes, graph, where)
    graph.nodes = _sorted(nodes, graph, where, nested=outer is not None)
    return graph


def _name_sizes(graph: Graph) -> None:
    """A size such as "past + 1" of which no input has the past is a size of its own: what a run
    makes of it can only be seen as a whole."""
    dims = [dim for name in graph.inputs if name in graph.types for dim in graph.types[name].shape]
    seen = {atom for dim in dims if isinstance(atom := symbolic.lone_atom(dim), str)}
    for name in graph.inputs:
        type_ = graph.types.get(name)
        if type_ is not None:
            shape = (d if seen.issuperset(symbols(d)) else symbol(dim_str(d)) for d in type_.shape)
            graph.types[name] = TensorType(type_.dtype, tuple(shape))


def convert_nodes(
    proto: GraphProto,
) -> tuple[list[Node], dict[str, tuple[np.ndarray[Any, Any], TensorType]]]:
    """The nodes and initializers of a graph of opset `LATEST`, untyped."""
    graph = _graph(proto, {"": LATEST}, "function", Graph("", [], [], [], {}, {}, {}))
    constants = {k: (v, graph.types[k]) for k, v in graph.constants.items()}
    return graph.nodes, constants


def _type(name: str, proto: TypeProto, where: str) -> TensorType:
    if not proto.HasField("tensor_type"):
        raise UnsupportedError(
            f"a value of kind {proto.WhichOneof('value') or 'unknown'} is not supported",
            where=where,
            expected="a tensor",
            remedy="Export without sequences, maps and optional values",
        )
    tensor = proto.tensor_type
    dtype = dtype_of(tensor.elem_type, where)
    if not tensor.HasField("shape"):
        raise UnsupportedError(
            "the rank is not known",
            where=where,
            remedy="Export with input shapes; sizes that vary may be symbolic",
        )
    return TensorType(dtype, tuple(_dim(name, i, d, where) for i, d in enumerate(tensor.shape.dim)))


def _dim(name: str, index: int, proto: Any, where: str) -> Dim:
    if proto.HasField("dim_value"):
        if proto.dim_value < 0:
            # Some exporters write -1 for "any".
            return symbol(f"{name}_d{index}")
        if proto.dim_value >= 2**31:
            raise ModelError("a dimension is too large", where=where, got=proto.dim_value)
        return int(proto.dim_value)
    text = proto.dim_param
    return _parse_dim(text) if text else symbol(f"{name}_d{index}")


def _parse_dim(text: str) -> Dim:
    """A name, or an expression such as "past + sequence" that exporters write into `dim_param`."""
    try:
        found = _arithmetic(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return symbol(text)
    return found if isinstance(found, Expr) else symbol(text)


def _arithmetic(node: ast.expr) -> Dim:
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.BinOp):
        a, b = _arithmetic(node.left), _arithmetic(node.right)
        if isinstance(node.op, ast.Add):
            return a + b
        if isinstance(node.op, ast.Sub):
            return a - b
        if isinstance(node.op, ast.Mult):
            return a * b
        if isinstance(node.op, ast.FloorDiv) and b != 0:
            return a // b
    raise ValueError("not arithmetic")


def _node(proto: NodeProto, index: int, opsets: dict[str, int], where: str, graph: Graph) -> Node:
    domain = "" if proto.domain in _ONNX_DOMAINS else proto.domain
    node = Node(
        op=proto.op_type,
        inputs=list(proto.input),
        outputs=list(proto.output),
        domain=domain,
        name=proto.name or (proto.output[0] if proto.output else f"{proto.op_type}_{index}"),
    )
    while node.outputs and not node.outputs[-1]:
        node.outputs.pop()
    while node.inputs and not node.inputs[-1]:
        node.inputs.pop()
    for attribute in proto.attribute:
        at = f"{node.where()} attribute '{attribute.name}'"
        node.attrs[attribute.name] = _attribute(attribute, opsets, at, where, graph)
    normalise_attributes(node.op, node.attrs)
    for name in DTYPE_ATTRIBUTES.intersection(node.attrs):
        code = node.attrs[name]
        if domain or not isinstance(code, int):
            continue
        if code == 0 and name == "output_dtype":
            del node.attrs[name]  # "as the zero point has it"
        else:
            node.attrs[name] = _node_dtype(node, code)
    return node


def _node_dtype(node: Node, code: int) -> Any:
    """The element type, or its number where it is unsupported: inference reports it then."""
    try:
        return dtype_of(code, node.where())
    except UnsupportedError:
        return code


def _attribute(
    proto: AttributeProto, opsets: dict[str, int], at: str, where: str, graph: Graph
) -> Any:
    kind = proto.type
    try:
        if kind == AttributeProto.INT:
            return proto.i
        if kind == AttributeProto.FLOAT:
            return proto.f
        if kind == AttributeProto.STRING:
            return proto.s.decode("utf-8")
        if kind == AttributeProto.INTS:
            return list(proto.ints)
        if kind == AttributeProto.FLOATS:
            return list(proto.floats)
        if kind == AttributeProto.STRINGS:
            return [s.decode("utf-8") for s in proto.strings]
    except UnicodeDecodeError as error:
        raise ModelError("a text is not UTF-8", where=at, remedy=_REMEDY_BROKEN) from error
    if kind == AttributeProto.TENSOR:
        if proto.t.data_type == TensorProto.STRING:
            return [s.decode("utf-8", "replace") for s in proto.t.string_data]
        return array_of(proto.t, at)[1]
    if kind == AttributeProto.TENSORS:
        return [array_of(t, at)[1] for t in proto.tensors]
    if kind == AttributeProto.SPARSE_TENSOR:
        return _dense(proto.sparse_tensor, at)[1]
    if kind == AttributeProto.GRAPH:
        return _graph(proto.g, opsets, where, graph)
    if kind == AttributeProto.GRAPHS:
        return [_graph(g, opsets, where, graph) for g in proto.graphs]
    if kind == AttributeProto.TYPE_PROTO:
        return proto.tp  # of operators for optional values, which inference reports
    raise ModelError("an attribute has no usable type", where=at, got=kind)


def _dense(sparse: Any, where: str) -> tuple[Any, np.ndarray[Any, Any]]:
    dtype, values = array_of(sparse.values, where)
    _, indices = array_of(sparse.indices, where)
    shape = list(sparse.dims)
    count = int(np.prod(shape, dtype=object)) if shape else 1
    if count > 1 << 28 or any(d < 0 for d in shape):
        raise ModelError("a sparse tensor is too large", where=where, got=shape)
    dense = np.zeros(count, dtype=values.dtype)
    try:
        if indices.ndim == 2:
            indices = np.ravel_multi_index(tuple(indices.T), shape)
        dense[indices] = values
    except (ValueError, IndexError) as error:
        raise ModelError("a sparse tensor's indices are wrong", where=where, got=error) from error
    return dtype, dense.reshape(shape)


def _unique(nodes: list[Node], graph: Graph, where: str) -> None:
    """Values have one producer; nodes get distinct names."""
    seen: set[str] = {*graph.inputs, *graph.constants}
    names: dict[str, int] = {}
    for node in nodes:
        for out in filter(None, node.outputs):
            if out in seen:
                raise ModelError(
                    "a value is produced twice", where=f"{where}, {node.where()}", got=out
                )
            seen.add(out)
        count = names.get(node.name, 0)
        names[node.name] = count + 1
        if count:
            node.name = f"{node.name}#{count}"
    for out in graph.outputs:
        if len(set(graph.outputs)) != len(graph.outputs):
            raise ModelError("two outputs have one name", where=where, got=out)


def _sorted(nodes: list[Node], graph: Graph, where: str, nested: bool) -> list[Node]:
    """Topological order, as near the file's as can be."""
    produced = {out: node for node in nodes for out in node.outputs if out}
    have = {*graph.inputs, *graph.constants}
    waiting: dict[int, int] = {}
    users: dict[str, list[int]] = {}
    for i, node in enumerate(nodes):
        needs = [n for n in outer_names(node) if n in produced]
        missing = [n for n in outer_names(node) if n not in produced and n not in have]
        if missing and not nested:
            raise ModelError(
                "an input is produced by nothing",
                where=f"{where}, {node.where()}",
                got=missing[0],
                expected="an input, an initializer or another node's output",
                remedy=_REMEDY_BROKEN,
            )
        waiting[i] = len(needs)
        for name in needs:
            users.setdefault(name, []).append(i)
    if all(
        all(n not in produced or n in seen for n in outer_names(node))
        for seen, node in _prefix(nodes)
    ):
        return nodes
    ready = deque(i for i, count in waiting.items() if not count)
    order: list[Node] = []
    while ready:
        i = ready.popleft()
        order.append(nodes[i])
        for out in filter(None, nodes[i].outputs):
            for user in users.get(out, []):
                waiting[user] -= 1
                if not waiting[user]:
                    ready.append(user)
    if len(order) != len(nodes):
        left = [nodes[i].where() for i, count in waiting.items() if count]
        raise ModelError("the graph has a cycle", where=where, got=", ".join(left[:5]))
    return order


def _prefix(nodes: list[Node]) -> Iterable[tuple[set[str], Node]]:
    """Each node with the set of what the nodes before it produced."""
    seen: set[str] = set()
    for node in nodes:
        yield seen, node
        seen.update(node.outputs)


__all__ = ["combined", "convert_nodes", "load", "load_leniently"]
