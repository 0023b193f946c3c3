"""Run by test_embed.py with 4 fake CPU devices: batches split over them, parameters copied or split."""

from dataclasses import replace

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from clip_jax import embed
from tests.clip_jax import test_embed

BATCHES = []  # the shards of the rows of every batch


def split(params):
    """The perceptrons over two devices, everything else copied; batches over the other axis."""
    mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)

    def place(path, leaf):
        axis = {"['up']['kernel']": P(None, None, "model"), "['down']['kernel']": P(None, "model")}
        spec = next((spec for end, spec in axis.items() if jax.tree_util.keystr(path).endswith(end)), P())
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(place, params)


def watch(step):
    def watched(config, static, params, batch, *rest):
        rows = {shard.index[0].indices(len(batch))[:2] for shard in batch.addressable_shards}
        found = step(config, static, params, batch, *rest)
        BATCHES.append((len(batch), len(rows), len(found.sharding.device_set)))
        return found

    return watched


def main():
    assert jax.device_count() == 4
    clip = test_embed.make_clip()
    embed.image_step, embed._text_step = watch(embed.image_step), watch(embed._text_step)
    images, texts = test_embed.pictures(), ["red", "a $", "grass $ on", "", "on a red circle $", "a", "$"]
    pseudo = np.random.default_rng(0).normal(size=(4, 24)).astype(np.float32)
    marked = [text for text in texts if "$" in text]
    expected = [
        test_embed.one_by_one(clip, images),
        test_embed.texts_one_by_one(clip, texts),
        test_embed.texts_one_by_one(clip, marked, pseudo),
    ]
    for params, shards in ((clip.params, 4), (split(clip.params), 2)):
        placed = replace(clip, params=params)
        BATCHES.clear()
        found = [
            embed.embed_images(placed, images, batch_size=5, progress=False),
            embed.embed_texts(placed, texts, batch_size=3, progress=False),
            embed.embed_texts(placed, marked, batch_size=3, pseudo_tokens=pseudo, progress=False),
        ]
        for ours, reference in zip(found, expected, strict=True):
            test_embed.close(ours, reference)
        sizes = (8, 4) if shards == 4 else (6, 4)  # 5 images and 3 texts, rounded up
        assert {(size, shards, 4) for size in sizes} == set(BATCHES), BATCHES
    print("4 devices agree with one")


if __name__ == "__main__":
    main()
