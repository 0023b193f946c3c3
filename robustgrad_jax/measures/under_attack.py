"""What an attack does to an attribution.

`Attack` is an attack with everything but its images; `attacked` gives a batch's attacked images and both explanations,
`under_attack` compares them, for `launch.training.means.masked_means`.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from launch.training import keys
from robustgrad_jax import attacks, metrics
from robustgrad_jax.callables import AttributionFn, LogitsFn
from robustgrad_jax.gradients import Ball, Draws
from robustgrad_jax.measures.evaluation import NONFINITE, Batch, Compare, Measure, Subject, Values, curve_values


def frame(shape: tuple[int, int]) -> jax.Array:
    """The target of AAM (h, w), a frame of 5 pixels for 32x32 images, 35 for 224x224, and in proportion otherwise."""
    return attacks.target_frame(shape, max(1, round(min(shape) * 5 / 32)))


@dataclass(frozen=True)
class Attack:
    """An attack and its strength.

    Attributes:
      kind: of `ATTACKS`.
      radius: ε in units of 1/255 of the pixel range.
      steps: of the attack.
      gamma: AAM's weight of the heat map against the logits.
      top_k: pixels of the top-k attack.
      clip: attacked images stay within the range of values of their batch, as in the published code.
    """

    kind: str
    radius: float
    steps: int = 100
    gamma: float = 0.5
    top_k: int = 1
    clip: bool = True

    def __call__(
        self,
        logits_fn: LogitsFn,
        attribution_fn: AttributionFn,
        x: jax.Array,
        y: jax.Array,
        *,
        std: Sequence[float],
        draws: Draws,
    ) -> jax.Array:
        """The attacked images, of x's shape (n, h, w, c); `std` is what the images were divided by."""
        ball = Ball(self.radius / 255, tuple(std), (x.min(), x.max()) if self.clip else None)
        return ATTACKS[self.kind](self, logits_fn, attribution_fn, x, y, ball, draws)

    @property
    def name(self) -> str:
        """ "aam-8": the prefix of its values."""
        return f"{self.kind}-{self.radius:g}"


ATTACKS: dict[str, Callable[..., jax.Array]] = {
    "aam": lambda a, logits_fn, attribution_fn, x, y, ball, draws: attacks.manipulate(
        logits_fn, attribution_fn, x, y, frame(x.shape[1:3]), ball, steps=a.steps, gamma=a.gamma
    ),
    "top_k": lambda a, logits_fn, attribution_fn, x, y, ball, draws: attacks.top_k(
        logits_fn, attribution_fn, x, y, ball, k=a.top_k, steps=a.steps
    ),
    "mass_center": lambda a, logits_fn, attribution_fn, x, y, ball, draws: attacks.mass_center(
        logits_fn, attribution_fn, x, y, ball, draws, steps=a.steps
    ),
    "pgd": lambda a, logits_fn, attribution_fn, x, y, ball, draws: attacks.pgd(
        logits_fn, attribution_fn, x, y, ball, draws, steps=a.steps
    ),
    "random_sign": lambda a, logits_fn, attribution_fn, x, y, ball, draws: attacks.random_sign(x, ball, draws),
}

RunAttack = Callable[[Any, Batch], dict[str, Any]]


def attacked(subject: Subject, through: Subject, attack: Attack, *, std: Sequence[float], seed: int) -> RunAttack:
    """(variables, batch) -> what `under_attack` measures.

    Runs eagerly, one compiled step at a time, or inside jit, where the whole attack is one program.

    Args:
      subject: what is explained, before and after.
      through: the network that is attacked: that of `subject`, or for ReLU its smooth copy.
      attack: what happens to the images.
      std: per channel, what the images were divided by.
      seed: of random starts; the test-set index gives each image its own.

    Returns:
      A function that gives x (n, h, w, c) and y (n,), moved, the attacked images, and before and after, what `explain`
      gives for both.
    """

    def run(variables: Any, batch: Batch) -> dict[str, Any]:
        x, y = _call(subject.prepare, batch)
        slots = batch["slot"]
        functions = through.logits_fn(variables), through.attribution_fn(variables, slots)
        moved = attack(*functions, x, y, std=std, draws=Draws(keys.stream(seed, attack.kind), slots))
        before, after = (_call(subject.explain, variables, images, y, slots) for images in (x, moved))
        return {"x": x, "y": y, "moved": moved, "before": before, "after": after}

    return run


@functools.partial(jax.jit, static_argnums=0)
def _call(fn: Callable, *arguments: Any) -> Any:
    return fn(*arguments)


def under_attack(subject: Subject, attack: Attack, *, compare: Compare, curve_steps: int = 0) -> Measure:
    """How alike attributions are before and after an attack, and whether the prediction holds.

    Args:
      subject: what is explained.
      attack: the attack on the images.
      compare: the similarities, of clean and attacked map, and for AAM of attacked map and target too.
      curve_steps: of adversarial insertion: the attacked map orders the pixels, those of the clean image are inserted;
        0 leaves it out.

    Returns:
      {"aam-8/cosine": (n,), …, "aam-8/target_cosine", …, "aam-8/accuracy", "aam-8/logits_change" (mean squared),
      "aam-8/nonfinite", "aam-8-insertion/area", "aam-8-insertion/0", …}; needs what `attacked` gives, as
      `batch["once"]`.
    """

    def measure(variables: Any, batch: Batch, draw: Any) -> Values:
        del draw
        x, y, moved, before, after = (batch["once"][key] for key in ("x", "y", "moved", "before", "after"))
        logits_fn = subject.logits_fn(variables)
        alike = compare(before, after)
        alike["accuracy"] = metrics.accuracy(logits_fn, moved, y)
        alike["logits_change"] = metrics.mse(logits_fn(moved), logits_fn(x))
        if attack.kind == "aam":
            alike |= compare.to_target(after, frame(x.shape[1:3]))
        values = {f"{attack.name}/{name}": value for name, value in alike.items()}
        if curve_steps:
            curve = metrics.adversarial_insertion_curve(logits_fn, x, y, after["heatmap"], curve_steps)
            group = f"{attack.name}-insertion"
            values |= curve_values(group, curve) | {f"{group}/{NONFINITE}": alike[NONFINITE]}
        return values

    return measure
