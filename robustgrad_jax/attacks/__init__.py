"""Attacks on attributions: images that look the same but are explained differently."""

from robustgrad_jax.attacks.methods import (
    NAMES,
    SOFTPLUS_BETA,
    manipulate,
    mass_center,
    pgd,
    random_sign,
    smoothed,
    smoothed_logits,
    target_frame,
    top_k,
)
from robustgrad_jax.gradients import Ball, Draws

__all__ = [
    "NAMES",
    "SOFTPLUS_BETA",
    "Ball",
    "Draws",
    "manipulate",
    "mass_center",
    "pgd",
    "random_sign",
    "smoothed",
    "smoothed_logits",
    "target_frame",
    "top_k",
]
