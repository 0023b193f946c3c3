"""What is measured of a trained network: the section `evaluation` of a config."""

import math
from dataclasses import dataclass

from launch.data import Spec
from launch.stages import SettingError, require, require_distinct, require_known, require_number
from robustgrad_jax import attributions, lrp, metrics
from robustgrad_jax.attributions.explainers import LRP
from robustgrad_jax.measures import evaluation
from robustgrad_jax.measures.under_attack import ATTACKS
from robustgrad_jax.regularizers.base import PIXEL_RANGE

PERTURBATIONS = ("rps", *ATTACKS)
ADVERSARIAL_INSERTION = "adversarial_insertion"
SPLITS = ("test", "val")
CURVES = (*evaluation.CURVES, ADVERSARIAL_INSERTION)

_AT_LEAST = dict.fromkeys(("draws", "attack_steps", "batch_size", "sensitivity_draws", "path_steps", "samples"), 1) | {
    "curve_steps": 2,
    **dict.fromkeys(("examples", "attack_examples", "references", "pictures", "top_k"), 0),
}
_MOST = 1000  # pictures that a figure holds, levels of a curve
_RADII = ("radii", "attack_radii", "sensitivity_radius", "upper_bound_radius")


@dataclass(frozen=True)
class Evaluation:
    """Which attributions are measured under which perturbations, and by what.

    Attributes:
      batch_size: images at a time; the range that RPS clips to is that of a batch.
      split: "test", or "val" to measure the images held out, by which a weight is chosen.
      examples: images of the split for RPS and the upper bound; 0 for all.
      attributions: of `robustgrad_jax.attributions.NAMES`.
      composites: of `robustgrad_jax.lrp.NAMES`: LRP as attributions lrp_epsilon, …
      path_steps: of integrated_gradients, and of integrated_gradients_published.
      samples: of smoothgrad and expected_gradients.
      noise_level: of smoothgrad, as a share of an image's range.
      references: training images that expected_gradients draws from; 0 for all.
      grad_cam_layer: "" for the last one.
      attacked: those of them, LRP as lrp_epsilon, that attacks, curves and sensitivities measure; () for all.
      perturbations: of `PERTURBATIONS`.
      metrics: of `robustgrad_jax.measures.evaluation.SIMILARITIES`.
      top_k: pixels of the metric and of the attack; 0 for a fiftieth of the image.
      radii: of RPS: ε, in units of 1/255 of the pixel range.
      draws: of RPS and of the upper bound, per image.
      attack_radii, attack_steps: of every attack.
      attack_gamma: of AAM: weight of the heat map against that of the logits.
      attack_clip: whether attacked images stay within the range of values of their batch, as published.
      attack_beta: of the softplus that ReLU networks are attacked through.
      attack_examples: images for attacks, curves and sensitivity; 0 for all.
      curves: of `CURVES`.
      curve_steps: levels of a curve.
      sensitivity: of `robustgrad_jax.measures.evaluation.SENSITIVITIES`.
      sensitivity_radius, sensitivity_draws: of its perturbations.
      upper_bound, upper_bound_radius: whether the bound of the paper is measured, and for which ε.
      pictures: attacked images that the figures show.

    Raises:
      SettingError: an unknown name, or a number out of range.
    """

    batch_size: int = 128
    split: str = "test"
    examples: int = 0
    attributions: tuple[str, ...] = ("gradient",)
    composites: tuple[str, ...] = ()
    path_steps: int = 50
    samples: int = 50
    noise_level: float = 0.15
    references: int = 100
    grad_cam_layer: str = ""
    attacked: tuple[str, ...] = ()
    perturbations: tuple[str, ...] = ("rps", "aam")
    metrics: tuple[str, ...] = ("cosine", "pcc", "ssim", "ssim_published", "mse_published", "signed_cosine")
    top_k: int = 0
    radii: tuple[float, ...] = (4.0, 8.0, 16.0)
    draws: int = 10
    attack_radii: tuple[float, ...] = (4.0, 8.0, 16.0)
    attack_steps: int = 100
    attack_gamma: float = 0.5
    attack_clip: bool = True
    attack_beta: float = 20.0
    attack_examples: int = 0
    curves: tuple[str, ...] = ("insertion", ADVERSARIAL_INSERTION)
    curve_steps: int = 20
    sensitivity: tuple[str, ...] = ()
    sensitivity_radius: float = 4.0
    sensitivity_draws: int = 10
    upper_bound: bool = True
    upper_bound_radius: float = 4.0
    pictures: int = 6

    def __post_init__(self) -> None:
        require_known(self, "split", SPLITS)
        require_known(self, "attributions", attributions.NAMES)
        require_known(self, "composites", lrp.NAMES)
        for name in self.attacked:
            among = f"evaluation.attributions and evaluation.composites, which have {', '.join(map(repr, self.names))}"
            if name not in self.names:
                raise SettingError("attacked", f" has {name!r}, which is not among {among}")
        require_known(self, "perturbations", PERTURBATIONS)
        require_known(self, "metrics", evaluation.SIMILARITIES)
        require_known(self, "curves", CURVES)
        require_known(self, "sensitivity", evaluation.SENSITIVITIES)
        for name, least in _AT_LEAST.items():
            require_number(self, name, least=least)
        require_number(self, *_RADII, above=0, most=PIXEL_RANGE)
        require_distinct(self, "radii", "attack_radii")
        require_number(self, "attack_beta", "noise_level", above=0)
        require_number(self, "attack_gamma", above=0, most=1)
        require_number(self, "pictures", "curve_steps", most=_MOST)
        for name, of in (("radii", {"rps"}), ("attack_radii", set(ATTACKS))):
            needed = sorted(of & set(self.perturbations))
            problem = f"{needed} in evaluation.perturbations need at least one; leave them out to measure without"
            require(getattr(self, name) or not needed, self, name, problem)
        if ADVERSARIAL_INSERTION in self.curves and not set(self.perturbations) & set(ATTACKS):
            attacks = ", ".join(map(repr, ATTACKS))
            problem = (
                f" has {ADVERSARIAL_INSERTION!r}, but evaluation.perturbations has no attack; add one of {attacks}"
            )
            raise SettingError("curves", problem)

    @property
    def names(self) -> tuple[str, ...]:
        """The attributions: those by name, then LRP by its composites ("lrp_epsilon_plus")."""
        return (*self.attributions, *(LRP + name for name in self.composites))

    def check(self, spec: Spec) -> None:
        """Validate the settings for a data set.

        Raises:
          SettingError: more examples or pixels than there are, or images too small for SSIM.
        """
        available, held_out = spec.count(self.split), "no images are held out; set data.val_examples"
        require(available, self, "split", held_out)
        for name in ("examples", "attack_examples"):
            require(getattr(self, name) <= available, self, name, f"the {self.split} split has {available} examples")
        if "expected_gradients" in self.attributions:
            require(self.references <= spec.examples, self, "references", f"there are {spec.examples} training images")
        pixels = math.prod(spec.image_shape[:2])
        require(self.top_k <= pixels, self, "top_k", f"the images have {pixels} pixels")
        if self.perturbations and "ssim" in self.metrics and min(spec.image_shape[:2]) < metrics.SSIM_WINDOW:
            problem = (
                f" has 'ssim', but images of shape {spec.image_shape} are smaller than SSIM's window of "
                f"{metrics.SSIM_WINDOW} pixels: set a larger data.image_size, or leave 'ssim' out"
            )
            raise SettingError("metrics", problem)

    def pixels(self, spec: Spec) -> int:
        """How many pixels `top_k` stands for."""
        return self.top_k or max(1, round(math.prod(spec.image_shape[:2]) / 50))
