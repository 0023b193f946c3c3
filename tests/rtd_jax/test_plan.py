"""What a field of the config reaches: every one some stage, a late one only what follows; members of a sweep share."""

import itertools

import jax
import pytest
from ml_collections import ConfigDict

from configs.rtd import scenes_comparison
from launch.run import flatten
from launch.stages import SettingError, walk
from launch.store import Store
from rtd_jax import experiment, phi
from rtd_jax.text import masking
from tests.rtd_jax import tiny
from tests.rtd_jax.benchmarks.test_data import make_circo, make_cirr, make_fashioniq, make_genecis

# These change how fast a result is made, or how often it is logged and saved, not what it is.
FREE = {
    "model.remat",
    "model.unroll",
    "sharding.model",
    "sharding.fsdp",
    "evaluation.batch_size",
    "phi.loop.log_every",
    "phi.loop.checkpoint_every",
    "phi.loop.steps_per_call",
    "rtd.loop.log_every",
    "rtd.loop.checkpoint_every",
    "rtd.loop.steps_per_call",
}
# Another valid value of fields for which no rule of `other` gives one.
VALUES = {
    "clip": "owner/name",
    "precision": "highest",
    "checkpoint_dtype": "float16",
    "model.dtype": "bfloat16",
    "embedding.dtype": "bfloat16",
    "evaluation.dtype": "bfloat16",
    "phi.method": "pic2word",
    "phi.dtype": "bfloat16",
    "phi.dropout": 0.25,
    "best_by": "held_back",
    "captions.matcher": "lexicon",
    "captions.keywords": "published",
    "phi.batches": "shuffled",
    "rtd.batches": "shuffled",
    "sharding.mode": "pmap",
    "rtd.objective.negatives": "global",
    "rtd.objective.concatenation": "plain",
    "evaluation.target_pad": "yes",
    "images.target_pad": "yes",
    "evaluation.genecis_tasks": ("change_object",),
    "evaluation.splits.cirr": "test1",
    "evaluation.splits.circo": "test",
}
# The module of the plan; φ's file, tested by itself; a split of which there is one.
ELSEWHERE = {"experiment", "phi.load", "evaluation.splits.fashioniq"}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files and folders for every field that names one, twice, with different contents."""
    root = tmp_path_factory.mktemp("files")
    for version in ("a", "b"):
        folder = root / version
        make_cirr(folder / "cirr", "val")
        make_circo(folder / "circo", "val")
        make_fashioniq(folder / "fashioniq")
        make_genecis(folder / "genecis")
        (folder / "captions.txt").write_text("\n".join(f"a dog {version} {i}" for i in range(30)))
        row = '{{"reference_caption": "a {0}", "conditioning_caption": "is {1}", "target_caption": "b {0}"}}\n'
        (folder / "triplets.jsonl").write_text("".join(row.format(i, version) for i in range(30)))
    return root


def paths(folder):
    """The fields that name files and folders."""
    return {
        "captions.path": str(folder / "captions.txt"),
        "images.path": str(folder),
        "triplets.path": str(folder / "triplets.jsonl"),
        "evaluation.roots.cirr": str(folder / "cirr"),
        "evaluation.roots.circo": str(folder / "circo"),
        "evaluation.roots.fashioniq": str(folder / "fashioniq"),
        "evaluation.roots.genecis": str(folder / "genecis" / "templates"),
        "evaluation.genecis_images.visual_genome": str(folder / "genecis" / "vg"),
        "evaluation.genecis_images.coco": str(folder / "genecis" / "coco"),
    }


def configs(files):
    """Configs in which, taken together, every field means something."""
    every = ("cirr", "circo", "fashioniq", "genecis", "scenes")
    one = tiny.config(evaluation__benchmarks=every)
    one.update_from_flattened_dict(paths(files / "a"))
    changes = [
        {},
        {"phi.method": "pic2word"},
        {"phi.method": "searle"},
        {"captions.source": "file", "images.source": "folder", "triplets.source": "file"},
        {"phi.method": "pic2word", "images.source": "folder"},
        {"rtd.restrict_vocabulary": False},
    ]
    made = [ConfigDict(one.to_dict()) for _ in changes]
    for config, change in zip(made, changes, strict=True):
        config.update_from_flattened_dict(change)
    return made


def other(name, value, files):
    """Another valid value of a field."""
    elsewhere = paths(files / "b")
    if name in elsewhere:
        return elsewhere[name]
    if name in VALUES:
        return VALUES[name]
    if name.endswith("source"):
        return {"scenes": "folder" if name.startswith("images") else "file"}.get(value, "scenes")
    if name.endswith("optimizer.name"):
        return "sgd"
    if name.endswith("schedule.name"):
        return "constant"
    if name.endswith("milestones"):
        return ("1 steps",)
    if name == "evaluation.benchmarks":
        return ("scenes",)
    if name.endswith("decay_mask"):
        return ()
    if name == "phi.phrases":
        return ("a {}",)
    if name == "captions.column":
        return "text"
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "3 steps"  # the durations
    return value + 1 if value < 0.5 or isinstance(value, int) else value / 2


def keys_of(config):
    return {stage.key for stage in walk(experiment.plan(config))}


def reaches(name, config, files):
    """Whether a stage has another key where a field of the config has another value."""
    new, old = other(name, flatten(config)[name], files), flatten(config)[name]
    assert new != old, name
    changed = ConfigDict(config.to_dict())
    changed.update_from_flattened_dict({name: new})
    try:
        return keys_of(changed) != keys_of(config)
    except SettingError:  # in this config; another has to take it
        return False


def test_every_field_reaches_a_stage_or_is_free(files, monkeypatch):
    """Changed by itself, in one of the configs at least."""
    monkeypatch.setattr(masking, "_spacy_model", lambda: "installed")  # "auto" is not "lexicon"
    every = [name for name in flatten(tiny.config()) if name not in ELSEWHERE]
    unreached = {name for name in every if not any(reaches(name, config, files) for config in configs(files))}
    assert unreached == FREE


def test_phi_counts_by_the_content_of_its_file(tmp_path):
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for path, seed in zip(files, (0, 0, 1), strict=True):
        phi.save(phi.init("phi", 64, 64, jax.random.key(seed)), path)
    one, same, another = (keys_of(tiny.config(phi__load=str(path))) for path in files)
    assert one == same != another


def test_a_late_field_redoes_what_it_reaches(tmp_path):
    """Counted by the stages that a store makes."""
    path, used = tmp_path / "store", lambda **fields: _made(path, tiny.config(**fields))
    everything = used()
    assert sorted(everything) == [
        "caption_table",
        "gallery_embeddings",
        "lincir_phi",
        "task_evaluation",
        "task_evaluation",
        "triplet_embeddings",
        "tuning",
    ]
    gallery = ["gallery_embeddings", "task_evaluation", "task_evaluation"]
    assert used() == []
    assert used(evaluation__scenes__queries=21) == gallery
    assert used(evaluation__target_pad="yes") == gallery
    assert used(checkpoint_dtype="float16") == ["task_evaluation"]
    assert used(evaluation__batch_size=8, model__remat="yes", rtd__loop__log_every=1) == []
    assert used(rtd__objective__temperature=0.1) == ["tuning", "task_evaluation"]
    assert used(rtd__train=False) == []
    assert used(images__train_examples=5) == []  # LinCIR reads none
    assert sorted(used(triplets__val_examples=20)) == ["task_evaluation", "triplet_embeddings", "tuning"]
    assert sorted(used(phi__noise=0.5)) == ["lincir_phi", "task_evaluation", "task_evaluation", "tuning"]


def test_members_of_a_sweep_share(tmp_path):
    """2 seeds × 2 variants: one φ, one gallery and one table of the published encoder for each seed."""
    made = []
    for seed, negatives in itertools.product((0, 1), (True, False)):
        config = tiny.config(seed=seed, rtd__objective__hard_negatives=negatives)
        made += _made(tmp_path / "store", config)
    count = {name: made.count(name) for name in made}
    assert count == {
        "caption_table": 2,
        "lincir_phi": 2,
        "triplet_embeddings": 2,
        "gallery_embeddings": 2,
        "tuning": 4,
        "task_evaluation": 2 + 4,
    }


def _made(path, config):
    store = Store(path)
    store.get(experiment.plan(config))
    return tiny.made(store)


def test_the_comparison_is_a_sweep_that_shares():
    """Twelve members, three φ."""
    roots = []
    for overrides in scenes_comparison.sweep():
        config = scenes_comparison.get_config()
        config.update_from_flattened_dict(overrides)
        roots.append(experiment.plan(config))
    distinct = lambda stages: len({stage.key for stage in stages})
    assert len(roots) == distinct(root.tuned.tuning for root in roots) == 12
    assert distinct(root.phi for root in roots) == 3
    assert distinct(root.evaluations[0] for root in roots) == 3


def test_seeds_and_other_numbers_are_one_stack():
    """Members that differ in numbers alone have one program."""
    key = lambda **fields: experiment.plan(tiny.config(**fields)).stack_key
    numbers = {"seed": 3, "phi__noise": 0.5, "rtd__objective__temperature": 0.2, "rtd__optimizer__learning_rate": 1e-4}
    assert key() == key(**numbers)
    assert key() != key(phi__unit_inputs=False)
    assert key() != key(rtd__optimizer__clip_norm=1.0) == key(rtd__optimizer__clip_norm=2.0)


@pytest.mark.parametrize("method, setting, padded", [
    ("lincir", "auto", False), ("pic2word", "auto", False), ("searle", "auto", True), ("searle", "no", False),
    ("lincir", "yes", True)])  # fmt: skip
def test_images_are_padded_for_searle_alone_unless_asked_for(method, setting, padded):
    config = tiny.config(phi__method=method, evaluation__target_pad=setting, images__target_pad=setting)
    pads = {stage.target_pad for stage in walk(experiment.plan(config)) if hasattr(stage, "target_pad")}
    assert pads == {padded}
