"""Rules of statistics, and of operators that mix the positions of an axis."""

from __future__ import annotations

from lightning_grow.trace.axes import Axis
from lightning_grow.trace.meanings import Along, Create, Reduce
from lightning_grow.trace.table import Call, Output, axis_rule, fresh, pointwise

_STATISTICS = {
    "sum": "sum",
    "mean": "mean",
    "var": "var",
    "std": "std",
    "var_mean": "var",
    "amax": "max",
    "amin": "max",
    "max": "max",
    "min": "max",
    "argmax": "place",
    "argmin": "place",
    "any": "max",
    "all": "max",
    "prod": "any",
    "logsumexp": "any",
    "linalg_vector_norm": "norm",
    "norm": "norm",
}


@axis_rule(*_STATISTICS)
def reduce(call: Call) -> list[Output]:
    """A statistic over dimensions."""
    if call.node.name in ("max", "min") and "other" in call.arguments:
        return pointwise(call)
    value, dims = call.input, call.dims()
    keepdim = bool(call.get("keepdim", False))
    axes = [Axis(1) if dim in dims else axis for dim, axis in enumerate(value.axes) if keepdim or dim not in dims]
    kinds = ["var", "mean"] if call.node.name == "var_mean" else [_STATISTICS[call.node.name]] * len(call.shapes)
    numbered = [_numbered(call, kind) for kind in kinds]
    return [(list(axes), Reduce(value, dims, kind, keepdim, number)) for kind, number in numbered]


def _numbered(call: Call, kind: str) -> tuple[str, float]:
    """The kind of a statistic with its number; a norm without a positive power is no sum."""
    if kind in ("var", "std"):
        return kind, float(call.get("correction", 1))
    number = float(call.get("ord", call.get("p", 2))) if kind == "norm" else 0.0
    return "any" if kind == "norm" and number <= 0 else kind, number


@axis_rule(
    "max_pool1d", "max_pool2d_with_indices", "max_pool3d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_avg_pool1d",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "_upsample_bilinear2d_aa", "upsample_trilinear3d",
    "reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d", "grid_sampler_2d",
    "grid_sampler_3d", "adaptive_max_pool3d",
    "reflection_pad3d", "replication_pad3d", "_upsample_nearest_exact1d", "_upsample_nearest_exact3d",
    "_upsample_bicubic2d_aa",
)  # fmt: skip
def spatial(call: Call) -> list[Output]:
    """Mix positions of an image; batch and channels stay apart."""
    value = call.input
    rank = len(value.axes)
    window = tuple(dim for dim in range(rank) if dim >= 2 or value.axes[dim].size != call.shapes[0][dim])
    axes = [Axis(call.shapes[0][dim]) if dim in window else axis for dim, axis in enumerate(value.axes)]
    by = (call["grid"],) if "grid" in call.arguments else ()
    return [(list(axes), Along((value, *by), window)) for _ in call.shapes]


@axis_rule("constant_pad_nd")
def pad(call: Call) -> list[Output]:
    """Add positions at the ends of the last dimensions."""
    value, shape = call.input, call.shapes[0]
    window = tuple(dim for dim, axis in enumerate(value.axes) if axis.size != shape[dim])
    axes = [Axis(shape[dim]) if dim in window else axis for dim, axis in enumerate(value.axes)]
    return [(axes, Along((value,), window))]


_NOT_SCALED = ("cumprod", "logcumsumexp", "histc", "bincount")


@axis_rule(
    *_NOT_SCALED,
    "cumsum",
    "flip",
    "roll",
    "sort",
    "argsort",
    "cummax",
    "fft_fft",
    "_fft_r2c",
    "_fft_c2r",
    "_fft_c2c",
)
def along(call: Call) -> list[Output]:
    """Mix the positions of some dimensions."""
    value = call.input
    dims = call.dims(("dim", "dims"))
    meaning = Along((value,), dims, scales=call.node.name not in _NOT_SCALED)
    return [
        ([Axis(size) if dim in dims else value.axes[dim] for dim, size in enumerate(shape)], meaning)
        for shape in call.shapes
    ]


@axis_rule("kthvalue", "median", "nanmedian", "mode")
def pick(call: Call) -> list[Output]:
    """Pick one position of one dimension, or of all."""
    rank, dims, keepdim = len(call.input.axes), call.dims(), call.get("keepdim", False)
    return call.mix(dims, [None if dim in dims else dim for dim in range(rank) if keepdim or dim not in dims])


@axis_rule("unfold")
def unfold(call: Call) -> list[Output]:
    """Windows along one dimension, their positions in a dimension at the end."""
    rank = len(call.input.axes)
    dim = call["dimension"] % rank
    return call.mix((dim,), [*(None if number == dim else number for number in range(rank)), None])


@axis_rule("complex", "polar", "_conj", "resolve_conj", "_neg_view", "resolve_neg")
def complex_numbers(call: Call) -> list[Output]:
    """Made of two real ones; conjugates and negatives that torch notes on a view: pointwise, though not tagged so."""
    return pointwise(call)


@axis_rule("view_as_complex", "view_as_real")
def complex_parts(call: Call) -> list[Output]:
    """The last dimension holds the real and the imaginary part."""
    rank = len(call.input.axes)
    if call.node.name == "view_as_real":
        return call.mix((), [*range(rank), None])
    return call.mix((rank - 1,), range(rank - 1))


@axis_rule("_linalg_solve_ex", "linalg_solve_triangular", "linalg_inv_ex", "linalg_matrix_exp", "linalg_inv")
def solve(call: Call) -> list[Output]:
    """Systems of equations: a matrix mixes the rows, or the columns, of what it is solved for."""
    matrix, *rest = call.node.tensors()
    others: list[Output] = [(fresh(shape), Create()) for shape in call.shapes[1:]]
    if not rest:
        lead = len(matrix.axes) - 2
        axes = [*matrix.axes[:lead], *fresh(matrix.shape[lead:])]
        return [(axes, Along((matrix,), (lead, lead + 1), scales=False)), *others]
    value = rest[0]
    is_vector = len(value.axes) < len(matrix.axes)
    dim = len(value.axes) - (1 if is_vector or not call.get("left", True) else 2)
    axes = [Axis(axis.size) if number == dim else axis for number, axis in enumerate(value.axes)]
    return [(axes, Along((value, matrix), (dim,))), *others]


@axis_rule("topk")
def topk(call: Call) -> list[Output]:
    """Pick the largest positions of one dimension."""
    value, dim = call.input, call["dim"] % len(call.input.axes)
    axes = [Axis(size) if number == dim else value.axes[number] for number, size in enumerate(call.shapes[0])]
    return [(list(axes), Along((value,), (dim,))) for _ in call.shapes]
