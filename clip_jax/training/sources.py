"""Where pairs come from, by `config.data.name`: Scenes, or a file of image names and captions."""

import csv
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clip_jax.training.pairs import Pairs, Sets
from launch.data import images as image_files
from launch.data import order, scenes
from launch.data.scenes import world

NAMES = ("captions", "scenes")


def load(config, *, seed: int) -> Sets:
    """The pairs that a config names.

    Args:
      config: ConfigDict with `name` ("scenes" or "captions"), `val_examples` and `test_examples` (images); for Scenes
        `train_examples`, `captions_per_image` and `evaluation_seed`; for captions `path`, `val_path`, `test_path`,
        `images`, `image_column` and `caption_column`, see `read_captions`.
      seed: of Scenes' training images; of what is held out of a captions file.

    Raises:
      ValueError: an unknown name, or sizes that do not fit.
      FileNotFoundError: files that are not there.
    """
    check(config)
    return {"captions": _captions, "scenes": _scenes}[config.name](config, seed)


def check(config) -> None:
    """What can be refused before anything is read: see `load`."""
    if config.name not in NAMES:
        raise ValueError(f"no data set {config.name!r}; there are: {', '.join(NAMES)}")
    if config.val_examples < 2 or config.test_examples < 2:
        raise ValueError(
            f"data.val_examples={config.val_examples}, data.test_examples={config.test_examples}: hold out 2 or more, "
            "the best checkpoint is chosen on the first and measured on the second"
        )
    if config.name == "scenes" and min(config.train_examples, config.captions_per_image) < 1:
        raise ValueError(
            f"data.train_examples={config.train_examples} and data.captions_per_image={config.captions_per_image} must "
            "be positive"
        )


# -- Scenes -----------------------------------------------------------------------------------


def _scenes(config, seed: int) -> Sets:
    """Trained and validated on the trained compositions, tested on held-out ones; those are the same for all seeds."""
    train = scenes.pairs(seed, config.train_examples, held_out=False, captions_per_image=config.captions_per_image)
    own = world.derive(config.evaluation_seed, "clip.evaluation")
    val = scenes.pairs(own, config.val_examples, held_out=False, full=True, distinct=True)
    test = scenes.pairs(own, config.test_examples, held_out=True, full=True, distinct=True)
    parts = [Pairs(part.images, part.captions, part.attributes) for part in (train, val, test)]
    note = (
        f"Scenes: {len(parts[0])} images with {config.captions_per_image} captions each, seed {seed}; {len(parts[1])} "
        f"of such compositions to validate, {len(parts[2])} of held-out ones to test"
    )
    return Sets(*parts, note, scenes_zero_shot(test.attributes))


def scenes_zero_shot(attributes: np.ndarray) -> dict[str, tuple[list[list[str]], np.ndarray]]:
    """Texts of each class and classes of the images, for the five attributes, family and ground (see `Sets`)."""
    values = world.ATTRIBUTES | {"family": world.FAMILIES, "ground": world.GROUNDS}
    labels = dict(zip(world.ATTRIBUTES, attributes.T, strict=True))
    labels |= {"family": world.family(attributes), "ground": world.ground(attributes)}
    return {name: ([scenes.prompts(name, v) for v in values[name]], labels[name]) for name in values}


# -- Files ------------------------------------------------------------------------------------


def _captions(config, seed: int) -> Sets:
    """A file of captions; validation and test images held out of it by seed, or from files of their own."""
    read = lambda path: read_captions(
        path, config.images, image_column=config.image_column, caption_column=config.caption_column
    )
    train = read(config.path)
    parts = {}
    for name, path, count in (
        ("val", config.val_path, config.val_examples),
        ("test", config.test_path, config.test_examples),
    ):
        whole = read(path) if path else train
        if count > len(whole) - (not path):
            raise ValueError(f"data.{name}_examples={count}: there are {len(whole)} images in {path or config.path}")
        rows = order.permutation(len(whole), seed=seed, epoch=0)
        parts[name] = _select(whole, np.sort(rows[:count]))
        if not path:
            train = _select(train, np.sort(rows[count:]))
    val, test = parts["val"], parts["test"]
    note = f"{config.path}: {len(train)} images to train on, {len(val)} to validate, {len(test)} to test"
    return Sets(train, val, test, note)


def read_captions(
    path: str | Path, images: str | Path = "", *, image_column: str = "image", caption_column: str = "caption"
) -> Pairs:
    """Pairs of a file with one (image, caption) a row; rows of the same image are put together.

    Args:
      path: JSON lines (.jsonl; a caption may be a list of texts), comma- or tab-separated values with a header (.csv,
        .tsv).
      images: the folder that image names are relative to; "" for the folder of `path`.
      image_column: name of the column or key of the image's file.
      caption_column: of its caption.

    Raises:
      FileNotFoundError: no such file, or an image that is not there; the first is named.
      ValueError: an unknown ending, an empty file, a missing column, or a row without image or caption, by its line.
    """
    path = Path(path).expanduser()
    readers = {".jsonl": _json_rows, ".csv": _table_rows, ".tsv": _table_rows}
    if path.suffix.lower() not in readers:
        raise ValueError(f"data.path={str(path)!r}: a file that ends in {', '.join(readers)} is needed")
    if not path.is_file():
        raise FileNotFoundError(f"no captions file {path}")
    folder = Path(images).expanduser() if images else path.parent
    if not folder.is_dir():
        raise FileNotFoundError(f"data.images={str(images)!r}: no such folder")
    found: dict[str, list[str]] = {}
    for line, row in readers[path.suffix.lower()](path):
        if missing := [column for column in (image_column, caption_column) if column not in row]:
            columns = ", ".join(map(repr, row))
            raise ValueError(
                f"{path}, line {line}: no column {missing[0]!r} among {columns}; set data.image_column and "
                "data.caption_column"
            )
        image, texts = row[image_column], row[caption_column]
        texts = texts if isinstance(texts, list) else [texts]
        if not isinstance(image, str) or not image or not texts:
            raise ValueError(f"{path}, line {line}: {image_column}={image!r}, {caption_column}={texts!r}: one is empty")
        if bad := [text for text in texts if not isinstance(text, str) or not text.strip()]:
            raise ValueError(f"{path}, line {line}: the caption {bad[0]!r} of {image} is no text")
        found.setdefault(image, []).extend(texts)
    if not found:
        raise ValueError(f"{path} is empty: it has no row with an image and a caption")
    files = [folder / name for name in found]
    _check_files(files, path)
    return Pairs(files, list(found.values()))


def _json_rows(path: Path) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8") as file:
        for line, text in enumerate(file, 1):
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except ValueError as error:
                raise ValueError(f"{path}, line {line} is no JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{path}, line {line} is no JSON object but {type(row).__name__}")
            yield line, row


def _table_rows(path: Path) -> Iterator[tuple[int, dict]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        for row in reader:
            if None in row or None in row.values():
                raise ValueError(
                    f"{path}, line {reader.line_num}: the header has {len(reader.fieldnames)} columns, this row has "
                    f"{'more' if None in row else 'fewer'}; quote captions that hold the separator"
                )
            yield reader.line_num, row


def _check_files(files: list[Path], listed: Path) -> None:
    with ThreadPoolExecutor(2 * image_files.decoding_threads()) as pool:  # a file system of a cluster answers slowly
        there = list(pool.map(Path.is_file, files))
    missing = [file for file, found in zip(files, there, strict=True) if not found]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FileNotFoundError(f"no image file {missing[0]}{more}, named in {listed}; set data.images to their folder")


def _select(pairs: Pairs, rows: np.ndarray) -> Pairs:
    return Pairs([pairs.images[row] for row in rows], [pairs.captions[row] for row in rows])
