"""Machines by name, as the compilers know them: TPU slices ("v5e:4x8") and NVIDIA GPUs of one host ("h100x8").

The compilers are packages that need no device (`pip install -e '.[aot]'`): libtpu, and XLA's CUDA plug-in without
NVIDIA's libraries. What they compile here for a topology is what they would compile there, but for the GPU's
autotuning, which tries alternatives on the device.
"""

import os
import re
from dataclasses import dataclass
from importlib.util import find_spec

import jax
from jax.experimental import topologies

from launch.processes.chips import GPUS, TPUS, Chip, of_device
from launch.training.sharding import Device

# Both are of the version that belongs to the installed jax; `jax[tpu,cuda13-local]` names them.
_EXTRA = "pip install -e '.[aot]'"
# Or libtpu asks the network for the machine that it is on, and warns that it is on none.
_QUIET = {"TPU_SKIP_MDS_QUERY": "1", "TPU_STDERR_LOG_LEVEL": "3", "TPU_MIN_LOG_LEVEL": "3"}
_SHARED = {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # or only one process of a machine may compile at a time
# What distinguishes them for XLA's compiler: (compute capability, multiprocessors, FP32 units in each, shared memory in
# each, of that for one block, clock in GHz, level-2 cache, device memory).
_COMPILED_FOR = {
    "a100": ("major: 8", 108, 64, 167936, 166912, 1.41, 41943040, 85899345920),
    "h100": ("major: 9", 132, 128, 233472, 232448, 1.98, 52428800, 84942979072),
    "h200": ("major: 9", 132, 128, 233472, 232448, 1.98, 62914560, 150754820096),
}


@dataclass(frozen=True)
class Topology:
    """Devices that programs can be compiled for, and that cannot run any.

    Attributes:
      name: such as "v5e:4x8".
      chip: of which kind they are.
      devices: all of them.
    """

    name: str
    chip: Chip
    devices: tuple[Device, ...]


class TopologyError(ValueError):
    """A topology that does not exist, or whose compiler is not installed."""


def topology(name: str) -> Topology:
    """The devices of a topology by name: "KIND:AxB" or "KIND:AxBxC" of TPUs, "KINDxN" of GPUs.

    Raises:
      TopologyError: it is not known, or its compiler is not installed.
    """
    if match := re.fullmatch(rf"({'|'.join(TPUS)}):(\d+(?:x\d+){{1,2}})", name):
        devices = tuple(_tpu(name))
        return Topology(name, of_device(devices[0]) or TPUS[match[1]], devices)
    if match := re.fullmatch(rf"({'|'.join(GPUS)})x([1-9]\d*)", name):
        return Topology(name, GPUS[match[1]], tuple(_gpu(match[1], int(match[2]))))
    raise TopologyError(
        f"unknown topology {name!r}; TPU slices are {', '.join(TPUS)} with a shape (v5e:2x4, v5p:2x2x2), "
        f"GPUs of one host are {', '.join(GPUS)} with their number (h100x8)"
    )


def _tpu(name: str) -> list[Device]:
    if find_spec("libtpu") is None:
        raise TopologyError(f"topology {name!r} needs TPU's compiler, which is not installed: {_EXTRA}")
    for variable, value in (_QUIET | _SHARED).items():
        os.environ.setdefault(variable, value)
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except jax.errors.JaxRuntimeError as error:
        problem = str(error).splitlines()[0]
        raise TopologyError(f"topology {name!r}: there is no slice of this shape ({problem})") from error


def _gpu(kind: str, count: int) -> list[Device]:
    if find_spec("jax_plugins") is None or find_spec("jax_plugins.xla_cuda13") is None:
        missing = "XLA's compiler for CUDA, which is not installed"
        raise TopologyError(f"topology '{kind}x{count}' needs {missing}: {_EXTRA}")
    described = topologies.get_topology_desc(
        platform="cuda", topology_name=kind, topology=f"1x1x{count}", target_config=_target(kind)
    )
    return list(described.devices)


def _target(kind: str) -> str:
    """XLA's description of a GPU, a text of its GpuTargetConfigProto."""
    capability, cores, units, shared, shared_of_block, clock, cache, memory = _COMPILED_FOR[kind]
    info = {
        "threads_per_block_limit": 1024,
        "threads_per_warp": 32,
        "shared_memory_per_block": 49152,
        "shared_memory_per_core": shared,
        "shared_memory_per_block_optin": shared_of_block,
        "threads_per_core_limit": 2048,
        "core_count": cores,
        "fpus_per_core": units,
        "block_dim_limit_x": 2147483647,
        "block_dim_limit_y": 65535,
        "block_dim_limit_z": 65535,
        "thread_dim_limit_x": 1024,
        "thread_dim_limit_y": 1024,
        "thread_dim_limit_z": 64,
        "registers_per_core_limit": 65536,
        "registers_per_block_limit": 65536,
        "memory_bandwidth": int(GPUS[kind].bandwidth),
        "l2_cache_size": cache,
        "clock_rate_ghz": clock,
        "device_memory_size": memory,
        "device_address_bits": 64,
    }
    lines = [f"{name}: {value}" for name, value in info.items()]
    lines += [f"cuda_compute_capability {{ {capability} }}", 'device_vendor: "NVIDIA Corporation"']
    lines += [f'{name}_version: "13.0.0"' for name in ("driver", "runtime", "compile_time_toolkit")]
    lines.append('dnn_version: "9.10.0"')
    return (
        f'gpu_device_info {{ {" ".join(lines)} }} platform_name: "CUDA" '
        "dnn_version_info { major: 9 minor: 10 patch: 0 } "
        f'device_description_str: "NVIDIA {GPUS[kind].title}"'
    )
