"""Run by test_retrain_devices.py with 8 fake CPU devices: prints, as JSON, how sweeps over 2 and 8 are from one's."""

import json

import jax
import numpy as np

from tldr_jax import projector, retrain
from tldr_jax.words.text import TextSet

D, F = 6, 10


def main():
    jax.config.update("jax_disable_most_optimizations", True)  # compiled once, run once
    rng = np.random.default_rng(0)
    table = lambda: rng.normal(size=(8, 3, D)).astype(np.float32)
    texts = TextSet(table(), np.arange(8) % 2, table(), np.arange(8) % 2, np.ones((2, 2), bool))
    mappings = [projector.Projector(rng.normal(size=(D, F)), rng.normal(size=F), True) for _ in range(2)]
    members = retrain.grid(learning_rates=[1e-2], weight_decays=[0.1], seeds=[0, 1, 2], projectors=[0, 1])
    split, original = [], retrain._train

    def watched(*args):
        found = original(*args)
        kernel = found[0].kernel
        split.append(dict(whole=kernel.shape[1:4], share=kernel.sharding.shard_shape(kernel.shape)[1:4]))
        return found

    retrain._train = watched
    found = [
        retrain.sweep(texts, projector.stack(mappings), members, batch_size=8, steps=6, tables=False,
                      devices=jax.devices()[:count])
        for count in (1, 2, 8)
    ]  # fmt: skip
    error = lambda a, b: max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.abs(x - y).max()), a, b)))
    errors = [error(other, found[0]) for other in found[1:]]
    moved = float(np.abs(np.diff(found[0].heads.kernel, axis=0)).max())
    print(json.dumps(dict(errors=errors, split=split, moved=moved, devices=jax.device_count())))


if __name__ == "__main__":
    main()
