"""A small CLIP with random parameters, and its folder."""

import pytest

import clip_jax
from tests.clip_jax import checkpoints


@pytest.fixture(scope="module")
def clip():
    return checkpoints.whole()


@pytest.fixture
def folder(clip, tmp_path):
    clip_jax.save(clip, tmp_path / "clip")
    return tmp_path / "clip"
