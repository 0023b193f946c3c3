"""Attacks on attributions: images that look the same and are explained otherwise."""

from robustgrad_jax.attacks.methods import (
    NAMES,
    SOFTPLUS_BETA,
    AttributionFn,
    LogitsFn,
    Radius,
    manipulate,
    mass_center,
    pgd,
    random_sign,
    smoothed,
    smoothed_logits,
    target_frame,
    top_k,
)

__all__ = [
    "NAMES",
    "SOFTPLUS_BETA",
    "AttributionFn",
    "LogitsFn",
    "Radius",
    "manipulate",
    "mass_center",
    "pgd",
    "random_sign",
    "smoothed",
    "smoothed_logits",
    "target_frame",
    "top_k",
]
