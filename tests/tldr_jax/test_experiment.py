"""A whole run on Scenes, small: what it finds, what it keeps, what it redoes when its config is revised."""

import json

import numpy as np
import pytest

from launch import train
from launch.run import RunDirectoryError, flatten
from tests.tldr_jax.small import CONFIG
from tldr_jax import experiment, inputs, method, retrain, stages, tables
from tldr_jax.classifier import erm, features
from tldr_jax.projector import gap

METHODS = ("erm", "zero_shot", "class_balanced", "afr", "dfr", "tldr", "no_gap", "mlp_projector")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(run directory, result) of a finished run."""
    path = tmp_path_factory.mktemp("tldr") / "run"
    return path, train.execute(CONFIG, str(path))


def test_the_result_has_every_method_and_its_table(done):
    path, result = done
    for name in METHODS:
        own = {k.removeprefix(f"{name}/"): v for k, v in result.items() if k.startswith(f"{name}/")}
        groups = [v for k, v in own.items() if k.startswith("group/")]
        assert len(groups) == 4 and own["wga"] == min(groups)
        assert own["class_balanced"] == pytest.approx(np.mean(groups))  # groups of six test images each
        frequent = own["group/curved/land"] + own["group/angular/water"]
        rare = own["group/curved/water"] + own["group/angular/land"]
        assert own["weighted_mean"] == pytest.approx((30 * frequent + 2 * rare) / 64)
    assert result["words/curved"] == result["words/angular"] == 12 and result["projector/gap_norm_relative"] < 1e-10
    table = (path / "table.md").read_text()
    assert all(tables.title(name) in table for name in METHODS) and f"{result['tldr/wga']:.3f}" in table
    assert json.loads((path / "result.json").read_text()) == pytest.approx(result)


def test_the_classifiers_numbers_follow_from_what_is_kept(done):
    path, result = done
    data = inputs.read(CONFIG.data)
    with np.load(path / "artifacts" / f"{stages.key(CONFIG, 'erm')}.npz") as head:
        rows = np.load(path / "artifacts" / stages.key(CONFIG, "features") / "test.npy")
        right = (rows @ head["kernel"] + head["bias"]).argmax(1) == data.parts["test"].classes
    accuracies = [right[data.groups("test") == group].mean() for group in range(4)]
    assert result["erm/wga"] == pytest.approx(min(accuracies)) and result["erm/mean"] == pytest.approx(right.mean())


def test_the_chosen_heads_are_the_best_on_validation(done):
    path, result = done
    with np.load(path / "artifacts" / f"{stages.key(CONFIG, 'retrain')}.npz") as found:
        assert found["val/wga"].shape == (2, 2) and found["steps"].tolist() == [3, 6]
        np.testing.assert_allclose(found["learning_rate"], (1e-2, 1e-1))
        chosen = found["val/wga"].argmax()
        assert result["tldr/wga"] == pytest.approx(found["test/wga"].ravel()[chosen])
        chosen = found["val/class_balanced"].argmax()
        assert result["tldr_class_balanced/wga"] == pytest.approx(found["test/wga"].ravel()[chosen])


def refuse(*args, **kwargs):
    raise AssertionError("this stage was to be found in the run directory")


def test_another_text_setting_redoes_only_what_it_reaches(done, monkeypatch):
    path, result = done
    before = {p.name for p in (path / "artifacts").iterdir()}
    monkeypatch.setattr(erm, "train", refuse)
    monkeypatch.setattr(features, "encode", refuse)
    monkeypatch.setattr(gap, "differences", refuse)
    with monkeypatch.context() as patch:
        patch.setattr(method.projector, "moments_of", refuse)
        revised = experiment.changed(CONFIG, {"projector.ridge": 4000.0, "ablations": ()})
        other = train.execute(revised, str(path))
    new = {p.name for p in (path / "artifacts").iterdir()} - before
    assert new == {f"{stages.key(revised, 'words')}.json", f"{stages.key(revised, 'retrain')}.npz"}
    assert other["erm/wga"] == result["erm/wga"] and "no_gap/wga" not in other
    assert other["projector/nmse"] > result["projector/nmse"]
    assert json.loads((path / "history/1/result.json").read_text()) == pytest.approx(result)
    monkeypatch.setattr(retrain, "sweep", refuse)  # back to the first config: nothing is computed again
    monkeypatch.setattr(method.filters, "apply", refuse)
    assert train.execute(CONFIG, str(path)) == pytest.approx(result)


def test_the_classifier_of_a_run_directory_is_fixed(done):
    with pytest.raises(RunDirectoryError, match="seed: 0 -> 1"):
        train.execute(experiment.changed(CONFIG, {"seed": 1}), str(done[0]))


def test_junk_and_the_classifier_filter_are_reported(done):
    path, _ = done
    junk = experiment.changed(CONFIG, {"words.junk": 0.25, "ablations": (), "baselines": ("erm",)})
    train.execute(junk, str(path))
    kept = json.loads((path / "artifacts" / f"{stages.key(junk, 'words')}.json").read_text())
    assert kept["report"]["before"]["target"] == {"curved": 16, "angular": 16}
    assert kept["report"]["dropped"] and all(entry["filter"] == "clip" for entry in kept["report"]["dropped"])
    filtered = experiment.changed(junk, {"words.classifier_filter": True, "projector.ridge": 1e6})
    with pytest.raises(method.filters.EmptyWordListError, match="the classifier filter"):
        train.execute(filtered, str(path))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ablations": ("no_words",)}, "config.ablations has 'no_words'; there are no_gap"),
        ({"baselines": ("jtt",)}, "config.baselines has 'jtt'; there are erm, zero_shot"),
        ({"erm.select": "best"}, "unknown erm.select='best'; there are last, best_accuracy, best_wga"),
        ({"projector.kind": "cubic"}, "no projector.kind='cubic'; there are linear, mlp"),
        ({"gap.source": "flickr"}, "no gap.source='flickr'; there are coco"),
        ({"gap.source": "none"}, "set projector.gap_rows=0 too"),
        ({"gap.source": "none", "retrain.grid.gap_rows": (0,)}, "set projector.gap_rows=0 too"),
        ({"retrain.grid.gap_rows": (1, 21)}, "projector.gap_rows=21: 0 to gap.pairs=20"),
        ({"projector.kind": "mlp", "retrain.grid.ridge": (1.0,)}, "an mlp projector has no ridge"),
        ({"text.templates": "x"}, "no templates 'x'"),
        ({"words.source": "birds"}, "no word set 'birds'"),
        ({"retrain.duration": "6"}, "cannot read the duration '6'"),
        ({"retrain.evaluations": 0}, "retrain.evaluations=0"),
    ],
)
def test_what_could_only_fail_after_training_is_refused_before_it(overrides, message):
    with pytest.raises(ValueError) as refused:
        experiment.check(experiment.changed(CONFIG, overrides))
    assert message in str(refused.value)


def test_words_of_another_data_set_are_refused():
    with pytest.raises(ValueError, match="the classes landbird, waterbird; those of scenes are, in this order, curved"):
        method.word_lists(experiment.changed(CONFIG, {"words.source": "waterbirds"}), inputs.read(CONFIG.data))


def test_changed_leaves_the_config_alone_and_knows_its_fields():
    before = flatten(CONFIG)
    other = experiment.changed(CONFIG, {"projector.gap_rows": 3})
    assert other.projector.gap_rows == 3 and flatten(CONFIG) == before
    with pytest.raises((KeyError, AttributeError), match="ridges"):
        experiment.changed(CONFIG, {"projector.ridges": 3})


def test_held_out_training_images():
    own = experiment.changed(CONFIG, {"erm.held_out": 0.2})
    seen, unseen = erm.held_out(own, 50)
    assert len(unseen) == 10 and sorted([*seen, *unseen]) == list(range(50))
    assert erm.held_out(CONFIG, 50)[1].size == 0
    with pytest.raises(ValueError, match=r"erm\.held_out=1\.0"):
        erm.held_out(experiment.changed(CONFIG, {"erm.held_out": 1.0}), 50)


def test_a_group_that_cannot_be_evaluated_is_named():
    with pytest.raises(ValueError, match=r"there is no val image of (curved|angular) with (land|water): its accuracy"):
        inputs.read(experiment.changed(CONFIG, {"data.val_examples": 2}).data)


def test_vit_takes_images_of_one_size():
    own = experiment.changed(CONFIG, {"backbone.name": "vit_b16"})
    with pytest.raises(ValueError, match=r"set data\.image_size=224"):
        inputs.prepare(own, run=None)
