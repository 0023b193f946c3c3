"""Run by test_sharding.py with 8 fake CPU devices: prints, as JSON, what layouts say and do."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from launch.training import sharding

STATE = {"params": {"fc": {"kernel": np.zeros((6, 8)), "bias": np.zeros(8)}}, "step": np.zeros(())}


def message(call) -> str:
    """Of the ValueError that `call` must raise."""
    try:
        call()
    except ValueError as error:
        return str(error)
    return "no error"


def split(*rules):
    return sharding.layout(model=4, rules=rules).state_shardings(STATE)


def refusals():
    layout = sharding.layout(model=2)
    return {
        "mode": message(lambda: sharding.layout("mpi")),
        "model": message(lambda: sharding.layout(model=3)),
        "model zero": message(lambda: sharding.layout(model=0)),
        "pmap": message(lambda: sharding.layout("pmap", model=2)),
        "pmap rules": message(lambda: sharding.layout("pmap", rules=[("kernel", P("model"))])),
        "no match": message(lambda: split(("fc/kernel$", P(None, "model")), ("fc2/kernel", P("model")))),
        "unequal": message(lambda: split(("fc/kernel$", P("model")))),
        "too many axes": message(lambda: split(("bias$", P(None, "model")))),
        "no such axis": message(lambda: split(("bias$", P("models")))),
        "batch": message(lambda: sharding.layout().check_batch(20)),
        "small batch": message(lambda: sharding.layout().check_batch(3, "evaluation.batch_size")),
        "no batch": message(lambda: sharding.layout().check_batch(0)),
        "fine batch": message(lambda: layout.check_batch(12)),  # 4 shares: the model axis takes the rest
    }


def shares(array):
    """What every device holds, in the order of the devices."""
    return [np.asarray(s.data).tolist() for s in sorted(array.addressable_shards, key=lambda s: s.device.id)]


def placements():
    rows = np.arange(16).reshape(16, 1)
    data = sharding.layout()
    both = sharding.layout(model=2, rules=[("kernel", P(None, "model")), ("fc", P())])
    state = both.place({"fc": {"kernel": np.arange(4.0)[None], "bias": np.ones(3)}, "step": np.int32(0)})
    return {
        "put": shares(data.put({"x": rows})["x"]),
        "put with model": shares(both.put({"x": rows})["x"]),
        "replicate": shares(data.replicate({"table": np.arange(3)})["table"]),
        "kernel": shares(state["fc"]["kernel"]),
        "bias": shares(state["fc"]["bias"]),
    }


def compiled(mode):
    """One step in which every device says what it sees of the batch and of the resident arrays."""
    layout = sharding.layout(mode)

    def step(numbers, state, batch, *, axis_name=None):
        seen = {"rows": jnp.float32(len(batch["x"])), "table": batch["resident"]["table"].sum()}
        mean = batch["x"].mean()
        if axis_name:
            mean, seen["shares"] = jax.lax.pmean(mean, axis_name), jax.lax.psum(1.0, axis_name)
        return {"total": state["total"] + mean}, seen | {"mean": mean}

    state = {"total": np.float32(1)}
    run = layout.jit(step, state)
    batch = layout.put({"x": np.arange(16, dtype=np.float32)})
    resident = layout.replicate({"table": np.arange(5, dtype=np.float32)})
    state, metrics = run({}, layout.place(state), batch | {"resident": resident})
    return jax.tree.map(float, metrics) | {"total": shares(state["total"])}


def main():
    out = {"refusals": refusals(), "placements": placements()}
    out |= {mode: compiled(mode) for mode in sharding.MODES}
    json.dump(out, sys.stdout)


if __name__ == "__main__":
    main()
