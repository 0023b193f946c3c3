"""Training φ: LinCIR's way from captions, Pic2Word's and SEARLE's from images, each a stage of `experiment`."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from absl import logging

import clip_jax
from clip_jax.losses import normalise
from launch.data import scenes
from launch.run import Run
from launch.training import keys, optim, sharding
from rtd_jax import phi, sources
from rtd_jax.phi import lincir, pic2word, searle
from rtd_jax.text import masking
from rtd_jax.text.compose import BASE, prompt
from rtd_jax.tuning import feed, training

METHODS = ("lincir", "pic2word", "searle")
RECALL = "val/recall"


def train(config, run: Run, clip: clip_jax.Clip, cache: Path) -> tuple[phi.Network, dict[str, float]]:
    """A φ network by `config.phi.method`, the best on validation, and its step and metrics.

    Raises:
      ValueError: an unknown method.
    """
    stage = config.phi
    if stage.method not in METHODS:
        raise ValueError(f"phi.method={stage.method!r}: there are {', '.join(METHODS)}; or give phi.load=FILE")
    layout = sharding.layout(config.sharding.mode)
    network = _fresh(config, clip)
    apply_phi = lambda params, x, key: network.module.apply({"params": params}, x, train=True, rngs={"dropout": key})
    make = {"lincir": _lincir, "pic2word": _pic2word, "searle": _searle}[stage.method]
    table, val, loss, resident = make(config, run, clip, cache, apply_phi)
    optimizer, _, steps, to_steps = optim.of_run(stage, examples=len(table))
    frozen = {"text": clip.params["text"], "logit_scale": clip.params["logit_scale"]}
    state, metrics = training.fit(
        run,
        stage,
        config=clip.config,
        layout=layout,
        state=training.create_state(network.params, optimizer),
        step=training.make_step(loss, optimizer),
        table=table,
        evaluate=validation(clip, network.module, val),
        best=(RECALL, "max"),
        steps=steps,
        to_steps=to_steps,
        seed=config.seed,
        resident={"clip": frozen, **resident},
    )
    return phi.Network(network.module, jax.device_get(training.local(state.params))), metrics


def validation(clip: clip_jax.Clip, module, embeddings: np.ndarray) -> Callable:
    """`state -> metrics` on held-back captions or images, without noise: whether "a photo of [$]" says what they say.

    `val/recall` is the percentage of embeddings (n, d) that are the nearest to "a photo of $" with their own pseudo
    token, `val/cosine` the mean similarity of the two.
    """
    texts, unit = [BASE] * len(embeddings), np.asarray(normalise(np.asarray(embeddings)))

    def evaluate(state) -> dict[str, float]:
        pseudo = np.asarray(phi.Network(module, training.local(state.params))(embeddings))
        found = clip_jax.embed_texts(clip, texts, pseudo_tokens=pseudo, progress=False)
        near, own = np.asarray(normalise(found)) @ unit.T, np.arange(len(found))
        best = (near >= near[own, own][:, None]).sum(1) == 1
        return {RECALL: 100 * float(best.mean()), "val/cosine": float(near[own, own].mean())}

    return evaluate


def _fresh(config, clip: clip_jax.Clip) -> phi.Network:
    kind = "pic2word" if config.phi.method == "pic2word" else "phi"
    widths = clip.config.projection, clip.config.text.width
    network = phi.init(kind, *widths, keys.stream(config.seed, "phi"))
    changes = {"unit_inputs": config.phi.unit_inputs}
    if config.phi.dropout >= 0:
        changes["dropout"] = config.phi.dropout
    return phi.Network(network.module.clone(**changes), jax.device_get(network.params))


def _lincir(config, run: Run, clip: clip_jax.Clip, cache: Path, apply_phi: Callable):
    texts, matcher = sources.texts(config.captions, seed=config.seed)
    logging.info("keywords by %s", matcher.note)
    table = lincir.prepare(clip, texts.train, matcher, cache=cache)
    val = clip_jax.embed_texts(clip, texts.val, cache=cache, progress=False)
    options = dict(marker_id=clip.marker_id, noise=config.phi.noise, seed=config.seed)
    return table, val, lincir.make_loss(clip.config, apply_phi, **options), {}


def _images(config, clip: clip_jax.Clip, cache: Path) -> list[np.ndarray]:
    parts = sources.images(config.images, seed=config.seed)
    options = dict(batch_size=config.evaluation.batch_size, target_pad=config.evaluation.target_pad, cache=cache)
    return [clip_jax.embed_images(clip, part, progress=False, **options) for part in parts]


def _pic2word(config, run: Run, clip: clip_jax.Clip, cache: Path, apply_phi: Callable):
    train, val = _images(config, clip, cache)
    loss = pic2word.make_loss(clip.config, apply_phi, prompt=prompt(clip), seed=config.seed)
    return feed.Table({"image": train}), val, loss, {}


def _searle(config, run: Run, clip: clip_jax.Clip, cache: Path, apply_phi: Callable):
    train, val = _images(config, clip, cache)
    words = sorted(scenes.KEYWORDS) if config.images.source == "scenes" else _nouns()
    known = searle.concepts(clip, words, config.phi.phrases or searle.PHRASES)
    options = dict(steps=config.phi.inversion_steps, seed=config.seed, check_stop=run.check_stop)
    tokens = run.artifact("tokens.npz", lambda: {"tokens": searle.invert(clip, train, known, **options)})["tokens"]
    own = searle.invert(clip, val, known, **options)
    near = clip_jax.embed_texts(clip, [BASE] * len(own), pseudo_tokens=own, progress=False)
    similar = np.asarray(normalise(near)) * np.asarray(normalise(np.asarray(val)))
    logging.info("optimised tokens of validation images: mean cosine %.3f", similar.sum(1).mean())
    table = searle.prepare(train, tokens, known)
    loss = searle.make_loss(clip.config, apply_phi, prompt=prompt(clip), seed=config.seed)
    return table, val, loss, searle.resident(known)


def _nouns() -> list[str]:
    """SEARLE's concepts: the nouns of the built-in lexicon."""
    return sorted(word for word, kind in masking.lexicon().items() if kind.startswith("noun"))
