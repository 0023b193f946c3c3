"""Search from the command line: what is found, what is drawn, what is refused."""

import os

import jax
import numpy as np
import pytest
from absl import flags
from PIL import Image

import clip_jax
from launch.data import scenes
from rtd_jax import figures, phi, retrieval, search
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
    embeddings = clip_jax.embed_images(index.clip, index.paths, progress=False)
    query = compose.queries(index.clip, index.network, embeddings[3:4], ["is red"])[0]
    scores = embeddings @ query / np.linalg.norm(embeddings, axis=1)
    order = [i for i in np.argsort(-scores) if i != 3]
    assert [match.path for match in found] == [index.paths[i] for i in order]
    np.testing.assert_allclose([match.score for match in found], scores[order], atol=1e-5)
    kept = search.search(index, image, "is red", 12, keep_query=True)
    assert sorted(match.path for match in kept) == sorted(index.paths)
    assert search.search(index, np.asarray(Image.open(image)), "is red", 12) == kept  # an array has no file


def test_the_gallery_stays_on_the_devices(index, gallery, monkeypatch):
    """A query puts itself on the devices, its empty lists and three numbers a device, but no row of the gallery."""
    put, moved = jax.make_array_from_callback, []

    def noted(shape, *rest):
        moved.append(shape)
        with jax.transfer_guard("allow"):
            return put(shape, *rest)

    monkeypatch.setattr(jax, "make_array_from_callback", noted)
    monkeypatch.setattr(jax, "device_put", None)
    query = np.ones((1, index.gallery.shape[1]), np.float32)
    before = index.gallery.rows.unsafe_buffer_pointer()
    with jax.transfer_guard_host_to_device("disallow"):  # and no other way to them
        for _ in range(3):
            retrieval.top_k(query, index.gallery, 5, cosine=True)
    assert sorted(moved) == sorted(3 * [query.shape, (1, 1, 5), (1, 1, 5), (1, 3)])
    assert index.gallery.rows.unsafe_buffer_pointer() == before and not index.gallery.rows.is_deleted()


def test_queries_that_cannot_be_answered(index, gallery, tmp_path):
    image = gallery / "a" / "03.png"
    with pytest.raises(ValueError, match="k=12: the gallery has 11 images besides the query"):
        search.search(index, image, "is red", 12)
    with pytest.raises(ValueError, match="marker"):
        search.search(index, image, "is $ red", 3)
    with pytest.raises(FileNotFoundError):
        search.search(index, tmp_path / "none.png", "is red", 3)
    with pytest.raises(FileNotFoundError, match=r"no images .* in it"):
        search.index(index.clip, index.network, tmp_path)
    with pytest.raises(FileNotFoundError, match="none: no such file or folder"):
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


@pytest.mark.parametrize(
    "image, text, k, says",
    [("a/03.png", "is red", 12, "k=12: the gallery has 11 images"), ("a/03.png", " ", 3, "text is empty"),
     ("a/03.png", "is $ red", 3, "marker"), ("a/03.png", "is red " * 80, 3, "tokens with .* shorten it"),
     ("a/03.png", "is \ud83d", 3, "text"), ("text.png", "is red", 3, r"text\.png: is not an image"),
     ("none.png", "is red", 3, r"none\.png: no such file")],
)  # fmt: skip
def test_queries_are_refused_before_the_gallery_is_embedded(index, gallery, image, text, k, says, tmp_path):
    (tmp_path / "text.png").write_text("text")
    path = gallery / image if "/" in image else tmp_path / image
    with pytest.raises((ValueError, OSError), match=says):
        search.check_query(index.clip, index.paths, path, text, k)


def parsed(*arguments):
    """The command's flags, in values of their own."""
    values = flags.FlagValues()
    search.define_flags(values)
    values(["search", *arguments])
    return values


def test_the_command_refuses_before_it_embeds(index, gallery, tmp_path, monkeypatch):
    embedded = []
    monkeypatch.setattr(search, "index", lambda *_, **__: embedded.append(1))
    phi.save(index.network, tmp_path / "phi.safetensors")
    where = ("--clip=embedded:scenes", f"--phi={tmp_path / 'phi.safetensors'}", f"--gallery={gallery}")
    image = f"--image={gallery}/a/03.png"
    for query in ((image, "--text=is red", "--k=12"), (image, "--text= "), ("--image=/none.png", "--text=is red")):
        with pytest.raises(SystemExit, match=r"^(InputError|MissingInput|ValueError): ") as stop:
            search.run(parsed(*where, *query))
        assert stop.value.code == 2
    for query in ((image,), (), (image, "--text=is red", f"--out={tmp_path}")):
        with pytest.raises(SystemExit, match=r"text|--image|--out") as stop:
            search.run(parsed(*where, *query))
        assert stop.value.code == 2
    with pytest.raises(SystemExit, match="'clip': is empty"):  # and not the current folder
        search.run(parsed("--clip=", *where[1:], image, "--text=is red"))
    assert not embedded


def test_the_command_line_is_refused_in_one_line(index, gallery, tmp_path):
    """In a process of its own, with the status that the shell sees."""
    phi.save(index.network, tmp_path / "phi.safetensors")
    where = ("-m", "rtd_jax.search", "--clip=embedded:scenes", f"--phi={tmp_path / 'phi.safetensors'}",
             f"--gallery={gallery}", f"--image={gallery}/a/03.png")  # fmt: skip
    for words, says in ((("--text=is", "red"), "not understood: red; "), (("--text=is red", "--k=0"), "flag --k=0: ")):
        assert finish(start(*where, *words), 2).startswith(says)


def test_a_tilde_is_the_home_folder(index, gallery, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    phi.save(index.network, tmp_path / "phi.safetensors")
    (tmp_path / "photos").symlink_to(gallery)
    search.run(
        parsed("--clip=embedded:scenes", "--phi=~/phi.safetensors", "--gallery=~/photos", "--image=~/photos/a/03.png",
               "--text=is red", "--out=~/out.png", "--cache=~/cache", "--k=2")
    )  # fmt: skip
    assert (tmp_path / "out.png").is_file() and (tmp_path / "cache").is_dir() and not (tmp_path / "~").exists()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_names_of_any_kind_are_printed_and_drawn(index, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [b"$x^{$.png", b"\xe9t\xe9.png", b"_$1$_$2.png", b"a.png"]
    for i, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.new("RGB", (8, 8), (60 * i, 0, 0)).save(file, "PNG")
    (folder / "again").symlink_to(folder)
    phi.save(index.network, tmp_path / "phi.safetensors")
    search.run(
        parsed("--clip=embedded:scenes", f"--phi={tmp_path}/phi.safetensors", f"--gallery={folder}",
               f"--image={folder}/a.png", "--text=is red $"[:-2], f"--out={tmp_path}/found.png", "--k=3")
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert len(printed.encode().splitlines()) == 3 and r"\xe9t\xe9.png" in printed and "$x^{$.png" in printed
    assert (tmp_path / "found.png").is_file()


def test_pictures_are_upright(tmp_path):
    exif = Image.Exif()
    exif[274] = 6
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (40, 20), (255, 0, 0)).save(path, exif=exif)
    white = (figures.thumbnail(path) == 255).all(2)
    assert white[:, 0].all() and not white[0].all()  # taller than wide


def test_serving_needs_gradio(index, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(ImportError, match=r"pip install -e '.\[app\]'"):
        search.serve(index, host="127.0.0.1", port=0, k=3)
