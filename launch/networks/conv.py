"""Two-dimensional convolution whose derivatives of every order are fast on a CPU.

XLA's CPU backend lowers the kernel gradient of a convolution to a convolution with a kernel as large as the image,
several times slower than the forward product, and tens of times slower inside a loop. Training on input gradients
differentiates every convolution twice, which multiplies that cost. Here the three maps of which a convolution and its
derivatives consist,

    convolve      (x, w)  -> y        y[n,p,o] = sum_{t,c} x[n, s p + t, c] w[t,c,o]
    input_grad    (dy, w) -> x-like   its transpose in x
    kernel_grad   (x, dy) -> w-like   its transpose in w

are separate primitives. They belong to one trilinear form, so every transpose of one is another one, and the set is
closed under jvp, vjp and vmap to any order. A custom derivative rule would not suffice: JAX would transpose the
operations that the rule consists of, and return to the slow one. On GPU and TPU all three lower to XLA's native
convolution, so the program is the ordinary one.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

_LAYOUT = ("NHWC", "HWIO", "NHWC")

# Sizes of the im2col tile of the kernel gradient on a CPU, from measurements of whole LeNet and ResNet steps. The tile
# should not exceed the second-level cache by much (im2col of a whole batch of large maps is 3-8 times slower), but
# below about 512 positions updating the accumulated kernel costs more than the cache saves.
_TILE_BYTES = 1_600_000
_TILE_POSITIONS = 512


class Bilinear(Protocol):
    """One of the three maps: linear in each of its two arrays; its settings are static."""

    def __call__(
        self, a: Any, b: Any, /, *, image: Any, window: Any, strides: Any, padding: Any, precision: Any
    ) -> jax.Array: ...


class Product(Protocol):
    """A bilinear map with all settings bound: only the arrays are missing."""

    def __call__(self, a: Any, b: Any, /) -> jax.Array: ...


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers=None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision=None,
    preferred_element_type=None,
) -> jax.Array:
    """`jax.lax.conv_general_dilated` with derivatives that are fast on a CPU.

    For `flax.linen.Conv(conv_general_dilated=...)`. Arguments, result and errors are those of the lax function. Two
    dimensions in the layout NHWC x HWIO -> NHWC, without groups or dilation, take the fast path (`lhs` (n, h, w, c),
    `rhs` (kh, kw, c, o)); everything else is passed to lax.
    """
    native = functools.partial(
        lax.conv_general_dilated,
        window_strides=window_strides,
        padding=padding,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
        dimension_numbers=dimension_numbers,
        feature_group_count=feature_group_count,
        batch_group_count=batch_group_count,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    ungrouped = feature_group_count == 1 and batch_group_count == 1
    undilated = all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
    if not (ungrouped and undilated and _is_nhwc(lhs, rhs, dimension_numbers)):
        return native(lhs, rhs)
    out = jax.eval_shape(native, lhs, rhs)  # lax checks the arguments, and raises its own errors
    if not jnp.issubdtype(out.dtype, jnp.floating) or not (lhs.dtype == rhs.dtype == out.dtype):
        return native(lhs, rhs)
    if _has_typed_sharding(lhs) or _has_typed_sharding(rhs):
        return native(lhs, rhs)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(lhs.shape[1:3], rhs.shape[:2], window_strides, padding)
    ambient = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    params = {
        "image": lhs.shape[1:3],
        "window": rhs.shape[:2],
        "strides": tuple(int(s) for s in window_strides),
        "padding": tuple((int(low), int(high)) for low, high in padding),
        # Like lax, read the surrounding default now: lowering may happen outside of it.
        "precision": ambient if precision is None else precision,
    }
    return convolve_p.bind(lhs[None], rhs[None], **params)[0]


def _is_nhwc(lhs: jax.Array, rhs: jax.Array, dimension_numbers) -> bool:
    if dimension_numbers is None or jnp.ndim(lhs) != 4 or jnp.ndim(rhs) != 4:
        return False
    numbers = lax.conv_dimension_numbers(lhs.shape, rhs.shape, dimension_numbers)
    return numbers == lax.conv_dimension_numbers(lhs.shape, rhs.shape, _LAYOUT)


def _has_typed_sharding(array: jax.Array) -> bool:
    """Whether the array's *type* names a mesh axis (explicit sharding, or check_vma of shard_map).

    Such types need propagation rules for each primitive; lax has them, the primitives here do not.
    """
    aval = jax.typeof(array)
    return bool(aval.manual_axis_type.varying) or any(axis is not None for axis in aval.sharding.spec)


# -- the three maps in lax, for one kernel --------------------------------------------------------------------------


def _native_convolve(x, w, *, image, window, strides, padding, precision):
    del image, window
    return lax.conv_general_dilated(x, w, strides, padding, dimension_numbers=_LAYOUT, precision=precision)


def _native_input_grad(dy, w, *, image, **params):
    x = jax.ShapeDtypeStruct((dy.shape[0], *image, w.shape[2]), dy.dtype)
    return jax.linear_transpose(lambda x: _native_convolve(x, w, image=image, **params), x)(dy)[0]


def _native_kernel_grad(x, dy, *, window, **params):
    w = jax.ShapeDtypeStruct((*window, x.shape[3], dy.shape[3]), x.dtype)
    return jax.linear_transpose(lambda w: _native_convolve(x, w, window=window, **params), w)(dy)[0]


# -- gradients on a CPU ---------------------------------------------------------------------------------------------


def _input_grad_by_taps(dy, w, *, image, window, strides, padding, precision):
    """The input gradient; where the kernel outweighs dy, a product for each of the kernel's taps.

    XLA's own would turn the kernel around and transpose it anew each time: twice as slow at 512 channels of 4x4.
    """
    params = dict(image=image, window=window, strides=strides, padding=padding, precision=precision)
    if w.size <= dy.size or window == (1, 1) or strides != (1, 1):
        return _native_input_grad(dy, w, **params)
    wide = jnp.promote_types(dy.dtype, jnp.float32)
    (height, width), (rows, cols) = image, window
    # Pixel p of x is read at tap t by position p + low - t of y.
    around = [(k - 1 - low, k - 1 - high, 0) for k, (low, high) in zip(window, padding, strict=True)]
    padded = lax.pad(dy, jnp.zeros((), dy.dtype), ((0, 0, 0), *around, (0, 0, 0)))
    total = jnp.zeros((), wide)
    for i in range(rows):
        for j in range(cols):
            top, left = rows - 1 - i, cols - 1 - j
            seen = lax.slice(padded, (0, top, left, 0), (len(dy), top + height, left + width, dy.shape[3]))
            contract = (((3,), (1,)), ((), ()))
            total += lax.dot_general(seen, w[i, j], contract, precision, preferred_element_type=wide)
    return total.astype(dy.dtype)


def _tiled_kernel_grad(x, dy, *, image, window, strides, padding, precision):
    """im2col(x)^T dy, summed over tiles of whole images, or over bands of rows if one image is too large."""
    n, height, width, channels = dy.shape
    columns = window[0] * window[1] * x.shape[3]
    tile = max(_TILE_POSITIONS, _TILE_BYTES // (columns * x.dtype.itemsize))
    product = functools.partial(_im2col_product, window=window, strides=strides, precision=precision)

    def pad(images):
        return lax.pad(images, jnp.zeros((), x.dtype), ((0, 0, 0), *((*pads, 0) for pads in padding), (0, 0, 0)))

    if window == (1, 1) or n * height * width <= tile:  # im2col duplicates nothing, or one tile holds everything
        total = product(pad(x), dy)
    elif height * width <= tile:
        group = _largest_divisor(n, tile // (height * width))
        groups = (x.reshape(-1, group, *x.shape[1:]), dy.reshape(-1, group, *dy.shape[1:]))
        total = _accumulate(lambda x, dy: product(pad(x), dy), groups)
    else:
        rows = _largest_divisor(height, max(1, tile // width))
        span = (rows - 1) * strides[0] + window[0]

        def one_image(x, dy):
            x = pad(x[None])
            starts = jnp.arange(height // rows) * (rows * strides[0])
            bands = dy.reshape(height // rows, 1, rows, width, channels)
            band = functools.partial(lax.dynamic_slice_in_dim, x, slice_size=span, axis=1)
            return _accumulate(lambda start, dy: product(band(start), dy), (starts, bands))

        total = _accumulate(one_image, (x, dy))
    return total.T.reshape(*window, x.shape[3], channels).astype(x.dtype)


def _im2col_product(x, dy, *, window, strides, precision):
    """(o, kh*kw*c): a padded tile's kernel gradient, transposed, which is faster for the GEMM."""
    _, height, width, channels = dy.shape
    rows, cols = (height - 1) * strides[0] + 1, (width - 1) * strides[1] + 1
    taps = [
        lax.slice(x, (0, i, j, 0), (x.shape[0], i + rows, j + cols, x.shape[3]), (1, *strides, 1))
        for i in range(window[0])
        for j in range(window[1])
    ]
    columns = jnp.concatenate(taps, axis=-1).reshape(-1, len(taps) * x.shape[3])
    wide = jnp.promote_types(x.dtype, jnp.float32)
    contract = (((0,), (0,)), ((), ()))
    return lax.dot_general(dy.reshape(-1, channels), columns, contract, precision, preferred_element_type=wide)


def _accumulate(term: Product, operands: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Sum of term(*operand) over the leading axis."""
    shape = jax.eval_shape(lambda operands: term(operands[0][0], operands[1][0]), operands)
    zero = jnp.zeros(shape.shape, shape.dtype)
    return lax.scan(lambda total, operand: (total + term(*operand), None), zero, operands)[0]


def _largest_divisor(n: int, limit: int) -> int:
    return next(d for d in range(min(n, max(limit, 1)), 0, -1) if n % d == 0)


# -- primitives -----------------------------------------------------------------------------------------------------
# Both operands and the result have a leading axis of independent convolutions, of length 1 unless vmap maps both
# operands: x (b, n, h, w, c), w (b, kh, kw, c, o), y (b, n, h', w', o).


def _each(f: Bilinear, **params: Any) -> Product:
    def mapped(a: jax.Array, b: jax.Array) -> jax.Array:
        if a.shape[0] == 1:
            return f(a[0], b[0], **params)[None]
        return jax.vmap(lambda a, b: f(a, b, **params))(a, b)

    return mapped


def _each_unrolled(f: Bilinear, **params: Any) -> Product:
    # vmap would make it a grouped convolution, for which XLA's CPU backend has no fast kernels.
    return lambda a, b: jnp.stack([f(a[i], b[i], **params) for i in range(a.shape[0])])


@functools.cache
def _compiled(primitive: Primitive, params: tuple[tuple[str, Any], ...]) -> Product:
    return jax.jit(functools.partial(primitive.bind, **dict(params)))


def _is_partitioned(ctx: mlir.LoweringRuleContext) -> bool:
    """Whether XLA splits this module over devices: not with one device, nor if every mesh axis is manual."""
    axes = ctx.module_context.axis_context
    if isinstance(axes, mlir.SPMDAxisContext):
        return set(axes.manual_axes) != set(axes.mesh.axis_names)
    return isinstance(axes, mlir.ShardingContext) and axes.num_devices > 1


def _bilinear_primitive(
    name: str, native: Bilinear, on_cpu: Bilinear, free_axes: Mapping[int, tuple[int, int]]
) -> Primitive:
    """A primitive for `native`.

    Args:
      name: of the primitive.
      native: of one convolution, in lax.
      on_cpu: the same on a CPU.
      free_axes: for each operand the axis that the other does not have: in the operand, in the result.
    """
    primitive = Primitive(name)
    primitive.def_impl(lambda a, b, **params: _compiled(primitive, tuple(sorted(params.items())))(a, b))

    def abstract(a, b, **params):
        out = jax.eval_shape(
            functools.partial(native, **params),
            jax.ShapeDtypeStruct(a.shape[1:], a.dtype),
            jax.ShapeDtypeStruct(b.shape[1:], b.dtype),
        )
        return ShapedArray((a.shape[0], *out.shape), out.dtype)

    def batch(operands, axes, **params):
        operands = list(operands)
        if None not in axes:
            # Two mapped operands: more independent convolutions.
            size = operands[0].shape[axes[0]]
            operands = [jnp.moveaxis(o, axis, 0) for o, axis in zip(operands, axes, strict=True)]
            operands = [o.reshape(-1, *o.shape[2:]) for o in operands]
            out = primitive.bind(*operands, **params)
            return out.reshape(size, -1, *out.shape[1:]), 0
        # One mapped operand: fold the mapped axis into the axis that the other does not have (images, or channels).
        which = 0 if axes[0] is not None else 1
        source, target = free_axes[which]
        operand = jnp.moveaxis(operands[which], axes[which], source)
        shape = operand.shape
        operands[which] = operand.reshape(*shape[:source], -1, *shape[source + 2 :])
        out = primitive.bind(*operands, **params)
        return out.reshape(*out.shape[:target], shape[source], -1, *out.shape[target + 1 :]), target

    def lower_cpu(ctx, a, b, **params):
        # The partitioner would gather a sharded batch in order to loop over it; it can split the native operation.
        f = _each_unrolled(native if _is_partitioned(ctx) else on_cpu, **params)
        return mlir.lower_fun(f, multiple_results=False)(ctx, a, b)

    def lower_native(ctx, a, b, **params):
        return mlir.lower_fun(_each(native, **params), multiple_results=False)(ctx, a, b)

    primitive.def_abstract_eval(abstract)
    batching.primitive_batchers[primitive] = batch
    mlir.register_lowering(primitive, lower_cpu, platform="cpu")
    mlir.register_lowering(primitive, lower_native)
    return primitive


convolve_p = _bilinear_primitive("convolve", _native_convolve, _native_convolve, {0: (1, 1), 1: (4, 4)})
input_grad_p = _bilinear_primitive(
    "convolve_input_grad", _native_input_grad, _input_grad_by_taps, {0: (1, 1), 1: (3, 4)}
)
kernel_grad_p = _bilinear_primitive(
    "convolve_kernel_grad", _native_kernel_grad, _tiled_kernel_grad, {0: (4, 3), 1: (4, 4)}
)

ad.defbilinear(
    convolve_p,
    lambda ct, x, w, **params: input_grad_p.bind(ct, w, **params),
    lambda ct, x, w, **params: kernel_grad_p.bind(x, ct, **params),
)
ad.defbilinear(
    input_grad_p,
    lambda ct, dy, w, **params: convolve_p.bind(ct, w, **params),
    lambda ct, dy, w, **params: kernel_grad_p.bind(ct, dy, **params),
)
ad.defbilinear(
    kernel_grad_p,
    lambda ct, x, dy, **params: input_grad_p.bind(dy, ct, **params),
    lambda ct, x, dy, **params: convolve_p.bind(x, ct, **params),
)
