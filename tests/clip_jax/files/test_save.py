"""`save`: whole or not at all, and nothing of anybody else is lost."""

import json
import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import clip_jax
from clip_jax import clip as clip_module
from launch import files
from tests.clip_jax import checkpoints


def test_half_precision_on_disk(clip, tmp_path):
    clip_jax.save(clip, tmp_path / "half", dtype="float16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert stored.pop("logit_scale").dtype == np.float32
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype("float16")}
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "float16"
    loaded = clip_jax.load(tmp_path / "half")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), loaded.params, clip.params)


def test_overwriting(clip, folder):
    changed = replace(clip, params=jax.tree.map(lambda x: x + 1, clip.params), tokenizer=None)
    clip_jax.save(changed, folder)
    checkpoints.equal(clip_jax.load(folder).params, changed.params)
    assert not (folder / "vocab.json").exists()  # the folder is replaced, not mixed
    (folder / "README.md").write_text("mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(FileExistsError, match=f"{folder} holds files that are not of a saved CLIP .*: README.md"):
        clip_jax.save(clip, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["clip"]
    with pytest.raises(FileExistsError, match=r"README\.md is a file"):
        clip_jax.save(clip, folder / "README.md")


def test_a_failed_save_leaves_the_old_folder(clip, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(clip_module, "_write_json", full)
        with pytest.raises(OSError, match="no space left"):
            clip_jax.save(clip, folder)
    move, failed = os.replace, []

    def failing(source, target):
        if Path(target) == folder and not failed:  # the new folder; then the old one comes back
            failed.append(source)
            full()
        move(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", failing)
        with pytest.raises(OSError, match="no space left"):
            clip_jax.save(clip, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert os.listdir(folder.parent) == ["clip"]


def test_parameters_of_another_model_are_not_saved(clip, tmp_path):
    with pytest.raises(ValueError, match=r"do not have the shapes of the config: logit_scale, text/tokens$"):
        params = {"image": clip.params["image"], "text": clip.params["text"] | {"tokens": jnp.zeros((3, 20))}}
        clip_jax.save(replace(clip, params=params), tmp_path / "x")
    assert os.listdir(tmp_path) == []


def test_a_link_is_followed(clip, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    clip_jax.save(replace(clip, tokenizer=None), tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and not (folder / "vocab.json").exists()


def test_what_a_killed_save_left_is_removed_by_the_next(clip, folder):
    """A folder beside the target, named after a process of this machine that does not run any more."""
    machine = files._machine()
    left = folder.parent / f".{folder.name}.{machine}-4194300-1-x.partial"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half of it")
    other = folder.parent / f".other.{machine}-4194300-1-x.partial"
    other.mkdir()
    clip_jax.save(clip, folder)
    assert not left.exists() and other.exists()
