"""Token ids and pixels against transformers' CLIPTokenizer and CLIPImageProcessor (which needs torchvision, so its
Pillow twin), on vocabularies and images made here."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clip_jax import preprocess, tokenizer
from clip_jax.preprocess import Preprocessing

LENGTH = 16
CORPUS = "a photo of the dog's red ball they'll café naïve 日本語 привет мир don't $ 2024 ... !!! ünïcödé t-shirt hello"


def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's alphabet and left-to-right merges of some words, without our own code."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    others = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(others)}
    merges = []
    for word in CORPUS.split():
        pieces = [symbol[b] for b in word.encode()]
        pieces[-1] += "</w>"
        for i in range(len(pieces) - 1):
            if len(word) % 4 or i < 2:  # some words are left in pieces
                merges.append(("".join(pieces[: i + 1]), pieces[i + 1]))
    merges = list(dict.fromkeys(merges))
    alphabet = [symbol[b] for b in printable + others]
    tokens = [*alphabet, *(s + "</w>" for s in alphabet), *(a + b for a, b in merges)]
    tokens = dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"])
    return {token: i for i, token in enumerate(tokens)}, merges


def write(folder, **settings):
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **settings}))
    return folder


def load_ours(folder):
    size = len(vocabulary()[0])
    text = {"context_length": LENGTH, "vocab_size": size, "end_rule": "largest_id", "eos_token_id": None}
    return tokenizer.load(folder, SimpleNamespace(text=SimpleNamespace(**text)))


def texts() -> list[str]:
    rng = np.random.default_rng(0)
    ranges = [(0, 256), (0x300, 0x340), (0x370, 0x500), (0x3040, 0x3100), (0x4E00, 0x4F00), (0x1F600, 0x1F64F)]
    alphabet = [chr(c) for low, high in ranges for c in range(low, high)]
    words = CORPUS.split()
    odd = ["", " ", "\n\t", "$", "a $ dog", "a $, dog.", "$$ $"]
    special = ["<|endoftext|>", "x <|startoftext|> y", "<|ENDOFTEXT|>"]
    long = [" ".join(words * 5), "x" * 300, "日本語" * 40, "😀" * 50]
    fused = ["cafe\u0301 CAFÉ", "İstanbul ẞ ﬁ Ω", "a\u00a0b\u3000c\u200bd", "I'M you'RE it'S 'd 3.14 1,000"]
    random = ["".join(rng.choice(alphabet, rng.integers(1, 40))) for _ in range(300)]
    mixed = [" ".join(rng.choice(words, rng.integers(1, 20))) for _ in range(100)]
    return [*odd, *special, *long, *fused, *random, *mixed]


def assert_same_ids(ours, theirs):
    padded = {"padding": "max_length", "truncation": True, "return_tensors": "np"}
    for length in (LENGTH, 5):
        reference = theirs(texts(), max_length=length, **padded)["input_ids"]
        np.testing.assert_array_equal(ours.encode(texts(), length), reference)


def test_ids_from_vocab_and_merges(tmp_path):
    vocab, merges = vocabulary()
    ours = load_ours(write(tmp_path))
    theirs = CLIPTokenizer(vocab=vocab, merges=merges)
    assert_same_ids(ours, theirs)
    assert ours.marker_id == theirs.convert_tokens_to_ids("$</w>") == 259
    assert (ours.start_id, ours.end_id, ours.pad_id) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)


@pytest.mark.parametrize("settings", [{}, {"pad_token": "!"}, {"pad_token": "<|endoftext|>", "model_max_length": 9}])
def test_ids_from_the_folder_that_transformers_reads(tmp_path, settings):
    write(tmp_path, **settings)
    assert_same_ids(load_ours(tmp_path), CLIPTokenizer.from_pretrained(tmp_path))


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"])
def test_ids_from_the_folder_that_transformers_writes(tmp_path, pad):
    vocab, merges = vocabulary()
    theirs = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=pad)
    theirs.save_pretrained(tmp_path)
    ours = load_ours(tmp_path)
    assert "tokenizer.json" in ours.files
    assert_same_ids(ours, theirs)


def test_what_we_save_is_read_by_transformers(tmp_path):
    ours = tokenizer.build(CORPUS.split(), context_length=LENGTH)
    ours.save(tmp_path)
    theirs = CLIPTokenizer.from_pretrained(tmp_path)
    assert_same_ids(ours, theirs)
    assert theirs.model_max_length == LENGTH
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).unlink()
    assert_same_ids(ours, CLIPTokenizer.from_pretrained(tmp_path))
    ours.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    assert_same_ids(ours, CLIPTokenizer.from_pretrained(tmp_path))


# -- Images --------------------------------------------------------------------------------

SIZES = [(32, 32), (33, 32), (32, 33), (37, 53), (53, 37), (15, 40), (9, 7), (400, 31), (101, 333), (640, 480), (1, 3)]
SPECS = {
    "equal": Preprocessing(size=32, crop=32),
    "odd rest": Preprocessing(size=33, crop=30),
    "odd crop": Preprocessing(size=40, crop=31),
    "other constants": Preprocessing(
        size=32, crop=32, mean=(0.5, 0.4, 0.3), std=(0.5, 0.6, 0.7), resample=2, rescale=1 / 127.5
    ),
    "squashed": Preprocessing(size=(34, 35), crop=32),
}


def image(width, height, mode="RGB"):
    """Smooth parts, edges and noise, so that the filter and the position of the crop matter."""
    rng = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    waves = [127 + 100 * np.sin(x / (3 + c) + y / (5 + c)) for c in range(4)]
    pixels = np.clip(np.stack(waves, -1) + rng.normal(0, 20, (height, width, 4)), 0, 255).astype(np.uint8)
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (255, 0, 30, 90)
    picture = Image.fromarray(pixels)
    if mode == "RGBA":
        return picture
    if mode == "P with alpha":
        palette = picture.convert("RGB").quantize(17)
        palette.info["transparency"] = 3
        return palette
    if mode == "RGB with key":
        keyed = picture.convert("RGB")
        keyed.info["transparency"] = (255, 0, 30)
        return keyed
    return picture.convert("LA").convert(mode) if mode in ("LA", "PA") else picture.convert("RGB").convert(mode)


def reference(spec, pictures):
    """transformers' pixels, channels last."""
    processor = CLIPImageProcessorPil(**preprocess.to_huggingface(spec))
    found = processor(pictures, return_tensors="np")["pixel_values"]
    return np.moveaxis(found, 1, -1)


@pytest.mark.parametrize("name", SPECS)
def test_pixels_of_odd_sizes(name):
    spec, pictures = SPECS[name], [image(*size) for size in SIZES]
    ours = preprocess.preprocess(spec, pictures)
    assert ours.dtype == np.float32
    assert np.abs(ours - reference(spec, pictures)).max() < 1e-5


def test_pixels_at_full_size():
    pictures = [image(*size) for size in [(500, 375), (225, 224), (224, 224), (97, 640)]]
    spec = Preprocessing(size=224, crop=224)
    assert np.abs(preprocess.preprocess(spec, pictures) - reference(spec, pictures)).max() < 1e-5


MODES = ["RGBA", "L", "LA", "P", "PA", "P with alpha", "RGB with key", "CMYK", "YCbCr", "1", "HSV"]


@pytest.mark.parametrize("mode", MODES)
def test_pixels_of_other_modes(mode):
    spec, picture = SPECS["equal"], image(53, 37, mode)
    ours, theirs = preprocess.preprocess(spec, picture), reference(spec, [picture])
    assert np.abs(ours - theirs).max() < 1e-5
    assert ours.std() > 0.1


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P with alpha", "LA", "L", "1"])
def test_pixels_of_files(tmp_path, mode):
    """What a PNG brings with it, transparency above all, is as transformers finds it in the opened file."""
    path = tmp_path / "image.png"
    image(53, 37, mode).save(path)
    ours = preprocess.preprocess(SPECS["equal"], path)
    assert np.abs(ours - reference(SPECS["equal"], [Image.open(path)])).max() < 1e-5


def test_pixels_of_arrays():
    array = np.asarray(image(45, 77))
    assert np.abs(preprocess.preprocess(SPECS["equal"], array) - reference(SPECS["equal"], [array])).max() < 1e-5


@pytest.mark.parametrize("width, height", itertools.product((20, 24, 25, 26, 31, 50, 90), (25, 20)))
def test_target_padding(width, height):
    """Against a frame of zeros of the wanted size with the picture in its middle."""
    picture = np.asarray(image(width, height))
    long, short = max(width, height), min(width, height)
    if long / short >= 1.25:
        short += 2 * int((long / 1.25 - short) / 2)  # the same on both sides, in whole pixels
    frame = np.zeros((short, long, 3) if width >= height else (long, short, 3), np.uint8)
    top, left = (frame.shape[0] - height) // 2, (frame.shape[1] - width) // 2
    frame[top : top + height, left : left + width] = picture
    ours = preprocess.preprocess(SPECS["equal"], picture, target_pad=True)
    assert np.abs(ours - reference(SPECS["equal"], [frame])).max() < 1e-5


def test_the_settings_file_is_read_as_transformers_reads_it(tmp_path):
    """Published files give the sizes as numbers or as dicts; the processor writes its own form."""
    for values in (
        {"size": 32, "crop_size": 32},
        {"size": {"shortest_edge": 33}, "crop_size": {"height": 32, "width": 32}, "resample": 2},
        {"size": {"height": 33, "width": 35}, "crop_size": 32, "image_std": [0.5, 0.5, 0.6]},
    ):
        theirs = CLIPImageProcessorPil(**values)
        theirs.save_pretrained(tmp_path)
        picture, config = image(45, 77), SimpleNamespace(image=SimpleNamespace(image_size=32))
        wanted = np.moveaxis(theirs(picture, return_tensors="np")["pixel_values"], 1, -1)
        for spec in (preprocess.from_huggingface(values), preprocess.load(tmp_path, config)):
            assert np.abs(preprocess.preprocess(spec, picture) - wanted).max() < 1e-5
