"""Train a CLIP on images with captions, from scratch or from a checkpoint, keep the best on validation, evaluate it.

Configs: `configs/clip/`. Method: Radford et al. 2021, https://arxiv.org/abs/2103.00020. The trained CLIP is the folder
`clip` of the run directory, for `clip_jax.load` and transformers.
"""

from dataclasses import dataclass
from pathlib import Path

import clip_jax
from clip_jax.config import ACTIVATIONS, DTYPES, ClipConfig, ImageTower, TextTower
from clip_jax.training import sources
from clip_jax.training.clips import FreshClip, PretrainedClip, words_of
from clip_jax.training.options import Composition, Computation
from clip_jax.training.results import describe
from clip_jax.training.stages import CaptionFile, CaptionSplit, ClipEvaluation, ClipTraining, Pairs, ScenesPairs
from launch.data import scenes
from launch.data.scenes import world
from launch.processes import compiling
from launch.reading import paths
from launch.stages import File, SettingError, about, require, require_known, require_number, section, setting, settings
from launch.store import Store

__all__ = ["checkpoint_folder", "describe", "leave", "plan"]

NAMES = ("captions", "scenes")
_WIDEST = 65_536  # of all sizes of a model


@dataclass(frozen=True)
class DataSettings:
    """The section `data`; its fields are explained in configs/clip/base.py."""

    name: str
    val_examples: int
    test_examples: int
    train_examples: int
    captions_per_image: int
    evaluation_seed: int
    alike: tuple[tuple[str, ...], ...]
    group: int
    path: str
    val_path: str
    test_path: str
    images: str
    image_column: str
    caption_column: str
    workers: int

    def __post_init__(self) -> None:
        require_known(self, "name", NAMES)
        require_number(self, "evaluation_seed", "workers", least=0)
        require_number(self, "val_examples", "test_examples", "train_examples", most=scenes.LARGEST)
        require_number(self, "captions_per_image", most=1000)
        for name in ("val_examples", "test_examples"):
            problem = "hold out at least 2: the best checkpoint is chosen on val_examples and measured on test_examples"
            require(getattr(self, name) >= 2, self, name, problem)
        if self.name == "scenes":
            for name in ("train_examples", "captions_per_image"):
                require(getattr(self, name) >= 1, self, name, "must be positive")

    def composition(self) -> Composition:
        with section("data"):
            return Composition(tuple(map(tuple, self.alike)), self.group)

    def splits(self, seed: int) -> tuple[Pairs, Pairs, Pairs]:
        """Training, validation and test set."""
        return self._scenes(seed) if self.name == "scenes" else self._captions(seed)

    def _scenes(self, seed: int) -> tuple[Pairs, Pairs, Pairs]:
        """Tested on held-out compositions; validation and test set are the same for all seeds."""
        evaluation_seed = world.derive(self.evaluation_seed, "clip.evaluation")
        val = ScenesPairs(self.val_examples, complete=True, seed=evaluation_seed)
        test = ScenesPairs(self.test_examples, held_out=True, complete=True, seed=evaluation_seed)
        for name, pairs in (("data.val_examples", val), ("data.test_examples", test)):
            with about(name):
                pairs.attributes()  # there may be fewer compositions
        return ScenesPairs(self.train_examples, captions_per_image=self.captions_per_image, seed=seed), val, test

    def _captions(self, seed: int) -> tuple[Pairs, Pairs, Pairs]:
        """Validation and test set from their own files, or else held out of the training file."""
        train = self._file("path")
        parts = {}
        for split, examples in (("val", self.val_examples), ("test", self.test_examples)):
            own_file = f"{split}_path"
            source = self._file(own_file) if getattr(self, own_file) else train
            parts[split] = CaptionSplit(source, split, examples, seed=seed)
            if source is train:
                train = CaptionSplit(source, split, examples, remaining=True, seed=seed)
        return train, parts["val"], parts["test"]

    def _file(self, name: str) -> CaptionFile:
        with about(f"data.{name}"):
            path = paths.file(getattr(self, name), "", endings=sources.ENDINGS)
        with about("data.images"):
            folder = paths.folder(self.images, "") if self.images else path.parent
        return CaptionFile(File(str(path)), str(folder.absolute()), self.image_column, self.caption_column)


@dataclass(frozen=True)
class ImageSizes:
    """The section `model.image`; see `clip_jax.config.ImageTower`."""

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        require_number(self, *vars(self), least=1, most=_WIDEST)


@dataclass(frozen=True)
class TextSizes:
    """The section `model.text`; see `clip_jax.config.TextTower`."""

    context_length: int
    width: int
    layers: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        require_number(self, *vars(self), least=1, most=_WIDEST)
        require_number(self, "context_length", least=3)  # a token between start and end


@dataclass(frozen=True)
class ModelSettings:
    """The section `model`; its fields are explained in configs/clip/base.py."""

    dtype: str
    remat: str
    unroll: bool
    tokenizer_from: str
    projection: int
    activation: str
    image: ImageSizes
    text: TextSizes

    def __post_init__(self) -> None:
        require_number(self, "projection", least=1, most=_WIDEST)
        require_known(self, "activation", ACTIVATIONS)

    def computation(self) -> Computation:
        with section("model"):
            return Computation(self.dtype, self.remat, self.unroll)

    def fresh(self, seed: int, precision: str) -> FreshClip:
        """A CLIP of these sizes; its vocabulary is that of its tokenizer."""
        with about("model.tokenizer_from"):
            source = PretrainedClip.named(self.tokenizer_from) if self.tokenizer_from else None
            words = words_of(source, self.text.context_length)
        shared = dict(activation=self.activation, norm_eps=1e-5)
        with about("model.image"):
            image = ImageTower(**shared, **vars(self.image))
        with about("model.text"):
            text = TextTower(
                **shared,
                **vars(self.text),
                vocab_size=words.vocab_size,
                end_rule="eos_token_id",
                eos_token_id=words.end_id,
                bos_token_id=words.start_id,
                pad_token_id=words.pad_id,
            )
        with about("model"):
            config = ClipConfig(image=image, text=text, projection=self.projection)
        return FreshClip(config, source, seed, precision)


def plan(config) -> ClipEvaluation:
    """The stages of a config.

    Raises:
      SettingError: a setting cannot be used.
    """
    data = settings(DataSettings, config, "data")
    parts = settings(ModelSettings, config, "model")
    seed, source = setting(config, "seed", int, least=0), setting(config, "init_from", str)
    precision = compiling.precision_of(config)
    train, val, test = data.splits(seed)
    with about("init_from"):
        start = PretrainedClip.named(source, precision) if source else None
    if start is None and data.name != "scenes" and not parts.tokenizer_from:
        raise SettingError(
            "model.tokenizer_from",
            f": a fresh CLIP on data.name={data.name!r} needs a tokenizer: name a checkpoint that has one, or set "
            "init_from to fine-tune a checkpoint",
        )
    training = settings(
        ClipTraining,
        config,
        clip=start or parts.fresh(seed, precision),
        train=train,
        val=val,
        composition=data.composition(),
        computation=parts.computation(),
        workers=data.workers,
        evaluation_batch_size=setting(config, "evaluation.batch_size", int, least=1),
    )
    training.check()
    dtype = setting(config, "checkpoint_dtype", str, known=DTYPES)
    return ClipEvaluation(training, test, training.evaluation_batch_size, dtype)


def checkpoint_folder(workdir: str | Path) -> Path:
    """The folder of a finished run's CLIP."""
    return Path(workdir) / "clip"


def leave(folder: str | Path, root: ClipEvaluation, store: Store) -> None:
    """Write the trained CLIP into the run directory."""
    clip_jax.save(root.training.trained(store), checkpoint_folder(folder), dtype=root.checkpoint_dtype)
