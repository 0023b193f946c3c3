"""A search through the compilers of a TPU and of GPUs: a gallery of 10^7 rows stays where it lies."""

import jax
import pytest

from rtd_jax import retrieval
from tests.commands import REQUIRED

pytestmark = pytest.mark.skipif(not REQUIRED, reason="only with ALIGNAX_SYSTEM=required")

ROWS, DIM, QUERIES, K = 10**7, 128, 64, 10
TOPOLOGIES = ("v5e:4x4", "h100x8")


@pytest.fixture(params=TOPOLOGIES)
def topology(request, monkeypatch):
    """The topology's devices, compiling with little effort."""
    from launch.aot import topologies

    monkeypatch.delenv("XLA_FLAGS", raising=False)  # libtpu ends the process at flags of XLA's CPU compiler
    effort = jax.config.jax_exec_time_optimization_effort
    jax.config.update("jax_exec_time_optimization_effort", -1.0)
    yield topologies.topology(request.param)
    jax.config.update("jax_exec_time_optimization_effort", effort)


def test_nothing_is_exchanged_but_the_best_and_no_gallery_is_copied(topology):
    from launch.aot import hlo

    devices = topology.devices
    programs = retrieval.program(ROWS, DIM, QUERIES, K, devices, chunk=1024)
    compiled = {name: one.jitted.lower(*one.arguments).compile() for name, one in programs.items()}
    search, merge = (hlo.Module.of(compiled[name].as_text()) for name in ("search", "merge"))
    assert search.collectives == []
    assert search.copied([f"f32[{ROWS // len(devices)},{DIM}]"]) == []
    stats = compiled["search"].memory_analysis()
    gallery = ROWS // len(devices) * DIM * 4
    assert gallery <= stats.argument_size_in_bytes and stats.peak_memory_in_bytes < 1.05 * gallery
    lists = len(devices) * QUERIES * K * (4 + 4)  # the devices' rows and scores
    assert 0 < sum(one.bytes for one in merge.collectives) < lists
