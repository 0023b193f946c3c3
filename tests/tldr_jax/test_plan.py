"""Plans: which fields reach which stages, what is refused before anything is computed, what sweeps share."""

import dataclasses

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

import clip_jax
from configs.tldr import scenes
from launch import train
from launch.run import flatten
from launch.stages import SettingError, walk
from launch.store import Store
from launch.training.sharding import layout
from tests.tldr_jax.small import CONFIG, changed
from tldr_jax import datasets, experiment, words
from tldr_jax.classifier import erm
from tldr_jax.stages import text

SCENES = FrozenConfigDict(scenes.get_config())
TEXT = {"KeptWords", "Heads", "Diagnostics", "Comparison"}
OF_CLIP = {"FrozenClip", "EmbeddedWords", "ZeroShot", "Gap"}
FROM_CLIP = {"ClipImages", "ImageMoments", "LinearProjector", "NetworkProjector", *TEXT}
PROJECTORS = {"ImageMoments", "LinearProjector", "NetworkProjector", *TEXT}
FROM_FEATURES = {"Features", "Dfr", "ClassBalanced", "Afr", *PROJECTORS}
FROM_ERM = {"Erm", "ErmHead", *FROM_FEATURES}


def keys(config):
    return {stage.key: type(stage).__name__ for stage in walk(experiment.plan(config))}


@pytest.mark.parametrize(
    ("field", "value", "reached"),
    [
        ("retrain.learning_rate", 0.5, {"Heads", "Comparison"}),
        ("words.junk", 0.25, {"EmbeddedWords", *TEXT}),
        ("words.clip_filter", False, TEXT),
        ("text.templates", "photo", {"EmbeddedWords", "ZeroShot", *TEXT}),
        ("projector.ridge", 1.5, {"LinearProjector", *TEXT}),
        ("projector.mlp.hidden", 7, {"NetworkProjector", "KeptWords", "Heads", "Comparison"}),
        ("gap.pairs", 7, {"Gap", "LinearProjector", "NetworkProjector", *TEXT}),
        ("dfr.draws", 3, {"Dfr", "Comparison"}),
        ("afr.steps", 300, {"Afr", "Comparison"}),
        ("class_balanced.seed", 3, {"ClassBalanced", "Comparison"}),
        ("seed", 9, FROM_ERM),
        ("pretrain.seed", 9, {"Pretraining", *FROM_ERM}),
        ("data.flip", True, FROM_ERM),
        ("precision", "highest", {"Pretraining", *FROM_ERM, *OF_CLIP, *FROM_CLIP}),
        ("embedding.dtype", "bfloat16", {*FROM_FEATURES, *OF_CLIP, *FROM_CLIP}),
        ("data.test_examples", 400, {"ImageSplit", "Features", "ClipImages", "Comparison"}),
        ("data.correlation", 0.9, {"ImageSplit", "ClipImages", *FROM_ERM}),
        ("erm.select", "best_wga", FROM_ERM),
        ("erm.eval_every", "1 epoch", set()),  # the last checkpoint is the result
        ("baselines", ("erm",), {"Comparison"}),
        ("data.workers", 3, set()),
        ("evaluation.batch_size", 3, set()),
        ("clip.batch_size", 3, set()),
        ("erm.log_every", 3, set()),
        ("pretrain.checkpoint_every", "9 steps", set()),
    ],
)
def test_a_field_reaches_exactly_the_stages_that_depend_on_it(field, value, reached):
    before, after = keys(SCENES), keys(changed(SCENES, {field: value}))
    assert {name for key, name in after.items() if key not in before} == reached


def test_a_clip_and_a_word_list_count_by_their_content(tmp_path):
    before = keys(SCENES)
    clip = clip_jax.load(clip_jax.embedded("scenes"))
    clip_jax.save(clip, tmp_path / "clip")
    other = keys(changed(SCENES, {"clip.source": str(tmp_path / "clip")}))
    reached = {name for key, name in other.items() if key not in before}
    assert reached == {*OF_CLIP, *FROM_CLIP}
    words.save(words.load("scenes"), tmp_path / "same.json")
    assert keys(changed(SCENES, {"words.source": str(tmp_path / "same.json")})) == before
    fewer = words.load("scenes").replaced("target", words.load("scenes").listed("target") | {"curved": ("ring",)})
    words.save(fewer, tmp_path / "fewer.json")
    after = keys(changed(SCENES, {"words.source": str(tmp_path / "fewer.json")}))
    assert {name for key, name in after.items() if key not in before} == {"EmbeddedWords", *TEXT}


OTHERS = {  # another valid value where adding to the present one would not be one
    "data.name": "waterbirds",
    "precision": "highest",
    "backbone.name": "resnet50",
    "backbone.mean": (0.4, 0.4, 0.4),
    "backbone.std": (0.4, 0.4, 0.4),
    "backbone.dtype": "bfloat16",
    "embedding.dtype": "bfloat16",
    "data.preparation": "center",
    "sharding.mode": "pmap",
    "erm.select": "best_wga",
    "erm.init_from": __file__,
    "erm.held_out": 0.1,
    "data.correlation": 0.9,
    "data.train_examples": 100,  # at least a batch
    "gap.source": "coco",
    "gap.split": "test",
    "projector.kind": "mlp",
    "text.templates": "photo",
    "words.contested": 0.1,
    "words.junk": 0.1,
    "words.source": None,  # a file, see below
    "clip.source": "openai/clip-vit-base-patch16",
    "baselines": ("erm",),
    "ablations": ("no_gap",),
    "retrain.schedule": "constant",
    "retrain.grid.seed": (3,),
    "retrain.grid.gap_rows": (3,),
    "retrain.grid.filters": ("none",),
    "dfr.penalties": (0.5,),
    "class_balanced.penalties": (0.5,),
    "afr.evaluations": 20,
    "afr.steps": 1000,
    "afr.gammas": (1.0,),
    "afr.ridges": (1.0,),
}


def another(name, value):
    """A value of a field that differs from `value` and is valid."""
    if name.endswith(("optimizer.name", "schedule.name")):
        return {"adamw": "adam", "cosine": "constant"}[value]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 + 0.25
    if isinstance(value, int):
        return value + 1
    if isinstance(value, tuple):
        return (0.5,)
    return "7 steps" if value.endswith(("steps", "epochs", "epoch")) else f"{value}x"


def test_every_field_of_a_config_reaches_the_plan(tmp_path):
    """It is in the key of a stage, or a `free` field of one."""
    fewer = words.load("scenes").replaced("target", words.load("scenes").listed("target") | {"curved": ("ring",)})
    words.save(fewer, tmp_path / "fewer.json")
    others, plan = OTHERS | {"words.source": str(tmp_path / "fewer.json")}, experiment.plan(SCENES)
    free = set()
    for name, value in flatten(SCENES).items():
        if name == "experiment":
            continue
        overrides = {name: others.get(name) or another(name, value)}
        if name == "data.name":
            overrides |= {"pretrain.duration": "0 steps", "words.source": "waterbirds"}
        if name in ("data.image_size", "data.preparation"):
            overrides |= {"data.name": "waterbirds", "pretrain.duration": "0 steps", "words.source": "waterbirds"}
        new = experiment.plan(changed(SCENES, overrides))
        assert new != plan, f"nothing depends on {name}"
        if new.key == plan.key:
            free.add(name)
    cadence = {"log_every", "eval_every", "checkpoint_every", "steps_per_call"}
    expected = {f"{part}.{name}" for part in ("erm", "pretrain") for name in cadence}
    assert free == expected | {"data.workers", "clip.batch_size", "evaluation.batch_size"}


WATERBIRDS = {"data.name": "waterbirds", "pretrain.duration": "0 steps", "words.source": "waterbirds"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"ablations": ("no_words",)}, "ablations has 'no_words'; valid names: 'no_gap'"),
        ({"baselines": ("jtt",)}, "baselines has 'jtt'; valid names: 'erm', 'zero_shot'"),
        ({"erm.select": "best"}, "erm.select='best'; valid names: 'last', 'best_accuracy', 'best_wga'"),
        ({"projector.kind": "cubic"}, "projector.kind='cubic'; valid names: 'linear', 'mlp'"),
        ({"gap.source": "flickr"}, "gap.source='flickr'; valid names: 'coco'"),
        ({"gap.source": "none"}, "set projector.gap_rows=0"),
        ({"gap.source": "none", "retrain.grid.gap_rows": (0,)}, "set projector.gap_rows=0"),
        ({"retrain.grid.gap_rows": (1, 21)}, "retrain.grid.gap_rows=21: 0 to gap.pairs=20"),
        ({"projector.gap_rows": -1}, "projector.gap_rows=-1: 0 to gap.pairs=20"),
        ({"projector.kind": "mlp", "retrain.grid.ridge": (1.0,)}, "an mlp projector has no ridge"),
        ({"projector.ridge": -1.0}, "projector.ridge=-1.0: a finite number, at least 0"),
        ({"projector.ridge": float("nan")}, "projector.ridge=nan: must be a finite number"),
        ({"retrain.grid.ridge": (1.0, -2.0)}, "retrain.grid.ridge=-2.0: a finite number, at least 0"),
        ({"retrain.grid.learning_rate": (-1.0,)}, "retrain.grid.learning_rate=(-1.0,): finite and at least 0"),
        ({"projector.mlp.steps": 0}, "projector.mlp.steps=0: at least 1"),
        ({"text.templates": "x"}, "text.templates='x'; valid names: 'imagenet'"),
        ({"words.source": "birds"}, "unknown word set 'birds'"),
        ({"words.source": "waterbirds"}, "the classes landbird, waterbird; those of scenes are, in this order, curved"),
        ({"words.junk": 0.9}, "words.junk=0.9: 90% junk"),
        ({"retrain.duration": "6"}, "cannot read the duration '6'"),
        ({"retrain.evaluations": 0}, "retrain.evaluations=0"),
        ({"retrain.schedule": "step"}, "retrain.schedule='step'; valid names: 'constant', 'cosine'"),
        ({"erm.held_out": 1.0}, "erm.held_out=1.0: a share of the training images"),
        ({"erm.batch_size": 0}, "erm.batch_size=0: at least 1"),
        ({"erm.batch_size": 65}, "erm.batch_size=65: more than the 64 training images"),
        ({"erm.batch_size": 52, "erm.held_out": 0.2}, "erm.batch_size=52: more than the 51 training images"),
        ({"pretrain.batch_size": 65}, "pretrain.batch_size=65: more than the 64 training images"),
        ({"gap.source": "coco", "gap.path": "/no/file.json"}, "'gap.images': is empty; the annotations' JSON file"),
        (
            {"gap.source": "coco", "gap.path": "/no/file.json", "gap.images": "/no"},
            "/no/file.json, 'gap.path': no such",
        ),
        (WATERBIRDS | {"data.path": "/no/folder"}, "/no/folder, 'data.path': no such file or folder"),
        (WATERBIRDS | {"data.path": __file__}, "'data.path': is a file; a folder is needed"),
        ({"erm.optimizer.learning_rate": -1.0}, "erm.optimizer.learning_rate=-1.0"),
        ({"erm.init_from": "nowhere.safetensors"}, "set erm.init_from"),
        ({"pretrain.duration": "0 steps", "data.name": "birds"}, "data.name='birds'; valid names: 'celeba'"),
        ({"data.image_size": 224}, "data.image_size=224: Scenes has images of 32 pixels"),
        ({"data.image_size": 0}, "set data.image_size=224, for example"),
        ({"data.crop_padding": -1}, "data.crop_padding=-1: at least 0"),
        ({"data.val_examples": 0}, "data.val_examples=0: at least 1"),
        ({"data.name": "waterbirds", "words.source": "waterbirds"}, "pretrain.duration='1 steps': attributes are"),
        ({"backbone.name": "vit_b16"}, "set data.image_size=224"),
        ({"backbone.name": "vit"}, "backbone.name='vit'; valid names: 'resnet50'"),
        ({"backbone.std": (0.0, 1.0, 1.0)}, "backbone.std=(0.0, 1.0, 1.0): three values"),
        ({"sharding.mode": "mpi"}, "sharding.mode='mpi'; valid names: 'jit', 'pmap'"),
        ({"dfr.penalties": ()}, "dfr.penalties=(): at least one C"),
        ({"afr.evaluations": 3}, "afr.evaluations=3: must divide afr.steps=2"),
    ],
)
def test_what_could_only_fail_after_training_is_refused_before_it(overrides, message):
    with pytest.raises(ValueError) as refused:
        experiment.plan(changed(CONFIG, overrides))
    assert message in str(refused.value)


def test_a_setting_that_does_not_exist_is_refused():
    config = ConfigDict(CONFIG.to_dict())
    config.projector.mlp.hiden = 3
    with pytest.raises(SettingError, match=r"projector\.mlp\.hiden: no such setting; .* has hidden"):
        experiment.plan(config)


def test_ablations_replace_parts_of_the_plan():
    methods = dict(experiment.plan(SCENES).methods)
    base, no_gap, network = methods["tldr"], methods["no_gap"], methods["mlp_projector"]
    assert no_gap.projectors == (dataclasses.replace(base.projectors[0], gap=None, gap_rows=0),)
    assert no_gap.words.projector == no_gap.projectors[0] and no_gap.words.embedded == base.words.embedded
    assert isinstance(network.projectors[0], text.NetworkProjector)
    assert network.words.projector == network.projectors[0]
    assert not methods["no_clip_filter"].words.clip_filter and methods["no_clip_filter"].words.projector is not None
    assert methods["no_classifier_filter"].words.projector is None and methods["no_classifier_filter"].words.clip_filter
    grid = changed(SCENES, {"retrain.grid.gap_rows": (0, 1, 5), "retrain.grid.ridge": (4.0, 40.0)})
    methods = dict(experiment.plan(grid).methods)
    assert [(own.ridge, own.gap_rows) for own in methods["tldr"].projectors] == [
        (ridge, rows) for ridge in (4.0, 40.0) for rows in (0, 1, 5)
    ]
    assert [own.ridge for own in methods["no_gap"].projectors] == [4.0, 40.0]
    assert [own.gap_rows for own in methods["mlp_projector"].projectors] == [0, 1, 5]


def test_held_out_training_images():
    seen, unseen = erm.held_out(50, 0.2, seed=0)
    assert len(unseen) == 10 and sorted([*seen, *unseen]) == list(range(50))
    assert erm.held_out(50, 0.0, seed=0)[1].size == 0
    own = experiment.plan(changed(CONFIG, {"erm.held_out": 0.2})).train.erm
    np.testing.assert_array_equal(own.rows(50)[1], unseen)
    assert own.training_data().count == 51  # of 64


def test_coco_without_files_is_refused_before_the_classifier_is_trained(tmp_path):
    plan = experiment.plan(changed(CONFIG, {"gap.source": "coco"}))
    store = Store(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"'gap\.path': is empty; the annotations' JSON file"):
        store.get(plan)
    assert not store.has(plan.train.erm.start)


def test_a_group_that_cannot_be_evaluated_is_named(tmp_path):
    plan = experiment.plan(changed(CONFIG, {"data.val_examples": 2}))
    with pytest.raises(ValueError, match=r"there is no val image of (curved|angular) with (land|water): its accuracy"):
        Store(tmp_path).get(plan.train.erm.val)


def test_programs_need_no_data():
    """Of every config, at the published size; steps of the declared images."""
    import jax

    from configs.tldr import waterbirds_resnet50

    real = experiment.plan(FrozenConfigDict(waterbirds_resnet50.get_config())).train.erm
    program = real.program(layout(devices=jax.devices()[:1]))
    assert program.batch["image"].shape == (32, 224, 224, 3) and program.resident is None
    assert real.training_data().count == datasets.TRAIN_EXAMPLES["waterbirds"] == 4795
    for stage in (own := experiment.plan(SCENES).train.erm, own.start):
        program = stage.program(layout(devices=jax.devices()[:1]))
        assert set(program.numbers) == {"optimizer.learning_rate", "optimizer.weight_decay", "seed"}
        batch = {**program.batch, "resident": program.resident}
        state, metrics = jax.eval_shape(program.step, program.numbers, program.state, batch)
        assert jax.tree.structure(state) == jax.tree.structure(program.state)
        assert set(metrics) == {"loss", "gradient_norm"}


def test_a_sweep_of_seeds_and_ablations_makes_each_shared_stage_once(tmp_path, monkeypatch):
    """Two classifiers and their data, three ablations, in run directories of their own with one store."""
    made = []
    put = Store.put
    monkeypatch.setattr(Store, "put", lambda self, stage, *rest: made.append(stage) or put(self, stage, *rest))
    small = {"baselines": ("erm", "zero_shot"), "ablations": (), "pretrain.duration": "0 steps"}
    ablations = ({}, {"projector.gap_rows": 0}, {"words.clip_filter": False})
    for seed in (0, 1):
        for number, ablation in enumerate(ablations):
            config = changed(CONFIG, small | ablation | {"seed": seed, "data.seed": seed})
            train.execute(config, str(tmp_path / f"{seed}-{number}"), store=str(tmp_path / "store"))
    names = [type(stage).__name__ for stage in made]
    assert len({stage.key for stage in made}) == len(made)  # nothing twice
    counts = {name: names.count(name) for name in set(names)}
    assert counts == {
        "Erm": 2,
        "ErmHead": 2,
        "Features": 6,
        "ClipImages": 6,
        "ImageMoments": 2,
        "Gap": 1,
        "EmbeddedWords": 1,
        "ZeroShot": 1,
        "KeptWords": 2,  # no filter looks at the classifier
        "Heads": 6,
        "Diagnostics": 6,
        "Comparison": 6,
    }


@pytest.mark.parametrize("overrides", [{"projector.ridge": 0.0}, {"retrain.grid.ridge": (1.0, 0.0)}])
def test_more_dimensions_than_images_need_a_ridge(overrides, tmp_path):
    """It is refused before the run directory is made; with as many images it is not."""
    small = {"data.train_examples": 32, "retrain.grid.learning_rate": ()}
    with pytest.raises(SettingError, match=r"^ridge=0\.0: 32 training images .* 64 .* set projector\.ridge"):
        train.execute(changed(CONFIG, {**overrides, **small}), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    enough = experiment.plan(changed(CONFIG, overrides))
    train.preflight(enough, Store(tmp_path / "store"))
