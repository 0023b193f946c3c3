"""Figures: whole PNG files of what they were given, without pyplot; and which of them a run has."""

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from robustgrad_jax import figures, gallery
from robustgrad_jax.figures import Line, Row
from tests.commands import ROOT

RNG = np.random.default_rng(0)


def pixels(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_grid_shows_every_picture(tmp_path):
    """Where a picture is dark the file is dark, where it is bright bright: rows and columns are not mixed up."""
    images = np.zeros((3, 8, 8, 1))
    images[1] = 1
    maps = np.zeros((3, 8, 8))
    maps[2] = 1
    figures.grid(tmp_path / "grid.png", [Row("input", images), Row("map", maps, ["a", "b", "c"])], "title")
    found = pixels(tmp_path / "grid.png")
    height, width, _ = found.shape
    columns = [round(width * at) for at in (0.38, 0.63, 0.87)]
    top, bottom = (found[round(height * at), columns].mean(-1) for at in (0.33, 0.80))
    assert top[1] > 250 and max(top[0], top[2]) < 5
    assert bottom[2] > 200 and max(bottom[:2]) < 30


def test_a_colour_picture_and_a_map_that_is_not_finite(tmp_path):
    images, maps = np.zeros((1, 6, 6, 3)), np.full((1, 6, 6), np.nan)
    images[..., 0] = 1
    figures.grid(tmp_path / "grid.png", [Row("input", images), Row("map", maps)])
    found = pixels(tmp_path / "grid.png")
    assert ((found == (255, 0, 0)).all(-1)).mean() > 0.1
    assert (found[round(len(found) * 0.75), round(found.shape[1] * 0.78)] == 255).all()  # blank


def test_panels(tmp_path):
    """Each label has its colour, in every panel."""
    x = np.array([4.0, 8.0, 16.0])
    lines = [Line("none", x, 1 / x), Line("l2", x, 2 / x, 0.1 / x)]
    figures.panels(tmp_path / "deep" / "panels.png", {f"panel {i}": lines for i in range(5)}, x_label="ε")
    found = pixels(tmp_path / "deep" / "panels.png")
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        where = (np.abs(found - colour).sum(-1) < 10).any(0)
        assert where[: len(where) // 4].any() and where[-len(where) // 4 :].any()  # four panels across


def test_what_cannot_be_drawn_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"rows of one length.*'a', 2.*'b', 3"):
        figures.grid(tmp_path / "g.png", [Row("a", np.zeros((2, 4, 4))), Row("b", np.zeros((3, 4, 4)))])
    with pytest.raises(ValueError, match="rows of one length"):
        figures.grid(tmp_path / "g.png", [])
    with pytest.raises(ValueError, match=r"each panel needs a line.*'empty': 0"):
        figures.panels(tmp_path / "p.png", {"empty": []}, x_label="ε")
    assert not list(tmp_path.iterdir())


def test_no_pyplot_and_no_matplotlib_until_something_is_drawn(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from robustgrad_jax import experiment, figures\n"
        "print('matplotlib' in sys.modules)\n"
        "figures.grid(sys.argv[1], [figures.Row('a', np.zeros((2, 4, 4)))])\n"
        "print('matplotlib.pyplot' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "grid.png")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "False"], done.stderr


def measurements(shift):
    """What the stages of one seed keep: random perturbations of two radii, one attack, curves."""
    curve = {f"insertion/{i}": shift + i / 20 for i in range(12)}
    attacked = {"aam-8/pcc": 0.4, **{f"aam-8-insertion/{i}": None if i == 3 else 0.1 for i in range(12)}}
    maps = RNG.random((2, 2, 6, 6))
    pictures = {"image": RNG.random((2, 6, 6, 1)), "attacked": RNG.random((2, 6, 6, 1))}
    pictures |= {"heatmap": maps[0], "attacked_heatmap": maps[1], "label": np.arange(2)}
    random = {"rps-16/pcc": 0.5 - shift, "rps-4/pcc": 0.75 + shift, "rps-4/nonfinite": 0, "rps-16/nonfinite": 0}
    of = lambda attribution, values, pictures: dict(attribution=attribution, values=values, pictures=pictures)
    return [
        of("", {"accuracy": 0.5, "examples": 5}, {}),
        of("gradient", random | {"examples": 5}, {}),
        of("gradient", attacked | {"examples": 5}, {"aam-8": pictures}),
        of("gradient", curve | {"insertion/area": 0.3, "examples": 5}, {}),
    ]


def test_what_a_gallery_shows(tmp_path):
    kept = [measurements(0.0), measurements(0.25)]
    gathered = [gallery.gather(own) for own in kept]
    assert [list(own) for own in gathered] == [["gradient"]] * 2
    members = [own["gradient"] for own in gathered]
    series = {"none": members}
    (panel,) = gallery.similarity_panels(series).items()  # one attack radius is no curve, a count no similarity
    assert panel[0] == "RPS, PCC"
    (line,) = panel[1]
    assert line.label == "none" and list(line.x) == [4, 16]
    np.testing.assert_allclose(line.y, [0.875, 0.375])
    np.testing.assert_allclose(line.spread, np.std([0.75, 1.0], ddof=1))

    curves = gallery.curve_panels(series)
    assert list(curves) == ["insertion", "insertion, order of AAM ε=8"]
    np.testing.assert_allclose(curves["insertion"][0].y, 0.125 + np.arange(12) / 20)
    np.testing.assert_allclose(curves["insertion"][0].x, np.arange(12) / 12)
    assert np.isnan(curves["insertion, order of AAM ε=8"][0].y[3])

    rows = gallery.picture_rows(series)
    assert [row.title for row in rows] == ["input", "none\nheat map", "none\nAAM ε=8", "none\nheat map after"]
    pictures = kept[0][2]["pictures"]["aam-8"]
    np.testing.assert_array_equal(rows[3].pictures, pictures["attacked_heatmap"])
    expected = np.corrcoef(pictures["heatmap"][1].ravel(), pictures["attacked_heatmap"][1].ravel())[0, 1]
    assert rows[3].captions[1] == f"PCC {expected:.2f}"

    gallery.draw(tmp_path / "figures" / "gradient", {"none": members, "l2": members[:1]})
    assert {p.name for p in (tmp_path / "figures" / "gradient").iterdir()} == {
        "attributions.png",
        "curves.png",
        "similarity.png",
    }


def test_a_run_without_attacks_curves_and_radii_has_no_figure(tmp_path):
    kept = [{"attribution": "gradient", "values": {"rps-4/pcc": 0.5}, "pictures": {}}]
    gallery.draw(tmp_path, {"gradient": [gallery.gather(kept)["gradient"]]})
    assert not list(tmp_path.rglob("*.png"))
