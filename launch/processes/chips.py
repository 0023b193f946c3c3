"""Accelerators by name: memory, and peak rates by their makers' data sheets."""

from dataclasses import dataclass, replace
from typing import Any

_GB = 1e9


@dataclass(frozen=True)
class Chip:
    """Memory and peak rates of a device.

    Attributes:
      title: as the maker calls it.
      kinds: what JAX calls it: `device_kind`.
      memory: bytes that a program can have.
      flops: of a dense matrix product in bfloat16, 1/s.
      bandwidth: of the memory, bytes/s.
      link: bytes/s in one direction to the neighbours of a ring, within a slice or a host.
    """

    title: str
    kinds: tuple[str, ...]
    memory: float
    flops: float
    bandwidth: float
    link: float


# Google's pages on the versions of Cloud TPU. The bandwidth between chips is given there over all links of a chip
# (four, or six in three dimensions), of which a ring uses two.
TPUS = {
    "v4": Chip("TPU v4", ("TPU v4",), 32 * 2**30, 275e12, 1228e9, 100e9),
    "v5e": Chip("TPU v5e", ("TPU v5 lite", "TPU v5e"), 15.75 * 2**30, 197e12, 819e9, 100e9),
    "v5p": Chip("TPU v5p", ("TPU v5", "TPU v5p"), 95 * 2**30, 459e12, 2765e9, 200e9),
    "v6e": Chip("TPU v6e", ("TPU v6 lite", "TPU v6e"), 31.25 * 2**30, 918e12, 1640e9, 200e9),
}
# NVIDIA's data sheets (SXM), NVLink's bandwidth halved: it is given for both directions together. JAX reserves three
# quarters of the memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise.
GPUS = {
    "a100": Chip("A100 80 GB", ("NVIDIA A100-SXM4-80GB",), 0.75 * 80 * _GB, 312e12, 2.039e12, 300e9),
    "h100": Chip("H100", ("NVIDIA H100 80GB HBM3",), 0.75 * 80 * _GB, 989e12, 3.352e12, 450e9),
    "h200": Chip("H200", ("NVIDIA H200",), 0.75 * 141 * _GB, 989e12, 4.8e12, 450e9),
}


def of_device(device: Any) -> Chip | None:
    """The chip that a JAX device is, or the half of one where it is one of the two cores; None if it is in no table."""
    chip = next((chip for chip in (TPUS | GPUS).values() if device.device_kind in chip.kinds), None)
    if chip is None or chip is not TPUS["v4"] or device.num_cores != 1:
        return chip
    half = {name: getattr(chip, name) / 2 for name in ("memory", "flops", "bandwidth", "link")}
    return replace(chip, title=f"half a {chip.title}", **half)
