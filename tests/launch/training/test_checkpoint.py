import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from launch.training.checkpoint import Checkpoints, abstract, manager


@flax.struct.dataclass
class State:
    step: Any
    params: Any
    opt: Any


def _state(step=0, seed=0):
    rng = np.random.default_rng(seed)
    params = {"dense": {"kernel": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32), "bias": jnp.zeros(4)}}
    opt = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init(params)
    return State(step=jnp.int32(step), params=params, opt=opt)


def _bits(x) -> bytes:
    x = jax.random.key_data(x) if isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return np.asarray(x).tobytes()


def _assert_identical(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert (x.dtype, x.shape) == (y.dtype, y.shape)
        assert _bits(x) == _bits(y)


@pytest.fixture
def warnings(monkeypatch):
    said = []
    # The module's own name for the log, not absl's function: Orbax says things there too.
    log = types.SimpleNamespace(warning=lambda message, *args: said.append(message % args))
    monkeypatch.setattr(manager, "logging", log)
    return said


def test_round_trip_is_exact(tmp_path):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        odd = np.array([np.nan, -np.inf, -0.0, 1e-310, np.pi])
        state = {
            "train": _state(7),
            "f64": jnp.asarray(odd),
            "bf16": jnp.asarray(rng.normal(size=(3, 5)), jnp.bfloat16),
            "f16": jnp.asarray(odd, jnp.float16),
            "bool": jnp.asarray([True, False]),
            "i8": jnp.int8(-3),
            "u32": jnp.asarray([2**32 - 1], jnp.uint32),
            "i64": jnp.asarray(2**60 + 1),
            "complex": jnp.asarray(odd + 1j),
            "empty": jnp.zeros((0, 3)),
            "key": jax.random.key(5),
            "keys": jax.random.split(jax.random.key(6, impl="rbg"), 3),
            "host": np.arange(6).reshape(2, 3),
            "none": None,
            "a/b.c": [jnp.ones(2), (jnp.zeros(()),)],
        }
        with Checkpoints(tmp_path) as checkpoints:
            assert checkpoints.restore_latest(abstract(state)) is None
            checkpoints.save(7, state)
        with Checkpoints(tmp_path) as checkpoints:
            restored, step = checkpoints.restore_latest(abstract(state))
        assert step == 7
        _assert_identical(restored, state)
        assert isinstance(restored["train"], State) and isinstance(restored["host"], np.ndarray)
        assert isinstance(restored["train"].opt[1][0], optax.ScaleByAdamState)
        assert jax.random.key_impl(restored["keys"]) == "rbg"


@pytest.mark.parametrize("lost", ["info", "state"])
def test_a_deletion_that_was_interrupted_is_finished(tmp_path, lost, warnings):
    """The last deletion of a training: no later save would finish it."""
    folder = tmp_path / "checkpoints"
    with Checkpoints(folder, best=("accuracy", "max")) as checkpoints:
        for step, accuracy in enumerate((0.1, 0.9, 0.5)):
            checkpoints.save(step, _state(step), {"accuracy": accuracy})
        checkpoints.wait()
        shutil.copytree(folder / "2", tmp_path / "2")
        for step in (3, 4):
            checkpoints.save(step, _state(step), {"accuracy": 0.5})
    shutil.rmtree(tmp_path / "2" / lost)
    shutil.move(tmp_path / "2", folder / "2")
    with Checkpoints(folder, best=("accuracy", "max")) as checkpoints:
        assert checkpoints.restore_latest(abstract(_state()))[1] == 4
        assert checkpoints.restore_best(abstract(_state()))[1] == 1
    assert sorted(path.name for path in folder.iterdir()) == ["1", "3", "4"] and not warnings


@pytest.mark.parametrize(
    ("mode", "values", "best", "kept"),
    [
        ("max", [0.1, 0.9, 0.5, 0.2, 0.3], 1, [1, 3, 4]),
        ("min", [0.5, 0.1, 0.4, 0.2, 0.3], 1, [1, 3, 4]),
        ("max", [0.9, 0.9, 0.5, 0.2, 0.3], 1, [1, 3, 4]),  # of equals the later
        ("max", [float("nan"), 0.1, None, float("nan"), None], 1, [1, 3, 4]),
        ("max", [0.1, 0.2, 0.3, 0.4, 0.5], 4, [3, 4]),
    ],
)
def test_best_is_kept_besides_the_latest(tmp_path, mode, values, best, kept):
    with Checkpoints(tmp_path, best=("accuracy", mode)) as checkpoints:
        for step, value in enumerate(values):
            metrics = None if value is None else {"accuracy": value, "loss": 2.0}
            checkpoints.save(step, _state(step), metrics)
    with Checkpoints(tmp_path, best=("accuracy", mode)) as checkpoints:
        assert sorted(int(p.name) for p in tmp_path.iterdir()) == kept
        assert (checkpoints.latest_step(), checkpoints.best_step()) == (4, best)
        state, step, metrics = checkpoints.restore_best(abstract(_state()))
        assert (int(state.step), step, metrics) == (best, best, {"accuracy": values[best], "loss": 2.0})
        assert checkpoints.restore_latest(abstract(_state()))[1] == 4
        checkpoints.save(5, _state(5), {"accuracy": 0.0 if mode == "max" else 9.0})  # remembered across processes
        checkpoints.wait()
        assert checkpoints.best_step() == best and (tmp_path / str(best)).is_dir()


def test_saving_a_step_twice_does_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(3, _state(3, seed=1))
        checkpoints.save(3, _state(3, seed=2))  # while the first is being written
        checkpoints.wait()
        checkpoints.save(3, _state(3, seed=2))
        checkpoints.save(2, _state(2))  # not above the latest: saved all the same
        checkpoints.wait()
        _assert_identical(checkpoints.restore_latest(abstract(_state()))[0], _state(3, seed=1))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "3"]


def test_a_save_leaves_the_count_on_which_processes_agree_to_stop(tmp_path, monkeypatch):
    """Orbax would ask JAX with the step's number, which moves the count of `launch.processes.stop`."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda step: asked.append(step) or False)
    with Checkpoints(tmp_path, keep_latest=1) as checkpoints:
        for step in (3, 6):
            checkpoints.save(step, _state(step))
        checkpoints.wait()
        assert checkpoints.latest_step() == 6
    assert asked == []


def test_donated_buffers(tmp_path):
    """Buffers given away right after `save`, and restored ones given away, corrupt nothing."""
    update = jax.jit(lambda x: x * 1.5 + 1, donate_argnums=0)
    start = np.random.default_rng(0).normal(size=1 << 20).astype(np.float32)
    x, expected = jnp.asarray(start), {}
    with Checkpoints(tmp_path, keep_latest=6) as checkpoints:
        for step in range(6):
            expected[step] = np.array(x)
            checkpoints.save(step, {"x": x})
            for _ in range(3):
                x = update(x)
    with Checkpoints(tmp_path, keep_latest=6) as checkpoints:
        for step in range(5, -1, -1):
            restored = checkpoints.restore_latest(abstract({"x": x}))
            assert restored[1] == step
            again = checkpoints.restore_latest(abstract({"x": x}))[0]["x"]
            y = restored[0]["x"]
            np.testing.assert_array_equal(np.array(y), expected[step])
            for _ in range(3):
                y = update(y)
            np.testing.assert_array_equal(np.array(again), expected[step])
            if step < 5:
                np.testing.assert_array_equal(np.array(y), expected[step + 1])
            shutil.rmtree(tmp_path / str(step))
            checkpoints._manager.reload()


OTHER_DEVICES = textwrap.dedent("""
    import os, signal, sys
    import jax, numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from launch.training.checkpoint import Checkpoints, abstract

    one, eight, cut = sys.argv[1:]
    assert jax.device_count() == 8
    mesh = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
    layouts = {"x": P("a", "b"), "y": P(None, "a"), "r": P(), "key": P()}
    with Checkpoints(one) as checkpoints:
        abstracts = {
            name: jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, layouts[name]))
            for name, (shape, dtype) in [
                ("x", ((16, 6), "float32")), ("y", ((3, 8), "bfloat16")), ("r", ((), "int32")),
            ]
        }
        key = jax.device_put(jax.random.key(9), NamedSharding(mesh, P()))
        state, step = checkpoints.restore_latest({**abstracts, "key": abstract(key)})
    assert state["x"].sharding == abstracts["x"].sharding and len(state["y"].addressable_shards) == 8
    with Checkpoints(eight) as checkpoints:
        checkpoints.save(step + 1, state)
    big = jax.numpy.asarray(np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32))
    checkpoints = Checkpoints(cut)
    checkpoints.save(1, {"big": big})
    checkpoints.wait()
    checkpoints.save(2, {"big": big + 1})
    os.kill(os.getpid(), signal.SIGKILL)
""")


def _environment(devices: int) -> dict[str, str]:
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]),
    }


def test_other_device_counts_and_a_save_cut_off(tmp_path, warnings):
    one, eight, cut = (tmp_path / name for name in ("one", "eight", "cut"))
    rng = np.random.default_rng(0)
    state = {
        "x": jnp.asarray(rng.normal(size=(16, 6)), jnp.float32),
        "y": jnp.asarray(rng.normal(size=(3, 8)), jnp.bfloat16),
        "r": jnp.int32(4),
        "key": jax.random.key(11),
    }
    with Checkpoints(one) as checkpoints:
        checkpoints.save(1, state)
    process = subprocess.run(
        [sys.executable, "-c", OTHER_DEVICES, one, eight, cut],
        env=_environment(devices=8),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr

    with Checkpoints(eight) as checkpoints:
        restored, step = checkpoints.restore_latest(abstract(state))
    assert step == 2
    _assert_identical(restored, state)
    assert all(x.sharding == state["x"].sharding for x in jax.tree.leaves(restored))

    assert [p.name for p in cut.glob("2*")] == ["2.orbax-checkpoint-tmp"]  # killed in the middle, as intended
    big = np.random.default_rng(0).normal(size=(4096, 4096)).astype(np.float32)
    shape = abstract({"big": jnp.zeros((4096, 4096))})
    with Checkpoints(cut) as checkpoints:
        restored, step = checkpoints.restore_latest(shape)
        assert step == 1 and _bits(restored["big"]) == big.tobytes()
        assert len(warnings) == 1 and str(cut / "2.orbax-checkpoint-tmp") in warnings[0]
        checkpoints.save(2, {"big": restored["big"] + 1})
        checkpoints.wait()
        assert _bits(checkpoints.restore_latest(shape)[0]["big"]) == (big + 1).tobytes()


def _files(directory: Path) -> list[Path]:
    return sorted(p.relative_to(directory) for p in directory.rglob("*") if p.is_file())


def _delete(file):
    file.unlink()


def _halve(file):
    os.truncate(file, file.stat().st_size // 2)


def _zero(file):
    file.write_bytes(bytes(file.stat().st_size))


def test_damage_to_any_file_gives_the_same_state_or_the_one_before(tmp_path, warnings):
    whole = tmp_path / "whole"
    states = {step: _state(step, seed=step) for step in (1, 2, 3)}
    with Checkpoints(whole, keep_latest=3) as checkpoints:
        for step, state in states.items():
            checkpoints.save(step, state)
    fell_back = []
    for file in _files(whole / "3"):
        for damage in (_delete, _halve, _zero):
            directory = tmp_path / "damaged"
            shutil.copytree(whole, directory)
            damage(directory / "3" / file)
            warnings.clear()
            with Checkpoints(directory, keep_latest=3) as checkpoints:
                restored, step = checkpoints.restore_latest(abstract(_state()))
                _assert_identical(restored, states[step])
                if step == 2:
                    fell_back.append((file.parts[0], damage))
                    assert str(directory / "3") in warnings[0] and "moved to 3.damaged-1" in warnings[0]
                    assert warnings[1] == "using the checkpoint of step 2 instead"
                    assert checkpoints.latest_step() == 2
                    assert (directory / "3.damaged-1").is_dir() and not (directory / "3").exists()
                    checkpoints.save(3, states[3])
                    checkpoints.wait()
                    _assert_identical(checkpoints.restore_latest(abstract(_state()))[0], states[3])
                else:  # a file that nothing depends on
                    assert step == 3 and not warnings
            shutil.rmtree(directory)
    assert {(part, damage) for part in ("info", "state") for damage in (_delete, _halve, _zero)} <= set(fell_back)


def _break(step_directory: Path):
    for file in (step_directory / "state").rglob("*"):
        if file.is_file():
            os.truncate(file, 1)


def test_all_damaged_is_an_error_and_moves_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state())
        checkpoints.save(2, _state())
    for step in ("1", "2"):
        _break(tmp_path / step)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(RuntimeError, match="damaged") as error:
            checkpoints.restore_latest(abstract(_state()))
        assert str(tmp_path / "1") in str(error.value) and str(tmp_path / "2") in str(error.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]


def test_damaged_best_gives_the_next_best(tmp_path, warnings):
    with Checkpoints(tmp_path, best=("loss", "min"), keep_latest=4) as checkpoints:
        for step, loss in enumerate([0.3, 0.1, 0.2, 0.4]):
            checkpoints.save(step, _state(step), {"loss": loss})
    (tmp_path / "1.damaged-1").mkdir()  # from another time
    _break(tmp_path / "1")
    with Checkpoints(tmp_path, best=("loss", "min")) as checkpoints:
        assert checkpoints.restore_best(abstract(_state()))[1:] == (2, {"loss": 0.2})
        assert checkpoints.best_step() == 2
    assert (tmp_path / "1.damaged-2").is_dir() and "moved to 1.damaged-2" in warnings[0]


def test_another_state_is_refused_and_nothing_moved(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, _state())
        other = {"kernel": jnp.zeros((8, 5)), "bias": jnp.zeros(4, jnp.bfloat16), "scale": jnp.ones(4)}
        with pytest.raises(ValueError, match="another state") as error:
            checkpoints.restore_latest(abstract(_state().replace(params={"dense": other}, opt=())))
        message = str(error.value)
        assert str(tmp_path / "1") in message
        assert "missing in the checkpoint: params/dense/scale\n" in message
        assert "only in the checkpoint: opt/1/0/count; " in message
        assert "params/dense/kernel: float32[8,4] stored, float32[8,5] wanted" in message
        assert "params/dense/bias: float32[4] stored, bfloat16[4] wanted" in message
        many = abstract({f"p{i}": jnp.zeros(1) for i in range(9)})
        with pytest.raises(ValueError, match="p0; p1; p2; p3; p4 and 4 more"):
            checkpoints.restore_latest(many)
        _assert_identical(checkpoints.restore_latest(abstract(_state()))[0], _state())


def test_part_of_a_state(tmp_path):
    """Whole top-level entries may be left out, and only those."""
    with Checkpoints(tmp_path, best=("accuracy", "max")) as checkpoints:
        checkpoints.save(3, _state(3, seed=1), {"accuracy": 0.5})
        asked = {"params": abstract(_state().params)}
        found, step, _ = checkpoints.restore_best(asked, part=True)
        assert step == 3
        _assert_identical(found, {"params": _state(seed=1).params})
        with pytest.raises(ValueError, match=r"only in the checkpoint: step; opt/.* and \d+ more"):
            checkpoints.restore_best(asked)
        kernel = {"params": {"dense": {"kernel": asked["params"]["dense"]["kernel"]}}}
        with pytest.raises(ValueError, match="only in the checkpoint: params/dense/bias"):
            checkpoints.restore_best(kernel, part=True)
        with pytest.raises(ValueError, match="missing in the checkpoint: batch_stats"):
            checkpoints.restore_best({**asked, "batch_stats": jnp.zeros(1)}, part=True)


def test_errors(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot create the checkpoint directory .*/file/checkpoints"):
        Checkpoints(tmp_path / "file" / "checkpoints")
    with pytest.raises(ValueError, match="'max' or 'min'"):
        Checkpoints(tmp_path / "a", best=("accuracy", "maximum"))
    with pytest.raises(ValueError, match="keep_latest"):
        Checkpoints(tmp_path / "a", keep_latest=0)
    with Checkpoints(tmp_path / "b") as checkpoints, pytest.raises(ValueError, match="without best="):
        checkpoints.restore_best(abstract(_state()))
    with Checkpoints(tmp_path / "c", best=("accuracy", "max")) as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None
        with pytest.raises(ValueError, match="'accuracy', but the metrics are: loss"):
            checkpoints.save(1, _state(), {"loss": 1.0})
        checkpoints.save(1, _state())
        with pytest.raises(ValueError, match=r"no checkpoint in .* 'accuracy'"):
            checkpoints.restore_best(abstract(_state()))
        with pytest.raises(ValueError, match="leaf 'name' of the state"):
            checkpoints.save(2, {"name": "lenet"})
        with pytest.raises(ValueError, match="two leaves of the state have the path 'a/b'"):
            checkpoints.save(2, {"a": {"b": jnp.ones(1)}, "a/b": jnp.ones(1)})


TWO_PROCESSES = textwrap.dedent("""
    import os, pathlib, sys
    import jax, numpy as np
    from jax.experimental import multihost_utils
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
    from launch.training.checkpoint import Checkpoints, abstract

    index, address, directory = int(sys.argv[1]), sys.argv[2], pathlib.Path(sys.argv[3])
    jax.distributed.initialize(address, 2, index)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    values = np.random.default_rng(0).integers(1 << 32, size=(8, 500), dtype=np.uint32)  # nothing to compress

    def state(step):
        place = lambda spec, values: jax.make_array_from_callback(
            values.shape, NamedSharding(mesh, spec), lambda part: values[part]
        )
        return {"split": place(P("data"), values + np.uint32(step)), "whole": place(P(), ~values + np.uint32(step))}

    with Checkpoints(directory) as checkpoints:
        checkpoints.save(1, state(1))
        checkpoints.save(2, state(2))
        checkpoints.wait()
        if index == 0:
            for file in directory.glob("2/state/**/d/*"):
                os.truncate(file, 1)
        multihost_utils.sync_global_devices("damaged")
        restored, step = checkpoints.restore_latest(abstract(state(0)))
        assert step == 1, step
        for name, x in state(1).items():
            for a, b in zip(restored[name].addressable_shards, x.addressable_shards, strict=True):
                assert np.array_equal(a.data, b.data)
        checkpoints.save(2, restored)
        checkpoints.wait()
        assert checkpoints.restore_latest(abstract(state(0)))[1] == 2

        # One bit of the part that one of the processes reads: files are sound, their content is not.
        if index == 0:
            content = (values + np.uint32(1))[5, :20].tobytes()
            (file,) = (path for path in directory.glob("2/state/**/d/*") if content in path.read_bytes())
            turned = bytearray(file.read_bytes())
            turned[turned.index(content)] ^= 1
            file.write_bytes(turned)
        multihost_utils.sync_global_devices("turned")
        assert checkpoints.restore_latest(abstract(state(0)))[1] == 1
""")


def test_two_processes_agree_on_the_checkpoint_before_a_damaged_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, str(index), address, str(tmp_path)],
            env=_environment(devices=2),
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    assert "moved to 2.damaged-1" in errors[0] and "damaged-1" not in errors[1]  # one of them renames
    assert "not what was saved: split" in errors[0] and "not what was saved: split" in errors[1]
    assert {p.name for p in tmp_path.iterdir()} == {"1", "2.damaged-1", "2.damaged-2"}
