"""Galleries that lie on devices, in every sharding: found is what one argsort finds, and nothing moves but the best."""

import json
import re
import socket
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from launch.training import sharding
from rtd_jax import retrieval
from rtd_jax.retrieval import gallery as galleries
from tests.commands import finish, start
from tests.rtd_jax.retrieval.test_retrieval import WIDTH, by_argsort, whole_numbers

EXCHANGES = r"(?<=[ )])(all-reduce|all-gather|all-to-all|reduce-scatter|collective-\w+|ragged-\w[\w-]*)(?:-start)?\("
K = 11
# (rows, chunk): one chunk, several, fewer rows than devices, and numbers that no number of devices divides
SIZES = [(304, 1000), (301, 7), (1999, 128), (13, 4)]


def equal(found, expected) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def whole_shardings(devices):
    """Name -> sharding of 304 rows over all of these devices."""
    mesh = Mesh(np.array(devices).reshape(-1, 2) if len(devices) > 1 else np.array(devices)[:, None], ("a", "b"))
    turned = Mesh(mesh.devices[::-1, ::-1], ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs = [P(), P("a"), P("b"), P(("a", "b")), P(("b", "a")), P(None, "a"), P("a", "b")]
    return {
        f"{name} {spec}": NamedSharding(mesh, spec)
        for name, mesh in (("in order", mesh), ("turned", turned))
        for spec in specs
    }


def wrong_on(devices) -> list[str]:
    """The cases in which something else is found than by argsort."""
    wrong, queries = [], whole_numbers(9)
    for rows, chunk in SIZES:
        array = whole_numbers(rows, seed=1)
        expected = by_argsort(queries, array, K)
        wrong += [
            f"{kind} {rows} {chunk}"
            for kind, gallery in (("host", array), ("placed", retrieval.place(array, devices)))
            if not equal(retrieval.top_k(queries, gallery, K, chunk=chunk, devices=devices), expected)
        ]
    array = whole_numbers(304, seed=1)
    expected = by_argsort(queries, array, K)
    wrong += [
        name
        for name, where in whole_shardings(devices).items()
        if not equal(retrieval.top_k(queries, jax.device_put(array, where), K, chunk=50), expected)
    ]
    with pytest.raises(ValueError, match="score of gallery row 299 for query 0 is NaN"):
        retrieval.top_k(queries, retrieval.place(np.where(np.arange(304)[:, None] == 299, np.nan, array), devices), K)
    return wrong


def exchanged(devices, rows: int) -> dict[str, list[str]]:
    """The exchanges in the programs that a search of a gallery on the devices runs; nothing if it runs others."""
    gallery = jax.device_put(whole_numbers(rows, seed=1), NamedSharding(galleries.row_mesh(devices), P("data")))
    retrieval.top_k(whole_numbers(9), gallery, K, chunk=128)
    programs = retrieval.program(rows, WIDTH, 9, K, devices, chunk=128)
    return {
        name: re.findall(EXCHANGES, one.jitted.lower(*one.arguments).compile().as_text())
        for name, one in programs.items()
        if one.jitted._cache_size() == 1
    }


def on_devices() -> dict[str, object]:
    devices = jax.devices()
    wrong = {count: wrong_on(devices[:count]) for count in (1, 2, 8)}
    return {"wrong": wrong, "exchanged": exchanged(devices, 8 * 300)}


def test_on_one_two_and_eight_devices():
    found = json.loads(finish(start("-m", "tests.rtd_jax.retrieval.test_placed", devices=8)).splitlines()[-1])
    assert found["wrong"] == {"1": [], "2": [], "8": []}
    assert found["exchanged"] == {"search": [], "merge": ["all-to-all"] * 2 + ["all-gather"] * 2}


def test_the_buffers_stay_where_they_are():
    array = jnp.asarray(whole_numbers(300))
    assert retrieval.place(array).rows.unsafe_buffer_pointer() == array.unsafe_buffer_pointer()


def of_two_processes(address: str, process: int) -> bool:
    """Whether this process gets the ranking of a gallery that spans both."""
    sharding.initialize(address, 2, process)
    queries, array = whole_numbers(9), whole_numbers(300, seed=1)
    split = NamedSharding(galleries.row_mesh(jax.devices()), P("data"))
    gallery = jax.make_array_from_callback(array.shape, split, lambda index: array[index])
    return equal(retrieval.top_k(queries, gallery, K, chunk=70), by_argsort(queries, array, K))


def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [start("-m", "tests.rtd_jax.retrieval.test_placed", address, i, devices=2) for i in range(2)]
    assert [finish(process).splitlines()[-1] for process in processes] == ["true", "true"]


if __name__ == "__main__":
    print(json.dumps(of_two_processes(sys.argv[1], int(sys.argv[2])) if sys.argv[1:] else on_devices()))
