"""From CLIP's embedding space to the classifier's features."""

from tldr_jax.projector.linear import (
    FeatureMap,
    Moments,
    Projector,
    apply,
    diagnostics,
    fit,
    gap_basis,
    moments_of,
    solve,
    stack,
)

__all__ = [
    "FeatureMap",
    "Moments",
    "Projector",
    "apply",
    "diagnostics",
    "fit",
    "gap_basis",
    "moments_of",
    "solve",
    "stack",
]
