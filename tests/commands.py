"""Starting the project's commands the way a user does, in processes of their own."""

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
REQUIRED = os.environ.get("ALIGNAX_SYSTEM") == "required"  # what needs a missing program fails, is not skipped
# Most of the suite's time was XLA's, compiling what then runs for milliseconds.
COMPILE_QUICKLY = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jax").startswith("0.10."):  # later ones have no choice
    COMPILE_QUICKLY += " --xla_cpu_use_fusion_emitters=false"


def environment(devices: int = 1) -> dict[str, str]:
    """The environment of a child process that sees `devices` fake CPU devices."""
    flags = f"{COMPILE_QUICKLY} --xla_force_host_platform_device_count={devices}"
    return os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1"}


def start(*args, devices: int = 1) -> subprocess.Popen:
    """`python ARGS…` from the repository's root, output piped as text, errors into it."""
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        cwd=ROOT,
        env=environment(devices),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, code: int | None = 0, timeout: float = 300) -> str:
    """Wait for a started command; its output, if it exits with `code` (None: with any but 0)."""
    output, _ = process.communicate(timeout=timeout)
    assert (process.returncode == code) if code is not None else process.returncode, output
    return output


def train(config, workdir, *overrides: str, devices: int = 1) -> subprocess.Popen:
    """`python -m launch.train --config=CONFIG --workdir=WORKDIR OVERRIDES…`, started."""
    return start("-m", "launch.train", f"--config={config}", f"--workdir={workdir}", *overrides, devices=devices)


def stage_folder(workdir: Path, kind: str) -> Path:
    """The folder in the store of a run's one stage of a class; before the run has planned, one that does not exist."""
    if not (workdir / "plan.json").exists():
        return workdir / "store" / "none"
    plan = json.loads((workdir / "plan.json").read_text())
    (key,) = (key for key, name in plan["stages"].items() if name == kind)
    return workdir / plan["store"] / key
