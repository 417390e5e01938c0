"""FX graphs of ATen operators to the IR.

Every call of an operator that the op registry has an importer for becomes nodes of the IR; any
other becomes an ``aten`` node, which names the operator, and is reported with the reason.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import SymBool, SymFloat, SymInt, Tensor, fx
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

from plait.frontend import folding
from plait.frontend.aten import Arguments
from plait.frontend.tensors import Sizes, blob_of, dtype_of, number_of, type_of
from plait.ir import op as ops
from plait.ir import types
from plait.ir.builder import Builder, Capture, Value
from plait.ir.errors import PlaitError, Unsupported
from plait.ir.graph import Blob, Graph
from plait.ir.logs import logger
from plait.ir.ops.aten import bind, to_torch
from plait.ir.types import TensorType

_log = logger(__name__)

# Operators without a result that only check what capture has already established.
CHECKS: Final = frozenset(
    {
        "aten._assert_async.msg",
        "aten._assert_scalar.default",
        "aten._assert_tensor_metadata.default",
        "aten.sym_constrain_range.default",
        "aten.sym_constrain_range_for_size.default",
    }
)
# The meaning of these depends on how their operand lies in memory.
LAYOUT_SENSITIVE: Final = frozenset(
    {"aten.as_strided.default", "aten.as_strided_scatter.default", "aten.view.dtype"}
)


# Element types that the IR computes with; the others are carried, and computed by torch.
COMPUTED: Final = frozenset(
    {
        types.f32, types.f64, types.i8, types.i16, types.i32, types.i64, types.u8, types.u16,
        types.u32, types.u64, types.bool_,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Fallback:
    """A call that no importer took: the operator, where it stands in the source, and why."""

    target: str
    loc: str
    reason: str


@dataclass(frozen=True)
class Imported:
    """A graph and what could not be lowered in it.

    `outputs` describes the results of the captured function in order: the index of a graph output,
    or a value that is no tensor (None, a number).
    """

    graph: Graph
    fallbacks: tuple[Fallback, ...]
    outputs: tuple[tuple[bool, Any], ...]


@dataclass
class _State:
    b: Builder
    root: torch.nn.Module
    sizes: Sizes | None
    constants: Mapping[str, Blob]
    orders: Mapping[str, tuple[int, ...]]
    env: dict[fx.Node, Any] = field(default_factory=dict)
    fallbacks: list[Fallback] = field(default_factory=list)
    draws: int = 0


def import_graph(
    module: fx.GraphModule,
    *,
    name: str = "main",
    constants: Mapping[str, Blob] | None = None,
    orders: Mapping[str, tuple[int, ...]] | None = None,
    output_orders: Mapping[int, tuple[int, ...]] | None = None,
    sizes: Sizes | None = None,
) -> Imported:
    """Import a functional graph of ATen operators.

    `constants` gives placeholders (by name) their values, which leaves them out of the inputs.
    `orders` names the placeholders that are passed in physical order (outermost first), and
    `output_orders` the outputs, by position, that are to be returned so. `sizes` binds symbolic
    sizes by name. Raises `Unsupported` for what no node can express: sizes that depend on data,
    control flow, sparse tensors.
    """
    state = _State(Builder(name), module, sizes, constants or {}, orders or {})
    nodes = list(module.graph.nodes)
    _declare_inputs(state, [n for n in nodes if n.op == "placeholder"])
    for node in nodes:
        if node.op == "placeholder":
            continue
        with state.b.at(location(node)):
            if node.op == "get_attr":
                state.env[node] = _attribute(state, node)
            elif node.op == "call_function":
                state.env[node] = _call(state, node)
            elif node.op == "output":
                return _finish(state, node, output_orders or {})
            else:
                raise Unsupported(f"FX node {node.name} of kind {node.op} is not supported")
    raise Unsupported("the FX graph has no output node")


def _declare_inputs(state: _State, placeholders: Sequence[fx.Node]) -> None:
    """Inputs first, in order; then the constants and the views that undo a physical order."""
    passed: list[tuple[fx.Node, Value]] = []
    for node in placeholders:
        value = node.meta.get("val")
        if node.name in state.constants:
            continue
        if isinstance(value, Tensor):
            ty = type_of(value, state.sizes)
            order = state.orders.get(node.name, tuple(range(ty.rank)))
            physical = TensorType(ty.dtype, tuple(ty.shape[d] for d in order))
            passed.append((node, state.b.input(physical, input_name(node))))
        else:
            state.env[node] = number_of(value, state.sizes)
    for node, value in passed:
        order = state.orders.get(node.name, tuple(range(value.rank)))
        state.env[node] = state.b.transpose(value, [order.index(d) for d in range(value.rank)])
    for node in placeholders:
        if node.name in state.constants:
            state.env[node] = state.b.constant(state.constants[node.name])


def input_name(node: fx.Node) -> str:
    """A placeholder's name: what the user called it where that is known."""
    return str(node.target)


def _attribute(state: _State, node: fx.Node) -> Any:
    """A tensor that the traced function closed over; submodules are bodies of control flow."""
    value = operator.attrgetter(str(node.target))(state.root)
    if isinstance(value, Tensor):
        return state.b.constant(blob_of(value, str(node.target)))
    raise Unsupported(f"the graph refers to {node.target}, a {type(value).__name__}")


def _call(state: _State, node: fx.Node) -> Any:
    if node.target is operator.getitem:
        source, index = node.args
        return _argument(state, source)[index]
    if not isinstance(node.target, OpOverload):
        return _call_python(state, node)
    target = str(node.target)
    if target in CHECKS:
        return None
    value = node.meta.get("val")
    if target.startswith("aten.sym_") or isinstance(value, SymInt | SymFloat | SymBool | int):
        return number_of(value, state.sizes)
    results = _results(value, state.sizes)
    if not results:
        raise Unsupported(f"operator {target} returns no tensor")
    if target in LAYOUT_SENSITIVE:
        reason = "its meaning depends on the memory order of its operand"
        _require_plain_memory(target, node.args[0])
    else:
        taken, reason = _import(state, node, target, value, results)
        if taken is not None:
            return taken
    return _fall_back(state, node, target, value, results, reason)


def _require_plain_memory(target: str, operand: Any) -> None:
    """The runtime's tensors are row-major from the start of their memory; others cannot serve."""
    value = operand.meta["val"]
    plain = value.is_contiguous() and value.storage_offset() == 0
    if not plain or value.untyped_storage().nbytes() != value.numel() * value.itemsize:
        raise Unsupported(f"{target} reads a tensor with strides {tuple(value.stride())}")


def _call_python(state: _State, node: fx.Node) -> Any:
    """Arithmetic on sizes; other callables (control flow, triton wrappers) are not supported."""
    value = node.meta.get("val")
    if isinstance(value, SymInt | SymFloat | SymBool | int | float | bool):
        return number_of(value, state.sizes)
    name = getattr(node.target, "__name__", str(node.target))
    raise Unsupported(f"the graph calls {name}, which is not an ATen operator")


def _draws(node: fx.Node) -> bool:
    """Whether the call draws random numbers."""
    return torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())


def _results(value: Any, sizes: Sizes | None) -> tuple[TensorType, ...]:
    if isinstance(value, Tensor):
        return (type_of(value, sizes),)
    if isinstance(value, list | tuple):
        return tuple(ty for item in value for ty in _results(item, sizes))
    return ()


def _import(
    state: _State, node: fx.Node, target: str, value: Any, results: tuple[TensorType, ...]
) -> tuple[Any, str]:
    """The importer's values for the node, or None and why the importer cannot take it."""
    importer = ops.importer(target)
    if importer is None:
        return None, "no importer"
    b = state.b
    mark = len(b.nodes), len(b.types)
    try:
        args = [_argument(state, a) for a in node.args]
        kwargs = {k: _argument(state, a) for k, a in node.kwargs.items()}
        _require_computed(args, results)
        made = importer(Capture(b, results), *args, **kwargs)
        _check(target, made, value, state.sizes)
    except (PlaitError, NotImplementedError) as error:
        del b.nodes[mark[0] :], b.types[mark[1] :], b.made_by[mark[1] :]
        _log.debug("%s falls back: %s", target, error)
        return None, str(error) or type(error).__name__
    return made, ""


def _require_computed(args: Sequence[Any], results: Sequence[TensorType]) -> None:
    operands = [a.type for a in pytree.tree_leaves(args) if isinstance(a, Value)]
    for ty in (*operands, *results):
        if ty.dtype not in COMPUTED:
            raise NotImplementedError(f"arithmetic in {ty.dtype}")


def _check(target: str, made: Any, value: Any, sizes: Sizes | None) -> None:
    """An importer's values must have the types that torch gives the node's results.

    An importer may leave out a result that no model reads, by giving None for it.
    """
    if isinstance(value, list | tuple):
        if not isinstance(made, list | tuple):
            raise Unsupported(f"importer of {target} gave one value for {len(value)} results")
        for item, expected in zip(made, value, strict=False):
            _check(target, item, expected, sizes)
        return
    if made is None or not isinstance(value, Tensor):
        return
    expected = type_of(value, sizes)
    if (made.type.dtype, made.type.shape) != (expected.dtype, expected.shape):
        raise Unsupported(f"importer of {target} gave {made.type}, torch gives {expected}")


def _argument(state: _State, value: Any) -> Any:
    """An FX argument as importers take it."""
    if isinstance(value, fx.Node):
        return state.env[value]
    if isinstance(value, list | tuple):
        return [_argument(state, item) for item in value]
    if isinstance(value, torch.dtype):
        return dtype_of(value)
    return number_of(value, state.sizes)


def _fall_back(
    state: _State,
    node: fx.Node,
    target: str,
    value: Any,
    results: tuple[TensorType, ...],
    reason: str,
) -> Any:
    """Emit an ``aten`` node and give its results in torch's structure."""
    arguments = Arguments()
    args = [_argument(state, a) for a in node.args]
    kwargs = {k: _argument(state, a) for k, a in node.kwargs.items()}
    draw = None
    if _draws(node):
        draw = state.draws = state.draws + 1
    text = arguments.text(args, kwargs, draw)
    if draw is None and (folded := _folded(state.b, target, text, arguments, results)) is not None:
        return _structured(value, iter(folded).__next__, state.sizes)
    attrs = {
        "target": target,
        "arguments": text,
        "dtypes": tuple(ty.dtype.name for ty in results),
        "shapes": tuple(ty.shape for ty in results),
    }
    state.fallbacks.append(Fallback(target, state.b.loc, reason))
    flat = iter(state.b.emit_all("aten", arguments.operands, attrs))
    return _structured(value, flat.__next__, state.sizes)


def _folded(
    b: Builder, target: str, text: str, arguments: Arguments, results: tuple[TensorType, ...]
) -> list[Value] | None:
    """The operator's results as constants if its operands are known now."""
    arrays = folding.known(b, arguments.operands)
    if arrays is None:
        return None
    types = [v.type for v in arguments.operands]
    tensors = [to_torch(a, ty) for a, ty in zip(arrays, types, strict=True)]
    return folding.constants(b, bind(target, text)(tensors), results)


def _structured(value: Any, take: Callable[[], Value], sizes: Sizes | None) -> Any:
    if isinstance(value, Tensor):
        return take()
    if isinstance(value, list | tuple):
        return tuple(_structured(item, take, sizes) for item in value)
    return number_of(value, sizes)


def _finish(state: _State, node: fx.Node, orders: Mapping[int, tuple[int, ...]]) -> Imported:
    results = node.args[0]
    if not isinstance(results, list | tuple):
        results = (results,)
    outputs: list[Value] = []
    described: list[tuple[bool, Any]] = []
    for position, item in enumerate(results):
        value = _argument(state, item)
        if isinstance(value, Value):
            described.append((True, len(outputs)))
            order = orders.get(position)
            outputs.append(value if order is None else state.b.transpose(value, order))
        else:
            described.append((False, value))
    graph = state.b.finish(outputs)
    return Imported(graph, tuple(state.fallbacks), tuple(described))


_FRAME = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+)')


def location(node: fx.Node) -> str:
    """Where a node comes from: ``file:line in module.path``, as far as torch recorded it."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    frames = [f for f in frames if "/torch/" not in f[0]] or frames
    where = f"{frames[-1][0].rsplit('/', 1)[-1]}:{frames[-1][1]}" if frames else ""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(next(reversed(stack.values()))[0]) if stack else ""
    path = re.sub(r"L\['self'\]\.?|L\['\w+'\]\.?|_modules\['([^']+)'\]", r"\1", path).strip(".")
    return f"{where} in {path}" if where and path else where or path
