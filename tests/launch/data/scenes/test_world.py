"""Scenes: the compositions, what is held out, and how they are drawn as pixels."""

import itertools

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier

from launch.data import scenes
from launch.data.scenes import rendering, shapes, world
from launch.data.scenes.world import BACKGROUND, COLOUR, SHAPE, SIZE


def mixed(n, seed=0):
    return world.sample(world.stream(seed, "test"), n, held=None)


def test_the_world_is_as_large_as_it_should_be():
    assert world.COUNTS == (12, 8, 3, 3, 10) and len(world.compositions()) == 8640
    assert len(np.unique(world.compositions(), axis=0)) == 8640
    assert list(world.ATTRIBUTES) == ["shape", "colour", "size", "pattern", "background"]
    everything = world.compositions()
    named = [world.SHAPES[row[SHAPE]] in world.ANGULAR for row in everything]
    np.testing.assert_array_equal(world.family(everything), named)
    np.testing.assert_array_equal(
        world.ground(everything), [world.BACKGROUNDS[row[BACKGROUND]] in world.WATER for row in everything]
    )


def test_no_word_stands_for_two_values():
    words = list(itertools.chain.from_iterable(world.SYNONYMS.values()))
    assert len(words) == len(set(words)) and not any(" " in word for word in words)
    assert {value for values in world.ATTRIBUTES.values() for value in values} <= set(world.SYNONYMS)


def test_a_fifth_of_the_triples_is_held_out_and_every_pair_is_seen():
    everything = world.compositions()
    held = scenes.held_out(everything)
    triples = everything[:, [SHAPE, COLOUR, BACKGROUND]]
    held_triples, seen_triples = (set(map(tuple, triples[mask])) for mask in (held, ~held))
    assert not held_triples & seen_triples and len(held_triples | seen_triples) == 960
    assert abs(len(held_triples) / 960 - 0.2) <= 0.02
    for first, second in itertools.combinations(range(5), 2):
        for mask in (held, ~held):  # each pair of values is trained on, and tested
            pairs = np.unique(everything[mask][:, [first, second]], axis=0)
            assert len(pairs) == world.COUNTS[first] * world.COUNTS[second]
    for shape, colour in itertools.product(range(12), range(8)):
        lands = [b for s, c, b in held_triples if (s, c) == (shape, colour)]
        assert len(lands) == 2 and sum(b < 5 for b in lands) == 1


def test_sampling():
    generator = world.stream(0, "test")
    held, seen = (world.sample(generator, 4000, held=held) for held in (True, False))
    assert scenes.held_out(held).all() and not scenes.held_out(seen).any()
    for column, count in enumerate(world.COUNTS):
        shares = np.bincount(seen[:, column], minlength=count) * count / len(seen)
        assert shares.min() > 0.7 and shares.max() < 1.3
    distinct = world.sample(generator, 1728, held=True, distinct=True)
    assert len(np.unique(distinct, axis=0)) == 1728
    with pytest.raises(ValueError, match="1729 distinct compositions of 1728"):
        world.sample(generator, 1729, held=True, distinct=True)


@pytest.mark.parametrize(
    "attributes, message",
    [
        ([[0, 0, 0, 0]], r"integers of shape \(n, 5\), got int64 \(1, 4\)"),
        ([[0.0, 0, 0, 0, 0]], "got float64"),
        ([[0, 0, 0, 0, 0], [0, 8, 0, 0, 0]], r"row 1: colour 8 is outside 0 to 7 \(red, green,"),
        ([[0, 0, -1, 0, 0]], "row 0: size -1 is outside 0 to 2"),
    ],
)
def test_wrong_attributes_are_named(attributes, message):
    with pytest.raises(ValueError, match=message):
        scenes.render(np.array(attributes), seed=0)


def test_images_are_a_function_of_seed_row_and_attributes():
    attributes = mixed(1000)  # several chunks
    images = scenes.render(attributes, seed=3)
    assert images.dtype == np.uint8 and images.shape == (1000, 32, 32, 3)
    np.testing.assert_array_equal(images, scenes.render(attributes, seed=3))
    rows = np.array([999, 5, 480, 481, 5])
    np.testing.assert_array_equal(images[rows], scenes.render(attributes[rows], seed=3, rows=rows))
    np.testing.assert_array_equal(images[:7], scenes.render(attributes[:7], seed=3))
    moved = scenes.render(attributes[:7], seed=3, rows=np.arange(1, 8))
    other = scenes.render(attributes[:7], seed=4)
    assert all((images[i] != moved[i]).mean() > 0.5 and (images[i] != other[i]).mean() > 0.5 for i in range(7))
    assert scenes.render(attributes[:0], seed=0).shape == (0, 32, 32, 3)
    with pytest.raises(ValueError, match="rows must be 7 integers from 0 on"):
        scenes.render(attributes[:7], seed=3, rows=np.arange(6))


def differs(attributes, column, value):
    """Where another value of an attribute changes the image: bool, (n, 32, 32)."""
    other = attributes.copy()
    other[:, column] = value
    images = scenes.render(attributes, seed=0).astype(int), scenes.render(other, seed=0).astype(int)
    return np.abs(images[0] - images[1]).max(-1) > 2


@pytest.mark.parametrize(
    "shape, area",  # in units of the squared radius
    [
        ("circle", np.pi * 0.95**2),
        ("ring", np.pi * (1.02**2 - 0.54**2)),
        ("oval", np.pi * 1.08 * 0.55),
        ("square", 1.6**2),
        ("triangle", 1.78),
        ("diamond", 2 * 0.68 * 1.05),
        ("cross", 4 * 0.6 - 0.36),
        ("arrow", 1.05 * 0.86 + 0.52),
    ],
)
def test_shapes_have_their_size(shape, area):
    """A black scene and a white one of the same seed differ inside the object; edges count by their coverage."""
    attributes = np.tile(np.int32([world.SHAPES.index(shape), 7, 2, 0, 4]), (200, 1))
    white = attributes.copy()
    white[:, COLOUR] = 6
    difference = scenes.render(white, seed=0).astype(float) - scenes.render(attributes, seed=0)
    inside = (difference.mean(-1) / difference.mean(-1).max((1, 2), keepdims=True)).sum((1, 2))
    np.testing.assert_allclose(inside.mean() / 12.0**2, area, rtol=0.06)


@pytest.mark.parametrize("shape", world.SHAPES)
def test_distances_are_distances_near_the_edge(shape):
    y, x = np.mgrid[-1.4:1.4:0.01, -1.4:1.4:0.01].astype(np.float32)
    distance = shapes.DISTANCES[shape](x, y)
    inside = distance < 0
    assert inside.any() and np.hypot(x, y)[inside].max() < 1.3
    slope = np.hypot(*np.gradient(distance, 0.01))[np.abs(distance) < 0.05]
    assert 0.95 < np.median(slope) < 1.05 and slope.max() < 1.1
    assert set(shapes.DISTANCES) == set(world.SHAPES)


def test_an_attribute_changes_what_it_should():
    attributes = mixed(300)
    attributes[:, COLOUR], attributes[:, BACKGROUND] = 0, 0
    front, back = differs(attributes, COLOUR, 2), differs(attributes, BACKGROUND, 9)
    assert not (front & back).any(), "between object and background lies the outline"
    assert front.any((1, 2)).all() and back[:, [0, 0, -1, -1], [0, -1, 0, -1]].mean() > 0.99
    areas = [front[attributes[:, SIZE] == size].mean() for size in range(3)]
    assert areas[0] * 1.5 < areas[1] and areas[1] * 1.5 < areas[2]


def test_colours_are_those_of_the_table():
    for colour, (first, _) in rendering.TONES.items():
        attributes = np.tile(np.int32([6, world.COLOURS.index(colour), 2, 0, 4]), (50, 1))
        middle = scenes.render(attributes, seed=0)[:, 12:20, 12:20].mean((0, 1, 2))
        np.testing.assert_allclose(middle, first, atol=12)


@pytest.mark.parametrize("column, chance", list(enumerate(1 / np.array(world.COUNTS))))
def test_attributes_can_be_read_off_the_pixels_by_a_linear_classifier(column, chance):
    attributes = mixed(3000)
    pixels = scenes.render(attributes, seed=0)[:, ::2, ::2].reshape(3000, -1) / 255.0
    probe = RidgeClassifier(alpha=30.0).fit(pixels[:2400], attributes[:2400, column])
    assert probe.score(pixels[2400:], attributes[2400:, column]) > min(5 * chance, 0.5)
