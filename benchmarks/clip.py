"""Encoding and training with CLIP ViT-B/32: ours against transformers' PyTorch, in the same precision, float32.

    python -m benchmarks.clip [--cases image text "text as used" …] [--against eager sdpa compile] [--device cuda]

"eager" is transformers' attention written out, "sdpa" PyTorch's scaled_dot_product_attention (transformers' default),
"compile" the latter through torch.compile. "text" and "train" give all sides the same 77 tokens. "as used" is what each
side does with the same captions: PyTorch pads to 77, as the published training and evaluation code does; ours cuts to
the batch's longest caption, rounded up to a static length. Captions have 8 to 22 tokens, 13 on average. A training step
is a text-encoder step: contrastive loss against fixed embeddings, gradients of the whole text tower, AdamW.
"""

from collections.abc import Callable
from functools import partial

from benchmarks import alternate

VARIANT = "ViT-B/32"
SIZES = {"images": 16, "texts": 32, "trained": 16}  # batch sizes
CONTEXT, EOS = 77, 49407
SCALE = 1 / 0.07


def size(name: str) -> int:
    """One of `SIZES`, or the command line's."""
    return alternate.size(name, SIZES[name])


def captions(batch: int):
    """Token ids, int32 (batch, 77): start, words, end, padding."""
    import numpy as np

    rng = np.random.default_rng(0)
    ids = rng.integers(1000, 40000, (batch, CONTEXT), dtype=np.int32)
    ids[:, 0] = 49406
    for row, end in enumerate(np.clip(rng.normal(12, 3, batch).astype(int), 7, 21)):
        ids[row, end:] = EOS
    return ids


def pixels():
    import numpy as np

    return np.random.default_rng(0).normal(size=(size("images"), 224, 224, 3)).astype(np.float32)


def targets(batch: int, width: int):
    import numpy as np

    x = np.random.default_rng(1).normal(size=(batch, width)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def jax_step(case: str) -> Callable[[], None]:
    """One call of ours, its result awaited."""
    import jax
    import jax.numpy as jnp
    import optax

    from clip_jax import losses, model
    from clip_jax.config import VARIANTS

    config = VARIANTS[VARIANT]
    params = model.init(config, jax.random.key(0))
    if case == "image":
        encode, batch = jax.jit(partial(model.encode_image, config)), jnp.asarray(pixels())
        return lambda: jax.block_until_ready(encode(params, batch))

    ids = captions(size("trained" if case.startswith("train") else "texts"))
    used = "as used" in case
    if case.startswith("text"):
        encode = jax.jit(partial(model.encode_text, config))
        return lambda: jax.block_until_ready(encode(params, jnp.asarray(model.cut(config, ids) if used else ids)))

    optimizer = optax.adamw(1e-5, weight_decay=0.01)
    scale, fixed = jnp.log(SCALE), jnp.asarray(targets(size("trained"), config.projection))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(text, opt_state, ids):
        def objective(text):
            embeddings = model.encode_text(config, {"text": text}, ids)
            return losses.contrastive(embeddings, fixed, scale)[0]

        loss, gradients = jax.value_and_grad(objective)(text)
        updates, opt_state = optimizer.update(gradients, opt_state, text)
        return optax.apply_updates(text, updates), opt_state, loss

    held = [params["text"], optimizer.init(params["text"])]

    def run():
        *held[:], loss = step(*held, jnp.asarray(model.cut(config, ids) if used else ids))
        jax.block_until_ready((held, loss))

    return run


def torch_step(case: str, attention: str, *, compile: bool = False) -> Callable[[], None]:
    """One call of transformers' PyTorch model."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from clip_jax.config import VARIANTS
    from clip_jax.files import config_files

    device, build = alternate.pytorch(), torch.compile if compile else lambda function: function
    config = CLIPConfig(**config_files.to_huggingface(VARIANTS[VARIANT]), attn_implementation=attention)
    network = CLIPModel(config).to(device)
    if case == "image":
        batch, encode = torch.tensor(pixels().transpose(0, 3, 1, 2).copy()).to(device), network.get_image_features
        return torch.inference_mode()(partial(build(encode), pixel_values=batch))

    ids = torch.tensor(captions(size("trained" if case.startswith("train") else "texts")), dtype=torch.long).to(device)
    if case.startswith("text"):
        return torch.inference_mode()(partial(build(network.get_text_features), input_ids=ids))

    trained = [*network.text_model.parameters(), *network.text_projection.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, weight_decay=0.01)
    fixed = torch.tensor(targets(len(ids), VARIANTS[VARIANT].projection)).to(device)
    own = torch.arange(len(ids), device=device)

    @build
    def objective(ids):
        pooled = network.text_model(input_ids=ids).pooler_output
        embeddings = torch.nn.functional.normalize(network.text_projection(pooled))
        logits = SCALE * embeddings @ fixed.T
        cross_entropy = torch.nn.functional.cross_entropy
        return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2

    def run():
        loss = objective(ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return run


def sides(case: str) -> alternate.Builders:
    return {
        "ours": partial(jax_step, case),
        "eager": partial(torch_step, case, "eager"),
        "sdpa": partial(torch_step, case, "sdpa"),
        "compile": partial(torch_step, case, "sdpa", compile=True),
    }


CASES = {name: sides(name) for name in ("image", "text", "text as used", "train", "train as used")}

if __name__ == "__main__":
    alternate.main(
        "benchmarks.clip",
        __doc__,
        CASES,
        devices=1,
        sizes=SIZES,
        quick={"steps": 5, "cases": ["image", "text", "train", "train as used"]},
    )
