import functools
import os
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from clip_jax import cache as store
from clip_jax import embed, model, preprocess, tokenizer
from clip_jax.clip import Clip
from clip_jax.preprocess import Preprocessing
from launch import files
from tests.clip_jax import towers
from tests.commands import finish, start

TEXTS = ["red", "a " * 28 + "circle", "", "a red $ circle", "red " * 17, "unknown words, in pieces", "grass"]
TOLERANCE = 1e-5


@functools.cache
def make_clip(context_length=40):
    tok = tokenizer.build(["a red circle on grass $"], context_length=context_length)
    text = replace(towers.TINY.text, context_length=context_length, vocab_size=tok.vocab_size, eos_token_id=tok.end_id)
    config = replace(towers.TINY, text=text)
    return Clip(config, towers.parameters(config), tok, Preprocessing(size=18, crop=16))


@pytest.fixture
def clip():
    return make_clip()


def pictures(n=11, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (*rng.integers(12, 50, 2), 3), dtype=np.uint8) for _ in range(n)]


@pytest.fixture
def folder(tmp_path):
    """Images in subfolders, named against the order in which they are written."""
    root = tmp_path / "images"
    for i, pixels in enumerate(pictures()):
        path = root / f"class{i % 2}" / f"{90 - i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (root / "notes.txt").write_text("no image")
    return root


encode_image = jax.jit(model.encode_image, static_argnums=0)
encode_text = jax.jit(model.encode_text, static_argnums=0, static_argnames="marker_id")


def one_by_one(clip, images, **options):
    pixels = [preprocess.preprocess(clip.preprocessing, [image], **options) for image in images]
    return np.concatenate([encode_image(clip.config, clip.params, one) for one in pixels])


def texts_one_by_one(clip, texts, pseudo=None):
    """At full length."""
    encode = functools.partial(encode_text, clip.config, clip.params)
    if pseudo is None:
        return np.concatenate([encode(clip.tokenizer.encode(text)) for text in texts])
    pairs = [(clip.tokenizer.encode(text), one[None]) for text, one in zip(texts, pseudo, strict=True)]
    return np.concatenate([encode(ids, pseudo_tokens=one, marker_id=259) for ids, one in pairs])


def close(ours, reference):
    assert ours.dtype == np.float32 and ours.shape == reference.shape
    assert np.abs(np.diff(reference, axis=0)).max() > 0.1  # otherwise any order would do
    np.testing.assert_allclose(ours, reference, atol=TOLERANCE)


quiet = {"progress": False}

# -- Images --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size, workers", [(1, 1), (4, 2), (11, 3), (64, None)])
def test_images_in_batches_are_images_one_by_one(clip, batch_size, workers):
    images = pictures()
    found = embed.embed_images(clip, images, batch_size=batch_size, workers=workers, **quiet)
    close(found, one_by_one(clip, images))


def test_a_folder_is_its_files_in_order(clip, folder):
    paths = embed.list_images(folder)
    assert [path.relative_to(folder).as_posix() for path in paths[:2]] == ["class0/80.png", "class0/82.png"]
    assert len(paths) == 11
    reference = one_by_one(clip, paths)
    for images in (folder, str(folder), paths, [Image.open(path) for path in paths]):
        close(embed.embed_images(clip, images, batch_size=4, **quiet), reference)
    np.testing.assert_allclose(embed.embed_images(clip, str(paths[3]), **quiet), reference[3:4], atol=TOLERANCE)


def test_target_padding_is_passed_on(clip):
    images = [np.repeat(pictures(1)[0][:20, :12], 4, axis=0), *pictures(2)]
    found = embed.embed_images(clip, images, target_pad=True, **quiet)
    close(found, one_by_one(clip, images, target_pad=True))
    assert np.abs(found[0] - one_by_one(clip, images)[0]).max() > 0.01


def test_a_stack_of_the_final_size_is_taken_as_it_is(clip, monkeypatch):
    sized = replace(clip, preprocessing=Preprocessing(size=16, crop=16))
    stack = np.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), dtype=np.uint8)
    reference = one_by_one(sized, list(stack))
    monkeypatch.delattr(preprocess, "crop")
    close(embed.embed_images(sized, stack, batch_size=4, **quiet), reference)


def test_nothing_to_embed(clip):
    assert embed.embed_images(clip, [], **quiet).shape == (0, clip.config.projection)
    assert embed.embed_texts(clip, [], **quiet).shape == (0, clip.config.projection)


def count_programs(monkeypatch, name):
    """Shapes that a model's function is traced for from now on."""
    traced, original = [], getattr(model, name)

    def encode(config, params, inputs, **options):
        traced.append(inputs.shape)
        return original(config, params, inputs, **options)

    monkeypatch.setattr(model, name, encode)
    for step in (embed.image_step, embed._text_step):
        step.clear_cache()
    return traced


def test_one_program_for_all_batches_and_calls(clip, monkeypatch):
    traced = count_programs(monkeypatch, "encode_image")
    embed.embed_images(clip, pictures(), batch_size=4, **quiet)
    embed.embed_images(clip, pictures(9, seed=1), batch_size=4, **quiet)
    assert traced == [(4, 16, 16, 3)]


def test_batches_are_decoded_ahead_but_not_all_at_once(clip, monkeypatch):
    decoded, seen, original = [], [], preprocess.crop
    monkeypatch.setattr(preprocess, "crop", lambda *a, **k: (decoded.append(1), original(*a, **k))[1])
    for (batch,) in embed._image_batches(clip.preprocessing, pictures(40), embed.prepare({}, 40, 4)[0], 2, False):
        seen.append((len(batch), len(decoded)))
    assert [length for length, _ in seen] == [4] * 10 and len(decoded) == 40
    assert seen[0][1] <= 16  # three batches ahead, and one more while the first waits


def test_the_bad_image_is_named(clip, folder):
    bad = folder / "class1" / "85.png"
    bad.write_bytes(bad.read_bytes()[:-60])
    with pytest.raises(ValueError, match=r"class1/85\.png: cannot be decoded"):
        embed.embed_images(clip, folder, batch_size=4, **quiet)
    for cached in ({}, {"cache": folder / "cache"}):
        with pytest.raises(FileNotFoundError, match=r"absent\.png: no such"):
            embed.embed_images(clip, [*embed.list_images(folder)[:2], folder / "absent.png"], **cached, **quiet)
    with pytest.raises(ValueError, match="number 1: arrays have to be"):
        embed.embed_images(clip, [pictures(1)[0], np.zeros((3, 3))], **quiet)


def test_a_link_to_its_own_folder_lists_no_image_again(folder, caplog):
    before = embed.list_images(folder)
    (folder / "all").symlink_to(folder)
    (folder / "twice.png").symlink_to(before[0])
    assert embed.list_images(folder) == before
    assert "all is skipped: it leads to a folder that contains it" in caplog.text
    assert "twice.png is skipped" in caplog.text


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_numbers_below_one(clip, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0 must be at least 1"):
        embed.embed_images(clip, pictures(2), **options, **quiet)


def test_a_folder_without_images(clip, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no images \(.jpg .* in it"):
        embed.embed_images(clip, tmp_path, **quiet)


# -- Texts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [3, 256])
def test_texts_in_batches_are_texts_one_by_one(clip, batch_size):
    close(embed.embed_texts(clip, TEXTS, batch_size=batch_size, **quiet), texts_one_by_one(clip, TEXTS))


def test_short_texts_are_computed_short(clip, monkeypatch):
    reference = texts_one_by_one(clip, TEXTS * 2)
    traced = count_programs(monkeypatch, "encode_text")
    close(embed.embed_texts(clip, TEXTS * 2, batch_size=2, **quiet), reference)
    # With start and end up to 31 tokens, of 40 that there could be; every batch by its longest text.
    assert sorted(traced) == [(2, 16), (2, 24), (2, 32)]


@pytest.mark.parametrize(
    "shape, texts", [((24,), ["$", "a $", "red $ on $"]), ((2, 24), ["$ $", "a $ red $", "$ on $"])], ids=["one", "two"]
)
def test_every_text_gets_its_own_pseudo_tokens(clip, shape, texts):
    texts = [*texts, "a " * 20 + texts[1], *texts]
    pseudo = np.random.default_rng(0).normal(size=(len(texts), *shape)).astype(np.float32)
    found = embed.embed_texts(clip, texts, batch_size=2, pseudo_tokens=pseudo, **quiet)
    close(found, texts_one_by_one(clip, texts, pseudo))
    assert np.abs(found[:3] - found[4:]).max(1).min() > 0.01  # the same texts, other tokens


def test_pseudo_tokens_that_do_not_fit(clip):
    with pytest.raises(ValueError, match="text 1 has the marker 259 0 times"):
        embed.embed_texts(clip, ["a $", "red"], pseudo_tokens=np.zeros((2, 24)), **quiet)
    with pytest.raises(ValueError, match="text 0 has the marker 259 1 times; the pseudo tokens need 2"):
        embed.embed_texts(clip, ["a $", "$ $"], pseudo_tokens=np.zeros((2, 2, 24)), **quiet)
    with pytest.raises(ValueError, match="text 1 has the marker 259 0 times"):  # cut off with the end of the text
        embed.embed_texts(clip, ["a $", "red " * 60 + "$"], pseudo_tokens=np.zeros((2, 24)), **quiet)
    with pytest.raises(ValueError, match="2 texts cannot take pseudo tokens for 3 texts"):
        embed.embed_texts(clip, ["a $", "$"], pseudo_tokens=np.zeros((3, 24)), **quiet)
    with pytest.raises(ValueError, match="batch_size=0"):
        embed.embed_texts(clip, TEXTS, batch_size=0, **quiet)


# -- Cache ---------------------------------------------------------------------------------


@pytest.fixture
def computed(monkeypatch):
    """Counts how often embeddings are computed."""
    runs, original = [], embed._run
    monkeypatch.setattr(embed, "_run", lambda *args: (runs.append(1), original(*args))[1])
    return runs


def test_the_second_time_it_comes_from_the_disk(clip, folder, tmp_path, computed):
    get = lambda clip=clip, images=folder, **k: embed.embed_images(clip, images, cache=tmp_path / "cache", **k, **quiet)
    first = get()
    close(first, one_by_one(clip, embed.list_images(folder)))
    second = get(batch_size=3)  # which does not change what they are
    assert len(computed) == 1
    assert isinstance(second, np.memmap) and isinstance(first, np.memmap) and not second.flags.writeable
    np.testing.assert_array_equal(first, second)
    get(images=embed.list_images(folder))
    assert len(computed) == 1
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".npy"]  # and nothing left over


def moved(params, tower):
    """The parameters, one number of one tower a little changed."""
    changed = jax.tree.map(np.copy, params)
    changed[tower]["blocks"]["up"]["bias"][1, 3] += 1e-6
    return changed


def test_what_the_embeddings_depend_on_makes_an_entry_of_its_own(clip, folder, tmp_path, computed):
    def runs(clip=clip, images=folder, **options):
        before = len(computed)
        found = embed.embed_images(clip, images, cache=tmp_path / "cache", **options, **quiet)
        np.testing.assert_array_equal(found.shape, (11, clip.config.projection))
        return len(computed) - before

    paths = embed.list_images(folder)
    assert runs() == 1
    assert runs(replace(clip, params=moved(clip.params, "image"))) == 1
    assert runs(replace(clip, params=moved(clip.params, "text"))) == 0
    assert runs(replace(clip, config=replace(clip.config, dtype="bfloat16"))) == 1
    assert runs(replace(clip, config=replace(clip.config, remat=True))) == 0
    assert runs(replace(clip, preprocessing=Preprocessing(size=18, crop=16, resample=2))) == 1
    assert runs(target_pad=True) == 1
    assert runs(images=paths[::-1]) == 1
    state = os.stat(paths[4])
    os.utime(paths[4], ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert runs() == 1
    assert runs() == 0


def test_arrays_are_told_apart_by_content(clip, tmp_path, computed):
    get = functools.partial(embed.embed_images, clip, cache=tmp_path, **quiet)
    stack = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3), dtype=np.uint8)
    get(stack)
    get(stack.copy())
    get(list(stack))
    get(list(stack))
    assert len(computed) == 2
    stack[2, 19, 19, 2] ^= 1
    get(stack)
    get(list(stack))
    assert len(computed) == 4
    with pytest.raises(ValueError, match="all images as paths or all as arrays"):
        get([Image.fromarray(stack[0])])


def test_texts_come_from_the_disk_too(clip, tmp_path, computed):
    def runs(texts, clip=clip, pseudo_tokens=None):
        before = len(computed)
        options = {"cache": tmp_path, "pseudo_tokens": pseudo_tokens, **quiet}
        close(embed.embed_texts(clip, texts, **options), texts_one_by_one(clip, texts, pseudo_tokens))
        return len(computed) - before

    pseudo = np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    marked = ["a $", "a red $"]
    assert [runs(TEXTS), runs(TEXTS), runs(TEXTS[::-1]), runs(TEXTS[1:])] == [1, 0, 1, 1]
    assert runs(TEXTS, replace(clip, params=moved(clip.params, "image"))) == 0
    assert runs(TEXTS, replace(clip, params=moved(clip.params, "text"))) == 1
    found = [runs(marked), *(runs(marked, pseudo_tokens=p) for p in (pseudo, pseudo, pseudo + 1))]
    assert found == [1, 1, 0, 1]


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[:-40], "empty": b"", "flipped": content, "foreign": b"x" * 500}[how])


@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "foreign"])
def test_a_damaged_entry_is_computed_again(clip, tmp_path, computed, caplog, how):
    get = functools.partial(embed.embed_texts, clip, TEXTS, cache=tmp_path, **quiet)
    reference = np.array(get())
    (path,) = tmp_path.iterdir()
    damage(path, how)
    np.testing.assert_array_equal(get(), reference)
    assert len(computed) == 2
    assert f"cache entry {path} is damaged" in caplog.text
    get()
    assert len(computed) == 2


def test_what_killed_writes_left_in_the_cache_is_removed(clip, tmp_path):
    left = tmp_path / f".0123.npy.{files._machine()}-4194300-1-x.partial"  # of a process that does not run any more
    left.write_bytes(b"half of it")
    embed.embed_texts(clip, TEXTS, cache=tmp_path, **quiet)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npy"]


def test_an_entry_of_another_shape_is_damaged(tmp_path, caplog):
    make = lambda shape: store.fetch(tmp_path, {"name": 1}, shape, lambda: np.ones(shape, np.float32))
    make((3, 2))
    assert make((4, 2)).shape == (4, 2)
    assert "holds float32 (3, 2), not float32 (4, 2)" in caplog.text


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(file, array):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.fetch(tmp_path, {}, (1,), lambda: np.ones(1, np.float32))
    assert not list(tmp_path.iterdir())


def test_fingerprints():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": {"c": np.float32(1)}}
    same = {"b": {"c": jax.numpy.float32(1)}, "a": jax.numpy.asarray(tree["a"])}
    assert store.fingerprint(tree) == store.fingerprint(same)
    others = [
        {**tree, "a": tree["a"].reshape(3, 2)},
        {**tree, "a": tree["a"].astype(np.float16)},
        {**tree, "a": tree["a"].view(np.int32)},
        {"a": tree["a"], "b": {"d": np.float32(1)}},
        {**tree, "b": {"c": np.float32(2)}},
    ]
    assert len({store.fingerprint(other) for other in [tree, *others]}) == 6
    half = {"a": jax.numpy.ones(3, jax.numpy.bfloat16)}
    assert store.fingerprint(half) != store.fingerprint({"a": jax.numpy.ones(3)})


# -- Embedder ------------------------------------------------------------------------------


def test_an_embedder_embeds_as_the_functions_do(clip, tmp_path, computed):
    embedder = embed.Embedder(clip, 4, workers=2, target_pad=True, cache=tmp_path)
    images, pseudo = pictures(), np.random.default_rng(0).normal(size=(2, 24)).astype(np.float32)
    marked = ["a $", "a red $"]
    for _ in range(2):
        close(embedder.images(images), one_by_one(clip, images, target_pad=True))
        close(embedder.texts(TEXTS), texts_one_by_one(clip, TEXTS))
        close(embedder.texts(marked, pseudo_tokens=pseudo), texts_one_by_one(clip, marked, pseudo))
    assert len(computed) == 3
    embed.embed_images(clip, images, target_pad=True, cache=tmp_path, **quiet)
    assert len(computed) == 3  # one cache for both ways
    np.testing.assert_array_equal(embed.Embedder(clip).texts(TEXTS), embed.embed_texts(clip, TEXTS, **quiet))


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"workers": 0}])
def test_an_embedder_with_numbers_below_one(clip, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=0 must be at least 1"):
        embed.Embedder(clip, **options)


# -- Devices -------------------------------------------------------------------------------


def test_several_devices_find_what_one_finds():
    output = finish(start("-m", "tests.clip_jax.embed_worker", devices=4))
    assert output.splitlines()[-1] == "4 devices agree with one"
