"""The whole evaluation: what the settings ask for, each measurement kept, on one device and on several."""

import contextlib
import functools
import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.data import Arrays, Spec, Splits, augment, feed
from launch.files import load_tree
from launch.processes.stop import Preempted, Stop
from launch.stages import File
from launch.store import MARKER, Store
from launch.training import keys, sharding
from robustgrad_jax import attributions, experiment, lrp, metrics, models, training
from robustgrad_jax.attributions import explainers
from robustgrad_jax.measures.settings import Evaluation
from robustgrad_jax.stages import inputs
from robustgrad_jax.stages.measurements import AttributionMeasurement, RobustnessResult, UnderAttack
from tests.commands import finish, start

N, SIDE, CLASSES = 5, 12, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def options(**evaluation):
    small = {"radii": (8.0,), "draws": 2, "attack_radii": (8.0,), "attack_steps": 2, "curve_steps": 3, "pictures": 2}
    base = {"batch_size": 4, "upper_bound": False, "metrics": ("pcc", "ssim")}
    return Evaluation(**base | small | evaluation)


@dataclass(frozen=True)
class Noise:
    """A data set of noise."""

    def load(self, seed: int) -> Splits:
        rng = np.random.default_rng(0)

        def draw(n):
            images = rng.integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)
            return Arrays(images, rng.integers(0, CLASSES, n).astype(np.int32))

        return Splits(draw(20), None, draw(N), ("a", "b", "c"), MEAN, STD, (SIDE, SIDE, 3), "noise")

    def spec(self) -> Spec:
        return Spec((SIDE, SIDE, 3), ("a", "b", "c"), 20, 0, N, in_memory=True)


@dataclass(frozen=True)
class RandomNetwork(inputs.Pretrained):
    """A network of random weights, in the precision of the images."""

    def variables(self):
        return jax.tree.map(lambda a: a.astype(jnp.result_type(float)), network()[1])


@functools.cache
def network():
    """A LeNet and its variables, on the host."""
    model = models.create("lenet", num_classes=CLASSES)
    with jax.enable_x64(False):
        variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.float32))
    return model, jax.tree.map(np.asarray, {"batch_stats": {}, **variables})


def plan(asked, seed=0):
    images = inputs.ImageSplits(Noise(), seed)
    weights = RandomNetwork(images, inputs.Architecture(), File(__file__))
    measurements = experiment._measurements(asked, images.data.spec(), weights, seed)
    return RobustnessResult(weights, tuple(measurements))


def measured(folder, asked, stop=None):
    return Store(folder, stop).get(plan(asked))


@contextlib.contextmanager
def images_in_double():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(augment, "normalize", functools.partial(augment.normalize, dtype=jnp.float64))
        yield


def kept(folder):
    return {p.parent.name.split("-")[0]: p.stat().st_mtime_ns for p in folder.glob(f"*/{MARKER}")}


def test_a_stopped_evaluation_goes_on_with_the_next_measurement(tmp_path):
    class StopAfterRps(Stop):
        def check(self):
            if "random_perturbations" in kept(tmp_path / "store"):
                raise Preempted("stopped")

    with pytest.raises(Preempted):
        measured(tmp_path / "store", options(), StopAfterRps())
    before = kept(tmp_path / "store")
    assert set(before) == {"clean_accuracy", "random_perturbations"}
    result = measured(tmp_path / "store", options())
    after = kept(tmp_path / "store")
    assert before == {name: after[name] for name in before}
    assert measured(tmp_path / "whole", options()) == result
    groups = {key.rpartition("/")[0] for key in result}
    assert groups == {"test", *(f"gradient/{g}" for g in ("rps-8", "aam-8", "insertion", "aam-8-insertion"))}
    assert all(np.isfinite(value) for value in result.values())
    assert result["gradient/aam-8/examples"] == N and result["gradient/aam-8/nonfinite"] == 0

    (attack,) = [stage for stage in plan(options()).measurements if isinstance(stage, UnderAttack)]
    pictures = Store(tmp_path / "store").get(attack)["pictures"]["aam-8"]
    test = Noise().load(0).test
    images = test.images[:2] / 255
    np.testing.assert_allclose(pictures["image"], images, atol=1e-6)
    moved = np.abs(pictures["attacked"] - images).max()
    assert 1 / 255 < moved < 8.01 / 255 and list(pictures["label"]) == list(test.labels[:2])
    assert not np.array_equal(pictures["heatmap"], pictures["attacked_heatmap"])


def test_two_devices_find_what_one_finds():
    output = finish(start("-m", "tests.robustgrad_jax.stages.measurements_worker", devices=2), timeout=600)
    result = json.loads(output.splitlines()[-1])
    assert result["1"] == pytest.approx(result["2"], rel=1e-7)
    assert result["1"] == pytest.approx(result["2 in programs"], rel=1e-7)
    assert 0.3 < result["1"]["gradient/aam-8/pcc"] < 0.9999


def test_attributions_that_are_not_finite_are_reported(tmp_path, monkeypatch, caplog):
    """Counted in the result, null in the store, said in the log."""

    def broken(self, model, variables, x, y, slots):
        values = attributions.create("gradient", model, variables)(x, y)
        return values.at[:, 0, 0, 0].set(jnp.where(slots == 4, jnp.inf, values[:, 0, 0, 0]))

    monkeypatch.setattr(explainers.Explainer, "__call__", broken)
    asked = options(perturbations=("rps",), curves=())
    with caplog.at_level("WARNING"):
        result = measured(tmp_path, asked)
    assert result["gradient/rps-8/nonfinite"] == 1 and result["gradient/rps-8/examples"] == N
    assert np.isnan(result["gradient/rps-8/pcc"]) and np.isfinite(result["gradient/rps-8/accuracy"])
    (rps,) = tmp_path.glob("random_perturbations-*")
    json.loads((rps / "value" / "tree.json").read_text(), parse_constant=pytest.fail)
    assert load_tree(rps / "value")["values"]["rps-8/pcc"] is None
    assert "gradient/rps-8/nonfinite: 1 images have an attribution that is not finite" in caplog.text
    again = measured(tmp_path, asked)  # read from the disk
    assert np.isnan(again.pop("gradient/rps-8/pcc")) and again.items() <= result.items()


@pytest.fixture
def double():
    with jax.enable_x64(True), images_in_double():
        yield


def test_what_settings_and_data_give_the_attributions(double, tmp_path):
    """Seeds, references, ranges and layers arrive where they belong; each against its own function."""
    names = ("integrated_gradients", "smoothgrad", "expected_gradients", "guided_backprop", "grad_cam")
    asked = options(attributions=names, composites=("epsilon_gamma_box",), path_steps=3, samples=2, references=4)
    model, variables = network()
    variables = jax.tree.map(lambda a: a.astype(np.float64), variables)
    data, store = Noise().load(7), Store(tmp_path)
    explanations = {}
    for stage in plan(asked, seed=7).measurements:
        if isinstance(stage, AttributionMeasurement):
            explanations[stage.attribution] = store.get(stage.explanation)
    assert list(explanations) == [*names, "lrp_epsilon_gamma_box"]
    x = jnp.asarray((data.test.images / 255 - MEAN) / STD)
    y, slots = jnp.asarray(data.test.labels), jnp.arange(10, 10 + N)
    f = lambda x: model.apply(variables, x)[0]
    ours = {
        name: jax.jit(functools.partial(subject.attribute, model, variables))(x, y, slots)
        for name, subject in explanations.items()
    }
    references = explanations["expected_gradients"].attribute.options["references"]
    pool = (data.train.images / 255 - MEAN) / STD
    near = np.abs(references[:, None] - pool).max((2, 3, 4))  # four of the training images
    assert sorted(near.min(1)) == pytest.approx([0] * 4, abs=1e-5) and len(set(near.argmin(1))) == 4
    box = [((pixel - np.array(MEAN)) / STD).astype(np.float32) for pixel in (0, 1)]
    key = functools.partial(keys.stream, 7)
    expected = {
        "integrated_gradients": lambda: attributions.integrated_gradients(f, x, y, steps=3),
        "smoothgrad": lambda: attributions.smoothgrad(f, x, y, key=key("smoothgrad"), slots=slots, samples=2),
        "expected_gradients": lambda: attributions.expected_gradients(
            f, x, y, key=key("expected_gradients"), slots=slots, samples=2, references=references
        ),
        "guided_backprop": lambda: attributions.guided_backprop(model, variables, x, y),
        "grad_cam": lambda: attributions.grad_cam(model, variables, x, y, layer="conv22", resize=True),
        "lrp_epsilon_gamma_box": lambda: lrp.relevance(
            model, variables, x, y, "epsilon_gamma_box", low=box[0], high=box[1]
        ),
    }
    assert set(expected) == set(explanations)
    for name, value in expected.items():
        value = np.asarray(jax.jit(value)())
        np.testing.assert_allclose(ours[name], value, atol=1e-7 * np.abs(value).max(), err_msg=name)
        assert np.abs(value).max() > 0 and np.asarray(metrics.heatmap(ours[name])).shape == (N, SIDE, SIDE)


def test_a_batch_is_prepared_as_the_images_are_normalised():
    images, labels = Noise().load(0).test.images, Noise().load(0).test.labels
    place = {"images": feed.Table.of(images), "labels": jnp.asarray(labels)}
    batch = next(iter(feed.eval_batches(Noise().load(0).test, batch_size=N)))
    x, y = training.Normalized(MEAN, STD)(batch | {sharding.RESIDENT: place})
    np.testing.assert_allclose(x, (images / 255 - MEAN) / STD, atol=1e-5)
    np.testing.assert_array_equal(y, labels)


def test_every_combination_has_its_keys(tmp_path):
    """Attributions by perturbations by metrics, curves and sensitivities of each, from one small run."""
    asked = dict(
        attributions=("input_x_gradient",),
        composites=("epsilon_plus",),
        perturbations=("rps", "top_k", "random_sign"),
        metrics=("cosine", "spearman", "top_k"),
        curves=("deletion", "adversarial_insertion"),
        sensitivity=("max_sensitivity", "infidelity"),
        sensitivity_draws=2,
        examples=3,
        attack_examples=2,
        attack_steps=1,
        draws=1,
    )
    result = measured(tmp_path, options(**asked))
    similar = {"cosine", "spearman", "top_k", "accuracy", "nonfinite", "examples"}
    groups = {
        "rps-8": similar,
        "deletion": {"area", "nonfinite", "examples"},
        "sensitivity-4": {"max_sensitivity", "infidelity", "nonfinite", "examples"},
    }
    for attack in ("top_k-8", "random_sign-8"):
        groups |= {attack: similar | {"logits_change"}, f"{attack}-insertion": {"area", "nonfinite", "examples"}}
    names = {f"{a}/{g}/{m}" for a in ("input_x_gradient", "lrp_epsilon_plus") for g in groups for m in groups[g]}
    assert set(result) == names | {"test/accuracy", "test/cross_entropy", "test/examples"}
    counts = {key.split("/")[1]: value for key, value in result.items() if key.endswith("/examples")}
    assert counts["examples"] == N and counts["rps-8"] == 3
    assert counts["top_k-8"] == counts["top_k-8-insertion"] == counts["deletion"] == counts["sensitivity-4"] == 2
    assert all(np.isfinite(value) for value in result.values())
    assert all(experiment.describe(key) for key in result)  # every number has a meaning
