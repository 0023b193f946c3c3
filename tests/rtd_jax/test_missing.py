"""Benchmarks some of whose images are missing: refused, or left out and counted. Numbers by brute force."""

import json
from pathlib import Path

import numpy as np
import pytest

from launch.reports import formats, tables
from launch.reports.metrics import Metric
from launch.stages import SettingError
from rtd_jax import results
from rtd_jax.benchmarks import circo, cirr, evaluation, fashioniq, genecis
from rtd_jax.stages.data import ReleasedTask
from tests.rtd_jax.benchmarks.test_data import make_circo, make_cirr, make_fashioniq, make_genecis, picture, write

WIDTH = 16


def unit(rng, count):
    rows = rng.normal(size=(count, WIDTH)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def place(query, candidates, target):
    """How many candidates, by name, are nearer to a query than the target."""
    near = {name: float(query @ vector) for name, vector in candidates.items()}
    return sum(near[name] > near[target] for name in near if name != target)


def recall(places, k):
    return 100 * np.mean([at < k for at in places])


def many_cirr(root, rng):
    names = make_cirr(root, "val", images=80)
    queries = []
    for pair in range(30):
        group = rng.choice(80, 6, replace=False)
        members = [names[i] for i in group]
        queries.append({"pairid": pair, "reference": members[0], "target_hard": members[1], "caption": f"is {pair}",
                        "img_set": {"members": sorted(members)}})  # fmt: skip
    write(root / "cirr/captions/cap.rc2.val.json", queries)
    return {name: root / "dev" / f"{name}.png" for name in names}, queries


def test_cirr(tmp_path):
    rng = np.random.default_rng(0)
    files, queries = many_cirr(tmp_path, rng)
    missing = set(rng.choice(sorted(files), 9, replace=False))
    for name in missing:
        files[name].unlink()
    kept = [q for q in queries if not {q["reference"], q["target_hard"]} & missing]
    assert 0 < len(kept) < 30
    task = cirr.load(tmp_path, skip_missing=True)
    assert set(task.ids) == files.keys() - missing and task.texts[""] == [(q["caption"],) for q in kept]
    assert len(task.missing) == 9 and task.dropped == 30 - len(kept)
    vectors, asked = dict(zip(task.ids, unit(rng, len(task.ids)), strict=True)), unit(rng, len(kept))
    found = task.score(asked, np.stack([vectors[name] for name in task.ids]))
    everywhere, among = [], []
    for query, vector in zip(kept, asked, strict=True):
        others = {name: v for name, v in vectors.items() if name != query["reference"]}
        everywhere.append(place(vector, others, query["target_hard"]))
        group = {name: v for name, v in others.items() if name in query["img_set"]["members"]}
        among.append(place(vector, group, query["target_hard"]))
    assert found == pytest.approx(
        {f"recall_at_{k}": recall(everywhere, k) for k in cirr.KS}
        | {f"subset_recall_at_{k}": recall(among, k) for k in cirr.SUBSET_KS}
    )


def test_circo(tmp_path):
    rng = np.random.default_rng(1)
    make_circo(tmp_path, "val")
    queries = []
    for number in range(25):
        ids = [int(i) for i in rng.choice(np.arange(100, 155), 5, replace=False)]
        queries.append({"id": number, "reference_img_id": ids[0], "relative_caption": f"is {number}",
                        "target_img_id": ids[1], "gt_img_ids": sorted(ids[1:])})  # fmt: skip
    write(tmp_path / "annotations/val.json", queries)
    missing = {int(i) for i in rng.choice(np.arange(100, 155), 4, replace=False)}
    for number in missing:
        (tmp_path / f"COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg").unlink()
    kept = [q for q in queries if not {q["reference_img_id"], q["target_img_id"]} & missing]
    task = circo.load(tmp_path, skip_missing=True)
    assert set(task.ids) == set(range(100, 155)) - missing and task.dropped == 25 - len(kept) > 0
    vectors, asked = dict(zip(task.ids, unit(rng, len(task.ids)), strict=True)), unit(rng, len(kept))
    found = task.score(asked, np.stack([vectors[number] for number in task.ids]))
    for k in circo.KS:
        precisions = []
        for query, vector in zip(kept, asked, strict=True):
            order = sorted(vectors, key=lambda number: -float(vector @ vectors[number]))
            true = [number for number in query["gt_img_ids"] if number not in missing]
            hits = [number in true for number in order[:k]]
            precisions.append(sum(sum(hits[: p + 1]) / (p + 1) for p in range(k) if hits[p]) / min(k, len(true)))
        assert found[f"map_at_{k}"] == pytest.approx(100 * np.mean(precisions))
    places = [place(vector, vectors, q["target_img_id"]) for q, vector in zip(kept, asked, strict=True)]
    assert [found[f"recall_at_{k}"] for k in circo.KS] == pytest.approx([recall(places, k) for k in circo.KS])


def test_fashioniq(tmp_path):
    rng = np.random.default_rng(2)
    make_fashioniq(tmp_path)
    names = json.loads((tmp_path / "image_splits/split.dress.val.json").read_text())
    names += [f"dress{i}" for i in range(52, 70)]
    for name in names[52:]:
        picture(tmp_path / f"images/{name}.png")
    queries = []
    for number in range(20):
        candidate, target = (str(name) for name in rng.choice(names, 2, replace=False))
        queries.append({"candidate": candidate, "target": target, "captions": [f"is {number}", "has dots"]})
    write(tmp_path / "image_splits/split.dress.val.json", names)
    write(tmp_path / "captions/cap.dress.val.json", queries)
    missing = {str(name) for name in rng.choice(names, 8, replace=False)}
    for name in missing:
        next((tmp_path / "images").glob(f"{name}.*")).unlink()
    kept = [q for q in queries if not {q["candidate"], q["target"]} & missing]
    task = fashioniq.load_category(tmp_path, "dress", skip_missing=True)
    assert set(task.ids) == set(names) - missing and task.dropped == 20 - len(kept) > 0
    vectors, asked = dict(zip(task.ids, unit(rng, len(task.ids)), strict=True)), unit(rng, len(kept))
    found = task.score(asked, np.stack([vectors[name] for name in task.ids]))
    places = [place(vector, vectors, query["target"]) for query, vector in zip(kept, asked, strict=True)]
    assert found == pytest.approx({f"recall_at_{k}": recall(places, k) for k in fashioniq.KS})


def test_genecis(tmp_path):
    rng = np.random.default_rng(3)
    images = make_genecis(tmp_path)
    for number in range(40):
        picture(tmp_path / f"coco/{number:012d}.jpg")
    queries = []
    for number in range(20):
        ids = [int(i) for i in rng.choice(40, 9, replace=False)]
        reference, target, *others = ({"val_image_id": i} for i in ids)
        queries.append({"reference": reference, "target": target, "gallery": others, "condition": f"{number}"})
    lonely = {"reference": {"val_image_id": 0}, "target": {"val_image_id": 1}, "gallery": [{"val_image_id": 7}]}
    queries.append({**lonely, "condition": "alone"})  # image 7 is missing: nothing is left to compare the target with
    write(tmp_path / "templates/change_object.json", queries)
    missing = {7, *(int(i) for i in rng.choice(np.arange(8, 40), 5, replace=False))}
    for number in missing:
        (tmp_path / f"coco/{number:012d}.jpg").unlink()
    number = lambda image: image["val_image_id"]
    kept = [q for q in queries[:-1] if not {number(q["reference"]), number(q["target"])} & missing]
    task = genecis.load_task(tmp_path / "templates", "change_object", images["coco"], skip_missing=True)
    assert task.texts[""] == [(q["condition"],) for q in kept] and task.dropped == 21 - len(kept)
    gallery, asked = unit(rng, len(task.ids)), unit(rng, len(kept))
    vectors = {int(Path(path).stem): vector for (path, _), vector in zip(task.images.keys, gallery, strict=True)}
    found = task.score(asked, gallery)
    places = []
    for query, vector in zip(kept, asked, strict=True):
        own = {number(image) for image in (query["target"], *query["gallery"])} - missing
        places.append(place(vector, {i: vectors[i] for i in own}, number(query["target"])))
    assert found == pytest.approx({f"recall_at_{k}": recall(places, k) for k in genecis.KS})


def test_refused_unless_asked_for(tmp_path):
    make_cirr(tmp_path, "val")
    (tmp_path / "dev/dev-12-img0.png").unlink()
    (tmp_path / "dev/dev-30-img0.png").unlink()
    with pytest.raises(FileNotFoundError) as error:
        cirr.load(tmp_path)
    message = str(error.value)
    assert "2 of 55 files that it names are missing, the first is" in message and "dev-12-img0" in message
    assert "set evaluation.skip_missing=True to go on without them and without 1 of 2 queries" in message
    assert "\n" not in message


def test_the_test_server_wants_all(tmp_path):
    make_cirr(tmp_path, "test1")
    (tmp_path / "test1/test1-40-img0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 55 files .* the test server wants the answers to all queries"):
        cirr.load(tmp_path, "test1", skip_missing=True)


def test_no_query_is_left(tmp_path):
    make_circo(tmp_path, "val")
    for number in (100, 110):
        (tmp_path / f"COCO2017_unlabeled/unlabeled2017/{number:012d}.jpg").unlink()
    with pytest.raises(ValueError, match=r"2 of 55 files .* no query is left"):
        circo.load(tmp_path, skip_missing=True)


def test_counted_in_the_result_and_in_the_table(tmp_path, caplog):
    make_fashioniq(tmp_path)
    for name in ("dress7", "dress8", "shirt9"):
        next((tmp_path / "images").glob(f"{name}.*")).unlink()
    measured = {}
    for task in fashioniq.load(tmp_path, skip_missing=True):
        inputs = evaluation.QueryInputs(task, None, None, None)
        measured |= evaluation.measure(inputs, {})
    expected = {"fashioniq/dress/missing/images": 2, "fashioniq/dress/missing/queries": 0,
                "fashioniq/shirt/missing/images": 1, "fashioniq/shirt/missing/queries": 0}  # fmt: skip
    assert measured == expected
    assert evaluation.means(measured) == {"fashioniq/missing/images": 3, "fashioniq/missing/queries": 0}
    metric = results.describe("fashioniq/dress/missing/images")
    assert isinstance(metric, Metric) and metric.level == "main" and metric.row == "images missing"
    assert (metric.title, metric.table) == ("images left out", "FashionIQ, dress")
    shown = measured | {"fashioniq/dress/phi/recall_at_10": 20.0}
    printed = formats.markdown(tables.of_finished_run(shown, "rtd_jax.experiment"))
    (row,) = (line for line in printed.partition("FashionIQ, shirt")[0].splitlines() if "images missing" in line)
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["images missing", "", "2", "0"]
    assert "fashioniq/dress: 2 of 52 files that it names are missing, the first is" in caplog.text
    assert "with them 0 of 1 queries are left out" in caplog.text


def test_other_missing_images_are_another_result(tmp_path):
    """A stage is found again by its key: one with an image that came back, or went, is not the same."""
    make_cirr(tmp_path, "val")
    plan = lambda: ReleasedTask(benchmark="cirr", root=str(tmp_path), skip_missing=True)
    whole = plan()
    (tmp_path / "dev/dev-30-img0.png").unlink()
    without = plan()
    assert len({whole.key, without.key}) == 2 and plan().key == without.key
    assert len(without.make().missing) == 1
    picture(tmp_path / "dev/dev-30-img0.png")
    with pytest.raises(ValueError, match="other images are missing than when the run was planned"):
        without.make()
    with pytest.raises(SettingError, match="skip_missing"):
        ReleasedTask(benchmark="cirr", root=str(tmp_path), skip_missing="yes")


def test_fashioniq_galleries_and_targets(tmp_path):
    make_fashioniq(tmp_path)
    split, captions = tmp_path / "image_splits/split.dress.val.json", tmp_path / "captions/cap.dress.val.json"
    names, queries = json.loads(split.read_text()), json.loads(captions.read_text())
    write(split, [*names, "dress3"])
    with pytest.raises(ValueError, match=r"split\.dress\.val\.json, entry 52: is entry 3 already, got 'dress3'"):
        fashioniq.load_category(tmp_path, "dress")
    write(split, names)
    write(captions, [])
    with pytest.raises(ValueError, match=r"cap\.dress\.val\.json: there are no queries in it"):
        fashioniq.load_category(tmp_path, "dress")
    write(captions, [queries[0] | {"captions": [" ", "?"]}])
    with pytest.raises(ValueError, match=r"cap\.dress\.val\.json, entry 0, 'captions': must be two texts, not both"):
        fashioniq.load_category(tmp_path, "dress")


def test_fashioniq_counts_queries_for_their_own_image(tmp_path, caplog):
    make_fashioniq(tmp_path)
    captions = tmp_path / "captions/cap.dress.val.json"
    queries = json.loads(captions.read_text())
    write(captions, [queries[0] | {"target": "dress0"}, *queries[1:]])
    assert len(fashioniq.load_category(tmp_path, "dress")) == len(queries)
    says = f"1 of {len(queries)} queries ask for their own image; the first: {captions}, entry 0, 'target'"
    assert says in caplog.text
