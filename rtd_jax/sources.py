"""Where a run's texts and images come from: files, or Scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import clip_jax
from clip_jax.embed import list_images
from launch.data import scenes
from launch.data.scenes import world
from rtd_jax.benchmarks import circo, cirr, fashioniq, genecis
from rtd_jax.benchmarks import scenes as scenes_benchmark
from rtd_jax.benchmarks.task import Task
from rtd_jax.text import captions, masking
from rtd_jax.text.triplets import Triplets, check, read, split

BENCHMARKS = ("cirr", "circo", "fashioniq", "genecis", "scenes")
EMBEDDED = "embedded:"


@dataclass(frozen=True, eq=False)
class Texts:
    """Captions for φ: those to train on, and others to validate on."""

    train: Sequence[str]
    val: Sequence[str]


def clip(name: str) -> clip_jax.Clip:
    """The CLIP of a folder, a hub name, or "embedded:scenes"; parameters on the host.

    Raises:
      FileNotFoundError: it came without tokenizer files.
    """
    source = clip_jax.embedded(name.removeprefix(EMBEDDED)) if name.startswith(EMBEDDED) else name
    found = clip_jax.load(source, put=lambda path, leaf: leaf)
    if found.tokenizer is None:
        raise FileNotFoundError(f"clip={name!r} came without tokenizer files: modifications are text")
    return found


def texts(config, *, seed: int) -> tuple[Texts, masking.Matcher]:
    """Captions by `config` (`config.captions` of a run), and what finds their keywords.

    Raises:
      ValueError: an unknown source, or fewer captions than are held back.
    """
    if config.source == "scenes":
        own = world.derive(seed, "rtd.captions")
        found = [text for (text,) in scenes.pairs(own, config.train_examples, held_out=False).captions]
        val = [text for (text,) in scenes.pairs(own + 1, config.val_examples, held_out=False, full=True).captions]
        return Texts(found, val), masking.create("lexicon", scenes.KEYWORDS)
    if config.source != "file":
        raise ValueError(f"captions.source={config.source!r}: there are file, scenes")
    found = captions.read(config.path, column=config.column)
    if config.val_examples >= len(found):
        raise ValueError(f"captions.val_examples={config.val_examples} of {len(found)} captions leave none to train on")
    order = np.random.default_rng(np.random.SeedSequence((seed, 0xCA))).permutation(len(found))
    val, train = order[: config.val_examples], order[config.val_examples :]
    return Texts([found[i] for i in train], [found[i] for i in val]), masking.create(config.matcher)


def images(config, *, seed: int) -> tuple[Sequence[Path] | np.ndarray, Sequence[Path] | np.ndarray]:
    """Images to train φ on, and others to validate on, by `config` (`config.images` of a run).

    Raises:
      ValueError: an unknown source, or fewer images than are held back.
    """
    if config.source == "scenes":
        own = world.derive(seed, "rtd.images")
        parts = ((own, config.train_examples), (own + 1, config.val_examples))
        train, val = (scenes.pairs(s, n, held_out=False, captions_per_image=0).images for s, n in parts)
        return train, val
    if config.source != "folder":
        raise ValueError(f"images.source={config.source!r}: there are folder, scenes")
    found = list_images(config.path)
    if config.val_examples >= len(found):
        raise ValueError(f"images.val_examples={config.val_examples} of {len(found)} images leave none to train on")
    order = np.random.default_rng(np.random.SeedSequence((seed, 0x1A))).permutation(len(found))
    return [found[i] for i in order[config.val_examples :]], [found[i] for i in order[: config.val_examples]]


def triplets(config, *, seed: int) -> tuple[Triplets, Triplets]:
    """Triplets to train and to validate on, by `config` (`config.triplets` of a run), checked.

    Raises:
      ValueError: an unknown source, or too few.
    """
    if config.source == "scenes":
        own = world.derive(seed, "rtd.triplets")
        parts = [scenes.triplets(own + i, n) for i, n in enumerate((config.train_examples, config.val_examples))]
        train, val = (Triplets(part.references, part.modifications, part.targets) for part in parts)
        train = train.select([i for i in range(len(train)) if train.references[i] != train.targets[i]])
        check(train)
        return train, val
    if config.source != "file":
        raise ValueError(f"triplets.source={config.source!r}: there are file, scenes")
    return split(read(config.path, skip_faulty=config.skip_faulty), config.val_examples, seed=seed)


def tasks(config, *, seed: int) -> list[Task]:
    """The benchmarks of `config` (`config.evaluation` of a run): `benchmarks`, `roots`, `splits`.

    Raises:
      ValueError: an unknown one, or one without its folder.
    """
    found: list[Task] = []
    for name in config.benchmarks:
        if name not in BENCHMARKS:
            raise ValueError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
        if name == "scenes":
            own = world.derive(seed, "rtd.retrieval")
            found.append(scenes_benchmark.load(own, gallery=config.scenes.gallery, queries=config.scenes.queries))
            continue
        root = config.roots[name]
        if not root:
            raise ValueError(f"evaluation.benchmarks names {name!r}: set evaluation.roots.{name} to its folder")
        if name == "genecis":
            found += genecis.load(root, images=config.genecis_images)
        elif name == "fashioniq":
            found += fashioniq.load(root, config.splits[name])
        else:
            found.append({"cirr": cirr, "circo": circo}[name].load(root, config.splits[name]))
    return found
