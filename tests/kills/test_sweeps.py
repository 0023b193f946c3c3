"""Sweeps of two members, in processes and as one program, killed inside their writes; and searches: the same bits."""

import pytest

from tests.commands import finish
from tests.kills import killing
from tests.kills.killing import Kill, assert_same, command, contents, killed, only_with_system, wait_for_lock

pytestmark = only_with_system

SWEEP = "launch.sweep"
TOY = "tests/launch/sweeps/stack_toy.py"
GRID = (f"--config={TOY}", "--grid=seed=0,1", "--config.steps=12")
DEFINITION = Kill(r"/sweep\.json$")
# A member's process dies with its result half written, and its sweep as it notes that.
RESULT, ERROR = Kill(r"/seed=1/result\.json$"), Kill(r"/error\.txt$")


@pytest.fixture(scope="module", params=["local", "vmap"])
def swept(request, tmp_path_factory):
    """The options of an executor, and the folder of a sweep from start to end."""
    options, whole = (*GRID, f"--executor={request.param}"), tmp_path_factory.mktemp("whole") / "sweep"
    finish(command(SWEEP, *options, f"--workdir={whole}"))
    return options, whole


def test_killed_inside_writes(swept, tmp_path):
    options, whole = swept
    arguments = (*options, f"--workdir={tmp_path / 'sweep'}")
    killed(SWEEP, *arguments, kills=[DEFINITION])
    if "--executor=vmap" in options:
        for kill in (killing.COMMIT, killing.LINE, killing.DELETION, killing.STAGE, RESULT):
            killed(SWEEP, *arguments, kills=[kill])
    else:
        output = finish(command(SWEEP, *arguments, kills=[killing.COMMIT]), 1)  # both members, each for itself
        assert output.count("failed   seed=") == 4 and "killed by SIGKILL" in output
        killed(SWEEP, *arguments, kills=[RESULT, ERROR])
        wait_for_lock(tmp_path / "sweep")
    finish(command(SWEEP, *arguments))
    assert_same(tmp_path / "sweep", whole)


def test_a_search_killed_inside_its_journal(tmp_path):
    """What it proposes after a kill may differ; what it has found stays, and the file is read again without a pause."""
    options = (
        *("--config=tests/launch/sweep_toy.py", "--noconfig_sweep", "--grid=x=~uniform(0,10)"),
        *("--search=optuna", "--minimize=parabola", "--trials=3", "--processes=1", f"--workdir={tmp_path}"),
    )
    for number in (3, 5):  # a parameter of the first proposal; then a result, or the next proposal
        killed(SWEEP, *options, kills=[Kill(r"/optuna\.journal$", "open", number, "torn")])
        wait_for_lock(tmp_path)
    found = contents(tmp_path)
    output = finish(command(SWEEP, *options))
    assert output.rstrip().endswith("3 done") and "is cut off; dropping it" in output
    assert "has not been released" not in output
    after = contents(tmp_path)
    assert not [name for name in after if "journal" in name and name != "optuna.journal"]
    assert all(after[name] == found[name] for name in found if name.endswith("/result.json"))
