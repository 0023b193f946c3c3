"""Names of checkpoints: folders, embedded ones and the hub's, with the hub there and not there."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import errors
from safetensors.numpy import load_file

import clip_jax
from clip_jax.files import hub, sources
from tests.clip_jax import checkpoints
from tests.commands import ROOT


@pytest.mark.parametrize("text", ["openai/clip-vit-base-patch32", "laion/CLIP-ViT-H-14.x_y", "runs/clip"])
def test_hub_names(text):
    assert hub.is_name(text)


@pytest.mark.parametrize("text", ["clip", "/a/b", "./a/b", "../a", "a/b/c", "~/clip", "a b/c", "a/", "-a/b", ""])
def test_no_hub_names(text):
    assert not hub.is_name(text)


def test_neither_folder_nor_name(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_embedded", lambda: {"small": Path("x"), "other": Path("y")})
    for source in ("nowhere", tmp_path / "nowhere", "/no/where/at/all"):
        with pytest.raises(FileNotFoundError) as error:
            clip_jax.load(source)
        assert f"no folder {str(source)!r}, and it is not a hub name" in str(error.value)
        assert "'embedded:other', 'embedded:small'" in str(error.value)
    for fails in (lambda: clip_jax.embedded("scene"), lambda: clip_jax.load("embedded:scene")):
        with pytest.raises(ValueError, match="no embedded checkpoint 'scene'; valid names: 'other', 'small'"):
            fails()
    assert clip_jax.embedded("small") == clip_jax.located("embedded:small") == Path("x")
    assert clip_jax.located("owner/name") == "owner/name" and clip_jax.located(str(tmp_path)) == tmp_path


def test_a_file_is_no_folder(folder):
    with pytest.raises(FileNotFoundError, match=r"config.json is a file; give the folder of the checkpoint"):
        clip_jax.load(folder / "config.json")


def test_a_folder_goes_before_the_hub(clip, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "download", lambda name: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    clip_jax.save(clip, "owner/model")
    checkpoints.equal(clip_jax.load("owner/model").params, clip.params)


# -- The hub ----------------------------------------------------------------------------------


class Hub:
    """A stand-in for the hub's client: one repository, or none that can be reached."""

    def __init__(self, monkeypatch, folder, extra=(), error=None):
        self.folder, self.asked = folder, []
        self.files = [path.name for path in folder.iterdir()] + list(extra)
        monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", self.list)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.snapshot)
        self.error = error

    def list(self, name):
        if self.error:
            raise self.error
        return self.files

    def snapshot(self, name, *, allow_patterns, local_files_only=False):
        self.asked.append((name, allow_patterns, local_files_only))
        if self.folder is None:
            raise errors.LocalEntryNotFoundError("not in the cache")
        return str(self.folder)


def test_only_what_is_read_is_fetched(clip, folder, monkeypatch):
    others = ["pytorch_model.bin", "flax_model.msgpack", "tf_model.h5", "open_clip_model.safetensors", "README.md"]
    fake = Hub(monkeypatch, folder, extra=others)
    checkpoints.equal(clip_jax.load("owner/model").params, clip.params)
    (_, small, _), (name, patterns, local) = fake.asked
    assert name == "owner/model" and not local and set(small) < set(patterns)
    assert {pattern for pattern in patterns if "model" in pattern} == {"model.safetensors"}
    assert {path.name for path in folder.iterdir()} <= set(patterns)


def test_a_sharded_repository(folder, monkeypatch):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = load_file(folder / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    fake = Hub(monkeypatch, folder, extra=["pytorch_model.bin"])
    clip_jax.load("owner/model")
    assert {p for p in fake.asked[-1][1] if "model" in p} == {"model.safetensors.index.json", "model-*.safetensors"}


def test_a_repository_without_a_clip(folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    fake = Hub(monkeypatch, folder, extra=["weights.pt"])
    with pytest.raises(FileNotFoundError, match=r"'owner/model' holds no CLIP checkpoint.*config.json.*weights.pt"):
        clip_jax.load("owner/model")
    assert not any("model" in pattern for _, patterns, _ in fake.asked for pattern in patterns)


def test_an_unknown_repository(folder, monkeypatch):
    response = SimpleNamespace(headers={}, request=None, status_code=404)
    Hub(monkeypatch, folder, error=errors.RepositoryNotFoundError("404 not found", response=response))
    with pytest.raises(FileNotFoundError, match=r"'owner/model' is neither a local folder nor .*`hf auth login.*404"):
        clip_jax.load("owner/model")


def test_an_unreachable_hub_leaves_the_cache(clip, folder, monkeypatch):
    fake = Hub(monkeypatch, folder, error=errors.OfflineModeIsEnabled("offline"))
    checkpoints.equal(clip_jax.load("owner/model").params, clip.params)
    assert [local for _, _, local in fake.asked] == [True]


def test_an_unreachable_hub(folder, monkeypatch):
    fake = Hub(monkeypatch, folder, error=errors.HTTPError("connection refused"))
    fake.folder = None
    with pytest.raises(ConnectionError) as error:
        clip_jax.load("owner/model")
    message = str(error.value)
    assert "no local folder 'owner/model'" in message and "connection refused" in message
    assert "`hf download owner/model --local-dir model`" in message and 'clip_jax.load("model")' in message


def test_offline_for_real(tmp_path):
    """The hub's own client with an empty cache, told to be offline: quick, and the same message."""
    program = (
        "import clip_jax\ntry: clip_jax.load('openai/clip-vit-base-patch32')\nexcept ConnectionError as e: print(e)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "hf download openai/clip-vit-base-patch32 --local-dir clip-vit-base-patch32" in done.stdout
