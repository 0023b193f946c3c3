"""Means of a measure over a split: for one network over all devices, and for a stack of networks."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.data import Spec, Split, feed
from launch.training import sharding
from launch.training.means import add, masked_means
from launch.training.places import Stack
from launch.training.prefetch import prefetch
from launch.training.program import Batch
from robustgrad_jax.measures.evaluation import Measure


class Means(Protocol):
    """Means over a split of what a measure gives: (measure, variables, **options of `masked_means`) -> values."""

    def __call__(self, measure: Measure, variables: Any, /, **options: Any) -> dict[str, float]: ...


def over_split(
    layout: sharding.Layout, split: Split, batch_size: int, check_stop: Callable[[], None] = lambda: None
) -> Means:
    """Means over a split, whose images are placed on the devices once.

    Args:
      layout: of the devices.
      split: to average over.
      batch_size: images at a time, at most.
      check_stop: called between batches; may raise.
    """
    placed = layout.replicate(feed.resident(split))
    batch_size = _rows(layout, len(split), batch_size)

    def means(measure: Measure, variables: Any, /, **options: Any) -> dict[str, float]:
        batches = feed.eval_batches(split, batch_size=batch_size, **layout.share)
        return masked_means(layout, measure, variables, batches, resident=placed, check_stop=check_stop, **options)

    return means


def _rows(layout: sharding.Layout, examples: int, batch_size: int) -> int:
    """Images of a batch: at most one padded row per device more than asked."""
    return -(-min(batch_size, examples) // layout.data_shards) * layout.data_shards


def outline(layout: sharding.Layout, spec: Spec, examples: int, batch_size: int) -> tuple[dict[str, Any], int]:
    """The batches of `over_split` with what is resident, as shapes on the devices, and how many there are."""
    rows = _rows(layout, examples, batch_size)
    split = NamedSharding(layout.mesh, P("data"))
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype, sharding=split)
    batch: dict[str, Any] = {"slot": shape(jnp.int32, rows), "mask": shape(jnp.bool_, rows)}
    if not spec.in_memory:
        images = {"image": shape(jnp.uint8, rows, *spec.image_shape), "label": shape(jnp.int32, rows)}
        return batch | images, -(-examples // rows)
    table = feed.Table.shapes(jax.ShapeDtypeStruct((examples, *spec.image_shape), jnp.uint8))
    whole = {"images": table, "labels": jax.ShapeDtypeStruct((examples,), jnp.int32)}
    on = lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=layout.replicated)
    batch |= {"row": shape(jnp.int32, rows), sharding.RESIDENT: jax.tree.map(on, whole)}
    return batch, -(-examples // rows)


class StackedMeans(Protocol):
    """Means of every member: (states, resident) as a `Stack` places them, batches on the host, (k, n, …)."""

    def __call__(self, states: Any, resident: Any, batches: Iterable[Batch], /) -> list[dict[str, float]]: ...


def of_stack(place: Stack, measure: Measure) -> StackedMeans:
    """`over_split` for the members of a stack.

    Args:
      place: where the members are.
      measure: of one member; its variables are those of the member's state.
    """

    def sums(numbers: Any, state: Any, batch: Batch, resident: Any) -> dict[str, jax.Array]:
        del numbers
        values = measure(state.variables, {**batch, sharding.RESIDENT: resident}, None) | {"examples": batch["mask"]}
        wide = lambda v: v.astype(jnp.promote_types(v.dtype, jnp.float32))
        return {k: jnp.where(batch["mask"], wide(v), 0).sum() for k, v in values.items()}

    compiled = place.map(sums)

    def means(states: Any, resident: Any, batches: Iterable[Batch], /) -> list[dict[str, float]]:
        total = None
        for batch in prefetch(batches, place.put):
            new = compiled({}, states, batch, resident)
            total = new if total is None else add(total, new)
        if total is None:
            raise ValueError("there are no examples to evaluate")
        pulled = place.pull(total)
        return [_divided({k: float(v[i]) for k, v in pulled.items()}) for i in range(place.members)]

    return means


def _divided(sums: Mapping[str, float]) -> dict[str, float]:
    examples = sums["examples"]
    return {k: v / examples for k, v in sums.items() if k != "examples"} | {"examples": examples}
