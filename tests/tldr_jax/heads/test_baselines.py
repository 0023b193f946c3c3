"""Logistic regressions against scikit-learn used directly, AFR against a PyTorch loop, zero-shot against cosines."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tldr_jax import heads, metrics
from tldr_jax.datasets import Groups
from tldr_jax.heads import baselines
from tldr_jax.stages import comparison

F = 6
ALL = np.ones((2, 2), bool)


def images(counts, seed=0, classes=2):
    """Features of groups with so many images each, of unequal scales, shuffled: (features, labels, spurious)."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    values = len(counts) // classes
    label, spurious = group // values, group % values
    x = rng.normal(size=(len(group), F)) + 0.8 * label[:, None] * np.eye(F)[0] + 1.5 * spurious[:, None] * np.eye(F)[1]
    x[:, 4] += label == 2
    return x * np.geomspace(0.1, 30, F) + 5, label, spurious


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def probabilities(head, x):
    return softmax(x @ np.asarray(head.kernel, np.float64) + head.bias)


def lasso(penalty, **settings):
    return LogisticRegression(**dict(l1_ratio=1.0, C=penalty, random_state=0, max_iter=1000) | settings)


def test_dfr_of_balanced_images_is_one_scikit_learn_fit():
    x, label, spurious = images([40] * 4)
    found = baselines.dfr(x, label, spurious, allowed=ALL, penalties=[0.3], draws=2)
    direct = make_pipeline(StandardScaler(), lasso(0.3, solver="liblinear", tol=1e-7)).fit(x, label)
    np.testing.assert_allclose(probabilities(found.head, x), direct.predict_proba(x), atol=3e-3)
    assert found.penalty == 0.3
    # strong enough that the penalty shows: coefficients are exactly zero, and stay so in the head
    sparse = baselines.dfr(x, label, spurious, allowed=ALL, penalties=[0.05], draws=1).head.kernel
    assert 0 < np.sum(sparse[:, 1] == 0) < F


def test_dfr_averages_balanced_draws_and_scales_on_the_training_images():
    x, label, spurious = images([60, 12, 15, 30])
    train = images([200] * 4, seed=1)[0] * 2
    found = baselines.dfr(x, label, spurious, allowed=ALL, penalties=[0.5], draws=4, scale_on=train)
    rng, scaler = np.random.default_rng(0), StandardScaler().fit(train)
    coefficients, intercepts = [], []
    for _ in range(4):
        rows = baselines._balanced(rng, label * 2 + spurious)
        np.testing.assert_array_equal(metrics.group_counts(label[rows], spurious[rows], ALL), np.full((2, 2), 12))
        assert len(set(rows)) == 48
        direct = lasso(0.5, solver="liblinear").fit(scaler.transform(x[rows]), label[rows])
        coefficients.append(direct.coef_[0])
        intercepts.append(direct.intercept_[0])
    margin = scaler.transform(x) @ np.mean(coefficients, 0) + np.mean(intercepts)
    logits = x @ np.asarray(found.head.kernel, np.float64) + found.head.bias
    np.testing.assert_allclose(logits[:, 1] - logits[:, 0], margin, rtol=1e-4, atol=1e-4)


def test_the_penalty_is_chosen_by_the_worst_group_of_the_other_half():
    x, label, spurious = images([60, 12, 15, 30], seed=3)
    penalties = (0.03, 3.0, 0.3)
    found = baselines.dfr(x, label, spurious, allowed=ALL, penalties=penalties, draws=1, tuning_draws=2)
    rng, scaled = np.random.default_rng(0), StandardScaler().fit_transform(x)
    scores = dict.fromkeys(penalties, 0.0)
    for _ in range(2):
        used, held_out = baselines._halves(rng, label * 2 + spurious)
        assert sorted(np.concatenate([used, held_out])) == list(range(len(x)))
        counts = metrics.group_counts(label[held_out], spurious[held_out], ALL)
        np.testing.assert_array_equal(counts, [[30, 6], [7, 15]])
        rows = used[baselines._balanced(rng, (label * 2 + spurious)[used])]
        for penalty in penalties:
            right = lasso(penalty, solver="liblinear").fit(scaled[rows], label[rows]).predict(scaled) == label
            own = [held_out[(label == a)[held_out] & (spurious == b)[held_out]] for a in (0, 1) for b in (0, 1)]
            scores[penalty] += min(right[group].mean() for group in own) / 2
    assert found.scores == pytest.approx(scores)
    assert len(set(scores.values())) == 3 and max(scores, key=scores.get) != penalties[0]
    assert found.penalty == max(scores, key=scores.get)


def test_more_classes_than_two_are_multinomial():
    x, label, spurious = images([20] * 6, classes=3)
    found = baselines.dfr(x, label, spurious, allowed=np.ones((3, 2)), penalties=[0.3], draws=1)
    settings = dict(solver="saga", max_iter=5000, tol=1e-6)
    direct = make_pipeline(StandardScaler(), lasso(0.3, **settings)).fit(x, label)
    np.testing.assert_allclose(probabilities(found.head, x), direct.predict_proba(x), atol=5e-3)


def test_class_balanced_needs_no_groups():
    x, label, _ = images([30, 30, 30, 30])
    found = baselines.class_balanced(x, label, classes=2, penalties=[0.3], draws=1)
    direct = make_pipeline(StandardScaler(), lasso(0.3, solver="liblinear", tol=1e-7)).fit(x, label)
    np.testing.assert_allclose(probabilities(found.head, x), direct.predict_proba(x), atol=3e-3)
    skewed, label, _ = images([200, 100, 10, 10], seed=4)
    found = baselines.class_balanced(skewed, label, classes=2, draws=5)
    plain = make_pipeline(StandardScaler(), lasso(found.penalty, solver="liblinear")).fit(skewed, label)
    recall = lambda predicted: np.mean(predicted[label == 1] == 1)
    assert recall(heads.predictions(found.head, skewed)) > recall(plain.predict(skewed)) + 0.2


def test_dfr_lifts_the_worst_group():
    x, label, spurious = images([300, 15, 15, 300], seed=5)
    found = baselines.dfr(x, label, spurious, allowed=ALL, draws=5)
    test = images([100] * 4, seed=6)
    plain = make_pipeline(StandardScaler(), LogisticRegression()).fit(x, label)
    wga = lambda predicted: metrics.worst_group(metrics.group_accuracies(predicted, *test[1:], ALL))
    assert wga(heads.predictions(found.head, test[0])) > wga(plain.predict(test[0])) + 0.1


@pytest.mark.parametrize("clip_norm", [0.0, 0.3])
def test_afr_equals_a_pytorch_loop(clip_norm):
    rng = np.random.default_rng(0)
    x, label = rng.normal(size=(50, F)), (rng.random(50) < 0.3).astype(int)
    erm = heads.Head(rng.normal(size=(F, 2)), rng.normal(size=2))
    settings = baselines.afr_grid([0.0, 6.0], [0.0, 0.3])
    np.testing.assert_allclose(settings, [(0, 0), (0, 0.3), (6, 0), (6, 0.3)], rtol=1e-6)
    found = baselines.afr(x, label, erm, settings, learning_rate=0.1, steps=20, evaluations=2, clip_norm=clip_norm)
    assert found.kernel.shape == (4, 2, F, 2)
    y, features = torch.tensor(label), torch.tensor(x)
    start = [torch.tensor(a) for a in erm]
    true = torch.softmax(features @ start[0] + start[1], -1)[torch.arange(50), y]
    for member, (gamma, ridge) in enumerate([(0, 0), (0, 0.3), (6, 0), (6, 0.3)]):
        weights = torch.exp(-gamma * true) / torch.bincount(y)[y]
        weights /= weights.sum()
        kernel, bias = (a.clone().requires_grad_() for a in start)
        optimizer = torch.optim.SGD([kernel, bias], lr=0.1)
        for step in range(20):
            loss = torch.nn.functional.cross_entropy(features @ kernel + bias, y, reduction="none") @ weights
            loss = loss + ridge * ((kernel - start[0]).square().sum() + (bias - start[1]).square().sum())
            optimizer.zero_grad()
            loss.backward()
            if clip_norm:
                torch.nn.utils.clip_grad_norm_([kernel, bias], clip_norm)
            optimizer.step()
            if step in (9, 19):
                kept = step // 10
                np.testing.assert_allclose(found.kernel[member, kept], kernel.detach(), rtol=1e-4, atol=1e-5)
                np.testing.assert_allclose(found.bias[member, kept], bias.detach(), rtol=1e-4, atol=1e-5)


def test_afr_may_stop_at_every_step_and_holds_few_heads_at_a_time(monkeypatch):
    """The choice is the best of all steps of all settings, the first of equals, however many are made at a time."""
    x, label, spurious = images([60, 6, 6, 60], seed=1)
    val = images([30] * 4, seed=2)
    erm = heads.Head(*(np.float32(a) for a in (np.random.default_rng(0).normal(size=(F, 2)), np.zeros(2))))
    classifier = SimpleNamespace(rows=lambda n: (np.arange(n), np.arange(0)), head=lambda store: erm)
    part = lambda *table: SimpleNamespace(
        table=SimpleNamespace(**dict(zip(("rows", "classes", "spurious"), table, strict=True))),
        erm=classifier,
        images=SimpleNamespace(groups=Groups(("a", "b"), ("c", "d"))),
    )
    options = dict(gammas=(0.0, 4.0), ridges=(0.0, 0.1), learning_rate=0.3, steps=30, evaluations=30)
    stage = comparison.Afr(part(x, label, spurious), part(*val), **options)
    store = SimpleNamespace(get=lambda own: own.table)
    found = [stage.make(store)]
    monkeypatch.setattr(comparison, "_KEPT", 1)
    found.append(stage.make(store))
    every = baselines.afr(x, label, erm, baselines.afr_grid((0.0, 4.0), (0.0, 0.1)), learning_rate=0.3, steps=30,
                          evaluations=30)  # fmt: skip
    wga = [[metrics.worst_group(metrics.group_accuracies(heads.predictions(heads.Head(*one), val[0]), *val[1:], ALL))
            for one in zip(*member, strict=True)] for member in zip(*every, strict=True)]  # fmt: skip
    place = np.unravel_index(np.argmax(wga), np.shape(wga))
    assert place[1] not in (9, 19, 29)  # at three points it would be missed
    for head in found:
        np.testing.assert_allclose(head.kernel, every.kernel[place], rtol=1e-4, atol=1e-5)


def test_zero_shot_is_the_nearest_ensemble_of_prompts():
    rng = np.random.default_rng(0)
    prompts, x = rng.normal(size=(3, 5, F)) * rng.uniform(0.1, 9, (3, 5, 1)), rng.normal(size=(40, F))
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)
    expected = [np.argmax([unit(row) @ unit(np.mean([unit(p) for p in own], 0)) for own in prompts]) for row in x]
    np.testing.assert_array_equal(heads.predictions(baselines.zero_shot(prompts), x), expected)
    for bad in (prompts[0], np.zeros((3, 5, F))):
        with pytest.raises(ValueError, match="class prompt"):
            baselines.zero_shot(bad)


def test_what_cannot_be_fitted_is_said():
    x, label, spurious = images([20, 1, 20, 20])
    with pytest.raises(ValueError, match="at least two images of every group; class 0 with spurious value 1 has fewer"):
        baselines.dfr(x, label, spurious, allowed=ALL)
    with pytest.raises(ValueError, match="labels must be"):
        baselines.class_balanced(x, label + 1, classes=2)
    with pytest.raises(ValueError, match="at least two images; the counts are"):
        baselines.class_balanced(x, label, classes=3)
    with pytest.raises(ValueError, match="a row for each of"):
        baselines.class_balanced(x[1:, 0], label[1:], classes=2)
    with pytest.raises(ValueError, match="at least one C"):
        baselines.class_balanced(x, label, classes=2, penalties=[])
    erm = heads.Head(np.zeros((F, 2)), np.zeros(2))
    with pytest.raises(ValueError, match="20 steps do not divide into 3"):
        baselines.afr(x, label, erm, baselines.afr_grid([1], [0]), steps=20, evaluations=3)
    with pytest.raises(ValueError, match=r"settings must be \(k, 2\)"):
        baselines.afr(x, label, erm, [1.0, 2.0])
    with pytest.raises(ValueError, match="one has none"):
        baselines.afr(x, np.zeros(len(x), int), erm, baselines.afr_grid([1], [0]))
