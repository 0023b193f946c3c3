"""Precision, effort and kept programs: what is set, what a process takes from the one before, what cannot be used."""

import re
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from launch.processes import compiling, versions
from launch.stages import SettingError


@pytest.fixture
def restored(monkeypatch):
    """JAX's settings and its cache as they were, and no warning's filter left; programs are kept however quick."""
    monkeypatch.setattr(compiling, "_WORTH_KEEPING", 0.0)
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_exec_time_optimization_effort",
    )
    before = {name: getattr(jax.config, name) for name in names}
    compilation_cache.reset_cache()
    with warnings.catch_warnings():
        yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def compile_new(number):
    """Compile a program as a new process would; what the cache said."""
    jax.clear_caches()
    events = []
    listen = lambda event, **_: events.append(event.rsplit("/")[-1])
    monitoring.register_event_listener(listen)
    try:
        jax.jit(heavy, static_argnums=1)(np.ones((8, 8), np.float32), number)  # of the host: compiles nothing else
    finally:
        monitoring.unregister_event_listener(listen)
    return [event for event in events if event in ("cache_hits", "cache_misses")]


def heavy(x, number):
    for _ in range(6):
        x = jnp.linalg.qr(jnp.sin(x) + number)[1]
    return x


# -- precision --------------------------------------------------------------------------------------------------------


def test_products_are_traced_in_the_precision_that_is_asked_for():
    @jax.jit
    def product(a, b):
        return a @ b

    a = jnp.ones((4, 4))
    found = {}
    for name in (*compiling.PRECISIONS, "highest"):
        with compiling.products(name):
            found[name] = re.findall(r"precision = \[(\w+), \w+\]", product.lower(a, a).as_text())
            assert compiling.described()["precision"] == name
    assert found == {"default": ["DEFAULT"], "high": ["HIGH"], "highest": ["HIGHEST"]}
    assert jax.config.jax_default_matmul_precision is None


def test_threads_trace_in_it_too():
    found = []
    with compiling.products("highest"):
        trace = lambda: found.append(str(jax.make_jaxpr(lambda a: a @ a)(jnp.ones((2, 2)))))
        thread = threading.Thread(target=trace)
        thread.start()
        thread.join()
    assert "HIGHEST" in found[0]


@pytest.mark.parametrize("value", ["float32", "", None, 3])
def test_an_unknown_precision_lists_the_valid_ones(value):
    with pytest.raises(SettingError, match="precision"):
        compiling.precision_of(ConfigDict({"precision": value}))
    with pytest.raises(SettingError, match="'default', 'high', 'highest'"):
        compiling.precision_of(ConfigDict({"precision": "float32"}))


def test_an_experiment_without_the_setting_has_the_default():
    assert compiling.precision_of(ConfigDict({"seed": 0})) == "default"


def test_a_run_records_what_it_was_computed_in(tmp_path):
    for name in ("highest", "high", "high"):
        with compiling.products(name):
            versions.record(tmp_path)
    assert re.findall(r'"precision": "(\w+)"', (tmp_path / "versions.json").read_text()) == ["highest", "high"]


# -- kept programs ----------------------------------------------------------------------------------------------------


def test_a_program_is_compiled_once(tmp_path, restored):
    compiling.set_up(-1, str(tmp_path / "programs"), tmp_path / "unused")
    assert compile_new(1) == ["cache_misses"]
    assert compile_new(1) == ["cache_hits"]
    assert compile_new(2) == ["cache_misses"]
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize(
    ("asked", "variable", "used"),
    [
        (None, None, "default"),
        (None, "variable", "variable"),
        (None, "", None),
        ("flag", "variable", "flag"),
        ("", "variable", None),
    ],
)
def test_which_folder_is_used(tmp_path, monkeypatch, restored, asked, variable, used):
    monkeypatch.chdir(tmp_path)
    if variable is None:
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    else:
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", variable)
    compiling.set_up(0.5, asked, tmp_path / "default")
    assert jax.config.jax_compilation_cache_dir == (used and str(tmp_path / used))
    assert [path.name for path in tmp_path.iterdir()] == ([used] if used else [])
    assert compiling.described()["effort"] == "0.5"


def test_an_address_is_left_to_jax(tmp_path, monkeypatch, restored):
    monkeypatch.chdir(tmp_path)
    compiling.set_up(0, "gs://bucket/programs", tmp_path / "default")
    assert jax.config.jax_compilation_cache_dir == "gs://bucket/programs" and not list(tmp_path.iterdir())


def test_no_folder_without_a_default(monkeypatch, restored):
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    compiling.set_up(0, None, None)
    assert jax.config.jax_compilation_cache_dir is None


def test_a_folder_that_cannot_be_made_is_a_warning(tmp_path, restored, caplog):
    (tmp_path / "file").touch()
    with caplog.at_level("WARNING"):
        compiling.set_up(0, str(tmp_path / "file" / "programs"), tmp_path)
        assert compile_new(3) == []
    assert [record.getMessage().split(" (")[0] for record in caplog.records] == [
        f"compiled programs cannot be kept in {tmp_path / 'file' / 'programs'}"
    ]


def test_a_folder_that_cannot_be_written_is_read(tmp_path, restored, monkeypatch, caplog):
    compiling.set_up(0, str(tmp_path), tmp_path)
    compile_new(4)
    held = set(tmp_path.iterdir())

    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(compiling.tempfile, "TemporaryFile", refuse)
    compiling.set_up(0, str(tmp_path), tmp_path)
    with caplog.at_level("WARNING"):
        assert compile_new(4) == ["cache_hits"]
        assert compile_new(5) == []
    assert set(tmp_path.iterdir()) == held
    assert ["cannot be kept" in record.getMessage() for record in caplog.records] == [True]


def test_a_damaged_program_is_replaced_and_said_once(tmp_path, restored, monkeypatch, caplog):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    compiling.set_up(0, str(tmp_path), tmp_path)
    for number in (6, 7):
        compile_new(number)
    for file in tmp_path.glob("jit_heavy-*"):
        file.write_bytes(file.read_bytes()[:100])
    with caplog.at_level("WARNING"):
        compile_new(6), compile_new(7)
    (record,) = caplog.records
    assert "Error reading" in record.getMessage() and "jit_heavy" in record.getMessage()
    assert compile_new(6) == compile_new(7) == ["cache_hits"]


def test_a_program_that_cannot_be_kept_is_said_once(tmp_path, restored, monkeypatch, caplog):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    compiling.set_up(0, str(tmp_path / "programs"), tmp_path)
    compile_new(8)
    shutil.rmtree(tmp_path / "programs")  # now no program can be written, as on a full disk
    with caplog.at_level("WARNING"):
        compile_new(9), compile_new(10)
    (record,) = caplog.records
    assert "Error writing" in record.getMessage() and "jit_heavy" in record.getMessage()
