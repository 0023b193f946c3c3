import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from clip_jax import preprocess
from clip_jax.preprocess import Preprocessing
from launch.reading import images

SPEC = Preprocessing(size=16, crop=16)
CONFIG = SimpleNamespace(image=SimpleNamespace(image_size=16))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def by_hand(cropped):
    """uint8 -> normalised, in float64."""
    return (cropped / 255 - np.array(preprocess.CLIP_MEAN)) / np.array(preprocess.CLIP_STD)


# How a picture that is stored with an EXIF orientation is meant to be seen.
ORIENTATIONS = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_the_rotation_that_exif_notes_is_applied(tmp_path, orientation):
    pixels, exif = noise(20, 30, 3), Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "image.png"
    Image.fromarray(pixels).save(path, exif=exif)
    np.testing.assert_array_equal(np.asarray(preprocess.read(path)), ORIENTATIONS[orientation](pixels))
    with Image.open(path) as opened:
        np.testing.assert_array_equal(np.asarray(preprocess.read(opened)), ORIENTATIONS[orientation](pixels))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled(tmp_path, suffix):
    values = np.linspace(0, 65535, 16 * 16).astype(np.uint16).reshape(16, 16)
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(values).save(path)
    grey = np.round(values / 257)
    found = preprocess.preprocess(SPEC, path)[0]
    np.testing.assert_allclose(found, by_hand(np.stack([grey] * 3, -1)), atol=1e-5)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_modes_of_sixteen_bits(mode):
    values = np.array([[0, 257, 65535, 32896]])
    picture = Image.frombytes(mode, (4, 1), values.astype({"I": "<i4", "I;16": "<u2", "I;16B": ">u2"}[mode]).tobytes())
    assert np.asarray(preprocess.read(picture))[0, :, 0].tolist() == [0, 1, 255, 128]


def test_transparent_parts_are_white():
    pixels = noise(16, 16, 4)
    pixels[..., 3] = np.where(np.arange(16) < 8, 0, 255)
    found = np.asarray(preprocess.read(Image.fromarray(pixels)))
    assert (found[:, :8] == 255).all()
    np.testing.assert_array_equal(found[:, 8:], pixels[:, 8:, :3])


@pytest.mark.parametrize("kind, values", [("floats", np.float32([[1.5]])), ("32-bit integers", np.int32([[70000]]))])
def test_values_without_a_range_are_refused(tmp_path, kind, values):
    path = tmp_path / "deep.tif"
    Image.fromarray(values).save(path)
    with pytest.raises(ValueError, match=rf"deep\.tif: contains {kind} from .* and declares no range"):
        preprocess.preprocess(SPEC, [noise(16, 16, 3), path])


def test_images_are_decoded_as_everywhere(tmp_path):
    """Floats in [0, 1], and a photo that is turned and has a rational with a zero denominator in its EXIF block."""
    Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)).save(tmp_path / "float.tif")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif.get_ifd(0x8769)[0x9201] = TiffImagePlugin.IFDRational(0, 0)
    Image.fromarray(noise(20, 30, 3)).save(tmp_path / "turned.jpg", exif=exif)
    for name in ("float.tif", "turned.jpg"):
        expected = images.pixels(tmp_path / name, alpha="white")
        np.testing.assert_array_equal(np.asarray(preprocess.read(tmp_path / name)), expected)
    assert expected.shape == (30, 20, 3)


def test_unreadable_files_are_named(tmp_path):
    whole = tmp_path / "whole.jpg"
    Image.fromarray(noise(64, 64, 3)).save(whole)
    contents = {"cut.jpg": whole.read_bytes()[:-500], "text.png": b"no image", "empty.gif": b""}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{tmp_path / name}: .*; replace the file or remove it"):
            preprocess.preprocess(SPEC, [whole, tmp_path / name])
    with pytest.raises(FileNotFoundError, match=r"absent\.jpg: no such file"):
        preprocess.preprocess(SPEC, [whole, str(tmp_path / "absent.jpg")])
    with pytest.raises(ValueError, match=f"{tmp_path}: is a folder; a regular file is needed"):
        preprocess.preprocess(SPEC, tmp_path)


@pytest.mark.parametrize(
    "array",
    [noise(16, 16), noise(16, 16, 4), noise(16, 16, 3) / 255, noise(3, 16, 16), noise(0, 16, 3), noise(9)],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_of_another_kind_are_refused(array):
    with pytest.raises(ValueError, match=r"number 1: arrays have to be uint8 \(h, w, 3\), got " + str(array.dtype)):
        preprocess.preprocess(SPEC, [noise(16, 16, 3), array])


def test_inputs_of_another_kind_are_refused():
    for array in (noise(16, 16), noise(2, 1, 16, 16, 3)):
        with pytest.raises(ValueError, match=r"has to be uint8 \(n, h, w, 3\)"):
            preprocess.preprocess(SPEC, array)
    with pytest.raises(ValueError, match="number 0: arrays have to be uint8"):
        preprocess.preprocess(SPEC, noise(2, 16, 16, 3).astype(np.float32))
    with pytest.raises(TypeError, match="number 1 must be a path, a PIL image or a uint8 array, not bytes"):
        preprocess.preprocess(SPEC, [noise(16, 16, 3), b""])


def test_one_image_or_many(tmp_path):
    pixels, path = noise(20, 30, 3), tmp_path / "image.png"
    Image.fromarray(pixels).save(path)
    one = preprocess.preprocess(SPEC, pixels)
    assert one.shape == (1, 16, 16, 3) and one.dtype == np.float32
    many = preprocess.preprocess(SPEC, [path, str(path), Image.fromarray(pixels), pixels])
    np.testing.assert_array_equal(many, np.repeat(one, 4, 0))
    np.testing.assert_array_equal(preprocess.preprocess(SPEC, pixels[None]), one)
    assert preprocess.preprocess(SPEC, []).shape == (0, 16, 16, 3)


def test_images_of_the_final_size_take_the_vectorised_way(monkeypatch):
    stack = noise(5, 16, 16, 3)
    one_by_one = preprocess.preprocess(SPEC, list(stack))
    monkeypatch.delattr(preprocess, "crop")
    np.testing.assert_array_equal(preprocess.preprocess(SPEC, stack), one_by_one)
    np.testing.assert_allclose(one_by_one, by_hand(stack), atol=1e-5)


@pytest.mark.parametrize("spec", [Preprocessing(size=16, crop=14), Preprocessing(size=(16, 18), crop=16)])
def test_a_stack_that_still_has_to_be_cropped_or_resized(spec):
    stack = noise(3, 16, 16, 3)
    np.testing.assert_array_equal(preprocess.preprocess(spec, stack), preprocess.preprocess(spec, list(stack)))


def test_normalising_inside_jit():
    stack = noise(3, 16, 16, 3)
    ours = jax.jit(preprocess.normalize, static_argnums=0)(SPEC, stack)
    np.testing.assert_allclose(ours, preprocess.normalize(SPEC, stack), atol=1e-5)


@pytest.mark.parametrize(
    "width, height, padded",
    [(100, 100, (100, 100)), (125, 100, (125, 100)), (200, 100, (200, 160)), (100, 201, (160, 201)), (9, 1, (9, 7))],
)
def test_target_padding(width, height, padded):
    pixels = noise(height, width, 3)
    found = np.asarray(preprocess.pad_to_ratio(Image.fromarray(pixels), 1.25))
    assert found.shape[1::-1] == padded
    top, left = (padded[1] - height) // 2, (padded[0] - width) // 2
    np.testing.assert_array_equal(found[top : top + height, left : left + width], pixels)
    assert found.sum() == pixels.sum()  # the bars are black


# -- Settings ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"size": 16, "crop": 17}, "crop=17"),
        ({"size": (16, 12), "crop": 14}, "at most the resized short side, 12"),
        ({"size": 16, "crop": 0}, "crop=0"),
        ({"size": 16, "crop": 16, "resample": 9}, "unknown resample=9; valid numbers: .*3 .bicubic"),
        ({"size": 16, "crop": 16, "mean": (0.5,)}, "three values"),
        ({"size": 16, "crop": 16, "std": (0.5, 0.5, 0.0)}, "positive"),
        ({"size": 16, "crop": 16, "std": (0.5, 0.5, float("nan"))}, "finite"),
        ({"size": 16, "crop": 16, "mean": ("0.5", 0.5, 0.5)}, "numbers"),
        ({"size": True, "crop": 1}, "integers"),
        ({"size": 16, "crop": 16.0}, "size=16 and crop=16.0 must be integers"),
        ({"size": 16.5, "crop": 16}, "size=16.5 and crop=16 must be integers"),
        ({"size": (16, None), "crop": 16}, "must be integers"),
        ({"size": 16, "crop": 16, "resample": True}, "unknown resample=True"),
        ({"size": 16, "crop": 16, "rescale": 0}, "rescale must be a positive number, got 0"),
    ],
)
def test_contradictory_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


@pytest.mark.parametrize("spec", [Preprocessing(size=20, crop=16, resample=2), Preprocessing(size=(16, 20), crop=16)])
def test_settings_come_back_from_the_file(tmp_path, spec):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(preprocess.to_huggingface(spec)))
    assert preprocess.load(tmp_path, CONFIG) == spec


@pytest.mark.parametrize(
    "values, message",
    [
        ({"do_resize": False}, "do_resize=False is not supported"),
        ({"do_normalize": None}, "do_normalize=None is not supported"),
        ({"do_pad": True}, "do_pad=True"),
        ({"do_resize": "false"}, "do_resize='false' is not supported"),
        ({"size": [16, 16]}, r"size \[16, 16\] is not supported"),
        ({"rescale_factor": -(10**400)}, "rescale must be a positive number, got -1000"),
        ({"image_mean": 0.5}, "image_mean must be a list of three numbers, got 0.5"),
        ({"size": {"shortest_edge": 16, "longest_edge": 20}}, "longest_edge"),
        ({"crop_size": {"height": 16, "width": 18}}, "width"),
        ({"crop_size": 32, "size": 32}, "crops images to 32 pixels, the image tower takes 16"),
        ({"resample": "bicubic"}, "unknown resample='bicubic'"),
        ([], "preprocessor_config.json"),
    ],
)
def test_settings_that_clip_has_not(tmp_path, values, message):
    content = {"size": 16, "crop_size": 16} | values if isinstance(values, dict) else values
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message) as error:
        preprocess.load(tmp_path, CONFIG)
    assert "preprocessor_config.json" in str(error.value)


def test_settings_of_other_files(tmp_path):
    assert preprocess.load(tmp_path, CONFIG) == SPEC  # what all published CLIPs share
    values = {"mean": [0.5] * 3, "interpolation": "bilinear", "resize_mode": "squash"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {}, "preprocess_cfg": values}))
    squashed = Preprocessing(size=(16, 16), crop=16, mean=(0.5,) * 3, resample=2)
    assert preprocess.load(tmp_path, CONFIG) == squashed
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert preprocess.load(tmp_path, CONFIG) == squashed  # a processor's file that says nothing of images
    nested = {"image_processor": preprocess.to_huggingface(Preprocessing(size=18, crop=16))}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert preprocess.load(tmp_path, CONFIG) == Preprocessing(size=18, crop=16)
    (tmp_path / "preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"preprocessor_config\.json"):
        preprocess.load(tmp_path, CONFIG)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"interpolation": "cubic"}, "unknown interpolation 'cubic'; valid names: .*'bicubic'"),
        ({"resize_mode": "longest"}, "unsupported resize_mode 'longest'; valid names: 'shortest', 'squash'"),
    ],
)
def test_unknown_settings_of_openclip(values, message):
    assert preprocess.from_openclip({}, 16) == SPEC
    with pytest.raises(ValueError, match=message):
        preprocess.from_openclip(values, 16)
