"""Image-caption pairs of COCO for the modality gap: from the annotations' JSON file and its images, or through TFDS."""

import json
from pathlib import Path

import numpy as np

from launch.data import tfds_sets
from launch.data.folder import Files
from launch.data.splits import Rows
from tldr_jax.datasets.captions import CaptionedImages, draw


def from_json(path: str | Path, folder: str | Path, *, n: int, seed: int) -> CaptionedImages:
    """A random n of the images of an annotations file, each with one of its captions.

    Args:
      path: for example annotations/captions_val2017.json.
      folder: of its images, for example val2017.
      n: pairs.
      seed: of the draw.

    Raises:
      FileNotFoundError: no such file or folder, or a drawn image is missing.
      ValueError: not COCO's JSON, or fewer images with captions than n.
    """
    path, folder = Path(path).expanduser(), Path(folder).expanduser()
    if not path.is_file() or not folder.is_dir():
        what = f"gap.path={str(path)!r} and gap.images={str(folder)!r}"
        raise FileNotFoundError(
            f"{what}: the annotations' JSON file (annotations/captions_val2017.json) and the folder of its images "
            "(val2017) are needed; or set gap.source='coco_tfds'"
        )
    try:
        content = json.loads(path.read_bytes())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        captions: dict[int, list[str]] = {}
        for annotation in content["annotations"]:
            captions.setdefault(annotation["image_id"], []).append(annotation["caption"].strip())
        described = sorted(captions)
        files = [names[image] for image in described]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a COCO captions file: {type(error).__name__}: {error}") from error
    rows = draw(len(files), n, seed)
    chosen = [files[row] for row in rows]
    for name in chosen:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no image {folder / name}, which {path} describes")
    return CaptionedImages(Files(folder, chosen), _one_each([captions[described[row]] for row in rows], seed))


def from_tfds(path: str, split: str, *, n: int, seed: int) -> CaptionedImages:
    """A random n of the images of a split of `coco_captions/2014`, each with one of its captions.

    Args:
      path: TFDS data folder; "" for $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      split: train, val, test or restval.
      n: pairs.
      seed: of the draw.

    Raises:
      FileNotFoundError: not prepared there in the required version and format.
      ValueError: an unknown split, an unreadable record, or fewer images than n.
    """
    records = tfds_sets.Records(tfds_sets.prepared("coco_captions/2014", path), split)
    rows = draw(len(records), n, seed)
    images = Rows(records, rows)
    texts = tfds_sets.scan(records, lambda record: [t.decode() for t in record["captions"]["text"]], rows=rows.tolist())
    return CaptionedImages(images, _one_each(texts, seed))


def _one_each(captions: list[list[str]], seed: int) -> list[str]:
    """One caption per image, drawn at random."""
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, 0xC0C0))))
    return [texts[int(k * len(texts))] for texts, k in zip(captions, generator.random(len(captions)), strict=True)]
