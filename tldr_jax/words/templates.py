"""Prompt templates as data: the texts that a word is put into before CLIP sees it."""

import dataclasses
import re

from launch.stages import free

# The 80 templates of CLIP's published notebook "Prompt engineering for ImageNet", in its order and its spelling.
IMAGENET = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
_SCENES_OPENINGS = ("", "a photo of ", "a picture of ", "an image of ", "this is ", "here is ", "there is ")


@dataclasses.dataclass(frozen=True)
class Templates:
    """Templates by the role of the word. Every template has one place for it, "{}".

    Attributes:
      target: for target words.
      spurious: for spurious words, the same number.
      target_anchor: for target words and class anchors in the filters.
      spurious_anchor: for spurious words and their anchors in the filters.
      articles: write "an" for "a" before a vowel. CLIP's own templates do not.
      name: for messages.
    """

    target: tuple[str, ...]
    spurious: tuple[str, ...]
    target_anchor: str = "a photo of a {}."
    spurious_anchor: str = "a photo of a {}."
    articles: bool = False
    name: str = free("")

    def __post_init__(self):
        if not self.target or len(self.target) != len(self.spurious):
            raise ValueError(
                f"templates {self.name!r}: target and spurious words need equally many, at least one; "
                f"there are {len(self.target)} and {len(self.spurious)}"
            )
        for template in (*self.target, *self.spurious, self.target_anchor, self.spurious_anchor):
            if template.count("{}") != 1 or template.replace("{}", "").strip("{}") != template.replace("{}", ""):
                raise ValueError(f"templates {self.name!r}: {template!r} needs exactly one place for the word, {{}}")


SETS = {
    "imagenet": Templates(IMAGENET, IMAGENET, name="imagenet"),
    # The one prompt of the filters, for a quick look and for comparisons.
    "photo": Templates(("a photo of a {}.",), ("a photo of a {}.",), name="photo"),
    # The phrases of Scenes' captions. Its CLIP has seen no full stop, and neither graffiti nor video games.
    "scenes": Templates(
        tuple(f"{opening}a {{}}" for opening in _SCENES_OPENINGS),
        tuple(f"{opening}the {{}}" for opening in _SCENES_OPENINGS),
        target_anchor="a photo of a {}",
        spurious_anchor="a photo of the {}",
        articles=True,
        name="scenes",
    ),
}


def get(name: str) -> Templates:
    """The templates of that name.

    Raises:
      ValueError: an unknown name; the message lists the valid ones.
    """
    if name not in SETS:
        raise ValueError(f"unknown templates {name!r}; valid names: {', '.join(map(repr, SETS))}")
    return SETS[name]


def fill(template: str, word: str, *, articles: bool = False) -> str:
    """The template with the word in its place; with `articles`, "an" for "a" before a vowel."""
    text = template.replace("{}", word)
    return re.sub(r"\ba (?=[aeiou])", "an ", text) if articles else text
