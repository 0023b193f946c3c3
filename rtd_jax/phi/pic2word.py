"""Pic2Word: a φ network from images alone (Saito et al., CVPR 2023, https://arxiv.org/abs/2302.03084).

"a photo of [$]" with an image's pseudo token must be nearer to the image than to the others of the batch, by CLIP's
own loss and temperature. Neither encoder changes, so images are embedded once.
"""

import jax.numpy as jnp

from clip_jax import model
from clip_jax.config import ClipConfig
from launch.training import sharding
from rtd_jax import losses
from rtd_jax.phi.networks import ApplyPhi
from rtd_jax.text import compose
from rtd_jax.tuning import training


def make_loss(config: ClipConfig, apply_phi: ApplyPhi, *, prompt: compose.Prompt, seed) -> training.TextLoss:
    """Pic2Word's loss of φ's parameters; a batch has the images' embeddings, `image` (b, d).

    Args:
      config: of the CLIP.
      apply_phi: φ in training.
      prompt: in the CLIP's tokens.
      seed: of dropout; may be traced.
    """

    def loss(params, batch, step, axis_name):
        image, frozen = batch["image"], batch[sharding.RESIDENT]["clip"]
        pseudo = apply_phi(params, image, training.dropout_key(seed, step, axis_name, batch))
        ids = jnp.broadcast_to(jnp.array(prompt.ids, jnp.int32), (len(image), len(prompt.ids)))
        text = model.encode_text(config, frozen, ids, pseudo_tokens=pseudo, marker_id=prompt.marker_id)
        value = losses.pic2word(image, text, frozen["logit_scale"], axis_name=axis_name)
        return value, {"cosine": training.cosine(text, image).mean()}

    return loss
