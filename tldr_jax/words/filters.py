"""Filters of word lists: keep the words that the models understand as intended.

(a) The CLIP filter: "a photo of a {word}." must be nearer to the anchor of its own list than to those of its rivals:
    the lists of classes that share a spurious value with it, or of values that share a class.
(b) The classifier filter, for target words: the classifier whose last layer is repaired must assign the projected text
    embedding to the word's class.

Both filters see all words. A word is dropped if either filter drops it, and the report has both reasons.
"""

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from jax.typing import ArrayLike

from clip_jax import Clip
from tldr_jax import words
from tldr_jax.words import WordSet
from tldr_jax.words.templates import Templates, fill
from tldr_jax.words.text import embed_prompts

CLIP, CLASSIFIER = "clip", "classifier"  # the filters, in reports


class LogitsOfTexts(Protocol):
    """Projector and classifier head together: text embeddings (n, d), not normalised -> logits (n, C)."""

    def __call__(self, embeddings: np.ndarray, /) -> ArrayLike: ...


class EmptyWordListError(ValueError):
    """The filters left a class or a spurious value without words; the message says which filter dropped how many.

    Attributes:
      report: of what the filters did.
    """

    def __init__(self, message: str, report: "FilterReport"):
        super().__init__(message)
        self.report = report


@dataclasses.dataclass(frozen=True)
class AnchoredWords:
    """Embeddings of words under the one template of the filters, not normalised.

    Attributes:
      words: "target" and "spurious" -> float32 (n, d), all words of the part in order.
      anchors: "target" and "spurious" -> float32 (k, d), the anchor of each list.
    """

    words: Mapping[str, np.ndarray]
    anchors: Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Dropped:
    """A word that a filter dropped.

    Attributes:
      word: the word.
      part: "target" or "spurious".
      name: the class or value of its list.
      filter: "clip" or "classifier".
      taken_for: the class or value that the filter saw in it.
      margin: by how much it won: cosine similarities in the CLIP filter, logits in the classifier filter.
    """

    word: str
    part: str
    name: str
    filter: str
    taken_for: str
    margin: float


@dataclasses.dataclass(frozen=True)
class FilterReport:
    """What the filters did.

    Attributes:
      before: part -> name -> number of words before filtering.
      after: part -> name -> number of words kept.
      dropped: words and reasons; a word that both filters drop is in it twice.
    """

    before: dict[str, dict[str, int]]
    after: dict[str, dict[str, int]]
    dropped: tuple[Dropped, ...]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return {
            "before": self.before,
            "after": self.after,
            "dropped": [dataclasses.asdict(entry) for entry in self.dropped],
        }

    def __str__(self) -> str:
        """One line per list: how many words were kept, and which were dropped for which reason."""
        lines = []
        for part, counts in self.before.items():
            for name, count in counts.items():
                lines.append(f"{part} {name}: {self.after[part][name]} of {count} words kept")
                for filter_ in (CLIP, CLASSIFIER):
                    gone = [f"{entry.word} ({entry.taken_for})" for entry in self._of(part, name, filter_)]
                    if gone:
                        lines[-1] += f"; {filter_} filter dropped {len(gone)}: {', '.join(gone)}"
        return "\n".join(lines)

    def _of(self, part: str, name: str, filter_: str) -> list[Dropped]:
        return [entry for entry in self.dropped if (entry.part, entry.name, entry.filter) == (part, name, filter_)]


def embed(
    clip: Clip, word_set: WordSet, templates: Templates, *, batch_size: int = 256, progress: bool = True
) -> AnchoredWords:
    """Words and anchors under the anchor templates, embedded once for every choice of filters.

    Args:
      clip: the CLIP.
      word_set: C classes and S values.
      templates: their anchor prompts are used, for words and anchors alike.
      batch_size: prompts per step.
      progress: show a progress bar.
    """
    anchors = {"target": templates.target_anchor, "spurious": templates.spurious_anchor}
    texts = [
        [fill(template, word, articles=templates.articles) for word in group]
        for part, template in anchors.items()
        for group in (
            [word for own in word_set.lists(part) for word in own.words],
            [own.anchor for own in word_set.lists(part)],
        )
    ]
    together = [text for group in texts for text in group]
    embeddings = embed_prompts(clip, together, batch_size=batch_size, progress=progress)
    groups = np.split(embeddings, np.cumsum([len(group) for group in texts])[:-1])
    return AnchoredWords(dict(zip(anchors, groups[::2], strict=True)), dict(zip(anchors, groups[1::2], strict=True)))


def apply(
    word_set: WordSet,
    embedded: AnchoredWords,
    *,
    logits: LogitsOfTexts | None = None,
    clip_target: bool = True,
    clip_spurious: bool = True,
) -> tuple[WordSet, FilterReport]:
    """The words that the filters keep, and what they dropped.

    Args:
      word_set: C classes and S values.
      embedded: its words and anchors, see `embed`.
      logits: of the classifier filter; None switches it off.
      clip_target: filter target words by CLIP, against the anchors of the classes that occur with the same values.
      clip_spurious: filter spurious words by CLIP, against the anchors of the values that occur with the same classes.

    Raises:
      EmptyWordListError: a list has no word left.
      ValueError: logits of another shape, or that are not finite.
    """
    before = _counts(word_set)
    verdicts = []
    rivals = {"target": words.rival_classes(word_set), "spurious": words.rival_values(word_set)}
    for part, filtered in (("target", clip_target), ("spurious", clip_spurious)):
        if filtered:
            scores = anchor_similarity(embedded.words[part], embedded.anchors[part])
            verdicts.append((part, CLIP, judge(scores, _own(before[part]), rivals[part]), scores))
    if logits is not None:
        scores = _checked(logits(embedded.words["target"]), word_set)
        verdicts.append(("target", CLASSIFIER, scores.argmax(1), scores))
    masks = {part: np.ones(sum(before[part].values()), bool) for part in words.PARTS}
    dropped = []
    for part, filter_, taken, scores in verdicts:
        own = _own(before[part])
        masks[part] &= taken == own
        dropped += _dropped(word_set, part, filter_, own, taken, scores)
    kept = words.select(word_set, *(_by_list(masks[part], before[part]) for part in words.PARTS))
    report = FilterReport(before, _counts(kept), tuple(dropped))
    _check_empty(report)
    return kept, report


def anchor_similarity(embeddings: np.ndarray, anchors: np.ndarray) -> np.ndarray:
    """Cosine similarities (n, k) of embeddings (n, d) and anchors (k, d), in float64."""
    unit = [np.asarray(x, np.float64) / np.linalg.norm(np.asarray(x, np.float64), axis=1, keepdims=True)
            for x in (embeddings, anchors)]  # fmt: skip
    return unit[0] @ unit[1].T


def judge(scores: np.ndarray, own: np.ndarray, rivals: np.ndarray) -> np.ndarray:
    """What each word is taken for: the best among its own list and the lists that it must be distinguished from.

    Args:
      scores: (n, k).
      own: int, (n,), the list of each word.
      rivals: bool, (k, k), true on the diagonal.

    Returns:
      int, (n,); the first of equals.
    """
    return np.where(rivals[own], scores, -np.inf).argmax(1)


def _counts(word_set: WordSet) -> dict[str, dict[str, int]]:
    return {part: {name: len(own) for name, own in word_set.listed(part).items()} for part in words.PARTS}


def _checked(scores: Any, word_set: WordSet) -> np.ndarray:
    scores, listed = np.asarray(scores), [word for own in word_set.target for word in own.words]
    if scores.shape != (len(listed), len(word_set.classes)):
        raise ValueError(
            f"the logits of {len(listed)} words in {len(word_set.classes)} classes have the shape {scores.shape}"
        )
    if len(broken := np.flatnonzero(~np.isfinite(scores).all(1))):
        raise ValueError(f"the logits of the word {listed[broken[0]]!r} are not finite: {scores[broken[0]]}")
    return scores


def _own(counts: Mapping[str, int]) -> np.ndarray:
    return np.repeat(np.arange(len(counts)), list(counts.values()))


def _by_list(mask: np.ndarray, counts: Mapping[str, int]) -> dict[str, np.ndarray]:
    return dict(zip(counts, np.split(mask, np.cumsum(list(counts.values()))[:-1]), strict=True))


def _dropped(
    word_set: WordSet, part: str, filter_: str, own: np.ndarray, taken: np.ndarray, scores: np.ndarray
) -> list[Dropped]:
    lists = word_set.lists(part)
    names, listed = [each.name for each in lists], [word for each in lists for word in each.words]
    (rows,) = np.nonzero(taken != own)
    margins = scores[rows, taken[rows]] - scores[rows, own[rows]]
    return [
        Dropped(listed[i], part, names[own[i]], filter_, names[taken[i]], float(margin))
        for i, margin in zip(rows, margins, strict=True)
    ]


def _check_empty(report: FilterReport) -> None:
    for part, counts in report.after.items():
        for name, count in counts.items():
            if count:
                continue
            gone = Counter(entry.filter for entry in report.dropped if (entry.part, entry.name) == (part, name))
            blamed = " and ".join(f"the {filter_} filter {n}" for filter_, n in gone.items())
            off = ", ".join(f"words.{filter_}_filter=False" for filter_ in gone)
            raise EmptyWordListError(
                f"no words are left of {part} {name!r}: of {report.before[part][name]}, {blamed} dropped. Use other "
                f"words or another anchor, or switch a filter off ({off})",
                report,
            )
