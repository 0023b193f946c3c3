"""Pic2Word: a φ network from images alone (Saito et al., CVPR 2023, https://arxiv.org/abs/2302.03084).

"a photo of [$]" with an image's pseudo token has to be nearer to the image than to the others of the batch, by CLIP's
own loss and temperature. Neither encoder changes, so that images are embedded once.
"""

from collections.abc import Callable

import jax.numpy as jnp

from clip_jax import model
from launch.training import sharding
from rtd_jax import losses
from rtd_jax.text import compose
from rtd_jax.tuning import training


def make_loss(config, apply_phi: Callable, *, prompt: compose.Prompt, seed: int) -> Callable:
    """`loss(params, batch, step, axis_name) -> (loss, metrics)` of φ's parameters; the batch holds `image` (b, d).

    Args:
      config: of the CLIP.
      apply_phi: (params, x (b, d), dropout key) -> (b, w).
      prompt: in the CLIP's tokens.
      seed: of dropout.
    """

    def loss(params, batch, step, axis_name):
        image, frozen = batch["image"], batch[sharding.RESIDENT]["clip"]
        pseudo = apply_phi(params, image, training.dropout_key(seed, step, axis_name))
        ids = jnp.broadcast_to(jnp.array(prompt.ids, jnp.int32), (len(image), len(prompt.ids)))
        text = model.encode_text(config, frozen, ids, pseudo_tokens=pseudo, marker_id=prompt.marker_id)
        value = losses.pic2word(image, text, frozen["logit_scale"], axis_name=axis_name)
        return value, {"cosine": training.cosine(text, image).mean()}

    return loss
