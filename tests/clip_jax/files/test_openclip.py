"""OpenCLIP's checkpoints against PyTorch towers built here on `nn.MultiheadAttention`, with OpenCLIP's tensor names."""

import json
from collections import OrderedDict

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import clip_jax
from clip_jax import tokenizer

IMAGE = dict(image_size=12, patch_size=4, width=24, layers=2, head_width=8, mlp_ratio=2.5)
TEXT = dict(context_length=9, vocab_size=60, width=20, heads=5, layers=3)
EMBED = 14


class QuickGelu(nn.Module):
    def forward(self, x):
        return x / (1 + torch.exp(-1.702 * x))


class Block(nn.Module):
    """x + attention(ln_1(x)), then x + mlp(ln_2(x)); sequence first, as MultiheadAttention takes it."""

    def __init__(self, width, heads, hidden, activation):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        layers = {"c_fc": nn.Linear(width, hidden), "gelu": activation(), "c_proj": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))

    def forward(self, x, mask):
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Blocks(nn.Module):
    def __init__(self, layers, *sizes):
        super().__init__()
        self.resblocks = nn.ModuleList(Block(*sizes) for _ in range(layers))

    def forward(self, x, mask=None):
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, mask)
        return x.transpose(0, 1)


class Visual(nn.Module):
    def __init__(self, activation):
        super().__init__()
        width, patch = IMAGE["width"], IMAGE["patch_size"]
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(width))
        self.positional_embedding = nn.Parameter(torch.empty((IMAGE["image_size"] // patch) ** 2 + 1, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        hidden = int(width * IMAGE["mlp_ratio"])
        self.transformer = Blocks(IMAGE["layers"], width, width // IMAGE["head_width"], hidden, activation)
        self.proj = nn.Parameter(torch.empty(width, EMBED))

    def forward(self, images):
        x = self.conv1(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.expand(len(x), 1, -1), x], 1) + self.positional_embedding
        return self.ln_post(self.transformer(self.ln_pre(x))[:, 0]) @ self.proj


class Text(nn.Module):
    def __init__(self, activation):
        super().__init__()
        width, length = TEXT["width"], TEXT["context_length"]
        self.token_embedding = nn.Embedding(TEXT["vocab_size"], width)
        self.positional_embedding = nn.Parameter(torch.empty(length, width))
        self.transformer = Blocks(TEXT["layers"], width, TEXT["heads"], 4 * width, activation)
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, EMBED))
        self.register_buffer("attn_mask", torch.full((length, length), -torch.inf).triu(1))

    def forward(self, ids):
        x = self.token_embedding(ids) + self.positional_embedding
        x = self.ln_final(self.transformer(x, self.attn_mask))
        return x[torch.arange(len(x)), ids.argmax(1)] @ self.text_projection


def towers(quick_gelu):
    """Both towers, every parameter random, so that none could be left out unnoticed."""
    torch.manual_seed(3)
    activation = QuickGelu if quick_gelu else nn.GELU
    modules = Visual(activation), Text(activation)
    with torch.no_grad():
        for module in modules:
            for name, parameter in module.named_parameters():
                parameter.normal_(1.0 if "ln_" in name and name.endswith("weight") else 0.0, 0.3)
    return modules


def names(visual, text, prefix):
    tensors = {f"visual.{k}": v for k, v in visual.state_dict().items()}
    tensors |= {f"{prefix}{k}": v for k, v in text.state_dict().items()}
    return tensors | {"logit_scale": torch.tensor(3.25)}


def write(folder, tensors, *, file="open_clip_model.safetensors", flags=(), **text):
    model = {"embed_dim": EMBED, "vision_cfg": IMAGE, "text_cfg": TEXT | text} | dict.fromkeys(flags, True)
    content = {"model_cfg": model, "preprocess_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    save_file({k: v.contiguous().clone() for k, v in tensors.items()}, folder / file)


@pytest.mark.parametrize(
    "quick_gelu, prefix, file",
    [
        (False, "", "open_clip_model.safetensors"),
        (True, "", "model.safetensors"),
        (True, "text.", "open_clip_model.safetensors"),  # the text tower as a module of its own
    ],
)
def test_embeddings_are_pytorchs(quick_gelu, prefix, file, tmp_path):
    visual, text = towers(quick_gelu)
    flags = ["quick_gelu"] * quick_gelu + ["custom_text"] * bool(prefix)
    write(tmp_path, names(visual, text, prefix), flags=flags, file=file)
    clip = clip_jax.load(tmp_path)
    rng = np.random.default_rng(0)
    pixels = rng.normal(size=(4, 12, 12, 3)).astype(np.float32)
    ids = rng.integers(1, 58, (5, 9), dtype=np.int32)
    for row, end in enumerate((8, 1, 4, 2, 6)):
        ids[row, end], ids[row, end + 1 :] = 59, 0  # OpenCLIP fills up with zeros
    with torch.no_grad():
        images = visual(torch.tensor(pixels).permute(0, 3, 1, 2)).numpy()
        texts = text(torch.tensor(ids.astype(np.int64))).numpy()
    assert np.ptp(images, axis=0).min() > 0.1 and np.ptp(texts, axis=0).min() > 0.1  # the inputs matter
    scale = lambda wanted: 1e-5 * max(1, np.abs(wanted).max())
    assert np.abs(jax.jit(clip.encode_image)(clip.params, pixels) - images).max() < scale(images)
    assert np.abs(jax.jit(clip.encode_text)(clip.params, ids) - texts).max() < scale(texts)
    assert clip.params["logit_scale"] == 3.25
    assert clip.preprocessing.mean == (0.5, 0.4, 0.3) and clip.preprocessing.crop == 12


def test_saved_as_hugging_face_it_is_the_same(tmp_path):
    visual, text = towers(True)
    (tmp_path / "openclip").mkdir()
    write(tmp_path / "openclip", names(visual, text, ""), flags=["quick_gelu"])
    clip = clip_jax.load(tmp_path / "openclip")
    clip_jax.save(clip, tmp_path / "hugging_face")
    again = clip_jax.load(tmp_path / "hugging_face")
    assert again.config.image == clip.config.image and again.config.text.end_rule == clip.config.text.end_rule
    jax.tree.map(np.testing.assert_array_equal, again.params, clip.params)
    assert again.preprocessing == clip.preprocessing


def test_projection_with_a_bias_is_refused(tmp_path):
    """OpenCLIP's `proj_bias` makes the projection a Linear, which our tree has no place for."""
    visual, text = towers(False)
    tensors = names(visual, text, "")
    projection = tensors.pop("text_projection")
    tensors |= {"text_projection.weight": projection.T, "text_projection.bias": torch.zeros(EMBED)}
    write(tmp_path, tensors)
    with pytest.raises(ValueError) as error:
        clip_jax.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path / 'open_clip_model.safetensors'}: the tensors do not fit the OpenCLIP layout of the config: "
        "missing text_projection; not in the model text_projection.bias, text_projection.weight"
    )


def test_a_tokenizer_of_its_own(tmp_path):
    visual, text = towers(False)
    words = tokenizer.build(["a red circle"], context_length=9)
    size = words.vocab_size
    text.token_embedding = nn.Embedding(size, TEXT["width"])
    write(tmp_path, names(visual, text, ""), vocab_size=size)
    words.save(tmp_path)
    clip = clip_jax.load(tmp_path)
    np.testing.assert_array_equal(clip.tokenize(["red circle", "a"]), words.encode(["red circle", "a"]))
