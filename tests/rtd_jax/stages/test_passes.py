"""What stages without training say that they compile has the shapes of what they run."""

import jax
import numpy as np

from clip_jax import embed
from launch.networks import loops
from launch.stages import walk
from launch.training import sharding
from rtd_jax import experiment, phi
from rtd_jax.phi import searle
from rtd_jax.stages.phi import SearleTokens
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


def test_inversion(monkeypatch):
    plan = experiment.plan(tiny.config(phi__method="searle"))
    stage = next(own for own in walk(plan) if isinstance(own, SearleTokens))
    layout = sharding.layout(devices=jax.devices()[:1])
    (one,) = stage.passes(layout)
    assert one.calls == stage.inversion_steps == 3
    calls = []
    monkeypatch.setattr(loops, "_step", lambda *arguments: calls.append(arguments) or arguments[2])
    clip, width = stage.images.clip.make(), stage.images.clip.make().config.projection
    words, ids = len(stage.concepts.images.words()), searle.phrase_ids(clip, stage.concepts.phrases)
    known = searle.Concepts(np.ones((words, width), np.float32), np.ones((words, len(ids), width), np.float32), ids)
    searle.invert(clip, np.ones((300, width), np.float32), known, layout, steps=1)
    assert len(calls) == 2
    for step, context, state in calls:
        assert step == one.arguments[0]
        assert shapes((context, state)) == shapes(one.arguments[1:])
        same = jax.tree.map(
            lambda a, b: a.sharding.is_equivalent_to(b.sharding, a.ndim), (context, state), one.arguments[1:]
        )
        assert jax.tree.all(same)
    assert shapes(one.function.lower(*one.arguments).out_info) == shapes(calls[0][2])
