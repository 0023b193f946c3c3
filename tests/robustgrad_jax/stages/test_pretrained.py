"""Networks that are measured without being trained: runs of ours and PyTorch's files, and what is refused."""

import json
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from benchmarks.pytorch import robustgrad as reference
from configs.robustgrad import base, digits_lenet
from launch.data import DataSet, Spec
from launch.files import save_tree
from launch.run import PLAN
from launch.stages import SettingError, settings
from launch.store import Store
from robustgrad_jax import models
from robustgrad_jax.stages import inputs
from tests.commands import finish, train
from tests.robustgrad_jax.test_experiment import SMALL

torch = pytest.importorskip("torch")
LIGHT = (
    "--config.evaluation.perturbations=('rps',)",
    "--config.evaluation.curves=()",
    "--config.evaluation.upper_bound=False",
    "--config.evaluation.draws=1",
)


@dataclass(frozen=True)
class Outline:
    """The outline of a data set that is never read."""

    side: int = 12
    classes: int = 4

    def spec(self) -> Spec:
        names = tuple(map(str, range(self.classes)))
        return Spec((self.side, self.side, 3), names, 20, 5, 5, in_memory=True)


def load(source, name="lenet", data=Outline(), **model):
    """The variables of a network that was trained before."""
    stage = inputs.pretrained(str(source), inputs.ImageSplits(data), inputs.Architecture(name, **model))
    return Store(source).get(stage)["variables"]


def stored_run(path, name="lenet", classes=4):
    """A run directory with a finished training; the variables of its network."""
    config = base.get_config()
    config.model.name = name
    path.mkdir()
    (path / "config.json").write_text(config.to_json())
    plan = {"store": "store", "root": "result-0", "stages": {"classifier-0": "Classifier", "result-0": "Result"}}
    (path / PLAN).write_text(json.dumps(plan))
    model = models.create(name, num_classes=classes)
    variables = {"batch_stats": {}} | jax.jit(model.init)(jax.random.key(1), jnp.zeros((1, 12, 12, 3)))
    (path / "store" / "classifier-0").mkdir(parents=True)
    save_tree(path / "store" / "classifier-0" / "value", {"variables": variables, "best_step": 3, "metrics": {}})
    return variables


@pytest.mark.parametrize("name", ["lenet", "resnet18_cifar"])
def test_the_weights_of_a_run(tmp_path, name):
    variables = stored_run(tmp_path / "run", name)
    loaded = load(tmp_path / "run", name)
    assert jax.tree.structure(loaded) == jax.tree.structure(jax.tree.map(np.asarray, variables))
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


@pytest.mark.parametrize("stored", ["float32", "bfloat16", None])
def test_weights_are_the_same_whatever_they_are_computed_in(tmp_path, stored):
    """Of a run from before there was a choice, too."""
    variables = stored_run(tmp_path / "run")
    file = tmp_path / "run" / "config.json"
    config = json.loads(file.read_text())
    del config["model"]["dtype"]
    config["model"] |= {"dtype": stored} if stored else {}
    file.write_text(json.dumps(config))
    for asked in ("float32", "bfloat16"):
        loaded = load(tmp_path / "run", dtype=asked)
        jax.tree.map(np.testing.assert_array_equal, loaded, variables)
        assert {leaf.dtype.name for leaf in jax.tree.leaves(loaded)} == {"float32"}


def test_a_network_counts_by_its_weights(tmp_path):
    """Whatever the run directory is called; another network has another key."""
    stored_run(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    stored_run(tmp_path / "same")
    stored_run(tmp_path / "deeper", "resnet18_cifar")
    images = inputs.ImageSplits(DataSet("digits"))
    create = lambda folder, name: inputs.TrainedRun(
        images, inputs.Architecture(name), inputs.File(str(tmp_path / folder / "store/classifier-0/value"))
    )
    assert create("moved", "lenet").key == create("same", "lenet").key != create("deeper", "resnet18_cifar").key


def test_other_networks_are_refused(tmp_path):
    stored_run(tmp_path / "run")
    with pytest.raises(SettingError, match=r"model\.activation is 'softplus' there and 'relu' here.*--config\.model"):
        load(tmp_path / "run", activation="relu")
    with pytest.raises(SettingError, match=r"params/fc2/bias has shape \(4,\), not \(7,\)"):
        load(tmp_path / "run", data=Outline(classes=7))


def test_a_shallower_network_does_not_take_part_of_a_deeper_one(tmp_path):
    """ResNet-18's parameters are all among ResNet-34's, in the same shapes."""
    stored_run(tmp_path / "run", "resnet34_cifar")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["model"]["name"] = "resnet18_cifar"
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    with pytest.raises(SettingError, match=r"has shape \(.*\), not None"):
        load(tmp_path / "run", "resnet18_cifar")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: None, "no such run directory or file"),
        (lambda path: path.mkdir(), "no config.json"),
        (lambda path: path.write_text("x"), "must be .safetensors"),
    ],
)
def test_what_is_no_network(tmp_path, make, message):
    make(tmp_path / "thing")
    with pytest.raises(SettingError, match=rf"^init_from='.*thing'.*{message}"):
        load(tmp_path / "thing")


def test_weights_that_are_not_finite(tmp_path):
    variables = stored_run(tmp_path / "run")
    variables["params"]["fc2"]["bias"] = variables["params"]["fc2"]["bias"].at[1].set(jnp.nan)
    save_tree(tmp_path / "run" / "store" / "classifier-0" / "value", {"variables": variables})
    with pytest.raises(SettingError, match=r"init_from.*: params/fc2/bias has 1 values that are NaN or infinite"):
        load(tmp_path / "run")


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", "{", r"config\.json, line 1.*: is damaged .*; run its command again"),
        ("config.json", '{"experiment": "robustgrad_jax.experiment"}', "config.json has no section 'model'"),
        (PLAN, '{"store": "store', r"plan\.json, line 1.*: is damaged .*; run its command again"),
        (PLAN, '{"store": 3}', r"its plan\.json is damaged"),
    ],
)
def test_files_of_a_run_that_are_damaged(tmp_path, name, content, message):
    stored_run(tmp_path / "run")
    (tmp_path / "run" / name).write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "run")
    assert str(tmp_path / "run") in str(error.value)


def test_a_folder_of_several_runs_names_those_inside(tmp_path):
    member = tmp_path / "demo" / "none"
    member.mkdir(parents=True)
    (member / "config.json").write_text(base.get_config().to_json())
    with pytest.raises(SettingError, match=r"no config.json; runs inside it: .*none"):
        load(tmp_path / "demo")
    (tmp_path / "demo" / "config.json").write_text('{"experiment": "rtd_jax.experiment"}')
    with pytest.raises(SettingError, match=r"rtd_jax.experiment.*none"):
        load(tmp_path / "demo")
    with pytest.raises(SettingError, match=r"the run has not begun"):
        load(member)
    plan = {"store": "store", "root": "r", "stages": {"classifier-0": "Classifier", "r": "RobustnessResult"}}
    (member / PLAN).write_text(json.dumps(plan))
    with pytest.raises(SettingError, match="its training is not finished"):
        load(member)
    (member / PLAN).write_text(json.dumps(plan | {"stages": {"r": "RobustnessResult"}}))
    with pytest.raises(SettingError, match="that run trained no network"):
        load(member)


def test_weights_for_other_images(tmp_path):
    torch.manual_seed(0)
    network = reference.create("lenet", num_classes=4, image_size=12)
    path = tmp_path / "lenet.safetensors"
    save_file({k: v.numpy() for k, v in network.state_dict().items()}, path)
    loaded = load(path)
    assert loaded["params"]["conv11"]["kernel"].dtype == np.float32
    with pytest.raises(SettingError, match=r"a lenet for other images or classes: params/fc1/kernel has shape"):
        load(path, data=Outline(side=16))


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
    assert "RPS ε=8" in output
    kinds = json.loads((tmp_path / "again" / PLAN).read_text())["stages"].values()
    assert set(kinds) == {"CleanAccuracy", "RandomPerturbations", "RobustnessResult"}  # nothing was trained


def test_pytorch_weights_are_evaluated_by_the_command_line(tmp_path):
    """Accuracy and cross-entropy of PyTorch's own network on the same images."""
    torch.manual_seed(0)
    network = reference.create("lenet", in_channels=1, image_size=12).eval()
    path = tmp_path / "weights.safetensors"
    save_file({k: v.numpy() for k, v in network.state_dict().items()}, path)
    options = (*SMALL, *LIGHT, "--config.train=False", f"--config.init_from={path}")
    finish(train("configs/robustgrad/digits_lenet.py", tmp_path / "run", *options))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    config = digits_lenet.get_config()
    config.data.update({"image_size": 12, "val_examples": 32, "train_examples": 64, "test_examples": 24})
    splits = settings(DataSet, config, "data").load(0)
    x = (splits.test.images / 255 - splits.mean) / splits.std
    logits = network(torch.tensor(np.moveaxis(x, -1, 1).astype(np.float32)))
    y = torch.tensor(splits.test.labels.astype(np.int64))
    loss = torch.nn.functional.cross_entropy(logits, y).item()
    assert result["test/cross_entropy"] == pytest.approx(loss, rel=1e-4)
    assert result["test/accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert result["test/examples"] == 24
