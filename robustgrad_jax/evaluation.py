"""What Joo et al. 2023 measure on the test set: accuracy, similarity under random perturbation, the upper-bound study.

Every function here is per example, pure, and for `launch.loop.masked_means`: (variables, batch, draw) -> {name: (n,)}.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from launch import keys
from robustgrad_jax import metrics
from robustgrad_jax.regularizers.alignment import draw_noise, input_gradient, squared_norm

Prepare = Callable[[Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


def _frozen(model) -> Callable:
    """The model in evaluation mode as a logits_fn; `params` are all its variables."""
    return lambda variables, x: (model.apply(variables, x)[0], None)


def accuracy(model, prepare: Prepare) -> Callable:
    """Accuracy and cross-entropy of the clean images, for validation and test.

    Args:
      model: linen module, (variables, x) -> (logits, out).
      prepare: batch -> (x normalised, y).
    """

    def measure(variables, batch, draw):
        del draw
        x, y = prepare(batch)
        logits, _ = model.apply(variables, x)
        log_probabilities = jax.nn.log_softmax(logits)
        loss = -jnp.take_along_axis(log_probabilities, y[:, None], axis=1)[:, 0]
        return {"accuracy": (logits.argmax(-1) == y).astype(x.dtype), "cross_entropy": loss}

    return measure


def clean_maps(model, prepare: Prepare) -> Callable:
    """(variables, batch) -> the clean images' gradients (n, h, w, c) and heat maps (n, h, w): what all draws share."""

    def maps(variables, batch):
        x, y = prepare(batch)
        gradient, _, _ = input_gradient(_frozen(model), variables, x, y)
        return {"gradient": gradient, "heatmap": metrics.heatmap(gradient)}

    return maps


def random_perturbation_similarity(model, prepare: Prepare, *, std, radii: Sequence[float], seed: int) -> Callable:
    """RPS: how alike the gradient's heat maps are before and after a uniform draw of radius ε/255, for every ε.

    The heat map is the channel sum of |∇g|, divided by its maximum; cosine, Pearson correlation (pcc), SSIM and mean
    squared error compare the two maps. `gradient_cosine` compares the signed gradients, which the regulariser trains.
    Perturbed images are clipped to the value range of their batch, as in the published code.

    Args:
      std: per channel, what the images were divided by.
      radii: each ε in units of 1/255 of the pixel range; one uniform draw is scaled to all of them.
      seed: of the draws; draw number and test-set index give each image its own.

    Returns:
      (variables, batch, draw) -> {"rps-4/cosine": (n,), …}; needs `clean_maps`' result as `batch["once"]`.
    """

    def measure(variables, batch, draw):
        x, y = prepare(batch)
        uniform = draw_noise("uniform", keys.stream(seed, "rps", draw), batch["slot"], x.shape, 1.0, x.dtype)
        before, a = batch["once"]["gradient"], batch["once"]["heatmap"]
        values = {}
        for radius in radii:
            perturbed = jnp.clip(x + radius / (255 * jnp.asarray(std, x.dtype)) * uniform, x.min(), x.max())
            after, logits, _ = input_gradient(_frozen(model), variables, perturbed, y)
            b = metrics.heatmap(after)
            found = {
                "cosine": metrics.cosine(a, b),
                "pcc": metrics.pearson(a, b),
                "ssim": metrics.ssim(a, b),
                "mse": metrics.mse(a, b),
                "gradient_cosine": metrics.cosine(before, after),
                "accuracy": (logits.argmax(-1) == y).astype(x.dtype),
            }
            values |= {f"rps-{radius:g}/{name}": value for name, value in found.items()}
        return values

    return measure


def upper_bound(model, prepare: Prepare, *, std, radius: float, seed: int) -> Callable:
    """The quantities of the paper's upper-bound study, for one gaussian draw z of scale ε/(255 σ).

    l2 = ‖∇g(x) − ∇g(x')‖², cosine_distance = (1 − cos)/2, gradient_norm = ‖∇g(x')‖, hessian_product_norm = ‖Hz‖ and
    bound = ‖Hz‖/‖∇g(x')‖; hessian_frobenius = ‖Hv‖² with v ~ N(0, I), which `hutchinson` turns into an estimate of
    ‖H‖_F once the draws are averaged. (The published code divides by the radius; the number of draws is right.)

    Args:
      std, seed: as in `random_perturbation_similarity`.
      radius: ε in units of 1/255 of the pixel range.
    """

    def measure(variables, batch, draw):
        x, y = prepare(batch)
        key = keys.stream(seed, "upper_bound", draw)
        direction = draw_noise("gaussian", key, batch["slot"], x.shape, 1.0, x.dtype)
        scale = radius / (255 * jnp.asarray(std, x.dtype))
        logits_fn = _frozen(model)
        gradient_of = lambda x: input_gradient(logits_fn, variables, x, y)[0]
        source, product_with = jax.linearize(gradient_of, x)  # one pass for both Hessian-vector products
        along_noise, along_v = product_with(scale * direction), product_with(direction)
        perturbed = gradient_of(x + scale * direction)
        norm, product = jnp.sqrt(squared_norm(perturbed)), jnp.sqrt(squared_norm(along_noise))
        return {
            "l2": squared_norm(source - perturbed),
            "cosine_distance": metrics.cosine_distance(source, perturbed),
            "gradient_norm": norm,
            "hessian_product_norm": product,
            "bound": product / (norm + 1e-8),
            "hessian_frobenius": squared_norm(along_v),
        }

    return measure


def hutchinson(values: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """From the mean over draws of ‖Hv‖² to the estimate of ‖H‖_F, image by image."""
    return {**values, "hessian_frobenius": jnp.sqrt(values["hessian_frobenius"])}
