"""Layer-wise relevance propagation: rules, layers, composites."""

from robustgrad_jax.lrp.propagation import DEFAULTS, NAMES, create, relevance

__all__ = ["DEFAULTS", "NAMES", "create", "relevance"]
