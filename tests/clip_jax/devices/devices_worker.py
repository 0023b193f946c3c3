"""Run with 4 fake CPU devices: prints, as JSON, how far the contrastive gradients of both towers are from one device's.

float64. `losses`: data-parallel, in every way that a step can be mapped. `sharding`: parameters split over the axis
"model" by the rules. `fsdp`: every array split over all devices.
"""

import json
import re
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np

from clip_jax import model
from clip_jax.losses import contrastive
from clip_jax.sharding import partition_rules, spread
from launch.training import sharding
from tests.clip_jax.towers import TINY, images, parameters, texts

CONFIG = replace(TINY, dtype="float64")
BATCH = 8


def step(params, batch, *, config=CONFIG, axis_name=None):
    """(gradients, loss and accuracies), averaged over the axis if there is one, as a training step does."""

    def loss_fn(params):
        embeddings = (
            model.encode_image(config, params, batch["pixels"]),
            model.encode_text(config, params, batch["ids"]),
        )
        loss, metrics = contrastive(*embeddings, params["logit_scale"], axis_name=axis_name)
        return loss, metrics | {"loss": loss}

    grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
    return (grads, metrics) if axis_name is None else jax.lax.pmean((grads, metrics), axis_name)


def apart(ours, reference):
    """Largest difference in each leaf, relative to the leaf's largest entry; all leaves as one number."""
    error = lambda a, b: float(np.abs(a - b).max() / np.abs(b).max())
    return max(jax.tree.leaves(jax.tree.map(error, ours, reference)))


def numberless(numbers, params, batch, *, config=CONFIG, axis_name=None):
    return step(params, batch, config=config, axis_name=axis_name)


def compare(result, reference):
    (grads, metrics), (their_grads, their_metrics) = jax.tree.map(np.array, (result, reference))
    scale = "logit_scale"
    return {
        "gradients": apart(grads, their_grads),
        "temperature": apart(grads[scale], their_grads[scale]),
        "metrics": apart(metrics, their_metrics),
    }


def data_parallel(params, batch, reference):
    devices = jax.device_count()
    shares = jax.tree.map(lambda a: a.reshape(devices, -1, *a.shape[1:]), batch)
    first = lambda tree: jax.tree.map(lambda a: a[0], tree)
    pmapped = jax.pmap(lambda p, b: step(p, b, axis_name="i"), axis_name="i", in_axes=(None, 0))
    out = {"pmap": compare(first(pmapped(params, shares)), reference)}
    for mode in ("jit", "pmap"):
        layout = sharding.layout(mode)
        result = layout.jit(numberless, params)({}, layout.place(params), layout.put(batch))
        out[f"Layout {mode}"] = compare(result, reference)
    per_device = jax.jit(step)(params, jax.tree.map(lambda a: a[: BATCH // devices], batch))
    out["without global negatives"] = compare(per_device, reference)
    return out


def split_parameters(params, batch, reference):
    layout = sharding.layout("jit", model=2, rules=partition_rules(CONFIG, 2))
    config, placed = spread(CONFIG, layout.mesh), layout.place(params)
    compiled = layout.jit(partial(numberless, config=config), params)
    out = {"shards": {}}
    for path, leaf in jax.tree_util.tree_leaves_with_path(placed):
        whole, part = leaf.shape, leaf.addressable_shards[0].data.shape
        if whole != part:
            out["shards"]["/".join(k.key for k in path)] = [whole, part]
    out["exchanged by the step"] = exchanges(compiled.lower({}, placed, layout.put(batch)))
    result = compiled({}, placed, layout.put(batch))
    out |= compare(result, reference)
    same = lambda grad, param: grad.sharding.is_equivalent_to(param, grad.ndim)
    out["gradients lie as parameters"] = all(
        jax.tree.leaves(jax.tree.map(same, result[0], layout.state_shardings(params)))
    )
    encode = jax.jit(lambda p, b: (model.encode_image(config, p, b["pixels"]), model.encode_text(config, p, b["ids"])))
    placed = layout.place(params)
    embeddings = encode(placed, layout.put(batch))
    out["embeddings"] = apart(jax.tree.map(np.array, embeddings), jax.tree.map(np.array, encode(params, batch)))
    out["exchanged by encoding"] = exchanges(encode.lower(placed, layout.put(batch)))
    return out


def fully_sharded(params, batch, reference):
    """Every array that divides is split over all devices, with and without the axis "model"."""
    sharding.SPLIT_LEAST = 1
    out = {}
    for model_axis in (1, 2):
        rules = partition_rules(CONFIG, 2) if model_axis == 2 else ()
        layout = sharding.layout("jit", model=model_axis, rules=rules, fsdp=True)
        step_there = partial(numberless, config=spread(CONFIG, layout.mesh))
        placed = layout.place(params)
        leaves = jax.tree.leaves(placed)
        kept = sum(leaf.addressable_shards[0].data.size for leaf in leaves) / sum(leaf.size for leaf in leaves)
        result = layout.jit(step_there, params)({}, placed, layout.put(batch))
        out[f"model={model_axis}"] = compare(result, reference) | {"kept": kept}
    return out


def exchanges(lowered):
    """(kind, shapes) of every collective of the compiled program; those in a loop once."""
    found = re.findall(r"= (\(.*?\)|\S+) (all-\w+|reduce-scatter|collective-permute)\(", lowered.compile().as_text())
    return [(kind, re.findall(r"\[([\d,]*)\]", shapes)) for shapes, kind in found]


def main(kind):
    params = jax.tree.map(lambda a: a.astype(np.float64), parameters(CONFIG))
    params["logit_scale"] = np.float64(2.0)
    batch = {
        "pixels": images(CONFIG, BATCH).astype(np.float64),
        "ids": texts(CONFIG, (4, 9, 20, 7, 5, 12, 16, 3)),
    }
    reference = jax.jit(step)(params, batch)
    kinds = {"losses": data_parallel, "sharding": split_parameters, "fsdp": fully_sharded}
    out = kinds[kind](params, batch, reference)
    json.dump(out | {"devices": jax.device_count(), "dtype": str(reference[1]["loss"].dtype)}, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main(sys.argv[1])
