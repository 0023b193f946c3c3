"""Text tables and the CLIP filter against transformers' PyTorch CLIP."""

import re

import numpy as np
import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

import clip_jax
from tldr_jax import words
from tldr_jax.words import filters, templates, text

FOLDER = clip_jax.embedded("scenes")


@pytest.fixture(scope="module")
def reference():
    """n prompts -> embeddings (n, d), not normalised."""
    tokenizer = CLIPTokenizer.from_pretrained(FOLDER)
    model = CLIPModel.from_pretrained(FOLDER, dtype=torch.float32).eval()

    def encode(prompts):
        with torch.inference_mode():
            hidden = model.text_model(**tokenizer(prompts, padding=True, return_tensors="pt")).pooler_output
            return model.text_projection(hidden)

    return encode


@pytest.fixture(scope="module")
def clip():
    return clip_jax.load(FOLDER)


def prompt(template, word):
    return re.sub(r"\ba ([aeiou])", r"an \1", template.format(word))


def test_tables(clip, reference):
    lists, own = words.load("scenes"), templates.get("scenes")
    tables = text.embed(clip, lists, own, progress=False)
    for table, group, prompts in (
        (tables.target, lists.target, own.target),
        (tables.spurious, lists.spurious, own.spurious),
    ):
        listed = [word for found in group for word in found.words]
        expected = reference([prompt(template, word) for word in listed for template in prompts])
        np.testing.assert_allclose(table.reshape(expected.shape), expected.numpy(), atol=1e-4)


def test_the_clip_filter(clip, reference):
    spoilt = words.with_junk(words.load("scenes"), 0.4, seed=2)
    embedded = filters.embed(clip, spoilt, templates.get("scenes"), progress=False)
    kept, report = filters.apply(spoilt, embedded)
    marks = reference(["a photo of a curved shape", "a photo of an angular shape"])
    dropped = 0
    for own, (name, listed) in enumerate(spoilt.listed("target").items()):
        embeddings = reference([prompt("a photo of a {}", word) for word in listed])
        nearest = torch.cosine_similarity(embeddings[:, None], marks[None], dim=-1).argmax(1)
        assert kept.listed("target")[name] == tuple(
            word for word, seen in zip(listed, nearest, strict=True) if seen == own
        )
        dropped += int((nearest != own).sum())
    assert dropped == sum(entry.part == "target" for entry in report.dropped) > 5
