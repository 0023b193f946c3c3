"""Saving and restoring a training state with the digests of its arrays and without: what verifying costs.

    python -m benchmarks.checkpoint [--layers 32] [--rounds 1] [--folder DIR]

The state is that of RTD's text tower, ViT-bigG/14's: 695 million parameters in float32 and Adam's two moments, 8.3 GB.
In host memory, saving takes 1.9 times its size, itself included; restoring takes 1.3 times, in the process that has
saved it twice (measured with 3.6 and 1.7 GB; limits on what Orbax has in flight change little). All times are in
proportion to the layers, so fewer will do. A round saves and restores without digests and with them; files are read
back from memory where the machine has enough of it, which makes the digests' share larger than on a cold disk.

Measured with all layers on two quiet cores with 24 GB of memory, one round: 2.3 % of the processor's time, 3.9 % of the
seconds.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import optax

from clip_jax import model
from clip_jax.config import VARIANTS
from launch.training.checkpoint import Checkpoints, abstract, digests
from launch.training.checkpoint import leaves as flat

VARIANT = "ViT-bigG/14"


def make_state(layers: int) -> Any:
    """Parameters of the text tower and Adam's state, random."""
    config = VARIANTS[VARIANT]
    config = replace(config, text=replace(config.text, layers=layers))
    params = jax.eval_shape(lambda: model.init(config, jax.random.key(0))["text"])
    shapes = {"params": params, "moments": jax.eval_shape(optax.scale_by_adam().init, params)}
    leaves, structure = jax.tree.flatten(shapes)
    # A real state compresses as little: signs and fractions are random, exponents are not.
    draw = jax.jit(
        lambda key, shape, dtype: (jax.random.normal(key, shape) / 50).astype(dtype), static_argnames=("shape", "dtype")
    )
    keys = jax.random.split(jax.random.key(0), len(leaves))
    drawn = [draw(key, x.shape, x.dtype) for key, x in zip(keys, leaves, strict=True)]
    return jax.device_put(jax.tree.unflatten(structure, drawn), jax.devices()[0])  # bound to it, as restored ones are


def no_digests(arrays: Mapping[str, Any]) -> dict[str, set[str]]:
    return {name: {""} for name in arrays}


def timed(held: list[Any], folder: str | None, copies: Any) -> dict[str, float]:
    """Save the state in `held`, let go of it, and put the restored one there; the seconds of each part."""
    digests.copies = copies
    shapes, seconds = abstract(jax.block_until_ready(held[0])), {}
    with tempfile.TemporaryDirectory(dir=folder) as directory, Checkpoints(directory) as checkpoints:
        start = time.perf_counter()
        checkpoints.save(1, held[0])
        seconds["save"] = time.perf_counter() - start
        checkpoints.wait()
        seconds["write"] = time.perf_counter() - start - seconds["save"]
        held.clear()
        start = time.perf_counter()
        restored = checkpoints.restore_latest(shapes)
        assert restored is not None
        held.append(jax.block_until_ready(restored[0]))
        seconds["restore"] = time.perf_counter() - start
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=VARIANTS[VARIANT].text.layers)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", default=None, help="where to save; by default where temporary files go")
    args = parser.parse_args()
    held, spent = [make_state(args.layers)], [0.0, 0.0]
    of, rows = digests.copies, []

    def counted(arrays: Mapping[str, Any]) -> dict[str, set[str]]:
        wall, cpu = time.perf_counter(), time.process_time()
        found = of(arrays)
        spent[0] += time.perf_counter() - wall
        spent[1] += time.process_time() - cpu
        return found

    print(f"{sum(x.nbytes for x in jax.tree.leaves(held)) / 1e9:.2f} GB in {len(jax.tree.leaves(held))} arrays\n")
    print(
        "| round | digests | save returns s | written s | restored s | all s | of that digests s |\n" + "|---" * 7 + "|"
    )
    of(flat.flatten(held[0]))  # compiles: once a process, not once a save
    for turn in range(args.rounds):
        totals, spent[:], cpu = [], (0.0, 0.0), 0.0
        for name, copies in (("no", no_digests), ("yes", counted)):
            cpu = time.process_time()
            seconds = timed(held, args.folder, copies)
            cpu = time.process_time() - cpu
            totals.append(sum(seconds.values()))
            shown = " | ".join(f"{value:.2f}" for value in (*seconds.values(), totals[-1], spent[0]))
            print(f"| {turn + 1} | {name} | {shown} |", flush=True)
        rows.append((totals[1] / totals[0], spent[0] / (totals[1] - spent[0]), spent[1] / (cpu - spent[1])))
    ratio, share, work = (statistics.median(column) for column in zip(*rows, strict=True))
    print(f"\nseconds with digests / without: {ratio:.3f} (median of {args.rounds} rounds)")
    print(f"seconds in digests / other seconds: {share:.1%}; the same of the processor's time: {work:.1%}")


if __name__ == "__main__":
    main()
