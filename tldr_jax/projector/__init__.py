"""From CLIP's embedding space to the classifier's features."""

from tldr_jax.projector.linear import (
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
