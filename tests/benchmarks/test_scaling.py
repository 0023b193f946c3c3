"""Collectives and their bytes, of a program written by hand and of a real one whose gradients' size is known."""

import re

import jax
import jax.numpy as jnp
import pytest

from benchmarks import scaling
from robustgrad_jax import models
from tests.commands import finish, start

PROGRAM = """
HloModule jit_step, is_scheduled=true

%add (x: f32[], y: f32[]) -> f32[] {
  ROOT %add.1 = f32[] add(f32[] %x, f32[] %y)
}

ENTRY %main (p: f32[3,4], q: bf16[8]) -> (f32[3,4], bf16[16]) {
  %p = f32[3,4]{1,0} parameter(0)
  %q = bf16[8]{0} parameter(1)
  %all-reduce.1 = (f32[3,4]{1,0}, bf16[8]{0}) all-reduce(%p, %q), replica_groups={{0,1}}, to_apply=%add
  %all-reduce.2 = f32[3,4]{1,0} all-reduce(%p), replica_groups={{0},{1}}, to_apply=%add
  %all-reduce.3 = f32[3,4]{1,0} all-reduce(%p), channel_id=1, replica_groups=[1,2]<=[2], to_apply=%add
  %all-gather-start = bf16[16]{0} all-gather-start(%q), replica_groups={{0,1}}, dimensions={0}
  %all-gather-done = bf16[16]{0} all-gather-done(%all-gather-start)
}
"""


def test_collectives_of_a_program():
    counts, size = scaling.collectives(PROGRAM)  # in all-reduce.2 nothing is sent
    assert counts == {"all-reduce": 2, "all-gather": 1}
    assert size == (3 * 4 * 4 + 8 * 2) + 3 * 4 * 4 + 8 * 2


def test_sizes_of_shapes():
    assert scaling._bytes("f32[]") == 4 and scaling._bytes("(s8[3], pred[2,5])") == 13
    assert scaling._bytes("f64[2]{0}") == 16 and scaling._bytes("u4[4]") == 2


def test_roofline_of_a_chip_that_can_be_reckoned_by_head():
    chip = scaling.Chip(flops=100.0, memory=10.0, link=5.0)
    assert scaling.roofline(800.0, 40.0, 20.0, 4, chip) == (2.0, 1.0, 6.0)


def test_a_data_parallel_step_exchanges_its_gradients():
    """LeNet has no batch norm: gradients, once, and the metrics' scalars."""
    command = ("-m", "benchmarks.scaling", "--cases", "lenet l2_cosine", "--modes", "pmap", "--devices", "1", "2")
    lines = finish(start(*command)).splitlines()
    alone, pair = (next(line for line in lines if f"| pmap | {n} |" in line) for n in (1, 2))
    assert "| none | 0.000 |" in alone
    init = models.create("lenet", num_classes=2).init  # those of Scenes
    variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    found = float(re.search(r"all-reduce \| ([\d.]+) \|", pair)[1]) * 1e6
    assert found == pytest.approx(gradients, abs=600)  # printed to 500 bytes
    chips = [line for line in lines if "H100" in line or "v5e" in line]
    assert len(chips) == 2
