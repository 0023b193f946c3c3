"""φ: from an image embedding to a pseudo token, and the three ways to train it."""

from rtd_jax.phi.networks import (
    KINDS,
    ApplyPhi,
    Network,
    Phi,
    Pic2Word,
    check_file,
    check_fits,
    from_torch,
    init,
    load,
    save,
    to_torch,
)

__all__ = [
    "KINDS",
    "ApplyPhi",
    "Network",
    "Phi",
    "Pic2Word",
    "check_file",
    "check_fits",
    "from_torch",
    "init",
    "load",
    "save",
    "to_torch",
]
