"""Random keys as functions of (seed, stream name, step): any step can be recomputed, and no key needs restoring."""

import zlib

import jax


def stream(seed: int | jax.Array, name: str, step: int | jax.Array = 0) -> jax.Array:
    """The key of stream `name` at `step`.

    Args:
      seed: int or traced integer, the run's seed.
      name: the purpose of the numbers, such as "augment" or "noise"; different names give independent streams.
      step: int or traced integer.

    Returns:
      A typed PRNG key, a scalar.
    """
    key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(name.encode()) & 0x7FFFFFFF)
    return jax.random.fold_in(key, step)


def per_example(key: jax.Array, slots: jax.Array) -> jax.Array:
    """One key per example, from its slot in the *global* batch.

    The numbers of an example therefore do not depend on the device that holds it.

    Args:
      key: a scalar typed key.
      slots: int array (n,).

    Returns:
      Typed keys (n,).
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(key, slots)
