"""Heads of several members as one program against the same made alone, in float64; what is shared, what fails alone."""

import jax
import numpy as np
import pytest

from launch.stages import SettingError
from launch.store import Store
from launch.training import fit
from tests.tldr_jax.small import CONFIG, changed
from tldr_jax import experiment, retrain
from tldr_jax.stages.heads import Heads

SMALL = {"baselines": ("erm", "dfr"), "ablations": ("no_gap",), "retrain.grid.learning_rate": ()}
MEMBERS = (
    {"retrain.learning_rate": 1e-2, "projector.ridge": 400.0},
    {"retrain.learning_rate": 1e-1, "projector.ridge": 400.0, "retrain.seed": 3},
    {"retrain.learning_rate": 1e-1, "projector.ridge": 4000.0, "seed": 1},
)
PLANS = [experiment.plan(changed(CONFIG, SMALL | overrides)) for overrides in MEMBERS]
HEADS = [heads for plan in PLANS for _, heads in plan.methods]  # tldr and no_gap of each


def watched(function, calls: list):
    def watching(*args, **options):
        calls.append(args)
        return function(*args, **options)

    return watching


def leaves(value):
    return jax.tree_util.tree_leaves_with_path(value)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """(store of the stack, results of member 1 and 2 alone, of the stack, how often each was called in it)."""
    folder = tmp_path_factory.mktemp("together")
    jax.config.update("jax_enable_x64", True)
    try:
        alone = {i: Store(folder / "alone" / str(i)).get(PLANS[i]) for i in (1, 2)}
        store, calls = Store(folder / "together"), {"sweep": [], "fit": []}
        with pytest.MonkeyPatch.context() as patch:
            for module, name in ((retrain, "sweep"), (fit, "fit")):
                patch.setattr(module, name, watched(getattr(module, name), calls[name]))
            with store.locked(HEADS):
                assert Heads.make_together(HEADS, store) == {}
            assert all(store.has(heads) for heads in HEADS)
            results = [store.get(plan) for plan in PLANS]
    finally:
        jax.config.update("jax_enable_x64", False)
    return folder, alone, results, calls


@pytest.mark.parametrize("index", [1, 2])
def test_members_are_as_if_made_alone(both, index):
    folder, alone, results, _ = both
    assert results[index] == pytest.approx(alone[index], rel=1e-8)
    for _, heads in PLANS[index].methods:
        ours, theirs = (Store(folder / side).get(heads) for side in ("together", f"alone/{index}"))
        assert ours.keys() == theirs.keys() and ours["by_wga"].kernel.dtype == np.float64
        for (place, value), (_, other) in zip(leaves(ours), leaves(theirs), strict=True):
            np.testing.assert_allclose(value, other, rtol=1e-8, atol=1e-12, err_msg=str(place))
    kernels = [Store(folder / "together").get(dict(plan.methods)["tldr"])["by_wga"].kernel for plan in PLANS]
    assert min(np.abs(kernels[i] - kernels[i - 1]).max() for i in range(3)) > 1e-4


def test_heads_are_one_program_and_classifiers_are_trained_once(both):
    _, _, _, calls = both
    assert len(calls["sweep"]) == 1  # the words are the same: no filter looks at the classifier here
    members = calls["sweep"][0][2]
    assert len(members.seed) == 6 and len(np.unique(members.projector)) == 4  # with and without the gap, of two ERMs
    assert len(calls["fit"]) == 3  # the pretraining, and an ERM for each seed


def test_a_member_is_kept_where_it_would_be_alone(both):
    folder, _, _, _ = both
    names = lambda side: {p.name for p in (folder / side).iterdir() if not p.name.startswith(".")}
    assert names("alone/1") <= names("together")
    for heads in (heads for _, heads in PLANS[1].methods):
        files = [{p.name for p in (folder / side / heads.key).iterdir()} for side in ("together", "alone/1")]
        assert files[0] == files[1]
    lines = [(folder / s / PLANS[1].train.erm.key / "metrics.jsonl").read_text().count("\n") for s in
             ("together", "alone/1")]  # fmt: skip
    assert lines[0] == lines[1] > 0


def test_members_of_one_stack_key_differ_in_numbers(both):
    del both
    with_gap, without = HEADS[::2], HEADS[1::2]
    assert len({heads.stack_key for heads in with_gap}) == len({heads.stack_key for heads in without}) == 1
    longer = dict(experiment.plan(changed(CONFIG, SMALL | {"retrain.duration": "7 steps"})).methods)["tldr"]
    assert longer.stack_key != with_gap[0].stack_key


def test_a_member_that_fails_does_not_stop_the_rest(both, monkeypatch):
    folder, _, _, _ = both
    for overrides, message in (
        ({"projector.gap_rows": 99}, "projector.gap_rows=99: 0 to gap.pairs=20"),
        ({"retrain.learning_rate": -1.0}, r"retrain.learning_rate=\(-1.0,\): finite and at least 0"),
    ):
        with pytest.raises(SettingError, match=message):  # no plan, so no member
            experiment.plan(changed(CONFIG, SMALL | overrides))
    store = Store(folder / "together")
    plans = [experiment.plan(changed(CONFIG, SMALL | MEMBERS[0] | {"projector.ridge": ridge})) for ridge in (1.0, 2.0)]
    heads = [dict(plan.methods)["tldr"] for plan in plans]
    monkeypatch.setattr(type(heads[0].projectors[0]), "make", lambda self, store: 1 / (self.ridge - 1.0) or self)
    failures = Heads.make_together(heads[:1], store)
    assert isinstance(failures[0], ZeroDivisionError) and not store.has(heads[0])
    monkeypatch.undo()
    broken = dict(experiment.plan(changed(CONFIG, SMALL | MEMBERS[0] | {"projector.ridge": 0.0})).methods)["tldr"]
    monkeypatch.setattr(
        type(broken.projectors[0]), "rows", lambda self, store: np.full((1, 64), np.nan if self.ridge == 0 else 1.0)
    )
    failures = Heads.make_together([broken, heads[1]], store)
    assert set(failures) == {0} and store.has(heads[1])


def test_emptied_words_give_a_result_of_their_own(both):
    """The other members are trained, and nobody fails."""
    folder, _, _, _ = both
    store = Store(folder / "together")
    own = SMALL | MEMBERS[0] | {"words.classifier_filter": True, "retrain.seed": 5}
    empty = dict(experiment.plan(changed(CONFIG, own | {"projector.ridge": 1e6})).methods)["tldr"]
    other = dict(experiment.plan(changed(CONFIG, SMALL | MEMBERS[0] | {"retrain.seed": 5})).methods)["tldr"]
    assert Heads.make_together([empty, other], store) == {}
    assert "the classifier filter" in store.get(empty)["problem"] and "by_wga" in store.get(other)


def test_a_finished_text_stage_is_not_trained_again(both, monkeypatch):
    folder, _, results, _ = both
    monkeypatch.setattr(retrain, "sweep", lambda *args, **options: pytest.fail("it was to be found"))
    assert [Store(folder / "together").get(plan) for plan in PLANS] == [pytest.approx(result) for result in results]
