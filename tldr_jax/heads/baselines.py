"""Other ways to obtain a last layer, on the same cached features: logistic regressions, AFR, zero-shot CLIP.

`dfr` uses images with group labels, `class_balanced` only classes, `afr` only classes (and validation groups to choose
its settings), `zero_shot` no training image. Each returns `Head`s, on raw features: scaling is folded into them.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import sklearn
from jax.typing import ArrayLike
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tldr_jax import heads, metrics
from tldr_jax.heads import Head

PENALTIES = (1.0, 0.7, 0.3, 0.1, 0.07, 0.03, 0.01)  # values of C, the inverse strength (Kirichenko et al. 2023)
DRAWS = 20  # balanced subsets averaged


class Fitted(NamedTuple):
    """A head from averaged logistic regressions, the C that was chosen, and the held-out score of every C."""

    head: Head
    penalty: float
    scores: dict[float, float]


def dfr(
    features: np.ndarray,
    labels: np.ndarray,
    spurious: np.ndarray,
    *,
    allowed: np.ndarray,
    scale_on: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    draws: int = DRAWS,
    tuning_draws: int = 1,
    seed: int = 0,
    names: metrics.Names | None = None,
) -> Fitted:
    """Deep feature reweighting, DFR on validation images (Kirichenko et al., ICLR 2023).

    ℓ1-regularised logistic regression on standardised features of group-balanced subsets. C is the one with the best
    worst-group accuracy on one half of the images after a fit on the other half; then coefficients are averaged over
    `draws` subsets of all images. The halves are drawn within every group, so that each has all of them.

    Args:
      features, labels, spurious: (n, f), (n,) and (n,), usually the validation set's.
      allowed, names: see `metrics.group_counts`.
      scale_on: features that mean and standard deviation are taken from, usually the training set's; None takes the
        images given.
      penalties: values of C to choose from; one value skips the choice.
      draws, tuning_draws: balanced subsets of the final fit, and splits that the choice of C is averaged over.
      seed: of splits and subsets.

    Raises:
      ValueError: a group with fewer than two images, or values that do not belong together (see `metrics`).
    """
    labels, spurious, allowed = np.asarray(labels), np.asarray(spurious), np.asarray(allowed, bool)
    counts = metrics.group_counts(labels, spurious, allowed, names=names)
    if len(small := np.argwhere(allowed & (counts < 2))):
        raise ValueError(
            f"DFR needs at least two images of every group; class {small[0][0]} with spurious value {small[0][1]} "
            f"has fewer: {counts.tolist()}"
        )

    def score(predicted, rows):
        return metrics.worst_group(metrics.group_accuracies(predicted, labels[rows], spurious[rows], allowed))

    strata = labels * allowed.shape[1] + spurious
    return _averaged(features, labels, strata, score, scale_on, penalties, draws, tuning_draws, seed)


def class_balanced(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    scale_on: np.ndarray | None = None,
    penalties: Sequence[float] = PENALTIES,
    draws: int = DRAWS,
    tuning_draws: int = 1,
    seed: int = 0,
) -> Fitted:
    """`dfr` without group labels: subsets balanced over classes, C chosen by class-balanced accuracy.

    Raises:
      ValueError: a class with fewer than two images, or labels out of range.
    """
    labels = np.asarray(labels)
    if labels.shape != (len(features),) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must be (n,) = ({len(features)},) from 0 to {classes - 1}, got shape {labels.shape}")
    if (counts := np.bincount(labels, minlength=classes)).min() < 2:
        raise ValueError(f"every class needs at least two images; the counts are {counts}")
    score = lambda predicted, rows: metrics.class_balanced(predicted, labels[rows], classes)
    return _averaged(features, labels, labels, score, scale_on, penalties, draws, tuning_draws, seed)


def afr_grid(gammas: Sequence[float], ridges: Sequence[float]) -> np.ndarray:
    """Settings of `afr`, every combination: (k, 2), gamma slowest."""
    return np.array(list(itertools.product(gammas, ridges)), np.float32).reshape(-1, 2)


def afr(
    features: ArrayLike,
    labels: ArrayLike,
    head: Head,
    settings: np.ndarray,
    *,
    learning_rate: float = 1e-2,
    steps: int = 500,
    evaluations: int = 10,
    clip_norm: float = 1.0,
) -> Head:
    """Automatic feature reweighting (Qiu et al., ICML 2023), for a set of settings at once.

    From the ERM head (φ₀), full-batch gradient descent on Σᵢ μᵢ CE(φ(xᵢ), yᵢ) + λ‖φ − φ₀‖², where μᵢ ∝ exp(−γ pᵢ) / n_y
    sums to 1, pᵢ is the ERM head's probability of the true class and n_y the number of images of class y. Setting and
    stopping point are for `retrain.select` to choose by validation worst-group accuracy; published is every step. The
    images should not be those that the ERM model has fitted: published is a held-out fifth of the training set. The
    published code adds a freshly drawn layer to φ₀ and trains that; here, as in the paper, φ starts from φ₀.

    Args:
      features, labels: (n, f) and (n,), of the reweighting images.
      head: the ERM head.
      settings: (k, 2), γ and λ, see `afr_grid`.
      evaluations: e, at how many evenly spaced points the heads are kept.
      clip_norm: largest norm of the gradient of kernel and bias together; 0 for no clipping.

    Returns:
      Heads, leading axes (k, e).

    Raises:
      ValueError: settings of another shape, steps that do not divide by the evaluations, a class without images.
    """
    features, labels = jnp.asarray(features, jnp.float32), np.asarray(labels)
    settings = np.asarray(settings, np.float32)
    if settings.ndim != 2 or settings.shape[1] != 2 or not np.all(np.isfinite(settings) & (settings >= 0)):
        raise ValueError(f"settings must be (k, 2), gamma and lambda at least 0 (see afr_grid), got {settings}")
    if evaluations < 1 or steps < 1 or steps % evaluations:
        raise ValueError(f"{steps} steps do not divide into {evaluations} evaluations")
    counts = np.bincount(labels, minlength=np.shape(head.bias)[-1])
    if not counts.all():
        raise ValueError(f"AFR weighs classes by their number of images, and one has none: {counts}")
    start = Head(*(jnp.asarray(a, jnp.float32) for a in head))
    numbers = learning_rate, clip_norm or np.inf
    trained = _afr(features, labels, 1 / counts[labels], start, *numbers, steps, evaluations, jnp.asarray(settings))
    return Head(*(np.asarray(a) for a in trained))


def zero_shot(prompts: ArrayLike) -> Head:
    """Zero-shot CLIP: the head on image embeddings (n, d), normalised or not, that class prompts make.

    Args:
      prompts: (C, T, d), embeddings of each class under T templates; they are normalised, then averaged (Radford et
        al. 2021).

    Raises:
      ValueError: another number of axes, or an embedding that is zero or not finite.
    """
    prompts = np.asarray(prompts, np.float64)
    if prompts.ndim != 3:
        raise ValueError(f"class prompts must be (classes, templates, d), got shape {prompts.shape}")
    norms = np.linalg.norm(prompts, axis=-1, keepdims=True)
    if not np.all(np.isfinite(norms) & (norms > 0)):
        raise ValueError("a class prompt's embedding is zero or not finite")
    means = (prompts / norms).mean(1)
    means /= np.linalg.norm(means, axis=-1, keepdims=True)
    return Head(means.T.astype(np.float32), np.zeros(len(means), np.float32))


def _averaged(features, labels, strata, score, scale_on, penalties, draws, tuning_draws, seed) -> Fitted:
    """Logistic regressions of stratum-balanced subsets: C chosen by `score` on held-out halves, then averaged."""
    if not len(penalties) or draws < 1 or tuning_draws < 1:
        raise ValueError(
            f"needs at least one C ({list(penalties)}), one draw ({draws}) and one tuning draw ({tuning_draws})"
        )
    if np.ndim(features) != 2 or len(features) != len(labels):
        raise ValueError(f"features must be (n, f), a row for each of {len(labels)} labels, got {np.shape(features)}")
    features, rng = np.asarray(features, np.float64), np.random.default_rng(seed)
    scaler = StandardScaler().fit(features if scale_on is None else np.asarray(scale_on, np.float64))
    scaled = np.asarray(scaler.transform(features))
    scores = dict.fromkeys(map(float, penalties), 0.0)
    for _ in range(tuning_draws if len(scores) > 1 else 0):
        fitted_on, held_out = _halves(rng, strata)
        rows = fitted_on[_balanced(rng, strata[fitted_on])]
        for penalty in scores:
            model = _logistic(scaled[rows], labels[rows], penalty, seed)
            scores[penalty] += float(score(model.predict(scaled[held_out]), held_out)) / tuning_draws
    best = max(scores, key=lambda penalty: scores[penalty])
    subsets = [_balanced(rng, strata) for _ in range(draws)]
    fits = [_as_head(_logistic(scaled[rows], labels[rows], best, seed)) for rows in subsets]
    kernel, bias = (np.mean(arrays, axis=0) for arrays in zip(*fits, strict=True))
    kernel = kernel / np.asarray(scaler.scale_)[:, None]
    head = Head(kernel.astype(np.float32), (bias - np.asarray(scaler.mean_) @ kernel).astype(np.float32))
    return Fitted(head, best, scores)


def _balanced(rng: np.random.Generator, strata: np.ndarray) -> np.ndarray:
    """Rows of a random subset with equally many of every stratum, as many as the smallest has."""
    members = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]
    smallest = min(map(len, members))
    return np.concatenate([rng.permutation(rows)[:smallest] for rows in members])


def _halves(rng: np.random.Generator, strata: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Two random halves of the rows, each stratum halved."""
    members = [rng.permutation(np.flatnonzero(strata == stratum)) for stratum in np.unique(strata)]
    first, second = zip(*((rows[len(rows) // 2 :], rows[: len(rows) // 2]) for rows in members), strict=True)
    return np.concatenate(first), np.concatenate(second)


def _logistic(x: np.ndarray, y: np.ndarray, penalty: float, seed: int) -> LogisticRegression:
    """ℓ1 logistic regression: liblinear for two classes, as published; for more, which it has no loss for, saga."""
    lasso: dict[str, Any] = {"l1_ratio": 1.0} if _version() >= (1, 8) else {"penalty": "l1"}
    solver = "liblinear" if len(np.unique(y)) == 2 else "saga"
    return LogisticRegression(C=penalty, solver=solver, max_iter=1000, random_state=seed, **lasso).fit(x, y)


def _version() -> tuple[int, ...]:
    return tuple(map(int, sklearn.__version__.split(".")[:2]))


def _as_head(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (f, C) and bias (C,); scikit-learn keeps one row of coefficients for two classes."""
    kernel, bias = np.asarray(model.coef_).T, np.asarray(model.intercept_)
    if kernel.shape[1] == 1:
        return np.concatenate([np.zeros_like(kernel), kernel], 1), np.concatenate([np.zeros(1), bias])
    return kernel, bias


@functools.partial(jax.jit, static_argnames=("steps", "evaluations"))
def _afr(features, labels, class_weights, start: Head, rate, most, steps: int, evaluations: int, settings) -> Head:
    probability = jax.nn.softmax(heads.logits(start, features))[jnp.arange(len(labels)), labels]

    def one(setting):
        gamma, ridge = setting
        weights = jnp.exp(-gamma * probability) * class_weights
        weights = weights / weights.sum()

        def objective(head):
            loss = optax.softmax_cross_entropy_with_integer_labels(heads.logits(head, features), labels)
            distance = sum(jnp.sum((a - b) ** 2) for a, b in zip(head, start, strict=True))
            return jnp.sum(weights * loss) + ridge * distance

        def step(_, head):
            gradient = jax.grad(objective)(head)
            scale = rate * jnp.minimum(1, most / (optax.global_norm(gradient) + 1e-6))  # as PyTorch clips
            return jax.tree.map(lambda a, g: a - scale * g, head, gradient)

        def segment(head, _):
            head = jax.lax.fori_loop(0, steps // evaluations, step, head)
            return head, head

        return jax.lax.scan(segment, start, length=evaluations)[1]

    return jax.vmap(one)(settings)
