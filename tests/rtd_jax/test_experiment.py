"""The smallest real run of the whole method, what it leaves, and what its plan refuses."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import clip_jax
from launch import train
from launch.stages import SettingError
from launch.store import Store
from rtd_jax import clips, experiment, phi
from rtd_jax.benchmarks import evaluation
from rtd_jax.stages import data
from rtd_jax.text import vocabulary
from rtd_jax.tuning import step, trained
from tests.rtd_jax import tiny
from tests.rtd_jax.benchmarks.test_data import make_cirr, picture


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run: its directory and result."""
    path = tmp_path_factory.mktemp("run")
    return path, train.execute(tiny.config(), str(path))


@pytest.fixture(scope="module")
def clip():
    return clips.load("embedded:scenes")


def test_a_run_has_all_rows_in_both_phrasings(finished):
    _, result = finished
    for row in ("text", "image_text", "phi", "rtd"):
        for metric in ("recall_at_1", "recall_at_10", "unseen_recall_at_5"):
            assert 0 <= result[f"scenes/{row}/{metric}"] <= 100
    assert result["scenes/oracle/recall_at_1"] > 95 and "scenes/oracle/unseen_recall_at_1" not in result
    assert result["phi/best_step"] in (1, 2) and result["rtd/best_step"] == 1
    assert 0 <= result["rtd/val/recall"] <= result["rtd/val/recall_at_10"] <= 100


def test_every_metric_is_declared(finished):
    _, result = finished
    described = {key: experiment.describe(key) for key in result}
    assert all(described.values())
    metric = described["scenes/rtd/unseen_recall_at_1"]
    assert (metric.table, metric.row, metric.title) == ("Scenes", "φ + RTD", "R@1, unseen phrasing")
    assert (metric.direction, metric.unit) == ("up", "%")
    assert described["scenes/oracle/recall_at_1"].reference and not metric.reference
    assert described["scenes/phi/recall_at_1_edits_2"].title == "R@1, two edits"
    assert experiment.describe("fashioniq/dress/phi/recall_at_10").table == "FashionIQ, dress"
    assert experiment.describe("cirr/image/subset_recall_at_2").title == "subset R@2"
    assert experiment.describe("circo/oracle/map_at_5").row == "oracle: the target's caption"
    assert experiment.describe("phi/best_step").direction == "neither"


def test_a_run_leaves_what_can_be_used(finished, clip):
    path, result = finished
    network, tuned = phi.load(path / "phi.safetensors"), clip_jax.load(path / "clip")
    phi.check_fits(network, clip.config)
    assert network.module.unit_inputs  # it is in the file
    after, before = jax.device_get(tuned.params), jax.device_get(clip.params)
    same = jax.tree.map(lambda a, b: np.array_equal(a, np.asarray(b, np.float32)), after["image"], before["image"])
    assert all(jax.tree.leaves(same))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), after["text"], before["text"])
    assert all(change > 0 for change in jax.tree.leaves(moved))
    options = tiny.config().evaluation.scenes
    task = data.SceneTask(**options).make()
    images = evaluation.embed(clip, task, batch_size=256)
    again = evaluation.measure(evaluation.QueryInputs(task, images, clip, network), evaluation.FROZEN)
    again |= evaluation.measure(evaluation.QueryInputs(task, images, tuned, network), evaluation.TUNED)
    assert again == {key: value for key, value in result.items() if key.startswith("scenes/")}
    assert (path / "artifacts" / "retrieved-scenes.png").stat().st_size > 10_000


def test_running_again_trains_nothing(finished):
    path, result = finished
    logs = list((path / "store").glob("*/metrics.jsonl"))
    assert len(logs) == 2  # of φ and of RTD
    for log in logs:
        log.write_text("")
    (path / "result.json").unlink()
    assert train.execute(tiny.config(), str(path)) == pytest.approx(result)
    assert all(log.read_text() == "" for log in logs)


def test_phi_from_a_file_and_no_rtd(finished, tmp_path):
    path, result = finished
    config = tiny.config(phi__load=str(path / "phi.safetensors"), rtd__train=False)
    found = train.execute(config, str(tmp_path))
    assert found["scenes/phi/recall_at_5"] == result["scenes/phi/recall_at_5"]
    assert not any("rtd" in key for key in found) and not (tmp_path / "clip").exists()


def test_a_checkpoint_in_half_precision_is_what_is_measured(finished, tmp_path):
    """It trains nothing anew."""
    path, _ = finished
    config = tiny.config(checkpoint_dtype="float16")
    root, store = experiment.plan(config), Store(path / "store")
    store.get(root)
    assert tiny.made(store) == ["task_evaluation"]
    (tmp_path / "artifacts").mkdir()
    experiment.leave(tmp_path, root, store)
    measured, left = store.get(root.tuned).params["text"], clip_jax.load(tmp_path / "clip").params["text"]
    jax.tree.map(np.testing.assert_array_equal, measured, jax.device_get(left))
    exact = store.get(root.tuned.tuning).params["projection"]["kernel"]
    assert np.abs(measured["projection"]["kernel"] - exact).max() > 0


def test_unused_tokens_follow_from_decay_alone(clip):
    """Against training the whole table: the rows of tokens that no triplet has only shrink."""
    triplets, _ = data.TripletsOfScenes(train_examples=64, val_examples=16).make()
    ids = trained.token_ids(clip, step.Objective(), triplets)
    tower, local = trained.restrict(clip, ids)
    assert set(local) == {"ids"} and local["ids"].max() < len(tower.subset.kept)
    assert len(tower.params[vocabulary.TOKENS]) == len(tower.subset.kept) == tower.config.text.vocab_size
    before, after = np.asarray(clip.params["text"]["tokens"]), tower.whole({"text": tower.params}, 0.5)["tokens"]
    used = np.unique(ids["ids"])
    np.testing.assert_array_equal(after[used], before[used])
    np.testing.assert_allclose(after[clip.tokenizer.vocab_size // 2], 0.5 * before[clip.tokenizer.vocab_size // 2])


def test_validation_counts_ties_against_the_model(clip):
    """A text encoder that says the same to everything finds nothing."""
    _, val = data.TripletsOfScenes(train_examples=64, val_examples=16).make()
    network = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    text = jax.tree.map(np.zeros_like, jax.device_get(clip.params["text"]))
    text["projection"] = clip.params["text"]["projection"]
    text["final_norm"] = {"scale": text["final_norm"]["scale"], "bias": np.ones_like(text["final_norm"]["bias"])}
    constant = replace(clip, params={**clip.params, "text": text})
    embed = lambda texts: clip_jax.embed_texts(constant, texts, progress=False)  # the gallery's, too: all tie
    check = trained.Validation(network, val, embed(val.references), embed(val.targets), batch_size=64)
    # one may be nearest by rounding
    assert check.measure(constant)["val/recall"] <= 100 / len(val)


def test_cirr_chooses_the_best_states_where_it_is_given(tmp_path):
    """As published: recall@1 on its val split, by the text encoder and φ as they are at that step."""
    names = make_cirr(tmp_path / "cirr", "val")
    for number, name in enumerate(names):
        picture(tmp_path / f"cirr/dev/{name}.png", colour=(4 * number, 255 - 4 * number, 7 * number % 256))
    fields = dict(evaluation__benchmarks=("cirr",), evaluation__roots__cirr=str(tmp_path / "cirr"))
    found = train.execute(tiny.config(**fields), str(tmp_path / "run"))
    for row in ("phi", "rtd"):
        table = {name.split("/")[2]: value for name, value in found.items() if name.startswith(f"cirr/{row}/")}
        assert len(table) == 7 and found[f"{row}/val/recall"] == table["recall_at_1"]
        assert {name: found[f"{row}/val/{name}"] for name in table} == pytest.approx(table)
    held_back = experiment.plan(tiny.config(**fields, best_by="held_back"))
    without = experiment.plan(tiny.config())
    assert held_back.phi.key == without.phi.key and held_back.tuned.key == without.tuned.key
    assert experiment.plan(tiny.config(**fields)).tuned.tuning.cirr is not None
    with pytest.raises(SettingError, match=r"evaluation\.roots\.cirr='': no such folder"):
        experiment.plan(tiny.config(best_by="cirr"))


def test_submissions_are_written(clip, tmp_path):
    make_cirr(tmp_path / "cirr", "test1")
    network = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    phi.save(network, tmp_path / "phi.safetensors")
    config = tiny.config(
        evaluation__benchmarks=("cirr",), evaluation__roots__cirr=str(tmp_path / "cirr"),
        evaluation__splits__cirr="test1", rtd__train=False, phi__load=str(tmp_path / "phi.safetensors"),
    )  # fmt: skip
    assert train.execute(config, str(tmp_path / "run")) == {}
    answers = json.loads((tmp_path / "run/artifacts/submissions/cirr_recall.json").read_text())
    assert len(answers["7"]) == 50 and answers["metric"] == "recall"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"phi__method": "gan"}, "phi.method='gan'; valid names: 'lincir', 'pic2word', 'searle'"),
        ({"phi__load": "none.pt"}, "phi.load: no φ file none.pt"),
        ({"phi__noise": -1.0}, "phi.noise=-1.0: must be at least 0"),
        ({"phi__batch_size": 0}, "phi.batch_size=0: must be a number, at least 1"),
        ({"phi__duration": "2"}, "phi.duration: cannot read the duration '2'"),
        ({"phi__loop__eval_every": "x"}, "phi.loop.eval_every: cannot read"),
        ({"phi__method": "searle", "phi__phrases": ("no place",)}, "phi.phrases=.*'no place' has to hold '{}' once"),
        ({"phi__method": "searle", "phi__inversion_steps": 0}, "phi.inversion_steps=0"),
        ({"clip": "./none"}, "clip: no folder './none', and it is not a hub name"),
        ({"clip": "embedded:none"}, "clip: no embedded checkpoint 'none'"),
        ({"evaluation__benchmarks": ("cirr",)}, "evaluation.roots.cirr='': no such folder; set it to"),
        (
            {"evaluation__benchmarks": ("cirr",), "evaluation__roots__cirr": "/none"},
            "evaluation.roots.cirr='/none': no such folder",
        ),
        (
            {
                "evaluation__benchmarks": ("cirr",),
                "evaluation__roots__cirr": "/",
                "evaluation__splits__cirr": "dev",
            },
            "evaluation.splits.cirr='dev'; valid names: 'val', 'test1'",
        ),
        (
            {"evaluation__benchmarks": ("genecis",), "evaluation__roots__genecis": "/"},
            "evaluation.genecis_images.visual_genome='': no such folder",
        ),
        ({"evaluation__benchmarks": ("cir",)}, "evaluation.benchmarks has 'cir'; valid names: 'cirr'"),
        ({"evaluation__scenes__queries": 0}, "evaluation.scenes.queries=0"),
        ({"captions__source": "web"}, "captions.source='web'; valid names: 'file', 'scenes'"),
        ({"captions__source": "file"}, "captions.path='': give an existing file that ends in .txt"),
        ({"images__source": "web", "phi__method": "pic2word"}, "images.source='web'; valid names: 'folder', 'scenes'"),
        (
            {"triplets__source": "file", "triplets__path": "none.jsonl"},
            "triplets.path='none.jsonl': give an existing file",
        ),
        ({"rtd__objective__temperature": 0.0}, "rtd.objective.temperature=0.0: must be above 0"),
        ({"rtd__optimizer__name": "adam"}, "rtd.optimizer.name='adam': adds weight decay to the gradient"),
        ({"sharding__mode": "both"}, "sharding.mode='both'; valid names: 'jit', 'pmap'"),
        ({"sharding__mode": "pmap", "sharding__model": 2}, "sharding.model=2: mode 'pmap' keeps whole parameters"),
        ({"model__dtype": "int8"}, "model.dtype='int8'; valid names: 'float32'"),
        ({"checkpoint_dtype": "int8"}, "checkpoint_dtype='int8'; valid names: 'float32'"),
    ],
)
def test_configs_without_sense(fields, message):
    """Refused by the plan, before any work."""
    with pytest.raises(ValueError, match=message):
        experiment.plan(tiny.config(**fields))


def test_phi_of_another_clip_is_refused(tmp_path):
    phi.save(phi.init("phi", 12, 96, jax.random.key(0)), tmp_path / "phi.safetensors")
    root = experiment.plan(tiny.config(phi__load=str(tmp_path / "phi.safetensors")))
    with pytest.raises(ValueError, match=r"width 12 .* width 64"):
        Store(tmp_path / "store").get(root.phi)
