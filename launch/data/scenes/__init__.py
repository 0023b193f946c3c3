"""Scenes: a small procedural world of images with captions and all attributes, for runs without a download.

    pairs = scenes.pairs(0, 24_000, held_out=False, captions_per_image=2)     # images, captions, attributes
    fresh = scenes.captions(pairs.attributes, seed=1)                         # the same scenes in other words
    texts = scenes.prompts("shape", "star")                                   # "a photo of a star", …
    data = scenes.classification(0)             # curved or angular, with a spurious background; groups beside it
    benchmark = scenes.retrieval(0)             # composed retrieval; its training texts: scenes.triplets(0, 8_000)

`world` has the attributes and their values, `rendering` draws them (`shapes`, `textures`), `language` and `edits`
describe them in words, and `tasks` makes data sets.
`python -m launch.data.scenes --out FILE.png` draws a contact sheet.
"""

from launch.data.scenes.edits import modifications
from launch.data.scenes.language import captions
from launch.data.scenes.rendering import IMAGE_SIZE, render
from launch.data.scenes.tasks import (
    LARGEST,
    SceneClassification,
    ScenePairs,
    SceneRetrieval,
    SceneTriplets,
    classification,
    compositions,
    pairs,
    retrieval,
    triplets,
)
from launch.data.scenes.world import ATTRIBUTES, SYNONYMS, held_out
from launch.data.scenes.zeroshot import KEYWORDS, MAX_WORDS, prompts, vocabulary

__all__ = [
    "ATTRIBUTES",
    "IMAGE_SIZE",
    "KEYWORDS",
    "LARGEST",
    "MAX_WORDS",
    "SYNONYMS",
    "SceneClassification",
    "ScenePairs",
    "SceneRetrieval",
    "SceneTriplets",
    "captions",
    "classification",
    "compositions",
    "held_out",
    "modifications",
    "pairs",
    "prompts",
    "render",
    "retrieval",
    "triplets",
    "vocabulary",
]
