"""What is restored is what was saved: digests of arrays, and checkpoints of which bits have turned."""

import json
import logging
import shutil
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.training.checkpoint import Checkpoints, abstract, digests
from tests.commands import finish, start

DTYPES = ("bool", "int8", "uint16", "int32", "uint64", "float16", "bfloat16", "float32", "float64", "complex64",
          "complex128", "int4", "float8_e4m3fn")  # fmt: skip


def digest(x) -> str:
    (own,) = digests.copies({"x": x})["x"]
    return own


@pytest.mark.parametrize("small", [1 << 18, -1], ids=["numpy", "jax"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_bit_and_place_counts(dtype, small, monkeypatch):
    monkeypatch.setattr(digests, "_SMALL", small)
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x = (3 * rng.normal(size=(2, 3))).astype(complex if "complex" in dtype else float).astype(jnp.dtype(dtype))
        expected = digest(x)
        assert expected == digest(jnp.asarray(x)) == digest(x.copy(order="F"))
        assert expected != digest(x[::-1]) or np.array_equal(x, x[::-1])
        raw = x.view(np.uint8)
        others = set()
        bits = {"bool": 1, "int4": 4}.get(dtype, 8)
        for place in np.ndindex(raw.shape):
            for bit in range(bits):
                raw[place] ^= 1 << bit
                if dtype != "int4" or (raw[place] + 8) & 0xFF < 16:  # NumPy's int4 is a byte, and not all bytes are one
                    others.add(digest(jnp.asarray(x)))
                raw[place] ^= 1 << bit
        assert expected not in others and len(others) >= raw.size * (bits if dtype != "int4" else 1)


def test_a_digest_is_the_sum_that_its_docstring_says():
    """By Python's own integers, one word after the other."""
    x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    sums = [0, 0]
    for i, row in enumerate(x):
        for j, value in enumerate(row):
            word = int(value.view(np.uint32)) ^ (i * 0x9E3779B1 + j * 0x9E3779B1**2) % 2**32
            word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
            word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
            word ^= word >> 16
            sums = [(sums[0] + word) % 2**32, (sums[1] + (word ^ word >> 15) * 0x9E3779B1) % 2**32]
    assert digest(x) == f"{sums[0]:08x}{sums[1]:08x}"


def test_zeroed_and_exchanged_parts_count():
    x = np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)  # above what NumPy takes
    assert x.nbytes > digests._SMALL
    changed = [x.copy() for _ in range(5)]
    changed[0].reshape(-1)[1024:2048] = 0
    changed[1][[0, 1]] = x[[1, 0]]
    changed[2][0, [0, 1]] = x[0, [1, 0]]
    changed[3][7, 7] *= -1
    changed[4][7, 7], changed[4][8, 8] = -x[7, 7], -x[8, 8]
    assert len({digest(jnp.asarray(each)) for each in [x, *changed]}) == 6
    negated = np.where(np.arange(300) % 2, 1.0, -1.0).astype(np.float32) * np.ones((300, 1), np.float32)
    assert digest(negated) != digest(-negated)  # all rows exchanged in pairs that differ in the sign alone


def _states():
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return {
        step: {"w": jnp.asarray(draw(64, 64)), "b": jnp.asarray(draw(32), jnp.bfloat16), "key": jax.random.key(step)}
        for step in (1, 2)
    }


def _same(restored, state) -> bool:
    bits = lambda x: np.asarray(jax.random.key_data(x) if x.dtype == jax.random.key(0).dtype else x).tobytes()
    return all(bits(restored[name]) == bits(x) for name, x in state.items())


@pytest.fixture
def saved(tmp_path):
    states = _states()
    with Checkpoints(tmp_path / "checkpoints", best=("accuracy", "max")) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state, {"accuracy": step / 10})
    return tmp_path / "checkpoints", states


def _restored(directory, caplog):
    """The step and the state that are restored, after everything is where it was; what was said is in `caplog`."""
    caplog.clear()
    with Checkpoints(directory, best=("accuracy", "max")) as checkpoints, caplog.at_level(logging.INFO, "absl"):
        restored, step = checkpoints.restore_latest(abstract(_states()[1]))
    if (directory / "2.damaged-1").exists():
        (directory / "2.damaged-1").rename(directory / "2")
    return step, restored


def test_a_flipped_bit_never_gives_another_state(saved, caplog):
    directory, states = saved
    files = sorted(path for path in (directory / "2").rglob("*") if path.is_file() and path.stat().st_size)
    weights = np.array([path.stat().st_size for path in files])
    rng, fell_back = np.random.default_rng(0), 0
    for file in rng.choice(np.array(files, object), 80, p=weights / weights.sum()):
        whole = file.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        file.write_bytes(damaged)
        step, restored = _restored(directory, caplog)
        assert _same(restored, states[step]), file
        assert (step == 1) == ("moved to 2.damaged-1" in caplog.text and "step 1 instead" in caplog.text)
        fell_back += step == 1
        file.write_bytes(whole)
    assert fell_back > 40  # most bytes are those of arrays
    assert _restored(directory, caplog)[0] == 2


def test_a_zeroed_page_and_the_arrays_of_another_step_are_not_restored(saved, caplog):
    directory, states = saved
    file = max((directory / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
    whole = file.read_bytes()
    file.write_bytes(whole[:4096] + bytes(4096) + whole[8192:])
    step, restored = _restored(directory, caplog)
    assert step == 1 and _same(restored, states[1])
    file.write_bytes(whole)

    shutil.copytree(directory / "2" / "state", directory.parent / "state")
    shutil.rmtree(directory / "2" / "state")
    shutil.copytree(directory / "1" / "state", directory / "2" / "state")  # all of it sound by itself
    assert _restored(directory, caplog)[0] == 1
    assert "ValueError" not in caplog.text and "not what was saved: b, key, w" in caplog.text


def test_every_byte_of_the_record_counts(saved, caplog):
    """Metrics choose the best: a digit that turned must not choose another without a word."""
    directory, _ = saved
    file = directory / "2" / "info" / "metadata"
    whole = file.read_text()
    turns = [("0.2", "0.0"), ('"digests"', '"digestt"'), ('"sha256"', '"sha257"'), ("float32[64,64]", "float32[64,65]")]
    for old, new in turns:
        assert whole.count(old) == 1
        file.write_text(whole.replace(old, new))
        with Checkpoints(directory, best=("accuracy", "max")) as checkpoints, caplog.at_level(logging.INFO, "absl"):
            caplog.clear()
            _, step, metrics = checkpoints.restore_best(abstract(_states()[1]))
            assert (step, metrics) == (1, {"accuracy": 0.1}) and "moved to 2.damaged-1" in caplog.text
        (directory / "2.damaged-1").rename(directory / "2")
    file.write_text(whole)
    assert _restored(directory, caplog)[0] == 2


def test_checkpoints_of_earlier_versions_are_restored_and_it_is_said(saved, caplog):
    directory, states = saved
    file = directory / "2" / "info" / "metadata"
    earlier = {
        name: value for name, value in json.loads(file.read_text()).items() if name in ("metrics", "leaves", "keys")
    }
    file.write_text(json.dumps(earlier))
    step, restored = _restored(directory, caplog)
    assert step == 2 and _same(restored, states[2])
    assert [record.message for record in caplog.records if "no digests" in record.message] == [
        f"checkpoint {directory / '2'} has no digests: saved by an earlier version, it cannot be verified"
    ]


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    "error", [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED"), MemoryError(), KeyboardInterrupt()]
)
def test_too_little_memory_is_no_damage(saved, monkeypatch, error, wrapped):
    directory, _ = saved

    def fail(*_, **__):
        if wrapped:
            raise Exception("reading an array") from error  # as Orbax does
        raise error

    monkeypatch.setattr("orbax.checkpoint.PyTreeCheckpointHandler.restore", fail)
    with Checkpoints(directory) as checkpoints, pytest.raises(Exception if wrapped else type(error)) as raised:
        checkpoints.restore_latest(abstract(_states()[1]))
    assert (raised.value.__cause__ if wrapped else raised.value) is error
    assert sorted(path.name for path in directory.iterdir()) == ["1", "2"]


LAYOUTS = textwrap.dedent("""
    import itertools, pathlib, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P, SingleDeviceSharding
    from launch.training.checkpoint import Checkpoints, abstract, digests

    devices = jax.devices()
    assert len(devices) == 4
    rng = np.random.default_rng(0)
    values = {"x": rng.normal(size=(8, 4)).astype(np.float32), "y": rng.normal(size=(4, 4, 3)).astype(jnp.bfloat16),
              "big": rng.normal(size=(512, 256)).astype(np.float32), "n": np.array(3, np.int32)}
    two, four = Mesh(np.array(devices[:2]), ("a",)), Mesh(np.array(devices).reshape(2, 2), ("a", "b"))
    everywhere = lambda sharding: dict.fromkeys(values, sharding)
    layouts = [
        everywhere(SingleDeviceSharding(devices[0])),
        everywhere(NamedSharding(two, P())),
        {name: NamedSharding(two, P("a") if value.ndim else P()) for name, value in values.items()},
        {name: NamedSharding(four, P("a", "b") if value.ndim else P()) for name, value in values.items()},
        {name: NamedSharding(four, P(None, "b") if value.ndim else P()) for name, value in values.items()},
        {"x": NamedSharding(four, P(("a", "b"))), "y": NamedSharding(two, P(None, "a")),
         "big": SingleDeviceSharding(devices[3]), "n": NamedSharding(four, P())},
    ]
    place = lambda layout: {name: jax.device_put(value, layout[name]) for name, value in values.items()}
    expected = digests.copies(values)
    for layout in layouts:
        assert digests.copies(place(layout)) == expected

    # One copy of several is another: all are looked at.
    parts = [jax.device_put(values["big"] + (device == devices[1]), device) for device in devices[:2]]
    for part in (jnp.s_[:], jnp.s_[:2]):
        shards = [x[part] for x in parts]
        torn = jax.make_array_from_single_device_arrays(shards[0].shape, NamedSharding(two, P()), shards)
        assert len(digests.copies({"torn": torn})["torn"]) == 2

    directory = pathlib.Path(sys.argv[1])
    for number, (saved, wanted) in enumerate(zip(layouts, layouts[1:] + layouts[:1])):
        with Checkpoints(directory / str(number)) as checkpoints:
            checkpoints.save(1, place(saved))
            checkpoints.save(2, place(saved))
        with Checkpoints(directory / str(number)) as checkpoints:
            restored, step = checkpoints.restore_latest(abstract(place(wanted)))
            assert step == 2 and all(restored[name].sharding == wanted[name] for name in values)
            assert all(np.asarray(restored[name]).tobytes() == value.tobytes() for name, value in values.items())
            file = max((directory / str(number) / "2").rglob("d/*"), key=lambda path: path.stat().st_size)
            turned = bytearray(file.read_bytes())
            turned[len(turned) // 2] ^= 1
            file.write_bytes(turned)
            restored, step = checkpoints.restore_latest(abstract(place(wanted)))
            assert step == 1 and (directory / str(number) / "2.damaged-1").is_dir()
            assert all(np.asarray(restored[name]).tobytes() == value.tobytes() for name, value in values.items())
    print("done")
""")


def test_digests_are_the_same_on_all_layouts(tmp_path):
    assert finish(start("-c", LAYOUTS, tmp_path, devices=4)).endswith("done\n")
