"""Files to named tensors, and named tensors to parameters and back: whole or refused."""

import json
import os
import tracemalloc
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import save_file

from clip_jax.files import layouts, weights
from tests.clip_jax import checkpoints, towers

LAYOUTS = (layouts.HUGGINGFACE, layouts.FLAX, layouts.OPENCLIP, layouts.OPENCLIP_CUSTOM)
HF = weights.CheckpointFiles("model.safetensors", "config.json")


@pytest.fixture(scope="module")
def config():
    return checkpoints.config()


@pytest.fixture(scope="module")
def params(config):
    return towers.parameters(config)


# -- Tensors and parameters -------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_round_trip_is_exact(layout, config, params):
    tensors = layouts.to_tensors(layout, params)
    assert all(tensor.flags["C_CONTIGUOUS"] for tensor in tensors.values())
    assert sum(tensor.size for tensor in tensors.values()) == sum(
        leaf.size for leaf in traverse_util.flatten_dict(params).values()
    )
    checkpoints.equal(layouts.to_params(layout, tensors, config), params)


def test_where_queries_keys_and_values_are(config, params):
    """Element by element in all layouts: input 3 to output 7 of the keys, in text block 2."""
    value = params["text"]["blocks"]["qkv"]["kernel"][2, 3, 1, 7]
    bias = params["text"]["blocks"]["qkv"]["bias"][2, 2, 7]
    hf, flax, openclip, custom = (layouts.to_tensors(layout, params) for layout in LAYOUTS)
    block, width = "encoder.layers.2.self_attn", config.text.width
    assert hf[f"text_model.{block}.k_proj.weight"][7, 3] == value
    assert hf[f"text_model.{block}.v_proj.bias"][7] == bias
    assert flax[f"text_model.{block}.k_proj.kernel"][3, 7] == value
    for prefix, tensors in (("", openclip), ("text.", custom)):
        assert tensors[f"{prefix}transformer.resblocks.2.attn.in_proj_weight"][width + 7, 3] == value
        assert tensors[f"{prefix}transformer.resblocks.2.attn.in_proj_bias"][2 * width + 7] == bias


def test_where_the_rest_is(params):
    """One element of each kind of leaf, by the stored layouts' own index order."""
    hf, flax, openclip, custom = (layouts.to_tensors(layout, params) for layout in LAYOUTS)
    patch = params["image"]["patch"]["kernel"][1, 2, 0, 4]
    assert hf["vision_model.embeddings.patch_embedding.weight"][4, 0, 1, 2] == patch
    assert flax["vision_model.embeddings.patch_embedding.kernel"][1, 2, 0, 4] == patch
    assert openclip["visual.conv1.weight"][4, 0, 1, 2] == patch
    projection = params["text"]["projection"]["kernel"][3, 5]
    assert hf["text_projection.weight"][5, 3] == projection
    assert flax["text_projection.kernel"][3, 5] == projection
    assert openclip["text_projection"][3, 5] == custom["text.text_projection"][3, 5] == projection
    assert openclip["visual.proj"][6, 1] == params["image"]["projection"]["kernel"][6, 1]
    assert hf["visual_projection.weight"][1, 6] == params["image"]["projection"]["kernel"][6, 1]
    up = params["image"]["blocks"]["up"]["kernel"][1, 2, 9]
    assert hf["vision_model.encoder.layers.1.mlp.fc1.weight"][9, 2] == up
    assert openclip["visual.transformer.resblocks.1.mlp.c_fc.weight"][9, 2] == up
    tokens = params["text"]["tokens"][8, 2]
    assert flax["text_model.embeddings.token_embedding.embedding"][8, 2] == tokens
    assert custom["text.token_embedding.weight"][8, 2] == openclip["token_embedding.weight"][8, 2] == tokens


def test_all_that_is_wrong_is_listed(config, params):
    tensors = layouts.to_tensors(layouts.HUGGINGFACE, params)
    layer = "text_model.encoder.layers"
    for name in [f"{layer}.{i}.mlp.fc1.bias" for i in range(3)] + [f"{layer}.1.layer_norm1.bias", "logit_scale"]:
        del tensors[name]
    tensors |= {
        "visual_projection.bias": np.zeros(28, np.float32),
        f"{layer}.3.mlp.fc1.bias": np.zeros(44, np.float32),
        "text_projection.weight": tensors["text_projection.weight"].T,
        "vision_model.embeddings.class_embedding": np.zeros(24, np.int8),
    }
    with pytest.raises(ValueError) as error:
        layouts.to_params(layouts.HUGGINGFACE, tensors, config)
    message = str(error.value)
    assert "do not fit the Hugging Face CLIP (PyTorch) layout" in message
    assert f"missing logit_scale, {layer}.1.layer_norm1.bias, {layer}.[0-2].mlp.fc1.bias;" in message
    assert f"not in the model {layer}.3.mlp.fc1.bias, visual_projection.bias;" in message
    assert "of shape (20, 28) where the config asks for (28, 20): text_projection.weight;" in message
    assert "of type int8 where one of float16, bfloat16, float32, float64 is needed: vision_model.emb" in message
    assert "fc2" not in message  # those are fine


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_each_single_tensor_is_asked_for(layout, config, params):
    tensors = layouts.to_tensors(layout, params)
    for name in tensors:
        with pytest.raises(ValueError) as error:
            layouts.to_params(layout, {k: v for k, v in tensors.items() if k != name}, config)
        assert str(error.value).endswith(f": missing {name}")


def test_only_known_buffers_are_passed_over(config, params):
    positions = np.arange(12)[None]
    buffers = {
        layouts.HUGGINGFACE: ["text_model.embeddings.position_ids", "vision_model.embeddings.position_ids"],
        layouts.FLAX: [],
        layouts.OPENCLIP: ["attn_mask"],
        layouts.OPENCLIP_CUSTOM: ["text.attn_mask"],
    }
    for layout, own in buffers.items():
        tensors = layouts.to_tensors(layout, params)
        checkpoints.equal(layouts.to_params(layout, tensors | dict.fromkeys(own, positions), config), params)
        for name in {"attn_mask", "text.attn_mask", "text_model.embeddings.position_ids"} - set(own):
            with pytest.raises(ValueError, match=f"not in the model {name}"):
                layouts.to_params(layout, tensors | {name: positions}, config)


def test_a_scale_stored_as_a_vector(config, params):
    tensors = layouts.to_tensors(layouts.OPENCLIP, params)
    tensors["logit_scale"] = tensors["logit_scale"][None]
    checkpoints.equal(layouts.to_params(layouts.OPENCLIP, tensors, config), params)
    with pytest.raises(ValueError, match=r"of shape \(2,\) where the config asks for \(\): logit_scale"):
        layouts.to_params(layouts.OPENCLIP, tensors | {"logit_scale": np.zeros(2, np.float32)}, config)


def test_another_depth_or_another_layout(config, params):
    tensors = layouts.to_tensors(layouts.HUGGINGFACE, params)
    deeper = replace(config, text=replace(config.text, layers=5))
    with pytest.raises(ValueError, match=r"missing text_model.encoder.layers.\[3-4\].layer_norm1.bias, "):
        layouts.to_params(layouts.HUGGINGFACE, tensors, deeper)
    with pytest.raises(
        ValueError, match=r"OpenCLIP layout .* missing .*visual.conv1.*; not in the model logit|text_mo"
    ):
        layouts.to_params(layouts.OPENCLIP, tensors, config)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_other_precisions(kind, config, params, tmp_path):
    tensors = {k: v.astype(kind) for k, v in layouts.to_tensors(layouts.HUGGINGFACE, params).items()}
    save_file(tensors, tmp_path / "model.safetensors")
    read = weights.read(tmp_path, HF)
    assert {str(tensor.dtype) for tensor in read.values()} == {np.dtype(kind).name}
    rounded = layouts.to_params(layouts.HUGGINGFACE, tensors, config)
    checkpoints.equal(layouts.to_params(layouts.HUGGINGFACE, read, config), rounded)
    for wide, narrow in zip(
        traverse_util.flatten_dict(params).values(), traverse_util.flatten_dict(rounded).values(), strict=True
    ):
        assert narrow.dtype == np.float32
        np.testing.assert_array_equal(narrow, wide.astype(kind).astype(np.float32))


def test_asked_for_precision(config, params):
    tensors = layouts.to_tensors(layouts.HUGGINGFACE, params)
    loaded = traverse_util.flatten_dict(layouts.to_params(layouts.HUGGINGFACE, tensors, config, dtype="bfloat16"))
    assert loaded.pop(("logit_scale",)).dtype == np.float32
    assert {leaf.dtype for leaf in loaded.values()} == {np.dtype(ml_dtypes.bfloat16)}


def test_a_checkpoint_is_in_memory_once(config, tmp_path):
    """Besides the result, one stored tensor at a time: well under twice the checkpoint."""
    tower = replace(config.text, width=80, mlp_width=320, layers=12, vocab_size=400, eos_token_id=399)
    large = replace(config, text=tower)
    save_file(layouts.to_tensors(layouts.HUGGINGFACE, towers.parameters(large)), tmp_path / HF.weights)
    size = (tmp_path / HF.weights).stat().st_size
    layouts.to_params(layouts.HUGGINGFACE, weights.read(tmp_path, HF), large)  # imports and caches
    tracemalloc.start()
    loaded = layouts.to_params(layouts.HUGGINGFACE, weights.read(tmp_path, HF), large)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sum(leaf.nbytes for leaf in traverse_util.flatten_dict(loaded).values()) > 0.9 * size > 3e6
    assert peak < 1.3 * size


# -- Files ------------------------------------------------------------------------------------


def test_order_of_the_files(tmp_path):
    """Of all that a folder can hold, taken away one after the other: safetensors first, pickles last."""
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    files = {file for file, _ in weights._ORDER} | {"config.json", "open_clip_config.json", "README.md"}
    order = []
    while (found := weights.find(files, tmp_path)) is not None:
        order.append((found.weights, found.config))
        files.remove(found.weights)
    assert order == [
        ("model.safetensors", "config.json"),
        ("model.safetensors.index.json", "config.json"),
        ("open_clip_model.safetensors", "open_clip_config.json"),
        ("open_clip_model.safetensors.index.json", "open_clip_config.json"),
        ("flax_model.msgpack", "config.json"),
        ("pytorch_model.bin", "config.json"),
        ("pytorch_model.bin.index.json", "config.json"),
        ("open_clip_pytorch_model.bin", "open_clip_config.json"),
        ("open_clip_pytorch_model.bin.index.json", "open_clip_config.json"),
    ]
    openclip = weights.CheckpointFiles("model.safetensors", "open_clip_config.json")
    assert weights.find({*openclip}, tmp_path) == openclip
    for incomplete in ({"config.json"}, {"model.safetensors"}, {"open_clip_model.safetensors", "config.json"}, set()):
        assert weights.find(incomplete, tmp_path) is None


def test_a_config_of_something_else_beside_openclips(tmp_path):
    """As in timm's repositories, whose model.safetensors is the image tower alone."""
    (tmp_path / "config.json").write_text('{"architecture": "vit_base_patch32_clip_224"}')
    files = {"config.json", "model.safetensors", "open_clip_config.json", "open_clip_model.safetensors"}
    assert weights.find(files, tmp_path) == ("open_clip_model.safetensors", "open_clip_config.json")
    assert weights.find({"config.json", "model.safetensors"}, tmp_path) == HF  # whose config is refused, by its fields


def test_patterns():
    assert weights.patterns(HF) == ["model.safetensors"]
    sharded = weights.CheckpointFiles("pytorch_model.bin.index.json", "config.json")
    assert weights.patterns(sharded) == ["pytorch_model.bin.index.json", "pytorch_model-*.bin"]


def write_shards(folder, tensors, *, total_size=None):
    """Two files and their index; the first has all that sorts before "text_p"."""
    parts = {name: f"model-0000{1 + (name > 'text_p')}-of-00002.safetensors" for name in tensors}
    for file in set(parts.values()):
        save_file({name: tensors[name] for name in tensors if parts[name] == file}, folder / file)
    index = {"weight_map": parts} | ({"metadata": {"total_size": total_size}} if total_size else {})
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


SHARDED = weights.CheckpointFiles("model.safetensors.index.json", "config.json")


def test_shards(config, params, tmp_path):
    write_shards(tmp_path, layouts.to_tensors(layouts.HUGGINGFACE, params))
    checkpoints.equal(layouts.to_params(layouts.HUGGINGFACE, weights.read(tmp_path, SHARDED), config), params)


def test_missing_shard(params, tmp_path):
    write_shards(tmp_path, layouts.to_tensors(layouts.HUGGINGFACE, params), total_size=9_870_000_000)
    (tmp_path / "model-00001-of-00002.safetensors").unlink()
    size = (tmp_path / "model-00002-of-00002.safetensors").stat().st_size / 1000
    with pytest.raises(FileNotFoundError) as error:
        weights.read(tmp_path, SHARDED)
    assert str(error.value) == (
        f"{tmp_path / SHARDED.weights} names 2 files, 9.9 GB in all; missing: model-00001-of-00002.safetensors; "
        f"present: model-00002-of-00002.safetensors ({size:.1f} kB)"
    )


def test_index_and_shards_disagree(params, tmp_path):
    index = write_shards(tmp_path, layouts.to_tensors(layouts.HUGGINGFACE, params))
    path = tmp_path / SHARDED.weights
    index["weight_map"]["logit_scale"] = "model-00002-of-00002.safetensors"  # it is in the first
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError) as error:
        weights.read(tmp_path, SHARDED)
    assert "not in the file it names: logit_scale (model-00002-of-00002.safetensors)" in str(error.value)
    assert "in a file but not listed: logit_scale (model-00001-of-00002.safetensors)" in str(error.value)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "invalid JSON"),
        ("[]", "an object is needed, got []"),
        ("{}", "has no weight_map"),
        ('{"weight_map": {}}', "has no weight_map"),
        ('{"weight_map": {"a": 1}}', "has no weight_map"),
        (
            '{"weight_map": {"a": "../model.safetensors"}}',
            "files that are not .safetensors files of its folder: ../model.safetensors",
        ),
        (
            '{"weight_map": {"a": "/model.safetensors"}}',
            "files that are not .safetensors files of its folder: /model.safetensors",
        ),
        ('{"weight_map": {"a": "model.bin"}}', "files that are not .safetensors files of its folder: model.bin"),
    ],
)
def test_bad_index(content, message, tmp_path):
    path = tmp_path / SHARDED.weights
    path.write_text(content)
    with pytest.raises(ValueError) as error:
        weights.read(tmp_path, SHARDED)
    assert str(path) in str(error.value) and message in str(error.value)


def test_cut_off_or_corrupt_safetensors(params, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(layouts.to_tensors(layouts.HUGGINGFACE, params), path)
    whole = path.read_bytes()
    broken = [whole[:size] for size in (0, 5, 100, len(whole) // 2, len(whole) - 1)]
    for content in [*broken, whole + b"x", b"<html>not found</html>" * 10]:
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            weights.read(tmp_path, HF)
        assert str(path) in str(error.value) and "not a complete safetensors file" in str(error.value)


MSGPACK = weights.CheckpointFiles("flax_model.msgpack", "config.json")


def test_msgpack(config, params, tmp_path):
    tensors = layouts.to_tensors(layouts.FLAX, params)
    nested = traverse_util.unflatten_dict(tensors, sep=".")
    path = tmp_path / MSGPACK.weights
    path.write_bytes(serialization.msgpack_serialize(nested))
    checkpoints.equal(layouts.to_params(layouts.FLAX, weights.read(tmp_path, MSGPACK), config), params)
    whole = path.read_bytes()
    cut_off = [whole[:0], whole[:9], whole[: len(whole) // 2], whole[:-1]]
    for content in [*cut_off, whole + b"x", b"hello", whole.replace(b"float32", b",,,,,,,")]:
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            weights.read(tmp_path, MSGPACK)
        assert str(path) in str(error.value) and "not a complete msgpack file" in str(error.value)
    path.write_bytes(b"\x93\1\2\3")
    with pytest.raises(ValueError, match=f"{path} holds a list, not parameters by name"):
        weights.read(tmp_path, MSGPACK)
    path.write_bytes(serialization.msgpack_serialize(nested | {"step": 3, "note": "x"}))
    with pytest.raises(ValueError, match="holds more than tensors: note, step"):
        weights.read(tmp_path, MSGPACK)


@pytest.mark.parametrize("n, text", [(0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (3.21e9, "3.2 GB")])
def test_sizes_are_readable(n, text):
    assert weights._size(n) == text


def test_a_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: is a pipe, socket or device; a regular file is needed"):
        weights.read(tmp_path, weights.CheckpointFiles("model.safetensors", "config.json"))
