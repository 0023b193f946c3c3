"""PyTorch's weight files: opened without running what they hold, and only where PyTorch is installed."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import pytest
import torch

import clip_jax
from clip_jax.files import config_files, layouts
from tests.clip_jax import checkpoints
from tests.commands import ROOT


@pytest.fixture(scope="module")
def clip():
    return checkpoints.whole()


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def torch_folder(clip, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config_files.to_huggingface(clip.config)))
    return tmp_path


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_with_code_is_refused(legacy, torch_folder):
    path, touched = torch_folder / "pytorch_model.bin", torch_folder / "touched"
    torch.save({"logit_scale": Harmful(touched)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError) as error:
        clip_jax.load(torch_folder)
    assert str(path) in str(error.value) and "could run code, so it is not opened" in str(error.value)
    path.write_bytes(pickle.dumps({"logit_scale": Harmful(touched)}))
    with pytest.raises(ValueError, match="could run code, so it is not opened"):
        clip_jax.load(torch_folder)
    assert not touched.exists()


def test_bad_pytorch_files(torch_folder):
    path = torch_folder / "pytorch_model.bin"
    torch.save({"logit_scale": torch.ones(100)}, path)
    whole = path.read_bytes()
    for content in (b"", whole[:7], whole[: len(whole) // 2], b"<html>"):
        path.write_bytes(content)
        with pytest.raises(ValueError) as error:
            clip_jax.load(torch_folder)
        assert str(path) in str(error.value)
    torch.save([torch.ones(3)], path)
    with pytest.raises(ValueError, match=f"{path} holds a list, not tensors by name"):
        clip_jax.load(torch_folder)
    torch.save({"state_dict": {"logit_scale": torch.ones(())}, "epoch": 3}, path)
    with pytest.raises(ValueError, match=f"{path} holds more than tensors: epoch, state_dict"):
        clip_jax.load(torch_folder)


def test_without_pytorch(clip, torch_folder):
    """In a process where PyTorch cannot be imported: its file says what to do, safetensors load."""
    path = torch_folder / "pytorch_model.bin"
    tensors = layouts.to_tensors(layouts.HUGGINGFACE, jax.device_get(clip.params))
    torch.save({name: torch.tensor(tensor) for name, tensor in tensors.items()}, path)
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "import clip_jax\n"
        "try: clip_jax.load(sys.argv[1])\n"
        "except ImportError as error: print(error)\n"
        "clip = clip_jax.load(sys.argv[2])\n"
        "print(float(clip.params['logit_scale']), clip.tokenize(['red']).shape)\n"
    )
    clip_jax.save(clip, torch_folder / "converted")
    command = [sys.executable, "-c", program, str(torch_folder), str(torch_folder / "converted")]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    message, values = done.stdout.splitlines()
    assert message.startswith(f"{path} is a PyTorch file and PyTorch is not installed. Install it (pip install torch)")
    assert f"clip_jax.save(clip_jax.load('{torch_folder}'), NEW_FOLDER)" in message
    assert values == f"{float(clip.params['logit_scale'])} (1, 12)"
    checkpoints.equal(clip_jax.load(torch_folder).params, clip.params)  # and with PyTorch it loads
