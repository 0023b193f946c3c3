"""Regularizers of the literature that local gradient alignment is compared with.

All are pure functions of a `logits_fn(params, x) -> (logits, aux)`, x (n, h, w, c) normalised (any (n, ...)
will do), y int (n,), and return `(value, logits, aux)`: the penalty, a scalar batch mean that is exact under
`jax.grad` with respect to params, and logits (n, k) and aux of the clean pass, so that the caller's
cross-entropy needs no other.

Common to all, where the papers differ or are silent:
- `radius`, `step_size` and h are in x's units (ε / (255 σ) for pixels), scalar or one per channel; perturbed
  images are kept in the ℓ∞ ball and not clipped to the range of pixels, as in Joo et al. 2023.
- every pass goes through the same `logits_fn`: with batch norm in training mode, each perturbed batch is
  normalised by its own statistics, and only the clean pass's aux is handed back.
- inner maximisations are constants to the outer derivative, and unrolled: the number of steps is static.
- random numbers are drawn per example from `key` and `slots`, the examples' places in the global batch (0 …
  n-1 when left out), so that they do not depend on how a batch is divided among devices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from robustgrad_jax import metrics
from robustgrad_jax.regularizers.alignment import LogitsFn, draw_noise, input_gradient


def input_gradient_spatial_alignment(
    logits_fn: LogitsFn,
    params,
    x: jax.Array,
    y: jax.Array,
    *,
    radius,
    steps: int,
    step_size=None,
    key: jax.Array | None = None,
    slots: jax.Array | None = None,
    start: jax.Array | None = None,
):
    """Attributional robustness training, ART or IGA (Singh et al., ECCV 2020, arXiv 1911.13073).

        L(x̃) = log(1 + exp(−(d(x̃, ∇f_r(x̃)) − d(x̃, ∇f_y(x̃))))),   d(u, v) = 1 − cos(u, v),
        value = mean L(x̃),   x̃ = argmax L over ‖x̃ − x‖_∞ ≤ radius,   r = argmax_{i ≠ y} f_i(x̃)

    Gradients are of logits with respect to x̃. The paper adds L to the cross-entropy *at x̃*; here, as for
    every other penalty, the caller adds it to the cross-entropy of the clean pass. The authors' code moreover
    takes the inner maximisation's cosines over the 1000 strongest entries, and of x and x̃ the harder one for
    each image; neither is done here. Their figures for CIFAR-10: radius 8/255, 3 steps of 5/255, weight 0.5.

    Args:
      radius: of the ball. steps: of sign ascent; with 0, x̃ = x and no random numbers are needed.
      step_size: of one step; 2 · radius / steps when left out.
      key, slots: of the random start, U(−1, 1)·radius. start: given instead, a perturbation of x's shape.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """
    if steps == 0:
        loss, logits, aux = _triplet(logits_fn, params, x, y)
        return jnp.mean(loss), logits, aux
    moved = _ascend(
        lambda frozen, moved: jnp.sum(_triplet(logits_fn, frozen, moved, y)[0]),
        params,
        x,
        radius=radius,
        steps=steps,
        step_size=step_size,
        start=_start(x, radius, key, slots, start),
    )
    logits, aux = logits_fn(params, x)
    return jnp.mean(_triplet(logits_fn, params, moved, y)[0]), logits, aux


def _triplet(logits_fn: LogitsFn, params, x: jax.Array, y: jax.Array):
    """Soft-margin triplet loss (n,) of x against the gradients of true and runner-up logit; logits, aux."""
    logits, pullback, aux = jax.vjp(lambda x: logits_fn(params, x), x, has_aux=True)
    true = jax.nn.one_hot(y, logits.shape[-1], dtype=logits.dtype)
    runner_up = jnp.argmax(jnp.where(true > 0, -jnp.inf, logits), axis=-1)
    (positive,) = pullback(true)
    (negative,) = pullback(jax.nn.one_hot(runner_up, logits.shape[-1], dtype=logits.dtype))
    # d(x, negative) − d(x, positive); softplus(−margin) is log(1 + exp(−margin)) without overflow.
    margin = metrics.cosine(x, positive) - metrics.cosine(x, negative)
    return jax.nn.softplus(-margin), logits, aux


def atex(
    logits_fn: LogitsFn,
    params,
    x: jax.Array,
    y: jax.Array,
    *,
    radius,
    draws: int = 1,
    temperature: float = 1.0,
    key: jax.Array | None = None,
    slots: jax.Array | None = None,
    noise: jax.Array | None = None,
):
    """Adversarial training on explanations, ATEX (Tang et al., Frontiers in Big Data 2022, arXiv 2111.04303).

        value = mean_{draws, batch} KL(softmax(f(x)/T) ‖ softmax(f(x + δ))),   δ ⊥ ∇f_y(x),   f(x) a constant

    Moving at right angles to the explanation must not change the prediction: only predictions are
    constrained, and no second derivative is taken. δ is uniform noise less its component along the gradient
    (`orthogonal`), as in the authors' code, so that single entries may exceed `radius` by what the projection
    adds.

    Our reading: the paper distils a second, already trained network f₀, at points x + t∇ along its
    SmoothGrad, into the network that is trained. Here both are the network itself, at x, with its plain
    gradient over all channels together (their code projects every channel by itself), so that it is a penalty
    like the others. KL is a sum over classes (theirs a mean: ours is k times as large).

    Args:
      radius: of the noise before projection. draws: δ's an image, one pass each (theirs: 8 to 16).
      temperature: T, of the constant side only, as in the authors' code.
      key, slots: of the noise. noise: given instead, (draws, n, ...) before projection.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """
    if noise is None:
        _require(key, "atex", "noise")
        keys = [jax.random.fold_in(key, draw) for draw in range(draws)]
        noise = [_uniform(k, slots, x, radius) for k in keys]
    elif noise.shape != (draws, *x.shape):
        raise ValueError(f"atex: noise must have shape {(draws, *x.shape)} (draws first), got {noise.shape}")
    gradient, logits, aux = input_gradient(logits_fn, params, x, y)
    gradient = jax.lax.stop_gradient(gradient)
    target = jax.nn.log_softmax(jax.lax.stop_gradient(logits) / temperature)
    total = 0.0
    for draw in range(draws):
        moved, _ = logits_fn(params, x + orthogonal(noise[draw], gradient))
        divergence = jnp.sum(jnp.exp(target) * (target - jax.nn.log_softmax(moved)), axis=-1)
        total = total + jnp.mean(divergence)
    return total / draws, logits, aux


def orthogonal(noise: jax.Array, gradient: jax.Array) -> jax.Array:
    """Each example's noise less its component along its gradient; all of it where the gradient is 0.

    noise, gradient: (n, ...) of one shape.
    """
    shape = noise.shape
    noise, gradient = (a.reshape(shape[0], -1) for a in (noise, gradient))
    norm = jnp.linalg.norm(gradient, axis=-1, keepdims=True)
    unit = gradient / jnp.where(norm > 0, norm, 1)
    return (noise - jnp.sum(noise * unit, axis=-1, keepdims=True) * unit).reshape(shape)


def ig_norm(
    logits_fn: LogitsFn,
    params,
    x: jax.Array,
    y: jax.Array,
    *,
    radius,
    steps: int,
    path_steps: int,
    attack_path_steps: int | None = None,
    sum_norm: bool = False,
    beta: float = 0.1,
    step_size=None,
    key: jax.Array | None = None,
    slots: jax.Array | None = None,
    start: jax.Array | None = None,
):
    """IG-NORM and IG-SUM-NORM of robust attribution regularization (Chen et al., NeurIPS 2019).

        IG(x, x') = (x' − x) ⊙ 1/m Σ_{k=1..m} ∇ℓ(x + k/m (x' − x)),   ℓ the cross-entropy of y
        IG-NORM:      value = mean max_{x'} ‖IG(x, x')‖₁
        IG-SUM-NORM:  value = mean max_{x'} {ℓ(x') + β‖IG(x, x')‖₁} − ℓ(x)

    over ‖x' − x‖_∞ ≤ radius (arXiv 1905.09957). The paper's objective is ℓ(x) + λ max s(IG) with s the norm,
    or, with λ = 1, sum + β norm: since IG sums to ℓ(x') − ℓ(x), the latter's total is max {ℓ(x') + β‖IG‖₁},
    and that is what the caller gets by adding the second value, *with weight 1*, to the clean cross-entropy.

    The paper leaves the approximation of the maximum open; as in the authors' code, it is sign ascent from a
    random start (at x itself the norm's gradient vanishes), with `attack_path_steps` points of the path where
    the penalty has `path_steps`. Published for MNIST: radius 0.3 (of 1), 40 steps of 0.01, 50 points, 10 in
    the attack; λ = 1, β = 0.1. The program grows with steps · attack_path_steps + path_steps second-order
    passes.

    Args:
      radius: of the ball. steps: of sign ascent; with 0, x' is the start. path_steps: m.
      attack_path_steps: m inside the maximisation; path_steps when left out.
      sum_norm: IG-SUM-NORM rather than IG-NORM. beta: its β, not used otherwise.
      step_size: of one step; 2 · radius / steps when left out.
      key, slots: of the random start, U(−1, 1)·radius. start: given instead, a perturbation of x's shape.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """

    def objective(params, moved, points):
        norm = _path_norm(logits_fn, params, x, moved, y, points)
        return cross_entropy(logits_fn(params, moved)[0], y) + beta * norm if sum_norm else norm

    moved = _ascend(
        lambda frozen, moved: jnp.sum(objective(frozen, moved, attack_path_steps or path_steps)),
        params,
        x,
        radius=radius,
        steps=steps,
        step_size=step_size,
        start=_start(x, radius, key, slots, start),
    )
    logits, aux = logits_fn(params, x)
    value = objective(params, moved, path_steps)
    if sum_norm:
        value = value - cross_entropy(logits, y)
    return jnp.mean(value), logits, aux


def _path_norm(logits_fn: LogitsFn, params, x, moved, y, points: int) -> jax.Array:
    """‖IG(x, moved)‖₁ of the cross-entropy, right Riemann sum of `points` passes: (n,)."""
    attribution = integrated_gradients(logits_fn, params, x, moved, y, points)
    return jnp.sum(jnp.abs(attribution).reshape(len(x), -1), axis=-1)


def integrated_gradients(logits_fn: LogitsFn, params, x, moved, y, points: int) -> jax.Array:
    """Integrated gradients (n, ...) of the cross-entropy from x to moved: a right Riemann sum of `points`."""
    total = jnp.zeros_like(x)
    for k in range(1, points + 1):
        total = total + loss_gradient(logits_fn, params, x + k / points * (moved - x), y)[0]
    return (moved - x) * total / points


def curvature(logits_fn: LogitsFn, params, x: jax.Array, y: jax.Array, *, h: float):
    """Curvature regularization, CURE (Moosavi-Dezfooli et al., CVPR 2019, arXiv 1811.09716).

        value = mean ‖∇L(x + h z) − ∇L(x)‖²,   z = sign(∇L(x)) / ‖sign(∇L(x))‖₂,   L the cross-entropy

    The finite difference's factor 1/h² is left to the weight. z is a constant; both gradients carry parameter
    gradients. Our reading: the passes of the module's docstring, where the public implementation
    (F-Salehi/CURE_robustness) uses batch norm's running statistics and the unsquared norm. It raises h to 3
    over the first epochs, with weight 4.

    Args:
      h: length (ℓ2) of the step, in x's units.

    Returns:
      (value, logits, aux), the latter two of the clean pass.
    """
    gradient, logits, aux = loss_gradient(logits_fn, params, x, y)
    sign = jnp.sign(jax.lax.stop_gradient(gradient)).reshape(len(x), -1)
    norm = jnp.maximum(jnp.linalg.norm(sign, axis=-1, keepdims=True), 1)  # 0 only where the gradient is
    other, _, _ = loss_gradient(logits_fn, params, x + h * (sign / norm).reshape(x.shape), y)
    difference = (other - gradient).reshape(len(x), -1)
    return jnp.mean(jnp.sum(jnp.square(difference), axis=-1)), logits, aux


def cross_entropy(logits: jax.Array, y: jax.Array) -> jax.Array:
    """−log softmax(logits)_y of each example: (n, k), (n,) -> (n,)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1)[:, 0]


def loss_gradient(logits_fn: LogitsFn, params, x: jax.Array, y: jax.Array):
    """Input gradient of the batch's summed cross-entropy (n, ...), with logits and aux of the pass."""

    def total(x):
        logits, aux = logits_fn(params, x)
        return jnp.sum(cross_entropy(logits, y)), (logits, aux)

    gradient, (logits, aux) = jax.grad(total, has_aux=True)(x)
    return gradient, logits, aux


def _require(key: jax.Array | None, name: str, instead: str) -> None:
    if key is None:
        raise ValueError(f"{name} draws random numbers: pass key, or {instead} to use your own")


def _uniform(key: jax.Array, slots: jax.Array | None, x: jax.Array, radius) -> jax.Array:
    slots = jnp.arange(x.shape[0]) if slots is None else slots
    return draw_noise("uniform", key, slots, x.shape, jnp.asarray(radius, x.dtype), x.dtype)


def _start(x, radius, key, slots, start) -> jax.Array:
    """The perturbation that an inner maximisation starts from."""
    if start is None:
        _require(key, "the inner maximisation", "start")
        return _uniform(key, slots, x, radius)
    if start.shape != x.shape:
        raise ValueError(f"start must have x's shape {x.shape}, got {start.shape}")
    return start


def _ascend(objective: Callable, params, x, *, radius, steps: int, step_size, start) -> jax.Array:
    """Sign ascent of objective(params, moved) in the ℓ∞ ball around x, from x + start; then a constant."""
    radius = jnp.asarray(radius, x.dtype)
    if step_size is None:
        step_size = 2 * radius / max(steps, 1)
    step_size = jnp.asarray(step_size, x.dtype)
    # Frozen before the loop, not only after it: the outer derivative then never traces the inner one.
    frozen, x = jax.lax.stop_gradient((params, x))
    moved = x + start.astype(x.dtype)
    for _ in range(steps):
        direction = jnp.sign(jax.grad(objective, argnums=1)(frozen, moved))
        moved = jnp.clip(moved + step_size * direction, x - radius, x + radius)
    return jax.lax.stop_gradient(moved)
