"""The text stage of text-based last-layer retraining: ours against the published procedure in PyTorch.

    python -m benchmarks.tldr_text_stage [--cases filter embed projector head "64 heads" …] [--words 400]

Filter the words, embed each under 80 prompts, fit the projector (n = 5,000, d = 512, f = 2,048), train the head (313
batches of 128, an epoch of 400 words' pairs): "text stage" is the four together, "64 heads" a sweep against as many
runs in turn. The words are those of Waterbirds, a quarter for each of its four lists; the published setting is
--words 400, at which PyTorch embeds for half an hour, the default 40. The text tower has the size of ViT-B/32 and
random weights, and so would filter at random: both sides filter, then continue with all words. A word has a token for
each six letters. PyTorch pads to 77 tokens, as published; ours computes the lengths that there are.

A step is timed once unless --steps says otherwise; ours is compiled before. "compile" is the published procedure with
the text tower through torch.compile; the other parts have no network to compile. "ours in turn" is our own program, one
head at a time.
"""

import functools
from collections.abc import Callable
from functools import partial

from benchmarks import alternate

SIZES = {"words": 40, "head_steps": 313}
QUICK = {"head_steps": 50, "cases": ["filter", "embed", "projector", "head", "64 heads"]}
IMAGES, WIDTH, FEATURES = 5000, 512, 2048
BATCH, RIDGE = 128, 50.0
START, END, CONTEXT = 49406, 49407, 77


def size(name: str) -> int:
    """One of `SIZES`, or the command line's."""
    return alternate.size(name, SIZES[name])


def word_set():
    """The first words of Waterbirds' lists, `size("words")` in all."""
    from tldr_jax import words

    cut, each = words.load("waterbirds"), max(1, size("words") // 4)
    for part in words.PARTS:
        cut = cut.replaced(part, {name: own[:each] for name, own in cut.listed(part).items()})
    return cut


def prompts(words, templates):
    """(words, templates) prompts."""
    from tldr_jax.words.templates import fill

    return [[fill(template, word) for template in templates] for word in words]


@functools.cache
def tokenizer():
    """A tokenizer with a token for each six letters: its vocabulary is what the prompts have."""
    import json

    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    from clip_jax.tokenizer import Tokenizer
    from tldr_jax.words import templates

    six = pre_tokenizers.Split(tokenizers.Regex(r"\w{1,6}"), "isolated")
    split = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), six])
    words, every = word_set(), [*templates.get("imagenet").target, "a photo of a {}."]
    lists = (*words.target, *words.spurious)
    texts = {text for own in lists for row in prompts((*own.words, own.anchor), every) for text in row}
    pieces = sorted({piece for text in texts for piece, _ in split.pre_tokenize_str(text)})
    vocabulary = {piece: 1000 + i for i, piece in enumerate(pieces)} | {"<s>": START, "</s>": END}
    backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="</s>"))
    backend.pre_tokenizer = split
    special = [("<s>", START), ("</s>", END)]
    backend.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    files = {"tokenizer.json": json.dumps(vocabulary).encode()}
    return Tokenizer(backend, CONTEXT, START, END, END, END + 1, None, files)


def images():
    """Embeddings (n, d), features (n, f), float32, and a gap (1, d)."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.normal(size=(IMAGES, WIDTH)).astype(np.float32)
    y = np.maximum(x @ rng.normal(size=(WIDTH, FEATURES)).astype(np.float32) / WIDTH**0.5, 0)
    return x, y, rng.normal(size=(1, WIDTH))


def embedded_words():
    """A text set of random embeddings, of as many words as `word_set` has, under 80 templates."""
    import numpy as np

    from tldr_jax.words.text import TextSet

    rng, total = np.random.default_rng(0), 2 * max(1, size("words") // 4)
    table = lambda: rng.normal(size=(total, 80, WIDTH)).astype(np.float32)
    belongs = np.repeat(np.arange(2), total // 2)
    return TextSet(table(), belongs, table(), belongs, np.ones((2, 2), bool))


def settings():
    """The sweep of 64: (learning rate, weight decay, seed, projector)."""
    import itertools

    return list(itertools.product((1e-5, 1e-4, 1e-3, 1e-2), (1e-5, 1e-4, 1e-3, 1e-2), (0, 1), (0, 1)))


def jax_step(case: str) -> Callable[[], None]:
    """One run of ours, its result awaited; it has run once when this returns."""
    import jax
    import numpy as np

    from clip_jax import Clip, model, preprocess
    from clip_jax.config import VARIANTS
    from tldr_jax import heads, projector, retrain
    from tldr_jax.words import filters, templates, text

    words, own, config = word_set(), templates.get("imagenet"), VARIANTS["ViT-B/32"]
    x, y, gap = images()
    fit = lambda ridge=RIDGE: projector.fit(x, y, gap, ridge=ridge, relu=True)
    mapping, erm = fit(), heads.init(jax.random.key(0), FEATURES, 2)
    params = model.init(config, jax.random.key(0)) if case in ("filter", "embed", "text stage") else {}
    clip = Clip(config, params, tokenizer(), preprocess.Preprocessing(224, 224))
    texts = embedded_words()
    common = dict(batch_size=BATCH, steps=size("head_steps"))

    def filtered(mapping):
        classify = lambda embeddings: heads.logits(erm, projector.apply(mapping, embeddings))
        try:
            filters.apply(words, filters.embed(clip, words, own, progress=False), logits=classify)
        except filters.EmptyWordListError:
            return  # random models: all work is done by then

    def whole():
        fitted = fit()
        filtered(fitted)
        retrain.train(text.embed(clip, words, own, progress=False), fitted, **common)

    def swept(members, count: int):
        stacked = projector.stack([fit(RIDGE * 10**i) for i in range(count)])
        members = retrain.Members(*map(np.array, members))
        return lambda: retrain.sweep(texts, stacked, members, **common)

    runs = {
        "filter": lambda: lambda: filtered(mapping),
        "embed": lambda: lambda: text.embed(clip, words, own, progress=False),
        "projector": lambda: fit,
        "head": lambda: lambda: retrain.train(texts, mapping, **common),
        "text stage": lambda: whole,
        "64 heads": lambda: swept(zip(*settings(), strict=True), 2),
        "64 heads: seeds": lambda: swept(([1e-4] * 64, [1e-4] * 64, range(64), [0] * 64), 1),
    }
    run = runs[case]()
    run()
    return run


def in_turn() -> Callable[[], None]:
    """The sweep of 64 by our program, a head at a time."""
    from tldr_jax import projector, retrain

    x, y, gap = images()
    mappings = [projector.fit(x, y, gap, ridge=RIDGE * 10**i, relu=True) for i in range(2)]
    texts = embedded_words()

    def run(members):
        for rate, decay, seed, which in members:
            retrain.train(
                texts, mappings[which], learning_rate=rate, weight_decay=decay, seed=seed,
                batch_size=BATCH, steps=size("head_steps"),
            )  # fmt: skip

    run(settings()[:1])
    return lambda: run(settings())


def torch_step(case: str, *, compile: bool = False) -> Callable[[], None]:
    """One run of the published procedure."""
    import numpy as np
    import torch
    from transformers import CLIPConfig, CLIPModel

    from benchmarks.pytorch import tldr_text_stage as published
    from clip_jax.config import VARIANTS
    from clip_jax.files import config_files
    from tldr_jax.words import templates

    device = alternate.pytorch()
    torch.manual_seed(0)
    words, own = word_set(), templates.get("imagenet")
    x, y, gap = (torch.tensor(a, dtype=torch.float64).to(device) for a in images())
    network = CLIPModel(CLIPConfig(**config_files.to_huggingface(VARIANTS["ViT-B/32"]))).eval().to(device)
    features = torch.compile(network.get_text_features) if compile else network.get_text_features
    encode = lambda ids: features(input_ids=ids).pooler_output
    tokens = lambda texts: torch.tensor(np.asarray(tokenizer().encode(texts)), dtype=torch.long).to(device)
    erm = torch.nn.Linear(FEATURES, 2).to(device)
    sides = words.target, words.spurious

    def filtered(weight, bias):
        for number, lists in enumerate(sides):
            ids = [tokens([f"a photo of a {word}." for word in own.words]) for own in lists]
            classify = (lambda e: erm(torch.relu(e @ weight + bias))) if number == 0 else None
            anchor = tokens([f"a photo of a {own.anchor}." for own in lists])
            published.filter_words(encode, ids, anchor, classify)

    def embedded():
        tables = []
        for lists in sides:
            rows = [row for each in lists for row in prompts(each.words, own.target)]
            tables.append(published.embed_words(encode, torch.stack([tokens(row) for row in rows])).cpu())
        return tables

    texts = embedded_words()
    tables, belongs = [torch.tensor(a) for a in (texts.target, texts.spurious)], texts.target_class.tolist()

    def trained(tables, mapping, rate=1e-4, decay=1e-4):
        pairs = published.Pairs(tables[0], belongs, tables[1], belongs)
        published.train_head(pairs, *mapping, rate=rate, decay=decay, batch_size=BATCH, steps=size("head_steps"))

    def whole():
        mapping = published.projector(x, y, gap, RIDGE)
        filtered(*mapping)
        trained(embedded(), mapping)

    mappings = [published.projector(x, y, gap, RIDGE * 10**i) for i in range(2)]

    def swept(members):
        for rate, decay, _, which in members:
            trained(tables, mappings[which], rate, decay)

    if compile:  # for each number of texts that is encoded at once, before anything is timed
        filtered(*mappings[0])
        encode(tokens(prompts(words.target[0].words, own.target)[0]))
    return {
        "filter": lambda: filtered(*mappings[0]),
        "embed": embedded,
        "projector": lambda: published.projector(x, y, gap, RIDGE),
        "head": lambda: trained(tables, mappings[0]),
        "text stage": whole,
        "64 heads": lambda: swept(settings()),
        "64 heads: seeds": lambda: swept([(1e-4, 1e-4, 0, 0)] * 64),
    }[case]


def sides(case: str) -> alternate.Builders:
    builders = {"ours": partial(jax_step, case), "eager": partial(torch_step, case)}
    if case in ("filter", "embed", "text stage"):
        builders["compile"] = partial(torch_step, case, compile=True)
    return builders | ({"ours in turn": in_turn} if case == "64 heads" else {})


CASES = {
    name: sides(name) for name in ("filter", "embed", "projector", "head", "text stage", "64 heads", "64 heads: seeds")
}

if __name__ == "__main__":
    alternate.main("benchmarks.tldr_text_stage", __doc__, CASES, devices=1, steps=1, warmup=0, sizes=SIZES, quick=QUICK)
