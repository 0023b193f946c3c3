"""The contrastive loss against NumPy, and with global negatives on 4 fake devices."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax.losses import contrastive, normalize
from tests.commands import finish, start


def by_hand(image, text, logit_scale):
    """Loops over rows and columns, float64."""
    image = image / np.sqrt((image**2).sum(1, keepdims=True))
    text = text / np.sqrt((text**2).sum(1, keepdims=True))
    logits = np.exp(logit_scale) * image @ text.T
    n = len(logits)
    total, hits = 0.0, [0, 0]
    for i in range(n):
        for kind, row in enumerate((logits[i], logits[:, i])):
            total -= np.log(np.exp(row[i]) / np.exp(row).sum())
            hits[kind] += all(row[i] > row[j] for j in range(n) if j != i)
    return total / (2 * n), hits[0] / n, hits[1] / n


@pytest.fixture(scope="module")
def embeddings():
    rng = np.random.default_rng(0)
    image, noise = rng.normal(size=(2, 12, 6))
    return 3 * image, 0.5 * (image + noise)


def test_against_loops(embeddings):
    loss, metrics = contrastive(*(e.astype(np.float32) for e in embeddings), jnp.float32(2.0))
    expected = by_hand(*embeddings, 2.0)
    found = (loss, metrics["image_to_text_accuracy"], metrics["text_to_image_accuracy"])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert 0 < expected[1] < 1 and 0 < expected[2] < 1 and expected[1] != expected[2]


def test_gradients_against_finite_differences(embeddings):
    scale = np.float64(2.0)
    with jax.enable_x64(True):
        grads = map(np.asarray, jax.grad(lambda *args: contrastive(*args)[0], (0, 1, 2))(*embeddings, scale))
    rng = np.random.default_rng(1)
    steps = [rng.normal(size=np.shape(a)) for a in (*embeddings, scale)]
    moved = lambda h: by_hand(*(a + h * d for a, d in zip((*embeddings, scale), steps, strict=True)))[0]
    slope = (moved(1e-5) - moved(-1e-5)) / 2e-5
    assert sum(float((g * d).sum()) for g, d in zip(grads, steps, strict=True)) == pytest.approx(slope, rel=1e-7)


def test_identical_embeddings_leave_the_logarithm_of_the_batch():
    loss, _ = contrastive(jnp.ones((8, 3)), jnp.ones((8, 3)), jnp.float32(4.6))
    assert loss == pytest.approx(np.log(8), rel=1e-5)


def test_a_high_temperature_scale_does_not_overflow(embeddings):
    for dtype in (np.float32, jnp.bfloat16):
        loss, _ = contrastive(*(jnp.asarray(e, dtype) for e in embeddings), jnp.float32(np.log(100)))
        assert loss.dtype == jnp.float32 and jnp.isfinite(loss)


def test_normalise():
    x = normalize(jnp.asarray([[3.0, 4.0], [0.0, 2.0]], jnp.bfloat16))
    np.testing.assert_allclose(x, [[0.6, 0.8], [0.0, 1.0]], rtol=1e-6)


# -- four devices -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def errors():
    errors = json.loads(
        finish(start("-m", "tests.clip_jax.devices.devices_worker", "losses", devices=4)).splitlines()[-1]
    )
    assert errors["devices"] == 4 and errors["dtype"] == "float64"
    return errors


@pytest.mark.parametrize("mode", ["Layout jit", "Layout pmap", "pmap"])
def test_gradients_of_both_towers_are_those_of_one_device(errors, mode):
    assert errors[mode]["gradients"] < 1e-10
    assert errors[mode]["temperature"] < 1e-10
    assert errors[mode]["metrics"] < 1e-10


def test_the_comparison_would_notice_local_negatives(errors):
    assert errors["without global negatives"]["temperature"] > 0.1
