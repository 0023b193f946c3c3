"""What stages without training say that they compile has the shapes of what they run."""

import jax
import numpy as np

from clip_jax import embed
from launch.training import sharding
from rtd_jax import experiment, phi
from rtd_jax.text import compose
from tests.rtd_jax import tiny


def shapes(tree):
    return jax.tree.map(lambda leaf: (np.shape(leaf), str(leaf.dtype)), tree)


def test_queries_with_pseudo_tokens(monkeypatch):
    """Texts so long that they are not cut, and a batch of them."""
    stage = experiment.plan(tiny.config()).evaluations[0]
    one = stage.passes(sharding.layout(devices=jax.devices()[:1]))[0]
    assert one.name == "texts with pseudo tokens" and one.function is embed._text_step
    calls = []
    monkeypatch.setattr(embed, "_text_step", lambda *arguments: calls.append(arguments) or one.function(*arguments))
    clip = stage.gallery.clip.make()
    network = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    images = np.ones((compose.BATCH, clip.config.projection), np.float32)
    compose.queries(clip, network, images, [" ".join(["red"] * 100)] * compose.BATCH)
    (found,) = calls
    assert found[:2] == one.arguments[:2] and found[1] is not None
    assert shapes(found[2:]) == shapes(one.arguments[2:])
    assert one.function.lower(*one.arguments).out_info.shape == (compose.BATCH, clip.config.projection)
