"""Which parameters are split over devices, for towers larger than one device's memory.

Each block is split as in Megatron-LM (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): attention by heads, the
perceptron by its hidden units, so that a block needs two sums over the devices and no weight ever travels.
"""

from collections.abc import Sequence

from jax.sharding import PartitionSpec as P

from clip_jax.config import ClipConfig

# (regex over a parameter's path, where its axes go), first match wins; what matches none is kept whole everywhere.
_BLOCKS = (
    ("blocks/qkv/kernel$", P(None, None, None, "model")),
    ("blocks/qkv/bias$", P(None, None, "model")),
    ("blocks/out/kernel$", P(None, "model")),
    ("blocks/up/kernel$", P(None, None, "model")),
    ("blocks/up/bias$", P(None, "model")),
    ("blocks/down/kernel$", P(None, "model")),
)
_TOKENS = ("text/tokens$", P(None, "model"))  # by width: any vocabulary divides, and a look-up stays on its device


def partition_rules(
    config: ClipConfig, shards: int, *, towers: Sequence[str] = ("image", "text")
) -> tuple[tuple[str, P], ...]:
    """Rules over a mesh with axes ("data", "model"), in the form that `NamedSharding` layouts take.

    Optimiser states whose paths end in their parameter's are covered too. Blocks are matched in either tower.

    Args:
      config: of the model.
      shards: size of the mesh's axis "model".
      towers: those whose blocks are among the parameters.

    Returns:
      (regex over a "/"-joined path, PartitionSpec) pairs; the first match wins.

    Raises:
      ValueError: a tower's heads, perceptron or width do not divide over the shards.
    """
    for name in towers:
        if name not in ("image", "text"):
            raise ValueError(f"unknown tower {name!r}; there are image, text")
        tower = getattr(config, name)
        for kind in ("heads", "mlp_width", "width"):
            if getattr(tower, kind) % shards:
                raise ValueError(
                    f"{kind}={getattr(tower, kind)} of the {name} tower does not divide by {shards} shards"
                )
    return (*_BLOCKS, _TOKENS) if "text" in towers else _BLOCKS
