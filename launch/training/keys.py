"""Random keys as a function of (seed, stream name, step): any step can be recomputed, and resuming restores no key."""

import zlib

import jax


def stream(seed: int | jax.Array, name: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of stream `name` at `step`.

    Args:
      seed: int or traced integer, the run's seed.
      name: what the numbers are for, such as "augment" or "noise"; different names give independent streams.
      step: int or traced integer.

    Returns:
      A typed PRNG key, a scalar.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return jax.random.fold_in(key, step)


def per_example(key: jax.Array, slots: jax.Array) -> jax.Array:
    """One key for every example, from its slot in the *global* batch.

    Which device holds an example then has no influence on the numbers it gets.

    Args:
      key: a scalar typed key.
      slots: int array (n,).

    Returns:
      Typed keys (n,).
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, slots)
