"""The whole evaluation: what a config asks for, block by block, stopped and continued, on one device and on several."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.robustgrad import base
from launch.data import Arrays, Splits, feed
from launch.run import Preempted, Run
from launch.training import keys, sharding
from robustgrad_jax import attributions, lrp, metrics, models
from robustgrad_jax.attributions import explainers
from robustgrad_jax.measures import suite
from tests.commands import finish, start

N, SIDE, CLASSES = 5, 12, 3
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


def config(**evaluation):
    found = base.get_config()
    small = {"radii": (8.0,), "draws": 2, "attack_radii": (8.0,), "attack_steps": 2, "curve_steps": 3, "pictures": 2}
    found.evaluation.update({"batch_size": 4, "upper_bound": False, "metrics": ("pcc", "ssim"), **small, **evaluation})
    return found


def splits():
    rng = np.random.default_rng(0)

    def draw(n):
        images = rng.integers(0, 256, (n, SIDE, SIDE, 3)).astype(np.uint8)
        return Arrays(images, rng.integers(0, CLASSES, n).astype(np.int32))

    return Splits(draw(20), None, draw(N), ("a", "b", "c"), MEAN, STD, (SIDE, SIDE, 3), "noise")


def prepare(batch):
    batch = feed.materialise(batch, batch[sharding.RESIDENT])
    dtype = jnp.result_type(float)
    return (batch["image"].astype(dtype) / 255 - jnp.asarray(MEAN, dtype)) / jnp.asarray(STD, dtype), batch["label"]


@functools.cache
def network():
    """A LeNet and its variables, on the host."""
    model = models.create("lenet", num_classes=CLASSES)
    found = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3), jnp.float32))
    return model, jax.tree.map(np.asarray, {"batch_stats": {}, **found})


def measured(run, layout=None):
    layout, (model, variables) = layout or sharding.layout(), network()
    variables = jax.tree.map(lambda a: a.astype(jnp.result_type(float)), variables)
    planned = suite.blocks(run.config, model, splits(), prepare)
    return suite.measure(run.config, run, layout, planned, splits(), layout.place(variables))


def test_a_stopped_evaluation_goes_on_with_the_next_block(tmp_path, monkeypatch):
    run = Run.open(tmp_path / "run", config())
    done = tmp_path / "run" / "artifacts" / "evaluation" / "gradient" / "rps.json"

    def stop():
        if done.exists():
            raise Preempted("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(run, "check_stop", stop)
        with pytest.raises(Preempted):
            measured(run)
    kept = {p.name: p.stat().st_mtime_ns for p in done.parent.parent.rglob("*.json")}
    assert set(kept) == {"test.json", "rps.json"}
    result = measured(run)
    run.close()
    assert kept == {p.name: p.stat().st_mtime_ns for p in done.parent.parent.rglob("*.json") if p.name in kept}
    again = Run.open(tmp_path / "whole", config())
    assert measured(again) == result
    again.close()
    groups = {key.rpartition("/")[0] for key in result}
    assert groups == {"test", *(f"gradient/{g}" for g in ("rps-8", "aam-8", "insertion", "aam-8-insertion"))}
    assert all(np.isfinite(value) for value in result.values())
    assert result["gradient/aam-8/examples"] == N and result["gradient/aam-8/nonfinite"] == 0

    pictures = np.load(done.parent / "aam-8.npz")
    images = splits().test.images[:2] / 255
    np.testing.assert_allclose(pictures["image"], images, atol=1e-6)
    moved = np.abs(pictures["attacked"] - images).max()
    assert 1 / 255 < moved < 8.01 / 255 and list(pictures["label"]) == list(splits().test.labels[:2])
    assert not np.array_equal(pictures["heatmap"], pictures["attacked_heatmap"])


def test_two_devices_find_what_one_finds():
    output = finish(start("-m", "tests.robustgrad_jax.suite_worker", devices=2), timeout=600)
    found = json.loads(output.splitlines()[-1])
    assert found["1"] == pytest.approx(found["2"], rel=1e-7)
    assert 0.3 < found["1"]["gradient/aam-8/pcc"] < 0.9999


def test_attributions_that_are_not_finite_are_reported(tmp_path, monkeypatch, caplog):
    """Counted in the result, null in the artifact, said in the log."""

    def broken(self, model, variables, x, y, slots):
        found = attributions.create("gradient", model, variables)(x, y)
        return found.at[:, 0, 0, 0].set(jnp.where(slots == 4, jnp.inf, found[:, 0, 0, 0]))

    monkeypatch.setattr(explainers.Explainer, "__call__", broken)
    run = Run.open(tmp_path, config(perturbations=("rps",), curves=()))
    with caplog.at_level("WARNING"):
        result = measured(run)
    run.close()
    assert result["gradient/rps-8/nonfinite"] == 1 and result["gradient/rps-8/examples"] == N
    assert np.isnan(result["gradient/rps-8/pcc"]) and np.isfinite(result["gradient/rps-8/accuracy"])
    text = (tmp_path / "artifacts" / "evaluation" / "gradient" / "rps.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail)["rps-8/pcc"] is None
    assert "gradient/rps-8/nonfinite: 1 images have an attribution that is not finite" in caplog.text


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def test_what_config_and_data_give_the_attributions(double):
    """Seeds, references, ranges and layers arrive where they belong; each against its own function."""
    names = ("integrated_gradients", "smoothgrad", "expected_gradients", "guided_backprop", "grad_cam")
    asked = config(attributions=names, composites=("epsilon_gamma_box",), path_steps=3, samples=2, references=4)
    asked.seed = 7
    model, variables = network()
    variables = jax.tree.map(lambda a: a.astype(np.float64), variables)
    data = splits()
    found = explainers.create(asked, model, data, prepare)
    assert list(found) == [*names, "lrp_epsilon_gamma_box"]
    x = jnp.asarray((data.test.images / 255 - MEAN) / STD)
    y, slots = jnp.asarray(data.test.labels), jnp.arange(10, 10 + N)
    f = lambda x: model.apply(variables, x)[0]
    ours = {name: jax.jit(functools.partial(fn, model, variables))(x, y, slots) for name, fn in found.items()}
    references = found["expected_gradients"].options["references"]
    pool = (data.train.images / 255 - MEAN) / STD
    near = np.abs(references[:, None] - pool).max((2, 3, 4))  # four of the training images
    assert sorted(near.min(1)) == pytest.approx([0] * 4, abs=1e-5) and len(set(near.argmin(1))) == 4
    box = [((pixel - np.array(MEAN)) / STD).astype(np.float32) for pixel in (0, 1)]
    key = functools.partial(keys.stream, 7)
    wanted = {
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
    assert set(wanted) == set(found)
    for name, value in wanted.items():
        value = np.asarray(jax.jit(value)())
        np.testing.assert_allclose(ours[name], value, atol=1e-7 * np.abs(value).max(), err_msg=name)
        assert np.abs(value).max() > 0 and np.asarray(metrics.heatmap(ours[name])).shape == (N, SIDE, SIDE)


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
    run = Run.open(tmp_path, config(**asked))
    result = measured(run)
    run.close()
    similar = {"cosine", "spearman", "top_k", "accuracy", "nonfinite", "examples"}
    groups = {
        "rps-8": similar,
        "deletion": {"area", "nonfinite", "examples"},
        "sensitivity-4": {"max_sensitivity", "infidelity", "nonfinite", "examples"},
    }
    for attack in ("top_k-8", "random_sign-8"):
        groups |= {attack: similar | {"logits_change"}, f"{attack}-insertion": {"area", "nonfinite", "examples"}}
    wanted = {f"{a}/{g}/{m}" for a in ("input_x_gradient", "lrp_epsilon_plus") for g in groups for m in groups[g]}
    assert set(result) == wanted | {"test/accuracy", "test/cross_entropy", "test/examples"}
    counts = {key.split("/")[1]: value for key, value in result.items() if key.endswith("/examples")}
    assert counts["examples"] == N and counts["rps-8"] == 3
    assert counts["top_k-8"] == counts["top_k-8-insertion"] == counts["deletion"] == counts["sensitivity-4"] == 2
    assert all(np.isfinite(value) for value in result.values())
