"""What rounded operands of products do to a trained network's attributions: `python -m benchmarks.precision RUN …`.

Accelerators multiply float32 matrices with rounded operands unless `config.precision` says otherwise: bfloat16 on a
TPU, TF32 on a GPU, each product summed in float32. Here a CPU does the same: a program is traced, with all derivatives
in it, and computed again with the operands of every product and convolution rounded; products that ask for float32
themselves, as `metrics` do, are left alone. "high" on a TPU is three products of bfloat16 parts.

RUN is a run directory of robustgrad_jax. Printed for each rounding: by how much the input gradients of test images
differ from float32's, beside the change that RPS's own noise makes; the Pearson correlations of RPS; and those of AAM,
with its SSIM.
"""

import argparse
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal
from ml_collections import ConfigDict

from launch.data import feed, splits
from launch.files import load_json
from launch.networks import conv
from launch.store import Store
from launch.sweeps.members import tuples
from launch.training import keys
from robustgrad_jax import experiment, metrics
from robustgrad_jax.gradients import Draws, draw_noise
from robustgrad_jax.measures.under_attack import Attack
from robustgrad_jax.stages.measurements import Explanation

PRODUCTS = {lax.dot_general_p, lax.conv_general_dilated_p, conv.convolve_p, conv.input_grad_p, conv.kernel_grad_p}
MANTISSAS = {"float32": 23, "tf32": 10, "bfloat16x3": 7, "bfloat16": 7}  # bits of a rounded operand
HIGHEST = ("highest", lax.Precision.HIGHEST, (lax.Precision.HIGHEST,) * 2)


def rounded(fn: Callable, rounding: str) -> Callable:
    """The same function of arrays, with the operands of its products rounded; see `MANTISSAS`.

    Outside jit the steps of a loop that only carries a state are calls of one compiled program, see `loops`.
    """

    def run(*arguments: Any) -> Any:
        closed, shape = jax.make_jaxpr(fn, return_shape=True)(*arguments)
        results = _evaluate(closed.jaxpr, closed.consts, jax.tree.leaves(arguments), rounding)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return run


def _evaluate(jaxpr: Jaxpr, consts: Sequence[Any], arguments: Sequence[Any], rounding: str) -> list[Any]:
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *arguments], strict=True))
    read = lambda atom: jnp.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]
    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        results = _apply(equation.primitive, operands, equation.params, rounding)
        results = results if equation.primitive.multiple_results else [results]
        values |= dict(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _apply(primitive: Any, operands: list[Any], params: dict[str, Any], rounding: str) -> Any:
    if primitive in PRODUCTS and params["precision"] not in HIGHEST and operands[0].dtype == jnp.float32:
        return _product(functools.partial(primitive.bind, **params), *operands, rounding)
    inner = {name: _parts(value, rounding) for name, value in params.items()}
    if primitive.name == "while":
        split = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
        of_cond, of_body, state = operands[: split[0]], operands[split[0] : split[1]], operands[split[1] :]
        test = lambda state: inner["cond_jaxpr"](*of_cond, *state)[0]
        return lax.while_loop(test, lambda state: inner["body_jaxpr"](*of_body, *state), state)
    if primitive.name == "scan":
        split = params["num_consts"], params["num_consts"] + params["num_carry"]
        consts, carry, each = operands[: split[0]], operands[split[0] : split[1]], operands[split[1] :]

        def body(carry, each):
            results = inner["jaxpr"](*consts, *carry, *each)
            return results[: len(carry)], results[len(carry) :]

        if not each and not any(isinstance(operand, Tracer) for operand in operands):
            step = jax.jit(lambda carry: body(carry, [])[0])
            for _ in range(params["length"]):
                carry = step(carry)
            return carry
        carry, each = lax.scan(body, carry, each, params["length"], params["reverse"])
        return [*carry, *each]
    if primitive.name == "cond":
        return lax.switch(operands[0], inner["branches"], *operands[1:])
    called = next((inner[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr") if callable(inner.get(name))), None)
    if called is not None:
        return called(*operands)
    if any(map(callable, inner.values())):
        raise NotImplementedError(f"{primitive.name} has a program inside that is not rounded")
    return primitive.bind(*operands, **params)


def _parts(value: Any, rounding: str) -> Any:
    """The program in a parameter as a rounded function; None for any other value."""
    if isinstance(value, ClosedJaxpr):
        return lambda *arguments: _evaluate(value.jaxpr, value.consts, arguments, rounding)
    if isinstance(value, Jaxpr):
        return lambda *arguments: _evaluate(value, (), arguments, rounding)
    if isinstance(value, tuple) and value and isinstance(value[0], ClosedJaxpr):
        return [_parts(part, rounding) for part in value]
    return None


def _product(product: Callable, a: Any, b: Any, rounding: str) -> Any:
    down = functools.partial(lax.reduce_precision, exponent_bits=8, mantissa_bits=MANTISSAS[rounding])
    if rounding != "bfloat16x3":
        return product(down(a), down(b))
    high_a, high_b = down(a), down(b)
    return product(high_a, high_b) + product(high_a, down(b - high_b)) + product(down(a - high_a), high_b)


def study(run: Path, examples: int, steps: int) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """(rounding, what it gives for the network of a finished run), float32 first.

    Gives gradients (n, …) of the clean images, of noisy and of attacked ones, and how alike their heat maps are to the
    clean one's (n,).
    """
    config = ConfigDict(tuples(load_json(run / "config.json")))
    config.train, config.init_from, config.precision = False, str(run), "highest"
    weights = experiment.plan(config).weights
    store = Store(run / "store").reader()
    data, variables = store.get(weights.images), jax.tree.map(jnp.asarray, store.get(weights)["variables"])
    subject = store.get(Explanation(weights.images, weights.architecture, "gradient"))
    test = splits.subset(data.test, seed=0, examples=examples, name="examples")
    batch = jax.tree.map(jnp.asarray, next(iter(feed.eval_batches(test, batch_size=examples))))
    x, y = subject.prepare(batch | {"resident": jax.tree.map(jnp.asarray, feed.resident(test))})
    noise = draw_noise("uniform", keys.stream(0, "rps", 0), batch["slot"], x.shape, 1.0) / (255 * jnp.asarray(data.std))
    attack = Attack("aam", 8.0, steps)

    def attacked(variables, x, y, slots):
        functions = subject.logits_fn(variables), subject.attribution_fn(variables, slots)
        return attack(*functions, x, y, std=data.std, draws=Draws(keys.stream(0, "aam"), slots))

    for rounding in MANTISSAS:
        explain = jax.jit(rounded(subject.explain, rounding))
        moved = rounded(attacked, rounding)(variables, x, y, batch["slot"])
        images = {"clean": x, **{f"rps-{r}": jnp.clip(x + r * noise, x.min(), x.max()) for r in (4, 8)}, "aam-8": moved}
        found = {name: explain(variables, image, y, batch["slot"]) for name, image in images.items()}
        alike = {
            f"{name}/{measure.__name__}": measure(found["clean"]["heatmap"], own["heatmap"])
            for name, own in found.items()
            for measure in (metrics.pearson, metrics.ssim)
        }
        yield rounding, jax.device_get(alike | {name: own["attribution"] for name, own in found.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--attack_steps", type=int, default=100)
    options = parser.parse_args()
    print("| run | products | gradient, error | its cosine | noise ε=4 | RPS ε=4 | RPS ε=8 | AAM ε=8 | its SSIM |")
    print("|---|---|---|---|---|---|---|---|---|")
    for run in options.runs:
        exact: dict[str, np.ndarray] = {}
        for rounding, values in study(run, options.examples, options.attack_steps):
            exact = exact or values
            print(f"| {run.name} | {rounding} | {' | '.join(_row(values, exact))} |", flush=True)


def _row(values: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> list[str]:
    """Medians over images of what the gradients show, and the means of the measures."""
    own, noisy, true = (np.reshape(a, (len(a), -1)) for a in (values["clean"], values["rps-4"], exact["clean"]))
    norm = lambda a: np.linalg.norm(a, axis=1)
    error, moved = np.median(norm(own - true) / norm(true)), np.median(norm(noisy - own) / norm(own))
    cosine = np.median(np.sum(own * true, 1) / (norm(own) * norm(true)))
    names = ("rps-4/pearson", "rps-8/pearson", "aam-8/pearson", "aam-8/ssim")
    alike = [f"{values[name].mean():.4f}" for name in names]
    return [f"{error:.1e}", f"{cosine:.6f}", f"{moved:.3f}", *alike]


if __name__ == "__main__":
    main()
