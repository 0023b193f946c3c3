"""Layer-wise relevance propagation: rules, layers, composites."""

from robustgrad_jax.lrp.layers import merge_batch_norm
from robustgrad_jax.lrp.propagation import BOXES, DEFAULTS, NAMES, create, relevance

__all__ = ["BOXES", "DEFAULTS", "NAMES", "create", "merge_batch_norm", "relevance"]
