"""Which rows each process feeds: replicas that span processes, topologies, and two processes that train as one."""

import json
import re
import socket
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from launch.training import sharding
from tests.commands import finish, start
from tests.launch.training.devices import hosts_worker


@dataclass(frozen=True)
class Device:
    """What a layout asks of a device."""

    id: int
    process_index: int
    slice_index: int = 0
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100 80GB HBM3"


def grid(processes: int, each: int, model: int, slices: int = 1, order=None) -> np.ndarray:
    """The devices of a layout over processes of so many devices, in `order` or in that of their numbers."""
    count = processes * each
    devices = [Device(i, i // each, i * slices // count) for i in range(count)]
    return sharding._grid(devices if order is None else [devices[i] for i in order], model)


def parts(devices: np.ndarray) -> dict[int, tuple[int, int]]:
    return {process: (rows.start, rows.stop) for process, rows in sharding._rows(devices).items()}


@pytest.mark.parametrize(
    "processes, each, model, slices, expected",
    [
        (1, 8, 1, 1, [(0, 8)]),
        (1, 8, 4, 1, [(0, 2)]),
        (2, 4, 2, 1, [(0, 2), (2, 4)]),
        (4, 1, 2, 1, [(0, 1), (0, 1), (1, 2), (1, 2)]),  # one process a GPU
        (4, 4, 8, 1, [(0, 1), (0, 1), (1, 2), (1, 2)]),  # hosts of four chips
        (4, 4, 2, 2, [(0, 2), (2, 4), (4, 6), (6, 8)]),
        (4, 1, 2, 4, [(0, 1), (0, 1), (1, 2), (1, 2)]),  # replicas larger than a slice
        (2, 2, 4, 1, [(0, 1), (0, 1)]),
        (3, 2, 3, 1, [(0, 1), (0, 2), (1, 2)]),  # the second process has a device in both replicas
    ],
)
def test_processes_of_one_replica_feed_the_same_rows(processes, each, model, slices, expected):
    found = grid(processes, each, model, slices)
    assert found.shape == (processes * each // model, model)
    assert sorted(device.id for device in found.flat) == list(range(processes * each))
    assert list(parts(found).values()) == expected


def test_processes_stay_together_in_whatever_order_devices_come():
    order = [0, 4, 1, 5, 2, 6, 3, 7]
    devices = [Device(i, i // 4, platform="cpu", device_kind="cpu") for i in order]
    found = sharding._grid(devices, 1)
    assert [device.process_index for device in found.flat] == [0] * 4 + [1] * 4


def test_one_process_keeps_the_order_of_its_devices():
    devices = [Device(i, 0, platform="cpu", device_kind="cpu") for i in (3, 1, 2, 0)]
    assert [device.id for device in sharding._grid(devices, 2).flat] == [3, 1, 2, 0]


@pytest.mark.parametrize("processes, each, model", [(2, 6, 4), (5, 6, 10)])
def test_replicas_that_cut_across_processes_are_refused(processes, each, model):
    text = f"model={model} cuts across the {processes} processes with {each} devices each"
    remedy = f"take a divisor of {each} or a multiple of it"
    with pytest.raises(ValueError, match=f"{re.escape(text)}.*{re.escape(remedy)}"):
        grid(processes, each, model)


def test_a_share_names_the_part_and_the_number_of_parts(monkeypatch):
    mesh: Any = SimpleNamespace(devices=grid(4, 4, 8), shape={"data": 2, "model": 8})
    monkeypatch.setattr(jax, "process_index", lambda: 3)
    assert sharding.Layout(mesh).share == {"process_index": 1, "process_count": 2}


@pytest.fixture(scope="module")
def alone():
    """The same training by one process with one device."""
    return hosts_worker.run(sharding.layout(devices=jax.devices()[:1]))


@pytest.mark.parametrize("devices, model, spans", [(1, 2, 2), (2, 4, 2), (2, 2, 1)])
def test_two_processes_train_one_network_as_one_device_does(alone, devices, model, spans):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = "-m", "tests.launch.training.devices.hosts_worker", address, 2
    both = [start(*command, process, model, devices=devices) for process in range(2)]
    found = [json.loads(finish(process, timeout=120).splitlines()[-1]) for process in both]
    for process, ours in enumerate(found):
        assert ours["spans"] == spans  # processes that hold a replica together
        np.testing.assert_allclose(ours["losses"], alone["losses"], rtol=1e-6)
        for name, value in alone["params"].items():
            np.testing.assert_allclose(ours["params"][name], value, rtol=1e-5, atol=1e-6)
        assert ours["means"] == pytest.approx(alone["means"], rel=1e-6)
        assert ours["fed"] == (alone["fed"] if spans == 2 else alone["fed"][4 * process : 4 * process + 4])
