"""What Scenes is used for: image-caption pairs, classification, composed retrieval and text triplets.

Every function is pure: the same arguments give the same arrays and texts. Training sets contain no composition of
`world.held_out`.
"""

import dataclasses

import numpy as np

from launch.data.scenes import world
from launch.data.scenes.edits import PHRASINGS, modifications
from launch.data.scenes.language import captions
from launch.data.scenes.rendering import render
from launch.data.splits import Arrays, Splits, moments

LARGEST = 10_000_000  # images that a set may have: 30 GB of memory


@dataclasses.dataclass(frozen=True)
class ScenePairs:
    """Images with captions.

    Attributes:
      images: uint8, (n, 32, 32, 3).
      captions: n lists of texts, `captions_per_image` each.
      attributes: int32, (n, 5); see `world`.
    """

    images: np.ndarray
    captions: list[list[str]]
    attributes: np.ndarray


def pairs(
    seed: int,
    n: int,
    *,
    held_out: bool,
    captions_per_image: int = 1,
    full: bool = False,
    distinct: bool = False,
) -> ScenePairs:
    """Draw scenes, and render and caption them.

    Fresh captions of the same images, for a later epoch: `captions(pairs.attributes, seed=...)`.

    Args:
      seed: of compositions, images and captions. The sets of two seeds, and the trained and the held-out set of one
        seed, are independent.
      n: images.
      held_out: draw only compositions that are held out (True), or only the others (False).
      captions_per_image: how many; 0 for images and attributes alone, as for attribute prediction.
      full: whether captions name all five attributes.
      distinct: draw no composition twice, so that each of the `full` captions describes one image.

    Raises:
      ValueError: more distinct compositions than exist, or negative counts.
    """
    if n < 0 or captions_per_image < 0:
        raise ValueError(f"n={n} and captions_per_image={captions_per_image} must not be negative")
    base = _pairs_seed(seed, held_out)
    attributes = compositions(seed, n, held_out=held_out, distinct=distinct)
    seeds = [world.derive(base, f"caption {k}") for k in range(captions_per_image)]
    texts = [captions(attributes, seed=text_seed, full=full) for text_seed in seeds]
    together = [list(row) for row in zip(*texts, strict=True)] if texts else [[] for _ in range(n)]
    return ScenePairs(render(attributes, seed=base), together, attributes)


def compositions(seed: int, n: int, *, held_out: bool, distinct: bool = False) -> np.ndarray:
    """The attributes of `pairs` with the same arguments, without its images: int32, (n, 5).

    Raises:
      ValueError: more distinct compositions than exist.
    """
    base = _pairs_seed(seed, held_out)
    return world.sample(world.stream(base, "compositions"), n, held=held_out, distinct=distinct)


def _pairs_seed(seed: int, held_out: bool) -> int:
    return world.derive(seed, f"scenes.pairs.{'held_out' if held_out else 'trained'}")


@dataclasses.dataclass(frozen=True)
class SceneClassification:
    """Curved or angular shapes, with a background that gives the class away in training.

    Attributes:
      splits: labels 0 curved, 1 angular; `val` is None without validation images.
      groups: by split ("train", "val", "test"), int32 (n,): 2 * class + ground, ground 0 land, 1 water. Aligned, so
        frequent in training, are groups 0 (curved on land) and 3 (angular on water).
      attributes: by split, int32 (n, 5).
    """

    splits: Splits
    groups: dict[str, np.ndarray]
    attributes: dict[str, np.ndarray]


def classification(
    seed: int,
    *,
    train: int = 3000,
    val: int = 0,
    test: int = 2000,
    correlation: float = 0.95,
    val_correlation: float = 0.5,
    sizes: tuple[str, ...] = ("medium", "large"),
) -> SceneClassification:
    """Draw the classes curved and angular, spuriously correlated with land and water.

    Every split has as many curved as angular shapes. The share of a class on its aligned ground is exact, up to
    rounding: `correlation` in training, `val_correlation` in validation, 1/2 in the test set. Training and validation
    images show no held-out composition, test images show only those.

    Args:
      seed: the splits are independent draws.
      train: images.
      val: images; 0 for none.
      test: images.
      correlation: of the training images, in [0, 1].
      val_correlation: of the validation images, in [0, 1].
      sizes: of the objects.

    Raises:
      ValueError: an empty train or test set, a correlation outside [0, 1], or an unknown size.
    """
    if train < 1 or test < 1 or val < 0:
        raise ValueError(f"train={train} and test={test} must be positive, val={val} not negative")
    unknown = [size for size in sizes if size not in world.SIZES]
    if unknown or not sizes:
        raise ValueError(f"sizes={sizes}; take one or more of {', '.join(world.SIZES)}")
    parts = {"train": (train, correlation, False), "val": (val, val_correlation, False), "test": (test, 0.5, True)}
    columns = [world.SIZES.index(size) for size in sizes]
    arrays, groups, attributes = {}, {}, {}
    for name, (n, aligned, held) in parts.items():
        base = world.derive(seed, f"scenes.classification.{name}")
        generator = world.stream(base, "compositions")
        groups[name] = _groups(generator, n, aligned)
        attributes[name] = _of_groups(generator, groups[name], columns, held)
        arrays[name] = Arrays(render(attributes[name], seed=base), groups[name] // 2)
    note = (
        f"Scenes, curved or angular shapes with land or water at {correlation:.0%}: {train} train, {val} val, "
        f"{test} test, seed {seed}"
    )
    mean, std = moments(arrays["train"].images)
    held_back = arrays["val"] if val else None
    shape = arrays["train"].image_shape
    splits = Splits(arrays["train"], held_back, arrays["test"], world.FAMILIES, mean, std, shape, note)
    return SceneClassification(splits, groups, attributes)


def _groups(generator: np.random.Generator, n: int, aligned: float) -> np.ndarray:
    """Draw 2 * class + ground of n examples in random order, both classes equally often: int32, (n,)."""
    if not 0 <= aligned <= 1:
        raise ValueError(f"a correlation of {aligned} is outside [0, 1]")
    curved, angular = n - n // 2, n // 2
    land, water = round(aligned * curved), round(aligned * angular)
    counts = (land, curved - land, angular - water, water)
    return generator.permutation(np.repeat(np.arange(4, dtype=np.int32), counts))


def _of_groups(generator: np.random.Generator, groups: np.ndarray, sizes: list[int], held: bool) -> np.ndarray:
    """Draw a composition for each group, among those of the given sizes: int32, (n, 5)."""
    among = world.compositions()
    among = among[(world.held_out(among) == held) & np.isin(among[:, world.SIZE], sizes)]
    belongs = 2 * world.family(among) + world.ground(among)
    attributes = np.empty((len(groups), len(world.COUNTS)), np.int32)
    for group in range(4):
        (rows,) = np.nonzero(groups == group)
        candidates = among[belongs == group]
        attributes[rows] = candidates[generator.integers(len(candidates), size=len(rows))]
    return attributes


@dataclasses.dataclass(frozen=True)
class SceneRetrieval:
    """Composed image retrieval: a reference image and a modification describe a target in the gallery.

    Attributes:
      gallery_images: uint8, (g, 32, 32, 3).
      gallery_attributes: int32, (g, 5), all different.
      query_images: uint8, (q, 32, 32, 3): the reference's composition, rendered afresh.
      reference: int32, (q,), the gallery image of the reference's composition.
      target: int32, (q,), the gallery image described; its composition is held out.
      edits: int32, (q,), how many attributes differ, 1 or 2.
      modifications: q texts by phrasing, "seen" and "unseen"; each continues "a photo of … that".
      target_captions: q texts that name the target's five attributes, for an upper bound.
    """

    gallery_images: np.ndarray
    gallery_attributes: np.ndarray
    query_images: np.ndarray
    reference: np.ndarray
    target: np.ndarray
    edits: np.ndarray
    modifications: dict[str, list[str]]
    target_captions: list[str]


def retrieval(seed: int, *, gallery: int = 1500, queries: int = 1000) -> SceneRetrieval:
    """Draw a composed-retrieval benchmark.

    Half of the gallery consists of held-out compositions. Half of the queries edit one attribute, spread evenly over
    the five; half edit two, spread evenly over the ten pairs. No (reference, target) occurs twice.

    Args:
      seed: of everything.
      gallery: images, all of different compositions.
      queries: how many.

    Raises:
      ValueError: more queries than this gallery has pairs for, or a gallery larger than the number of compositions.
    """
    base = world.derive(seed, "scenes.retrieval")
    generator = world.stream(base, "compositions")
    parts = [(gallery // 2, True), (gallery - gallery // 2, False)]
    members = [world.sample(generator, n, held=held, distinct=True) for n, held in parts]
    members = generator.permutation(np.concatenate(members))
    reference, target = _query_pairs(generator, members, queries)
    before, after = members[reference], members[target]
    texts = {
        phrasing: modifications(before, after, seed=world.derive(base, "modifications"), phrasing=phrasing)
        for phrasing in PHRASINGS
    }
    return SceneRetrieval(
        gallery_images=render(members, seed=world.derive(base, "gallery")),
        gallery_attributes=members,
        query_images=render(before, seed=world.derive(base, "queries")),
        reference=reference,
        target=target,
        edits=(before != after).sum(1, dtype=np.int32),
        modifications=texts,
        target_captions=captions(after, seed=world.derive(base, "targets"), full=True),
    )


def _query_pairs(generator: np.random.Generator, members: np.ndarray, queries: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw references and held-out targets, as positions in the gallery: int32, (queries,) each."""
    (targets,) = np.nonzero(world.held_out(members))
    differs = members[:, None] != members[targets][None]  # (g, t, 5)
    kind = differs @ (1 << np.arange(5))  # which attributes differ, as bits
    columns = range(5)
    one = [1 << i for i in columns]
    two = [1 << i | 1 << j for i in columns for j in columns[i + 1 :]]
    quota = {k: n for kinds, n in ((one, queries - queries // 2), (two, queries // 2)) for k, n in _share(n, kinds)}
    pairs_of_edits = []
    for bits, n in quota.items():
        candidates = np.argwhere(kind == bits)
        if n > len(candidates):
            edit = " and ".join(name for i, name in enumerate(world.ATTRIBUTES) if bits >> i & 1)
            raise ValueError(
                f"{queries} queries need {n} pairs that differ in {edit}; this gallery of {len(members)} has "
                f"{len(candidates)}; take fewer queries or a larger gallery"
            )
        pairs_of_edits.append(candidates[generator.permutation(len(candidates))[:n]])
    rows = generator.permutation(np.concatenate(pairs_of_edits)).astype(np.int32)
    return rows[:, 0], targets[rows[:, 1]].astype(np.int32)


def _share(n: int, kinds: list[int]) -> list[tuple[int, int]]:
    """(kind, its part of n) for each kind; parts differ by one at most."""
    return [(kind, n // len(kinds) + (i < n % len(kinds))) for i, kind in enumerate(kinds)]


@dataclasses.dataclass(frozen=True)
class SceneTriplets:
    """Text triplets for training on composed retrieval without images.

    Attributes:
      references: n captions.
      modifications: n texts, seen phrasings; each continues "a photo of … that".
      targets: n captions of what the modification asks for.
      reference_attributes: int32, (n, 5).
      target_attributes: int32, (n, 5).
    """

    references: list[str]
    modifications: list[str]
    targets: list[str]
    reference_attributes: np.ndarray
    target_attributes: np.ndarray


def triplets(seed: int, n: int, *, two_edits: float = 0.4, full: float = 0.7) -> SceneTriplets:
    """Draw text triplets of compositions that are not held out.

    Args:
      seed: of everything.
      n: how many.
      two_edits: the share of triplets that change two attributes; the others change one.
      full: the share whose captions name all attributes. The other captions name those that change, and each of the
        rest with probability 0.7; the captions of reference and target name the same ones.

    Raises:
      ValueError: a share outside [0, 1].
    """
    if not (0 <= two_edits <= 1 and 0 <= full <= 1):
        raise ValueError(f"two_edits={two_edits} and full={full} must be in [0, 1]")
    base = world.derive(seed, "scenes.triplets")
    generator = world.stream(base, "compositions")
    before, after = _edited(generator, n, two_edits)
    keep = (generator.random((n, 1)) < full) | (generator.random(before.shape) < 0.7) | (before != after)
    return SceneTriplets(
        references=captions(before, seed=world.derive(base, "references"), keep=keep),
        modifications=modifications(before, after, seed=world.derive(base, "modifications"), phrasing="seen"),
        targets=captions(after, seed=world.derive(base, "targets"), keep=keep),
        reference_attributes=before,
        target_attributes=after,
    )


def _edited(generator: np.random.Generator, n: int, two_edits: float) -> tuple[np.ndarray, np.ndarray]:
    """Draw n pairs of compositions that differ in one or two attributes, none held out: int32, (n, 5) each."""
    before = world.sample(generator, n)
    after = before.copy()
    edits = 1 + (generator.random(n) < two_edits)
    changed = generator.random(before.shape).argsort(1).argsort(1) < edits[:, None]
    rows = np.arange(n)
    while len(rows):
        offset = generator.integers(1, world.COUNTS, size=(len(rows), len(world.COUNTS)))
        after[rows] = np.where(changed[rows], (before[rows] + offset) % world.COUNTS, before[rows])
        rows = rows[world.held_out(after[rows])]
    return before, after
