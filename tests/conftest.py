"""Before JAX is imported anywhere: tests compile much and compute little, so LLVM need not take pains."""

import os

from tests.commands import COMPILE_QUICKLY

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {COMPILE_QUICKLY}".strip()
