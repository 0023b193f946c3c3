"""One RTD training step of ViT-B/32's text tower: ours against the published procedure in PyTorch, both in float32.

    python -m benchmarks.rtd_step [--cases grouped …] [--against eager compile]

16 triplets of captions of 8 to 20 tokens, start and end included; AdamW over the whole tower. PyTorch's side does what
the published code does: see `benchmarks.pytorch.rtd_step`. Ours reads the frozen embeddings from a table, cuts the
texts, encodes both queries of a triplet in one pass and trains the rows of the token table that the triplets use.

    grouped           batches of similar length, as training draws them
    mixed             batches of any length
    whole table       as grouped, every row of the token table trained
"""

from collections.abc import Callable
from functools import partial

from benchmarks import alternate

VARIANT = "ViT-B/32"
BATCH, TRIPLETS, WORDS = 16, 4096, 8000  # words that the triplets use, of 49,408
CONTEXT, START, END, MARKER = 77, 49406, 49407, 259
PREFIX = (START, 320, 1125, 539)  # "a photo of"
THAT = 682


def triplets():
    """Token ids of the captions, int32 (TRIPLETS, 77) each: reference, target, composed."""
    import numpy as np

    rng = np.random.default_rng(0)
    words = rng.choice(np.arange(1000, 40000), WORDS, replace=False)

    def captions(beginning=(START,)):
        ids = np.full((TRIPLETS, CONTEXT), END, np.int32)
        for row in ids:
            count = rng.integers(6, 19)  # and start and end
            row[: len(beginning)] = beginning
            row[len(beginning) : len(beginning) + count] = rng.choice(words, count)
        return ids

    return captions(), captions(), captions((*PREFIX, MARKER, THAT))


def batches(case: str, composed):
    """The rows of step after step."""
    from rtd_jax.tuning import feed

    lengths = (composed != END).sum(1) + 1
    return feed.grouped_rows(TRIPLETS, seed=0, batch_size=BATCH, lengths=None if case == "mixed" else lengths)


def jax_step(case: str) -> Callable[[], None]:
    """One step of ours, its result awaited."""
    from itertools import count

    import jax
    import numpy as np

    from clip_jax import model
    from clip_jax.config import VARIANTS
    from launch.training import optim, sharding
    from rtd_jax import phi
    from rtd_jax.text import compose, vocabulary
    from rtd_jax.tuning import step

    config, prompt = VARIANTS[VARIANT], compose.Prompt(PREFIX, MARKER, END)
    network = phi.init("phi", config.projection, config.text.width, jax.random.key(1))
    text = jax.device_get(model.init(config, jax.random.key(0))["text"])
    _, _, composed = triplets()
    rows_at = batches(case, composed)
    if case != "whole table":
        small = vocabulary.used(config, composed, np.array(prompt.ids))
        config, text = small.narrow(config), small.take(text)
        prompt, composed = small.localize_prompt(prompt), small.localize(composed)
    optimizer, _ = optim.Optimizer("adamw", 1e-5, 0.01).create(total_steps=2000, to_steps=lambda text: 0)
    layout = sharding.layout()
    update = step.make_step(config, optimizer, network.module, step.Objective(), prompt=prompt, seed=0)
    state = step.create_state(text, optimizer)
    train = lambda numbers, state, batch, *, axis_name=None: update(state, batch, axis_name=axis_name)
    compiled, state = layout.jit(train, state), layout.place(state)
    resident = {sharding.RESIDENT: layout.replicate(jax.device_get({"phi": network.params}))}
    table = np.random.default_rng(1).normal(size=(2, TRIPLETS, config.projection)).astype(np.float32)
    steps, held = count(), [state]

    def batch(rows):
        columns = {"ids": model.cut(config, composed[rows]), "reference": table[0, rows], "target": table[1, rows]}
        return layout.put(columns | {"slot": np.arange(BATCH, dtype=np.int32)}) | resident

    def run():
        held[0], metrics = compiled({}, held[0], batch(rows_at(next(steps))))
        jax.block_until_ready((held[0], metrics))

    lengths = {model.cut(config, composed[rows_at(i)]).shape[1]: i for i in range(64)}
    for i in lengths.values():  # a program for each length, compiled before anything is timed
        held[0], _ = compiled({}, held[0], batch(rows_at(i)))
    return run


def torch_step(case: str, *, compile: bool) -> Callable[[], None]:
    """One step of the published procedure; compiled, its loss."""
    from copy import deepcopy
    from itertools import count

    import torch
    from transformers import CLIPConfig, CLIPModel

    from benchmarks.pytorch import rtd_step as published
    from clip_jax.config import VARIANTS
    from clip_jax.files import config_files

    config = VARIANTS[VARIANT]
    device, loss = alternate.pytorch(), torch.compile(published.loss) if compile else published.loss
    network = CLIPModel(CLIPConfig(**config_files.to_huggingface(config))).to(device)
    frozen, trained = published.Encoder(deepcopy(network)), published.Encoder(network)
    phi = published.Phi(config.projection, 4 * config.projection, config.text.width).eval().to(device)
    reference, target, composed = triplets()
    rows_at, steps = batches(case, composed), count()
    plain = torch.tensor([*PREFIX, MARKER, *[END] * (CONTEXT - len(PREFIX) - 1)]).repeat(BATCH, 1).to(device)
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-5, weight_decay=0.01)

    def run():
        rows = rows_at(next(steps))
        tensor = lambda ids: torch.tensor(ids[rows], dtype=torch.long).to(device)
        batch = {"reference": tensor(reference), "target": tensor(target), "composed": tensor(composed), "plain": plain}
        batch["noise"] = (
            0.5 * torch.rand(BATCH, 1, device=device) * torch.randn(BATCH, config.projection, device=device)
        )
        optimizer.zero_grad(set_to_none=True)
        loss(trained, frozen, phi, batch).backward()
        optimizer.step()

    return run


def sides(case: str) -> alternate.Builders:
    return {
        "ours": partial(jax_step, case),
        "eager": partial(torch_step, case, compile=False),
        "compile": partial(torch_step, case, compile=True),
    }


CASES = {case: sides(case) for case in ("grouped", "mixed", "whole table")}

if __name__ == "__main__":
    alternate.main("benchmarks.rtd_step", __doc__, CASES, devices=1, quick={"steps": 5, "cases": ["grouped"]})
