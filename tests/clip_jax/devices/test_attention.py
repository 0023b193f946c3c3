"""The two ways to compute attention agree, forward and backward; cuDNN's is chosen where it can run."""

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clip_jax import attention
from clip_jax.config import VARIANTS
from tests.clip_jax.towers import TINY


@dataclass(frozen=True)
class Device:
    platform: str
    compute_capability: str = "9.0"


@pytest.mark.parametrize("tokens", [1, 8, 17], ids="{} tokens".format)
@pytest.mark.parametrize("causal", [False, True])
def test_padded_tokens_are_never_seen(tokens, causal):
    rng = np.random.default_rng(tokens)
    qkv, weight = rng.normal(size=(3, tokens, 3, 24)), rng.normal(size=(3, tokens, 24))

    def both(attend):
        total = lambda x: (out := attend(x, 4, causal=causal), jnp.vdot(out, weight))[::-1]
        gradient, out = jax.grad(total, has_aux=True)(jnp.asarray(qkv, jnp.float32))
        return out, gradient

    ours = both(partial(attention.fused, implementation="xla"))
    for one, reference in zip(ours, both(attention.plain), strict=True):
        np.testing.assert_allclose(one, reference, atol=2e-6)


def test_cudnn_is_chosen_in_half_precision_on_its_gpus_alone(monkeypatch):
    monkeypatch.setattr(attention, "has_cudnn", lambda: True)
    gpus, half = [Device("gpu")] * 2, replace(VARIANTS["ViT-L/14"], dtype="bfloat16")
    chosen = lambda config, devices: attention.fastest(config, devices).attention
    assert chosen(half, gpus) == "cudnn"
    assert chosen(replace(VARIANTS["ViT-bigG/14"], dtype="float16"), gpus) == "cudnn"  # heads of 104 and 64
    assert chosen(VARIANTS["ViT-L/14"], gpus) == "xla"  # float32
    assert chosen(half, [Device("gpu"), Device("gpu", "7.5")]) == "xla"  # before Ampere
    assert chosen(half, [Device("tpu")]) == chosen(half, jax.devices()) == "xla"
    assert chosen(replace(TINY, dtype="bfloat16"), gpus) == "xla"  # heads of 6
    monkeypatch.setattr(attention, "has_cudnn", lambda: False)
    assert chosen(half, gpus) == "xla"


def test_a_machine_without_cudnn_is_noticed(monkeypatch):
    def refuse(*args, **options):
        raise RuntimeError("cuDNN is not detected.")

    look = attention.has_cudnn.__wrapped__
    monkeypatch.setattr(jax.nn, "dot_product_attention", refuse)
    assert not look()
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda q, k, v, implementation: q)
    assert look()


def test_cudnn_in_float32_is_refused():
    with pytest.raises(ValueError, match="attention 'cudnn' needs dtype bfloat16 or float16, got float32"):
        replace(TINY, attention="cudnn")
