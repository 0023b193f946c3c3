"""The vision transformer against PyTorch, with the names and shapes of timm's and torchvision's checkpoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn

from tldr_jax.classifier import vit

WIDTH, DEPTH, HEADS, PATCH, SIZE, CLASSES = 24, 2, 3, 4, 12, 5


class Timm(nn.Module):
    """A ViT in plain PyTorch whose modules have the names that timm gives them."""

    def __init__(self):
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, WIDTH, PATCH, PATCH)})
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(WIDTH, 1e-6),
                    "attn": nn.ModuleDict({"qkv": nn.Linear(WIDTH, 3 * WIDTH), "proj": nn.Linear(WIDTH, WIDTH)}),
                    "norm2": nn.LayerNorm(WIDTH, 1e-6),
                    "mlp": nn.ModuleDict({"fc1": nn.Linear(WIDTH, 4 * WIDTH), "fc2": nn.Linear(4 * WIDTH, WIDTH)}),
                }
            )
            for _ in range(DEPTH)
        )
        self.norm = nn.LayerNorm(WIDTH, 1e-6)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        for block in self.blocks:
            y = block["attn"]["qkv"](block["norm1"](x))
            parts = y.unflatten(2, (3, HEADS, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
            x = x + block["attn"]["proj"](y)
            y = nn.functional.gelu(block["mlp"]["fc1"](block["norm2"](x)))
            x = x + block["mlp"]["fc2"](y)
        features = self.norm(x)[:, 0]
        return self.head(features), features


class Torchvision(nn.Module):
    """The same from PyTorch's own attention, with the names that torchvision gives."""

    def __init__(self):
        super().__init__()
        self.class_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.conv_proj = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.encoder = nn.Module()
        self.encoder.pos_embedding = nn.Parameter(torch.randn(1, 1 + (SIZE // PATCH) ** 2, WIDTH))
        self.encoder.layers = nn.ModuleDict()
        for i in range(DEPTH):
            block = nn.Module()
            block.ln_1, block.ln_2 = nn.LayerNorm(WIDTH, 1e-6), nn.LayerNorm(WIDTH, 1e-6)
            block.self_attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
            block.mlp = nn.Sequential(
                nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Identity(), nn.Linear(4 * WIDTH, WIDTH), nn.Identity()
            )
            self.encoder.layers[f"encoder_layer_{i}"] = block
        self.encoder.ln = nn.LayerNorm(WIDTH, 1e-6)
        self.heads = nn.ModuleDict({"head": nn.Linear(WIDTH, CLASSES)})

    def forward(self, x):
        x = self.conv_proj(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], 1) + self.encoder.pos_embedding
        for block in self.encoder.layers.values():
            y = block.ln_1(x)
            x = x + block.self_attention(y, y, y, need_weights=False)[0]
            x = x + block.mlp(block.ln_2(x))
        features = self.encoder.ln(x)[:, 0]
        return self.heads["head"](features), features


@pytest.fixture(scope="module")
def ours():
    model = vit.ViT(CLASSES, patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS)
    template = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, SIZE, SIZE, 3)))
    return jax.jit(model.apply), template


@pytest.mark.parametrize("reference", [Timm, Torchvision])
def test_vit(ours, reference):
    apply, template = ours
    torch.manual_seed(0)
    theirs = reference().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))  # no bias stays 0, no scale 1
        x = torch.randn(3, 3, SIZE, SIZE)
        logits, features = theirs(x)
    tensors = {name: value.numpy() for name, value in theirs.state_dict().items()}
    variables = vit.convert(tensors, template)
    assert jax.tree.structure(variables) == jax.tree.structure(dict(template))
    found, out = apply(variables, x.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(out["features"], features, atol=2e-5)
    np.testing.assert_allclose(found, logits, atol=2e-5)


def test_the_first_names_of_torchvisions_perceptron(ours):
    tensors = {name: value.numpy() for name, value in Torchvision().state_dict().items()}
    old = {n.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for n, v in tensors.items()}
    assert old.keys() != tensors.keys()
    jax.tree.map(np.testing.assert_array_equal, vit.convert(old, ours[1]), vit.convert(tensors, ours[1]))
