"""Passes over frozen networks in a run of two processes: each computes its share, the numbers are those of one."""

import json
import socket

import numpy as np
import pytest

from tests.commands import finish, start
from tests.tldr_jax import hosts_worker


@pytest.mark.parametrize("devices", [1, 2])
def test_two_processes_embed_together(tmp_path, devices):
    alone, both = tmp_path / "alone", tmp_path / "both"
    for folder in (alone, both):
        folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = "-m", "tests.tldr_jax.hosts_worker"
    processes = [start(*command, both, address, 2, process, devices=devices) for process in range(2)]
    first, second = (json.loads(finish(process, timeout=200).splitlines()[-1]) for process in processes)
    whole = hosts_worker.run(alone)
    assert first["devices"] == 2 * devices

    rows = hosts_worker.IMAGES
    for name in ("images", "gap", "tables"):
        ours, theirs = (np.array(process["asked"][name]) for process in (first, second))
        assert min(whole["asked"][name]) == 1 == max(whole["asked"][name])
        assert (ours + theirs >= 1).all() and (ours + theirs).sum() <= rows + 1  # one to fill a batch
        assert 0.3 * rows < ours.sum() < 0.7 * rows  # neither decodes all

    names = {"images", "texts", "gap", "cached", "again", "one", "view", "features"}
    assert names == {path.stem for path in both.glob("*.npy")} == set(first["sums"])
    for name in sorted(names):
        ours, reference = (np.load(folder / f"{name}.npy") for folder in (both, alone))
        assert ours.shape == reference.shape and np.abs(reference).max() > 0.1
        np.testing.assert_allclose(ours, reference, atol=1e-6 * np.abs(reference).max(), err_msg=name)
    for name, value in second["sums"].items():  # every process has them
        assert value == pytest.approx(first["sums"][name], rel=1e-6), name
    assert names - set(second["sums"]) == {"view", "features"}
    assert len(list((both / "cache").glob("*.npy"))) == 1
