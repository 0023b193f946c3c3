"""Configs from and to the files of published checkpoints: Hugging Face's config.json and OpenCLIP's."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from clip_jax.config import ClipConfig, ImageTower, TextTower, is_whole
from launch.reading import shown

# -- Hugging Face's config.json ---------------------------------------------------------------

_HF_ACTIVATIONS = {
    "quick_gelu": "quick_gelu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",  # the same formula
}
_HF_LEGACY_EOS = 2  # the id that transformers takes for "largest_id": the first published files carried it by mistake
_HF_TOWER = {
    "width": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "mlp_width": "intermediate_size",
    "activation": "hidden_act",
    "norm_eps": "layer_norm_eps",
}
_HF_IMAGE = _HF_TOWER | {"image_size": "image_size", "patch_size": "patch_size"}
_HF_TEXT = _HF_TOWER | {
    "vocab_size": "vocab_size",
    "context_length": "max_position_embeddings",
    "eos_token_id": "eos_token_id",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
# transformers omits fields that equal its defaults, so the defaults are part of the format.
_HF_DEFAULTS = {
    "vision_config": {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "image_size": 224,
        "patch_size": 32,
        "num_channels": 3,
        "model_type": "clip_vision_model",
    },
    "text_config": {
        "hidden_size": 512,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "intermediate_size": 2048,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
        "vocab_size": 49408,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
        "bos_token_id": 49406,
        "pad_token_id": 1,
        "model_type": "clip_text_model",
    },
}


def from_huggingface(config: Mapping[str, Any]) -> ClipConfig:
    """The config that a Hugging Face CLIP folder's `config.json` describes.

    The sections that transformers writes (they carry a `model_type`) omit every field that equals its default; these
    fields are filled in. Any other section must be complete.

    Args:
      config: the parsed file.

    Raises:
      ValueError: not a CLIP, missing fields, or unsupported values; the message names the field.
    """
    kind = config.get("model_type", "clip")
    if kind != "clip":
        raise ValueError(f"model_type is {shown(kind)}; only 'clip' can be read")
    if not is_whole(config.get("projection_dim")):
        raise ValueError(f"the field projection_dim is {'not an integer' if 'projection_dim' in config else 'missing'}")
    image, text = _section(config, "vision_config", _HF_IMAGE), _section(config, "text_config", _HF_TEXT)
    rule = "largest_id" if text["eos_token_id"] == _HF_LEGACY_EOS else "eos_token_id"
    if rule == "largest_id":
        text["eos_token_id"] = None
    with _about("vision_config"):
        image = ImageTower(**image)
    with _about("text_config"):
        text = TextTower(**text, end_rule=rule)
    return ClipConfig(image=image, text=text, projection=config["projection_dim"])


@contextlib.contextmanager
def _about(section: str) -> Iterator[None]:
    """Errors of a tower name the section of the file."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{section}: {error}") from error


def _section(config: Mapping[str, Any], name: str, fields: Mapping[str, str]) -> dict[str, Any]:
    """Our fields from one section; `<name>_dict`, where present, overrides it, as in transformers."""
    if not isinstance(config.get(name), Mapping):
        raise ValueError(f"the section {name} is {'missing' if config.get(name) is None else 'not an object'}")
    override = config.get(f"{name}_dict") or {}
    if not isinstance(override, Mapping):
        raise ValueError(f"the section {name}_dict is not an object, got {shown(override)}")
    section = dict(config[name]) | dict(override)
    defaults = _HF_DEFAULTS[name]
    if section.get("model_type") == defaults["model_type"]:
        section = defaults | section
    missing = sorted(theirs for theirs in fields.values() if theirs not in section)
    if missing:
        raise ValueError(f"{name} lacks {', '.join(missing)}")
    if section.get("num_channels", 3) != 3:
        raise ValueError(f"{name}.num_channels is {section['num_channels']}; only 3 can be read")
    if section["hidden_act"] not in list(_HF_ACTIVATIONS):
        known = ", ".join(map(repr, _HF_ACTIVATIONS))
        raise ValueError(f"{name}.hidden_act is unknown: {shown(section['hidden_act'])}; valid names: {known}")
    section["hidden_act"] = _HF_ACTIVATIONS[section["hidden_act"]]
    for ours, theirs in fields.items():
        value = section[theirs]
        optional = ours in ("bos_token_id", "pad_token_id") and value is None
        if ours not in ("activation", "norm_eps", "eos_token_id") and not optional and not is_whole(value):
            raise ValueError(f"{name}.{theirs} must be an integer, got {shown(value)}")
    return {ours: section[theirs] for ours, theirs in fields.items()}


def to_huggingface(config: ClipConfig) -> dict[str, Any]:
    """The content of a `config.json` that transformers and `from_huggingface` read as `config`.

    It does not say how to compute (dtype, remat, unroll).

    Raises:
      ValueError: a text tower with end token 2, which transformers would take for the rule "largest_id".
    """
    text = {theirs: getattr(config.text, ours) for ours, theirs in _HF_TEXT.items()}
    if config.text.end_rule == "largest_id":
        text["eos_token_id"] = _HF_LEGACY_EOS
    elif config.text.eos_token_id == _HF_LEGACY_EOS:
        raise ValueError("config.json cannot express eos_token_id=2: transformers takes it for the rule 'largest_id'")
    image = {theirs: getattr(config.image, ours) for ours, theirs in _HF_IMAGE.items()}
    sections = {"vision_config": image | {"num_channels": 3}, "text_config": text}
    for name, section in sections.items():
        if section["hidden_act"] == "gelu_tanh":
            section["hidden_act"] = "gelu_pytorch_tanh"
        section |= {"projection_dim": config.projection, "model_type": _HF_DEFAULTS[name]["model_type"]}
    head = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": config.projection}
    return head | {"logit_scale_init_value": 2.6592} | sections


# -- OpenCLIP's open_clip_config.json ---------------------------------------------------------

_OPENCLIP_IMAGE = {
    "layers": 12,
    "width": 768,
    "head_width": 64,
    "mlp_ratio": 4.0,
    "patch_size": 16,
    "image_size": 224,
    "act_kwargs": {},
    "norm_kwargs": {},
}
_OPENCLIP_TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "pool_type": "argmax",
    "eos_id": None,
    "pad_id": 0,
    "act_kwargs": {},
    "norm_kwargs": {},
}
# Fields that do not matter here: dropout in training, and the tokenizer, which is read from its own files.
_OPENCLIP_IGNORED = {"patch_dropout", "output_tokens", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode"}
# Unsupported architectures: these fields may only have the value that means the plain tower.
_OPENCLIP_PLAIN = {
    "timm_model_name": None,
    "hf_model_name": None,
    "ls_init_value": None,
    "attentional_pool": False,
    "no_ln_pre": False,
    "final_ln_after_pool": False,
    "no_causal_mask": False,
    "embed_cls": False,
    "proj_bias": False,
    "proj_type": "linear",
    "pos_embed_type": "learnable",
}


def from_openclip(config: Mapping[str, Any]) -> ClipConfig:
    """The config that an OpenCLIP folder's `open_clip_config.json` describes.

    Fields that the file omits have OpenCLIP's defaults (CLIPVisionCfg and CLIPTextCfg).

    Args:
      config: the parsed file, or its part "model_cfg".

    Raises:
      ValueError: missing fields, or an architecture other than the plain vision and text transformer; the message
        names the field.
    """
    config = config.get("model_cfg", config)
    if not isinstance(config, Mapping):
        raise ValueError(f"model_cfg must be an object, got {shown(config)}")
    head = {"embed_dim", "vision_cfg", "text_cfg"}
    if missing := sorted(head - set(config)):
        raise ValueError(f"model_cfg lacks {', '.join(missing)}")
    if unknown := sorted(set(config) - head - {"quick_gelu", "custom_text", "init_logit_scale", "output_dict"}):
        raise ValueError(f"model_cfg has fields of another kind of model: {', '.join(unknown)}")
    quick = config.get("quick_gelu", False)
    if not isinstance(quick, bool):
        raise ValueError(f"quick_gelu must be true or false, got {shown(quick)}")
    image = _openclip_section(config, "vision_cfg", _OPENCLIP_IMAGE | {"pool_type": "tok"}, quick)
    text = _openclip_section(config, "text_cfg", _OPENCLIP_TEXT, quick)
    if isinstance(image["layers"], list):
        raise ValueError(f"vision_cfg.layers is {image['layers']!r}, a ResNet; only vision transformers can be read")
    if image.pop("pool_type") != "tok":
        raise ValueError("vision_cfg.pool_type is not 'tok', the class token")
    pool, eos = text.pop("pool_type"), text.pop("eos_id")
    rules = {"argmax": ("largest_id", None), "eos": ("eos_token_id", eos)}
    if pool not in list(rules):
        raise ValueError(f"text_cfg.pool_type is unknown: {shown(pool)}; valid names: {', '.join(map(repr, rules))}")
    rule, eos = rules[pool]
    head_width = image.pop("head_width")
    if not is_whole(head_width) or head_width < 1:
        raise ValueError(f"vision_cfg.head_width must be a positive integer, got {shown(head_width)}")
    image["heads"] = image["width"] // head_width
    text["pad_token_id"] = text.pop("pad_id")
    with _about("vision_cfg"):
        image = ImageTower(**image)
    with _about("text_cfg"):
        text = TextTower(**text, end_rule=rule, eos_token_id=eos)
    return ClipConfig(image=image, text=text, projection=config["embed_dim"])


def _openclip_section(config: Mapping[str, Any], name: str, defaults: Mapping[str, Any], quick: bool) -> dict[str, Any]:
    """A section's fields over the defaults; width of the perceptron, activation and epsilon become our fields."""
    if not isinstance(config[name], Mapping):
        raise ValueError(f"{name} must be an object, got {shown(config[name])}")
    section = {k: v for k, v in config[name].items() if k not in _OPENCLIP_IGNORED}
    for key in sorted(set(section) - set(defaults)):
        if key not in _OPENCLIP_PLAIN or section.pop(key) != _OPENCLIP_PLAIN[key]:
            raise ValueError(f"{name}.{key}={shown(config[name][key])} means an architecture that cannot be read")
    section = dict(defaults) | section
    act, norm = section.pop("act_kwargs") or {}, section.pop("norm_kwargs") or {}
    if not (
        (isinstance(act, Mapping) and isinstance(norm, Mapping))
        and set(norm) <= {"eps"}
        and set(act) <= {"approximate"}
        and act.get("approximate", "none") in ("none", "tanh")
    ):
        raise ValueError(f"{name}: unknown act_kwargs {shown(act)} or norm_kwargs {shown(norm)}")
    plain = "gelu_tanh" if act.get("approximate") == "tanh" else "gelu"
    ratio, eps = section.pop("mlp_ratio"), norm.get("eps", 1e-5)  # PyTorch's epsilon
    for key, value in (("mlp_ratio", ratio), ("norm_kwargs.eps", eps)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
            raise ValueError(f"{name}.{key} must be a positive number, got {shown(value)}")
    for key in defaults.keys() - {"mlp_ratio", "act_kwargs", "norm_kwargs", "pool_type", "eos_id", "pad_id"}:
        if not is_whole(section[key]) and not (key == "layers" and isinstance(section[key], list)):  # a ResNet's
            raise ValueError(f"{name}.{key} must be an integer, got {shown(section[key])}")
    return section | {
        "mlp_width": int(min(section["width"], 2**31) * ratio),  # sizes are checked later
        "activation": "quick_gelu" if quick else plain,
        "norm_eps": float(eps),
    }
