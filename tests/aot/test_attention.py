"""Attention at 577 tokens through XLA's CUDA plug-in for an H100: cuDNN's kernels, and no scores in memory."""

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from clip_jax import attention
from tests.aot.compiling import built, machine_of, only_with_system

pytestmark = only_with_system


def compiled(attend) -> str:
    """The program of a gradient, for two images and two heads."""
    machine = machine_of("h100x1")
    (device,) = machine.devices
    qkv = jax.ShapeDtypeStruct((2, 577, 3, 128), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    total = lambda x: attend(x, 2, causal=False).astype(jnp.float32).sum()
    return built(machine, jax.jit(jax.grad(total)), qkv).text


def test_cudnn_stores_no_scores(monkeypatch):
    # The plug-in compiles calls of cuDNN without having it; JAX looks for it first.
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    fused, plain = compiled(attention.fused), compiled(attention.plain)
    assert "__cudnn$fmhaSoftmax" in fused and "__cudnn$fmhaSoftmaxBackward" in fused
    assert "577,577]" in plain and "577,577]" not in fused and "578,578]" not in fused
