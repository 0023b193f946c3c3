"""The figures of the two theorems, on networks of two short runs, and what a run gives to others."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import FrozenConfigDict
from PIL import Image
from scipy import stats

from configs.robustgrad import digits_lenet
from launch import train
from launch.reading import MissingInput
from robustgrad_jax import models
from robustgrad_jax.runs import load_run
from robustgrad_jax.studies import theorems

SHORT = {
    "duration": "3 steps",
    "batch_size": 16,
    "data.train_examples": 64,
    "data.val_examples": 16,
    "data.test_examples": 24,
    "optimizer.schedule.name": "constant",
    "evaluation.attack_examples": 0,
    "evaluation.attributions": (),
    "evaluation.curves": (),
    "evaluation.perturbations": (),
    "evaluation.upper_bound": False,
}


def config(**overrides):
    made = digits_lenet.get_config()
    made.update_from_flattened_dict(SHORT | overrides)
    return FrozenConfigDict(made)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two methods and a second seed of one of them."""
    folder = tmp_path_factory.mktemp("runs")
    for name, seed in (("none", 0), ("none", 1), ("l2_cosine", 0)):
        train.execute(config(**{"regularizer.name": name, "seed": seed}), str(folder / f"{name}-{seed}"))
    return folder


def test_a_run_gives_what_it_trained(folder):
    network = load_run(folder / "none-0")
    test = network.splits().test
    x = (test.images / 255 - np.array(network.mean)) / np.array(network.std)
    logits, _ = network.model.apply(network.variables, jnp.asarray(x, jnp.float32))
    result = train.execute(config(**{"regularizer.name": "none"}), str(folder / "none-0"))
    assert (np.asarray(logits).argmax(1) == test.labels).mean() == pytest.approx(result["test/accuracy"])
    assert network.classes == tuple(map(str, range(10))) and network.config.seed == 0


def test_what_is_no_trained_run_is_refused(folder, tmp_path):
    with pytest.raises(MissingInput, match="is not a run directory"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text('{"experiment": "tldr_jax.experiment"}')
    with pytest.raises(ValueError, match=r"a run of 'tldr_jax\.experiment', not of 'robustgrad_jax\.experiment'"):
        load_run(tmp_path)
    (tmp_path / "config.json").write_text(config().to_json_best_effort())
    with pytest.raises(MissingInput, match="its training is not finished"):
        load_run(tmp_path)


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_rescaled_weights_scale_the_logits_of_a_relu_network(folder, factor):
    network = load_run(folder / "none-0")
    model = models.create("lenet", num_classes=10, activation="relu")
    x, params = jax.random.normal(jax.random.key(0), (4, 16, 16, 1)), network.variables["params"]
    before, _ = model.apply({"params": params}, x)
    after, _ = model.apply({"params": theorems.rescaled(params, sorted(params), factor)}, x)
    np.testing.assert_allclose(after, factor * before, rtol=1e-4, atol=1e-4 * factor)


def test_correlations_by_method_and_over_all():
    rng = np.random.default_rng(0)
    draw = lambda: {name: rng.normal(size=20) for name in ("cosine_distance", "hessian_frobenius", "bound")}
    found = {"none": draw(), "l2": draw()}
    wanted = stats.spearmanr(found["l2"]["cosine_distance"], found["l2"]["bound"])[0]
    ranks = theorems.correlations(found)
    assert list(ranks) == ["none", "l2", "all"] and ranks["l2"]["‖Hz‖/‖∇g‖"] == pytest.approx(wanted)
    pooled = [np.concatenate([found[m][k] for m in found]) for k in ("cosine_distance", "hessian_frobenius")]
    assert ranks["all"]["‖H‖"] == pytest.approx(stats.spearmanr(*pooled)[0])


def test_the_figures_of_a_sweep(folder, tmp_path, capsys):
    theorems.main([str(folder), "--out", str(tmp_path), "--images", "16"])
    output = capsys.readouterr().out
    relative = {
        line.split(":")[0]: [float(value) for value in line.split(": ")[1].split(", ")]
        for line in output.splitlines()
        if line.startswith(("relu", "softplus"))
    }
    assert len(relative) == 2 * 2 * 2
    for method in ("none", "l2_cosine"):
        factors = np.array(theorems.FACTORS)
        np.testing.assert_allclose(relative[f"relu, {method}, ℓ2"], factors**2, rtol=1e-2)
        np.testing.assert_allclose(relative[f"relu, {method}, cosine"], 1, rtol=1e-2)
        assert not np.allclose(relative[f"softplus, {method}, cosine"], 1, rtol=1e-2)
    table = [line for line in output.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 2 + 1 and table[2].startswith("| l2_cosine |") and table[-1].startswith("| all |")
    for name in ("rescaling.png", "bound.png"):
        assert min(Image.open(tmp_path / name).size) > 200
