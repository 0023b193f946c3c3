"""Training φ: LinCIR's, Pic2Word's and SEARLE's losses on a real CLIP, and that each of them learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import logsumexp

import clip_jax
from launch.data import scenes
from launch.networks import loops
from launch.training import keys, sharding
from launch.training.accumulation import Parts
from rtd_jax import clips, experiment, phi
from rtd_jax.phi import lincir, pic2word, searle
from rtd_jax.stages.phi import METHODS
from rtd_jax.text import compose, masking
from rtd_jax.tuning import feed, training
from tests.rtd_jax import tiny

TEXTS = ["a red circle on the grass", "a small star", "nothing to see", "a photo of a big blue heart", "the sea"]


@pytest.fixture(scope="module")
def clip():
    return clips.load("embedded:scenes")


@pytest.fixture(scope="module")
def network(clip):
    found = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    return phi.Network(found.module.clone(dropout=0.0), found.params)


def applied(network):
    return lambda params, x, key: network.module.apply({"params": params}, x)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def frozen(clip):
    return {"text": clip.params["text"], "logit_scale": clip.params["logit_scale"]}


def test_lincir_rebuilds_captions_from_their_masked_form(clip, network):
    """Against texts encoded one by one with φ's tokens, and the mean of squares in NumPy."""
    table = lincir.prepare(clip, TEXTS, masking.create("auto", scenes.KEYWORDS))
    assert len(table) == 4  # one has no keyword
    loss = lincir.make_loss(clip.config, applied(network), marker_id=clip.marker_id, noise=0.0, seed=0)
    batch = dict(table.arrays) | dict(table.ids) | {"slot": np.arange(4), sharding.RESIDENT: {"clip": frozen(clip)}}
    value, logs = loss(network.params, batch, 0, None)
    captions = [text for text in TEXTS if text != "nothing to see"]
    masked = ["a $ on the $", "a $", "a photo of a $", "the $"]
    original = np.stack([clip_jax.embed_texts(clip, [text], progress=False)[0] for text in captions])
    tokens = np.asarray(network(original))
    rebuilt = np.stack(
        [
            clip_jax.embed_texts(clip, [text], pseudo_tokens=token[None], progress=False)[0]
            for text, token in zip(masked, tokens, strict=True)
        ]
    )
    assert float(value) == pytest.approx(np.mean((rebuilt - original) ** 2), rel=1e-4)
    assert float(logs["cosine"]) == pytest.approx((unit(rebuilt) * unit(original)).sum(1).mean(), abs=1e-5)


def test_no_caption_is_left_out_as_published(clip):
    """A random word where there is no keyword; "a photo of $" where every marker is cut off."""
    long = "slowly " * 90 + "to a red circle"
    matcher = masking.create("auto", scenes.KEYWORDS, determiners=True)
    table = lincir.prepare(clip, ["the red circle on the grass", "quickly", long], matcher, seed=0)
    expected = clip.tokenize(["$ on $", "$", "a photo of $"])
    np.testing.assert_array_equal(table.ids["ids"], expected)
    whole = clip_jax.embed_texts(clip, [long], progress=False)[0]  # which is still what has to be rebuilt
    np.testing.assert_allclose(table.arrays["caption"][2], whole, atol=1e-5)
    assert len(lincir.prepare(clip, ["the red circle on the grass", "quickly", long], matcher)) == 1


def test_captions_that_cannot_be_masked(clip):
    with pytest.raises(ValueError, match=r"no caption has a keyword .* such as 'nothing to see'"):
        lincir.prepare(clip, ["nothing to see"], masking.create("auto", scenes.KEYWORDS))


def test_noise_is_of_each_example_and_of_the_published_size():
    """A level from U(0, 1) times N(0, I): mean square 1/3 a component, of an example almost u²."""
    drawn = np.asarray(training.noise(keys.stream(0, "noise", 3), jnp.arange(4000), 64))
    level = np.sqrt((drawn**2).mean(1))
    assert (drawn**2).mean() == pytest.approx(1 / 3, abs=0.02) and level.max() < 1.4
    assert np.histogram(level, np.linspace(0, 1, 5))[0].min() > 800  # even between 0 and 1
    part = np.asarray(training.noise(keys.stream(0, "noise", 3), jnp.arange(7, 9), 64))
    np.testing.assert_array_equal(part, drawn[7:9])  # whatever else is on the device


def test_pic2word_contrasts_images_with_their_sentences(clip, network):
    """Against CLIP's loss written in NumPy."""
    images = np.random.default_rng(0).normal(size=(6, clip.config.projection)).astype(np.float32)
    loss = pic2word.make_loss(clip.config, applied(network), prompt=compose.prompt(clip), seed=0)
    value, _ = loss(network.params, {"image": images, sharding.RESIDENT: {"clip": frozen(clip)}}, 0, None)
    tokens = np.asarray(network(images))
    texts = clip_jax.embed_texts(clip, ["a photo of $"] * 6, pseudo_tokens=tokens, progress=False)
    logits = np.exp(float(clip.params["logit_scale"])) * unit(images) @ unit(texts).T
    log_softmax = lambda x: x - logsumexp(x, axis=1, keepdims=True)
    expected = -(np.diag(log_softmax(logits)).mean() + np.diag(log_softmax(logits.T)).mean()) / 2
    assert float(value) == pytest.approx(expected, rel=1e-4)


@pytest.fixture(scope="module")
def concepts(clip):
    return searle.concepts(clip, ["red", "circle", "grass", "star"], ["a photo of {} on the grass", "a small {}"])


def test_concepts(clip, concepts):
    texts = [f"a photo of {word}" for word in ("red", "circle", "grass", "star")]
    words = unit(clip_jax.embed_texts(clip, texts, progress=False))
    np.testing.assert_allclose(concepts.words, words, atol=1e-5)
    one = clip_jax.embed_texts(clip, ["a small grass"], progress=False)[0]
    np.testing.assert_allclose(concepts.phrases[2, 1], one, atol=1e-4)
    images = np.random.default_rng(0).normal(size=(5, clip.config.projection)).astype(np.float32)
    np.testing.assert_array_equal(concepts.nearest(images, 2), np.argsort(-(unit(images) @ words.T), axis=1)[:, :2])
    with pytest.raises(ValueError, match=r"'no place' has to hold '\{\}' once"):
        searle.concepts(clip, ["red"], ["no place"])


def test_optimised_tokens_say_what_the_image_shows(clip, concepts):
    """Nearer to their images than where they began; an image's token is the same in any company."""
    images = clip_jax.embed_images(clip, scenes.pairs(0, 5, held_out=False).images, progress=False)
    invert = partial(searle.invert, clip, known=concepts, layout=sharding.layout(), nearest=2, batch_size=5)
    similarity = []
    for steps in (1, 100):
        tokens = invert(images, steps=steps)
        texts = clip_jax.embed_texts(clip, ["a photo of $"] * 5, pseudo_tokens=tokens, progress=False)
        similarity.append((unit(texts) * unit(images)).sum(1))
    assert (similarity[1] > similarity[0] + 0.1).all()
    others = invert(images[[0, 1, 2, 4, 3]], steps=3)
    np.testing.assert_allclose(others[:3], invert(images, steps=3)[:3], atol=1e-4)
    assert np.abs(others[3:] - invert(images, steps=3)[3:]).max() > 1e-3


def test_one_program_a_batch_finds_the_same_tokens(clip, concepts, monkeypatch):
    """As on accelerators: not one call a step."""
    images = np.random.default_rng(0).normal(size=(5, clip.config.projection)).astype(np.float32)
    invert = partial(searle.invert, clip, images, concepts, sharding.layout(), steps=12, nearest=2, batch_size=3)
    calls = invert()
    monkeypatch.setattr(loops, "in_program", lambda *trees: True)
    monkeypatch.setattr(loops, "_step", None)
    np.testing.assert_allclose(invert(), calls, rtol=0, atol=1e-6)


def test_searle_distils_tokens(clip, network, concepts):
    """The loss falls to the joint contrast's floor where φ gives the optimised tokens, concepts left aside."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(4, clip.config.projection)).astype(np.float32)
    table = searle.prepare(images, np.asarray(network(images)), concepts, nearest=2)
    loss = searle.make_loss(clip.config, applied(network), prompt=compose.prompt(clip), seed=0)
    resident = {"clip": frozen(clip), **searle.resident(concepts)}
    batch = dict(table.arrays) | {"slot": np.arange(4), sharding.RESIDENT: resident}
    right, _ = loss(network.params, batch, 0, None)
    wrong, _ = loss(network.params, {**batch, "token": batch["token"][[1, 2, 3, 0]]}, 0, None)
    assert float(right) < float(wrong)


def test_parts_of_a_batch_have_the_gradients_of_the_whole(clip):
    """LinCIR's, where no caption knows of another; with dropout every part draws its own."""
    network = experiment.plan(tiny.config(phi__method="lincir", phi__dropout=0.0)).phi.network(clip)
    texts = [text for (text,) in scenes.pairs(0, 24, held_out=False).captions]
    table = lincir.prepare(clip, texts, masking.create("auto", scenes.KEYWORDS))
    b = len(table) // 4 * 4
    rows = {name: value[:b] for name, value in (table.arrays | table.ids).items()}
    batch = rows | {"slot": np.arange(b), sharding.RESIDENT: {"clip": frozen(clip)}}
    optimizer = optax.sgd(1.0)

    def updated(parts):
        module = network.module
        apply_phi = lambda params, x, key: module.apply({"params": params}, x, train=True, rngs={"dropout": key})
        loss = lincir.make_loss(clip.config, apply_phi, marker_id=clip.marker_id, noise=0.5, seed=0)
        state = training.create_state(network.params, optimizer)
        state, metrics = jax.jit(training.make_step(loss, optimizer, Parts(parts)))(state, batch)
        moved = jax.tree.map(lambda a, b: np.asarray(a - b), state.params, network.params)
        return moved, {name: float(value) for name, value in metrics.items()}

    (whole, logs), (divided, logs_of_parts) = updated(1), updated(4)
    assert logs_of_parts == pytest.approx(logs, rel=1e-4) and logs["gradient_norm"] > 1e-3
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(whole))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4 * largest), divided, whole)
    keys = [training.dropout_key(0, 1, None, {"part": np.full(2, part)}) for part in (0, 1)]
    assert (jax.random.key_data(keys[0]) != jax.random.key_data(keys[1])).any()


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns(clip, concepts, method):
    """Thirty steps on the same sixteen examples halve what can be halved of the loss."""
    network = experiment.plan(tiny.config(phi__method=method, phi__dropout=0.0)).phi.network(clip)
    apply_phi = lambda params, x, key: network.module.apply({"params": params}, x, train=True, rngs={"dropout": key})
    images = clip_jax.embed_images(clip, scenes.pairs(0, 16, held_out=False).images, progress=False)
    prompt, resident = compose.prompt(clip), {"clip": frozen(clip)}
    if method == "lincir":
        texts = [text for (text,) in scenes.pairs(0, 16, held_out=False).captions]
        table = lincir.prepare(clip, texts, masking.create("auto", scenes.KEYWORDS))
        loss = lincir.make_loss(clip.config, apply_phi, marker_id=clip.marker_id, noise=0.0, seed=0)
    elif method == "pic2word":
        table, loss = (
            feed.TextTable({"image": images}),
            pic2word.make_loss(clip.config, apply_phi, prompt=prompt, seed=0),
        )
    else:
        tokens = 0.3 * np.random.default_rng(1).normal(size=(16, clip.config.text.width)).astype(np.float32)
        table = searle.prepare(images, tokens, concepts, nearest=2)
        loss = searle.make_loss(clip.config, apply_phi, prompt=prompt, seed=0)
        resident |= searle.resident(concepts)
    batch = {**table.arrays, **table.ids, "slot": np.arange(len(table)), sharding.RESIDENT: resident}
    optimizer = optax.adam(1e-3)
    state = training.create_state(network.params, optimizer)
    step = jax.jit(training.make_step(loss, optimizer))
    losses = []
    for _ in range(30):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert int(state.step) == 30 and losses[-1] < 0.7 * losses[0]
    assert type(network.module) is phi.KINDS["pic2word" if method == "pic2word" else "phi"]
