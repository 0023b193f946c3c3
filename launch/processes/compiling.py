"""How XLA compiles in this process: the precision of products, the compiler's effort, the folder of compiled programs.

Precision decides numbers, so it is a setting of the config, `config.precision`. A run has one: `launch.train` and the
executors of sweeps compute the whole run inside `products`. In the keys of the store it is a field of the settings that
hold a network (robustgrad's `Architecture`, tldr's `Backbone`, the CLIP of all three), so that another precision makes
again exactly what a network computes; data, word lists and replies of language models stay.

Effort and folder decide how long compiling takes, so they are flags of the command: --effort, --compilation_cache.
"""

import contextlib
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from absl import logging

from launch.settings import setting

# Of products and convolutions of float32 on accelerators, a CPU has one. Rounded operands: to bfloat16 on a TPU, to
# TF32 on a GPU; "high": three such products, or TF32; "highest": float32.
PRECISIONS = ("default", "high", "highest")
EFFORT = -1.0  # XLA's least: a TPU compiles four to eight times faster, for estimated steps within 4 %
_WORTH_KEEPING = 0.1  # seconds of compiling; there are hundreds of smaller programs, each would be a file
_NEVER = 1e9
_TROUBLE = r"Error (reading|writing) persistent compilation cache entry for '(.*?)'"


def precision_of(config: Any) -> str:
    """`config.precision`; "default" for an experiment whose configs do not have it.

    Raises:
      SettingError: an unknown name; the message lists the valid ones.
    """
    return setting(config, "precision", str, known=PRECISIONS) if "precision" in config else PRECISIONS[0]


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Trace the products of float32 in this precision, in all threads.

    Programs of another precision stay compiled beside: JAX's caches tell them apart.
    """
    before = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_default_matmul_precision", precision)
    try:
        yield
    finally:
        jax.config.update("jax_default_matmul_precision", before)


def described() -> dict[str, str]:
    """What decides how this process compiles now, for versions.json."""
    precision = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
    effort = jax.config.jax_exec_time_optimization_effort  # pyright: ignore[reportAttributeAccessIssue]
    return {"precision": precision or PRECISIONS[0], "effort": f"{effort:g}"}


def set_up(effort: float, asked: str | None, default: Path | None) -> None:
    """Set the effort, and the folder in which compiled programs are kept for later processes.

    XLA on a CPU does not read the effort. A program's key contains JAX's and XLA's versions, the options and the target
    with its features, so that machines of different kinds may share a folder. A folder that cannot be used is a
    warning: programs are compiled as if there were none.

    Args:
      effort: from -1, quick to compile, to 1, quick to run.
      asked: the folder, or an address such as gs://…; "" for none; None for $JAX_COMPILATION_CACHE_DIR or else
        `default`.
      default: a folder; None for none.
    """
    jax.config.update("jax_exec_time_optimization_effort", effort)
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(default or "")) if asked is None else asked
    if "://" in folder:  # not of the file system: JAX's affair
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING)
        return
    kept = bool(folder) and _can_keep(Path(folder))
    used = kept or (bool(folder) and os.path.isdir(folder))
    jax.config.update("jax_compilation_cache_dir", os.path.abspath(folder) if used else None)
    if used:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", _WORTH_KEEPING if kept else _NEVER)
        _say_once(Path(folder))


def _can_keep(folder: Path) -> bool:
    """Make a folder if it is missing; a warning and False if nothing can be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        logging.warning("compiled programs cannot be kept in %s (%s)", folder, error)
        return False
    return True


def _say_once(folder: Path) -> None:
    """Warn of the first program that cannot be read and the first that cannot be kept, not of every one.

    JAX does not write atomically and keeps what is there: a program that was cut off by a kill or a full disk would be
    damaged for ever, so that those of its name are removed, to be compiled again.
    """
    before, said = warnings.showwarning, set()

    def show(message: Any, *details: Any, **more: Any) -> None:
        if not (trouble := re.match(_TROUBLE, str(message))):
            before(message, *details, **more)
            return
        what, program = trouble.groups()
        if what not in said:
            said.add(what)
            logging.warning("%s: %s; this is said once, programs are compiled without", folder, message)
        if what == "reading":
            with contextlib.suppress(OSError):  # read-only: it is compiled again every time
                for file in folder.glob(f"{program}-*"):
                    file.unlink()

    warnings.filterwarnings("always", message=_TROUBLE)
    warnings.showwarning = show
