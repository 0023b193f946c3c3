"""Replacing a folder as a whole, and only one of our own."""

import os
import shutil
import tempfile
from collections.abc import Collection
from pathlib import Path


def check(target: Path, known: Collection[str]) -> None:
    """Raise FileExistsError if `target` is a file, or a folder with files other than the known ones."""
    if target.exists() and not target.is_dir():
        raise FileExistsError(f"{target} is a file; give a folder")
    files = {path.name for path in target.iterdir()} if target.exists() else set()
    if strangers := sorted(files - set(known)):
        raise FileExistsError(
            f"{target} holds files that are not of a saved CLIP and would be lost: {', '.join(strangers)}. Choose "
            "another folder or remove them"
        )


def move(new: Path, target: Path) -> None:
    """Move a complete folder into place; an existing one is removed only after the new one has arrived."""
    if not target.exists() or not any(target.iterdir()):
        os.rename(new, target)
        return
    aside = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    os.rename(target, aside / "old")
    try:
        os.rename(new, target)
    except BaseException:
        os.rename(aside / "old", target)
        os.rmdir(aside)
        raise
    shutil.rmtree(aside)
