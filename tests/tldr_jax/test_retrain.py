"""Which pairs are drawn, and sweeps against runs one at a time, gathered tables against projected batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from launch.training import keys
from launch.training.program import as_arrays
from tldr_jax import heads, metrics, projector, retrain
from tldr_jax.heads import draws
from tldr_jax.projector import mlp as mlp_projector
from tldr_jax.words.text import TextSet

D, F, BATCH, STEPS = 6, 9, 16, 12
draw = jax.jit(draws.draw, static_argnums=3)
SETTINGS = dict(batch_size=BATCH, steps=STEPS, evaluations=3, schedule="cosine", shared_templates=False)


@pytest.fixture(autouse=True, scope="module")
def quickly_compiled():
    """Tests run once what they compile: little optimisation is the faster bargain."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def text_set(targets=(3, 4), spurious=(5, 2), templates=(4, 4), allowed=None, seed=0):
    """Random embeddings, the words of the classes interleaved."""
    rng = np.random.default_rng(seed)
    of = lambda counts: rng.permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.int32)
    table = lambda counts, t: rng.normal(size=(sum(counts), t, D)).astype(np.float32)
    allowed = np.ones((len(targets), len(spurious)), bool) if allowed is None else np.array(allowed, bool)
    return TextSet(table(targets, templates[0]), of(targets), table(spurious, templates[1]), of(spurious), allowed)


def linear(seed=0, relu=True):
    rng = np.random.default_rng(seed)
    return projector.Projector(rng.normal(size=(D, F)), rng.normal(size=F), relu)


def epochs_of(texts, count, seed=0):
    plan = draws.plan(texts)
    drawn = draw(plan, draws.secrets(seed), 0, count * plan.epoch)
    return plan, draws.Draw(*(np.asarray(a).reshape(count, -1) for a in drawn))


@pytest.mark.parametrize("targets, spurious", [((3, 4), (5, 2)), ((1, 9), (1, 3)), ((40, 31), (23, 17))])
def test_an_epoch_takes_every_group_equally_often_and_no_pair_twice(targets, spurious):
    texts = text_set(targets, spurious)
    plan, drawn = epochs_of(texts, 3)
    smallest = min(targets) * min(spurious)
    assert plan.epoch == 4 * smallest
    np.testing.assert_array_equal(texts.target_class[drawn.target], drawn.label)
    np.testing.assert_array_equal(drawn.label * 2 + texts.spurious_value[drawn.spurious], drawn.group)
    pairs = drawn.target * 1000 + drawn.spurious
    for epoch in range(3):
        np.testing.assert_array_equal(np.bincount(drawn.group[epoch]), [smallest] * 4)
        assert len(set(pairs[epoch])) == plan.epoch
    # the smallest group is seen whole each time, in another order; of the largest, other pairs are
    small, large = (np.array([p[g == group] for p, g in zip(pairs, drawn.group, strict=True)]) for group in (
        int(np.argmin(targets)) * 2 + int(np.argmin(spurious)), int(np.argmax(targets)) * 2 + int(np.argmax(spurious))
    ))  # fmt: skip
    np.testing.assert_array_equal(np.sort(small), np.sort(small)[[0, 0, 0]])
    if smallest > 1:
        assert (small[0] != small[1]).any() and set(large[0]) != set(large[1])


def test_first_pairs_and_templates_are_uniform_over_seeds():
    texts = text_set((7, 5), (6, 8), templates=(5, 3))
    plan = draws.plan(texts, shared_templates=False)
    drawn = jax.jit(jax.vmap(lambda seed: draws.draw(plan, draws.secrets(seed), 0, 8)))(jnp.arange(3000))
    target, spurious = np.asarray(drawn.target), np.asarray(drawn.spurious)
    for group in range(4):
        own = np.asarray(drawn.group) == group
        assert own.sum() == 2 * 3000  # each batch of 8 has two of each of the four groups
        cells = np.unique(target[own] * 100 + spurious[own], return_counts=True)[1]
        assert len(cells) == (7, 5)[group // 2] * (6, 8)[group % 2]
        assert scipy.stats.chisquare(cells).pvalue > 1e-3
    for table, found in zip((5, 3), (drawn.target_template, drawn.spurious_template), strict=True):
        counts = np.bincount(np.asarray(found).ravel(), minlength=table)
        assert len(counts) == table and scipy.stats.chisquare(counts).pvalue > 1e-3
    # the words of a group's first pair say nothing of those of its second, nor of another group's
    for one, other in ((0, 4), (0, 1), (2, 3)):
        codes = [np.unique(target[:, slot], return_inverse=True)[1] for slot in (one, other)]
        table = np.zeros((max(codes[0]) + 1, max(codes[1]) + 1))
        np.add.at(table, tuple(codes), 1)
        assert scipy.stats.chi2_contingency(table).pvalue > 1e-3


@pytest.mark.parametrize("shared", [True, False])
def test_one_template_for_both_words_of_a_pair_or_one_for_each(shared):
    plan = draws.plan(text_set((7, 5), (6, 8), templates=(80, 80)), shared_templates=shared)
    drawn = draw(plan, draws.secrets(0), 0, 8000)
    target, spurious = np.asarray(drawn.target_template), np.asarray(drawn.spurious_template)
    if shared:
        np.testing.assert_array_equal(target, spurious)
    else:
        assert np.mean(target == spurious) == pytest.approx(1 / 80, abs=0.005)
    counts = np.bincount(spurious, minlength=80)
    assert len(counts) == 80 and scipy.stats.chisquare(counts).pvalue > 1e-3
    if shared:
        with pytest.raises(ValueError, match="share templates only of one number"):
            draws.plan(text_set(templates=(3, 4)))


def test_batches_follow_one_another_without_seams():
    plan, secrets = draws.plan(text_set()), draws.secrets(5)
    whole = draw(plan, secrets, 0, 4 * plan.epoch)
    size = 10  # divides neither the epoch nor the number of groups
    parts = [draw(plan, secrets, step, size) for step in range(4 * plan.epoch // size)]
    for name in ("target", "spurious", "label", "group"):
        joined = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(joined, np.asarray(getattr(whole, name))[: len(joined)])


def test_words_combine_only_where_allowed():
    allowed = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    texts = text_set((3, 4, 5, 6), (4, 3, 2, 5), allowed=allowed)
    _, drawn = epochs_of(texts, 2)
    np.testing.assert_array_equal(np.unique(drawn.group), np.flatnonzero(np.ravel(allowed)))


def test_features_are_the_projected_mean_of_the_pair():
    texts, found = text_set(), linear()
    drawn = draw(draws.plan(texts), draws.secrets(3), 1, 20)
    expected = []
    for w, t, v, u in zip(*(np.asarray(a) for a in drawn[:4]), strict=True):
        mean = (texts.target[w, t].astype(np.float64) + texts.spurious[v, u]) / 2
        expected.append(np.maximum(mean @ found.weight + found.bias, 0))
    np.testing.assert_allclose(retrain.features(texts, found, drawn), expected, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def swept():
    """An irregular sweep over two of three projectors, by both ways of projecting."""
    texts, parts = text_set(), [linear(seed) for seed in range(3)]
    members = retrain.Members(
        learning_rate=np.array([1e-2, 3e-3, 1e-2, 1e-2, 2e-2]),
        weight_decay=np.array([0.0, 1e-1, 0.0, 1e-1, 1e-4]),
        seed=np.array([0, 7, 7, 0, 0]),
        projector=np.array([2, 0, 0, 2, 0]),
    )
    stacked = projector.stack(parts)
    found = [retrain.sweep(texts, stacked, members, **SETTINGS, tables=tables) for tables in (False, True)]
    return texts, parts, members, found


def test_tables_and_batches_agree(swept):
    *_, (batches, tables) = swept
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), batches, tables)


def test_every_member_is_as_if_trained_alone_however_often_it_is_evaluated(swept):
    texts, parts, members, (found, _) = swept
    assert found.heads.kernel.shape == (5, 3, F, 2) and found.loss.shape == (5, 3)
    np.testing.assert_array_equal(found.steps, [4, 8, 12])
    for member in range(5):
        rate, decay, seed, which = (a[member].item() for a in members)
        alone = retrain.train(
            texts, parts[which], learning_rate=rate, weight_decay=decay, seed=seed, **SETTINGS | {"evaluations": 1}
        )
        np.testing.assert_allclose(found.heads.kernel[member, -1], alone.heads.kernel[0], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(found.heads.bias[member, -1], alone.heads.bias[0], rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(found.loss[member].mean(), alone.loss[0], rtol=1e-4)


def test_its_program_trains_as_the_sweep_does():
    texts, projectors = text_set(), projector.stack([linear(0), linear(1)])
    axes = {"learning_rate": (1e-2, 1e-3, 3e-2), "weight_decay": (1e-3, 1e-1), "seed": (4, 2)}
    members = retrain.grid(**{f"{name}s": values for name, values in axes.items()}, projectors=(0, 1))
    wanted = retrain.sweep(texts, projectors, members, **SETTINGS)
    target, spurious, shapes = jax.eval_shape(lambda: (texts.target, texts.spurious, projectors))
    outline = texts.replace(target=target, spurious=spurious)
    program = retrain.program(outline, shapes, as_arrays(axes), jax.devices()[:1], **SETTINGS)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), program.state)
    resident = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), ((texts.target, texts.spurious), projectors))
    state, values = jax.jit(program.step)(program.numbers, state, {"resident": resident})
    assert int(state["step"]) == STEPS
    # places (projector, seed, member) in the order of the grid: projectors slowest, the learning rate fastest
    for own, theirs in zip((*state["heads"], state["loss"]), (*wanted.heads, wanted.loss), strict=True):
        own = np.moveaxis(np.asarray(own), 0, 3).reshape(np.shape(theirs))
        np.testing.assert_allclose(own, theirs, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(values["loss"], wanted.loss.mean(), rtol=1e-5)


def test_a_grid_is_every_combination():
    found = retrain.grid(learning_rates=[1, 2], weight_decays=[3], seeds=[4, 5], projectors=[0, 1])
    rows = set(zip(*(a.tolist() for a in found), strict=True))
    assert rows == {(a, 3, b, c) for a in (1, 2) for b in (4, 5) for c in (0, 1)} and len(found.seed) == 8
    with pytest.raises(ValueError, match="seeds"):
        retrain.grid(learning_rates=[1], weight_decays=[1], seeds=[])


def network(seed=0):
    """An untrained network as a projector."""
    params = mlp_projector.ProjectorMlp(4, F).init(jax.random.key(seed), np.zeros((1, D)))["params"]
    rng = np.random.default_rng(seed)
    return mlp_projector.MlpProjector(
        params, np.eye(D)[:1], rng.normal(size=D), np.float32(2), rng.normal(size=F), np.float32(3), hidden=4, relu=True
    )


def test_a_network_takes_the_place_of_the_projector():
    texts, stacked = text_set(), projector.stack([network(0), network(1)])
    members = retrain.grid(learning_rates=[1e-2], weight_decays=[0.0], projectors=[0, 1])
    found = retrain.sweep(texts, stacked, members, batch_size=BATCH, steps=1)
    drawn = draw(draws.plan(texts), draws.secrets(0), 0, BATCH)
    target, spurious, label = (np.asarray(a) for a in (drawn.target, drawn.spurious, drawn.label))
    mean = texts.target[target, drawn.target_template] + texts.spurious[spurious, drawn.spurious_template]
    start = heads.init(keys.stream(0, "head"), F, 2)
    for index in range(2):
        scores = np.asarray(projector.apply(network(index), mean / 2) @ start.kernel + start.bias)
        expected = np.mean(scipy.special.logsumexp(scores, axis=1) - scores[np.arange(BATCH), label])
        np.testing.assert_allclose(found.loss[index, 0], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="only an affine projector"):
        retrain.sweep(texts, stacked, members, tables=True)


def test_selection_equals_scoring_head_by_head(swept):
    *_, (found, _) = swept
    rng = np.random.default_rng(0)
    x, labels, spurious = rng.normal(size=(200, F)), *rng.integers(0, 2, (2, 200))
    picked = retrain.select(found.heads, x, labels, spurious, allowed=np.ones((2, 2)))
    for index in np.ndindex(5, 3):
        right = np.argmax(x @ found.heads.kernel[index] + found.heads.bias[index], 1) == labels
        groups = [right[(labels == a) & (spurious == b)].mean() for a in (0, 1) for b in (0, 1)]
        classes = [right[labels == a].mean() for a in (0, 1)]
        assert picked.wga[index] == pytest.approx(min(groups))
        assert picked.class_balanced[index] == pytest.approx(np.mean(classes))
    for choice, scores in ((picked.by_wga, picked.wga), (picked.by_class_balanced, picked.class_balanced)):
        assert choice.score == scores.max() == scores[choice.member, choice.evaluation]
        np.testing.assert_array_equal(choice.head.kernel, found.heads.kernel[choice.member, choice.evaluation])


def test_words_alone_repair_a_head():
    """A world of two directions, class and spurious: images correlate them, words do not."""
    rng = np.random.default_rng(0)
    content = np.linalg.qr(rng.normal(size=(D, D)))[0]
    gap = 3 * content[4:5]

    def embedded(label, spurious, noise):
        clean = 0.7 * np.outer(2 * label - 1, content[0]) + 1.5 * np.outer(2 * spurious - 1, content[1])
        return (clean + noise * rng.normal(size=clean.shape)).astype(np.float32)

    def images(n, correlation):
        label = rng.integers(0, 2, n)
        spurious = np.where(rng.random(n) < correlation, label, 1 - label)
        return embedded(label, spurious, 0.2) + gap.astype(np.float32), label, spurious

    mixing = rng.normal(size=(D, F))
    x, label, _ = images(2000, 0.98)
    tests, labels, spurious = images(1000, 0.5)
    fitted = projector.fit(x, x @ mixing, gap, ridge=1e-2, relu=False)
    words = np.arange(20) % 2
    table = lambda y, s: 2 * np.stack([embedded(y, s, 0.1) for _ in range(3)], 1)  # the mean of a pair halves them
    texts = TextSet(table(words, np.full(20, 0.5)), words, table(np.full(20, 0.5), words), words, np.ones((2, 2), bool))
    found = retrain.train(texts, fitted, learning_rate=0.1, batch_size=15)
    assert found.steps[-1] == 27  # one epoch of 4 × 100 pairs
    wga = lambda head: metrics.worst_group(
        metrics.group_accuracies(heads.predictions(head, tests @ mixing), labels, spurious, np.ones((2, 2)))
    )
    erm = np.linalg.lstsq(np.c_[x @ mixing, np.ones(2000)], np.eye(2)[label], rcond=None)[0]
    assert wga(heads.Head(*(a[-1] for a in found.heads))) > wga(heads.Head(erm[:-1], erm[-1])) + 0.2


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(targets=(3, 0)), "class 1 has no word: none was given, or a filter"),
        (dict(spurious=(0, 3)), "spurious value 0 has no word"),
        (dict(allowed=np.zeros((2, 2))), "allow a pair"),
    ],
)
def test_text_sets_without_words(change, message):
    with pytest.raises(ValueError, match=message):
        draws.plan(text_set(**change))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(target=np.zeros((7, 3, D + 1))), "differ in width"),
        (dict(target=np.zeros((7, 0, D))), "none of it 0"),
        (dict(target_class=np.zeros(6, int)), "7 words need as many numbers of their class"),
        (dict(target_class=np.full(7, 2)), "word 0 is of class 2; valid: 0 to 1"),
    ],
)
def test_text_sets_that_do_not_fit_together(change, message):
    with pytest.raises(ValueError, match=message):
        draws.plan(text_set().replace(**change))


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(steps=5, epochs=1), "not both"),
        (dict(steps=2, evaluations=3), "2 steps cannot be evaluated at 3 points"),
        (dict(steps=2**28, batch_size=64), "beyond 32-bit"),
        (dict(batch_size=0), "at least 1"),
        (dict(members=retrain.Members([1e-3], [0.0], [0], [1])), "but 1 are stacked"),
        (dict(members=retrain.Members([1e-3], [0.0, 0.1], [0], [0])), "arrays of one length"),
        (dict(members=retrain.Members([-1e-3], [0.0], [0], [0])), "learning_rate must be finite and at least 0"),
        (dict(projectors=projector.Projector(np.zeros((1, D + 1, F)), np.zeros((1, F)), True)), "width 7, the words'"),
    ],
)
def test_sweeps_that_cannot_be_run(change, message):
    members = retrain.grid(learning_rates=[1e-3], weight_decays=[0.0])
    given = dict(text_set=text_set(), projectors=projector.stack([linear()]), members=members) | change
    with pytest.raises(ValueError, match=message):
        retrain.sweep(**given)
