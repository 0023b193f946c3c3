"""The CLIP of a run or a command: a folder, a hub name, or one that comes with `clip_jax`."""

import clip_jax


def load(name: str, dtype: str = "float32") -> clip_jax.Clip:
    """What `clip_jax.load` gives, with the parameters on the host.

    Raises:
      FileNotFoundError: it has no tokenizer files.
    """
    clip = clip_jax.load(name, dtype=dtype, put=lambda path, leaf: leaf)
    if clip.tokenizer is None:
        raise FileNotFoundError(f"clip={name!r} has no tokenizer files, which texts need")
    return clip
