"""Commands that are killed inside a write, and what must be the same in the end."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests.commands import REQUIRED, ROOT, environment, finish

only_with_system = pytest.mark.skipif(not REQUIRED, reason="minutes of kills: `make test SYSTEM=yes`")


@dataclass(frozen=True)
class Kill:
    """When SIGKILL comes.

    Attributes:
      path: regular expression of the path that is changed; of a rename, the new one.
      event: Python's audit event; "" for any change of files.
      number: at which of these events of a process.
      way: "now", before it happens; "half", after half of the renamed file; "torn", after half a line; "first file",
        when there is a file in the new folder; "first folder", when a tree that is being deleted loses a folder;
        "later", after `delay` seconds.
      delay: seconds.
    """

    path: str
    event: str = "os.rename"
    number: int = 1
    way: str = "half"
    delay: float = 0.0


STEP = r"/checkpoints/\d+"
CONFIG = Kill(r"/config\.json$")
PLAN = Kill(r"/plan\.json$")
LINE = Kill(r"/metrics\.jsonl$", "open", 5, "torn")
DATA = Kill(rf"{STEP}\.orbax-checkpoint-tmp/state\.orbax-checkpoint-tmp$", "os.mkdir", 2, "first file")
STATE = Kill(rf"{STEP}\.orbax-checkpoint-tmp/state$", number=2, way="now")
COMMIT = Kill(rf"{STEP}$", number=3, way="now")
DELETION = Kill(rf"{STEP}$", "shutil.rmtree", 1, "first folder")
ARRAYS = Kill(r"/\.value\..*/tree\.json$")
VALUE = Kill(r"/value$", way="now")
STAGE = Kill(r"/stage\.json$")
RESULT = Kill(r"/result\.json$")
VERSIONS = Kill(r"/versions\.json$")


def command(module: str, *args, kills: Sequence[Kill] = ()) -> subprocess.Popen:
    """`python -m MODULE ARGS…`, started; its processes are killed as `kills` say."""
    env = environment()
    if kills:
        env["ALIGNAX_KILLS"] = json.dumps([asdict(kill) for kill in kills])
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parent / "hook"), env.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, args)],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def killed(module: str, *args, kills: Sequence[Kill]) -> None:
    """Run a command that has to end by a kill."""
    finish(command(module, *args, kills=kills), -signal.SIGKILL)


def wait_for_lock(folder: Path) -> None:
    """Until the processes that a killed sweep has left have ended."""
    with open(folder / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def contents(folder: Path) -> dict[str, object]:
    """All that has to be the same however often a command was killed: file -> content, without times and versions."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        name = str(path.relative_to(folder))
        match path.name:
            case "metrics.jsonl":
                found[name] = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
            case _ if path.name.endswith(".log.jsonl"):  # in the order in which a language model answered
                rows = [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
                found[name] = sorted(rows, key=lambda row: row["key"])
            case "stage.json":
                found[name] = _timeless(json.loads(path.read_text()))
            case _ if path.suffix == ".safetensors":  # its header's entries are in any order
                size = int.from_bytes(path.read_bytes()[:8], "little")
                found[name] = json.loads(path.read_bytes()[8 : 8 + size]), path.read_bytes()[8 + size :]
            case "versions.json" | "log.txt" | ".lock" | "optuna.journal":
                found[name] = ""
            case _ if "tensorboard" in path.parts:
                found[str(Path(name).parent)] = ""  # a file for each start
            case _ if "checkpoints" in path.parts and path.name != "metadata":
                found[f"{name.rpartition('/checkpoints/')[0]}/checkpoints/{_step(path)}"] = ""
            case _:
                found[name] = path.read_bytes()
    return found


def _step(path: Path) -> str:
    return path.parts[path.parts.index("checkpoints") + 1]


def _timeless(row: dict) -> dict:
    return {key: value for key, value in row.items() if key not in ("time", "seconds") and "second" not in key}


def assert_same(folder: Path, whole: Path) -> None:
    """Bit for bit, and not a file more or less."""
    here, there = contents(folder), contents(whole)
    assert here.keys() == there.keys()
    assert [name for name in here if here[name] != there[name]] == []
