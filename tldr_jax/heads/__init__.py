"""Last layers: their accuracy, the text draws that train them, the image-based baselines."""

from tldr_jax.heads.head import Head, init, logits, predictions

__all__ = ["Head", "init", "logits", "predictions"]
