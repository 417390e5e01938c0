"""Models through ``torch.export``: a module, a program, a ``.pt2`` file or a factory's name."""

from __future__ import annotations

import importlib
import os
import re
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument
from torch.utils import _pytree as pytree

from plait.codegen.plan import distinct
from plait.frontend import decompositions
from plait.frontend.importer import Fallback, import_graph
from plait.frontend.tensors import blob_of, dense, is_dense
from plait.ir import dims
from plait.ir.dims import Dim
from plait.ir.errors import PlaitError, Unsupported, UsageError
from plait.ir.graph import Blob, Graph
from plait.ir.ops.aten import to_numpy
from plait.runtime.artifact import MANIFEST

# Per input, the dimensions that vary: index to name and inclusive range.
Dynamic: TypeAlias = Mapping[str, Mapping[int, tuple[str, int, int]]]


@dataclass(frozen=True)
class CapturedModel:
    """A model as a graph whose weights are named constants.

    `output_names` are in the order of the graph's outputs; `samples` are the example inputs by
    name and `expected` the outputs that eager gives for them, both empty where none are known.
    """

    graph: Graph
    fallbacks: tuple[Fallback, ...]
    output_names: tuple[str, ...]
    samples: Mapping[str, NDArray[Any]]
    expected: Mapping[str, NDArray[Any]]

    @property
    def input_names(self) -> tuple[str, ...]:
        return tuple(i.name for i in self.graph.inputs)


def capture(
    source: nn.Module | ExportedProgram | str | Path,
    example_args: Sequence[Any] | None = None,
    *,
    name: str = "model",
    dynamic: Dynamic | None = None,
) -> CapturedModel:
    """Capture a model for inference.

    `source` is a module with `example_args`, an ExportedProgram, the path of a ``.pt2`` file, or
    ``"package.module:factory"`` where the factory returns ``(module, args)`` or an object with
    attributes ``model`` and ``example_args``. `dynamic` lets dimensions of a module's inputs vary.

    Raises `UsageError` for a source that cannot be found or read, `Unsupported` for a model that
    torch.export or the importer cannot capture.
    """
    program: ExportedProgram
    if isinstance(source, str | Path):
        found = load(source)
        if isinstance(found, tuple):
            source, example_args = found
        else:
            source = found
    if isinstance(source, nn.Module):
        if example_args is None:
            raise UsageError("a module needs example arguments to be captured")
        program = export(source, tuple(example_args), dynamic)
    else:
        if dynamic:
            raise UsageError("an exported program has its dynamic dimensions already")
        program = source
    return from_exported(program, name=name, dynamic=dynamic)


def export(module: nn.Module, args: tuple[Any, ...], dynamic: Dynamic | None) -> ExportedProgram:
    """Run torch.export in eval mode without gradients; `Unsupported` says what it objected to."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        with torch.no_grad():
            shapes = _dynamic_shapes(module, args, dynamic) if dynamic else None
            return torch.export.export(module, args, dynamic_shapes=shapes, strict=False)
    except UsageError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise Unsupported(f"torch.export cannot capture the model: {reason.strip()}") from error
    finally:
        for part in training:
            part.training = True


def _dynamic_shapes(module: nn.Module, args: tuple[Any, ...], dynamic: Dynamic) -> Any:
    import inspect

    shared: dict[str, Any] = {}
    names = list(inspect.signature(module.forward).bind(*args).arguments)
    for name in dynamic:
        if name not in names:
            raise UsageError(f"dynamic input {name!r}: the model has inputs {', '.join(names)}")

    def shape(dimensions: Mapping[int, tuple[str, int, int]]) -> dict[int, Any]:
        found = {}
        for index, (symbol, low, high) in dimensions.items():
            shared.setdefault(symbol, torch.export.Dim(symbol, min=low, max=high))
            found[index] = shared[symbol]
        return found

    return {name: shape(dynamic[name]) if name in dynamic else None for name in names}


def from_exported(
    program: ExportedProgram, *, name: str = "model", dynamic: Dynamic | None = None
) -> CapturedModel:
    """Decompose an ExportedProgram and import it."""
    samples, expected = _run_samples(program)
    lowered = program.run_decompositions(decompositions.table())
    signature = lowered.graph_signature
    for output in signature.output_specs:
        if output.kind in (OutputKind.BUFFER_MUTATION, OutputKind.USER_INPUT_MUTATION):
            raise Unsupported(
                f"the model writes to {output.target!r} while it runs; pass such state in and "
                "return it"
            )
    imported = import_graph(
        lowered.graph_module,
        name=name,
        constants=_constants(lowered),
        sizes=_named_sizes(lowered, dynamic or {}),
    )
    names = _output_names(lowered)
    kept = [n for n, (is_tensor, _) in zip(names, imported.outputs, strict=True) if is_tensor]
    inputs = [i.name for i in imported.graph.inputs]
    return CapturedModel(
        imported.graph,
        imported.fallbacks,
        tuple(kept),
        dict(zip(inputs, samples, strict=True)) if samples else {},
        dict(zip(kept, expected, strict=True)) if expected else {},
    )


def _run_samples(program: ExportedProgram) -> tuple[list[NDArray[Any]], list[NDArray[Any]]]:
    """The program's example inputs and its eager outputs for them, tensors only."""
    if program.example_inputs is None:
        return [], []
    args, kwargs = program.example_inputs
    with torch.no_grad():
        outputs = program.module()(*args, **kwargs)
    return _arrays((args, kwargs)), _arrays(outputs)


def _arrays(tree: Any) -> list[NDArray[Any]]:
    return [to_numpy(dense(x)) for x in pytree.tree_leaves(tree) if isinstance(x, Tensor)]


def _constants(program: ExportedProgram) -> dict[str, Blob]:
    """Parameters, buffers and lifted constants by placeholder; tied weights share one blob."""
    shared: dict[Any, Blob] = {}
    found: dict[str, Blob] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            continue
        if spec.target is None or not isinstance(spec.arg, TensorArgument):
            raise Unsupported(f"the model holds {spec.arg.name!r}, which is not a tensor")
        tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if not isinstance(tensor, Tensor):
            raise Unsupported(f"the model holds {spec.target!r}, which is not a tensor")
        own = is_dense(tensor) and tensor.numel() > 0  # else the address says nothing of values
        key = (own, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if key not in shared or not own:
            shared[key] = blob_of(tensor, spec.target)
        found[spec.arg.name] = shared[key]
    return found


def _named_sizes(program: ExportedProgram, dynamic: Dynamic) -> dict[str, Dim]:
    """Torch's names of symbolic sizes to the user's."""
    values = {n.name: n.meta.get("val") for n in program.graph.nodes if n.op == "placeholder"}
    found: dict[str, Dim] = {}
    for input_name, dimensions in dynamic.items():
        for index, (symbol, low, high) in dimensions.items():
            size = values[input_name].shape[index]
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                found[size.node.expr.name] = dims.symbol(symbol, low, high)
    return found


def _output_names(program: ExportedProgram) -> list[str]:
    """``output`` for a lone tensor, ``output_0``... for a sequence, keys and fields where given."""
    spec = program.call_spec.out_spec
    count = len(program.graph_signature.output_specs)
    if spec is None or spec.num_leaves != count:
        return [f"output_{k}" for k in range(count)]
    tree = pytree.tree_unflatten(list(range(count)), spec)
    paths = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    names = [re.sub(r"\W+", "_", path).strip("_") for path in paths]
    return distinct([f"output_{n}" if n.isdigit() else n or "output" for n in names])


def load(source: str | Path) -> ExportedProgram | tuple[nn.Module, tuple[Any, ...]]:
    """An ExportedProgram from a ``.pt2`` file, or a module with arguments from a factory."""
    text = str(source)
    if ":" in text and not os.path.exists(text):
        return _from_factory(text)
    if not os.path.isfile(text):
        expected = "a .pt2 file or package.module:factory"
        raise UsageError(f"{text}: no such file; expected {expected}")
    if not zipfile.is_zipfile(text):
        raise UsageError(f"{text}: not a .pt2 file made by torch.export.save")
    with zipfile.ZipFile(text) as archive:
        if MANIFEST in archive.namelist():
            raise UsageError(f"{text}: an artifact, compiled already; `plait inspect` shows it")
    try:
        return torch.export.load(text)
    except Exception as error:
        reason = (str(error).splitlines() or [repr(error)])[0]
        raise UsageError(f"{text}: torch.export.load cannot read it ({reason})") from error


def _from_factory(text: str) -> tuple[nn.Module, tuple[Any, ...]]:
    module_name, _, attribute = text.partition(":")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"{text}: no module named {error.name!r}") from error
    factory: Callable[[], Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        raise UsageError(f"{text}: {module_name} has no callable {attribute!r}")
    try:
        made = factory()
    except (ModuleNotFoundError, PlaitError):
        raise
    except Exception as error:
        raise UsageError(f"{text}: the factory raised {error!r}") from error
    if isinstance(made, tuple) and len(made) == 2:
        model, args = made
    else:
        model, args = getattr(made, "model", made), getattr(made, "example_args", None)
    if not isinstance(model, nn.Module) or not isinstance(args, list | tuple):
        raise UsageError(f"{text}: expected the factory to return (module, example arguments)")
    return model, tuple(args)
