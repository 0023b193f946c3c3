"""Before JAX is imported anywhere: tests compile much and compute little, so LLVM need not take pains."""

import os
import sys

import pytest

from tests.commands import COMPILE_QUICKLY

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_QUICKLY}".strip()
os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # nor fill the user's folder of programs


@pytest.fixture(autouse=True, scope="module")
def _forget_programs():
    """No file uses another's compiled programs, and those of all files would take gigabytes."""
    yield
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
