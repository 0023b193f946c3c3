"""The architecture of a CLIP as frozen data, and the published variants; `files.config_files` reads and writes it.

A config is hashable, so it can be a static argument of a jitted function. Every field that changes a number is
explicit: the activation, the epsilon of layer norms, and the rule that finds the end of a text.
"""

import math
from dataclasses import dataclass
from typing import Any

from jax.sharding import NamedSharding

from launch.reading import shown

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_tanh")
END_RULES = ("largest_id", "eos_token_id")
DTYPES = ("float32", "bfloat16", "float16", "float64")
HALF = ("bfloat16", "float16")
ATTENTIONS = ("xla", "cudnn")
DEEP = 24  # blocks of a tower from which both are recomputed unless told otherwise: ViT-L/14's images
_MOST, _MOST_LAYERS = 1 << 24, 1 << 10  # of a damaged file: larger sizes would only take long to be found wrong


def _check_known(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise ValueError(f"unknown {kind} {name!r}; valid names: {', '.join(map(repr, known))}")


def is_whole(value: Any) -> bool:
    """Whether a value is an integer; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _check_positive(owner: Any, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {shown(value)}")
        most = _MOST_LAYERS if name == "layers" else _MOST
        if value > most:
            raise ValueError(f"{name} must be at most {most:,}, got {shown(value)}")


@dataclass(frozen=True, kw_only=True)
class Tower:
    """A pre-norm transformer (Radford et al. 2021, section 2.4).

    Attributes:
      width: of the residual stream.
      layers: number of blocks.
      heads: attention heads, `width // heads` wide each.
      mlp_width: hidden width of the blocks' perceptrons.
      activation: "quick_gelu" (x sigmoid(1.702 x)), "gelu" (with erf) or "gelu_tanh".
      norm_eps: of every layer norm.

    Raises:
      ValueError: the fields contradict each other.
    """

    width: int
    layers: int
    heads: int
    mlp_width: int
    activation: str
    norm_eps: float

    def __post_init__(self):
        _check_known("activation", self.activation, ACTIVATIONS)
        _check_positive(self, "width", "layers", "heads", "mlp_width")
        if not isinstance(self.norm_eps, float) or not 0 < self.norm_eps < math.inf:
            raise ValueError(f"norm_eps must be a positive number, got {shown(self.norm_eps)}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not divisible by {self.heads} heads")


@dataclass(frozen=True, kw_only=True)
class ImageTower(Tower):
    """A vision transformer over square, three-channel images.

    Attributes:
      image_size: side of the image in pixels.
      patch_size: side of a patch in pixels; divides `image_size`.
    """

    image_size: int
    patch_size: int

    def __post_init__(self):
        super().__post_init__()
        _check_positive(self, "image_size", "patch_size")
        if self.image_size % self.patch_size:
            raise ValueError(f"image size {self.image_size} is not divisible by patch size {self.patch_size}")

    @property
    def tokens(self) -> int:
        """Patches and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True, kw_only=True)
class TextTower(Tower):
    """A causal text transformer, pooled at the text's end token.

    Attributes:
      vocab_size: number of token embeddings.
      context_length: number of position embeddings, the longest text.
      end_rule: where a text ends: "largest_id", at the first of its largest ids (OpenAI's rule, correct if the end
        token is the vocabulary's last); "eos_token_id", at the first `eos_token_id`.
      eos_token_id: the end token under the rule "eos_token_id"; None under "largest_id", which needs no id.
      bos_token_id: kept for the config file, the model does not use it.
      pad_token_id: kept for the config file, the model does not use it.
    """

    vocab_size: int
    context_length: int
    end_rule: str
    eos_token_id: int | None = None
    bos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self):
        super().__post_init__()
        _check_known("end_rule", self.end_rule, END_RULES)
        _check_positive(self, "vocab_size", "context_length")
        if self.end_rule == "largest_id" and self.eos_token_id is not None:
            raise ValueError(f"end_rule 'largest_id' uses no id: eos_token_id must be None, got {self.eos_token_id}")
        if self.end_rule == "eos_token_id":
            if not is_whole(self.eos_token_id):
                raise ValueError(f"end_rule 'eos_token_id' needs one eos_token_id, got {shown(self.eos_token_id)}")
            if not 0 <= (self.eos_token_id or 0) < self.vocab_size:
                raise ValueError(
                    f"eos_token_id={shown(self.eos_token_id)} is outside the vocabulary of {self.vocab_size}"
                )


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Two towers, and how to compute them.

    Attributes:
      image: the image tower.
      text: the text tower.
      projection: width of the shared embedding space.
      dtype: of the activations and matrix products; softmax, layer norms and pooling are float32 at least.
      remat: recompute each block in the backward pass instead of keeping its activations (`jax.checkpoint`); None: if
        a tower has at least `DEEP` blocks.
      unroll: blocks per iteration of the loop over the layers (`jax.lax.scan`); True, stored as a number, for all.
      attention: what computes it: "xla", or "cudnn", on GPUs in half precision; see `clip_jax.attention.fastest`.
      stream: where the towers' states (b, n, w) lie, see `clip_jax.sharding.spread`; None: where XLA puts them.
    """

    image: ImageTower
    text: TextTower
    projection: int
    dtype: str = "float32"
    remat: bool | None = None
    unroll: int | bool = 1
    attention: str = "xla"
    stream: NamedSharding | None = None

    def __post_init__(self):
        _check_known("dtype", self.dtype, DTYPES)
        _check_known("attention", self.attention, ATTENTIONS)
        if self.attention == "cudnn" and self.dtype not in HALF:
            raise ValueError(f"attention 'cudnn' needs dtype {' or '.join(HALF)}, got {self.dtype}")
        if isinstance(self.unroll, bool):  # True equals 1, and equal configs share compiled programs
            object.__setattr__(self, "unroll", max(self.image.layers, self.text.layers) if self.unroll else 1)
        _check_positive(self, "projection", "unroll")

    @property
    def recomputes(self) -> bool:
        """Whether the towers' blocks are computed again in the backward pass."""
        return max(self.image.layers, self.text.layers) >= DEEP if self.remat is None else self.remat


# -- published variants -----------------------------------------------------------------------


def _vit(
    patch: int,
    image: tuple[int, int, int],
    text: tuple[int, int, int],
    projection: int,
    *,
    activation: str = "quick_gelu",
    image_size: int = 224,
    image_mlp: int | None = None,
    eos_token_id: int | None = None,
) -> ClipConfig:
    """A vision transformer CLIP; `image` and `text` are (width, layers, heads)."""

    def tower(width: int, layers: int, heads: int, mlp: int | None = None) -> dict[str, Any]:
        mlp = mlp or 4 * width
        return {
            "width": width,
            "layers": layers,
            "heads": heads,
            "mlp_width": mlp,
            "activation": activation,
            "norm_eps": 1e-5,
        }

    return ClipConfig(
        image=ImageTower(**tower(*image, image_mlp), image_size=image_size, patch_size=patch),
        text=TextTower(
            **tower(*text),
            vocab_size=49408,
            context_length=77,
            end_rule="largest_id" if eos_token_id is None else "eos_token_id",
            eos_token_id=eos_token_id,
            bos_token_id=49406,
            pad_token_id=1,
        ),
        projection=projection,
    )


_BASE, _LARGE, _HUGE = (768, 12, 12), (1024, 24, 16), (1280, 32, 16)  # image towers
# OpenAI's four and MetaCLIP's use the quick gelu, LAION's (H/14, bigG/14) the exact one. MetaCLIP's files leave out the
# end token and so have transformers' default; the others carry the id that means "largest_id".
VARIANTS: dict[str, ClipConfig] = {
    "ViT-B/32": _vit(32, _BASE, (512, 12, 8), 512),
    "ViT-B/16": _vit(16, _BASE, (512, 12, 8), 512),
    "ViT-L/14": _vit(14, _LARGE, (768, 12, 12), 768),
    "ViT-L/14@336": _vit(14, _LARGE, (768, 12, 12), 768, image_size=336),
    "ViT-H/14": _vit(14, _HUGE, (1024, 24, 16), 1024, activation="gelu"),
    "ViT-bigG/14": _vit(14, (1664, 48, 16), (1280, 32, 20), 1280, activation="gelu", image_mlp=8192),
    "MetaCLIP-B/32": _vit(32, _BASE, (512, 12, 8), 512, eos_token_id=49407),
    "MetaCLIP-B/16": _vit(16, _BASE, (512, 12, 8), 512, eos_token_id=49407),
    "MetaCLIP-L/14": _vit(14, _LARGE, (768, 12, 12), 768, eos_token_id=49407),
    "MetaCLIP-H/14": _vit(14, _HUGE, (1024, 24, 16), 1024, eos_token_id=49407),
}
