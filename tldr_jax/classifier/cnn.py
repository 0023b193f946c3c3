"""A small convolutional network for Scenes."""

from typing import Any

import jax
from flax import linen as nn

from launch.networks import conv, dtypes


class SmallCnn(nn.Module):
    """Three 3x3 convolutions, averages over a 2x2 grid, and a dense layer whose ReLU gives the features.

    `apply(variables, x, train=False) -> (logits, out)`, x (n, 32, 32, 3) normalised, `out["features"]` (n, features).
    The grid keeps where things are: without it a 0.1 million parameter network hardly learns shapes.
    """

    num_classes: int
    channels: tuple[int, ...] = (24, 48, 64)
    features: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        del train  # nothing here behaves differently
        init, out = nn.initializers.he_normal(), {}
        for i, channels in enumerate(self.channels, 1):
            x = nn.Conv(
                channels,
                (3, 3),
                (1, 1) if i == len(self.channels) else (2, 2),
                padding=((1, 1), (1, 1)),
                dtype=self.dtype,
                kernel_init=init,
                conv_general_dilated=conv.conv_general_dilated,
                name=f"conv{i}",
            )(x)
            x = out[f"conv{i}"] = nn.relu(x)
        n, height, width, channels = x.shape
        if height % 2 or width % 2:
            raise ValueError(f"the small CNN halves maps of {height}x{width} once more: take images of a multiple of 8")
        x = dtypes.wide(x).reshape(n, 2, height // 2, 2, width // 2, channels).mean((2, 4)).reshape(n, -1)
        x = out["features"] = nn.relu(nn.Dense(self.features, kernel_init=init, name="dense")(x))
        x = out["logits"] = nn.Dense(self.num_classes, name="fc")(x)
        return x, out
