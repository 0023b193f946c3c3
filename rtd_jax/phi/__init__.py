"""φ: from an image embedding to a pseudo token, and the three ways to train it."""

from rtd_jax.phi.networks import (
    KINDS,
    Network,
    Phi,
    Pic2Word,
    check_fits,
    from_torch,
    init,
    load,
    save,
    to_torch,
)

__all__ = [
    "KINDS",
    "Network",
    "Phi",
    "Pic2Word",
    "check_fits",
    "from_torch",
    "init",
    "load",
    "save",
    "to_torch",
]
