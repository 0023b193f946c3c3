"""Checkpoints exchanged with transformers' PyTorch CLIP in both directions give the same embeddings."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
import torch
import transformers
from flax import serialization, traverse_util

import clip_jax
from clip_jax import preprocess, tokenizer
from clip_jax.config import VARIANTS
from clip_jax.files import config_files, layouts
from tests.clip_jax import checkpoints, towers

TOLERANCE = 1e-5


def torch_model(of) -> transformers.CLIPModel:
    """transformers' model of one of our configs, every parameter random."""
    torch.manual_seed(0)
    model = transformers.CLIPModel(transformers.CLIPConfig(**config_files.to_huggingface(of))).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if "norm" in name and name.endswith("weight") else 0.0, 0.2)
    return model


def torch_embeddings(model, pixels, ids):
    """Unnormalised, of both towers."""
    with torch.no_grad():
        pooled = model.vision_model(pixel_values=torch.tensor(pixels).permute(0, 3, 1, 2).contiguous()).pooler_output
        images = model.visual_projection(pooled)
        texts = model.text_projection(model.text_model(input_ids=torch.tensor(ids.astype(np.int64))).pooler_output)
    return images.float().numpy(), texts.float().numpy()


def assert_same(clip, model, scale_tolerance=1e-6):
    pixels, ids = checkpoints.inputs(clip.config)
    wanted = torch_embeddings(model, pixels, ids)
    for a, b in zip(checkpoints.embed(clip, pixels, ids), wanted, strict=True):
        assert np.ptp(b, axis=0).min() > 1e-2 * np.abs(b).max()  # the inputs matter
        assert np.abs(a - b).max() < TOLERANCE * max(1, np.abs(b).max())
    assert abs(float(clip.params["logit_scale"]) - model.logit_scale.item()) < scale_tolerance


@pytest.fixture(scope="module", params=["eos_token_id", "largest_id"])
def config(request):
    end = {"end_rule": "largest_id", "eos_token_id": None} if request.param == "largest_id" else {}
    return checkpoints.config(**end)


@pytest.fixture(scope="module")
def model(config):
    return torch_model(config)


@pytest.mark.parametrize("shards", [None, "20KB"])
def test_what_transformers_saves_we_load(shards, config, model, tmp_path):
    model.save_pretrained(tmp_path, **({"max_shard_size": shards} if shards else {}))
    files = {path.name for path in tmp_path.iterdir()}
    assert ("model.safetensors.index.json" in files) == bool(shards) and ("model.safetensors" in files) != bool(shards)
    clip = clip_jax.load(tmp_path)
    assert clip.config == config
    assert_same(clip, model)


def test_what_we_save_transformers_loads(config, tmp_path):
    spec = preprocess.Preprocessing(size=15, crop=15)
    clip = clip_jax.Clip(config, towers.parameters(config), None, spec)
    clip_jax.save(clip, tmp_path / "clip")
    model, report = transformers.CLIPModel.from_pretrained(tmp_path / "clip", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    assert_same(clip, model.eval())


def test_what_we_save_in_half_precision_transformers_loads(config, tmp_path):
    clip = clip_jax.Clip(config, towers.parameters(config), None, preprocess.Preprocessing(size=15, crop=15))
    clip_jax.save(clip, tmp_path / "half", dtype="float16")
    clip_jax.save(clip, tmp_path / "whole")
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in ("half", "whole")]
    assert sizes[0] < 0.7 * sizes[1]
    model = transformers.CLIPModel.from_pretrained(tmp_path / "half")
    assert model.dtype == torch.float16
    half = clip_jax.load(tmp_path / "half")
    assert half.params["image"]["patch"]["kernel"].dtype == np.float32
    assert_same(half, model.float().eval(), scale_tolerance=1e-3)  # theirs is rounded too, ours is not


def test_what_we_save_with_a_tokenizer_transformers_loads(tmp_path):
    words = tokenizer.build(["a small red circle on grass"], context_length=12)
    config = checkpoints.config(vocab_size=words.vocab_size, eos_token_id=words.end_id, pad_token_id=words.pad_id)
    spec = preprocess.Preprocessing(size=15, crop=15, mean=(0.5, 0.4, 0.3))
    clip_jax.save(clip_jax.Clip(config, towers.parameters(config), words, spec), tmp_path / "clip")
    texts = ["a red circle", "Grass, small!", ""]
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "clip")
    ids = theirs(texts, padding="max_length", max_length=12, truncation=True, return_tensors="np").input_ids
    np.testing.assert_array_equal(words.encode(texts), ids)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path / "clip")
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    theirs = processor(images=[image], return_tensors="np")["pixel_values"]
    clip = clip_jax.load(tmp_path / "clip")
    assert np.abs(np.moveaxis(theirs, 1, -1) - clip.preprocess([image])).max() < 1e-4


def to_flax(name, tensor):
    """The old FlaxCLIPModel's name and layout of one of PyTorch's tensors."""
    *modules, leaf = name.split(".")
    if leaf == "weight" and "norm" in modules[-1]:
        return (*modules, "scale"), tensor
    if leaf == "weight" and modules[-1] in ("token_embedding", "position_embedding"):
        return (*modules, "embedding"), tensor
    if leaf == "weight":
        return (*modules, "kernel"), tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T
    return (*modules, leaf), tensor


def test_old_flax_checkpoints(config, model, tmp_path):
    tensors = dict(to_flax(name, tensor.numpy()) for name, tensor in model.state_dict().items())
    assert tensors["vision_model", "pre_layrnorm", "scale"].shape == (24,)
    assert tensors["text_model", "encoder", "layers", "1", "self_attn", "q_proj", "kernel"].shape == (20, 20)
    nested = traverse_util.unflatten_dict({path: np.ascontiguousarray(value) for path, value in tensors.items()})
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(nested))
    (tmp_path / "config.json").write_text(json.dumps(config_files.to_huggingface(config)))
    assert_same(clip_jax.load(tmp_path), model)


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_files(kind, legacy, config, model, tmp_path):
    """Also the format from before PyTorch 1.6, in which the first checkpoints were published."""
    tensors = {name: tensor.to(getattr(torch, kind)) for name, tensor in model.state_dict().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    (tmp_path / "config.json").write_text(json.dumps(config_files.to_huggingface(config)))
    clip = clip_jax.load(tmp_path)
    expected = {name: tensor.float().numpy() for name, tensor in tensors.items()}
    checkpoints.equal(jax.device_get(clip.params), layouts.to_params(layouts.HUGGINGFACE, expected, config))
    if kind == "float32":
        assert_same(clip, model)


def test_bfloat16_safetensors_of_transformers(config, model, tmp_path):
    torch_model(config).to(torch.bfloat16).save_pretrained(tmp_path)
    clip = clip_jax.load(tmp_path)
    expected = {name: tensor.numpy().astype(ml_dtypes.bfloat16) for name, tensor in model.state_dict().items()}
    checkpoints.equal(jax.device_get(clip.params), layouts.to_params(layouts.HUGGINGFACE, expected, config))


@pytest.mark.parametrize("name", VARIANTS)
def test_names_and_shapes_of_the_published_variants(name):
    """Every variant's tensors, without making any: the names and shapes are those of transformers' modules."""
    config = VARIANTS[name]
    with torch.device("meta"):
        theirs = transformers.CLIPModel(transformers.CLIPConfig(**config_files.to_huggingface(config))).state_dict()
    tensors = {name: _Shape(tuple(tensor.shape)) for name, tensor in theirs.items()}
    layouts._check(layouts.HUGGINGFACE, tensors, layouts.template(config))
    tensors["visual_projection.weight"] = _Shape((*tensors["visual_projection.weight"].shape[::-1], 1))
    with pytest.raises(ValueError, match=r"of shape .*: visual_projection.weight$"):
        layouts._check(layouts.HUGGINGFACE, tensors, layouts.template(config))


class _Shape:
    dtype = "float32"

    def __init__(self, shape):
        self.shape = shape
