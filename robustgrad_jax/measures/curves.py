"""Insertion and deletion curves: the true class's probability as pixels come or go in the order of a heat map.

`steps` levels i = 0 … steps − 1 with floor(i/steps · pixels) pixels each; a pixel goes with all its channels, and what
is out is 0 in normalised space, the data set's mean colour. The order is that of the heat map, largest first; of equal
pixels the first in row-major order comes first, so that a map of zeros fills the image row by row. A map with an entry
that is not finite has a curve of NaN.

All levels are forwards of one program, `chunk` levels of the batch at a time; see `robustgrad_jax.callables` for
functions that compile once per model.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jax.tree_util import Partial

from robustgrad_jax.callables import as_pytree, check_labels, map_chunks
from robustgrad_jax.gradients import of_classes

STEPS = 20  # levels, Joo et al. 2023
CHUNK = 5  # levels in one forward


def insertion_curve(
    logits_fn: Callable[[Array], Array], x: Array, y: Array, heatmap: Array, steps: int = STEPS, *, chunk: int = CHUNK
) -> Array:
    """Probability of class y when only the most important i/steps of the pixels are there, (steps, n).

    The first level is the empty image; a faithful heat map lets the curve rise early (Joo et al. 2023, section 5).

    Args:
      logits_fn: (m, h, w, c) -> logits (m, classes).
      x: (n, h, w, c), normalised. y: int (n,).
      heatmap: (n, h, w); only its order matters.
      chunk: levels in one forward, of chunk·n images.

    Raises ValueError for shapes that do not belong together and for steps or chunk below 1.
    """
    return _curve(logits_fn, x, y, heatmap, steps, chunk, keep_top=True)


def deletion_curve(
    logits_fn: Callable[[Array], Array], x: Array, y: Array, heatmap: Array, steps: int = STEPS, *, chunk: int = CHUNK
) -> Array:
    """Probability of class y when the most important i/steps of the pixels are gone, (steps, n).

    The complement of `insertion_curve`, with the same arguments; the first level is x itself. Where steps divides the
    number of pixels, levels 1 … are the pixel flipping of Bach et al. 2015 with pixels/steps features per step.
    """
    return _curve(logits_fn, x, y, heatmap, steps, chunk, keep_top=False)


def adversarial_insertion_curve(
    logits_fn: Callable[[Array], Array],
    x: Array,
    y: Array,
    attacked_heatmap: Array,
    steps: int = STEPS,
    *,
    chunk: int = CHUNK,
) -> Array:
    """Insertion of the *clean* pixels of x in the order of the attacked image's heat map, (steps, n).

    What is left of a heat map's faithfulness once the image was attacked (Joo et al. 2023): `insertion_curve` with
    the heat map (n, h, w) of the attacked image.
    """
    return _curve(logits_fn, x, y, attacked_heatmap, steps, chunk, keep_top=True)


def area(curve: Array) -> Array:
    """Area under a curve (steps, n) by the trapezoidal rule, over the width of its levels: (n,), a mean probability."""
    if curve.ndim != 2 or len(curve) < 2:
        raise ValueError(f"area takes a curve (steps, n) of at least two levels, got shape {curve.shape}")
    return jnp.mean((curve[1:] + curve[:-1]) / 2, axis=0)


def _curve(logits_fn, x, y, heatmap, steps: int, chunk: int, keep_top: bool) -> Array:
    x, y, heatmap = jnp.asarray(x), jnp.asarray(y), jnp.asarray(heatmap)
    if x.ndim != 4 or heatmap.shape != x.shape[:3]:
        raise ValueError(f"a curve takes x (n, h, w, c) and heat maps (n, h, w), got {x.shape} and {heatmap.shape}")
    if y.shape != x.shape[:1]:
        raise ValueError(f"{x.shape[0]} images need as many labels (n,), got shape {y.shape}")
    if steps < 1:
        raise ValueError(f"a curve has at least one level, got steps={steps}")
    check_labels(x, y, logits_fn)
    return _compiled_curve(as_pytree(logits_fn), x, y, heatmap, steps, chunk, keep_top)


@functools.partial(jax.jit, static_argnames=("steps", "chunk", "keep_top"))
def _compiled_curve(logits_fn: Partial, x, y, heatmap, steps: int, chunk: int, keep_top: bool) -> Array:
    n, pixels = x.shape[0], heatmap[0].size
    order = jnp.argsort(-heatmap.reshape(n, -1), axis=-1, stable=True)
    places = jnp.argsort(order, axis=-1).reshape(heatmap.shape)

    def probabilities(levels: Array) -> Array:
        # steps and pixels are small: their product stays far below 2^31
        counts = levels * pixels // steps
        top = places < counts[:, None, None, None]
        images = jnp.where((top if keep_top else ~top)[..., None], x, 0)
        logits = logits_fn(images.reshape(-1, *x.shape[1:]))
        chances = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        return of_classes(chances, jnp.tile(y, len(levels))).reshape(-1, n)

    curve = map_chunks(probabilities, steps, chunk)
    return jnp.where(jnp.all(jnp.isfinite(heatmap), axis=(1, 2)), curve, jnp.nan)
