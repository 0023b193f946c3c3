"""Similarity metrics against torch, torchmetrics and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
import scipy.stats

from robustgrad_jax import metrics

torch = pytest.importorskip("torch")
torchmetrics_ssim = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
torchmetrics_spearman = pytest.importorskip("torchmetrics.functional").spearman_corrcoef


def jit(f):
    # Tests run once what they compile: little optimisation is the faster bargain.
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0})


def pair(shape, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=shape)
    return scale * a, scale * (0.7 * a + 0.5 * rng.normal(size=shape))


def torch_ssim(a, b, data_range):
    """torchmetrics on (n, h, w, c) arrays, per example."""
    a, b = (torch.from_numpy(np.moveaxis(v, -1, 1).copy()) for v in (a, b))
    return torchmetrics_ssim(a, b, data_range=data_range, reduction="none").numpy()


@pytest.mark.parametrize("scale", [1.0, 1e-7, 1e5])
def test_cosine_equals_torch(scale):
    a, b = pair((6, 5, 4, 3), scale=scale)
    a[1] *= 1e-9  # norm below the clamp
    a[2] = b[3] = 0
    a[4] = b[4] = 0
    expected = torch.nn.functional.cosine_similarity(
        torch.from_numpy(a).flatten(1), torch.from_numpy(b).flatten(1), eps=1e-8
    ).numpy()
    with jax.enable_x64(True):
        np.testing.assert_allclose(jit(metrics.cosine)(a, b), expected, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(jit(metrics.cosine_distance)(a, b), (1 - expected) / 2, rtol=1e-12)


def test_cosine_gradient_equals_torch():
    a, b = pair((4, 30))
    ta = torch.from_numpy(a).requires_grad_()
    torch.nn.functional.cosine_similarity(ta, torch.from_numpy(b), eps=1e-8).square().sum().backward()
    with jax.enable_x64(True):
        got = jit(jax.grad(lambda v: jnp.sum(metrics.cosine(v, b) ** 2)))(a)
        np.testing.assert_allclose(got, ta.grad.numpy(), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e8])
def test_pearson_equals_scipy_at_every_scale(scale):
    a, b = pair((5, 8, 7), scale=scale)
    expected = [scipy.stats.pearsonr(u.ravel(), v.ravel()).statistic for u, v in zip(a, b, strict=True)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(jit(metrics.pearson)(a, b), expected, rtol=1e-10)


def test_pearson_gradient_equals_torch():
    a, b = pair((3, 20))
    ta = torch.from_numpy(a).requires_grad_()
    rows = [torch.corrcoef(torch.stack([u, torch.from_numpy(v)]))[0, 1] for u, v in zip(ta, b, strict=True)]
    torch.stack(rows).square().sum().backward()
    with jax.enable_x64(True):
        got = jit(jax.grad(lambda v: jnp.sum(metrics.pearson(v, b) ** 2)))(a)
        np.testing.assert_allclose(got, ta.grad.numpy(), rtol=1e-9, atol=1e-13)


def test_pearson_of_a_constant_map_is_zero_in_single_precision():
    # 0.1 is not representable and the mean of 3072 copies is rounded: a plain clamp would correlate rounding.
    a = jnp.full((2, 32, 32, 3), 0.1, jnp.float32)
    b = jax.random.normal(jax.random.key(0), a.shape)
    run = jit(metrics.pearson)
    for first, second in ((a, b), (b, a), (a, a)):
        np.testing.assert_array_equal(run(first, second), 0)


def test_mse_equals_torch():
    a, b = pair((4, 6, 5, 2))
    expected = torch.nn.functional.mse_loss(torch.from_numpy(a), torch.from_numpy(b), reduction="none")
    with jax.enable_x64(True):
        np.testing.assert_allclose(jit(metrics.mse)(a, b), expected.flatten(1).mean(1), rtol=1e-12)


@pytest.mark.parametrize(("shape", "data_range"), [((3, 32, 32, 3), 1.0), ((2, 11, 25, 1), 7.5)])
def test_ssim_equals_torchmetrics(shape, data_range):
    a, b = pair(shape)
    a[0, :, : shape[2] // 2] = 0.25  # flat: where the variance's clamp matters
    expected = torch_ssim(a, b, data_range)
    with jax.enable_x64(True):
        run = jit(lambda a, b: metrics.ssim(a, b, data_range=data_range))
        np.testing.assert_allclose(run(a, b), expected, rtol=1e-9)
        if shape[-1] == 1:  # (n, h, w) is one channel
            np.testing.assert_allclose(run(a[..., 0], b[..., 0]), expected, rtol=1e-9)


def test_ssim_of_heat_maps_in_single_precision():
    a, b = (np.abs(v) for v in pair((4, 32, 32, 3)))
    a, b = (v.sum(-1, keepdims=True) / v.sum(-1).max((1, 2))[:, None, None, None] for v in (a, b))
    got = jit(metrics.ssim)(a.astype(np.float32), b.astype(np.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, torch_ssim(a, b, 1.0), atol=2e-5)


@pytest.mark.parametrize(("boundary", "mode"), [("reflect", "mirror"), ("valid", None), ("zero", "constant")])
def test_ssim_with_another_window_equals_a_direct_convolution(boundary, mode):
    a, b = (v[..., 0] for v in pair((2, 9, 14, 1)))
    size, sigma = 7, 1.1
    taps = np.exp(-(np.arange(-3, 4) ** 2) / (2 * sigma**2))
    kernel = np.outer(taps, taps) / taps.sum() ** 2

    def smooth(m):
        if boundary == "valid":
            return scipy.signal.convolve2d(m, kernel, mode="valid")
        return scipy.ndimage.correlate(m, kernel, mode=mode)

    expected = []
    for u, v in zip(a, b, strict=True):
        mu, mv, uu, vv, uv = (smooth(m) for m in (u, v, u * u, v * v, u * v))
        top = (2 * mu * mv + 1e-4) * (2 * (uv - mu * mv) + 9e-4)
        expected.append(np.mean(top / ((mu**2 + mv**2 + 1e-4) * (uu - mu**2 + vv - mv**2 + 9e-4))))
    with jax.enable_x64(True):
        run = jit(lambda a, b: metrics.ssim(a, b, window=size, sigma=sigma, boundary=boundary))
        np.testing.assert_allclose(run(a, b), expected, rtol=1e-10)


def test_ssim_gradient_equals_torchmetrics():
    a, b = pair((2, 13, 12, 2))
    ta = torch.from_numpy(np.moveaxis(a, -1, 1).copy()).requires_grad_()
    tb = torch.from_numpy(np.moveaxis(b, -1, 1).copy())
    torchmetrics_ssim(ta, tb, data_range=1.0, reduction="sum").backward()
    with jax.enable_x64(True):
        got = jit(jax.grad(lambda v: jnp.sum(metrics.ssim(v, b))))(a)
        np.testing.assert_allclose(np.moveaxis(got, -1, 1), ta.grad.numpy(), rtol=1e-8, atol=1e-12)


def test_heatmap_equals_torch_and_keeps_zero_maps():
    a, _ = pair((4, 6, 5, 3))
    a[2] = 0
    total = torch.from_numpy(a).abs().sum(-1)
    expected = (total / total.amax((1, 2), keepdim=True)).numpy()
    expected[2] = 0
    with jax.enable_x64(True):
        got = jit(metrics.heatmap)(a)
        np.testing.assert_allclose(got, expected, rtol=1e-14)


@pytest.mark.parametrize("name", ["cosine", "cosine_distance", "pearson", "ssim", "ssim_published", "mse"])
def test_gradients_are_finite_at_zero_and_constant_maps(name):
    metric = getattr(metrics, name)
    a, b = (jnp.asarray(v, jnp.float32) for v in pair((4, 12, 12)))
    a = a.at[0].set(0).at[1].set(0).at[2].set(0.1)
    b = b.at[1].set(0)
    gradient = jax.grad(lambda *maps: jnp.sum(metric(*maps)), argnums=(0, 1))
    values, gradients = jit(lambda *maps: (metric(*maps), gradient(*maps)))(a, b)
    assert values.shape == (4,)
    assert all(np.all(np.isfinite(array)) for array in (values, *gradients))


def test_heatmap_gradient_is_finite_at_zero_maps():
    a = jnp.zeros((2, 4, 4, 3)).at[1, 0, 0, 0].set(-2.0)
    gradient = jit(jax.grad(lambda v: jnp.sum(metrics.heatmap(v) ** 2)))(a)
    assert np.all(np.isfinite(gradient))


def test_ssim_published_equals_its_formula_in_torch():
    a, b = (np.abs(v[..., 0]) for v in pair((3, 9, 12, 1)))
    offsets = np.arange(-3, 4)
    taps = torch.from_numpy(np.exp(-(offsets**2) / 4.5) / np.exp(-(offsets**2) / 4.5).sum())
    smooth = lambda m: torch.nn.functional.conv2d(m[:, None], torch.outer(taps, taps)[None, None], padding=3)[:, 0]
    u, v = torch.from_numpy(a), torch.from_numpy(b)
    mu, mv, uu, vv, uv = (smooth(m) for m in (u, v, u * u, v * v, u * v))
    spread = (u.max() - u.min()).item()
    c1, c2 = (0.01 * spread) ** 2, (0.03 * spread) ** 2
    top = (2 * mu * mv + c1) * (2 * (uv - mu * mv) + c2)
    expected = (top / ((mu**2 + mv**2 + c1) * (uu - mu**2 + vv - mv**2 + c2))).mean((1, 2))
    with jax.enable_x64(True):
        np.testing.assert_allclose(jit(metrics.ssim_published)(a, b), expected, rtol=1e-10)
        np.testing.assert_allclose(jit(metrics.ssim_published)(0 * a, 0 * b), 1)
        alone = jit(metrics.ssim_published)(a[:1] / 5, b[:1] / 5)  # its range is its own here
        assert np.abs(alone - expected[:1].numpy()).max() > 1e-4


@pytest.mark.parametrize("levels", [None, 5])
def test_spearman_equals_scipy(levels):
    a, b = pair((5, 6, 7))
    if levels:  # many ties
        a, b = np.round(levels * a), np.round(levels * b) * 1e3
    expected = [scipy.stats.spearmanr(u.ravel(), v.ravel()).statistic for u, v in zip(a, b, strict=True)]
    with jax.enable_x64(True):
        np.testing.assert_allclose(jit(metrics.spearman)(a, b), expected, rtol=1e-10)
    got = jit(metrics.spearman)(a.astype(np.float32), b.astype(np.float32))
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_spearman_equals_torchmetrics_on_a_large_map_in_single_precision():
    a, b = (v.astype(np.float32) for v in pair((1, 112, 112)))
    a[:, :40] = 0
    expected = torchmetrics_spearman(torch.from_numpy(a).flatten(), torch.from_numpy(b).flatten())
    np.testing.assert_allclose(jit(metrics.spearman)(a, b)[0], expected, atol=1e-5)


def test_spearman_of_constant_maps_and_signed_zeros():
    a, _ = pair((3, 4, 4))
    b = np.stack([a[0], np.zeros((4, 4)), np.full((4, 4), 0.1)])
    a[1:] = [[[0.0, -0.0, 0.0, -0.0]] * 4, np.full((4, 4), 0.1)]
    np.testing.assert_allclose(jit(metrics.spearman)(a, b), [1, 0, 0], atol=1e-6)


def test_top_k_intersection_equals_sets_of_indices():
    a, b = pair((6, 5, 7))
    a[1], b[1] = np.round(a[1]), np.round(b[1])  # ties: the first of equal entries
    a[2] = 0
    b[3] = 0.3
    b[4] = a[4]
    for k in (1, 4, 35):
        expected = []
        for u, v in zip(a.reshape(6, -1), b.reshape(6, -1), strict=True):
            first, second = (set(np.argsort(-m, kind="stable")[:k]) for m in (u, v))
            expected.append(0 if np.ptp(u) == 0 or np.ptp(v) == 0 else len(first & second) / k)
        assert expected[4] == 1
        np.testing.assert_allclose(jit(lambda a, b, k=k: metrics.top_k_intersection(a, b, k))(a, b), expected)
    np.testing.assert_allclose(
        metrics.top_k_intersection(a.reshape(1, 10, 21), b.reshape(1, 10, 21)),
        metrics.top_k_intersection(a.reshape(1, 10, 21), b.reshape(1, 10, 21), 4),  # 210 / 50
    )
    for k in (0, 36):
        with pytest.raises(ValueError, match=f"between 1 and the 35 entries of an example, got {k}"):
            metrics.top_k_intersection(a, b, k)


def test_mass_center_equals_scipy():
    a = np.abs(pair((3, 6, 5))[0])
    a[2] = 0
    expected = [*(scipy.ndimage.center_of_mass(m) for m in a[:2]), (2.5, 2.0)]
    np.testing.assert_allclose(jit(metrics.mass_center)(a.astype(np.float32)), expected, rtol=1e-5)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(broken):
    a, b = (v.astype(np.float32) for v in pair((3, 12, 12)))
    a[1, 2, 3] = broken
    np.testing.assert_array_equal(metrics.finite(a), [True, False, True])
    for name in ("cosine", "cosine_distance", "pearson", "spearman", "ssim", "mse", "top_k_intersection"):
        metric = getattr(metrics, name)
        for values in (metric(a, b), metric(b, a)):
            np.testing.assert_array_equal(np.isfinite(values), [True, False, True], err_msg=name)
    np.testing.assert_array_equal(metrics.finite(metrics.heatmap(a[..., None])), [True, False, True])


def test_accuracy_counts_right_and_finite_logits():
    logits = np.array([[1, 2, 0], [3, 0, 0], [np.nan, 0, 0], [0, 0, 5.0]], np.float32)
    got = metrics.accuracy(lambda x: logits[x], np.arange(4), np.array([1, 2, 0, 2]))
    np.testing.assert_array_equal(got, [1, 0, 0, 1])
    assert got.dtype == jnp.float32


def test_refusals_name_the_shapes():
    a = jnp.zeros((2, 8, 8))
    with pytest.raises(ValueError, match=r"8 pixels is smaller than the window of 11; pass window=7"):
        metrics.ssim(a, a)
    with pytest.raises(ValueError, match=r"odd, positive number of pixels, got 6"):
        metrics.ssim(a, a, window=6)
    with pytest.raises(ValueError, match=r"boundary 'wrap' is unknown; valid names: 'reflect', 'valid', 'zero'"):
        metrics.ssim(a, a, window=7, boundary="wrap")
    for name in ("cosine", "pearson", "spearman", "ssim", "mse", "top_k_intersection"):
        with pytest.raises(ValueError, match=rf"{name} .*\(2, 8, 8\) and \(2, 8, 7\)"):
            getattr(metrics, name)(a, a[:, :, :7])
    with pytest.raises(ValueError, match=r"heatmap takes \(n, h, w, c\)"):
        metrics.heatmap(a)
