"""The CLIP that a training starts from, a checkpoint or random parameters; and what embedding by one compiles."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import jax
from flax import traverse_util

import clip_jax
from clip_jax import embed, model, preprocess
from clip_jax.config import ClipConfig
from clip_jax.files import layouts
from clip_jax.tokenizer import Tokenizer, build
from launch.data import scenes
from launch.networks.dtypes import DTYPES
from launch.stages import File, SettingError, Stage, require_known, stackable
from launch.store import Store
from launch.training import keys
from launch.training.program import Pass
from launch.training.sharding import Device, Layout


@dataclass(frozen=True)
class PretrainedClip(Stage):
    """A checkpoint, its parameters on the host.

    Attributes:
      source: its folder, which counts by its files; or its name on the hub.
      precision: of the products that are computed with it, see `launch.processes.compiling`.
      dtype: of its parameters, activations and products, "float32" or "bfloat16", where it stays frozen; its embeddings
        are float32.
    """

    KEPT: ClassVar[bool] = False

    source: File | str
    precision: str = "default"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        require_known(self, "dtype", DTYPES)

    @classmethod
    def named(cls, name: str, precision: str = "default", dtype: str = "float32") -> Self:
        """What `clip_jax.load` takes by this name; raises what it raises."""
        place = clip_jax.located(name)
        return cls(place if isinstance(place, str) else File(str(place)), precision, dtype)

    @property
    def place(self) -> str:
        """The source, as `clip_jax.load` takes it."""
        return self.source.path if isinstance(self.source, File) else self.source

    def outline(self) -> clip_jax.Clip:
        """The CLIP with shapes in place of parameters."""
        return clip_jax.outline(self.place, dtype=self.dtype)

    def make(self, store: Store | None = None) -> clip_jax.Clip:
        del store
        return clip_jax.load(self.place, dtype=self.dtype, put=lambda path, leaf: leaf)


@dataclass(frozen=True)
class FreshClip(Stage):
    """A CLIP with random parameters, on the host.

    Attributes:
      architecture: its sizes; they fit the tokenizer.
      tokenizer: the checkpoint whose tokenizer it uses; None for one of Scenes' words.
      seed: of the parameters.
      precision: as of `PretrainedClip`.
    """

    KEPT: ClassVar[bool] = False

    architecture: ClipConfig
    tokenizer: PretrainedClip | None = None
    seed: int = stackable(0)
    precision: str = "default"

    def outline(self) -> clip_jax.Clip:
        """The CLIP with shapes in place of parameters."""
        shapes = traverse_util.unflatten_dict(dict(layouts.template(self.architecture)), sep="/")
        size = self.architecture.image.image_size
        words = words_of(self.tokenizer, self.architecture.text.context_length)
        return clip_jax.Clip(self.architecture, shapes, words, preprocess.Preprocessing(size=size, crop=size))

    def make(self, store: Store) -> clip_jax.Clip:
        del store
        params = jax.device_get(model.init(self.architecture, keys.stream(self.seed, "init")))
        return replace(self.outline(), params=params)


def words_of(source: PretrainedClip | None, context_length: int) -> Tokenizer:
    """The tokenizer of a checkpoint, or one of Scenes' words.

    Raises:
      SettingError: the checkpoint has no tokenizer, or one of another context length.
    """
    if source is None:
        return build(scenes.vocabulary(), context_length=context_length)
    words = source.outline().tokenizer
    if words is None or words.context_length != context_length:
        has = f"a context length of {words.context_length}" if words else "no tokenizer"
        problem = f": {source.place} has {has}; model.text.context_length={context_length}"
        raise SettingError("model.tokenizer_from", problem)
    return words


def image_pass(clip: clip_jax.Clip, batch_size: int, layout: Layout, *, count: int = 0) -> Pass:
    """Embedding images: a batch of every process, over all devices.

    Args:
      clip: an outline will do.
      batch_size: images of a process at a time.
      layout: over all devices.
      count: images; 0 if it is not known.
    """
    devices = list(layout.mesh.devices.flat)
    size = batch_size * _processes(devices)
    function, arguments = embed.image_outline(clip, size, devices)
    return Pass("images", function, arguments, -(-count // size))


def text_pass(
    clip: clip_jax.Clip, batch_size: int, layout: Layout, *, count: int = 0, pseudo_tokens: bool = False
) -> Pass:
    """The same for texts of the greatest length; with `pseudo_tokens`, each takes one."""
    devices = list(layout.mesh.devices.flat)
    size = batch_size * _processes(devices)
    function, arguments = embed.text_outline(clip, size, devices, pseudo_tokens=pseudo_tokens)
    return Pass("texts with pseudo tokens" if pseudo_tokens else "texts", function, arguments, -(-count // size))


def _processes(devices: Sequence[Device]) -> int:
    return len({device.process_index for device in devices})
