"""Image files below a folder. Links are followed, and every real file is listed once.

A link to a folder that contains the link is skipped, and so is a link to something that is already listed, and what is
hidden (thumbnails, a file system's trash, the "._x.jpg" that macOS writes beside x.jpg); notes say so. Files are sorted
by path, so the order is the same on every machine.
"""

import heapq
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launch.reading.errors import InputError, MissingInput, of_os, printable

EXTENSIONS = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


@dataclass(frozen=True)
class Listing:
    """Files below a folder.

    Attributes:
      folder: as it was given.
      names: of the files, relative to the folder, sorted.
      notes: one line for each link that was skipped, and one for all that is hidden.
    """

    folder: Path
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    @property
    def paths(self) -> list[Path]:
        """The files as paths."""
        return [self.folder / name for name in self.names]


def images(folder: str | Path, *, extensions: Sequence[str] = EXTENSIONS) -> Listing:
    """The image files in a folder and its subfolders.

    Args:
      folder: its path.
      extensions: of image files, in lower case; files may have them in any case.

    Raises:
      MissingInput: no such folder, or no image in it.
      InputError: no folder; a subfolder that cannot be read; an image that is a broken link or no regular file.
    """
    walk = _Walk(tuple(extensions))
    names = walk.list(os.fspath(folder))
    if not names:
        notes = f" ({walk.notes[0]})" if walk.notes else ""
        raise MissingInput(f"no images ({' '.join(extensions)}) in it{notes}", file=folder)
    return Listing(Path(folder), tuple(names), tuple(walk.notes))


def class_images(
    folder: str | Path, classes: Sequence[str], *, extensions: Sequence[str] = EXTENSIONS
) -> tuple[Listing, tuple[int, ...]]:
    """The image files of class folders.

    Args:
      folder: the parent of the class folders.
      classes: their names, in the order of the labels.
      extensions: as of `images`.

    Returns:
      (the images, class after class; the number of images of each class).

    Raises:
      MissingInput, InputError: as `images`, for every class; also an image that belongs to two classes through links.
    """
    walk = _Walk(tuple(extensions))
    names: list[str] = []
    counts = []
    for name in classes:
        inside = walk.list(os.path.join(folder, name), owner=name)
        if not inside:
            raise MissingInput(f"no images ({' '.join(extensions)}) in it", file=os.path.join(folder, name))
        names += (os.path.join(name, file) for file in inside)
        counts.append(len(inside))
    return Listing(Path(folder), tuple(names), tuple(walk.notes)), tuple(counts)


def subfolders(folder: str | Path) -> tuple[str, ...]:
    """Names of the folders in a folder, sorted; links to folders count.

    Raises:
      MissingInput, InputError: no such folder, not readable.
    """
    return tuple(sorted(entry.name for entry in _scan(_real_path(os.fspath(folder))) if os.path.isdir(entry.path)))


@dataclass
class _Walk:
    """What has been listed, over one folder or several that must not overlap.

    Attributes:
      extensions: of files that count.
      folders: real path of every folder that was listed -> whose it is (the class).
      files: real path of every file that was listed through a link of its own -> whose it is.
      notes: what was skipped.
    """

    extensions: tuple[str, ...]
    folders: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _real: dict[str, str] = field(default_factory=dict)

    def list(self, top: str, owner: str = "") -> list[str]:
        """The files below `top`, relative to it, sorted.

        Real folders come first, then what links lead to: the name of a file does not depend on the order in which the
        file system lists a folder.
        """
        names = []
        folders = [("", _real_path(top))]  # (relative to `top`, real path)
        links: list[tuple[str, str]] = []  # to folders, with the real path of the folder that they lie in; a heap
        file_links, hidden = [], []
        while folders or links:
            if not folders:
                name, base = heapq.heappop(links)
                real = os.path.realpath(os.path.join(top, name))
                if os.path.commonpath((real, base)) == real:
                    self._note(top, name, "it leads to a folder that contains it")
                    continue
                folders.append((name, real))
            below, real = folders.pop()
            if not self._claim(top, below, real, owner):
                continue
            for entry in _scan(os.path.join(top, below) if below else top):
                name = os.path.join(below, entry.name)
                if entry.name.startswith("."):
                    if self._counts(entry.name) or entry.is_dir():
                        hidden.append(name)
                elif entry.is_symlink():
                    if os.path.isdir(entry.path):
                        heapq.heappush(links, (name, real))
                    elif self._counts(entry.name):
                        file_links.append(name)
                elif entry.is_dir(follow_symlinks=False):
                    folders.append((name, os.path.join(real, entry.name)))
                elif self._counts(entry.name):
                    self._check_file(entry, os.path.join(real, entry.name), owner)
                    names.append(name)
        names += [name for name in sorted(file_links) if self._takes(top, name, owner)]
        if hidden:
            more = f" and {len(hidden) - 1:,} more are" if len(hidden) > 1 else " is"
            first = printable(os.path.join(top, min(hidden)))
            self.notes.append(f"{first}{more} skipped: hidden, by the dot before the name")
        return sorted(names)

    def _counts(self, name: str) -> bool:
        return name.lower().endswith(self.extensions)

    def _note(self, top: str, name: str, why: str) -> None:
        self.notes.append(f"{printable(os.path.join(top, name))} is skipped: {why}")

    def _claim(self, top: str, below: str, real: str, owner: str) -> bool:
        """Whether a folder is to be listed: not if it was."""
        if real not in self.folders:
            self.folders[real] = owner
            return True
        self._check_owner(os.path.join(top, below), self.folders[real], owner)
        self._note(top, below, "its target is already listed")
        return False

    def _check_file(self, entry: os.DirEntry, real: str, owner: str) -> None:
        if not entry.is_file(follow_symlinks=False):
            raise InputError("is a pipe, socket or device, not an image", file=entry.path)
        if self.files and real in self.files:
            self._check_owner(entry.path, self.files[real], owner)

    def _takes(self, top: str, name: str, owner: str) -> bool:
        """Whether what a link to a file leads to is to be listed: not if it was."""
        path = os.path.join(top, name)
        real = self._resolve(path)
        folder, file = os.path.split(real)
        known = self.files.get(real)
        if known is None and self._counts(file):
            known = self.folders.get(folder)
        if known is None:
            self.files[real] = owner
            return True
        self._check_owner(path, known, owner)
        self._note(top, name, "its target is already listed")
        return False

    def _resolve(self, path: str) -> str:
        """The real path of a link to a file; real paths of folders are looked up once."""
        try:
            target = os.path.join(os.path.dirname(path), os.readlink(path))
            folder, file = os.path.split(target)
            if folder not in self._real:
                self._real[folder] = os.path.realpath(folder)
            real = os.path.join(self._real[folder], file)
            mode = os.lstat(real).st_mode
            if stat.S_ISLNK(mode):
                real = os.path.realpath(path)
                mode = os.stat(real).st_mode
        except OSError as error:
            raise InputError(
                f"is a broken link ({error.strerror})", file=path, remedy="remove it, or restore what it leads to"
            ) from error
        if not stat.S_ISREG(mode):
            raise InputError("leads to a pipe, socket or device, not an image", file=path)
        return real

    @staticmethod
    def _check_owner(path: str, known: str, owner: str) -> None:
        if known != owner:
            raise InputError(
                f"is in class {owner!r} and, through a link, in class {known!r}", file=path, remedy="remove the link"
            )


def _real_path(folder: str) -> str:
    try:
        return os.path.realpath(folder)
    except ValueError as error:
        raise InputError("is not a valid path: it contains a NUL or half of a surrogate pair", file=folder) from error


def _scan(folder: str) -> list[os.DirEntry]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError as error:
        raise of_os(error, folder) from error
