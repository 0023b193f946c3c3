"""Networks that are evaluated without being trained: runs of ours and PyTorch's files, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from benchmarks import torch_robustgrad as reference
from configs.robustgrad import base, digits_lenet
from launch import data
from launch.training import checkpoint
from robustgrad_jax import models, trained
from tests.commands import finish, train
from tests.robustgrad_jax.test_experiment import SMALL

torch = pytest.importorskip("torch")
LIGHT = (
    "--config.evaluation.perturbations=('rps',)",
    "--config.evaluation.curves=()",
    "--config.evaluation.upper_bound=False",
    "--config.evaluation.draws=1",
)


def template(name, shape=(12, 12, 3), classes=4):
    model = models.create(name, num_classes=classes)
    return {"batch_stats": {}} | jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))


def stored_run(path, name="lenet", classes=4):
    """A run directory with two checkpoints, the first of which is the better one; its parameters."""
    found = base.get_config()
    found.model.name = name
    path.mkdir()
    (path / "config.json").write_text(found.to_json())
    model = models.create(name, num_classes=classes)
    variables = {"batch_stats": {}} | jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 12, 12, 3)))
    worse = jax.tree.map(lambda a: a + 1, variables)
    with checkpoint.Checkpoints(path / "checkpoints", best=("val/accuracy", "max")) as checkpoints:
        for step, (state, accuracy) in enumerate([(variables, 0.9), (worse, 0.5)]):
            state = {**state, "step": np.int32(step), "opt_state": {"mu": state["params"]}}
            checkpoints.save(step, state, {"val/accuracy": accuracy})
    return variables


def asked(name="lenet", **model):
    found = base.get_config()
    found.model.update({"name": name, **model})
    return found


@pytest.mark.parametrize("name", ["lenet", "resnet18_cifar"])
def test_the_best_weights_of_a_run_without_its_optimiser(tmp_path, name):
    variables = stored_run(tmp_path / "run", name)
    found = trained.load(tmp_path / "run", asked(name), template(name))
    assert jax.tree.structure(found) == jax.tree.structure(jax.tree.map(np.asarray, variables))
    jax.tree.map(np.testing.assert_array_equal, found, variables)


def test_other_networks_are_refused(tmp_path):
    stored_run(tmp_path / "run")
    with pytest.raises(ValueError, match=r"model\.activation is 'softplus' there and 'relu' here.*--config\.model"):
        trained.load(tmp_path / "run", asked(activation="relu"), template("lenet"))
    with pytest.raises(ValueError, match=r"params/fc2/bias: float32\[4\] stored, float32\[7\] wanted"):
        trained.load(tmp_path / "run", asked(), template("lenet", classes=7))


def test_a_shallower_network_does_not_take_part_of_a_deeper_one(tmp_path):
    """ResNet-18's parameters are all among ResNet-34's, in the same shapes."""
    stored_run(tmp_path / "run", "resnet34_cifar")
    config = ConfigDict(json.loads((tmp_path / "run" / "config.json").read_text()))
    with pytest.raises(ValueError, match="only in the checkpoint"):
        trained.load(tmp_path / "run", config, template("resnet18_cifar"))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "there is no such run directory or file"),
        (lambda path: path.mkdir(), "it has no config.json"),
        (lambda path: path.write_text("x"), "must be .safetensors"),
    ],
)
def test_what_is_no_network(tmp_path, make, message):
    make(tmp_path / "thing")
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        trained.load(tmp_path / "thing", asked(), template("lenet"))


def test_a_run_of_several_names_those_inside(tmp_path):
    member = tmp_path / "demo" / "none-seed0"
    (member / "checkpoints").mkdir(parents=True)
    (tmp_path / "demo" / "config.json").write_text('{"experiment": "robustgrad_jax.comparison"}')
    with pytest.raises(ValueError, match=r"robustgrad_jax.comparison.*none-seed0"):
        trained.load(tmp_path / "demo", asked(), template("lenet"))
    (member / "config.json").write_text(base.get_config().to_json())
    (member / "checkpoints").rmdir()
    with pytest.raises(ValueError, match="the run has no checkpoints yet"):
        trained.load(member, asked(), template("lenet"))


def test_weights_for_other_images(tmp_path):
    torch.manual_seed(0)
    network = reference.create("lenet", num_classes=4, image_size=12)
    path = tmp_path / "lenet.safetensors"
    save_file({k: v.numpy() for k, v in network.state_dict().items()}, path)
    found = trained.load(path, asked(), template("lenet"))
    assert found["params"]["conv11"]["kernel"].dtype == np.float32
    with pytest.raises(ValueError, match=r"lenet for other images or classes: params/fc1/kernel has shape"):
        trained.load(path, asked(), template("lenet", shape=(16, 16, 3)))


def test_a_run_is_evaluated_again_by_the_command_line(tmp_path):
    """The same numbers as at the end of its training, from another run directory."""
    budget = ("--config.duration=2 steps", "--config.optimizer.schedule.milestones=('1 steps',)")
    config = "configs/robustgrad/digits_lenet.py"
    finish(train(config, tmp_path / "trained", *SMALL, *LIGHT, *budget))
    source = f"--config.init_from={tmp_path / 'trained'}"
    output = finish(train(config, tmp_path / "again", *SMALL, *LIGHT, "--config.train=False", source))
    first, again = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("trained", "again"))
    for key in ("best_step", "val/accuracy", "val/cross_entropy"):
        del first[key]
    assert again == pytest.approx(first) and "gradient/rps-8/pcc" in again
    assert (tmp_path / "again" / "table.md").read_text() in output
    assert not (tmp_path / "again" / "checkpoints").exists()


def test_pytorch_weights_are_evaluated_by_the_command_line(tmp_path):
    """Accuracy and cross-entropy of PyTorch's own network on the same images."""
    torch.manual_seed(0)
    network = reference.create("lenet", in_channels=1, image_size=12).eval()
    path = tmp_path / "weights.safetensors"
    save_file({k: v.numpy() for k, v in network.state_dict().items()}, path)
    options = (*SMALL, *LIGHT, "--config.train=False", f"--config.init_from={path}")
    finish(train("configs/robustgrad/digits_lenet.py", tmp_path / "run", *options))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    asked = digits_lenet.get_config().data
    asked.update({"image_size": 12, "val_examples": 32, "train_examples": 64, "test_examples": 24})
    splits = data.load(asked, seed=0)
    x = (splits.test.images / 255 - splits.mean) / splits.std
    logits = network(torch.tensor(np.moveaxis(x, -1, 1).astype(np.float32)))
    y = torch.tensor(splits.test.labels.astype(np.int64))
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    assert result["test/cross_entropy"] == pytest.approx(loss, rel=1e-4)
    assert result["test/accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert result["test/examples"] == 24
