"""The projector of an ablation: a network with one hidden layer in place of the closed form, blind to the gap as well.

It is trained by AdamW on the squared error of standardised features. The gap constraint holds exactly: the input is the
embedding with the gap's row space projected out, x − QᵀQx, so that x and x + Gᵀa have the same features for every a.
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from launch.training import keys
from launch.training.optim import Optimizer, Schedule
from tldr_jax.projector import gap_basis

Array = np.ndarray | jax.Array


class ProjectorMlp(nn.Module):
    """(…, d) -> (…, f): dense, ReLU, dense."""

    hidden: int
    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.features)(nn.relu(nn.Dense(self.hidden)(x)))


@struct.dataclass
class MlpProjector:
    """A trained network with the subspace projected out of its input, and its scales; a pytree.

    Attributes:
      params: of `ProjectorMlp`.
      basis: (r, d), orthonormal rows that are projected out of the input; r may be 0.
      center, scale: (d,) and (), of the inputs.
      mean, spread: (f,) and (), of the features.
      hidden: width of the hidden layer.
      relu: whether ReLU follows.
    """

    params: dict
    basis: Array
    center: Array
    scale: Array
    mean: Array
    spread: Array
    hidden: int = struct.field(pytree_node=False)
    relu: bool = struct.field(pytree_node=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Embeddings (…, d) -> features (…, f)."""
        x = (_without(self.basis, x) - self.center) / self.scale
        network = ProjectorMlp(self.hidden, self.mean.shape[-1])
        y = jnp.asarray(network.apply({"params": self.params}, x)) * self.spread + self.mean
        return jax.nn.relu(y) if self.relu else y


def fit(
    image_embeddings: np.ndarray,
    features: np.ndarray,
    gap: np.ndarray | None,
    *,
    relu: bool,
    hidden: int = 1024,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    batch_size: int = 128,
    steps: int = 3000,
    seed: int = 0,
) -> MlpProjector:
    """Train the network on image_embeddings (n, d) and features (n, f); arguments as of `projector.fit`, and AdamW's.

    Raises:
      ValueError: rows that do not pair up, and for the gap what `projector.gap_basis` raises.
    """
    if np.ndim(image_embeddings) != 2 or np.ndim(features) != 2 or len(image_embeddings) != len(features):
        raise ValueError(
            f"embeddings (n, d) and features (n, f) of the same images, got shapes {np.shape(image_embeddings)} and "
            f"{np.shape(features)}"
        )
    if batch_size < 1 or steps < 1 or hidden < 1:
        raise ValueError(f"batch_size={batch_size}, steps={steps} and hidden={hidden} must be at least 1")
    basis = jnp.asarray(gap_basis(gap, image_embeddings.shape[1]), jnp.float32)
    x = _without(basis, jnp.asarray(image_embeddings, jnp.float32))
    y = jnp.asarray(features, jnp.float32)
    # one scale for all directions: whitening would blow up those that carry nothing
    (center, scale), (mean, spread) = ((a.mean(0), jnp.maximum(jnp.std(a - a.mean(0)), 1e-12)) for a in (x, y))
    adamw = Optimizer("adamw", learning_rate, weight_decay, schedule=Schedule("cosine"))
    optimizer, _ = adamw.create(total_steps=steps, to_steps=lambda _: 0)
    train = functools.partial(_train, optimizer, ProjectorMlp(hidden, y.shape[1]), min(batch_size, len(x)), steps)
    empty = MlpProjector({}, basis, center, scale, mean, spread, hidden, relu)
    return dataclasses.replace(empty, params=jax.jit(train)(empty, x, y, seed))


def outline(width: int, features: int, rows: int, *, hidden: int, relu: bool) -> MlpProjector:
    """What `fit` gives for embeddings and features of these widths and so many rows of gap: shapes for arrays."""
    shape: Any = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    params = jax.eval_shape(ProjectorMlp(hidden, features).init, jax.random.key(0), shape(1, width))["params"]
    return MlpProjector(
        params, shape(rows, width), shape(width), shape(), shape(features), shape(), hidden=hidden, relu=relu
    )


def _train(optimizer, network: ProjectorMlp, batch_size: int, steps: int, scaling: MlpProjector, x, y, seed):
    params = network.init(keys.stream(seed, "mlp projector"), x[:1])["params"]
    targets = (y - scaling.mean) / scaling.spread
    inputs = (x - scaling.center) / scaling.scale

    def loss(params, rows):
        outputs = jnp.asarray(network.apply({"params": params}, inputs[rows]))
        # trained through the ReLU that follows: a negative feature counts as zero
        if scaling.relu:
            outputs = jnp.maximum(outputs, -scaling.mean / scaling.spread)
        return jnp.mean((outputs - targets[rows]) ** 2)

    def step(carry, number):
        params, state = carry
        rows = jax.random.randint(keys.stream(seed, "mlp batches", number), (batch_size,), 0, len(x))
        updates, state = optimizer.update(jax.grad(loss)(params, rows), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(steps))[0][0]


def _without(basis: Array, x: jax.Array) -> jax.Array:
    along = jnp.matmul(x, jnp.swapaxes(basis, -1, -2), precision="highest")
    return x - jnp.matmul(along, basis, precision="highest")
