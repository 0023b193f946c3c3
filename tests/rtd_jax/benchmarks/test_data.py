"""Benchmarks in the layouts of their releases, written by hand: galleries, metrics, files for the test servers."""

import json

import numpy as np
import pytest
from PIL import Image

from rtd_jax.benchmarks import circo, cirr, evaluation, fashioniq, genecis, scenes, task


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def picture(path, size=(4, 3), colour=(0, 0, 0)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def axes(*rows):
    """Unit vectors along these axes of a space of 64 dimensions."""
    return np.eye(64, dtype=np.float32)[list(rows)]


def leaning(first, *others):
    """A unit vector nearest to one axis, then to the others in turn."""
    vector = np.zeros(64, np.float32)
    for rank, row in enumerate((first, *others)):
        vector[row] = 1 - 0.02 * rank
    return vector / np.linalg.norm(vector)


# -- CIRR -------------------------------------------------------------------------------------


def make_cirr(root, split, images=55):
    folder = "dev" if split == "val" else "test1"
    names = [f"{folder}-{i}-img0" for i in range(images)]
    for name in names:
        picture(root / folder / f"{name}.png")
    write(root / "cirr/image_splits" / f"split.rc2.{split}.json", {n: f"./{folder}/{n}.png" for n in names})
    query = lambda pair, reference, target, members: {
        "pairid": pair,
        "reference": names[reference],
        "caption": f"is number {target}",
        "img_set": {"id": 1, "members": [names[m] for m in members]},
        **({"target_hard": names[target], "target_soft": {names[target]: 1.0}} if split == "val" else {}),
    }
    queries = [query(7, 0, 1, (0, 1, 2, 3, 4, 5)), query(9, 10, 12, (10, 11, 12, 13, 14, 15))]
    write(root / "cirr/captions" / f"cap.rc2.{split}.json", queries)
    return names


def test_cirr_recall_without_the_reference(tmp_path):
    names = make_cirr(tmp_path, "val")
    found = cirr.load(tmp_path)
    assert list(found.ids) == names and found.reference.tolist() == [0, 10]
    assert found.texts == {"": [("is number 1",), ("is number 12",)]}
    gallery = axes(*range(55))
    # First query: its reference, then the target. Second: six strangers, then the members 11, 13, and the target 12.
    queries = np.stack([leaning(0, 1, 2), leaning(20, 21, 22, 23, 24, 25, 11, 13, 12)])
    result = found.score(queries, gallery)
    assert [result[f"recall_at_{k}"] for k in (1, 5, 10, 50)] == [50, 50, 100, 100]
    assert [result[f"subset_recall_at_{k}"] for k in (1, 2, 3)] == [50, 50, 100]


def test_cirr_submission(tmp_path):
    names = make_cirr(tmp_path, "test1")
    found = cirr.load(tmp_path, "test1")
    assert found.score is None
    queries = np.stack([leaning(0, 3, 2), leaning(14, 10, 13)])
    files = found.submission(queries, axes(*range(55)))
    recall, subset = files["cirr_recall.json"], files["cirr_recall_subset.json"]
    assert {k: recall[k] for k in ("version", "metric")} == {"version": "rc2", "metric": "recall"}
    assert subset["metric"] == "recall_subset" and set(recall) == {"version", "metric", "7", "9"}
    assert recall["7"][:2] == [names[3], names[2]] and names[0] not in recall["7"]
    assert recall["9"][:2] == [names[14], names[13]] and names[10] not in recall["9"]
    assert all(len(recall[q]) == len(set(recall[q])) == 50 for q in ("7", "9"))
    assert subset["7"] == [names[3], names[2], names[1]] and len(subset["9"]) == 3
    assert json.loads(json.dumps(files)) == files


def test_cirr_that_cannot_be_read(tmp_path):
    make_cirr(tmp_path, "val")
    with pytest.raises(ValueError, match=r"no split 'train'.*val, test1"):
        cirr.load(tmp_path, "train")
    (tmp_path / "dev/dev-3-img0.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 55 files.*dev-3-img0"):
        cirr.load(tmp_path)
    picture(tmp_path / "dev/dev-3-img0.png")
    path = tmp_path / "cirr/captions/cap.rc2.val.json"
    entries = json.loads(path.read_text())
    write(path, [{**entries[0], "reference": "dev-x"}])
    with pytest.raises(ValueError, match="entry 0, 'reference': is not in the gallery, got 'dev-x'"):
        cirr.load(tmp_path)
    write(path, [{k: v for k, v in entries[0].items() if k != "caption"}])
    with pytest.raises(ValueError, match="entry 0: no 'caption' among"):
        cirr.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"cap\.rc2\.val\.json, line 1, column 2: invalid JSON"):
        cirr.load(tmp_path)


# -- CIRCO ------------------------------------------------------------------------------------


def make_circo(root, split):
    numbers = list(range(100, 155))
    coco = root / "COCO2017_unlabeled"
    for number in numbers:
        picture(coco / "unlabeled2017" / f"{number:012d}.jpg")
    info = {"images": [{"id": n, "file_name": f"{n:012d}.jpg"} for n in numbers]}
    write(coco / "annotations/image_info_unlabeled2017.json", info)
    truth = lambda *ids: {"target_img_id": ids[0], "gt_img_ids": list(ids)} if split == "val" else {}
    queries = [
        {"id": 0, "reference_img_id": 100, "relative_caption": "is red", **truth(101, 103)},
        {"id": 1, "reference_img_id": 110, "relative_caption": "is big", **truth(120)},
    ]
    write(root / f"annotations/{split}.json", queries)


def test_circo_precision_over_several_truths(tmp_path):
    make_circo(tmp_path, "val")
    found = circo.load(tmp_path)
    # First: 101 at place 1, a stranger, 103 at place 3: (1 + 2/3) / 2. Second: 120 at place 2: 1/2.
    queries = np.stack([leaning(1, 40, 3), leaning(41, 20)])
    result = found.score(queries, axes(*range(55)))
    expected = 100 * ((1 + 2 / 3) / 2 + 1 / 2) / 2
    assert result["map_at_5"] == pytest.approx(expected) and result["map_at_50"] == pytest.approx(expected)
    assert result["recall_at_5"] == 100
    assert {f"map_at_{k}" for k in (5, 10, 25, 50)} <= set(result)


def test_circo_precision_by_semantic_aspect(tmp_path):
    make_circo(tmp_path, "val")
    path = tmp_path / "annotations/val.json"
    changed(path, 0, semantic_aspects=["addition", "viewpoint"])
    changed(path, 1, semantic_aspects=["addition"])
    result = circo.load(tmp_path).score(np.stack([leaning(1, 40, 3), leaning(41, 20)]), axes(*range(55)))
    first, second = (1 + 2 / 3) / 2, 1 / 2
    assert result["map_at_10_viewpoint"] == pytest.approx(100 * first)
    assert result["map_at_10_addition"] == pytest.approx(100 * (first + second) / 2)
    assert sum("map_at_10_" in name for name in result) == 2
    changed(path, 1, semantic_aspects="addition")
    with pytest.raises(ValueError, match="entry 1, 'semantic_aspects': must be a list"):
        circo.load(tmp_path)


def test_circo_submission(tmp_path):
    make_circo(tmp_path, "test")
    found = circo.load(tmp_path, "test")
    answers = found.submission(np.stack([leaning(1, 40, 3), leaning(41, 20)]), axes(*range(55)))["circo.json"]
    assert set(answers) == {"0", "1"} and answers["0"][:3] == [101, 140, 103] and answers["1"][:2] == [141, 120]
    assert all(len(set(ids)) == 50 for ids in answers.values())
    assert json.loads(json.dumps(answers)) == answers  # no NumPy integers


@pytest.mark.parametrize(
    "answers, message",
    [
        ({}, "there are no answers"),
        ({"1": [1, 2]}, "query 1: 3 different ids are needed, got 2, 2 different"),
        ({"1": [1, 2, 2]}, "got 3, 2 different"),
        ({"0": [1, 2, 3], "1": [1, 2, 9]}, "query 1: 9 is not in the gallery"),
    ],
)
def test_answers_that_a_server_would_refuse(answers, message):
    with pytest.raises(ValueError, match=message):
        task.check_submission(answers, [1, 2, 3, 4], 3, "x")


# -- FashionIQ --------------------------------------------------------------------------------


def make_fashioniq(root):
    for category in fashioniq.CATEGORIES:
        names = [f"{category}{i}" for i in range(52)]
        for i, name in enumerate(names):
            picture(root / "images" / f"{name}.{'png' if i % 2 else 'jpg'}")
        write(root / f"image_splits/split.{category}.val.json", names)
        query = {"candidate": names[0], "target": names[1], "captions": ["is blue.", " has dots"]}
        write(root / f"captions/cap.{category}.val.json", [query])


def test_fashioniq_in_three_categories(tmp_path):
    make_fashioniq(tmp_path)
    found = fashioniq.load(tmp_path)
    assert [part.name for part in found] == ["fashioniq/dress", "fashioniq/shirt", "fashioniq/toptee"]
    assert found[0].texts == {"": [("is blue", "has dots")]}
    query = leaning(*range(2, 13), 1)[None]  # eleven others, then the target
    assert found[0].score(query, axes(*range(52))) == {"recall_at_10": 0, "recall_at_50": 100}
    (tmp_path / "images/dress1.png").unlink()
    with pytest.raises(FileNotFoundError, match="dress1"):
        fashioniq.load(tmp_path)


def test_means_over_categories():
    means = evaluation.means({"fashioniq/dress/phi/r": 10.0, "fashioniq/shirt/phi/r": 20.0, "cirr/phi/r": 7.0})
    assert means == {"fashioniq/phi/r": 15.0}


# -- GeneCIS ----------------------------------------------------------------------------------


def make_genecis(root):
    image = lambda number: {"image_id": number, "instance_bbox": [10, 20, 20, 10]}
    whole = lambda number: {"val_image_id": number}
    for number in range(5):
        picture(root / f"vg/{number}.jpg", (100, 80), (10 * number, 0, 0))
        picture(root / f"coco/{number:012d}.jpg", (50, 40))
    for name in genecis.TASKS:
        of = image if "attribute" in name else whole
        query = {"reference": of(0), "target": of(1), "gallery": [of(2), of(3), of(4)], "condition": "blue"}
        other = {"reference": of(4), "target": of(3), "gallery": [of(0), of(1)], "condition": "car"}
        write(root / f"templates/{name}.json", [query, other])
    return {"visual_genome": root / "vg", "coco": root / "coco"}


def test_genecis_ranks_each_query_in_its_own_gallery(tmp_path):
    images = make_genecis(tmp_path)
    found = genecis.load(tmp_path / "templates", images=images)
    assert [part.name.split("/")[1] for part in found] == list(genecis.TASKS)
    first = found[0]
    assert len(first.images) == 5 and first.texts[""] == [("blue",), ("car",)]
    # Rows by first mention: 0, 1, 2, 3, 4. First query: 2 before the target 1. Second: 4 is not in its gallery.
    queries = np.stack([leaning(2, 1, 3), leaning(4, 3)])
    assert first.score(queries, axes(*range(5))) == {"recall_at_1": 50, "recall_at_2": 100, "recall_at_3": 100}
    crop = first.images[2]
    assert crop.dtype == np.uint8 and crop.shape[:2] == (34, 34)  # 1.7 · 20 wide, the height padded
    assert abs(int(crop[17, 17, 0]) - 20) < 4 and crop[0].max() == 0  # image 2 in the middle, black above
    assert found[2].images[0].shape == (40, 50, 3)
    with pytest.raises(ValueError, match="entry 0, 'reference': no 'instance_bbox' among"):
        query = {"reference": {"image_id": 0}, "target": {"image_id": 1}, "gallery": [], "condition": "x"}
        write(tmp_path / "templates/focus_attribute.json", [query])
        genecis.load(tmp_path / "templates", images=images)


# -- Scenes, and what all tasks refuse ---------------------------------------------------------


def test_scenes_task():
    found = scenes.load(3, gallery=300, queries=20)
    assert set(found.texts) == {"", "unseen"} and len(found) == len(found.oracle) == 20
    assert found.query_images.shape == (20, 32, 32, 3) and found.images.shape == (300, 32, 32, 3)
    target = found.score.keywords["target"]
    gallery = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    perfect = found.score(gallery[target], gallery)
    assert set(perfect.values()) == {100.0} and "recall_at_1_edits_2" in perfect
    assert found.score(gallery[found.reference], gallery)["recall_at_1"] == 0


@pytest.mark.parametrize(
    "ids, reference, message",
    [([], [0], "gallery is empty"), (["a", "b", "a"], [0], "1 gallery ids occur more than once, such as 'a'"),
     (["a"], [], "no queries")],
)  # fmt: skip
def test_tasks_without_sense(ids, reference, message):
    with pytest.raises(ValueError, match=message):
        task.RetrievalTask("x", np.zeros((len(ids), 2, 2, 3), np.uint8), ids, np.array(reference), {"": []}, None)


def test_texts_of_tasks():
    own = lambda texts: task.RetrievalTask(
        "x", np.zeros((1, 2, 2, 3), np.uint8), ["a"], np.zeros(len(texts), int), {"": texts}, None
    )
    assert own([("costs $5",), ("", "is red")]).texts[""] == [("costs  dollar 5",), ("", "is red")]


def test_a_blank_modification_is_a_query_and_is_counted(tmp_path, caplog):
    make_cirr(tmp_path, "test1")
    changed(tmp_path / "cirr/captions/cap.rc2.test1.json", 1, caption=" ")
    with caplog.at_level("WARNING"):
        found = cirr.load(tmp_path, "test1")
    assert found.texts[""][1] == ("",) and len(found) == len(found.texts[""])
    assert f"cirr: 1 of {len(found)} queries have no text, the first is query 1" in caplog.text


def test_a_key_that_a_file_has_twice(tmp_path):
    make_cirr(tmp_path, "val")
    path = tmp_path / "cirr/image_splits/split.rc2.val.json"
    path.write_text('{"a": "1.png", "b": "2.png", "a": "3.png"}')
    with pytest.raises(ValueError, match=r"split\.rc2\.val\.json: the key 'a' occurs twice"):
        cirr.load(tmp_path)


def changed(path, entry, **values):
    """Write other values into an entry of a JSON file."""
    entries = json.loads(path.read_text())
    entries[entry] |= values
    write(path, entries)


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"img_set": {"members": ["dev-0-img0", "dev-1-img0", "dev-1-img0"]}},
            "entry 0, 'img_set', 'members': 'dev-1-img0' occurs twice",
        ),
        ({"img_set": {"members": ["dev-1-img0", "dev-2-img0"]}}, "'members': must contain the reference, 'dev-0-img0'"),
        ({"img_set": {"members": ["dev-0-img0", "x"]}}, "'members': 'x' is not in the gallery"),
        ({"img_set": {"members": ["dev-0-img0", "dev-1-img0"]}}, "'members': must contain two images besides the ref"),
        ({"img_set": {"members": "dev-0-img0"}}, "'members': must be a list, got 'dev-0-img0'"),
        ({"img_set": []}, "'img_set': must be an object"),
        ({"target_hard": "dev-9-img0"}, "'target_hard': must be one of the members of 'img_set', got 'dev-9-img0'"),
        ({"target_hard": "dev-0-img0"}, "'target_hard': is the reference, got 'dev-0-img0'"),
        ({"target_hard": None}, "'target_hard': must be a text, got None"),
        ({"pairid": 9}, "entry 1, 'pairid': is that of entry 0 already, got 9"),
        ({"caption": ["is"]}, "'caption': must be a text"),
    ],
)
def test_cirr_queries_that_make_no_sense(tmp_path, values, message):
    make_cirr(tmp_path, "val")
    changed(tmp_path / "cirr/captions/cap.rc2.val.json", 0, **values)
    with pytest.raises(ValueError, match=message) as error:
        cirr.load(tmp_path)
    assert "cap.rc2.val.json, entry" in str(error.value)


def test_an_image_that_a_gallery_has_twice(tmp_path):
    make_cirr(tmp_path / "cirr", "val")
    path = tmp_path / "cirr/cirr/image_splits/split.rc2.val.json"
    write(path, json.loads(path.read_text()) | {"dev-3-img0": "dev/dev-1-img0.png"})
    with pytest.raises(ValueError, match=r"val\.json, 'dev-3-img0': .*dev-1-img0\.png is the image of 'dev-1-img0'"):
        cirr.load(tmp_path / "cirr")
    make_circo(tmp_path / "circo", "val")
    path = tmp_path / "circo/COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    listed = json.loads(path.read_text())
    listed["images"][4]["file_name"] = listed["images"][2]["file_name"]
    write(path, listed)
    with pytest.raises(ValueError, match=r"entry 4 of 'images': .*jpg is the image of entry 2 of 'images' already"):
        circo.load(tmp_path / "circo")


@pytest.mark.parametrize("name", ["../../x.png", "/etc/passwd", "", None, 3])
def test_images_lie_below_the_folder(tmp_path, name):
    make_cirr(tmp_path, "val")
    path = tmp_path / "cirr/image_splits/split.rc2.val.json"
    write(path, json.loads(path.read_text()) | {"dev-3-img0": name})
    with pytest.raises(
        ValueError, match=r"split\.rc2\.val\.json, 'dev-3-img0': (is not below|must be the name of a file)"
    ):
        cirr.load(tmp_path)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"gt_img_ids": []}, "'gt_img_ids': must be a list of at least 1, has 0"),
        ({"gt_img_ids": [103]}, "'target_img_id': must be one of 'gt_img_ids', got 101"),
        ({"gt_img_ids": [101, 101]}, "'gt_img_ids': 101 occurs twice"),
        ({"gt_img_ids": [101, 1.7]}, "'gt_img_ids': item 1 must be an integer, got 1.7"),
        ({"gt_img_ids": 101}, "'gt_img_ids': must be a list"),
        ({"target_img_id": 101.7}, "'target_img_id': must be an integer, got 101.7"),
        ({"target_img_id": True}, "'target_img_id': must be an integer, got True"),
        ({"target_img_id": 100, "gt_img_ids": [100]}, "'target_img_id': is the reference, got 100"),
        ({"reference_img_id": 7}, "'reference_img_id': is not in the gallery, got 7"),
        ({"id": 1}, "entry 1, 'id': is that of entry 0 already, got 1"),
        ({"relative_caption": None}, "'relative_caption': must be a text, got None"),
    ],
)
def test_circo_queries_that_make_no_sense(tmp_path, values, message):
    make_circo(tmp_path, "val")
    changed(tmp_path / "annotations/val.json", 0, **values)
    with pytest.raises(ValueError, match=message) as error:
        circo.load(tmp_path)
    assert "val.json, entry" in str(error.value)


@pytest.mark.parametrize(
    "images, message",
    [([{"id": 1.7, "file_name": "x.jpg"}], "entry 0 of 'images', 'id': must be an integer, got 1.7"),
     ([{"id": 1, "file_name": "../x.jpg"}], "entry 0 of 'images', 'file_name': is not below"),
     ([{"id": 1}], "entry 0 of 'images', 'file_name': must be the name of a file"),
     ([3], "entry 0 of 'images': must be an object, got 3"), ({}, "a list under 'images'")],
)  # fmt: skip
def test_circo_galleries_that_make_no_sense(tmp_path, images, message):
    make_circo(tmp_path, "val")
    path = tmp_path / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
    write(path, {"images": images})
    with pytest.raises(ValueError, match=message):
        circo.load(tmp_path)


@pytest.mark.parametrize(
    "values, message",
    [({"captions": ["is blue"]}, "'captions': must be a list of 2, has 1"),
     ({"captions": "is"}, "'captions': must be a list, got 'is'"),
     ({"captions": ["is", 3]}, "'captions': item 1 must be a text, got 3"),
     ({"target": "x"}, "'target': is not in the gallery, got 'x'"), ({"candidate": None}, "must be a text")],
)  # fmt: skip
def test_fashioniq_queries_that_make_no_sense(tmp_path, values, message):
    make_fashioniq(tmp_path)
    changed(tmp_path / "captions/cap.dress.val.json", 0, **values)
    with pytest.raises(ValueError, match=r"cap\.dress\.val\.json, entry 0, .*" + message):
        fashioniq.load_category(tmp_path, "dress")


@pytest.mark.parametrize("name", [3, None, "", "../../x"])
def test_fashioniq_names_that_make_no_sense(tmp_path, name):
    make_fashioniq(tmp_path)
    write(tmp_path / "image_splits/split.dress.val.json", ["dress0", name])
    with pytest.raises(
        ValueError, match=r"split\.dress\.val\.json, entry 1: (must be the name of an image|is not below)"
    ):
        fashioniq.load_category(tmp_path, "dress")


@pytest.mark.parametrize(
    "values, message",
    [({"gallery": []}, "'gallery': must be a list of at least 1, has 0"),
     ({"gallery": [3]}, "'gallery': item 0 must be an object, got 3"),
     ({"gallery": [{"image_id": 1, "instance_bbox": [10, 20, 20, 10]}]}, "'gallery': must have an image besides the"),
     ({"condition": 3}, "'condition': must be a text, got 3"),
     ({"target": {"image_id": 1.7, "instance_bbox": [0, 0, 1, 1]}}, "must be an integer, got 1.7"),
     ({"target": {"image_id": "../1", "instance_bbox": [0, 0, 1, 1]}}, "'target', 'image_id': must be an integer"),
     *(({"reference": {"image_id": 1, "instance_bbox": box}}, "'instance_bbox': " + says) for box, says in (
        ([0, 0, 0, 5], "must be a box"), ([0, 0, 5, -1], "must be a box"), ([0, 0, 5], "must be a list of 4, has 3"),
        ([0, 0, "5", 5], "item 2 must be a number, got '5'"), (None, "must be a list")))],
)  # fmt: skip
def test_genecis_queries_that_make_no_sense(tmp_path, values, message):
    images = make_genecis(tmp_path)
    changed(tmp_path / "templates/focus_attribute.json", 0, **values)
    with pytest.raises(ValueError, match=r"focus_attribute\.json, entry 0, .*" + message):
        genecis.load_task(tmp_path / "templates", "focus_attribute", images["visual_genome"])


@pytest.mark.parametrize(
    "box, crop",
    [((40, 30, 20, 10), (26, 23, 60, 40)),  # 40 - 14, 30 - 7, and the box's own right and lower edges
     ((5, 2, 20, 10), (0, 0, 34, 17)),  # cut on the left and above, it is as large: 1.7 · 20, 1.7 · 10
     ((90, 70, 30, 30), (69, 49, 100, 80)),  # cut on the right and below
     ((10.5, 10.5, 3.3, 3.3), (8, 8, 14, 14))],  # 8.19 to 13.8, to the nearest pixel
)  # fmt: skip
def test_genecis_crops_as_published(tmp_path, box, crop):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    x0, y0, x1, y1 = crop
    part = pixels[y0:y1, x0:x1]
    found, side = genecis.read(tmp_path / "image.png", box), max(part.shape[:2])
    y, x = (side - part.shape[0]) // 2, (side - part.shape[1]) // 2
    expected = np.zeros((side, side, 3), np.uint8)
    expected[y : y + part.shape[0], x : x + part.shape[1]] = part
    np.testing.assert_array_equal(found, expected)


def test_genecis_tasks_of_one_kind_need_its_images_alone(tmp_path):
    images = make_genecis(tmp_path)
    found = genecis.load(tmp_path / "templates", images={"coco": images["coco"]}, tasks=("change_object",))
    assert [part.name for part in found] == ["genecis/change_object"]


def test_genecis_images_are_decoded_as_everywhere(tmp_path):
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((4, 6), 32896, np.uint16)).save(path)  # 16 bits
    assert genecis.read(path, None).shape == (4, 6, 3) and (genecis.read(path, None) == 128).all()
    assert genecis.read(path, (0, 0, 2, 2)).max() == 128
    with pytest.raises(ValueError, match=r"grey\.png: has 6 x 4 pixels, none in the box.*\(6, 0, 2, 2\)"):
        genecis.read(path, (6, 0, 2, 2))
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(ValueError, match=r"text\.png: is not an image"):
        genecis.read(tmp_path / "text.png", None)


def test_a_byte_order_mark_is_no_part_of_a_release(tmp_path):
    make_cirr(tmp_path, "val")
    expected = cirr.load(tmp_path)
    for path in (tmp_path / "cirr").rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert cirr.load(tmp_path).texts == expected.texts
