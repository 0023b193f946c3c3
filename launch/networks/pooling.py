"""Max pooling whose first and second derivatives are plain elementwise operations.

The derivative of `lax.reduce_window` is select-and-scatter, and the second derivative consists of variadic window
reductions, which XLA's CPU backend runs one element at a time, 10-50 times slower than the pooling itself. Here the
maximum is a running `where` over the elements of each window: derivatives of any order select by stored masks.
"""

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[int, int]


def max_pool(x: jax.Array, window: int | Pair, strides: int | Pair | None = None, padding: int | Pair = 0) -> jax.Array:
    """Maximum over windows, x (..., h, w, c) -> (..., h', w', c), as PyTorch's `max_pool2d` computes it.

    h' = floor((h + 2 padding - window) / strides) + 1. The border is padded with -inf, `strides` defaults to `window`,
    NaN propagates, and the first of equal maxima in row-major order gets the whole gradient.

    Raises:
      TypeError: the data are not floating point.
      ValueError: a window or padding that does not fit.
    """
    window, padding = _pair("window", window, 1), _pair("padding", padding, 0)
    strides = window if strides is None else _pair("strides", strides, 1)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"max_pool needs floating-point data (the border is -inf), got {x.dtype}")
    if x.ndim < 3:
        raise ValueError(f"max_pool needs (..., height, width, channels), got shape {x.shape}")
    for axis, size in enumerate(x.shape[-3:-1]):
        if 2 * padding[axis] > window[axis]:
            raise ValueError(f"max_pool: padding {padding} is more than half of window {window}")
        if size + 2 * padding[axis] < window[axis]:
            raise ValueError(f"max_pool: window {window} exceeds the padded image of shape {x.shape}, {padding=}")
    best, *rest = _elements(x.reshape(-1, *x.shape[-3:]), window, strides, padding)
    for element in rest:
        best = jnp.where((element > best) | jnp.isnan(element), element, best)
    return best.reshape(*x.shape[:-3], *best.shape[1:])


def _pair(name: str, value: int | Pair, least: int) -> Pair:
    pair = (value, value) if isinstance(value, int) else tuple(int(v) for v in value)
    if len(pair) != 2 or min(pair) < least:
        raise ValueError(f"max_pool: {name} must be an integer >= {least} or a pair of them, got {value!r}")
    return pair


def _elements(x: jax.Array, window: Pair, strides: Pair, padding: Pair) -> list[jax.Array]:
    """The elements of every window in row-major order: window[0] * window[1] arrays shaped like the result.

    The image is first split into its strides[0] * strides[1] phases; each element is a contiguous slice of one of them.
    The transpose of this interleaves sums of plain copies. That of strided slices of the image would sum dilated
    copies, with an integer division for every pixel of every copy.
    """
    n, height, width, channels = x.shape
    out = tuple((s + 2 * p - k) // d + 1 for s, k, d, p in zip((height, width), window, strides, padding, strict=True))
    cells = tuple(o + (k - 1) // d for o, k, d in zip(out, window, strides, strict=True))
    high = tuple(c * d - s - p for c, d, s, p in zip(cells, strides, (height, width), padding, strict=True))
    pads = ((0, 0, 0), *((p, h, 0) for p, h in zip(padding, high, strict=True)), (0, 0, 0))
    x = lax.pad(x, jnp.asarray(-jnp.inf, x.dtype), pads)
    x = x.reshape(n, cells[0], strides[0], cells[1], strides[1], channels)
    phases = [
        [phase.reshape(n, *cells, channels) for phase in lax.split(rows, (1,) * strides[1], axis=4)]
        for rows in lax.split(x, (1,) * strides[0], axis=2)
    ]

    def element(i: int, j: int) -> jax.Array:
        row, col = i // strides[0], j // strides[1]
        phase = phases[i % strides[0]][j % strides[1]]
        return lax.slice(phase, (0, row, col, 0), (n, row + out[0], col + out[1], channels))

    return [element(i, j) for i in range(window[0]) for j in range(window[1])]
