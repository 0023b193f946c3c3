"""Data as stages: the CLIP, captions, images and triplets to train on, and the tasks of the benchmarks.

Texts and images come from files or from Scenes. None of them is written to the store: they are read again, or drawn
again. A text file counts by its content, a folder of images and a benchmark by its path.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np

import clip_jax
from clip_jax.embed import list_images
from launch.data import scenes
from launch.data.scenes import world
from launch.stages import File, SettingError, Stage, require, require_known, stackable
from launch.store import Store
from rtd_jax import clips
from rtd_jax.benchmarks import circo, cirr, fashioniq, genecis
from rtd_jax.benchmarks import scenes as scenes_benchmark
from rtd_jax.benchmarks.task import Task
from rtd_jax.text import captions, masking, triplets

Images = Sequence[Path] | np.ndarray


class CaptionSets(NamedTuple):
    """Captions to train φ on, others to validate on, and what finds their keywords."""

    train: Sequence[str]
    val: Sequence[str]
    matcher: masking.Matcher


class ImageSets(NamedTuple):
    """Images to train φ on, and others to validate on."""

    train: Images
    val: Images


class TripletSets(NamedTuple):
    """Triplets to train on, and others to validate on."""

    train: triplets.Triplets
    val: triplets.Triplets


@dataclass(frozen=True, kw_only=True)
class DataStage(Stage):
    """Data that is read or drawn again wherever it is needed; it stands on no other stage."""

    KEPT = False

    def load(self) -> Any:
        """The data."""
        raise NotImplementedError(f"{type(self).__name__} has no load()")

    def make(self, store: Store | None = None) -> Any:
        return self.load()


def file_setting(path: str) -> File:
    """A file that a setting names."""
    return File(os.path.expanduser(path))


def _require_file(owner: Any, name: str, endings: Sequence[str], otherwise: str) -> None:
    path = getattr(owner, name).path
    if not path.lower().endswith(tuple(endings)) or not Path(path).is_file():
        raise SettingError(name, f"={path!r}: give an existing file that ends in {', '.join(endings)}{otherwise}")


def _require_folder(owner: Any, name: str, what: str) -> None:
    path = getattr(owner, name)
    require(path and Path(path).expanduser().is_dir(), owner, name, f"no such folder; set it to {what}")


def _require_counts(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(whole, owner, name, "must be a whole number, at least 1")


@dataclass(frozen=True, kw_only=True)
class ClipSource(DataStage):
    """A CLIP as it was published, parameters on the host.

    Attributes:
      checkpoint: its folder, which counts by content, or its name on the hub.
    """

    checkpoint: File | str

    @classmethod
    def named(cls, name: str) -> "ClipSource":
        """The CLIP of a folder, a hub name, or "embedded:scenes".

        Raises:
          SettingError: there is no such folder, and it is no hub name.
        """
        try:
            folder = clips.locate(name)
        except ValueError as error:
            raise SettingError("clip", f": {error}") from error
        return cls(checkpoint=name if folder is None else File(str(folder)))

    def load(self) -> clip_jax.Clip:
        return clips.load(self._name)

    def shapes(self) -> clip_jax.Clip:
        """The CLIP with the shapes of its parameters in place of arrays."""
        return clips.load(self._name, put=lambda path, leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))

    @property
    def _name(self) -> str:
        return self.checkpoint.path if isinstance(self.checkpoint, File) else self.checkpoint


# -- captions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneCaptions(DataStage):
    """Captions of Scenes."""

    train_examples: int = 20_000
    val_examples: int = 500
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_counts(self, "train_examples", "val_examples")

    def load(self) -> CaptionSets:
        seed = world.derive(self.seed, "rtd.captions")
        train = [text for (text,) in scenes.pairs(seed, self.train_examples, held_out=False).captions]
        val = [text for (text,) in scenes.pairs(seed + 1, self.val_examples, held_out=False, full=True).captions]
        return CaptionSets(train, val, masking.create("lexicon", scenes.KEYWORDS))

    def size(self) -> int:
        """The number of captions to train on."""
        return self.train_examples


@dataclass(frozen=True, kw_only=True)
class CaptionFile(DataStage):
    """Captions of a file, split by the seed.

    Attributes:
      path: see `rtd_jax.text.captions.read`.
      column: key or column of the captions.
      matcher: of keywords; see `rtd_jax.text.masking.create`.
      val_examples: captions held back for validation.
      seed: of the split.
    """

    path: File
    column: str = "caption"
    matcher: str = "auto"
    val_examples: int = 500
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_file(self, "path", captions.ENDINGS, ", or take source 'scenes'")
        _require_counts(self, "val_examples")
        require_known(self, "matcher", masking.MATCHERS)
        try:  # "auto" counts as what it means here
            object.__setattr__(self, "matcher", masking.resolve(self.matcher))
        except ImportError as error:
            raise SettingError("matcher", f": {error}") from error

    def load(self) -> CaptionSets:
        texts = captions.read(self.path.path, column=self.column)
        train, val = _held_back(len(texts), self.val_examples, (self.seed, 0xCA), "captions")
        select = lambda rows: [texts[i] for i in rows]
        return CaptionSets(select(train), select(val), masking.create(self.matcher))

    def size(self) -> int:
        """The number of captions to train on."""
        return len(self.load().train)


def _held_back(count: int, val: int, seed: tuple[int, int], what: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and `val` others."""
    if val >= count:
        raise SettingError(f"{what}.val_examples", f"={val} of {count} {what} leave none to train on")
    order = np.random.default_rng(np.random.SeedSequence(seed)).permutation(count)
    return order[val:], order[:val]


# -- images ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneImages(DataStage):
    """Images of Scenes."""

    train_examples: int = 5000
    val_examples: int = 500
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_counts(self, "train_examples", "val_examples")

    def load(self) -> ImageSets:
        seed = world.derive(self.seed, "rtd.images")
        parts = ((seed, self.train_examples), (seed + 1, self.val_examples))
        return ImageSets(*(scenes.pairs(s, n, held_out=False, captions_per_image=0).images for s, n in parts))

    def size(self) -> int:
        """The number of images to train on."""
        return self.train_examples

    def words(self) -> list[str]:
        """The concepts that SEARLE may find in the images."""
        return sorted(scenes.KEYWORDS)


@dataclass(frozen=True, kw_only=True)
class ImageFolder(DataStage):
    """Images of a folder and its subfolders, split by the seed."""

    path: str
    val_examples: int = 500
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_folder(self, "path", "a folder of images, or take source 'scenes'")
        _require_counts(self, "val_examples")

    def load(self) -> ImageSets:
        files = list_images(Path(self.path).expanduser())
        train, val = _held_back(len(files), self.val_examples, (self.seed, 0x1A), "images")
        return ImageSets([files[i] for i in train], [files[i] for i in val])

    def size(self) -> int:
        """The number of images to train on."""
        return len(self.load().train)

    def words(self) -> list[str]:
        """The concepts that SEARLE may find in the images: the nouns of the built-in lexicon."""
        return sorted(word for word, kind in masking.lexicon().items() if kind.startswith("noun"))


# -- triplets -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneTriplets(DataStage):
    """Text triplets of Scenes."""

    train_examples: int = 8000
    val_examples: int = 1000
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_counts(self, "train_examples", "val_examples")

    def load(self) -> TripletSets:
        seed = world.derive(self.seed, "rtd.triplets")
        parts = [scenes.triplets(seed + i, n) for i, n in enumerate((self.train_examples, self.val_examples))]
        train, val = (triplets.Triplets(part.references, part.modifications, part.targets) for part in parts)
        train = train.select([i for i in range(len(train)) if train.references[i] != train.targets[i]])
        triplets.check(train)
        return TripletSets(train, val)


@dataclass(frozen=True, kw_only=True)
class TripletFile(DataStage):
    """Text triplets of a file, split by the seed.

    Attributes:
      path: see `rtd_jax.text.triplets.read`.
      skip_faulty: leave out lines that cannot be used, instead of stopping at the first.
      val_examples: triplets held back for validation.
      seed: of the split.
    """

    path: File
    skip_faulty: bool = False
    val_examples: int = 1000
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_file(self, "path", (".jsonl", ".json"), "; rtd_jax.text.generation makes one from captions")
        _require_counts(self, "val_examples")

    def load(self) -> TripletSets:
        rows = triplets.read(self.path.path, skip_faulty=self.skip_faulty)
        return TripletSets(*triplets.split(rows, self.val_examples, seed=self.seed))


# -- benchmarks -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class SceneTask(DataStage):
    """Composed retrieval in a gallery of Scenes."""

    gallery: int = 1500
    queries: int = 1000
    seed: int = stackable(0)

    def __post_init__(self) -> None:
        _require_counts(self, "gallery", "queries")

    def load(self) -> Task:
        seed = world.derive(self.seed, "rtd.retrieval")
        return scenes_benchmark.load(seed, gallery=self.gallery, queries=self.queries)


@dataclass(frozen=True, kw_only=True)
class FolderTask(DataStage):
    """A benchmark in the folders of its release; it counts by its path and split.

    Attributes:
      root: its folder.
      split: "val", or one whose answers a test server knows.
    """

    SPLITS: ClassVar[tuple[str, ...]] = ("val",)

    root: str
    split: str = "val"

    def __post_init__(self) -> None:
        _require_folder(self, "root", "the folder of the benchmark's release")
        require_known(self, "split", self.SPLITS)


@dataclass(frozen=True, kw_only=True)
class CirrTask(FolderTask):
    """CIRR."""

    SPLITS: ClassVar[tuple[str, ...]] = cirr.SPLITS

    def load(self) -> Task:
        return cirr.load(self.root, self.split)


@dataclass(frozen=True, kw_only=True)
class CircoTask(FolderTask):
    """CIRCO."""

    SPLITS: ClassVar[tuple[str, ...]] = circo.SPLITS

    def load(self) -> Task:
        return circo.load(self.root, self.split)


@dataclass(frozen=True, kw_only=True)
class FashioniqTask(FolderTask):
    """One category of FashionIQ."""

    category: str

    def load(self) -> Task:
        return fashioniq.load_category(self.root, self.category)


@dataclass(frozen=True, kw_only=True)
class GenecisTask(DataStage):
    """One of GeneCIS' four tasks.

    Attributes:
      root: the folder of the templates.
      images: the folder of Visual Genome's or COCO's images, whichever the task is about.
      task: its name.
    """

    root: str
    images: str
    task: str

    def __post_init__(self) -> None:
        _require_folder(self, "root", "the folder of the templates")
        _require_folder(self, "images", "the folder of the images that the templates name")

    def load(self) -> Task:
        return genecis.load_task(self.root, self.task, self.images)


CAPTIONS = {"file": CaptionFile, "scenes": SceneCaptions}
IMAGES = {"folder": ImageFolder, "scenes": SceneImages}
TRIPLETS = {"file": TripletFile, "scenes": SceneTriplets}
