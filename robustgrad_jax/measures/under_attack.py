"""What an attack does to an attribution.

`Attack` is an attack with everything but its images; `attacked` gives a batch's attacked images and both explanations,
`under_attack` compares them, for `launch.training.loop.masked_means`.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax

from launch.training import keys
from robustgrad_jax import attacks, metrics
from robustgrad_jax.measures.evaluation import NONFINITE, Compare, Subject, curve_values


def frame(shape: tuple[int, int]) -> jax.Array:
    """AAM's target, a frame of 5 pixels around 32x32 images, 35 around 224x224, and in proportion otherwise: (h, w)."""
    return attacks.target_frame(shape, max(1, round(min(shape) * 5 / 32)))


@dataclass(frozen=True)
class Attack:
    """One of the attacks, with everything but its images.

    Attributes:
      kind: of `ATTACKS`.
      radius: ε in units of 1/255 of the pixel range. std: per channel, what the images were divided by.
      steps: of the attack. gamma: AAM's weight of the heat map against the logits.
      top_k: pixels of the top-k attack.
      seed: of random starts; the test-set index gives each image its own.
    """

    kind: str
    radius: float
    std: tuple[float, ...]
    steps: int
    gamma: float
    top_k: int
    seed: int

    def __call__(self, logits_fn: Callable, attribution_fn: Callable, x, y, slots) -> jax.Array:
        """The attacked images, of x's shape (n, h, w, c)."""
        return ATTACKS[self.kind](self, logits_fn, attribution_fn, x, y, slots)

    @property
    def name(self) -> str:
        return f"{self.kind}-{self.radius:g}"

    @property
    def ball(self) -> dict:
        return {"radius": self.radius / 255, "std": self.std}

    def start(self, slots) -> dict:
        return {"key": keys.stream(self.seed, self.kind), "slots": slots}


ATTACKS: dict[str, Callable] = {
    "aam": lambda a, logits_fn, attribution_fn, x, y, slots: attacks.manipulate(
        logits_fn, attribution_fn, x, y, frame(x.shape[1:3]), steps=a.steps, gamma=a.gamma, **a.ball
    ),
    "top_k": lambda a, logits_fn, attribution_fn, x, y, slots: attacks.top_k(
        logits_fn, attribution_fn, x, y, k=a.top_k, steps=a.steps, **a.ball
    ),
    "mass_center": lambda a, logits_fn, attribution_fn, x, y, slots: attacks.mass_center(
        logits_fn, attribution_fn, x, y, steps=a.steps, **a.start(slots), **a.ball
    ),
    "pgd": lambda a, logits_fn, attribution_fn, x, y, slots: attacks.pgd(
        logits_fn, attribution_fn, x, y, steps=a.steps, **a.start(slots), **a.ball
    ),
    "random_sign": lambda a, logits_fn, attribution_fn, x, y, slots: attacks.random_sign(x, **a.start(slots), **a.ball),
}


def attacked(subject: Subject, through: Subject, attack: Attack) -> Callable:
    """(variables, batch) -> what `under_attack` measures.

    Runs as it is, a compiled step at a time, or inside jit, where the whole attack is one program.

    Args:
      through: the network that is attacked, `subject`'s own or, for ReLU, its smooth copy; the images are explained,
        before and after, by `subject`.

    Returns:
      A function that gives x (n, h, w, c) and y (n,), moved, the attacked images, and before and after, what `explain`
      gives for both.
    """

    def run(variables, batch):
        x, y = _call(subject.prepare, batch)
        slots = batch["slot"]
        moved = attack(through.logits_fn(variables), through.attribution_fn(variables, slots), x, y, slots)
        before, after = (_call(subject.explain, variables, images, y, slots) for images in (x, moved))
        return {"x": x, "y": y, "moved": moved, "before": before, "after": after}

    return run


@functools.partial(jax.jit, static_argnums=0)
def _call(fn: Callable, *arguments):
    return fn(*arguments)


def under_attack(subject: Subject, attack: Attack, *, compare: Compare, curve_steps: int = 0) -> Callable:
    """How alike attributions are before and after an attack, and whether the prediction holds.

    Args:
      compare: the similarities, of clean and attacked map, and for AAM of attacked map and target too.
      curve_steps: of adversarial insertion: the attacked map orders the pixels, those of the clean image are inserted;
        0 leaves it out.

    Returns:
      (variables, batch, draw) -> {"aam-8/cosine": (n,), …, "aam-8/target_cosine", …, "aam-8/accuracy",
      "aam-8/logits_change" (mean squared), "aam-8/nonfinite", "aam-8-insertion/area", "aam-8-insertion/0", …}; needs
      `attacked`'s result as `batch["once"]`.
    """

    def measure(variables, batch, draw):
        del draw
        x, y, moved, before, after = (batch["once"][key] for key in ("x", "y", "moved", "before", "after"))
        logits_fn = subject.logits_fn(variables)
        found = compare(before, after)
        found["accuracy"] = metrics.accuracy(logits_fn, moved, y)
        found["logits_change"] = metrics.mse(logits_fn(moved), logits_fn(x))
        if attack.kind == "aam":
            found |= compare.to_target(after, frame(x.shape[1:3]))
        found = {f"{attack.name}/{name}": value for name, value in found.items()}
        if curve_steps:
            curve = metrics.adversarial_insertion_curve(logits_fn, x, y, after["heatmap"], curve_steps)
            group = f"{attack.name}-insertion"
            found |= curve_values(group, curve) | {f"{group}/{NONFINITE}": found[f"{attack.name}/{NONFINITE}"]}
        return found

    return measure
