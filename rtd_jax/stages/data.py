"""Data as stages: the CLIP, captions, images and triplets to train on, the tasks of the benchmarks.

None of it is written to the store: it is read or drawn again. A text file counts by its content, a folder of images and
a benchmark's release by their paths. Captions, images and triplets come in two parts: to train on, and to validate on.
"""

import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

import clip_jax
from clip_jax.training.clips import PretrainedClip
from launch.data import scenes
from launch.data.scenes import world
from launch.reading import InputError, folders, shown
from launch.stages import File, SettingError, Stage, about, require, require_known, stackable
from launch.store import Store
from rtd_jax import clips
from rtd_jax.benchmarks import circo, cirr, fashioniq, genecis
from rtd_jax.benchmarks import scenes as scene_benchmark
from rtd_jax.benchmarks.task import RetrievalTask
from rtd_jax.text import captions, masking, triplets

Images = Sequence[Path] | np.ndarray


def require_whole(owner: Any, *names: str, least: int = 1, most: float = math.inf) -> None:
    """Refuse fields that are not whole numbers of at least `least`, at most `most`."""
    for name in names:
        value = getattr(owner, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        problem = f"must be a whole number, at least {least}"
        require(whole, owner, name, f"{problem} and at most {most}" if math.isfinite(most) else problem)


def file_setting(path: str) -> File:
    """The file that a setting names."""
    return File(os.path.expanduser(path))


def _require_file(owner: Any, endings: Sequence[str], otherwise: str) -> None:
    path = owner.path.path
    if not path.lower().endswith(tuple(endings)) or not Path(path).is_file():
        raise SettingError(
            "path", f"={shown(path)}: give an existing file that ends in {', '.join(endings)}{otherwise}"
        )


def _require_folder(owner: Any, name: str) -> None:
    path = getattr(owner, name)
    require(path and Path(path).expanduser().is_dir(), owner, name, "no such folder; set it to an existing one")


def _held_back(count: int, val: int, seed: tuple[int, int], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and `val` others."""
    if val >= count:
        raise SettingError(f"{what}.val_examples", f"={val} of {count} {what} leave none to train on")
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(count)
    return order[val:], order[:val]


@dataclass(frozen=True, kw_only=True)
class DataStage(Stage):
    """Data that depends on no other stage, so that `make` needs no store."""

    KEPT = False

    def preflight(self, store: Store) -> None:
        store.get(self)

    def make(self, store: Store | None = None) -> Any:
        raise NotImplementedError


class ClipSource(PretrainedClip):
    """A published CLIP with a tokenizer, parameters on the host."""

    def preflight(self, store: Store) -> None:
        with about("clip"):
            store.get(self)

    def make(self, store: Store | None = None) -> clip_jax.Clip:
        return clips.load(self.place, self.dtype)


# -- examples to train on -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ExamplesOfScenes(DataStage):
    """Examples drawn from Scenes."""

    train_examples: int
    val_examples: int
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        require_whole(self, "train_examples", "val_examples", most=scenes.LARGEST)

    def _draws(self, name: str) -> list[tuple[int, int]]:
        """(seed, examples) of both parts."""
        seed = world.derive(self.seed, name)
        return [(seed, self.train_examples), (seed + 1, self.val_examples)]


@dataclass(frozen=True, kw_only=True)
class CaptionsOfScenes(ExamplesOfScenes):
    """Captions, and the matcher of their keywords, which are by a rule in `rtd_jax.text.masking.RULES`."""

    keywords: str = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_known(self, "keywords", masking.RULES)

    def make(self, store: Store | None = None) -> tuple[list[str], list[str], masking.Matcher]:
        (seed, count), (val_seed, val_count) = self._draws("rtd.captions")
        train = [text for (text,) in scenes.pairs(seed, count, held_out=False).captions]
        val = [text for (text,) in scenes.pairs(val_seed, val_count, held_out=False, full=True).captions]
        return train, val, masking.create("lexicon", scenes.KEYWORDS, determiners=self.keywords == "published")


class ImagesOfScenes(ExamplesOfScenes):
    """Images."""

    def make(self, store: Store | None = None) -> tuple[Images, Images]:
        draw = lambda seed, n: scenes.pairs(seed, n, held_out=False, captions_per_image=0).images
        train, val = (draw(*part) for part in self._draws("rtd.images"))
        return train, val

    def words(self) -> list[str]:
        """The concepts that SEARLE may find in the images."""
        return sorted(scenes.KEYWORDS)


class TripletsOfScenes(ExamplesOfScenes):
    """Text triplets."""

    def make(self, store: Store | None = None) -> tuple[triplets.Triplets, triplets.Triplets]:
        parts = [scenes.triplets(*draw) for draw in self._draws("rtd.triplets")]
        train, val = (triplets.Triplets(part.references, part.modifications, part.targets) for part in parts)
        train = train.select([i for i in range(len(train)) if train.references[i] != train.targets[i]])
        triplets.check(train)
        return train, val


@dataclass(frozen=True, kw_only=True)
class CaptionsOfFile(DataStage):
    """Captions of a file, split by the seed, and the matcher of their keywords.

    Attributes:
      path, column: see `rtd_jax.text.captions.read`.
      matcher: of keywords; see `rtd_jax.text.masking.create`.
      keywords: a rule in `rtd_jax.text.masking.RULES`.
    """

    path: File
    column: str = "caption"
    matcher: str = "auto"
    keywords: str = "published"
    val_examples: int = 500
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_file(self, captions.ENDINGS, ", or take source 'scenes'")
        require_whole(self, "val_examples")
        require_known(self, "matcher", masking.MATCHERS)
        require_known(self, "keywords", masking.RULES)
        try:  # "auto" counts as what it means on this machine
            object.__setattr__(self, "matcher", masking.resolve(self.matcher))
        except ImportError as error:
            raise SettingError("matcher", f": {error}") from error

    def make(self, store: Store | None = None) -> tuple[list[str], list[str], masking.Matcher]:
        texts = captions.read(self.path.path, column=self.column)
        parts = _held_back(len(texts), self.val_examples, (self.seed, 0xCA), "captions")
        train, val = ([texts[row] for row in rows] for rows in parts)
        return train, val, masking.create(self.matcher, determiners=self.keywords == "published")


@dataclass(frozen=True, kw_only=True)
class ImagesOfFolder(DataStage):
    """Images of a folder and its subfolders, split by the seed."""

    path: str
    val_examples: int = 500
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_folder(self, "path")
        require_whole(self, "val_examples")

    def make(self, store: Store | None = None) -> tuple[Images, Images]:
        listing = folders.images(Path(self.path).expanduser())
        for note in listing.notes:
            logging.warning("%s", note)
        files = listing.paths
        parts = _held_back(len(files), self.val_examples, (self.seed, 0x1A), "images")
        train, val = ([files[row] for row in rows] for rows in parts)
        return train, val

    def words(self) -> list[str]:
        """The concepts that SEARLE may find in the images: the nouns of the built-in lexicon."""
        return sorted(word for word, kind in masking.lexicon().items() if kind.startswith("noun"))


@dataclass(frozen=True, kw_only=True)
class TripletsOfFile(DataStage):
    """Text triplets of a file, split by the seed; for path and skip_faulty see `rtd_jax.text.triplets.read`."""

    VERSION = 2

    path: File
    skip_faulty: bool = False
    val_examples: int = 1000
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_file(self, (".jsonl", ".json"), "; rtd_jax.text.generation makes one from captions")
        require_whole(self, "val_examples")

    def make(self, store: Store | None = None) -> tuple[triplets.Triplets, triplets.Triplets]:
        rows = triplets.read(self.path.path, skip_faulty=self.skip_faulty)
        return triplets.split(rows, self.val_examples, seed=self.seed)


CAPTIONS = {"file": CaptionsOfFile, "scenes": CaptionsOfScenes}
IMAGES = {"folder": ImagesOfFolder, "scenes": ImagesOfScenes}
TRIPLETS = {"file": TripletsOfFile, "scenes": TripletsOfScenes}


# -- benchmarks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneTask(DataStage):
    """Composed retrieval in a gallery of Scenes."""

    gallery: int
    queries: int
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        require_whole(self, "gallery", "queries", most=scenes.LARGEST)

    def preflight(self, store: Store) -> None:
        with about("evaluation.scenes"):
            store.get(self)

    def make(self, store: Store | None = None) -> RetrievalTask:
        seed = world.derive(self.seed, "rtd.retrieval")
        return scene_benchmark.load(seed, gallery=self.gallery, queries=self.queries)


@dataclass(frozen=True, kw_only=True)
class ReleasedTask(DataStage):
    """One task of a benchmark in the folders of its release.

    Attributes:
      benchmark: a name in `RELEASES`.
      root: its folder.
      split: a name in `SPLITS`; others than "val" have a test server.
      part: of a benchmark of several tasks, one in `PARTS`.
      images: the folder of GeneCIS' images, those that the part is about.
      skip_missing: leave out images whose files are missing, and the queries that need them.
      missing: a digest of the images that are left out, which the stage finds by itself: the result depends on them.
    """

    VERSION = 2

    benchmark: str
    root: str
    split: str = "val"
    part: str = ""
    images: str = ""
    skip_missing: bool = False
    missing: str = ""

    def __post_init__(self) -> None:
        _require_folder(self, "root")
        if self.benchmark == "genecis":
            _require_folder(self, "images")
        require_known(self, "split", SPLITS.get(self.benchmark, ("val",)))
        require(isinstance(self.skip_missing, bool), self, "skip_missing", "must be True or False")
        if self.skip_missing:
            object.__setattr__(self, "missing", _digest(RELEASES[self.benchmark](self)))

    def make(self, store: Store | None = None) -> RetrievalTask:
        task = RELEASES[self.benchmark](self)
        if _digest(task) != self.missing:
            raise InputError("other images are missing than when the run was planned", file=self.root)
        return task


def _digest(task: RetrievalTask) -> str:
    """Of the names of missing images; "" where none is."""
    names = "\0".join(map(os.fspath, task.missing))
    return hashlib.sha256(os.fsencode(names)).hexdigest() if names else ""


RELEASES = {
    "cirr": lambda task: cirr.load(task.root, task.split, skip_missing=task.skip_missing),
    "circo": lambda task: circo.load(task.root, task.split, skip_missing=task.skip_missing),
    "fashioniq": lambda task: fashioniq.load_category(task.root, task.part, skip_missing=task.skip_missing),
    "genecis": lambda task: genecis.load_task(task.root, task.part, task.images, skip_missing=task.skip_missing),
}
SPLITS = {"cirr": cirr.SPLITS, "circo": circo.SPLITS}
PARTS = {"fashioniq": fashioniq.CATEGORIES, "genecis": genecis.TASKS}
