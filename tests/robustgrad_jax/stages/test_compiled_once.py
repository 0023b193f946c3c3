"""Members of a sweep over numbers run one compiled program: the first compiles it, all others read it."""

import re

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from configs.robustgrad import digits_lenet
from launch.processes import compiling
from launch.sweeps import stacked
from launch.sweeps.members import Options, config_of, define, status, store_path
from launch.train import execute
from tests.commands import finish, start
from tests.robustgrad_jax.stages.test_stacked import SMALL

QUICK = SMALL | {"duration": "2 steps", "loop.eval_every": "0 steps", "optimizer.schedule.milestones": ("1 steps",)}
RATES, WEIGHTS = (1e-3, 2e-3, 3e-3), (0.1, 1.0)
SAID = re.compile(r"(?:Persistent compilation cache|PERSISTENT COMPILATION CACHE) (hit|MISS) for '(\w+)'")


@pytest.fixture
def sweep(tmp_path):
    """Six members that differ in numbers, and the folder of programs that the commands would use."""
    config = digits_lenet.get_config()
    config.update_from_flattened_dict(QUICK)
    each = [{"optimizer.learning_rate": rate, "regularizer.cosine_weight": own} for rate in RATES for own in WEIGHTS]
    made = define(tmp_path / "sweep", config_file=digits_lenet.__file__, base=config, overrides=each)
    compilation_cache.reset_cache()
    compiling.set_up(compiling.EFFORT, str(store_path(made) / ".compiled"), tmp_path)
    yield made
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def compilations(text):
    """Of the training program."""
    return [what for what, name in SAID.findall(text) if name == "jit_step"]


def test_members_one_by_one(sweep, caplog):
    with caplog.at_level("DEBUG", "jax._src.compiler"):
        for member in sweep.members:
            jax.clear_caches()  # as a new process would begin
            execute(config_of(member), str(member.path), store=str(store_path(sweep)))
    assert compilations(caplog.text) == ["MISS"] + ["hit"] * 5


def test_the_second_stack_of_one_size_reads_the_programs_of_the_first(sweep, caplog):
    ended = []
    with caplog.at_level("DEBUG", "jax._src.compiler"):
        stacked.execute(sweep, sweep.members, Options(processes=3, ended=lambda _: ended.append(len(caplog.records))))
    assert [status(member).state for member in sweep.members] == ["done"] * 6
    first, second = caplog.records[: ended[2]], caplog.records[ended[2] :]
    found = [SAID.findall("\n".join(record.getMessage() for record in part)) for part in (first, second)]
    mapped = [{what for what, name in part if name == "jit__fun"} for part in found]  # pmap's name for any function
    assert mapped == [{"MISS"}, {"hit"}]


def test_a_member_of_a_local_sweep_finds_what_the_one_before_has_compiled(tmp_path, monkeypatch):
    """Nothing is asked for: the folder is in the sweep's store."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_DEBUG_LOG_MODULES", "jax._src.compiler")
    options = [f"--config.{name}={value}" for name, value in QUICK.items()]
    grid = "--grid=optimizer.learning_rate=0.001,0.002"
    line = ("-m", "launch.sweep", f"--config={digits_lenet.__file__}", f"--workdir={tmp_path}", "--processes=1", grid)
    finish(start(*line, "--effort=0.5", *options))
    logs = [path.read_text() for path in sorted(tmp_path.glob("*/log.txt"))]
    assert [set(compilations(log)) for log in logs] == [{"MISS"}, {"hit"}]  # two handlers may print a line each
    assert all("--effort=0.5" in log.splitlines()[0] for log in logs)
    assert list((tmp_path / "store" / ".compiled").glob("jit_step-*"))
