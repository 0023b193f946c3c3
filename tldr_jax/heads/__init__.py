"""Last layers: heads, the draws of text that train them, the image-based baselines."""

from tldr_jax.heads.head import Head, init, logits, predictions

__all__ = ["Head", "init", "logits", "predictions"]
