"""The project's programs on a TPU slice and on eight H100: gradients are exchanged once, nothing is copied whole."""

import math

import jax
import pytest

from benchmarks import scaling
from tests.aot.compiling import GPU, TPU, compiled, config, nbytes, only_with_system

pytestmark = only_with_system
SUMS = ("all-reduce", "reduce-scatter")
RTD = {
    **{"model.dtype": "bfloat16", "rtd.batch_size": 512, "rtd.restrict_vocabulary": False},
    **{"model.unroll": False, "phi.unit_inputs": False},
}
both = pytest.mark.parametrize("topology", [TPU, GPU])


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Folders of CLIPs of published size, without weights."""

    def make(name: str) -> str:
        folder = tmp_path_factory.mktemp("clip")
        scaling.checkpoint(name, folder)
        return str(folder)

    return make


@both
def test_lenet_with_its_data(topology):
    # A TPU's compiler needs minutes for its second-order convolutions in float32.
    precision = "default" if topology == TPU else "highest"
    made = compiled([config("robustgrad.cifar10_lenet", precision=precision)], topology, "Classifier")
    gradients = nbytes(made.arguments[1].params)
    assert gradients < made.exchanged(*SUMS) < 1.01 * gradients  # and the metrics
    assert made.exchanged() == made.exchanged(*SUMS)
    table = made.arguments[2]["resident"]["images"].data
    assert table.shape[0] == 50_000
    assert made.module.copied([f"u8[{','.join(map(str, table.shape))}]"]) == []
    assert made.fits and made.module.loops_are_known
    assert set(made.in_float32) == {precision == "highest"} and len(made.in_float32) > 20


@pytest.mark.parametrize("topology, precision", [(TPU, "highest"), (TPU, "default"), (GPU, "default")])
def test_steps_of_one_call(topology, precision):
    """Each exchanges its gradients once, and none copies the images; products are in the config's precision."""
    values = {"regularizer.name": "none", "loop.steps_per_call": 16, "precision": precision}
    made = compiled([config("robustgrad.cifar10_lenet", **values)], topology, "Classifier, 16 steps")
    gradients = nbytes(made.arguments[1].params)
    assert 16 * gradients < made.exchanged(*SUMS) < 16 * 1.01 * gradients
    assert made.exchanged() == made.exchanged(*SUMS) and made.module.loops_are_known
    table = made.arguments[2]["resident"]["images"].data
    assert made.module.copied([f"u8[{','.join(map(str, table.shape))}]"]) == []
    assert made.fits and set(made.in_float32) == {precision == "highest"}


@both
@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_rtd(topology, mode, checkpoint):
    one = config("rtd.scenes", **RTD, **{"clip": checkpoint("ViT-B/32"), "sharding.mode": mode})
    made = compiled([one], topology, "Tuning")
    gradients = nbytes(made.arguments[1].params)
    assert 0.5 * gradients < made.exchanged(*SUMS) < 1.05 * gradients  # those in bfloat16 are half of it
    assert made.fits


def test_a_tower_over_two_devices(checkpoint):
    one = config("rtd.scenes", **RTD, **{"clip": checkpoint("ViT-L/14"), "sharding.model": 2})
    made = compiled([one], TPU, "Tuning")
    params = made.arguments[1].params
    share = sum(4 * math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in jax.tree.leaves(params))
    assert share < 0.6 * nbytes(params)  # of one device
    assert made.exchanged(*SUMS, group=4) < 1.05 * nbytes(params)
    assert made.fits


@both
def test_a_stack_exchanges_nothing(topology):
    configs = [config("robustgrad.cifar10_lenet", **{"seed": seed, "regularizer.name": "none"}) for seed in range(16)]
    made = compiled(configs, topology, "16 Classifiers")
    assert made.module.collectives == [] and made.fits
    assert made.arguments[1].step.shape == (8, 2)


@both
def test_heads_exchange_nothing(topology):
    one = config("tldr.scenes")
    made = compiled([one], topology, "Heads: training")
    assert made.module.collectives == [] and made.fits
