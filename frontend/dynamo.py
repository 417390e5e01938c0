"""The ``torch.compile`` backend.

``torch.compile(model, backend="plait", options={...})`` ends here: AOTAutograd makes the graph
functional and, where gradients are needed, splits it into forward and backward; each graph becomes
a `CompiledGraph`.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import SymInt, Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.schemas import OutputType, SubclassCreationMeta
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import TracingContext
from torch._subclasses.functional_tensor import FunctionalTensor

from plait.frontend import decompositions, native
from plait.frontend import options as backend_options
from plait.frontend.importer import COMPUTED, Fallback, import_graph
from plait.frontend.options import Options
from plait.frontend.program import Compile, Program, Run, interpreted
from plait.frontend.tensors import (
    FROM_TORCH,
    blob_of,
    dim_of,
    is_dense,
    row_major,
    stride_order,
)
from plait.frontend.weights import Watch
from plait.ir import logs
from plait.ir.errors import Unsupported, UnsupportedOp
from plait.ir.logs import logger

_log = logger(__name__)

# Packing weights anew costs a compilation. After this many times they are inputs for good.
MOST_REPACKS = 2
# Sets of weights that one graph is compiled for, when layers share it; past that they are inputs.
MOST_WEIGHTS = 64
# Concrete sizes that one graph is compiled for; torch runs the graph for any others.
MOST_SIZES = 16


def plait(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph that Dynamo captured.

    Raises `UnknownName` and `UsageError` for a bad mode or option.
    """
    logs.configure()
    settings = backend_options.resolve(mode, options)
    grads = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in example_inputs
    )
    direct: list[CompiledGraph] = []
    backend = aot_autograd(
        fw_compiler=partial(_compile, settings, "forward"),
        bw_compiler=partial(_compile, settings, "backward"),
        inference_compiler=partial(_compile, settings, "inference", plain=direct),
        decompositions=decompositions.table(gradients=grads),
        partition_fn=min_cut_rematerialization_partition,
    )
    with nullcontext() if grads else decompositions.keep_whole():
        compiled: Callable[..., Any] = backend(gm, example_inputs)
    if len(direct) == 1 and not grads:
        (graph,) = direct
        # AOTAutograd's wrapper would add to every call, and has nothing to do for this graph.
        return lambda *args: graph(args)
    return compiled


def _compile(
    settings: Options,
    role: str,
    module: fx.GraphModule,
    _: Sequence[Any],
    plain: list[CompiledGraph] | None = None,
) -> Callable[[list[Any]], Any]:
    """What AOTAutograd calls with each graph: `role` is inference, forward or backward.

    A graph that takes and gives exactly what Dynamo's does is added to `plain`.
    """
    graph = CompiledGraph(module, settings, role, _static_inputs(module, settings, role))
    if plain is not None and _needs_no_wrapper(module):
        plain.append(graph)
    _recent.append(weakref.ref(graph))
    del _recent[:-_KEPT]

    def run(args: list[Any]) -> Any:
        taken = list(args)
        args.clear()
        return graph(taken)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _metadata() -> Any:
    """What AOTAutograd knows of the graph that is being compiled (ViewAndMutationMeta), or None."""
    context = TracingContext.try_get()
    return context.fw_metadata if context is not None else None


def _needs_no_wrapper(module: fx.GraphModule) -> bool:
    """Whether a functional graph does all of the original's work: no mutation, no alias, no
    subclass to take apart."""
    meta = _metadata()
    if meta is None or meta.num_intermediate_bases or meta.tokens:
        return False
    if meta.grad_enabled_mutation is not None:
        return False
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    return (
        len(placeholders) == len(meta.input_info)
        and not any(isinstance(i, SubclassCreationMeta) for i in meta.subclass_inp_meta)
        and not any(i.mutates_data or i.mutates_metadata for i in meta.input_info)
        and len(output.args[0]) == len(meta.output_info)
        and all(o.output_type == OutputType.non_alias for o in meta.output_info)
        and all(o.raw_type in (Tensor, FunctionalTensor) for o in meta.output_info)
    )


def _static_inputs(module: fx.GraphModule, settings: Options, role: str) -> tuple[int, ...]:
    """Positions of the placeholders that are parameters and buffers which the graph only reads."""
    meta = _metadata()
    if role != "inference" or settings.freeze == "never" or meta is None:
        return ()
    count = sum(node.op == "placeholder" for node in module.graph.nodes)
    if count != len(meta.input_info):
        return ()
    return tuple(k for k in meta.static_input_indices if not meta.input_info[k].mutates_data)


@dataclass(frozen=True)
class _Form:
    """How eager returns an output that is dense but not row-major."""

    shape: tuple[int, ...]
    strides: tuple[int, ...]
    order: tuple[int, ...] | None  # the physical order that the graph returns; None: row-major


@dataclass(frozen=True)
class _Variant:
    """The graph compiled for concrete sizes and strides, and maybe for concrete weights."""

    program: Program
    outputs: tuple[tuple[bool, Any], ...]
    orders: tuple[tuple[int, tuple[int, ...] | None], ...]  # inputs: position, physical order
    returned: Mapping[int, _Form]
    watch: Watch | None

    @cached_property
    def direct(self) -> tuple[Run, tuple[int, ...]] | None:
        """A segment that does all of the work as it is, and the positions of its arguments."""
        found = self.program.only_segment
        plain = all(order is None for _, order in self.orders) and not self.returned
        if found is None or not plain or not all(is_tensor for is_tensor, _ in self.outputs):
            return None
        if [value for _, value in self.outputs] != list(range(len(self.outputs))):
            return None
        return found[0], tuple(self.orders[v][0] for v in found[1])


class CompiledGraph:
    """One FX graph as a callable on a list of tensors and sizes.

    Compilation waits for the first call, when the values of parameters and the concrete sizes are
    known; other sizes and other weights later give other variants of the same graph.
    """

    def __init__(
        self, module: fx.GraphModule, settings: Options, role: str, static: tuple[int, ...]
    ) -> None:
        self.module = module
        self.settings = settings
        self.role = role
        self.fallbacks: tuple[Fallback, ...] = ()
        self.reason_eager = ""
        self.repacks = 0
        self._placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
        self._static = static
        self._sizes = _size_sources(self._placeholders)
        self._variants: dict[Any, list[_Variant]] = {}
        self._lock = threading.Lock()
        self._warned = False

    @property
    def programs(self) -> list[Program]:
        """The compiled variants."""
        return [v.program for variants in self._variants.values() for v in variants]

    def __call__(self, args: Sequence[Any]) -> tuple[Any, ...]:
        if self.reason_eager:
            return tuple(self.module(*args))
        sizes = {name: _read_size(args, source) for name, source in self._sizes.items()}
        key = _key(args, sizes)
        variant = self._find(key, args)
        if variant is None:
            with self._lock:  # another thread may have compiled it, or unfrozen the weights
                variant = self._find(key, args) or self._new(key, args, sizes)
            if variant is None:
                return tuple(self.module(*args))
        return _run(variant, args)

    def _find(self, key: Any, args: Sequence[Any]) -> _Variant | None:
        weights = [args[k] for k in self._static]
        for variant in self._variants.get(key, ()):
            state = "same" if variant.watch is None else variant.watch.state(weights)
            if state != "other":
                return variant if state == "same" else None
        return None

    def _new(self, key: Any, args: Sequence[Any], sizes: Mapping[str, int]) -> _Variant | None:
        """Compile a variant; None when torch must run the graph, which is then remembered."""
        self._static = tuple(k for k in self._static if _can_freeze(args[k]))
        weights = [args[k] for k in self._static]
        known = self._variants.get(key, [])
        if not known and len(self._variants) >= MOST_SIZES:
            self._say(f"it has been compiled for {MOST_SIZES} sets of sizes already")
            return None
        kept = [v for v in known if v.watch is None or v.watch.state(weights) == "other"]
        self.repacks += len(known) - len(kept)
        if self.repacks > MOST_REPACKS or len(kept) >= MOST_WEIGHTS:
            _log.info("%s: weights keep changing, they are inputs from now on", self.role)
            self._static, weights, kept = (), [], []
            self._variants.clear()
        try:
            variant = self._build(args, sizes, weights)
        except Unsupported as error:
            if self.settings.fallback == "error":
                raise
            self.reason_eager = str(error)
            self._say(self.reason_eager)
            return None
        self._variants[key] = [*kept, variant]
        return variant

    def _say(self, reason: str) -> None:
        """Warn, once per graph, that torch runs it."""
        if not self._warned:
            self._warned = True
            warnings.warn(f"plait leaves a graph to torch: {reason}", stacklevel=2)

    def _build(
        self, args: Sequence[Any], sizes: Mapping[str, int], weights: Sequence[Tensor]
    ) -> _Variant:
        names = [node.name for node in self._placeholders]
        values = self.settings.freeze != "always"
        watch = Watch(weights, values) if weights else None  # before they are read
        frozen = dict(zip(self._static, weights, strict=True))
        orders = {
            k: stride_order(x.shape, x.stride()) if _computed(x) else None
            for k, x in enumerate(args)
            if isinstance(x, Tensor) and k not in frozen
        }
        returned = _returned(self.module, sizes)
        imported = import_graph(
            self.module,
            name=self.role,
            constants={names[k]: blob_of(t, names[k]) for k, t in frozen.items()},
            orders={names[k]: o for k, o in orders.items() if o is not None},
            output_orders={k: f.order for k, f in returned.items() if f.order is not None},
            sizes=sizes,
        )
        self.fallbacks = imported.fallbacks
        if imported.fallbacks and self.settings.fallback == "error":
            first = imported.fallbacks[0]
            raise UnsupportedOp(first.target, first.loc)
        program = Program(imported.graph, _compiler(self.settings))
        plain = [k for k, o in orders.items() if o == tuple(range(len(o or ())))]
        permuted = tuple((k, None if k in plain else o) for k, o in orders.items())
        return _Variant(program, imported.outputs, permuted, returned, watch)


def _key(args: Sequence[Any], sizes: Mapping[str, int]) -> Any:
    """What a variant is specialised to. Dynamo guards strides, but not of symbolic sizes."""
    if not sizes:
        return ()
    return (*sizes.values(), tuple(x.stride() for x in args if isinstance(x, Tensor)))


def _can_freeze(tensor: Tensor) -> bool:
    """Whether the tensor's memory can become a constant; Dynamo guards all that this looks at."""
    return is_dense(tensor) and tensor.dtype != torch.bfloat16


def _compiler(settings: Options) -> Compile:
    return interpreted if settings.executor == "interpreter" else native.compiler(settings)


def _run(variant: _Variant, args: Sequence[Any]) -> tuple[Any, ...]:
    if variant.direct is not None:
        run, positions = variant.direct
        given = [args[k] for k in positions]
        if all(is_dense(x) and x.is_contiguous() and not x.requires_grad for x in given):
            return tuple(run(given))
    inputs = [args[k] if order is None else args[k].permute(order) for k, order in variant.orders]
    tensors = variant.program(inputs)
    results: list[Any] = []
    for position, (is_tensor, value) in enumerate(variant.outputs):
        if is_tensor and position in variant.returned:
            results.append(_formed(tensors[value], variant.returned[position]))
        else:
            results.append(tensors[value] if is_tensor else value)
    return tuple(results)


def _formed(tensor: Tensor, form: _Form) -> Tensor:
    """The tensor with the strides that eager gives it."""
    if form.order is not None:
        return tensor.as_strided(form.shape, form.strides)
    return tensor.new_empty_strided(form.shape, form.strides).copy_(tensor)


def _computed(tensor: Tensor) -> bool:
    """Whether compiled code may hold the tensor, so that a change of its order costs no copy."""
    return FROM_TORCH.get(tensor.dtype) in COMPUTED


def _returned(module: fx.GraphModule, sizes: Mapping[str, int]) -> dict[int, _Form]:
    """By position, the outputs that eager returns dense but not row-major."""
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    found: dict[int, _Form] = {}
    for position, node in enumerate(output.args[0]):
        value: Any = node.meta.get("val") if isinstance(node, fx.Node) else None
        if not isinstance(value, Tensor) or node.op == "placeholder":
            continue
        shape = tuple(_size(n, sizes) for n in value.shape)
        strides = tuple(_size(n, sizes) for n in value.stride())
        order = stride_order(shape, strides)
        if strides != row_major(shape) and order is not None:
            found[position] = _Form(shape, strides, order if _computed(value) else None)
    return found


def _size(size: int | SymInt, sizes: Mapping[str, int]) -> int:
    value = dim_of(size, sizes)
    if not isinstance(value, int):
        raise Unsupported(f"size {value} is not known at the call")
    return value


_Source = tuple[int, int | None]


def _size_sources(placeholders: Sequence[fx.Node]) -> dict[str, _Source]:
    """Where to read each symbolic size: an argument that is it, or a dimension of one."""
    found: dict[str, _Source] = {}

    def note(size: Any, source: _Source) -> None:
        if isinstance(size, SymInt) and size.node.expr.is_Symbol:
            found.setdefault(size.node.expr.name, source)

    values = [node.meta.get("val") for node in placeholders]
    for k, value in enumerate(values):
        note(value, (k, None))
    for k, value in enumerate(values):
        if isinstance(value, Tensor):
            for d, size in enumerate(value.shape):
                note(size, (k, d))
    return found


def _read_size(args: Sequence[Any], source: _Source) -> int:
    position, dim = source
    return int(args[position] if dim is None else args[position].shape[dim])


_recent: list[weakref.ref[CompiledGraph]] = []
_KEPT = 64


def recent() -> list[CompiledGraph]:
    """The graphs captured last that are still in use, newest at the end."""
    return [graph for ref in _recent if (graph := ref()) is not None]


def forget() -> None:
    """Start the list of recent graphs anew."""
    _recent.clear()
