"""In what a network's activations and products are computed, by name.

Parameters and batch norm's statistics stay float32 whatever the name, and so does what a number or a loss is made of:
the features that the last layer takes, that layer, logits, softmax. Gradients come in the type of the parameters; in
mode "jit" the compilers exchange those of bfloat16 products between devices before they widen them.
"""

from typing import Any

import jax
import jax.numpy as jnp

DTYPES = ("float32", "bfloat16")


def get(name: str) -> Any:
    """The `dtype` of Linen's layers: None for "float32", in which the arrays decide (float64 stays float64).

    Raises:
      ValueError: the name is unknown; the message lists the valid ones.
    """
    if name not in DTYPES:
        raise ValueError(f"unknown dtype {name!r}; valid names: {', '.join(map(repr, DTYPES))}")
    return None if name == "float32" else jnp.dtype(name)


def wide(x: jax.Array) -> jax.Array:
    """x in at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
