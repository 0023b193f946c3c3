"""Compiles programs of LeNet on the digits for eight fake CPU devices; prints what each exchanges as JSON."""

import dataclasses
import json

import jax

from configs.robustgrad import digits_lenet
from launch.aot import programs, table
from launch.aot.cost import cost
from launch.aot.topologies import Chip, Topology
from launch.train import planned

CHIP = Chip("a CPU", (), memory=1e6, flops=1e12, bandwidth=1e11, link=1e10)


def plan(**changes):
    config = digits_lenet.get_config()
    config.update_from_flattened_dict({"batch_size": 16, "regularizer.name": "none", "sharding.mode": "pmap"} | changes)
    return planned(config)[1]


def main() -> None:
    roomy = dataclasses.replace(CHIP, memory=1e9)
    one, small = Topology("cpux8", roomy, tuple(jax.devices())), Topology("cpux8", CHIP, tuple(jax.devices()))
    roots = [plan(seed=seed) for seed in range(3)]
    several = [plan(**{"seed": seed, "loop.steps_per_call": 4}) for seed in range(3)]
    found = {}
    for name, topology, passes in [
        ("alone", one, programs.of_plan(roots[0], one)),
        ("no room", small, programs.of_plan(roots[0], small)),
        ("stacked", one, programs.of_stack(roots, one)),
        ("several steps", one, programs.of_plan(several[0], one)),
        ("several steps, stacked", one, programs.of_stack(several, one)),
        ("logged before", one, programs.of_plan(plan(**{"loop.steps_per_call": 4, "loop.log_every": 3}), one)),
    ]:
        lowered = [own for own in programs.lower(passes) if "Classifier" in own.name]
        rows = [
            table.CompiledRow(own.name, topology.name, own.calls, cost(own.program, own.arguments, topology))
            for own in lowered
        ]
        found[name] = {"rows": [table.as_json(row) for row in rows], "text": table.text(rows)}
    try:
        programs.of_plan(plan(batch_size=20), one)
    except ValueError as error:
        found["refused"] = str(error)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
