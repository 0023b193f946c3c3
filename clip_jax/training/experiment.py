"""Train a CLIP on image-caption pairs, from scratch or from a checkpoint, keep the best on validation, measure it.

Configs: `configs/clip/`. Method: Radford et al. 2021, https://arxiv.org/abs/2103.00020. The trained CLIP is the folder
`clip` of the run directory, for `clip_jax.load` and transformers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging
from flax import traverse_util
from jax.experimental import multihost_utils

import clip_jax
from clip_jax import losses, model, preprocess, tokenizer
from clip_jax import sharding as partition
from clip_jax.config import ClipConfig, ImageTower, TextTower
from clip_jax.training import attributes, composition, measures, pairs, sources
from launch.data import images as image_files
from launch.data import scenes
from launch.data.scenes import world
from launch.run import Run
from launch.training import checkpoint, keys, loop, optim, sharding
from launch.training.state import State

MAX_LOGIT_SCALE = float(np.log(100))  # the temperature stays above 0.01 (Radford et al. 2021, section 2.5)
METRICS = tuple(f"val/{name}" for name in ("recall", "image_to_text_recall_at_1", "text_to_image_recall_at_1"))


def checkpoint_folder(workdir: str | Path) -> Path:
    """Where a finished run's CLIP is."""
    return Path(workdir) / "clip"


# -- the CLIP that training starts from -------------------------------------------------------


def create_clip(config) -> clip_jax.Clip:
    """`config.init_from`, or a fresh CLIP of the sizes in `config.model`; parameters on the host."""
    compute = dict(dtype=config.model.dtype, remat=config.model.remat, unroll=config.model.unroll or 1)
    if config.init_from:
        clip = clip_jax.load(_source(config.init_from), put=lambda path, leaf: leaf)
        clip = replace(clip, config=replace(clip.config, **compute))
        if clip.tokenizer is None:
            raise FileNotFoundError(f"init_from={config.init_from!r} came without tokenizer files: captions need them")
        return clip
    words = _tokenizer(config)
    size = config.model.image.image_size
    tower = dict(activation=config.model.activation, norm_eps=1e-5)
    architecture = ClipConfig(
        image=ImageTower(**tower, **config.model.image),
        text=TextTower(
            **tower,
            **config.model.text,
            vocab_size=words.vocab_size,
            end_rule="eos_token_id",
            eos_token_id=words.end_id,
            bos_token_id=words.start_id,
            pad_token_id=words.pad_id,
        ),
        projection=config.model.projection,
        **compute,
    )
    params = jax.device_get(model.init(architecture, keys.stream(config.seed, "init")))
    return clip_jax.Clip(architecture, params, words, preprocess.Preprocessing(size=size, crop=size))


def _source(name: str) -> str | Path:
    prefix = "embedded:"
    return clip_jax.embedded(name.removeprefix(prefix)) if name.startswith(prefix) else name


def _tokenizer(config) -> tokenizer.Tokenizer:
    length = config.model.text.context_length
    if config.model.tokenizer_from:
        words = clip_jax.load(_source(config.model.tokenizer_from), put=lambda path, leaf: leaf).tokenizer
        if words is None or words.context_length != length:
            found = f"a context length of {words.context_length}" if words else "no tokenizer"
            raise ValueError(
                f"model.tokenizer_from={config.model.tokenizer_from!r} has {found}; "
                f"model.text.context_length={length} is asked for"
            )
        return words
    if config.data.name != "scenes":
        raise ValueError(
            f"a fresh CLIP on data.name={config.data.name!r} needs a tokenizer: set model.tokenizer_from to a "
            "checkpoint that has one, or init_from to fine-tune a checkpoint"
        )
    return tokenizer.build(scenes.vocabulary(), context_length=length)


# -- a step -----------------------------------------------------------------------------------


def create_state(params: Any, optimizer: optax.GradientTransformation, trainable) -> State:
    """The initial state, on the host.

    Args:
      params: of the whole CLIP.
      optimizer: of the parameters that are trained.
      trainable: regular expressions over parameter paths such as "image/patch/kernel"; those that none matches stay.

    Raises:
      ValueError: an expression that matches no parameter, or no expression at all.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # towers larger than one accelerator's memory
        trained, _ = _split(params, trainable)
        if not trained:
            raise ValueError("trainable=() trains nothing; ('.*',) is all parameters")
        state = State(jnp.zeros((), jnp.int32), params, optimizer.init(trained))
        return jax.tree.map(np.asarray, state)


def _split(params: Any, patterns) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parameters that the expressions match and the others, by path."""
    mask = traverse_util.flatten_dict(optim.match(params, patterns), sep="/")
    flat = traverse_util.flatten_dict(params, sep="/")
    trained = {path: leaf for path, leaf in flat.items() if mask[path]}
    return trained, {path: leaf for path, leaf in flat.items() if not mask[path]}


def make_step(
    config: ClipConfig,
    preprocessing: preprocess.Preprocessing,
    optimizer: optax.GradientTransformation,
    trainable=(".*",),
    attribute_loss: Callable | None = None,
) -> Callable:
    """`step(state, batch, *, axis_name=None) -> (state, metrics)`: one update by the contrastive loss.

    Args:
      config: of the towers.
      preprocessing: for its mean and standard deviation.
      optimizer: of the parameters that are trained.
      trainable: see `create_state`.
      attribute_loss: (params, image embeddings, batch, step) -> (), added to the contrastive loss.
    """

    def step(state: State, batch, *, axis_name: str | None = None):
        images, ids = pairs.materialise(batch, batch.get(sharding.RESIDENT, {}))
        pixels = preprocess.normalise(preprocessing, images)
        trained, frozen = _split(state.params, trainable)

        def objective(trained):
            params = traverse_util.unflatten_dict(trained | frozen, sep="/")
            image = model.encode_image(config, params, pixels)
            text = model.encode_text(config, params, ids)
            loss, logs = losses.contrastive(image, text, params["logit_scale"], axis_name=axis_name)
            logs["contrastive"] = loss
            if attribute_loss is None:
                return loss, logs
            logs["attributes"] = attribute_loss(params, image, batch, state.step)
            return loss + logs["attributes"], logs

        (loss, logs), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
        if axis_name is not None:
            gradients, loss, logs = jax.lax.pmean((gradients, loss, logs), axis_name)
        updates, opt_state = optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        params = traverse_util.unflatten_dict(trained | frozen, sep="/")
        params["logit_scale"] = jnp.minimum(params["logit_scale"], MAX_LOGIT_SCALE)
        logs |= {
            loop.LOSS: loss,
            "logit_scale": jnp.exp(params["logit_scale"]),
            "gradient_norm": optax.global_norm(gradients),
        }
        return State(state.step + 1, params, opt_state), logs

    return step


# -- evaluation -------------------------------------------------------------------------------


def embed(clip: clip_jax.Clip, part: pairs.Pairs, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of a set's images, (n, d), and of its texts, (m, d)."""
    options = dict(batch_size=batch_size, progress=False)
    return clip_jax.embed_images(clip, part.images, **options), clip_jax.embed_texts(clip, part.texts, **options)


def measure(clip: clip_jax.Clip, sets: pairs.Sets, batch_size: int) -> dict[str, float]:
    """Retrieval, modality gap and zero-shot accuracies on the test set; see `clip_jax.training.measures`."""
    images, texts = embed(clip, sets.test, batch_size)
    owner = sets.test.owner
    result = measures.recall(images, texts, owner, ks=(1, 5)) | measures.modality_gap(images, texts, owner)
    for name, (prompts, labels) in sets.zero_shot.items():
        every = clip_jax.embed_texts(clip, [text for texts in prompts for text in texts], progress=False)
        classes = np.split(every, np.cumsum([len(texts) for texts in prompts])[:-1])
        result[f"zero_shot/{name}"] = measures.zero_shot(images, classes, labels)
    return {f"test/{name}": value for name, value in result.items()} | {"test/images": float(len(images))}


def _local(params: Any) -> Any:
    """Parameters as this process can compute with them by itself."""
    if jax.process_count() == 1:
        return params

    def whole(leaf):
        return np.asarray(leaf) if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(whole, params)


# -- the run ----------------------------------------------------------------------------------


def _layout(config, architecture: ClipConfig) -> sharding.Layout:
    shards = config.sharding.model
    rules = partition.partition_rules(architecture, shards) if shards > 1 else ()
    layout = sharding.layout(config.sharding.mode, model=shards, rules=rules)
    layout.check_batch(config.batch_size)
    return layout


def _composer(config, train: pairs.Pairs) -> Callable[[int], np.ndarray]:
    """The rows of every step's batch; the names in `data.alike` as columns of Scenes' attributes."""
    names = tuple(scenes.ATTRIBUTES) if train.attributes is not None else ()
    unknown = [name for kind in config.data.alike for name in kind if name not in names]
    if unknown:
        raise ValueError(
            f"data.alike: no attribute {unknown[0]!r} in data.name={config.data.name!r}; "
            f"there are: {', '.join(names) or 'none, take ((),)'}"
        )
    alike = [[names.index(name) for name in kind] for kind in config.data.alike]
    return composition.composer(
        len(train),
        seed=config.seed,
        batch_size=config.batch_size,
        alike=alike,
        group=config.data.group,
        attributes=train.attributes,
    )


def _attribute_loss(config, train: pairs.Pairs, steps: int) -> Callable | None:
    """The supervised loss of `clip_jax.training.attributes`, or None without it."""
    if not config.attribute_weight:
        return None
    if train.attributes is None:
        raise ValueError(
            f"attribute_weight={config.attribute_weight}: data.name={config.data.name!r} has no attributes, take 0.0"
        )
    weight = attributes.schedule(config.attribute_weight, round(config.attribute_until * steps))

    def loss(params, image, batch, step):
        labels = jnp.take(batch[sharding.RESIDENT]["attributes"], batch["row"], axis=0, mode="clip")
        return weight(step) * attributes.cross_entropy(params, image, labels, world.COUNTS)

    return loss


def _check_best(config) -> None:
    if config.loop.best_metric not in METRICS or config.loop.best_mode != "max":
        raise ValueError(
            f"loop.best_metric={config.loop.best_metric!r}, loop.best_mode={config.loop.best_mode!r}: the metrics are "
            f"{', '.join(METRICS)}, the mode is max"
        )


def validation(clip: clip_jax.Clip, val: pairs.Pairs, batch_size: int) -> Callable[[State], Mapping[str, float]]:
    """`state -> metrics`: recall at 1 in both directions, and their mean."""

    def evaluate(state: State) -> dict[str, float]:
        images, texts = embed(replace(clip, params=_local(state.params)), val, batch_size)
        values = measures.recall(images, texts, val.owner, ks=(1,))
        values["recall"] = float(np.mean(list(values.values())))
        return {f"val/{name}": value for name, value in values.items()}

    return evaluate


def run(config, run: Run) -> dict[str, float]:
    """Data, model, training, the best checkpoint, what it is worth, and its folder."""
    _check_best(config)
    sources.check(config.data)
    clip = create_clip(config)
    layout = _layout(config, clip.config)
    sets = sources.load(config.data, seed=config.seed)
    logging.info("%s", sets.note)
    rows_at = _composer(config, sets.train)
    prepared = pairs.prepare(clip, sets.train)
    optimizer, _, steps, to_steps = optim.of_run(config, examples=len(sets.train))
    attribute_loss = _attribute_loss(config, sets.train, steps)
    params, resident = clip.params, pairs.resident(prepared)
    if attribute_loss is not None:
        params = attributes.add_head(params, keys.stream(config.seed, "attribute head"), world.COUNTS)
        resident["attributes"] = sets.train.attributes
    state = create_state(params, optimizer, config.trainable)
    with run.checkpoints(best=(config.loop.best_metric, config.loop.best_mode)) as checkpoints:
        state = loop.fit(
            run,
            state=state,
            step=make_step(clip.config, clip.preprocessing, optimizer, config.trainable, attribute_loss),
            batches=lambda start: pairs.train_batches(
                clip,
                prepared,
                rows_at,
                seed=config.seed,
                start=start,
                process_index=jax.process_index(),
                process_count=jax.process_count(),
                workers=config.data.workers or image_files.decoding_threads(),
            ),
            steps=steps,
            layout=layout,
            checkpoints=checkpoints,
            evaluate=validation(clip, sets.val, config.evaluation.batch_size),
            resident=resident,
            log_every=config.loop.log_every,
            eval_every=to_steps(config.loop.eval_every),
            checkpoint_every=to_steps(config.loop.checkpoint_every),
        )
        best, best_step, best_metrics = checkpoints.restore_best(checkpoint.abstract(state))
    logging.info("best at step %d of %d", best_step, steps)
    trained = replace(clip, params=attributes.without_head(_local(best.params)))
    result = run.artifact("test.json", lambda: measure(trained, sets, config.evaluation.batch_size))
    if run.writes:
        clip_jax.save(trained, checkpoint_folder(run.path), dtype=config.checkpoint_dtype)
    return {"best_step": best_step, **best_metrics, **result}
