"""`stack_toy`, many as one program."""

from contextlib import ExitStack

import jax
import numpy as np

from launch.training import checkpoint, stack
from tests.launch import stack_toy

STACKABLE = ("seed", "rate", "weight", "ending")
OFF_AT_ZERO = ("weight",)


def run(configs, runs, devices=None):
    config, numbers = configs[0], stack.numbers(configs, stack.varying(configs))
    create = lambda own: stack_toy.create(stack.substituted(config, own))
    states = jax.device_get(jax.vmap(create, axis_size=len(runs))(numbers))

    def step(own, state, batch, resident):
        state, metrics = stack_toy.make_step(stack.substituted(config, own))(state, batch)
        return state, {"loss": metrics["loss"] + 0 * resident["zero"]}

    def batches(members, start):
        for parts in zip(*(stack_toy.batches(configs[i], start) for i in members), strict=True):
            yield {"x": np.stack([part["x"] for part in parts])}

    with ExitStack() as opened:
        checkpoints = [opened.enter_context(run.checkpoints(best=stack_toy.BEST)) for run in runs]
        failures = {}
        for start, (members, own) in stack.restore(states, checkpoints).items():
            place = stack.stack(len(members), devices)

            def evaluate(numbers, state, resident, place=place):
                return [{"val/distance": stack_toy.distance(params)} for params in place.pull(state).params]

            lost = stack.fit(
                [runs[i] for i in members],
                stack=place,
                numbers={key: values[members] for key, values in numbers.items()},
                states=own,
                start=start,
                step=step,
                batches=lambda start, members=members: batches(members, start),
                steps=config.steps,
                checkpoints=[checkpoints[i] for i in members],
                evaluate=evaluate,
                resident={"zero": np.zeros((), np.float32)},
                **stack_toy.OPTIONS,
            )
            failures |= {members[i]: error for i, error in lost.items()}
        yield from failures.items()
        for index in set(range(len(runs))) - set(failures):
            if configs[index].ending:
                yield index, ArithmeticError(f"{configs[index].ending} was not to be")
                continue
            last, _ = checkpoints[index].restore_latest(checkpoint.abstract(stack.member(states, 0)))
            yield index, {"distance": stack_toy.distance(last.params)}
