"""Kept results of which a bit has turned are made again, and it is said."""

import json
import logging
import os
import re
import shutil
import socket
import subprocess
import sys
import textwrap

import ml_dtypes
import numpy as np
import pytest

from launch import files
from launch.reading import InputError
from launch.store import MARKER, Store
from tests.commands import ROOT, environment
from tests.launch.keeping.store_toy import Big, Source


def turn(file, place: float = 0.5) -> None:
    """Flip a bit at this part of the way through a file."""
    content = bytearray(file.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    file.write_bytes(content)


def lines(folder):
    return [line.split()[0] for line in (folder / "log").read_text().splitlines()]


@pytest.fixture
def kept(tmp_path):
    """A stage with a large array, a number and a source, in a store."""
    log = str(tmp_path / "log")
    big = Big(Source(log), log)
    Store(tmp_path / "store").get(big)
    return big, tmp_path / "store" / big.key


def test_a_turned_bit_anywhere_makes_a_result_again(tmp_path, kept, caplog):
    big, folder = kept
    names = sorted(path.name for path in (folder / "value").iterdir())
    assert names == ["0.npy", "crc32.json", "tree.json"]
    made = 1
    for name in names:
        for place in (0.0, 0.3, 0.9, 1.0):
            turn(folder / "value" / name, place)
            store = Store(tmp_path / "store")
            assert store.has(big)
            with caplog.at_level(logging.INFO, "absl"):
                caplog.clear()
                value = store.get(big)
            made += 1
            assert value["sum"] == 6.0 and np.array_equal(value["table"][:, 7], np.arange(4))
            assert lines(tmp_path) == ["big", "source"] + ["big"] * (made - 1)  # and nothing else
            said = [record.message for record in caplog.records if "damaged" in record.message]
            (line,) = said
            file = r"\S*" if name == "crc32.json" else name  # its numbers may be those of another file
            assert re.match(rf"{big.key}: {folder}/value/{file} is damaged \(", line) and "\n" not in line
            assert line.endswith(f"; it is made again, and this is kept as value.damaged-{made - 1}")
            assert str(store.used[big.key]).startswith(f"{big.key}: made in ")
    assert sorted(path.name for path in folder.iterdir() if "damaged" not in path.name) == [MARKER, "value"]
    caplog.clear()
    assert Store(tmp_path / "store").get(big)["sum"] == 6.0 and "damaged" not in caplog.text


@pytest.mark.parametrize("name", ["0.npy", "tree.json", ""])
def test_a_missing_file_makes_a_result_again(tmp_path, kept, name):
    big, folder = kept
    (folder / "value" / name).unlink() if name else shutil.rmtree(folder / "value")
    assert Store(tmp_path / "store").get(big)["sum"] == 6.0
    assert lines(tmp_path) == ["big", "source", "big"]


def test_results_of_earlier_versions_are_read_and_it_is_said(tmp_path, kept, caplog):
    big, folder = kept
    (folder / "value" / "crc32.json").unlink()
    with caplog.at_level(logging.INFO, "absl"):
        assert Store(tmp_path / "store").get(big)["sum"] == 6.0
    assert caplog.text.count(f"{folder / 'value'} has no checksums") == 1 and lines(tmp_path) == ["big", "source"]
    os.truncate(folder / "value" / "0.npy", 1000)
    assert Store(tmp_path / "store").get(big)["sum"] == 6.0 and lines(tmp_path) == ["big", "source", "big"]


def test_a_reader_names_what_is_damaged(tmp_path, kept):
    big, folder = kept
    turn(folder / "value" / "0.npy")
    with pytest.raises(InputError, match=rf"0\.npy: is damaged \(its content is not .*\); remove {folder}: it is made"):
        Store(tmp_path / "store").reader().get(big)
    assert (folder / MARKER).exists() and lines(tmp_path) == ["big", "source"]


def test_a_training_of_which_the_result_is_damaged_keeps_its_checkpoints(tmp_path, kept):
    big, folder = kept
    (folder / "checkpoints").mkdir()
    turn(folder / "value" / "0.npy")
    Store(tmp_path / "store").get(big)
    assert (folder / "checkpoints").is_dir()


def test_checksums_of_a_tree(tmp_path):
    """Whatever its files are: moved memory maps, types without a name in the format, values of JSON."""
    mapped = np.lib.format.open_memmap(tmp_path / "map.npy", "w+", np.int32, (3,))
    mapped[:] = 7
    tree = {"map": mapped, "bfloat16": np.ones(3, ml_dtypes.bfloat16), "x": [1, {"y": "z"}]}
    files.save_tree(tmp_path / "tree", tree)
    checks = json.loads((tmp_path / "tree" / "crc32.json").read_text())
    assert sorted(checks) == ["0.npy", "1.dtype", "1.npy", "tree.json"]
    assert files.load_tree(tmp_path / "tree")["x"] == [1, {"y": "z"}]
    for name in checks:
        turn(tmp_path / "tree" / name, 0.99)
        with pytest.raises(InputError, match=name):
            files.load_tree(tmp_path / "tree")
        turn(tmp_path / "tree" / name, 0.99)
    files.load_tree(tmp_path / "tree")


TOGETHER = textwrap.dedent("""
    import pathlib, sys
    import jax
    from jax.experimental import multihost_utils
    from launch.store import Store
    from tests.launch.keeping.store_toy import Source

    index, address, folder = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.distributed.initialize(address, 2, index)
    source = Source(str(folder / f"log-{index}"))
    for round in range(2):
        value = Store(folder / "store").get(source)
        assert value["name"] == "source" and value["x"].tolist() == [0, 1, 2, 3]
        multihost_utils.sync_global_devices("made")
        if index == 0 and round == 0:
            file = folder / "store" / source.key / "value" / "0.npy"
            file.write_bytes(file.read_bytes()[:-1] + bytes([1]))
        multihost_utils.sync_global_devices("turned")
""")


def test_processes_make_a_damaged_result_again_together(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, str(index), address, str(tmp_path)],
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert "0.npy is damaged (its content is not what was written); it is made again" in errors[0]
    assert "damaged" not in errors[1]
    for index in range(2):  # all of them made it, twice
        assert (tmp_path / f"log-{index}").read_text().count("source") == 2
