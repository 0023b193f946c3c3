"""RTD's loss, gradients and training against the published procedure in PyTorch, in float64.

PyTorch's side pads to the context, runs the frozen encoder three times, encodes every text by itself with the token
embedding replaced, and exponentiates the similarities.
"""

from copy import deepcopy
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from flax import traverse_util
from transformers import CLIPConfig, CLIPModel

from benchmarks.pytorch import rtd_step as published
from clip_jax import model
from clip_jax.files import layouts
from clip_jax.files.config_files import to_huggingface
from launch.training import keys, optim
from launch.training.sharding import RESIDENT
from rtd_jax import losses, phi
from rtd_jax.tuning import step, training
from tests.clip_jax.towers import TINY
from tests.rtd_jax import toy

CONFIG = replace(TINY, dtype="float64")
N, SEED, STEPS = 6, 3, 3
LENGTHS = toy.LENGTHS[:N]


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def clip():
    """transformers' model with random weights in float64, and our parameters of its text tower."""
    torch.manual_seed(0)
    # the eager attention would round its weights to float32
    network = CLIPModel(CLIPConfig(**to_huggingface(TINY), attn_implementation="sdpa")).double().eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return network, to_params(network)


def to_params(network):
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    found = layouts.to_params(layouts.HUGGINGFACE, tensors, CONFIG, dtype="float64")
    return jax.tree.map(np.asarray, found)["text"]


@pytest.fixture(scope="module")
def phis():
    """The published module, and ours with its weights."""
    torch.manual_seed(1)
    theirs = published.Phi(CONFIG.projection, 4 * CONFIG.projection, CONFIG.text.width).double().eval()
    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    params = {  # `from_torch` makes float32 of them
        f"dense{i}": {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}
        for i, name in enumerate(("layers.0", "layers.3", "layers.6"))
    }
    return theirs, phi.Network(phi.Phi(CONFIG.text.width, dtype="float64"), params)


def padded(ids):
    """As the published code has them: the whole context, zeros behind the end."""
    return torch.tensor(np.pad(ids, ((0, 0), (0, CONFIG.text.context_length - ids.shape[1])))).long()


def texts(at):
    return toy.captions(N, 10 + at), toy.captions(N, 20 + at), toy.composed(LENGTHS, at)


def their_batch(at):
    reference, target, composed = texts(at)
    slots = np.arange(N, dtype=np.int32)
    noise = 0.5 * training.noise(keys.stream(SEED, "noise", at), slots, CONFIG.projection)
    base = np.tile(np.array(toy.PROMPT.ids, np.int32), (N, 1))
    ids = {"reference": reference, "target": target, "composed": composed, "plain": base}
    return {name: padded(x) for name, x in ids.items()} | {"noise": torch.tensor(np.asarray(noise))}


def our_batch(frozen, at, network):
    reference, target, composed = texts(at)
    encode = lambda ids: np.asarray(model.encode_text(CONFIG, {"text": frozen}, ids))
    columns = {"ids": composed, "reference": encode(reference), "target": encode(target)}
    return columns | {"slot": np.arange(N, dtype=np.int32), RESIDENT: {"phi": network.params}}


def test_the_loss_and_its_gradients():
    rng = np.random.default_rng(0)
    queries, targets = 3 * rng.normal(size=(2, 10, 16))
    theirs = [torch.tensor(x, requires_grad=True) for x in (queries, targets)]
    expected = published.joint_contrast(*theirs, 0.07)
    expected.backward()
    value, gradients = jax.value_and_grad(losses.target_anchored, argnums=(0, 1))(queries, targets, 0.07)
    assert value == pytest.approx(expected.item(), rel=1e-9)
    for ours, tensor in zip(gradients, theirs, strict=True):
        np.testing.assert_allclose(ours, tensor.grad, rtol=1e-9, atol=1e-12)


def test_training(clip, phis):
    """Three steps of AdamW: the losses, and every parameter afterwards."""
    network, frozen = clip
    theirs, still = (published.Encoder(copy, toy.PROMPT.marker_id) for copy in (deepcopy(network), network))
    # eps as large as the gradients: Adam would blow up rounding where a gradient is zero by symmetry
    adamw = optim.Optimizer("adamw", 1e-2, 0.01, eps=1e-2)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.01, eps=1e-2)
    ours, _ = adamw.create(total_steps=STEPS, to_steps=lambda text: 0)
    train = step.make_step(CONFIG, ours, phis[1].module, step.Objective(), prompt=toy.PROMPT, seed=SEED)
    state, compiled = step.create_state(frozen, ours), jax.jit(train)
    for at in range(STEPS):
        loss = published.loss(theirs, still, phis[0], their_batch(at))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state, logs = compiled(state, our_batch(frozen, at, phis[1]))
        assert logs["loss"] == pytest.approx(loss.item(), rel=1e-9)
    moved = traverse_util.flatten_dict(to_params(theirs.network), sep="/")
    start = traverse_util.flatten_dict(frozen, sep="/")
    for path, leaf in traverse_util.flatten_dict(jax.device_get(state.params["text"]), sep="/").items():
        np.testing.assert_allclose(leaf, moved[path], atol=1e-9, err_msg=path)
        assert np.abs(leaf - start[path]).max() > 1e-5, path


def test_pseudo_tokens(clip, phis):
    """φ of an embedding in the marker's place, both kinds of queries."""
    network, params = clip
    embeddings = np.random.default_rng(1).normal(size=(N, CONFIG.projection))
    encoder, composed = published.Encoder(network, toy.PROMPT.marker_id), texts(0)[2]
    with torch.no_grad():
        tokens = phis[0](torch.tensor(embeddings))
        expected = encoder(padded(composed), tokens)
    np.testing.assert_allclose(phis[1](embeddings), tokens, atol=1e-12)
    found = model.encode_text(
        CONFIG, {"text": params}, composed, pseudo_tokens=phis[1](embeddings), marker_id=toy.PROMPT.marker_id
    )
    np.testing.assert_allclose(found, expected, atol=1e-10)
