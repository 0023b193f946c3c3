"""A stack of text stages against the same members run alone, heads in float64; what is shared, and what fails alone."""

import json

import jax
import numpy as np
import pytest

from launch import train
from launch.run import Run
from tests.tldr_jax.small import CONFIG
from tldr_jax import experiment, method, retrain, stacked, stages
from tldr_jax.classifier import erm

SMALL = {"baselines": ("erm", "dfr"), "ablations": ("no_gap",), "retrain.grid.learning_rate": ()}
MEMBERS = (
    {"retrain.learning_rate": 1e-2, "projector.ridge": 400.0},
    {"retrain.learning_rate": 1e-1, "projector.ridge": 400.0, "retrain.seed": 3},
    {"retrain.learning_rate": 1e-1, "projector.ridge": 4000.0, "seed": 1},
    {"retrain.learning_rate": 1e-2, "projector.gap_rows": 99},  # there are 20 pairs
    {"retrain.learning_rate": -1.0},
)
CONFIGS = [experiment.changed(CONFIG, SMALL | overrides) for overrides in MEMBERS]


def npz(path, config, stage="retrain"):
    with np.load(path / "artifacts" / f"{stages.key(config, stage)}.npz") as file:
        return dict(file)


def watched(function, calls: list):
    def watching(*args, **options):
        calls.append(args)
        return function(*args, **options)

    return watching


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(folder, results of members 1 and 2 alone, those of the stack, how often each was called in it)."""
    folder = tmp_path_factory.mktemp("stacked")
    jax.config.update("jax_enable_x64", True)
    try:
        alone = {i: train.execute(CONFIGS[i], str(folder / "alone" / str(i))) for i in (1, 2)}
        runs = [Run.open(folder / "stack" / str(i), config) for i, config in enumerate(CONFIGS)]
        calls = {"sweep": [], "train": []}
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((retrain, "sweep"), (erm, "train")):
                patch.setattr(module, name, watched(getattr(module, name), calls[name]))
            found = dict(stacked.run(CONFIGS, runs))
        for index, run in enumerate(runs):
            if not isinstance(found[index], Exception):
                run.finish(found[index])
            run.close()
    finally:
        jax.config.update("jax_enable_x64", False)
    return folder, alone, found, calls


@pytest.mark.parametrize("index", [1, 2])
def test_members_are_as_if_run_alone(both, index):
    folder, alone, found, _ = both
    assert found[index] == pytest.approx(alone[index], rel=1e-8)
    for own in (CONFIGS[index], experiment.changed(CONFIGS[index], experiment.ABLATIONS["no_gap"])):
        ours, theirs = (npz(folder / side / str(index), own) for side in ("stack", "alone"))
        assert ours.keys() == theirs.keys() and ours["by_wga/kernel"].dtype == np.float64
        for name, value in ours.items():
            np.testing.assert_allclose(value, theirs[name], rtol=1e-8, atol=1e-12)
    for name in ("table.md", "config.json"):
        texts = [(folder / side / str(index) / name).read_text() for side in ("stack", "alone")]
        assert texts[0] == texts[1]
    assert json.loads((folder / "stack" / str(index) / "result.json").read_text()) == pytest.approx(found[index])
    kernels = [npz(folder / "stack" / str(i), CONFIGS[i])["by_wga/kernel"] for i in range(3)]
    assert min(np.abs(kernels[i] - kernels[i - 1]).max() for i in range(3)) > 1e-4


def test_heads_are_one_program_and_classifiers_are_trained_once(both):
    _, _, _, calls = both
    assert len(calls["sweep"]) == 1  # the words are the same: no filter looks at the classifier here
    members = calls["sweep"][0][2]
    assert len(members.seed) == 6 and len(np.unique(members.projector)) == 4  # with and without the gap, of two ERMs
    assert len(calls["train"]) == 2


def test_what_is_shared_is_where_a_member_alone_would_have_it(both):
    folder, _, _, _ = both
    names = lambda side, of: sorted(p.name for p in (folder / side / "1" / of).iterdir())
    assert names("stack", "artifacts") == names("alone", "artifacts")
    assert names("stack", "stages") == names("alone", "stages")
    key = stages.key(CONFIGS[1], "erm")
    lines = [(folder / s / "1" / "stages" / key / "metrics.jsonl").read_text().count("\n") for s in ("stack", "alone")]
    assert lines[0] == lines[1] > 0
    locks = [folder / "stack" / i / "stages" / key / ".lock" for i in ("0", "1")]
    assert not locks[1].exists() or not locks[0].samefile(locks[1])


def test_a_member_that_fails_does_not_stop_the_rest(both):
    _, _, found, _ = both
    assert set(found) == {0, 1, 2, 3, 4} and "projector.gap_rows=99: 0 to gap.pairs=20" in str(found[3])
    assert "learning_rate must be finite and at least 0, got [-1.]" in str(found[4])


def test_a_finished_text_stage_is_not_trained_again(both, monkeypatch):
    folder, _, found, _ = both
    monkeypatch.setattr(method.retrain, "sweep", lambda *args, **options: pytest.fail("it was to be found"))
    runs = [Run.open(folder / "stack" / str(i), CONFIGS[i]) for i in range(2)]
    again = dict(stacked.run(CONFIGS[:2], runs))
    for run in runs:
        run.close()
    assert again[1] == pytest.approx(found[1])
