"""Search from the command line: what is found, what is drawn, what is refused."""

import jax
import numpy as np
import pytest
from PIL import Image

import clip_jax
from launch.data import scenes
from rtd_jax import figures, phi, search
from rtd_jax.text import compose
from tests.commands import finish, start


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A folder of pictures."""
    folder = tmp_path_factory.mktemp("gallery")
    images = scenes.pairs(0, 12, held_out=False, captions_per_image=0, distinct=True).images
    for i, image in enumerate(images):
        path = folder / ("a" if i < 6 else "b") / f"{i:02}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


@pytest.fixture(scope="module")
def index(gallery, tmp_path_factory):
    clip = clip_jax.load(clip_jax.embedded("scenes"))
    network = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    return search.index(clip, network, gallery, cache=tmp_path_factory.mktemp("cache"))


def test_search_is_a_ranking_by_cosine_without_the_query(index, gallery):
    image = gallery / "a" / "03.png"
    found = search.search(index, image, "is red", 11)
    embeddings = clip_jax.embed_images(index.clip, index.paths, target_pad=True, progress=False)
    query = compose.queries(index.clip, index.network, embeddings[3:4], ["is red"])[0]
    scores = embeddings @ query / np.linalg.norm(embeddings, axis=1)
    order = [i for i in np.argsort(-scores) if i != 3]
    assert [match.path for match in found] == [index.paths[i] for i in order]
    np.testing.assert_allclose([match.score for match in found], scores[order], atol=1e-5)
    kept = search.search(index, image, "is red", 12, keep_query=True)
    assert sorted(match.path for match in kept) == sorted(index.paths)
    assert search.search(index, np.asarray(Image.open(image)), "is red", 12) == kept  # an array has no file


def test_queries_that_cannot_be_answered(index, gallery, tmp_path):
    image = gallery / "a" / "03.png"
    with pytest.raises(ValueError, match="k=12: the gallery has 11 images besides the query"):
        search.search(index, image, "is red", 12)
    with pytest.raises(ValueError, match="marker"):
        search.search(index, image, "is $ red", 3)
    with pytest.raises(FileNotFoundError):
        search.search(index, tmp_path / "none.png", "is red", 3)
    with pytest.raises(FileNotFoundError, match="no images in"):
        search.index(index.clip, index.network, tmp_path)
    with pytest.raises(FileNotFoundError, match="no gallery folder"):
        search.index(index.clip, index.network, tmp_path / "none")
    other = phi.init("phi", 8, 8, jax.random.key(0))
    with pytest.raises(ValueError, match="width 8"):
        search.index(index.clip, other, gallery)


def test_the_command(index, gallery, tmp_path):
    phi.save(index.network, tmp_path / "phi.safetensors")
    where = ("--clip=embedded:scenes", f"--phi={tmp_path / 'phi.safetensors'}", f"--gallery={gallery}")
    query = (f"--image={gallery}/a/03.png", "--text=is red", f"--out={tmp_path / 'found.png'}")
    output = finish(start("-m", "rtd_jax.search", *where, *query, "--k=3"))
    expected = search.search(index, gallery / "a" / "03.png", "is red", 3)
    lines = [line for line in output.splitlines() if line.endswith(".png")]
    assert lines == [f"{match.score:.4f}  {match.path}" for match in expected]
    with Image.open(tmp_path / "found.png") as picture:
        assert picture.format == "PNG" and picture.width > 600


def test_the_grid_shows_query_and_results(index, gallery, tmp_path):
    red = tmp_path / "red.png"
    Image.new("RGB", (32, 32), (255, 0, 0)).save(red)
    blue = tmp_path / "blue.png"
    Image.new("RGB", (20, 40), (0, 0, 255)).save(blue)
    search.draw(tmp_path / "grid.png", red, "is blue", [search.Match(blue, 0.5)])
    with Image.open(tmp_path / "grid.png") as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((255, 0, 0), (0, 0, 255)):
        assert (pixels == colour).all(1).sum() > 1000
    with pytest.raises(ValueError, match="at least one query"):
        figures.grid(tmp_path / "none.png", [])


def test_serving_needs_gradio(index, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[app\]'"):
        search.serve(index, host="127.0.0.1", port=0, k=3)
