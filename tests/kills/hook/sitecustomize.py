"""Kills a Python process inside a write; for tests, which put this folder on PYTHONPATH.

ALIGNAX_KILLS holds a JSON list of `tests.kills.killing.Kill` as dicts. Every process of a command obeys it: each looks
for itself, at what Python audits, before it happens.
"""

import json
import os
import re
import signal
import sys
import threading
import time

_CHANGES = ("open", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "shutil.rmtree")


def _die():
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal may reach another thread first


def _half(path):
    """As if the write of a file had come halfway only."""
    if os.path.isfile(path):
        os.truncate(path, os.path.getsize(path) // 2)
    _die()


def _torn(path):
    """As if the write of a line to the end of a file had come halfway only."""
    with open(path, "ab") as file:
        file.write(b'{"step": 7, "torn')
    _die()


def _at_first_file(folder):
    """Die when the first file is below a folder, which is about to be made."""

    def look():
        while not any(names for _, _, names in os.walk(folder)):
            time.sleep(0.0001)
        _die()

    threading.Thread(target=look, daemon=True).start()


def _install(kill):
    pattern, left, armed = re.compile(kill["path"]), [kill["number"]], set()
    ways = {
        "now": lambda event, paths: _die(),
        "half": lambda event, paths: _half(paths[0]),
        "torn": lambda event, paths: _torn(paths[0]),
        "first file": lambda event, paths: _at_first_file(paths[0]),
        "first folder": lambda event, paths: armed.add(threading.get_ident()),
        "later": lambda event, paths: threading.Timer(kill["delay"], _die).start(),
    }

    def hook(event, arguments):
        if event not in _CHANGES:
            return
        if event == "os.rmdir" and threading.get_ident() in armed:
            _die()
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        paths = [os.fsdecode(x) for x in arguments if isinstance(x, str | bytes | os.PathLike)]
        if event == "open":
            paths = paths[:1]  # the other is the mode
        if kill["event"] in ("", event) and paths and pattern.search(paths[-1]) and left[0] > 0:
            left[0] -= 1
            if not left[0]:
                ways[kill["way"]](event, paths)

    sys.addaudithook(hook)


for _kill in json.loads(os.environ.get("ALIGNAX_KILLS", "[]")):
    _install(_kill)
