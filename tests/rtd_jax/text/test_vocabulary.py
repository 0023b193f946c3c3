"""A tower with the used tokens only: the same embeddings and the same training as with all of them."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from clip_jax import model
from launch.training import optim
from launch.training.sharding import RESIDENT
from rtd_jax import phi
from rtd_jax.text import vocabulary
from rtd_jax.text.compose import Prompt
from rtd_jax.tuning import step
from tests.clip_jax.towers import TINY, largest_id
from tests.rtd_jax import toy

OPTIMIZER = optim.Optimizer("adamw", 1e-2, 0.1, schedule=optim.Schedule("cosine", warmup="2 steps"))
STEPS = 4


def tower():
    """Parameters in float32."""
    return jax.tree.map(lambda a: a.astype(np.float32), toy.tower())


@pytest.mark.parametrize("config", [TINY, largest_id(TINY)], ids=["eos token", "largest id"])
def test_the_same_embeddings(config):
    ids = toy.composed()
    small = vocabulary.used(config, ids, np.array(toy.PROMPT.ids))
    narrow, params = small.narrow(config), small.take(tower())
    assert narrow.text.vocab_size == len(small.kept) == len(params["tokens"]) < config.text.vocab_size
    local = small.localize(ids)
    assert local.max() < len(small.kept) and (np.diff(small.kept) > 0).all()
    np.testing.assert_array_equal(model.end_positions(narrow, local), model.end_positions(config, ids))
    found = model.encode_text(narrow, {"text": params}, local)
    np.testing.assert_array_equal(found, model.encode_text(config, {"text": tower()}, ids))
    assert small.kept[list(small.localize_prompt(toy.PROMPT).ids)].tolist() == list(toy.PROMPT.ids)


def train(config, params, prompt, ids, network):
    """The text tower after a few steps on batches of the triplets, and the learning rate by step."""
    optimizer, rate = OPTIMIZER.create(total_steps=STEPS, to_steps=lambda text: int(text.split()[0]))
    train_step = step.make_step(config, optimizer, network.module, step.Objective(), prompt=prompt, seed=0)
    state, compiled = step.create_state(params, optimizer), jax.jit(train_step)
    embeddings = np.random.default_rng(0).normal(size=(2, len(ids), config.projection)).astype(np.float32)
    for at in range(STEPS):
        rows = np.random.default_rng(at).permutation(len(ids))[:4]
        batch = {"ids": ids[rows], "reference": embeddings[0, rows], "target": embeddings[1, rows]}
        batch |= {"slot": np.arange(4, dtype=np.int32), RESIDENT: {"phi": network.params}}
        state, _ = compiled(state, batch)
    return jax.device_get(state.params["text"]), rate


def test_the_same_training():
    """Every row of the table, those that no text uses included: AdamW decays them."""
    ids, network = toy.composed((9, 5, 8, 6)), phi.init("phi", TINY.projection, TINY.text.width, jax.random.key(0))
    whole, rate = train(TINY, tower(), toy.PROMPT, ids, network)
    small = vocabulary.used(TINY, ids, np.array(toy.PROMPT.ids))
    prompt, local = small.localize_prompt(toy.PROMPT), small.localize(ids)
    trained, _ = train(small.narrow(TINY), small.take(tower()), prompt, local, network)
    found = small.restore(trained, tower()["tokens"], vocabulary.decay(OPTIMIZER, rate, STEPS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), found, whole)
    unused = np.setdiff1d(np.arange(TINY.text.vocab_size), small.kept)
    moved = np.abs(whole["tokens"] - tower()["tokens"]).max(1)
    assert len(unused) > 20 and (moved[unused] > 1e-5).any()
    np.testing.assert_allclose(found["tokens"][unused], whole["tokens"][unused], rtol=1e-6)
    assert moved[small.kept].min() > 1e-3


def test_restoring_changes_no_array_that_was_given():
    table = tower()["tokens"]
    small = vocabulary.used(TINY, np.array([[1, 2, 5]]))
    taken = small.take({"tokens": table})["tokens"]
    restored = small.restore({"tokens": np.zeros_like(taken)}, table, decay=0.5)["tokens"]
    assert small.kept.tolist() == [1, 2, 5, toy.PROMPT.end_id]  # the end token is always there
    np.testing.assert_array_equal(restored[small.kept], 0)
    np.testing.assert_array_equal(np.delete(restored, small.kept, 0), np.delete(table, small.kept, 0) / 2)
    np.testing.assert_array_equal(table, tower()["tokens"])


def test_an_id_that_was_not_kept():
    small = vocabulary.used(TINY, np.array([[1, 2, 5]]))
    for wrong in (3, 98):
        with pytest.raises(ValueError, match=f"token {wrong} is not among the 4 that were kept"):
            small.localize(np.array([1, wrong]))
    with pytest.raises(ValueError, match="token 3 is not among"):
        small.localize_prompt(Prompt((3,), 2, 5))


def test_decay():
    constant = lambda step: np.asarray(0.1)
    assert vocabulary.decay(OPTIMIZER, constant, 3) == pytest.approx((1 - 0.1 * 0.1) ** 3)
    assert vocabulary.decay(OPTIMIZER, lambda step: 0.1 * step, 3) == pytest.approx(1 * 0.99 * 0.98)
    assert vocabulary.decay(replace(OPTIMIZER, decay_mask=(".*kernel",)), constant, 3) == 1
    assert vocabulary.decay(replace(OPTIMIZER, name="adam", weight_decay=0.0), constant, 3) == 1
    with pytest.raises(ValueError, match=r"optimiser 'adam' puts weight_decay=0\.1 into the gradient"):
        vocabulary.decay(replace(OPTIMIZER, name="adam"), constant, 3)


def test_other_fields_of_the_config_stay():
    small = vocabulary.used(TINY, np.array([[1, 2, 5]]))
    text = replace(TINY.text, vocab_size=4, eos_token_id=3)
    assert small.narrow(TINY) == replace(TINY, text=text)


def test_shapes_are_restricted_as_arrays_are():
    small = vocabulary.used(TINY, np.array([[1, 2, 5]]))
    shapes = small.take(jax.eval_shape(tower))
    assert jax.tree.map(lambda a: a.shape, shapes) == jax.tree.map(np.shape, small.take(tower()))
