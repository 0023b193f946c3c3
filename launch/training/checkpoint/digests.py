"""Digests of arrays: the same on any devices, hosts and layouts, computed where the array is.

Every 32-bit word of an array is mixed with its place by an invertible function, and two sums over all words, mod 2^32,
are the digest. A change of one word always changes it; any other one goes unnoticed with a chance of 2^-64. Sums do not
depend on how an array is split, so each device sums what it holds; on a CPU this runs at the speed of memory.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

_SMALL = 1 << 18  # bytes: NumPy takes smaller arrays, which are not worth compiling a program for each shape
# An odd multiplier for the index along each axis.
_ODD = np.array([pow(0x9E3779B1, axis + 1, 1 << 32) for axis in range(64)], np.uint32)


def copies(arrays: Mapping[str, Any]) -> dict[str, set[str]]:
    """The digests of arrays by name: one each, unless the copies on the devices of this process differ.

    With several processes all of them call it with the same names, in the same order.

    Args:
      arrays: JAX arrays (typed keys as their data) or NumPy arrays, of booleans or numbers.
    """
    # All programs are started before the first result is fetched.
    sums = {name: _start(x) for name, x in arrays.items()}
    return {name: {"".join(f"{word:08x}" for word in np.asarray(each)) for each in own} for name, own in sums.items()}


def _start(x: Any) -> list[Any]:
    """The two sums of each local copy of an array; on a device they may be on their way."""
    on_host = isinstance(x, np.ndarray)
    if x.nbytes <= _SMALL and (on_host or x.is_fully_replicated):
        local = [x] if on_host else [np.asarray(shard.data) for shard in x.addressable_shards]
        return [_host_sums(one) for one in local]
    return [shard.data for shard in _sums(_words(x) if on_host else x, _ODD).addressable_shards]


def _host_sums(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # of scalars; arrays wrap around anyway
        return np.stack([terms.sum(dtype=np.uint32) for terms in _terms(_words(x), _ODD)])


@jax.jit
def _sums(x: jax.Array, odd: jax.Array) -> jax.Array:
    # `odd` is an argument: XLA would evaluate what is made of constants when it compiles, over the whole array.
    zero, terms = np.uint32(0), _terms(_words(x), odd)
    add = lambda a, b: (a[0] + b[0], a[1] + b[1])
    return jnp.stack(lax.reduce(terms, (zero, zero), add, range(terms[0].ndim)))  # both sums in one pass


def _terms(words: Any, odd: Any) -> tuple[Any, Any]:
    """What the two sums add up, for words (…), of NumPy or JAX."""
    arange = np.arange if isinstance(words, np.ndarray) else jnp.arange
    place = np.uint32(0)
    for axis, size in enumerate(words.shape):
        along = arange(size, dtype=np.uint32) * odd[axis]
        place = place + along.reshape(-1, *[1] * (words.ndim - axis - 1))
    # The finaliser of MurmurHash3, and one more round, so that the sums are independent.
    x = words ^ place
    x = (x ^ (x >> 16)) * np.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * np.uint32(0xC2B2AE35)
    x = x ^ (x >> 16)
    return x, (x ^ (x >> 15)) * np.uint32(0x9E3779B1)


def _words(x: Any) -> Any:
    """The bits of an array of NumPy or JAX as uint32, those of 64-bit and complex numbers along more axes."""
    on_host = isinstance(x, np.ndarray)
    if np.issubdtype(x.dtype, np.complexfloating):
        x = (np if on_host else jnp).stack([x.real, x.imag], -1)
    if x.dtype == np.bool_ or x.dtype.name in ("int2", "int4", "uint2", "uint4"):
        x = x.astype(np.int8)
    unsigned = np.dtype(f"uint{8 * min(x.dtype.itemsize, 4)}")
    if on_host:
        x = np.asarray(x, x.dtype.newbyteorder("="), order="C")
        bits = x.reshape(*x.shape, 1).view(unsigned)
        return (bits if x.dtype.itemsize == 8 else bits[..., 0]).astype(np.uint32, copy=False)
    return lax.bitcast_convert_type(x, unsigned).astype(np.uint32)
