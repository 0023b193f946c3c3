"""SEARLE: tokens optimised image by image, then a φ network that gives them at once (Baldrati et al., ICCV 2023).

https://arxiv.org/abs/2303.15247. First gradient descent finds a token for every image: "a photo of [$]" must lie near
the image, and a phrase about one of the image's concepts must keep its embedding when the token takes the concept's
place. Then φ learns to give these tokens from the images' embeddings. An image's concepts are the nearest among given
words. The paper's phrases come from a language model; here they are templates, in which "{}" stands for the concept.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import clip_jax
from clip_jax import model
from clip_jax.config import ClipConfig
from launch.networks import loops
from launch.training import keys, sharding
from rtd_jax import losses
from rtd_jax.phi.networks import ApplyPhi
from rtd_jax.text import compose
from rtd_jax.text.triplets import MARKER
from rtd_jax.tuning import feed, training

NEAREST = 15  # concepts of an image
_RATES = (2e-2, 0.01, 0.99)  # of the descent to a token: learning rate, weight decay, decay of the average
_BATCH = 256  # images of a descent
PHRASES = (
    "a photo of {} outdoors",
    "a picture of {} on a table",
    "{} next to a person",
    "a close-up of {} in the morning",
    "an old photo of {}",
    "{} in front of a house",
    "two friends looking at {}",
    "a drawing of {} on white paper",
)


@dataclass(frozen=True, eq=False)
class Concepts:
    """Words and the phrases about them.

    Attributes:
      words: float32 (c, d), unit embeddings of "a photo of WORD".
      phrases: float32 (c, p, d), embeddings of every phrase with every word.
      ids: int32 (p, t), the phrases with the marker in the word's place.
    """

    words: np.ndarray
    phrases: np.ndarray
    ids: np.ndarray

    def nearest(self, images: np.ndarray, k: int) -> np.ndarray:
        """The k words nearest to each image (n, d), or all where there are fewer: int32 (n, min(k, c))."""
        similarity = losses.unit_rows(images) @ self.words.T
        return np.argsort(-similarity, axis=1, kind="stable")[:, :k].astype(np.int32)


def concepts(clip: clip_jax.Clip, words: Sequence[str], phrases: Sequence[str] = PHRASES) -> Concepts:
    """Embeddings of words and phrases.

    Raises:
      ValueError: no words, no phrases, or a phrase without "{}".
    """
    if not words or not phrases:
        raise ValueError(f"SEARLE needs words and phrases, got {len(words)} and {len(phrases)}")
    if bad := [phrase for phrase in phrases if phrase.count("{}") != 1]:
        raise ValueError(f"the phrase {bad[0]!r} has to hold '{{}}' once, for the concept")
    embed = partial(clip_jax.embed_texts, clip, progress=False)
    filled = embed([phrase.format(word) for word in words for phrase in phrases])
    unit = losses.unit_rows(embed([f"a photo of {word}" for word in words]))
    return Concepts(unit, filled.reshape(len(words), len(phrases), -1), phrase_ids(clip, phrases))


def phrase_ids(clip: clip_jax.Clip, phrases: Sequence[str]) -> np.ndarray:
    """Token ids of phrases with the marker in the concept's place, int32 (p, t)."""
    ids = clip.tokenize([" ".join(phrase.format(f" {MARKER} ").split()) for phrase in phrases])
    model.check_marker(ids, clip.marker_id, 1)
    return ids


def invert(
    clip: clip_jax.Clip,
    images: np.ndarray,
    known: Concepts,
    layout: sharding.Layout,
    *,
    steps: int = 350,
    learning_rate: float = _RATES[0],
    weight_decay: float = _RATES[1],
    average: float = _RATES[2],
    nearest: int = NEAREST,
    batch_size: int = _BATCH,
    seed: int = 0,
    check_stop: Callable[[], None] = lambda: None,
) -> np.ndarray:
    """A token for every image, by gradient descent.

    Args:
      clip: the CLIP, which stays frozen.
      images: (n, d), embeddings.
      known: the concepts.
      layout: of the devices, which divide the images; every process calls it with all of them.
      steps: of AdamW.
      learning_rate: of AdamW.
      weight_decay: of AdamW.
      average: decay of the exponential moving average that is returned.
      nearest: concepts of an image.
      batch_size: images at a time, rounded up to the devices; they do not influence each other.
      seed: of the initial tokens and the draws of concepts and phrases.
      check_stop: called between batches; may raise.

    Returns:
      float32 (n, w).
    """
    rates = (learning_rate, weight_decay, average)
    step = _Descent(clip.config, compose.prompt(clip), rates)
    place = lambda tree: jax.tree.map(lambda leaf: sharding.on_devices(np.asarray(leaf), _by_rows(layout, leaf)), tree)
    collect = jax.jit(lambda mean: mean, out_shardings=layout.replicated)
    fixed = layout.replicate(_fixed(clip, np.int32(seed), known.phrases, known.ids))
    result = np.empty((len(images), clip.config.text.width), np.float32)
    size = _rows(layout, min(batch_size, len(images)))
    near = known.nearest(images, nearest)
    for start in range(0, len(images), size):
        check_stop()
        rows = np.minimum(np.arange(start, start + size), len(images) - 1)  # the last batch repeats the last image
        state = place(_start(rates, clip.config.text.width, seed, jnp.asarray(rows)))
        _, _, mean, _ = loops.iterate(step, (fixed, place((images[rows], near[rows], rows))), state, steps)
        mean = np.asarray(collect(mean)) / (1 - average**steps)  # corrected for its start, as Adam's moments are
        result[start : start + size] = mean[: len(images) - start]
    return result


def inversion(
    clip: clip_jax.Clip, words: int, ids: np.ndarray, layout: sharding.Layout, *, steps: int
) -> tuple[Any, tuple[Any, ...], int]:
    """What `invert` compiles for a full batch of images; see `loops.outline`.

    Args:
      clip: an outline will do.
      words: number of the concepts.
      ids: int32 (p, t), those of `Concepts`.
      layout: as of `invert`.
      steps: of AdamW.
    """
    width, size = clip.config.projection, _rows(layout, _BATCH)
    shape = lambda dtype, *sizes: jax.ShapeDtypeStruct(sizes, dtype)
    put = lambda tree, where: jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where(leaf)), tree
    )
    fixed = _fixed(clip, np.int32(0), shape(np.float32, words, len(ids), width), ids)
    slots = shape(np.int32, size)
    rows = shape(np.float32, size, width), shape(np.int32, size, min(NEAREST, words)), slots
    state = jax.eval_shape(partial(_start, _RATES, clip.config.text.width, 0), slots)
    by_rows = partial(_by_rows, layout)
    context = put(fixed, lambda leaf: layout.replicated), put(rows, by_rows)
    step = _Descent(clip.config, compose.prompt(clip), _RATES)
    return loops.outline(step, context, put(state, by_rows), steps, layout.mesh.devices.flat[0].platform)


def _rows(layout: sharding.Layout, batch_size: int) -> int:
    """The images of a batch that the devices divide."""
    return -(-batch_size // layout.data_shards) * layout.data_shards


def _by_rows(layout: sharding.Layout, leaf: Any) -> NamedSharding:
    """How a batch's arrays and their state are split."""
    return NamedSharding(layout.mesh, P("data")) if np.ndim(leaf) else layout.replicated


def _fixed(clip: clip_jax.Clip, seed: Any, phrases: Any, ids: Any) -> Any:
    """What a descent keeps on every device, arrays or shapes."""
    return seed, {"text": clip.params["text"]}, phrases, ids


def _start(rates: tuple[float, float, float], width: int, seed: int, rows: jax.Array) -> Any:
    """The state before the first step, for images by their numbers."""
    draw = jax.vmap(lambda key: 0.02 * jax.random.normal(key, (width,)))
    tokens = draw(keys.per_example(keys.stream(seed, "tokens"), rows))
    return jnp.int32(0), tokens, jnp.zeros_like(tokens), _adamw(rates).init(tokens)


def _adamw(rates: tuple[float, float, float]) -> optax.GradientTransformation:
    return optax.adamw(rates[0], weight_decay=rates[1])


@dataclass(frozen=True)
class _Descent:
    """One step of `invert`, a `loops.LoopStep`: (number, tokens, their moving average, the optimiser's state)."""

    config: ClipConfig
    prompt: compose.Prompt
    rates: tuple[float, float, float]

    def __call__(self, context: Any, state: Any, /) -> Any:
        i, tokens, mean, optimizer = state
        (seed, frozen, phrases, ids), (image, near, slots) = context

        def objective(tokens):
            key = keys.stream(seed, "phrases", i)
            text, phrase, concept = _sentences(self.config, frozen, self.prompt, tokens, near, ids, phrases, key, slots)
            # The mean over images times their number: every image's gradient has its own size.
            return len(tokens) * losses.searle_inversion(image, text, phrase, concept)

        updates, optimizer = _adamw(self.rates).update(jax.grad(objective)(tokens), optimizer, tokens)
        tokens = jnp.asarray(optax.apply_updates(tokens, updates))
        return i + 1, tokens, self.rates[2] * mean + (1 - self.rates[2]) * tokens, optimizer


def prepare(images: np.ndarray, tokens: np.ndarray, known: Concepts, *, nearest: int = NEAREST) -> feed.TextTable:
    """Images as distillation reads them: `image` (n, d), `token` (n, w), `near` int32 (n, k)."""
    near = known.nearest(images, nearest)
    return feed.TextTable({"image": images, "token": tokens, "near": near})


def resident(known: Concepts) -> dict[str, np.ndarray]:
    """The arrays that distillation keeps on every device."""
    return {"phrases": known.phrases, "phrase_ids": known.ids}


def make_loss(config: ClipConfig, apply_phi: ApplyPhi, *, prompt: compose.Prompt, seed) -> training.TextLoss:
    """SEARLE's loss of φ's parameters, its distillation; batches are those of `prepare`.

    The contrast is over this device's share of the batch, or of a part of it.

    Args:
      config: of the CLIP.
      apply_phi: φ in training.
      prompt: in the CLIP's tokens.
      seed: of dropout and of the draws of concepts and phrases; may be traced.
    """

    def loss(params, batch, step, axis_name):
        image, resident = batch["image"], batch[sharding.RESIDENT]
        pseudo = apply_phi(params, image, training.dropout_key(seed, step, axis_name, batch))
        key = keys.stream(seed, "phrases", step)
        known = resident["phrase_ids"], resident["phrases"]
        text, phrase, concept = _sentences(
            config, resident["clip"], prompt, pseudo, batch["near"], *known, key, batch["slot"]
        )
        value = losses.searle_distillation(pseudo, batch["token"], phrase, concept)
        return value, {"cosine": training.cosine(text, image).mean()}

    return loss


def _sentences(config: ClipConfig, frozen, prompt: compose.Prompt, tokens, near, ids, phrases, key, slots):
    """Embeddings of "a photo of [$]", of a phrase with the token, and of it with one of the image's concepts."""
    b = len(tokens)

    def draw(key):
        concept, phrase = jax.random.split(key)
        return jax.random.randint(concept, (), 0, near.shape[1]), jax.random.randint(phrase, (), 0, len(ids))

    which, phrase = jax.vmap(draw)(keys.per_example(key, slots))
    encode = partial(model.encode_text, config, frozen, pseudo_tokens=tokens, marker_id=prompt.marker_id)
    text = encode(jnp.broadcast_to(jnp.array(prompt.ids, jnp.int32), (b, len(prompt.ids))))
    word = jnp.take_along_axis(near, which[:, None], axis=1)[:, 0]
    return text, encode(ids[phrase]), phrases[word, phrase]
