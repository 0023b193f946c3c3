"""The projector and the text-trained head against PyTorch: the published formula, and a plain training loop."""

import jax
import numpy as np
import pytest
import torch

from launch.training import keys
from tldr_jax import heads, projector, retrain
from tldr_jax.heads import draws
from tldr_jax.words.text import TextSet

D, F, BATCH, STEPS = 8, 16, 24, 30


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """Tests run once what they compile: little optimisation is the faster bargain."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_projector_equals_the_formula_with_explicit_inverses():
    rng = np.random.default_rng(0)
    x, y, gap = rng.normal(size=(300, D)) + 1, rng.normal(size=(300, F)), rng.normal(size=(2, D))
    found = projector.fit(x, y, gap, ridge=5.0, relu=True)
    X, Y, G = (torch.tensor(a) for a in (x, y, gap))
    A = torch.linalg.inv(X.T @ X + 5 * torch.eye(D, dtype=torch.float64))
    beta = A @ X.T @ Y
    W = beta - A @ G.T @ torch.linalg.inv(G @ A @ G.T) @ G @ beta
    b = (Y - X @ W).mean(0)
    np.testing.assert_allclose(found.weight, W, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found.bias, b, rtol=1e-10, atol=1e-12)
    with jax.enable_x64(True):
        np.testing.assert_allclose(projector.apply(found, x), torch.relu(X @ W + b), rtol=1e-10, atol=1e-12)


def torch_heads(texts, mapping, rate, decay, seed, kept, published):
    """The heads (kernel, bias) after `kept` steps, and the losses, in float64, on the batches of our sampler.

    Published is one epoch, with the cosine stepped at its end and one template for both words of a pair; otherwise
    the cosine is stepped after every batch, and each word has its own template.
    """
    W, b = torch.tensor(mapping.weight), torch.tensor(mapping.bias)
    target, spurious = (torch.tensor(a, dtype=torch.float64) for a in (texts.target, texts.spurious))
    start = heads.init(keys.stream(seed, "head"), F, texts.allowed.shape[0])
    head = torch.nn.Linear(F, texts.allowed.shape[0], dtype=torch.float64)
    with torch.no_grad():
        head.weight.copy_(torch.tensor(np.asarray(start.kernel)).T)
        head.bias.copy_(torch.tensor(np.asarray(start.bias)))
    optimizer = torch.optim.AdamW(head.parameters(), lr=rate, weight_decay=decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=1 if published else STEPS)
    plan, secrets = draws.plan(texts, shared_templates=False), draws.secrets(seed)
    found, losses = [], []
    draw = jax.jit(draws.draw, static_argnums=3)
    for step in range(STEPS):
        drawn = draw(plan, secrets, step, BATCH)
        w, t, v, u, y = (torch.tensor(np.asarray(a)).long() for a in drawn[:5])
        features = (target[w, t] + spurious[v, t if published else u]) / 2 @ W + b
        loss = torch.nn.functional.cross_entropy(head(torch.relu(features) if mapping.relu else features), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not published:
            schedule.step()
        losses.append(loss.item())
        if step + 1 in kept:
            found.append((head.weight.detach().T.clone(), head.bias.detach().clone()))
    if published:
        schedule.step()  # after the only epoch: of no effect
    return found, losses


@pytest.mark.parametrize(("relu", "published"), [(True, True), (False, True), (True, False)])
def test_heads_equal_a_pytorch_loop_on_the_same_batches(relu, published):
    rng = np.random.default_rng(0)
    table = lambda words, templates: rng.normal(size=(words, templates, D)).astype(np.float32)
    texts = TextSet(table(9, 4), np.arange(9) % 3, table(7, 4), np.arange(7) % 2, np.ones((3, 2), bool))
    mappings = [projector.Projector(rng.normal(size=(D, F)), rng.normal(size=F), relu) for _ in range(2)]
    members = retrain.Members(
        learning_rate=np.array([1e-2, 3e-3]), weight_decay=np.array([0.5, 1e-4]), seed=np.array([0, 3]),
        projector=np.array([1, 0]),
    )  # fmt: skip
    options = {} if published else {"schedule": "cosine", "shared_templates": False}
    length = dict(batch_size=BATCH, steps=STEPS, evaluations=3, tables=not relu)
    found = retrain.sweep(texts, projector.stack(mappings), members, **length, **options)
    for member, (rate, decay, seed, which) in enumerate(zip(*(a.tolist() for a in members), strict=True)):
        expected, losses = torch_heads(texts, mappings[which], rate, decay, seed, found.steps.tolist(), published)
        np.testing.assert_allclose(found.loss[member], np.reshape(losses, (3, -1)).mean(1), rtol=1e-5)
        for kept, (kernel, bias) in enumerate(expected):
            np.testing.assert_allclose(found.heads.kernel[member, kept], kernel, atol=2e-5)
            np.testing.assert_allclose(found.heads.bias[member, kept], bias, atol=2e-5)
