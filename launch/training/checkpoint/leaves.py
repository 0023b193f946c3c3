"""A state as a checkpoint stores it: a flat table from path to array, and the record (JSON) that describes them."""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from launch.reading import jsons

_SHOWN = 5  # paths of each kind in an error message
_CHECK = "sha256"  # of the rest of the record


def abstract(state: Any) -> Any:
    """The shapes, dtypes and shardings of a state, as `Checkpoints.restore_latest` needs them.

    Leaves that are not JAX arrays (NumPy arrays, Python numbers) get no sharding and are restored as NumPy arrays.
    """

    def leaf(x):
        if isinstance(x, jax.ShapeDtypeStruct):
            return x
        if isinstance(x, jax.Array):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        x = np.asarray(x)
        return jax.ShapeDtypeStruct(x.shape, x.dtype)

    return jax.tree.map(leaf, state)


def flatten(tree: Any) -> dict[str, Any]:
    """Leaves by path ("params/dense/kernel"), Python numbers as NumPy arrays."""
    flat = {}
    for keys, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        if path in flat:
            raise ValueError(f"two leaves of the state have the path {path!r}")
        if not isinstance(x, jax.Array | jax.ShapeDtypeStruct):
            x = np.asarray(x)
            if x.dtype.kind in "OSU":
                raise ValueError(f"leaf {path!r} of the state is not an array or a number: {x!r}")
        flat[path] = x
    return flat


def is_key(x) -> bool:
    """Whether an array is of typed PRNG keys."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def data(x):
    """An array as it is stored: a typed key as its data."""
    return jax.random.key_data(x) if is_key(x) else x


def signature(x) -> str:
    """Dtype and shape: "float32[8,4]"."""
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def record(leaves: Mapping[str, Any], metrics: Mapping[str, float], digests: Mapping[str, str]) -> dict[str, Any]:
    """The description of a state from `flatten`: metrics, dtypes, shapes, key algorithms, digests, and its own hash."""
    content = {
        "metrics": dict(metrics),
        "leaves": {path: signature(x) for path, x in leaves.items()},
        "keys": {path: str(jax.random.key_impl(x)) for path, x in leaves.items() if is_key(x)},
        "digests": dict(digests),
    }
    return {**content, _CHECK: _hash(content)}


def read_record(path: epath.Path) -> dict[str, Any]:
    """The record of the checkpoint in the folder `path`; one written before there were digests has none.

    Raises:
      OSError: there is none.
      ValueError: it is damaged.
    """
    file = path / "info" / "metadata"
    content = jsons.parse(file.read_text(), file=os.fspath(file), top=dict, nonfinite=True)
    check = content.pop(_CHECK, None)
    older = check is None and "digests" not in content and {"metrics", "leaves", "keys"} <= content.keys()
    if not older and check != _hash(content):
        raise ValueError(f"{file}: is damaged (its hash is another)")
    return content


def _hash(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_same(stored: Mapping[str, str], state: Mapping[str, str], path: epath.Path) -> None:
    """Raise ValueError unless the signatures stored in the checkpoint `path` are those of a state, by leaf."""
    lines = []
    for title, names in (
        ("missing in the checkpoint", [n for n in state if n not in stored]),
        ("only in the checkpoint", [n for n in stored if n not in state]),
        ("different", [n for n in state if n in stored and state[n] != stored[n]]),
    ):
        if names:
            shown = [f"{n}: {stored[n]} stored, {state[n]} wanted" if title == "different" else n for n in names]
            more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
            lines.append(f"  {title}: {'; '.join(shown[:_SHOWN])}{more}")
    if lines:
        raise ValueError(
            f"the checkpoint {path} is of another state (another model or optimiser?):\n" + "\n".join(lines)
        )


def restore_args(x: jax.ShapeDtypeStruct):
    """How Orbax restores the leaf `x`: on which devices, or as a NumPy array."""
    if x.sharding is None:
        return ocp.RestoreArgs(restore_type=np.ndarray)
    x.sharding.shard_shape(x.shape)  # raises if it does not fit the array: not to be taken for damage
    stored = jax.eval_shape(data, x)
    return ocp.ArrayRestoreArgs(sharding=x.sharding, global_shape=stored.shape, dtype=stored.dtype)


def owned(restored: Any, x: jax.ShapeDtypeStruct, key_impl: str | None):
    """A restored array with the sharding of the leaf `x`, in its own memory."""
    if restored is None:  # of size 0, not stored
        restored = np.zeros(x.shape, x.dtype)
        return restored if x.sharding is None else jax.device_put(restored, x.sharding)
    if x.sharding is None:
        return restored
    if next(iter(x.sharding.device_set)).platform == "cpu":
        restored = jnp.copy(restored)  # on a CPU an array may share the reader's memory, which must not be donated
    return jax.random.wrap_key_data(restored, impl=key_impl) if key_impl else restored
