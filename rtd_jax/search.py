r"""Search a folder of images with an image and a text.

    python -m rtd_jax.search --clip runs/rtd/clip --phi runs/rtd/phi.safetensors --gallery photos \
        --image photos/shirt.jpg --text "is blue" --out found.png

Prints the nearest files, best first, with their cosine, and draws them as a grid. `--serve` opens a page to try queries
by hand (`pip install -e '.[app]'`), on this machine alone unless `--host` says otherwise.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging
from PIL import Image

import clip_jax
from launch.processes import commands
from launch.reading import InputError, folders, images, paths, printable
from rtd_jax import clips, figures, phi, retrieval
from rtd_jax.text import compose


@dataclass(frozen=True, eq=False)
class GalleryIndex:
    """A gallery that can be searched.

    Attributes:
      clip: embeds the query; its text encoder trained by RTD or not.
      network: φ for this CLIP.
      paths: g image files.
      gallery: float32 (g, d), their embeddings, not normalised, on the devices.
      target_pad: pad elongated images; the same for gallery and queries.
    """

    clip: clip_jax.Clip
    network: phi.Network
    paths: Sequence[Path]
    gallery: retrieval.Gallery
    target_pad: bool = False


@dataclass(frozen=True)
class Match:
    """An image of the gallery and its cosine to the query."""

    path: Path
    score: float


def index(
    clip: clip_jax.Clip,
    network: phi.Network,
    folder: str | Path | folders.Listing,
    *,
    target_pad: bool = False,
    batch_size: int = 64,
    cache: str | Path | None = None,
    progress: bool = False,
) -> GalleryIndex:
    """Embed the images of a folder and its subfolders, or of a listing of it, or take the embeddings from the cache.

    The embeddings stay on this process's devices, split over them: a query moves none.

    Raises:
      FileNotFoundError: no such folder, or no images in it.
      ValueError: φ of other widths than the CLIP's; an image that cannot be read.
    """
    phi.check_fits(network, clip.config)
    files = folder if isinstance(folder, folders.Listing) else folders.images(folder)
    for note in files.notes:
        logging.warning("%s", note)
    embeddings = clip_jax.embed_images(
        clip, files.paths, target_pad=target_pad, batch_size=batch_size, cache=cache, progress=progress
    )
    return GalleryIndex(clip, network, files.paths, retrieval.place(embeddings), target_pad)


def search(
    index: GalleryIndex,
    image: str | Path | np.ndarray | Image.Image,
    text: str,
    k: int = 10,
    *,
    keep_query: bool = False,
) -> list[Match]:
    """The k images that best match an image and a text, best first; ties by the order of files.

    Args:
      index: the gallery.
      image: a file, a PIL image or uint8 (h, w, 3).
      text: the change, which continues "a photo of this that …": "is blue".
      k: number of images.
      keep_query: leave the query's own file in the gallery.

    Raises:
      ValueError, FileNotFoundError: as `check_query`.
    """
    row = check_query(index.clip, index.paths, image, text, k, keep_query=keep_query)
    embedding = clip_jax.embed_images(index.clip, [image], target_pad=index.target_pad, progress=False)
    query = compose.queries(index.clip, index.network, embedding, [text])
    exclude = None if row is None else np.array([row], np.int32)
    rows, scores = (part[0] for part in retrieval.top_k(query, index.gallery, k, exclude=exclude, cosine=True))
    return [Match(index.paths[row], float(score)) for row, score in zip(rows, scores, strict=True)]


def check_query(
    clip: clip_jax.Clip,
    files: Sequence[Path],
    image: str | Path | np.ndarray | Image.Image,
    text: str,
    k: int,
    *,
    keep_query: bool = False,
) -> int | None:
    """Refuse a query that cannot be answered in a gallery of these files, before they are embedded; see `search`.

    Returns:
      The query's own place among the files, which is left out of the gallery; None where it has none.

    Raises:
      ValueError: an image that cannot be read, an empty text, one that is too long for the CLIP or contains the marker
        "$", or k beyond the gallery.
      FileNotFoundError: no such image.
    """
    compose.check_length(clip, text)
    row = None
    if isinstance(image, str | Path):
        images.decode(image, alpha="white")
        if not keep_query:
            file = Path(image).resolve()
            row = next((row for row, path in enumerate(files) if path.resolve() == file), None)
    most = len(files) - (row is not None)
    if not 1 <= k <= most:
        raise ValueError(f"k={k}: the gallery has {most} images besides the query, use 1 to {most}")
    return row


def draw(path: str | Path, image: str | Path, text: str, matches: Sequence[Match]) -> None:
    """Draw the query and its matches as a row of pictures (PNG)."""
    names = [f"{printable(match.path.name)[-18:]} {match.score:.2f}" for match in matches]
    pictures = [figures.thumbnail(match.path) for match in matches]
    figures.grid(path, [figures.RetrievedRow(text, figures.thumbnail(image), pictures, names)])


def serve(index: GalleryIndex, *, host: str, port: int, k: int) -> None:
    """Serve a page on which queries can be tried, until it is interrupted.

    Raises:
      ImportError: gradio is not installed.
    """
    try:
        import gradio  # pyright: ignore[reportMissingImports] - only the extra `app` installs it
    except ImportError as error:
        raise ImportError("--serve needs the package gradio: pip install -e '.[app]'") from error

    def find(image: np.ndarray | None, text: str):
        if image is None or not text.strip():
            raise gradio.Error("An image and a text are needed.")
        try:
            matches = search(index, image, text, min(k, len(index.paths)))
        except ValueError as error:
            raise gradio.Error(str(error)) from error
        return [(figures.thumbnail(match.path), f"{printable(match.path.name)} {match.score:.3f}") for match in matches]

    with gradio.Blocks(title="Composed image retrieval", analytics_enabled=False) as page:
        with gradio.Row():
            image = gradio.Image(label="reference", type="numpy")
            text = gradio.Textbox(label="a photo of this that …", placeholder="is blue")
        button = gradio.Button("search")
        results = gradio.Gallery(label="found", columns=5)
        button.click(find, [image, text], results)
        text.submit(find, [image, text], results)
    page.launch(server_name=host, server_port=port, share=False)


def main(argv: Sequence[str]) -> None:
    run(flags.FLAGS)


@commands.ending()
def run(f: flags.FlagValues) -> None:
    """Search as flags say."""
    if not f.serve and not f.image:
        raise InputError("is missing", field="--image", remedy="--image and --text make the query; or --serve")
    cache = paths.path(f.cache, "--cache") if f.cache else None
    out = paths.path(f.out, "--out") if f.out and not f.serve else None
    if out is not None and out.is_dir():
        raise InputError("is a folder; name the picture", field="--out", value=f.out)
    files = folders.images(paths.path(f.gallery, "--gallery"))
    network, clip = phi.load(paths.file(f.phi, "--phi")), clips.load(f.clip)
    image = None if f.serve else paths.file(f.image, "--image")
    if image is not None:
        check_query(clip, files.paths, image, f.text, f.k, keep_query=f.keep_query)
    gallery = index(clip, network, files, target_pad=f.target_pad, cache=cache, progress=True)
    if image is None:
        serve(gallery, host=f.host, port=f.port, k=f.k)
        return
    matches = search(gallery, image, f.text, f.k, keep_query=f.keep_query)
    for match in matches:
        print(f"{match.score:.4f}  {printable(match.path)}")
    if out:
        draw(out, image, f.text, matches)


def define_flags(values: flags.FlagValues) -> None:
    """Define the command's flags."""
    options: dict[str, Any] = {"flag_values": values}
    flags.DEFINE_string(
        "clip", None, "folder or hub name of the CLIP: the folder `clip` of a run has RTD's text encoder", **options
    )
    flags.DEFINE_string("phi", None, "the file of φ, .safetensors or .pt", **options)
    flags.DEFINE_string("gallery", None, "the folder of images to search, with its subfolders", **options)
    flags.DEFINE_string("image", "", "the reference image", **options)
    flags.DEFINE_string("text", "", 'the change; continues "a photo of this that"', **options)
    flags.DEFINE_integer("k", 10, "number of images to find", lower_bound=1, **options)
    flags.DEFINE_string("out", "found.png", "the PNG to draw, the query and its matches; empty for none", **options)
    flags.DEFINE_string("cache", "", "folder to cache the gallery's embeddings in", **options)
    flags.DEFINE_bool("target_pad", False, "pad elongated images before they are cropped, for SEARLE's φ", **options)
    flags.DEFINE_bool("keep_query", False, "leave the query's own file in the gallery", **options)
    flags.DEFINE_bool("serve", False, "open a page to try queries", **options)
    flags.DEFINE_string("host", "127.0.0.1", "address that --serve listens on", **options)
    flags.DEFINE_integer("port", 7860, "port that --serve listens on", **options)
    flags.mark_flags_as_required(["clip", "phi", "gallery"], **options)


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main, flags_parser=commands.parse)
