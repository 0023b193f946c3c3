"""Parameters split over devices by the rules: embeddings and gradients on 4 fake devices against one."""

import json
import re

import jax
import pytest

from clip_jax.config import VARIANTS
from clip_jax.sharding import partition_rules
from tests.clip_jax.towers import TINY, parameters
from tests.commands import finish, start


@pytest.fixture(scope="module")
def found():
    found = json.loads(
        finish(start("-m", "tests.clip_jax.devices.devices_worker", "sharding", devices=4)).splitlines()[-1]
    )
    assert found["devices"] == 4 and found["dtype"] == "float64"
    return found


def test_what_is_split(found):
    """Heads and hidden units over the two halves of the axis "model", by hand."""
    halves = {}
    for tower, layers, width, mlp in (("image", 3, 32, 48), ("text", 2, 24, 96)):
        halves |= {
            f"{tower}/blocks/qkv/kernel": [[layers, width, 3, width], [layers, width, 3, width // 2]],
            f"{tower}/blocks/qkv/bias": [[layers, 3, width], [layers, 3, width // 2]],
            f"{tower}/blocks/out/kernel": [[layers, width, width], [layers, width // 2, width]],
            f"{tower}/blocks/up/kernel": [[layers, width, mlp], [layers, width, mlp // 2]],
            f"{tower}/blocks/up/bias": [[layers, mlp], [layers, mlp // 2]],
            f"{tower}/blocks/down/kernel": [[layers, mlp, width], [layers, mlp // 2, width]],
        }
    assert found["shards"] == halves | {"text/tokens": [[99, 24], [99, 12]]}


def test_same_embeddings_and_gradients(found):
    assert found["embeddings"] < 1e-10
    assert found["gradients"] < 1e-10
    assert found["metrics"] < 1e-10
    assert found["gradients lie as parameters"]


def test_a_block_exchanges_two_sums_forward_and_two_backward(found):
    """Per device 4 examples with states (17, 32) and (20, 24): each block is once in the program, in a loop."""
    sums = [["all-reduce", ["4,17,32"]], ["all-reduce", ["4,20,24"]]]
    tokens = ["all-gather", ["4,20,24"]]  # once: the table is split by width
    assert sorted(found["exchanged by encoding"]) == [tokens, *sums[:1] * 2, *sums[1:] * 2]
    states = [one for one in found["exchanged by the step"] if one[1] in (["4,17,32"], ["4,20,24"])]
    assert sorted(states) == [tokens, *sums[:1] * 4, *sums[1:] * 4]


def test_no_weight_is_gathered(found):
    """What else is exchanged in the step: sums of gradients, and embeddings and ids of all examples."""
    others = [shape for kind, shapes in found["exchanged by the step"] if kind != "all-reduce" for shape in shapes]
    assert set(others) <= {"4,20,24", "8,20", "20,8", "20,4", "4,20", "8,2", "8"}


def test_fully_sharded_parameters_have_the_gradients_of_one_device():
    found = json.loads(finish(start("-m", "tests.clip_jax.devices.devices_worker", "fsdp", devices=4)).splitlines()[-1])
    # Of the parameters on each of four devices; what no rule splits over "model" is there twice.
    for axis, most in (("model=1", 0.26), ("model=2", 0.3)):
        assert found[axis]["gradients"] < 1e-10 and found[axis]["metrics"] < 1e-10
        assert found[axis]["kept"] < most


def paths(tree):
    return ["/".join(key.key for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def test_every_rule_is_used_for_one_tower_alone():
    params = parameters(TINY)
    for name in ("image", "text"):
        rules = partition_rules(TINY, 2, towers=[name])
        assert all(any(re.search(pattern, path) for path in paths({name: params[name]})) for pattern, _ in rules)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_divides_over_four(name):
    assert partition_rules(VARIANTS[name], 4)


@pytest.mark.parametrize(
    "shards, expected", [(8, "heads=4 of the image tower is not divisible by 8"), (3, "heads=4 of the image tower")]
)
def test_towers_that_do_not_divide_are_refused(shards, expected):
    with pytest.raises(ValueError, match=expected):
        partition_rules(TINY, shards)


def test_an_unknown_tower_is_refused():
    with pytest.raises(ValueError, match="unknown tower 'audio'; valid names: 'image', 'text'"):
        partition_rules(TINY, 2, towers=["audio"])
