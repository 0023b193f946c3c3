"""The smallest real run of all three stages, what it leaves, and what its parts refuse."""

import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import clip_jax
from launch.run import Run
from rtd_jax import comparison, experiment, phi, sources, tables
from rtd_jax.retrieval import evaluation
from rtd_jax.tuning import stage as rtd_stage
from rtd_jax.tuning.training import State
from tests.rtd_jax import tiny


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run: its directory and result."""
    path = tmp_path_factory.mktemp("run")
    config = tiny.config()
    run = Run.open(path, config)
    try:
        return path, experiment.run(run.config, run)
    finally:
        run.close()


@pytest.fixture(scope="module")
def clip():
    return sources.clip("embedded:scenes")


def test_a_run_has_all_rows_in_both_phrasings(finished):
    _, result = finished
    for row in ("text", "image_text", "phi", "rtd"):
        for metric in ("recall_at_1", "recall_at_10", "unseen_recall_at_5"):
            assert 0 <= result[f"scenes/{row}/{metric}"] <= 100
    assert result["scenes/oracle/recall_at_1"] > 95 and "scenes/oracle/unseen_recall_at_1" not in result
    assert result["phi/best_step"] in (1, 2) and result["rtd/best_step"] == 1
    assert 0 <= result["rtd/val/recall"] <= result["rtd/val/recall_at_10"] <= 100


def test_a_run_leaves_what_can_be_used(finished, clip):
    path, result = finished
    network, tuned = phi.load(path / "phi.safetensors"), clip_jax.load(path / "clip")
    phi.check_fits(network, clip.config)
    assert network.module.unit_inputs  # it is in the file
    trained, before = jax.device_get(tuned.params), jax.device_get(clip.params)
    same = jax.tree.map(lambda a, b: np.array_equal(a, np.asarray(b, np.float32)), trained["image"], before["image"])
    assert all(jax.tree.leaves(same))
    moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), trained["text"], before["text"])
    assert all(change > 0 for change in jax.tree.leaves(moved))
    again = evaluation.measure(
        clip, sources.tasks(tiny.config().evaluation, seed=0), network=network, tuned=tuned, batch_size=256
    )
    assert again == {key: value for key, value in result.items() if key.startswith("scenes/")}
    assert (path / "artifacts" / "retrieved-scenes.png").stat().st_size > 10_000
    shown = (path / "table.md").read_text()
    assert "| φ + RTD | " in shown and "R@1, unseen phrasing" in shown


def test_running_again_trains_nothing(finished):
    path, result = finished
    (path / "phi" / "metrics.jsonl").write_text("")
    run = Run.open(path, tiny.config())
    try:
        assert experiment.run(run.config, run) == pytest.approx(result)
    finally:
        run.close()
    assert (path / "phi" / "metrics.jsonl").read_text() == ""


def test_phi_from_a_file_and_no_rtd(finished, tmp_path):
    path, result = finished
    config = tiny.config(phi__load=str(path / "phi.safetensors"), rtd__train=False)
    run = Run.open(tmp_path, config)
    try:
        found = experiment.run(run.config, run)
    finally:
        run.close()
    assert found["scenes/phi/recall_at_5"] == result["scenes/phi/recall_at_5"]
    assert not any("rtd" in key for key in found) and not (tmp_path / "clip").exists()


def test_unused_tokens_follow_from_decay_alone(clip):
    """Against training the whole table: the rows of tokens that no triplet has only shrink."""
    config = tiny.config()
    trained, _ = sources.triplets(config.triplets, seed=0)
    objective = rtd_stage.step.Objective()
    table = rtd_stage.make_table(clip, objective, trained, batch_size=64, cache=None)
    tower, local = rtd_stage.restrict(clip, table)
    assert set(local.ids) == {"ids"} and local.ids["ids"].max() < len(tower.restricted.kept)
    back = tower.with_params({"text": tower.params}, 0.5)
    before, after = np.asarray(clip.params["text"]["tokens"]), np.asarray(back.params["text"]["tokens"])
    used = np.unique(table.ids["ids"])
    np.testing.assert_array_equal(after[used], before[used])
    np.testing.assert_allclose(after[clip.tokenizer.vocab_size // 2], 0.5 * before[clip.tokenizer.vocab_size // 2])


def test_validation_counts_ties_against_the_model(clip):
    """A text encoder that says the same to everything finds nothing."""
    _, val = sources.triplets(tiny.config().triplets, seed=0)
    network = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    text = jax.tree.map(np.zeros_like, jax.device_get(clip.params["text"]))
    text["projection"] = clip.params["text"]["projection"]
    text["final_norm"] = {"scale": text["final_norm"]["scale"], "bias": np.ones_like(text["final_norm"]["bias"])}
    tower = rtd_stage.Tower(replace(clip, params={**clip.params, "text": text}), None)  # the gallery's, too: all tie
    evaluate = rtd_stage.validation(tower, network, val, lambda steps: 1.0, batch_size=64, cache=None)
    # one may be nearest by rounding
    assert evaluate(State(np.int32(0), {"text": text}, ()))["val/recall"] <= 100 / len(val)


def test_submissions_are_written(clip, tmp_path, monkeypatch):
    from tests.rtd_jax.test_data import make_cirr  # the same handmade release

    make_cirr(tmp_path / "cirr", "test1")
    config = tiny.config(
        evaluation__benchmarks=("cirr",), evaluation__roots__cirr=str(tmp_path / "cirr"),
        evaluation__splits__cirr="test1", rtd__train=False,
    )  # fmt: skip
    network = phi.init("phi", clip.config.projection, clip.config.text.width, jax.random.key(0))
    phi.save(network, tmp_path / "phi.safetensors")
    config.phi.load = str(tmp_path / "phi.safetensors")
    run = Run.open(tmp_path / "run", config)
    try:
        assert experiment.run(run.config, run) == {}
    finally:
        run.close()
    answers = json.loads((tmp_path / "run/artifacts/submissions/cirr_recall.json").read_text())
    assert len(answers["7"]) == 50 and answers["metric"] == "recall"


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"phi__method": "gan"}, "phi.method='gan': there are lincir, pic2word, searle"),
        ({"evaluation__benchmarks": ("cirr",)}, "set evaluation.roots.cirr"),
        ({"evaluation__benchmarks": ("cir",)}, "unknown benchmark 'cir'; there are cirr"),
        ({"captions__source": "web"}, "captions.source='web': there are file, scenes"),
    ],
)
def test_configs_without_sense(tmp_path, fields, message):
    run = Run.open(tmp_path, tiny.config(**fields))
    try:
        with pytest.raises(ValueError, match=message):
            experiment.run(run.config, run)
    finally:
        run.close()


def test_phi_of_another_clip_is_refused(tmp_path):
    phi.save(phi.init("phi", 12, 96, jax.random.key(0)), tmp_path / "phi.safetensors")
    run = Run.open(tmp_path / "run", tiny.config(phi__load=str(tmp_path / "phi.safetensors")))
    try:
        with pytest.raises(ValueError, match=r"width 12 .* width 64"):
            experiment.run(run.config, run)
    finally:
        run.close()


def test_comparison_shares_a_phi_and_keeps_fields_apart(finished, tmp_path, monkeypatch):
    """Members get their own fields and the seed's φ; the stages themselves are stood in for."""
    seen = []

    def stand_in(config, run):
        seen.append(config)
        rows = ("image", "phi", "oracle", *(["rtd"] if config.rtd.train else []))
        return {f"scenes/{row}/recall_at_1": 10.0 * config.seed + len(row) for row in rows}

    monkeypatch.setattr(experiment, "run", stand_in)
    config = tiny.config()
    config.experiment = "rtd_jax.comparison"
    config.comparison = {"seeds": (0, 2), "variants": (("A", ()), ("B", (("rtd.objective.hard_negatives", False),)))}
    run = Run.open(tmp_path, config)
    try:
        result = comparison.run(run.config, run)
    finally:
        run.close()
    assert [c.rtd.train for c in seen] == [False, True, True] * 2
    assert [c.rtd.objective.hard_negatives for c in seen] == [True, True, False] * 2
    assert [c.seed for c in seen] == [0, 0, 0, 2, 2, 2] and not seen[3].phi.load
    assert seen[4].phi.load.endswith("phi-seed2/phi.safetensors")
    assert result["B/scenes/rtd/recall_at_1"] == 13.0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0].strip("| ") for line in lines[2:]] == [
        "image only", "φ", "φ + A", "φ + B", "oracle: the target's caption",
    ]  # fmt: skip
    assert "| φ + B | 13.0 ± 14.1 |" in lines
    assert (tmp_path / "artifacts" / "recall.png").stat().st_size > 1000


def test_table_of_one_run():
    own = {"cirr/phi/recall_at_1": 12.34, "cirr/phi/subset_recall_at_2": 5.0}
    shown = tables.one_run({**own, "cirr/image/recall_at_1": 1})
    assert shown.splitlines() == [
        "| cirr | R@1 | subset R@2 |", "|---|---|---|", "| image only | 1.0 |  |", "| φ | 12.3 | 5.0 |",
    ]  # fmt: skip
