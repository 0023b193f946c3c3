"""One side of a benchmark, in a process of its own: set up for the device, warmed up, then timed, one run per line in.

What the command line says reaches it through the environment: sizes, the device, the precision of products.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

OURS = "ours"  # with what follows the word: sides that compute with JAX
_SHORT = 10.0  # seconds; for a longer step a pause matters little, and a second one much
PRECISIONS = ("highest", "high", "default")  # as in `config.precision`; see docs/precision.md
_SIZE, _DEVICE, _PRECISION = "BENCHMARK_SIZE_{}", "BENCHMARK_DEVICE", "BENCHMARK_PRECISION"


class Unavailable(Exception):
    """A side cannot run here, for the reason that its row shows."""


def size(name: str, default: int) -> int:
    """How much of something a benchmark takes: the command line's number, or the default."""
    return int(os.environ.get(_SIZE.format(name.upper()), default))


def device() -> str:
    """Where both sides compute: "cpu", "cuda", or, ours alone, "tpu"."""
    return os.environ.get(_DEVICE, "cpu")


def precision() -> str:
    """Of products of float32, for both sides: one of `PRECISIONS`."""
    return os.environ.get(_PRECISION, PRECISIONS[0])


def settings(*, on: str, products: str, sizes: dict[str, int]) -> dict[str, str]:
    """The environment that `size`, `device` and `precision` read."""
    return {_DEVICE: on, _PRECISION: products} | {_SIZE.format(k.upper()): str(v) for k, v in sizes.items()}


def pytorch() -> Any:
    """PyTorch's device; from here on its products are of this run's precision.

    Raises:
      Unavailable: it has no such device.
    """
    import torch

    if device() == "cuda" and not torch.cuda.is_available():
        raise Unavailable(f"PyTorch {torch.__version__} sees no GPU")
    torch.set_float32_matmul_precision("highest" if precision() == "highest" else "high")
    torch.backends.cudnn.allow_tf32 = precision() != "highest"
    return torch.device(device())


def serve(side: str, build: Callable[[], Callable[[], object]], warmup: int) -> None:
    """The child's half: `ready` with what it runs on, or `unavailable`; then for each line in, seconds and memory.

    What is timed is the second of two steps in a row, as training has them, unless they are long.

    Args:
      side: its name.
      build: gives what is timed. PyTorch's may leave work on the device, which is waited for here; ours waits itself.
      warmup: untimed runs before.
    """
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else is printed is no answer

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=out, flush=True)

    try:
        if side.startswith(OURS):
            _find_devices()
        run = build()
        for _ in range(warmup):
            run()
        _synchronize()
    except (Unavailable, *_compile_errors()) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        answer(unavailable=(lines or [type(error).__name__])[0])
        return
    answer(ready=_facts(side))
    taken = 0.0
    for _ in sys.stdin:
        if taken < _SHORT:  # a first step after a pause pays for pages that have grown cold while others had their turn
            run()
            _synchronize()
        start = time.perf_counter()
        run()
        _synchronize()
        taken = time.perf_counter() - start
        answer(seconds=taken, peak=_peak(side))


def _find_devices() -> None:
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # an assertion where JAX's plug-in for the platform is missing
        raise Unavailable(f"JAX {jax.__version__} finds no {device()} {error}".strip()) from error


def _compile_errors() -> tuple[type[Exception], ...]:
    """What torch.compile raises where its compiler cannot run, in a process that uses it."""
    errors = sys.modules.get("torch._dynamo.exc")
    return () if errors is None else (errors.TorchDynamoException,)


def _synchronize() -> None:
    torch = sys.modules.get("torch")
    if torch is not None and device() == "cuda":
        torch.cuda.synchronize()


def _peak(side: str) -> int | None:
    """Most bytes in use so far: on the device, by its framework; on a CPU the largest resident set."""
    if device() == "cpu":
        # Linux counts kilobytes, macOS bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    if side.startswith(OURS):
        import jax

        return max((d.memory_stats() or {}).get("peak_bytes_in_use", 0) for d in jax.local_devices()) or None
    torch = sys.modules.get("torch")
    return None if torch is None else torch.cuda.max_memory_allocated()


def _facts(side: str) -> str:
    """Framework, device and precision, as the framework itself reports them."""
    if side.startswith(OURS):
        import jax

        first = jax.devices()[0]
        asked = jax.config.jax_default_matmul_precision  # pyright: ignore[reportAttributeAccessIssue]
        return f"JAX {jax.__version__}, {jax.device_count()} × {first.device_kind}, matmul precision {asked}"
    torch = sys.modules.get("torch")
    if torch is None:
        return "without a framework"
    name = torch.cuda.get_device_name() if device() == "cuda" else f"{torch.get_num_threads()} threads"
    products, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    return f"PyTorch {torch.__version__}, {name}, matmul precision {products}, cudnn.allow_tf32 {tf32}"
