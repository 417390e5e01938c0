"""Importers of ATen overloads: the imported graph, interpreted, against torch itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import pytest

from plait.fuzz.samples import DOMAINS, INTEGERS, SPECIAL, floats, within
from plait.ir import op as ops
from plait.ir.builder import Builder, Capture, Value
from plait.ir.interp import interpret
from plait.ir.types import DTYPES, TensorType, from_numpy
from plait.ir.verify import verify

torch = pytest.importorskip("torch", reason="torch comes with the compile extra")
Case = tuple[str, tuple[Any, ...], dict[str, Any]]

X, Y = floats(2, 3, 4), floats(3, 1, seed=1)
IMAGE = floats(2, 4, 7, 6)
FLAGS = X > 0
IDS = np.array([[0, 2], [1, -1]])
I32 = INTEGERS.reshape(2, 4)
DIVISORS = np.array([3, -2, 5, 7], np.int32)


def case(target: str, *args: Any, **kwargs: Any) -> Case:
    return target, args, kwargs


def elementwise() -> Iterator[Case]:
    """One operand each; then operands of two dtypes, numbers, and special values."""
    for name in sorted(ops.OPS):
        target = f"aten.{name}.default"
        record = ops.OPS[name]
        if target in ops.CAPTURES and "elementwise" in record.traits and len(record.operands) == 1:
            yield case(target, within(*DOMAINS.get(name, (-9, 9))))
            yield case(target, SPECIAL)
    for name in ("abs", "neg", "sign", "relu", "exp", "sigmoid"):
        yield case(f"aten.{name}.default", I32)
    for name in ("add", "sub", "rsub", "mul", "div"):
        yield case(f"aten.{name}.Tensor", X, Y)
        yield case(f"aten.{name}.Tensor", X, I32[:1])
        yield case(f"aten.{name}.Tensor", I32, DIVISORS.astype(np.int64))
        yield case(f"aten.{name}.Tensor", SPECIAL[:, None], SPECIAL)
        yield case(f"aten.{name}.Scalar", I32, 3)
        yield case(f"aten.{name}.Scalar", I32, 2.5)
    for name in ("add", "sub", "rsub"):
        yield case(f"aten.{name}.Tensor", X, Y, alpha=2.5)
    yield case("aten.add.Tensor", FLAGS, I32[:1])
    for name in ("remainder", "fmod"):
        yield case(f"aten.{name}.Tensor", X * 9, Y)
        yield case(f"aten.{name}.Tensor", I32, DIVISORS)
        yield case(f"aten.{name}.Scalar", I32, -3)
        yield case(f"aten.{name}.Scalar", X, 0.75)
    for mode in ("floor", "trunc", None):
        yield case("aten.div.Tensor_mode", X * 9, Y, rounding_mode=mode)
        yield case("aten.div.Scalar_mode", I32, -3, rounding_mode=mode)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        yield case(f"aten.{name}.Tensor", SPECIAL[:, None], SPECIAL)
        yield case(f"aten.{name}.Tensor", I32, DIVISORS.astype(np.float32))
        yield case(f"aten.{name}.Scalar", I32, 6.5)
    for name in ("bitwise_and", "bitwise_or", "bitwise_xor"):
        yield case(f"aten.{name}.Tensor", I32, DIVISORS)
        yield case(f"aten.{name}.Tensor", FLAGS, FLAGS[:1])
        yield case(f"aten.{name}.Scalar", I32, 6)
    yield case("aten.bitwise_not.default", I32)
    yield case("aten.logical_not.default", SPECIAL)
    for name in ("and", "or", "xor"):
        yield case(f"aten.logical_{name}.default", SPECIAL[:, None], SPECIAL)
    for name in ("maximum", "minimum", "atan2"):
        yield case(f"aten.{name}.default", SPECIAL[:, None], SPECIAL)
    yield case("aten.maximum.default", I32, DIVISORS.astype(np.float32))
    for power in (2, 3, 0.5, -1, 2.5, 0):
        yield case("aten.pow.Tensor_Scalar", np.abs(X), power)
    yield case("aten.pow.Tensor_Scalar", I32, 2)
    yield case("aten.pow.Tensor_Tensor", np.abs(X), Y)
    yield case("aten.pow.Scalar", 2.0, X)
    yield case("aten.reciprocal.default", SPECIAL)
    yield case("aten.reciprocal.default", I32)


def activations() -> Iterator[Case]:
    for value in (within(-6, 6), SPECIAL):
        yield case("aten.gelu.default", value)
        yield case("aten.gelu.default", value, approximate="tanh")
        for name in ("hardswish", "hardsigmoid", "hardtanh", "leaky_relu", "elu"):
            yield case(f"aten.{name}.default", value)
        yield case("aten.elu.default", value, 1.5, 2.0, 0.5)
        yield case("aten._prelu_kernel.default", value, np.float32(0.3).reshape(1))
        yield case("aten.clamp.default", value, -0.5, 2)
        yield case("aten.clamp.default", value, None, 2)
        yield case("aten.clamp_min.default", value, 0.25)
        yield case("aten.clamp_max.default", value, 0.25)
    yield case("aten.clamp.default", I32, -3.5, 9)
    yield case("aten.clamp.Tensor", X, Y, Y + 1)
    yield case("aten.clamp_min.Tensor", X, Y)
    yield case("aten.clamp_max.Tensor", X, Y)
    yield case("aten.where.self", FLAGS, X, Y)
    yield case("aten.where.ScalarSelf", FLAGS, 2.0, X)
    yield case("aten.where.ScalarOther", FLAGS, X, 2)
    yield case("aten.where.Scalar", FLAGS, 2.0, 3.0)
    yield case("aten.masked_fill.Scalar", X, FLAGS[:1], float("-inf"))
    yield case("aten.masked_fill.Tensor", X, FLAGS, np.array(2.5, np.float32))
    yield case("aten._to_copy.default", X * 9, dtype=torch.int32)
    yield case("prims.convert_element_type.default", I32, torch.float32)
    for name in ("clone", "alias", "detach", "lift_fresh", "lift_fresh_copy", "contiguous"):
        yield case(f"aten.{name}.default", X)
    yield case("aten.dropout.default", X, 0.5, False)


def movement() -> Iterator[Case]:
    for name in ("view", "reshape", "_unsafe_view", "view_copy", "_reshape_copy"):
        yield case(f"aten.{name}.default", X, [4, -1])
    yield case("aten.squeeze.default", Y)
    yield case("aten.squeeze.dim", Y, 1)
    yield case("aten.squeeze.dims", Y, [0, 1])
    yield case("aten.unsqueeze.default", X, -2)
    yield case("aten.flatten.using_ints", X, 1)
    yield case("aten.unflatten.int", X, 2, [2, -1])
    yield case("aten.permute.default", X, [2, 0, -2])
    yield case("aten.transpose.int", X, 0, -1)
    yield case("aten.t.default", X[0])
    yield case("aten.numpy_T.default", X)
    yield case("aten.expand.default", Y, [2, -1, 4])
    yield case("aten.broadcast_to.default", Y, [2, 3, 4])
    yield case("aten.expand_as.default", Y, X)
    for span in ((0, None, None), (1, 1, 3), (2, -3, -1), (2, 0, 99, 2), (1, 2, 1), (2, -99, 2)):
        yield case("aten.slice.Tensor", X, *span)
    yield case("aten.narrow.default", X, 1, 1, 2)
    yield case("aten.narrow.default", X, 1, -2, 2)
    yield case("aten.select.int", X, -1, -2)
    yield case("aten.split.Tensor", X, 3, -1)
    yield case("aten.split.Tensor", X, 1)
    yield case("aten.split_with_sizes.default", X, [1, 3], 2)
    yield case("aten.chunk.default", X, 3, 2)
    yield case("aten.unbind.int", X)
    yield case("aten.unbind.int", X, -1)
    yield case("aten.cat.default", [X, X[:1], floats(0)])
    yield case("aten.cat.default", [I32, X[0, :1]], -2)
    yield case("aten.concat.default", [X, X], 1)
    yield case("aten.stack.default", [X, X, X], -1)
    yield case("aten.constant_pad_nd.default", X, [1, 2, -1, 0], 0.5)
    yield case("aten.flip.default", X, [0, -1])
    yield case("aten.repeat.default", X[0], [2, 1, 3])


def sources() -> Iterator[Case]:
    yield case("aten.embedding.default", X[0], np.abs(IDS))
    yield case("aten.index_select.default", X, -1, np.array([3, 0, 0]))
    yield case("aten.gather.default", X, -1, np.abs(IDS).reshape(2, 2, 1))
    yield case("aten.index.Tensor", X, [None, IDS])
    yield case("aten.index.Tensor", X, [IDS[:, :1] * 0, np.array([0, -2, 1])])
    yield case("aten.index.Tensor", X, [None, IDS, IDS])
    yield case("aten.arange.default", 5)
    yield case("aten.arange.start", 2, 6.5)
    yield case("aten.arange.start_step", 7, -2, -3)
    for name, extra in (("zeros", []), ("ones", []), ("full", [2.5])):
        yield case(f"aten.{name}.default", [2, 3], *extra)
        yield case(f"aten.{name}_like.default", I32, *([2] if extra else []))
        yield case(f"aten.new_{name}.default", X, [2], *extra)
    yield case("aten.scalar_tensor.default", 2.5)


def reductions() -> Iterator[Case]:
    holes = np.tile(SPECIAL[:7], (2, 1))
    for name in ("sum", "mean", "prod", "amax", "amin", "argmax", "argmin"):
        yield case(f"aten.{name}.default", X)
    yield case("aten.max.default", holes)
    yield case("aten.min.default", X)
    yield case("aten.sum.default", FLAGS)
    yield case("aten.sum.dim_IntList", X, [0, -1], True)
    yield case("aten.sum.dim_IntList", I32, [1], dtype=torch.float32)
    yield case("aten.mean.dim", X, [-1], True)
    yield case("aten.mean.dim", X, None)
    yield case("aten.mean.dim", I32, [0], dtype=torch.float32)
    yield case("aten.prod.dim_int", X, 1)
    yield case("aten.amax.default", holes, [1], True)
    yield case("aten.cumsum.default", I32, 1)
    yield case("aten.cumsum.default", X, -1)
    yield case("aten.amin.default", X, [0, 1])
    for dim, keep in ((None, False), (1, False), (-1, True)):
        yield case("aten.argmax.default", X, dim, keep)
        yield case("aten.argmin.default", X, dim, keep)
    yield case("aten.argmax.default", holes, 1)
    for name in ("any", "all"):
        yield case(f"aten.{name}.default", X)
        yield case(f"aten.{name}.dim", FLAGS, 1, True)
        yield case(f"aten.{name}.dims", FLAGS, [0, 2])
    for correction in (0, 1, 24):
        yield case("aten.var.correction", X, None, correction=correction)
        yield case("aten.var_mean.correction", X, [1, 2], correction=correction, keepdim=True)
    yield case("aten.var_mean.correction", X, [0])


def contractions() -> Iterator[Case]:
    a, b = floats(3, 4), floats(4, 5)
    yield case("aten.mm.default", a, b)
    yield case("aten.bmm.default", X, floats(2, 4, 5))
    yield case("aten.mv.default", a, floats(4))
    yield case("aten.dot.default", floats(4), floats(4, seed=3))
    yield case("aten.addmm.default", floats(5), a, b)
    yield case("aten.addmm.default", floats(3, 1), a, b, beta=0.5, alpha=2)
    yield case("aten.baddbmm.default", floats(2, 1, 5), X, floats(2, 4, 5), beta=0)
    yield case("aten.linear.default", X, floats(5, 4), floats(5))
    yield case("aten.linear.default", X, floats(4))
    w, bias = floats(6, 4, 3, 2), floats(6)
    yield case("aten.conv2d.default", IMAGE, w, bias, [2, 1], [1, 0], [1, 2])
    yield case("aten.conv2d.default", IMAGE[0], w)
    yield case("aten.conv2d.default", IMAGE, floats(4, 2, 3, 3), None, [1, 1], [1, 1], [1, 1], 2)
    yield case("aten.conv2d.padding", IMAGE, w, bias, [1, 1], "same", [2, 2])
    yield case("aten.conv2d.padding", IMAGE, w, None, [1, 1], "valid")
    yield case("aten.conv1d.default", X, floats(2, 3, 3), None, [1], [1])
    yield case("aten.conv1d.padding", X, floats(2, 3, 4), None, [1], "same")
    yield case("aten.conv3d.default", floats(1, 2, 3, 4, 3), floats(3, 2, 2, 2, 2))
    yield case("aten.conv3d.padding", floats(1, 2, 3, 4, 3), floats(3, 2, 2, 2, 2), None,
               [1, 1, 1], "same")  # fmt: skip
    yield case("aten.convolution.default", IMAGE, w, bias, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)


def pools() -> Iterator[Case]:
    yield case("aten.max_pool1d.default", X, 2)
    yield case("aten.max_pool2d.default", IMAGE, 3, 2, 1)
    yield case("aten.max_pool2d.default", IMAGE, [2, 3], [2, 2], [1, 0], 1, True)
    yield case("aten.max_pool2d.default", IMAGE[0], 2, [], 0, 2)
    yield case("aten.max_pool3d.default", floats(1, 2, 4, 4, 4), 2)
    yield case("aten.avg_pool1d.default", X, 2, 1, 1)
    yield case("aten.avg_pool2d.default", IMAGE, [3, 2], [2, 2], [1, 1])
    yield case("aten.avg_pool2d.default", IMAGE, 3, 2, 1, True, False)
    yield case("aten.avg_pool2d.default", IMAGE, 3, 2, 1, True)
    yield case("aten.avg_pool2d.default", IMAGE, 2, 2, 0, False, True, 3)
    yield case("aten.avg_pool3d.default", floats(1, 2, 4, 4, 4), 2)
    for size in ([1, 1], [7, 3]):
        yield case("aten.adaptive_avg_pool2d.default", IMAGE, size)
    yield case("aten._adaptive_avg_pool2d.default", IMAGE, [1, 1])
    yield case("aten.adaptive_avg_pool1d.default", X, [2])
    yield case("aten.adaptive_avg_pool3d.default", floats(1, 2, 4, 4, 4), [2, 1, 4])


def composites() -> Iterator[Case]:
    yield case("aten.softmax.int", X, -1)
    yield case("aten._softmax.default", X, 1, False)
    yield case("aten.softmax.int", I32, 0, dtype=torch.float32)
    yield case("aten.log_softmax.int", X, 0)
    yield case("aten._log_softmax.default", X, 2, False)
    scale, shift, channels = floats(4, seed=4), floats(4, seed=5), floats(4, seed=6)
    yield case("aten.layer_norm.default", X, [4], scale, shift)
    yield case("aten.layer_norm.default", X, [3, 4], None, X[0], 0.01)
    yield case("aten.rms_norm.default", X, [4], scale)
    yield case("aten.rms_norm.default", X, [3, 4], None, 0.1)
    yield case("aten._native_batch_norm_legit_no_training.default", IMAGE, scale, shift, channels,
               np.abs(channels), 0.1, 1e-5)  # fmt: skip
    yield case("aten._native_batch_norm_legit_no_training.default", IMAGE, None, None, channels,
               np.abs(channels), 0.1, 1e-5)  # fmt: skip
    yield case("aten.group_norm.default", IMAGE, 2, scale, shift)
    yield case("aten.group_norm.default", X.reshape(2, 4, 3), 4)
    q, k, v = floats(2, 4, 5, 8), floats(2, 4, 6, 8, seed=1), floats(2, 4, 6, 8, seed=2)
    sdpa = "aten.scaled_dot_product_attention.default"
    yield case(sdpa, q, k, v)
    yield case(sdpa, q, k, v, None, 0.0, True, scale=0.5)
    yield case(sdpa, q, k, v, np.tri(5, 6, dtype=bool))
    yield case(sdpa, q, k, v, floats(2, 1, 1, 6))
    yield case(sdpa, q, k[:, :2], v[:, :2], enable_gqa=True)
    state = [floats(2, 3, 4), floats(2, 3, 4, seed=1)]
    weights = [floats(16, 5), floats(16, 4), floats(16), floats(16, seed=2)]
    second = [floats(16, 8, seed=3), *weights[1:]]
    yield case("aten.lstm.input", floats(6, 3, 5), state, [*weights, *weights], True, 1, 0.0, False,
               True, False)  # fmt: skip
    four = [np.concatenate([s, s]) for s in state]
    yield case("aten.lstm.input", floats(3, 6, 5), four, [*weights, *weights, *second, *second],
               True, 2, 0.0, False, True, True)  # fmt: skip
    yield case("aten.lstm.input", floats(6, 3, 5), [s[:1] for s in state], weights[:2], False, 1,
               0.0, False, False, False)  # fmt: skip
    for rnn in ("aten.rnn_tanh.input", "aten.rnn_relu.input"):
        plain = [w[:4] for w in weights]
        deeper = [floats(4, 8, seed=3), *plain[1:]]
        yield case(rnn, floats(6, 3, 5), state[0], [*plain, *plain], True, 1, 0.0, False, True,
                   False)  # fmt: skip
        yield case(rnn, floats(3, 6, 5), four[0], [*plain, *plain, *deeper, *deeper], True, 2, 0.0,
                   False, True, True)  # fmt: skip
        yield case(rnn, floats(6, 3, 5), state[0][:1], plain[:2], False, 1, 0.5, True, False,
                   False)  # fmt: skip
    weights = [w[:12] for w in weights]
    second = [floats(12, 8, seed=3), *weights[1:]]
    yield case("aten.gru.input", floats(6, 3, 5), state[0], [*weights, *weights], True, 1, 0.0,
               False, True, False)  # fmt: skip
    yield case("aten.gru.input", floats(3, 6, 5), four[0], [*weights, *weights, *second, *second],
               True, 2, 0.0, False, True, True)  # fmt: skip
    yield case("aten.gru.input", floats(6, 3, 5), state[0][:1], weights[:2], False, 1, 0.0, False,
               False, False)  # fmt: skip


FAMILIES = (elementwise, activations, movement, sources, reductions, contractions, pools,
            composites)  # fmt: skip
ops.load_all()
CASES = [c for family in FAMILIES for c in family()]


def to_torch(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return [to_torch(v) for v in value] if isinstance(value, list) else value


def to_value(value: Any, inputs: dict[int, Value]) -> Any:
    """What an importer is given for a torch argument."""
    if isinstance(value, np.ndarray):
        return inputs[id(value)]
    if isinstance(value, list):
        return [to_value(v, inputs) for v in value]
    return DTYPES[str(value).removeprefix("torch.")] if isinstance(value, torch.dtype) else value


def arrays_of(value: Any) -> list[Any]:
    if isinstance(value, np.ndarray):
        return [value]
    return [a for v in value for a in arrays_of(v)] if isinstance(value, (list, tuple)) else []


def describe(item: Case) -> str:
    return item[0].removeprefix("aten.").removesuffix(".default")


@pytest.mark.parametrize("item", CASES, ids=describe)
def test_the_import_agrees_with_torch(item: Case) -> None:
    target, args, kwargs = item
    overload = reduce(getattr, target.split("."), torch.ops)
    wanted = results(overload, args, kwargs)
    b = Builder()
    arrays = list({id(a): a for a in arrays_of(args)}.values())
    inputs = {id(a): b.input(TensorType(from_numpy(a.dtype), a.shape)) for a in arrays}
    capture = Capture(b, tuple(TensorType(from_numpy(w.dtype), w.shape) for w in wanted))
    given = {k: to_value(v, inputs) for k, v in kwargs.items()}
    made = ops.CAPTURES[target](capture, *(to_value(a, inputs) for a in args), **given)
    graph = b.finish(made if isinstance(made, (list, tuple)) else [made])
    verify(graph)
    assert graph.output_types == capture.result
    for k, (got, want) in enumerate(zip(interpret(graph, arrays), wanted, strict=True)):
        if (np.isnan(got) != np.isnan(want)).any():  # gelu(inf) is NaN in float32 on some CPUs
            exact = results(overload, [doubled(a) for a in args], kwargs)[k]
            want = np.where(np.isnan(want), exact, want).astype(want.dtype)
        scale = np.abs(want[np.isfinite(want)]).max(initial=0) if want.dtype.kind == "f" else 0
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6 * scale)


def results(overload: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """What torch gives, as arrays."""
    found = overload(*map(to_torch, args), **kwargs)
    return [w.numpy() for w in (found if isinstance(found, (list, tuple)) else (found,))]


def doubled(arg: Any) -> Any:
    """A float32 array in float64; anything else as it is."""
    is_float = isinstance(arg, np.ndarray) and arg.dtype == np.float32
    return arg.astype(np.float64) if is_float else arg


def test_every_importer_has_a_case() -> None:
    assert sorted(ops.CAPTURES.keys() - {target for target, _, _ in CASES}) == []
