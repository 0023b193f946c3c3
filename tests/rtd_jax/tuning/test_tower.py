"""Both queries in one pass against `clip_jax.model` on every text by itself: embeddings and gradients, in float64."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import model
from rtd_jax.tuning import tower
from tests.clip_jax.towers import TINY, largest_id
from tests.rtd_jax import toy

PSEUDO = np.random.default_rng(0).normal(size=(8, toy.CONFIG.text.width))


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def one_by_one(config, params, ids, pseudo, plain=True):
    """(b, 2, d): the composed texts, and "a photo of [$]" with every pseudo token, as texts of their own."""
    encode = partial(model.encode_text, config, {"text": params}, pseudo_tokens=pseudo, marker_id=toy.PROMPT.marker_id)
    base = np.tile(np.array([*toy.PROMPT.ids[:-1], end_of(config)], np.int32), (len(ids), 1))
    return jnp.stack([encode(ids), *([encode(base)] if plain else [])], axis=1)


def end_of(config):
    return config.text.vocab_size - 1 if config.text.end_rule == "largest_id" else toy.PROMPT.end_id


CASES = {
    "as it is": (toy.CONFIG, 1, True),
    "composed only, four groups": (toy.CONFIG, 4, False),
    "largest id, remat, two groups": (replace(largest_id(toy.CONFIG), remat=True), 2, True),
    "unrolled, a group each": (replace(toy.CONFIG, unroll=True), 8, True),
}


@pytest.mark.parametrize("case", CASES)
def test_embeddings_and_gradients(case):
    config, groups, plain = CASES[case]
    ids = np.where(toy.composed() == toy.PROMPT.end_id, end_of(config), toy.composed())
    prompt = replace(toy.PROMPT, end_id=end_of(config))
    weights = np.random.default_rng(1).normal(size=(8, 1 + plain, config.projection))
    ours = partial(tower.encode_queries, config, prompt=prompt, plain=plain, groups=groups)

    def value_and_gradients(encode):
        def value(params, pseudo):
            found = encode(params, ids, pseudo)
            return (found * weights).sum(), found

        graded = jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))
        (_, found), gradients = graded(toy.tower(), PSEUDO)
        return found, gradients

    found, gradients = value_and_gradients(ours)
    expected, their_gradients = value_and_gradients(partial(one_by_one, config, plain=plain))
    assert found.shape == weights.shape
    np.testing.assert_allclose(found, expected, atol=1e-12)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11), gradients, their_gradients)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_bfloat16_is_close():
    config = replace(TINY, dtype="bfloat16")
    params = jax.tree.map(lambda a: a.astype(np.float32), toy.tower())
    encode = jax.jit(partial(tower.encode_queries, config, prompt=toy.PROMPT))
    found = encode(params, toy.composed(), PSEUDO.astype(np.float32))
    expected = one_by_one(TINY, params, toy.composed(), PSEUDO.astype(np.float32))
    cosine = (found * expected).sum(-1) / np.linalg.norm(found, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert found.dtype == np.float32 and (cosine > 0.999).all()
    assert np.abs(found - expected).max() > 1e-5  # it was computed in another precision


@pytest.mark.parametrize(
    "ids, pseudo, groups",
    [((8, 4), (8, 24), 1), ((8, 21), (8, 24), 1), ((8, 9), (8, 23), 1), ((8, 9), (7, 24), 1), ((8, 9), (8, 24), 3)],
)
def test_shapes_that_do_not_fit(ids, pseudo, groups):
    with pytest.raises(ValueError, match=r"ids \(b, 5 to 20\), pseudo tokens \(b, 24\)"):
        tower.encode_queries(
            toy.CONFIG,
            toy.tower(),
            np.ones(ids, np.int32),
            np.ones(pseudo),
            prompt=toy.PROMPT,
            groups=groups,
        )
