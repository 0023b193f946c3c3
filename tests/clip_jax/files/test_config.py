"""Variants, contradictions, and the config files as they were published."""

import json
import math
from dataclasses import replace

import jax
import pytest
from transformers import CLIPConfig

from clip_jax import model
from clip_jax.config import VARIANTS, ClipConfig
from clip_jax.files.config_files import _HF_DEFAULTS, from_huggingface, from_openclip, to_huggingface
from tests.clip_jax.towers import TINY, largest_id

PARAMETERS = {
    "ViT-B/32": 151_277_313,
    "ViT-B/16": 149_620_737,
    "ViT-L/14": 427_616_513,
    "ViT-L/14@336": 427_944_193,
    "ViT-H/14": 986_109_441,
    "ViT-bigG/14": 2_539_567_105,
    "MetaCLIP-B/32": 151_277_313,
    "MetaCLIP-B/16": 149_620_737,
    "MetaCLIP-L/14": 427_616_513,
    "MetaCLIP-H/14": 986_109_441,
}


def test_every_variant_has_a_parameter_count():
    assert set(PARAMETERS) == set(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_parameter_counts(name):
    shapes = jax.eval_shape(lambda: model.init(VARIANTS[name], jax.random.key(0)))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def test_configs_are_static_arguments():
    assert hash(TINY) == hash(replace(TINY)) and replace(TINY) == TINY
    assert replace(TINY, remat=True) != TINY
    assert replace(TINY, unroll=True) != TINY and replace(TINY, unroll=True).unroll == 3
    assert replace(TINY, unroll=False) == TINY


# -- contradictions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tower, change, expected",
    [
        ("image", {"heads": 5}, "width 32 is not divisible by 5 heads"),
        ("image", {"patch_size": 5}, "image size 16 is not divisible by patch size 5"),
        ("image", {"image_size": [16, 16]}, r"image_size must be a positive integer, got \[16, 16\]"),
        ("image", {"activation": "relu"}, "unknown activation 'relu'; valid names: 'quick_gelu', 'gelu', 'gelu_tanh'"),
        ("image", {"norm_eps": 0.0}, "norm_eps must be a positive number, got 0.0"),
        ("image", {"norm_eps": "1e-5"}, "norm_eps must be a positive number, got '1e-5'"),
        ("text", {"layers": 0}, "layers must be a positive integer, got 0"),
        ("text", {"width": "24"}, "width must be a positive integer, got '24'"),
        ("text", {"vocab_size": -1}, "vocab_size must be a positive integer, got -1"),
        ("text", {"end_rule": "last"}, "unknown end_rule 'last'; valid names: 'largest_id', 'eos_token_id'"),
        ("text", {"end_rule": "largest_id"}, "'largest_id' uses no id: eos_token_id must be None, got 90"),
        ("text", {"eos_token_id": None}, "needs one eos_token_id, got None"),
        ("text", {"eos_token_id": 99}, "eos_token_id=99 is outside the vocabulary of 99"),
    ],
)
def test_contradictions_in_a_tower(tower, change, expected):
    with pytest.raises(ValueError, match=expected):
        replace(getattr(TINY, tower), **change)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"dtype": "float8"}, "unknown dtype 'float8'; valid names: 'float32', 'bfloat16'"),
        ({"projection": 0}, "projection must be a positive integer, got 0"),
        ({"unroll": 0}, "unroll must be a positive integer, got 0"),
    ],
)
def test_contradictions_in_a_config(change, expected):
    with pytest.raises(ValueError, match=expected):
        replace(TINY, **change)


# -- Hugging Face -----------------------------------------------------------------------------

# What matters of the files at the model hub, as they stand there.
OPENAI_L14_336 = """{"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
  "model_type": "clip", "projection_dim": 768,
  "text_config": {"_name_or_path": "", "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
    "hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_length": 20, "max_position_embeddings": 77,
    "model_type": "clip_text_model", "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1,
    "projection_dim": 768, "vocab_size": 49408},
  "text_config_dict": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12,
    "num_hidden_layers": 12, "projection_dim": 768},
  "torch_dtype": "float32", "transformers_version": null,
  "vision_config": {"attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "hidden_size": 1024,
    "image_size": 336, "intermediate_size": 4096, "layer_norm_eps": 1e-05, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768},
  "vision_config_dict": {"hidden_size": 1024, "image_size": 336, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 24, "patch_size": 14, "projection_dim": 768}}"""
METACLIP_B32 = """{"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
  "model_type": "clip", "projection_dim": 512,
  "text_config": {"heads": 8, "layers": 12, "model_type": "clip_text_model"},
  "torch_dtype": "float32", "transformers_version": "4.34.0", "vision_config": {"model_type": "clip_vision_model"}}"""
METACLIP_L14 = """{"architectures": ["CLIPModel"], "initializer_factor": 1.0, "logit_scale_init_value": 2.6592,
  "model_type": "clip", "projection_dim": 768, "torch_dtype": "float32", "transformers_version": "4.34.0",
  "text_config": {"hidden_size": 768, "intermediate_size": 3072, "model_type": "clip_text_model",
    "num_attention_heads": 12},
  "vision_config": {"hidden_size": 1024, "intermediate_size": 4096, "model_type": "clip_vision_model",
    "num_attention_heads": 16, "num_hidden_layers": 24, "patch_size": 14}}"""


def same_model(ours: ClipConfig, other: ClipConfig) -> bool:
    """Equal but for the ids that are only carried along."""
    text = replace(ours.text, bos_token_id=other.text.bos_token_id, pad_token_id=other.text.pad_token_id)
    return replace(ours, text=text) == other


@pytest.mark.parametrize(
    "content, name",
    [(OPENAI_L14_336, "ViT-L/14@336"), (METACLIP_B32, "MetaCLIP-B/32"), (METACLIP_L14, "MetaCLIP-L/14")],
)
def test_published_files(content, name):
    assert same_model(from_huggingface(json.loads(content)), VARIANTS[name])


def test_the_defaults_that_files_leave_out_are_transformers_own():
    theirs = CLIPConfig()
    for name, section in _HF_DEFAULTS.items():
        assert {key: getattr(getattr(theirs, name), key) for key in section} == section


@pytest.mark.parametrize("name", VARIANTS)
def test_there_and_back(name):
    written = to_huggingface(VARIANTS[name])
    assert from_huggingface(json.loads(json.dumps(written))) == VARIANTS[name]
    theirs = CLIPConfig(**written)
    assert from_huggingface(theirs.to_dict()) == VARIANTS[name]  # transformers understood and writes the same
    for ours, section in ((VARIANTS[name].image, theirs.vision_config), (VARIANTS[name].text, theirs.text_config)):
        assert (ours.width, ours.layers, ours.heads) == (
            section.hidden_size,
            section.num_hidden_layers,
            section.num_attention_heads,
        )


def test_the_end_rule_is_written_as_transformers_reads_it():
    assert to_huggingface(TINY)["text_config"]["eos_token_id"] == 90
    assert to_huggingface(largest_id(TINY))["text_config"]["eos_token_id"] == 2
    with pytest.raises(ValueError, match="cannot express eos_token_id=2"):
        to_huggingface(replace(TINY, text=replace(TINY.text, eos_token_id=2)))


def test_activations_are_written_as_transformers_reads_them():
    config = replace(TINY, image=replace(TINY.image, activation="gelu_tanh"))
    assert to_huggingface(config)["vision_config"]["hidden_act"] == "gelu_pytorch_tanh"
    assert same_model(from_huggingface(to_huggingface(config)), config)


def test_the_older_dict_overrides_the_section():
    written = to_huggingface(TINY)
    written["text_config_dict"] = {"layer_norm_eps": 1e-6}
    written["vision_config_dict"] = None
    assert from_huggingface(written).text.norm_eps == 1e-6


def without(config, section, *keys):
    target = config[section] if section else config
    for key in keys:
        del target[key]
    return config


def changed(config, section, **values):
    (config[section] if section else config).update(values)
    return config


@pytest.mark.parametrize(
    "broken, expected",
    [
        (lambda c: {}, "projection_dim is missing"),
        (lambda c: changed(c, "", projection_dim="512"), "projection_dim is not an integer"),
        (lambda c: changed(c, "", model_type="siglip"), "model_type is 'siglip'; only 'clip' can be read"),
        (lambda c: without(c, "", "vision_config"), "the section vision_config is missing"),
        (lambda c: changed(c, "", text_config=None), "the section text_config is missing"),
        (
            lambda c: without(c, "text_config", "model_type", "eos_token_id", "hidden_act"),
            "text_config lacks eos_token_id, hidden_act$",
        ),
        (lambda c: without(c, "vision_config", "model_type", "layer_norm_eps"), "vision_config lacks layer_norm_eps"),
        (lambda c: without(c, "text_config", "eos_token_id"), "eos_token_id=49407 is outside the vocabulary of 99"),
        (lambda c: changed(c, "vision_config", num_channels=4), "vision_config.num_channels is 4; only 3"),
        (
            lambda c: changed(c, "text_config", hidden_act="relu"),
            "text_config.hidden_act is unknown: 'relu'; valid names: 'quick_gelu'",
        ),
        (lambda c: changed(c, "vision_config", num_attention_heads=7), "width 32 is not divisible by 7 heads"),
        (lambda c: changed(c, "vision_config", patch_size=5), "image size 16 is not divisible by patch size 5"),
        (lambda c: changed(c, "text_config", eos_token_id=[1, 5]), r"needs one eos_token_id, got \[1, 5\]"),
    ],
)
def test_refused_files(broken, expected):
    with pytest.raises(ValueError, match=expected):
        from_huggingface(broken(to_huggingface(TINY)))


# -- OpenCLIP ---------------------------------------------------------------------------------

BIG_G = {
    "embed_dim": 1280,
    "vision_cfg": {
        "image_size": 224,
        "layers": 48,
        "width": 1664,
        "head_width": 104,
        "mlp_ratio": 4.9231,
        "patch_size": 14,
    },
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 1280, "heads": 20, "layers": 32},
}
BASE_32 = {
    "embed_dim": 512,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


@pytest.mark.parametrize("content, name", [(BIG_G, "ViT-bigG/14"), (BASE_32, "ViT-B/32")])
def test_published_openclip_files(content, name):
    assert same_model(from_openclip({"model_cfg": content, "preprocess_cfg": {}}), VARIANTS[name])
    assert same_model(from_openclip(content), VARIANTS[name])


def test_openclips_options():
    base = json.loads(json.dumps(BASE_32)) | {"quick_gelu": False, "custom_text": True}
    base["vision_cfg"] |= {"act_kwargs": {"approximate": "tanh"}, "norm_kwargs": {"eps": 1e-6}, "timm_model_name": None}
    base["text_cfg"] |= {"pool_type": "eos", "eos_id": 7, "mlp_ratio": 2.0, "hf_tokenizer_name": "x"}
    config = from_openclip(base)
    assert (config.image.activation, config.image.norm_eps) == ("gelu_tanh", 1e-6)
    assert (config.text.activation, config.text.norm_eps, config.text.mlp_width) == ("gelu", 1e-5, 1024)
    assert (config.text.end_rule, config.text.eos_token_id) == ("eos_token_id", 7)


@pytest.mark.parametrize(
    "section, change, expected",
    [
        ("", {"multimodal_cfg": {}, "init_logit_bias": -10}, "another kind of model: init_logit_bias, multimodal_cfg"),
        ("vision_cfg", {"layers": [3, 4, 6, 3]}, r"vision_cfg.layers is \[3, 4, 6, 3\], a ResNet"),
        ("vision_cfg", {"timm_model_name": "convnext"}, "vision_cfg.timm_model_name='convnext' means an architecture"),
        ("vision_cfg", {"attentional_pool": True}, "vision_cfg.attentional_pool=True means an architecture"),
        ("vision_cfg", {"pool_type": "avg"}, "vision_cfg.pool_type is not 'tok'"),
        ("vision_cfg", {"norm_kwargs": {"elementwise_affine": False}}, "vision_cfg: unknown act_kwargs"),
        ("text_cfg", {"hf_model_name": "roberta"}, "text_cfg.hf_model_name='roberta' means an architecture"),
        ("text_cfg", {"new_field": 1}, "text_cfg.new_field=1 means an architecture"),
        ("text_cfg", {"pool_type": "last"}, "text_cfg.pool_type is unknown: 'last'; valid names: 'argmax', 'eos'"),
        ("text_cfg", {"pool_type": "eos"}, "needs one eos_token_id, got None"),
        ("vision_cfg", {"width": 10**400}, "width must be at most 16,777,216"),
        ("text_cfg", {"heads": 7}, "width 512 is not divisible by 7 heads"),
    ],
)
def test_refused_openclip_files(section, change, expected):
    with pytest.raises(ValueError, match=expected):
        from_openclip(changed(json.loads(json.dumps(BASE_32)), section, **change))


def test_an_incomplete_openclip_file():
    with pytest.raises(ValueError, match="model_cfg lacks embed_dim, vision_cfg"):
        from_openclip({"text_cfg": {}})
