"""A search through the compilers of a TPU and of GPUs: a gallery of 10^7 rows stays where it lies."""

import pytest

from rtd_jax import retrieval
from tests.aot.compiling import built, machine_of, nbytes, only_with_system

pytestmark = only_with_system

ROWS, DIM, QUERIES, K = 10**7, 128, 64, 10


@pytest.mark.parametrize("dtype", retrieval.DTYPES)
@pytest.mark.parametrize("topology", ["v5e:4x4", "h100x8"])
def test_nothing_is_exchanged_but_the_best_and_no_gallery_is_copied(topology, dtype):
    machine = machine_of(topology)
    devices = machine.devices
    programs = retrieval.program(ROWS, DIM, QUERIES, K, devices, dtype, chunk=1024)
    search, merge = (built(machine, programs[name].jitted, *programs[name].arguments) for name in ("search", "merge"))
    assert search.module.collectives == []
    kind, size = {"float32": ("f32", 4), "bfloat16": ("bf16", 2)}[dtype]
    assert search.module.copied([f"{kind}[{ROWS // len(devices)},{DIM}]"]) == []
    gallery = ROWS // len(devices) * DIM * size
    assert gallery <= nbytes(search.arguments) / len(devices) and search.peak < 1.05 * gallery
    lists = len(devices) * QUERIES * K * (4 + 4)  # the devices' rows and scores
    assert 0 < merge.exchanged() < lists
