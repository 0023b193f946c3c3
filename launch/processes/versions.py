"""The versions, devices and commit of a run, kept in its versions.json for the report."""

import functools
import json
import platform
import subprocess
from collections import Counter
from importlib import metadata
from pathlib import Path

import jax

from launch.files import load_json, write_atomically
from launch.processes import compiling

FILE = "versions.json"
_PACKAGES = ("alignax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_SOURCE = Path(__file__).resolve().parent.parent


def collect() -> dict[str, str]:
    """Name -> version, of this process's packages, the devices of all processes, and how XLA compiles now.

    Starts JAX's backend.
    """
    return _of_process() | compiling.described()


@functools.cache
def _of_process() -> dict[str, str]:
    kinds = Counter(device.device_kind for device in jax.devices())
    devices = ", ".join(f"{count} × {kind}" for kind, count in kinds.items())
    versions = {"python": platform.python_version()}
    versions |= {name: version for name in _PACKAGES if (version := _version(name))}
    versions |= {"platform": platform.platform(), "devices": devices, "processes": str(jax.process_count())}
    commit = _commit()
    return versions | ({"commit": commit} if commit else {})


def record(path: Path) -> None:
    """Add `collect()` to a run directory's versions.json unless it is the last entry.

    The file is a list of such mappings, in order of use: a resumed run may have several.

    Raises:
      InputError: the file is damaged.
    """
    file = path / FILE
    known = load_json(file, top=list) if file.exists() else []
    if not known or known[-1] != collect():
        write_atomically(file, json.dumps([*known, collect()], indent=2) + "\n")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def _commit() -> str:
    """The commit of the running source, with "-dirty" if files have changed since; "" outside a checkout."""
    if not (_SOURCE / ".git").exists():
        return ""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=_SOURCE, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
