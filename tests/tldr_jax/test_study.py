"""Studies of several members, tables of several results, and a run on image files of one's own."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from configs.tldr import scenes, scenes_study
from launch import train
from tests.tldr_jax.images import write
from tests.tldr_jax.small import SMALL
from tldr_jax import experiment, stages, study, tables


def test_a_study_of_one_classifier(tmp_path):
    own = scenes.get_config()
    own.experiment = "tldr_jax.study"
    own.study = dict(seeds=(0,), clips=("embedded:scenes",), ridges=(1e6,), junk=(0.2,), junk_draws=2)
    untrained = {"pretrain.duration": "0 steps", "erm.duration": "0 steps"}
    few = {"ablations": ("no_filters",), "baselines": ("erm", "zero_shot"), **untrained}
    own = experiment.changed(own, SMALL | few)
    result = train.execute(own, str(tmp_path / "run"))
    for key in ("erm/wga", "tldr/wga", "no_filters_class_balanced/mean", "ridge/1e+06/without", "junk/20%/no filter"):
        assert 0 <= result[key] <= 1, key
    assert result["tldr/wga"] == result["no_filters/wga"]  # the CLIP filter drops none of these words
    assert result["junk/20%/no filter/std"] >= 0  # over the draws
    table = (tmp_path / "run" / "table.md").read_text()
    assert "| 1e+06 |" in table and "| 20% |" in table and tables.title("zero_shot") in table


def test_what_no_clip_changes_counts_once_a_seed(tmp_path, monkeypatch):
    every = lambda value: dict.fromkeys(tables.METRICS, value)
    wga = {(0, "a"): 0.1, (0, "b"): 0.3, (1, "a"): 0.4, (1, "b"): 0.8}
    for name, fake in (
        ("check", lambda config: None),
        ("inputs", SimpleNamespace(load_clip=str, read=lambda config: None, prepare=lambda own, *_, **__: own)),
        ("_methods", lambda own, *_: {"erm": every(own.seed / 4), "tldr": every(wga[own.seed, own.clip.source])}),
        ("_variants", lambda *_: ({}, {})),
        ("jax", SimpleNamespace(clear_caches=lambda: None)),
    ):
        monkeypatch.setattr(study, name, fake)
    config = experiment.changed(scenes_study.get_config(), {"study.seeds": (0, 1), "study.clips": ("a", "b")})
    result = study.run(config, SimpleNamespace(writes=True, path=tmp_path))
    assert result["erm/wga"] == 0.125 and result["erm/wga/std"] == pytest.approx(np.std([0, 0.25], ddof=1))
    values = list(wga.values())
    assert result["tldr/wga"] == pytest.approx(0.4) and result["tldr/wga/std"] == pytest.approx(np.std(values, ddof=1))
    overall, by_clip = (tmp_path / "table.md").read_text().split("WGA by CLIP")
    assert "methods without CLIP: over the seeds" in overall and "| ERM | 0.125 ± 0.177 |" in overall
    assert "| ERM | 0.125 ± 0.177 | 0.125 ± 0.177 |" in by_clip


def test_image_files_from_folder_to_result(tmp_path):
    """Streamed images, held-out ones, the best checkpoint, COCO's captions, one's own words."""
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
    config = experiment.changed(scenes.get_config(), own)
    result = train.execute(config, str(tmp_path / "run"))
    head = np.load(tmp_path / "run/artifacts" / f"{stages.key(config, 'erm')}.npz")
    rows = np.load(tmp_path / "run/artifacts" / stages.key(config, "features") / "test.npy")
    assert rows.shape == (4, 64)
    found = (rows @ head["kernel"] + head["bias"]).argmax(1)
    assert [result[f"erm/group/{y}bird/{p}"] for y in ("land", "water") for p in ("land", "water")] == [
        float(found[i] == y) for i, (y, _) in enumerate(pairs)
    ]
    assert result["words/landbird"] == 2 and "tldr/wga" in result and "afr/wga" in result
    lists["target"]["landbird"]["words"].append("disc")
    (tmp_path / "words.json").write_text(json.dumps(lists))
    with pytest.raises(ValueError, match=r"words\.json' has changed since .* another name"):
        train.execute(experiment.changed(config, {"retrain.learning_rate": 0.5}), str(tmp_path / "run"))
    steps = {p.name for p in (tmp_path / "run/stages" / stages.key(config, "erm") / "checkpoints").iterdir()}
    assert {"1", "2"} >= steps and steps


def test_members_without_a_value_are_left_out_and_counted():
    cells = {("4", "with"): [0.5, None, 0.7], ("4", "without"): [None, None, None]}
    table = tables.grid("ridge", cells)
    assert "| 4 | 0.600 ± 0.141 (2 of 3) | none (0 of 3) |" in table
    result = study._result({"tldr": {"wga": [0.5, None, 0.7]}}, {"ridge": cells})
    assert result["tldr/wga"] == result["ridge/4/with"] == pytest.approx(0.6)
    assert result["ridge/4/with/std"] == pytest.approx(0.1 * 2**0.5) and np.isnan(result["ridge/4/without"])


def test_tables_of_several_runs():
    runs = [{"erm/wga": a, "erm/mean": 0.5, "erm/weighted_mean": 0.9, "erm/class_balanced": 0.5} for a in (0.1, 0.3)]
    assert "| ERM | 0.200 ± 0.141 | 0.500 ± 0.000 |" in tables.summary(runs)
    assert tables.title("no_gap_class_balanced") == "without the gap constraint, chosen by class-balanced accuracy"
    with pytest.raises(ValueError, match="different keys"):
        tables.summary([runs[0], {"dfr/wga": 0.1}])
