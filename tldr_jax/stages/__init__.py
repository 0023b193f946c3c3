"""The stages of a run: what is made from what.

    ImageSplit ──── Erm ──── Features ──┬─ ImageMoments ── LinearProjector ──┬─ KeptWords ── Heads ── Comparison
        └────────── ClipImages ─────────┘                     │              │
    FrozenClip ───────┴──── Gap ──────────────────────────────┘              │
        └────────── EmbeddedWords ───────────────────────────────────────────┘

`images` has data, classifier and the two views of every image, `text` the method (gap, projector, words, heads),
`comparison` the baselines and the numbers of all.
"""

from tldr_jax.stages.comparison import (
    Afr,
    Baseline,
    ClassBalanced,
    Comparison,
    Dfr,
    Diagnostics,
    ErmHead,
    ZeroShot,
)
from tldr_jax.stages.images import Augmentation, ClipImages, Erm, Features, FrozenClip, ImageSplit, Pretraining
from tldr_jax.stages.text import (
    EmbeddedWords,
    Gap,
    Heads,
    ImageMoments,
    KeptWords,
    LinearProjector,
    NetworkFit,
    NetworkProjector,
)

__all__ = [
    "Afr",
    "Augmentation",
    "Baseline",
    "ClassBalanced",
    "ClipImages",
    "Comparison",
    "Dfr",
    "Diagnostics",
    "EmbeddedWords",
    "Erm",
    "ErmHead",
    "Features",
    "FrozenClip",
    "Gap",
    "Heads",
    "ImageMoments",
    "ImageSplit",
    "KeptWords",
    "LinearProjector",
    "NetworkFit",
    "NetworkProjector",
    "Pretraining",
    "ZeroShot",
]
