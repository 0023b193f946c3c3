"""A whole run on Scenes, small: what it finds, what it keeps, what it redoes when its config changes."""

import json
import logging
import math

import numpy as np
import pytest

from configs.tldr import scenes
from launch import train
from launch.store import Store
from launch.training import fit
from tests.tldr_jax.images import write
from tests.tldr_jax.small import CONFIG, SMALL, changed
from tldr_jax import experiment, projector, retrain
from tldr_jax.classifier import features
from tldr_jax.heads import Head, baselines
from tldr_jax.projector import gap
from tldr_jax.stages import comparison, images
from tldr_jax.words import filters

METHODS = ("erm", "zero_shot", "class_balanced", "afr", "dfr", "tldr", "no_gap", "mlp_projector")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """(run directory, result) of a finished run."""
    path = tmp_path_factory.mktemp("tldr") / "run"
    return path, train.execute(CONFIG, str(path))


def test_the_result_has_every_method_declared(done):
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
    assert json.loads((path / "result.json").read_text()) == pytest.approx(result)
    meanings = {key: experiment.describe(key) for key in result}
    assert all(meanings.values())
    assert {meanings[f"{name}/wga"].row for name in METHODS} >= {"ERM", "without the gap constraint", "MLP projector"}
    chosen = meanings["no_gap_class_balanced/mean"].row
    assert chosen == "without the gap constraint, chosen by class-balanced accuracy"
    kept = json.loads((path / "words.json").read_text())
    assert len(kept["target"]["curved"]) == 12 and kept["report"]["before"]["target"]["curved"] == 12


def accuracies(head, rows):
    right = (rows.rows @ np.asarray(head.kernel) + head.bias).argmax(1) == rows.classes
    return right, [right[2 * rows.classes + rows.spurious == group].mean() for group in range(4)]


def test_the_classifiers_numbers_follow_from_what_is_kept(done):
    path, result = done
    store, plan = Store(path / "store"), experiment.plan(CONFIG)
    right, groups = accuracies(plan.test.erm.head(store), store.get(plan.test))
    assert result["erm/wga"] == pytest.approx(min(groups)) and result["erm/mean"] == pytest.approx(right.mean())
    assert isinstance(store.get(plan.test).rows, np.ndarray) and not store.get(plan.test).rows.flags.writeable


def test_the_chosen_heads_are_the_best_on_validation(done):
    path, result = done
    store, plan = Store(path / "store"), experiment.plan(CONFIG)
    heads = dict(plan.methods)["tldr"]
    value = store.get(heads)
    assert value["val/wga"].shape == (2, 2) and value["steps"].tolist() == [3, 6]
    np.testing.assert_allclose(value["learning_rate"], (1e-2, 1e-1))
    val, test = store.get(heads.val), store.get(plan.test)
    assert min(accuracies(value["by_wga"], val)[1]) == pytest.approx(value["val/wga"].max())
    balanced = np.mean([accuracies(value["by_class_balanced"], val)[0][val.classes == c].mean() for c in (0, 1)])
    assert balanced == pytest.approx(value["val/class_balanced"].max())
    assert result["tldr/wga"] == pytest.approx(min(accuracies(value["by_wga"], test)[1]))
    assert result["tldr_class_balanced/wga"] == pytest.approx(min(accuracies(value["by_class_balanced"], test)[1]))


def refuse(*args, **kwargs):
    raise AssertionError("this stage was to be in the store")


def test_another_text_setting_redoes_only_what_it_reaches(done, monkeypatch):
    path, result = done
    before = {p.name for p in (path / "store").iterdir()}
    monkeypatch.setattr(fit, "fit", refuse)
    monkeypatch.setattr(features, "encode", refuse)
    monkeypatch.setattr(gap, "differences", refuse)
    revised = changed(CONFIG, {"projector.ridge": 4000.0, "ablations": ()})
    with monkeypatch.context() as patch:
        patch.setattr(projector, "moments_of", refuse)
        patch.setattr(images.ImageSplit, "make", refuse)  # labels are kept with the features: no image is read
        other = train.execute(revised, str(path))
    new = {p.name for p in (path / "store").iterdir()} - before
    plan = experiment.plan(revised)
    assert new == {plan.key, plan.diagnostics.key, dict(plan.methods)["tldr"].key}  # no filter looks at the projector
    assert other["erm/wga"] == result["erm/wga"] and "no_gap/wga" not in other
    assert other["projector/nmse"] > result["projector/nmse"]
    assert json.loads((path / "history/1/result.json").read_text()) == pytest.approx(result)
    monkeypatch.setattr(retrain, "sweep", refuse)  # back to the first config: nothing is computed again
    monkeypatch.setattr(filters, "apply", refuse)
    assert train.execute(CONFIG, str(path)) == pytest.approx(result)


def test_a_late_field_makes_what_it_reaches_and_reuses_the_rest(done):
    """Counted in the store: words and their filters, then everything of another CLIP."""
    path, _ = done
    for overrides, made in (
        ({"retrain.batch_size": 64}, {"heads": 3, "comparison": 1}),
        ({"words.clip_filter": False}, {"kept_words": 1, "heads": 3, "diagnostics": 1, "comparison": 1}),
        ({"dfr.draws": 2}, {"dfr": 1, "comparison": 1}),
        ({"data.test_examples": 20}, {"features": 1, "clip_images": 1, "comparison": 1}),
    ):
        store = Store(path / "store")
        store.get(experiment.plan(changed(CONFIG, overrides)))
        names = [use.key.rsplit("-")[0] for use in store.used.values() if use.seconds is not None]
        assert {name: names.count(name) for name in names} == made, overrides


def test_another_seed_takes_the_pretrained_network_and_the_embedded_words(done):
    path, _ = done
    store = Store(path / "store")
    config = changed(CONFIG, {"seed": 1, "ablations": (), "baselines": ("erm",)})
    store.get(experiment.plan(config))
    reused = {use.key.rsplit("-")[0] for use in store.used.values() if use.seconds is None}
    assert reused == {"pretraining", "gap", "clip_images", "embedded_words", "kept_words"}


def test_junk_and_emptied_lists_are_reported(done, caplog):
    path, _ = done
    junk = changed(CONFIG, {"words.junk": 0.25, "ablations": (), "baselines": ("erm",)})
    result = train.execute(junk, str(path))
    report = Store(path / "store").get(dict(experiment.plan(junk).methods)["tldr"].words).report
    assert report["before"]["target"] == {"curved": 16, "angular": 16}
    assert report["dropped"] and all(entry["filter"] == "clip" for entry in report["dropped"])
    assert result["words/curved"] == report["after"]["target"]["curved"]
    filtered = changed(junk, {"words.classifier_filter": True, "projector.ridge": 1e6})
    with caplog.at_level(logging.WARNING, logger="absl"):
        emptied = train.execute(filtered, str(path))
    assert math.isnan(emptied["tldr/wga"]) and math.isnan(emptied["tldr_class_balanced/group/curved/land"])
    assert emptied["erm/wga"] == result["erm/wga"] and emptied.keys() == result.keys()
    assert 0 in (emptied["words/curved"], emptied["words/angular"])
    (reason,) = [text for text in caplog.messages if "tldr has no result" in text]
    assert "the classifier filter" in reason and "words.classifier_filter=False" in reason
    assert json.loads((path / "result.json").read_text())["tldr/wga"] is None
    assert "the classifier filter" in json.loads((path / "words.json").read_text())["problem"]


def test_both_views_come_from_one_pass_unless_one_is_there(tmp_path, monkeypatch):
    decoded = []
    original = features.encode

    def watched(part, encoders, **options):
        decoded.append(len(encoders))
        return original(part, encoders, **options)

    monkeypatch.setattr(features, "encode", watched)
    store, plan = Store(tmp_path), experiment.plan(changed(CONFIG, {"pretrain.duration": "0 steps"}))
    assert plan.test.beside == plan.test_images
    store.get(plan.test_images)  # CLIP alone: no classifier is trained for it
    assert decoded == [1] and not (tmp_path / plan.test.erm.key).exists()
    store.get(plan.test)
    store.get(plan.train)
    assert decoded == [1, 1, 2] and store.has(plan.train.beside)
    store.get(plan.train.beside)
    assert decoded == [1, 1, 2]
    assert store.get(plan.train).rows.shape == (64, 64) and len(store.get(plan.train.beside)) == 64
    without = experiment.plan(changed(CONFIG, {"baselines": ("erm",)}))
    assert without.test.beside is None  # nobody asks for CLIP's view of the test images


def test_a_stopped_table_leaves_nothing(tmp_path, monkeypatch):
    original = features.encode
    store, plan = Store(tmp_path), experiment.plan(CONFIG)

    def stopping(part, encoders, **options):
        for block in original(part, encoders, **options):
            store.stop.asked.set()
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(features, "encode", stopping)
        with pytest.raises(train.Preempted):
            store.get(plan.test_images)
    assert not Store(tmp_path).has(plan.test_images)
    store.stop.asked.clear()
    assert Store(tmp_path).get(plan.test_images).shape == (24, 64)


def test_every_process_prepares_and_one_makes_the_tables(tmp_path, monkeypatch):
    """The others embed their share of the images, and read what it has written."""
    store, plan = Store(tmp_path), experiment.plan(changed(CONFIG, {"pretrain.duration": "0 steps"}))
    store.get(plan.test.erm)
    monkeypatch.setattr(store, "writes", False)
    asked = []
    monkeypatch.setattr(features, "write", lambda *args, **kwargs: {})
    monkeypatch.setattr(images.Erm, "outputs", property(lambda self: asked.append(1) or 2))
    value = plan.test.make(store)
    assert asked and value.rows is None and len(value.classes) == 24


def test_image_files_from_folder_to_result(tmp_path):
    """Streamed images, held-out ones, the best checkpoint, COCO's captions, one's own words, which may change."""
    rows, pairs = ["img_filename,y,place,split"], [(y, place) for y in (0, 1) for place in (0, 1)]
    for split in range(3):
        for y, place in pairs * (2 if split == 0 else 1):
            name = f"{len(rows)}.png"
            write(tmp_path / "birds" / name, 60 * (1 + y + 2 * place), size=(36, 40))
            rows.append(f"{name},{y},{place},{split}")
    (tmp_path / "birds/metadata.csv").write_text("\n".join(rows))
    content = {"images": [], "annotations": []}
    for k in range(3):
        write(tmp_path / "coco" / f"{k}.png", k)
        content["images"].append({"id": k, "file_name": f"{k}.png"})
        content["annotations"].append({"image_id": k, "caption": "a red circle"})
    (tmp_path / "captions.json").write_text(json.dumps(content))
    lists = {
        "target": {"landbird": {"words": ["circle", "ring"]}, "waterbird": {"words": ["star", "square"]}},
        "spurious": {"land": {"words": ["grass", "sand"]}, "water": {"words": ["sea", "lake"]}},
    }
    (tmp_path / "words.json").write_text(json.dumps(lists))
    own = SMALL | {
        "data.name": "waterbirds",
        "data.path": str(tmp_path / "birds"),
        **{f"data.{split}_examples": 0 for split in ("train", "val", "test")},
        "pretrain.duration": "0 steps",
        "erm.batch_size": 4,
        "erm.held_out": 0.5,
        "erm.select": "best_wga",
        "erm.eval_every": "1 steps",
        "gap.source": "coco",
        "gap.path": str(tmp_path / "captions.json"),
        "gap.images": str(tmp_path / "coco"),
        "gap.pairs": 3,
        "words.source": str(tmp_path / "words.json"),
        "words.clip_filter": False,
        "baselines": ("erm", "afr"),
        "ablations": (),
        "evaluation.batch_size": 3,
    }
    config = changed(scenes.get_config(), own)
    result = train.execute(config, str(tmp_path / "run"))
    store, plan = Store(tmp_path / "run/store"), experiment.plan(config)
    head, table = plan.test.erm.head(store), store.get(plan.test)
    assert table.rows.shape == (4, 64)
    found = (table.rows @ head.kernel + head.bias).argmax(1)
    assert [result[f"erm/group/{y}bird/{p}"] for y in ("land", "water") for p in ("land", "water")] == [
        float(found[i] == y) for i, (y, _) in enumerate(pairs)
    ]
    assert result["words/landbird"] == 2 and "tldr/wga" in result and "afr/wga" in result
    steps = {p.name for p in (store.folder(plan.test.erm) / "checkpoints").iterdir()}
    assert {"1", "2"} >= steps and steps
    lists["target"]["landbird"]["words"].append("disc")
    (tmp_path / "words.json").write_text(json.dumps(lists))
    again = train.execute(config, str(tmp_path / "run"))  # the list counts by its content
    assert again["words/landbird"] == 3 and again["erm/wga"] == result["erm/wga"]


def test_a_head_is_what_is_read_back(tmp_path):
    stage = comparison.ErmHead(experiment.plan(CONFIG).train.erm)
    head = Head(np.ones((3, 2), np.float32), np.zeros(2, np.float32))
    assert isinstance(stage.decode(stage.encode(head)), Head)


def test_validation_images_choose_among_filters(done, tmp_path):
    """The candidate with the better validation score, of equals the first; that of each by itself."""
    path, _ = done
    names, spoilt = ("clip", "none"), {"words.contested": 0.25, "ablations": (), "baselines": ()}
    own = changed(CONFIG, spoilt | {"retrain.grid.filters": names})
    result = train.execute(own, str(tmp_path / "both"), store=str(path / "store"))
    store, (_, chosen) = Store(path / "store"), experiment.plan(own).methods[0]
    alone = [store.get(candidate) for candidate in chosen.candidates]
    assert [candidate.words.clip_filter for candidate in chosen.candidates] == [True, False]
    assert len({candidate.words.key for candidate in chosen.candidates}) == 2
    for choice, score, suffix in (("by_wga", "wga", ""), ("by_class_balanced", "class_balanced", "_class_balanced")):
        scores = [candidate[f"val/{score}"].max() for candidate in alone]
        best = scores.index(max(scores))
        assert store.get(chosen)[f"filters/{choice}"] == best
        _, groups = accuracies(alone[best][choice], store.get(experiment.plan(own).test))
        assert result[f"tldr{suffix}/wga"] == pytest.approx(min(groups))
    single = experiment.plan(changed(CONFIG, spoilt | {"retrain.grid.filters": ("none",)})).methods[0][1]
    assert single == chosen.candidates[1]
    with pytest.raises(ValueError, match=r"retrain\.grid\.filters.*'all'"):
        experiment.plan(changed(CONFIG, {"retrain.grid.filters": ("all",)}))


def test_the_head_on_projected_images_is_dfrs_on_them(done, tmp_path):
    path, _ = done
    own = changed(CONFIG, {"ablations": (), "baselines": ("projected_images",)})
    result = train.execute(own, str(tmp_path / "run"), store=str(path / "store"))
    store, root = Store(path / "store"), experiment.plan(own)
    _, stage = root.baselines[0]
    val, mapping = store.get(stage.val), store.get(stage.projector)
    rows = np.maximum(np.asarray(store.get(stage.images), np.float64) @ mapping.weight + mapping.bias, 0)
    options = {
        "penalties": (1.0,),
        "draws": 1,
        "scale_on": store.get(stage.train).rows,
        "allowed": np.ones((2, 2), bool),
    }
    head = baselines.dfr(rows, val.classes, val.spurious, **options).head
    _, groups = accuracies(head, store.get(root.test))
    assert result["projected_images/wga"] == pytest.approx(min(groups))
