"""Both towers against transformers' PyTorch CLIPModel on the same random weights, in float32.

Embeddings, logits, hidden states, gradients of the contrastive loss, masking, pseudo tokens; every flag of the
variants on small towers, and two published sizes whole.
"""

from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from clip_jax import model
from clip_jax.config import VARIANTS, ClipConfig
from clip_jax.files import layouts
from clip_jax.files.config_files import to_huggingface
from clip_jax.losses import contrastive
from tests.clip_jax.towers import TINY, images, largest_id, texts

TOLERANCE = 1e-5

to_params = partial(layouts.to_params, layouts.HUGGINGFACE)


def case_of(config: ClipConfig = TINY, *, image=None, text=None, **both) -> ClipConfig:
    """`config` with changes in both towers, and in one of them."""
    image = replace(config.image, **both, **(image or {}))
    return replace(config, image=image, text=replace(config.text, **both, **(text or {})))


# Every flag of the variants, a few at a time.
CASES = {
    "quick_gelu, wide projection": case_of(replace(TINY, projection=40), activation="quick_gelu"),
    "gelu, another epsilon": case_of(activation="gelu", norm_eps=1e-2),
    "gelu_tanh, one head, one patch": case_of(activation="gelu_tanh", heads=1, image={"patch_size": 16}),
    "largest_id, one block": case_of(largest_id(TINY), layers=1),
    "different towers": case_of(image={"heads": 8, "norm_eps": 1e-6}, text={"heads": 3, "activation": "gelu"}),
}


def build(config: ClipConfig, noise: float = 0.05):
    """transformers' model with random weights, none of them at its initial zero or one, and the same for us."""
    torch.manual_seed(0)
    theirs = CLIPModel(CLIPConfig(**to_huggingface(config), attn_implementation="eager")).eval()
    with torch.no_grad():
        for weight in theirs.parameters():
            weight += noise * torch.randn_like(weight)
    return theirs, to_params({k: v.numpy() for k, v in theirs.state_dict().items()}, config)


def to_torch(pixels):
    return torch.tensor(np.moveaxis(pixels, -1, 1).copy())


def error(ours, theirs):
    ours, theirs = np.asarray(ours), theirs.detach().numpy()
    assert ours.shape == theirs.shape
    return np.abs(ours - theirs).max()


@pytest.fixture(scope="module", params=list(CASES))
def case(request):
    """A config, both models, and inputs; texts of all lengths, with padding 0 behind the end."""
    config = CASES[request.param]
    theirs, params = build(config)
    return config, theirs, params, images(config, 5), texts(config, (2, 20, 7, 11, 16))


@pytest.fixture(scope="module")
def ours(case):
    """(embeddings, intermediates) of images and of texts."""
    config, _, params, pixels, ids = case
    return (
        model.encode_image(config, params, pixels, intermediates=True),
        model.encode_text(config, params, ids, intermediates=True),
    )


def test_embeddings_and_logits(case, ours):
    config, theirs, params, pixels, ids = case
    with torch.no_grad():
        out = theirs(input_ids=torch.tensor(ids).long(), pixel_values=to_torch(pixels))
        image = theirs.get_image_features(pixel_values=to_torch(pixels)).pooler_output
        text = theirs.get_text_features(input_ids=torch.tensor(ids).long()).pooler_output
    embeddings = [np.asarray(e) for e, _ in ours]
    assert error(embeddings[0], image) < TOLERANCE
    assert error(embeddings[1], text) < TOLERANCE
    unit = [e / np.linalg.norm(e, axis=1, keepdims=True) for e in embeddings]
    logits = np.exp(params["logit_scale"]) * unit[0] @ unit[1].T
    assert error(logits, out.logits_per_image) < TOLERANCE
    assert out.logits_per_image.std() > 0.1  # there is something to compare


def test_hidden_states(case, ours):
    _, theirs, _, pixels, ids = case
    with torch.no_grad():
        image = theirs.vision_model(pixel_values=to_torch(pixels), output_hidden_states=True)
        text = theirs.text_model(input_ids=torch.tensor(ids).long(), output_hidden_states=True)
    for (_, out), reference in zip(ours, (image, text), strict=True):
        assert error(out["hidden_states"], torch.stack(reference.hidden_states)) < TOLERANCE
        assert error(out["last_hidden_state"], reference.last_hidden_state) < TOLERANCE
        assert error(out["pooled"], reference.pooler_output) < TOLERANCE


def test_all_parameter_gradients_of_the_contrastive_loss(case):
    config, theirs, params, pixels, ids = case
    theirs.zero_grad()
    loss = theirs(input_ids=torch.tensor(ids).long(), pixel_values=to_torch(pixels), return_loss=True).loss
    loss.backward()
    expected = to_params({k: v.grad.numpy() for k, v in theirs.named_parameters()}, config)

    def our_loss(params):
        embeddings = model.encode_image(config, params, pixels), model.encode_text(config, params, ids)
        return contrastive(*embeddings, params["logit_scale"])[0]

    value, grads = jax.jit(jax.value_and_grad(our_loss))(params)
    assert value == pytest.approx(loss.item(), rel=1e-5)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected))

    def check(path, ours, theirs):
        assert np.abs(ours - theirs).max() < 1e-4 * np.abs(theirs).max() + 1e-6 * largest, jax.tree_util.keystr(path)

    jax.tree_util.tree_map_with_path(check, grads, expected)


def test_a_padding_mask_changes_nothing():
    """transformers masks padding away; behind the end token it is out of sight in a causal tower anyway."""
    theirs, params = build(TINY)
    ids = texts(TINY, (4, 20, 9))
    mask = torch.tensor(np.arange(20) <= model.end_positions(TINY, ids)[:, None]).long()
    with torch.no_grad():
        masked = theirs.get_text_features(input_ids=torch.tensor(ids).long(), attention_mask=mask).pooler_output
    assert error(model.encode_text(TINY, params, ids), masked) < TOLERANCE


def test_both_rules_where_they_differ():
    """Ids above the end token, and several end tokens: each rule as transformers has it."""
    ids = texts(TINY, (4, 12, 9))
    ids[0, 1], ids[1, 11:14], ids[2, 5] = 95, 90, 98
    pooled = []
    for config in (TINY, largest_id(TINY)):
        theirs, params = build(config)
        with torch.no_grad():
            expected = theirs.get_text_features(input_ids=torch.tensor(ids).long()).pooler_output
        ours = model.encode_text(config, params, ids)
        assert error(ours, expected) < TOLERANCE
        pooled.append(np.asarray(ours))
    assert (np.abs(pooled[0] - pooled[1]).max(1) > 1e-2).tolist() == [True, False, True]


MARKER = 7


@pytest.mark.parametrize("n", [None, 1, 2])
def test_pseudo_tokens(n):
    """transformers' modules, with the token embeddings replaced between look-up and position."""
    theirs, params = build(TINY)
    ids = texts(TINY, (14, 14, 14))
    ids[ids == MARKER] = MARKER + 1
    places = [[2, 5], [0, 12], [3, 4]] if n != 1 else [[2], [0], [12]]
    for row, at in zip(ids, places, strict=True):
        row[at] = MARKER
    pseudo = np.random.default_rng(0).normal(size=(3, n or 1, 24)).astype(np.float32)

    def replace_embeddings(module, inputs, embedded):
        embedded = embedded.clone()
        for i, at in enumerate(places):
            for j, place in enumerate(at):
                embedded[i, place] = torch.tensor(pseudo[i, min(j, (n or 1) - 1)])
        return embedded

    hook = theirs.text_model.embeddings.token_embedding.register_forward_hook(replace_embeddings)
    with torch.no_grad():
        expected = theirs.get_text_features(input_ids=torch.tensor(ids).long()).pooler_output
    hook.remove()
    given = pseudo[:, 0] if n is None else pseudo
    ours = model.encode_text(TINY, params, ids, pseudo_tokens=given, marker_id=MARKER)
    assert error(ours, expected) < TOLERANCE


def test_bfloat16_is_close():
    """To PyTorch in float32: each embedding points the same way."""
    theirs, params = build(TINY)
    pixels, ids = images(TINY, 5), texts(TINY, (2, 20, 7, 11, 16))
    with torch.no_grad():
        expected = [
            theirs.get_image_features(pixel_values=to_torch(pixels)).pooler_output.numpy(),
            theirs.get_text_features(input_ids=torch.tensor(ids).long()).pooler_output.numpy(),
        ]
    config = replace(TINY, dtype="bfloat16")
    for ours, theirs in zip(
        (model.encode_image(config, params, pixels), model.encode_text(config, params, ids)), expected, strict=True
    ):
        cosine = (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)
        assert (cosine > 0.999).all()
        assert np.abs(ours - theirs).max() > 1e-5  # it was computed in another precision


# -- published sizes --------------------------------------------------------------------------


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_transformers_parameters(name):
    """Counted without memory: the model on PyTorch's device "meta"."""
    with torch.device("meta"):
        theirs = CLIPModel(CLIPConfig(**to_huggingface(VARIANTS[name])))
    shapes = jax.eval_shape(lambda: model.init(VARIANTS[name], jax.random.key(0)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-L/14"])
def test_a_published_size_whole(name):
    config = VARIANTS[name]
    theirs, params = build(config, noise=0.01)
    pixels, ids = images(config, 1), texts(config, (9, 30))
    ids = model.cut(config, ids)
    assert ids.shape == (2, 32)
    with torch.no_grad():
        image = theirs.get_image_features(pixel_values=to_torch(pixels)).pooler_output
        text = theirs.get_text_features(input_ids=torch.tensor(ids).long()).pooler_output
    for ours, expected in (
        (model.encode_image(config, params, pixels), image),
        (model.encode_text(config, params, ids), text),
    ):
        assert error(ours, expected) < TOLERANCE * max(1, expected.abs().max())
