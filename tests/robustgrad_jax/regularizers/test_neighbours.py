"""The comparison regularizers against PyTorch double backprop, in float64, on a small smooth network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from robustgrad_jax.gradients import Ball, Draws
from robustgrad_jax.regularizers.atex import atex, orthogonal
from robustgrad_jax.regularizers.base import cross_entropy
from robustgrad_jax.regularizers.curvature import curvature
from robustgrad_jax.regularizers.ig_norm import ig_norm, integrated_gradients
from robustgrad_jax.regularizers.iga import input_gradient_spatial_alignment

torch = pytest.importorskip("torch")
F = pytest.importorskip("torch.nn.functional")

N, SIDE, CHANNELS, HIDDEN, CLASSES = 4, 5, 2, 3, 4
RADIUS = np.array([0.3, 0.15])  # one per channel


def problem(seed=0):
    rng = np.random.default_rng(seed)
    params = {
        "kernel": rng.normal(size=(3, 3, CHANNELS, HIDDEN)) * 0.5,
        "scale": 1 + 0.2 * rng.normal(size=HIDDEN),
        "dense": rng.normal(size=(SIDE * SIDE * HIDDEN, CLASSES)) * 0.3,
        "bias": rng.normal(size=CLASSES) * 0.1,
    }
    x = rng.normal(size=(N, SIDE, SIDE, CHANNELS))
    unit = rng.uniform(-1, 1, size=(2, *x.shape))
    return params, x, np.array([0, 1, 3, 1]), unit


def logits_fn(params, x, coupled=True):
    """Convolution, batch normalisation by the batch's own statistics (where `coupled`), softplus, dense."""
    h = jax.lax.conv_general_dilated(x, params["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    mean = jnp.mean(h, axis=(0, 1, 2))
    if coupled:
        h = (h - mean) / jnp.sqrt(jnp.var(h, axis=(0, 1, 2)) + 1e-5)
    h = jax.nn.softplus(2 * params["scale"] * h) / 2
    return h.reshape(len(x), -1) @ params["dense"] + params["bias"], {"mean": mean}


def jit(f, **options):
    # Tests run once what they compile: little optimisation is the faster bargain.
    return jax.jit(f, compiler_options={"xla_backend_optimization_level": 0}, **options)


def separate(params, x):
    return logits_fn(params, x, coupled=False)


def torch_logits(params, x):
    h = F.conv2d(x.permute(0, 3, 1, 2), params["kernel"].permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)
    h = (h - h.mean((0, 1, 2))) / (h.var((0, 1, 2), unbiased=False) + 1e-5).sqrt()
    h = torch.log1p(torch.exp(2 * params["scale"] * h)) / 2
    return h.reshape(len(x), -1) @ params["dense"] + params["bias"]


def torch_grad(scalar, x):
    return torch.autograd.grad(scalar, x, create_graph=True)[0]


def torch_ascend(objective, x, start, radius, step_size, steps):
    radius, step_size = (torch.as_tensor(v, dtype=torch.float64) for v in (radius, step_size))
    moved = x + start
    for _ in range(steps):
        moved = moved.detach().requires_grad_()
        moved = moved + step_size * torch.autograd.grad(objective(moved).sum(), moved)[0].sign()
        moved = torch.minimum(torch.maximum(moved, x - radius), x + radius)
    return moved.detach().requires_grad_()


def torch_triplet(params, x, y):
    logits = torch_logits(params, x)
    others = logits.detach().clone()
    others[torch.arange(len(y)), y] = -torch.inf
    true = torch_grad(logits[torch.arange(len(y)), y].sum(), x)
    runner_up = torch_grad(logits[torch.arange(len(y)), others.argmax(1)].sum(), x)
    distance = [1 - F.cosine_similarity(x.flatten(1), g.flatten(1), dim=1) for g in (runner_up, true)]
    return torch.log1p(torch.exp(-(distance[0] - distance[1])))


def torch_path_norm(params, x, moved, y, points):
    total = 0
    for k in range(1, points + 1):
        z = x + k / points * (moved - x)
        if not z.requires_grad:
            z.requires_grad_()
        total = total + torch_grad(F.cross_entropy(torch_logits(params, z), y, reduction="sum"), z)
    return ((moved - x) * total / points).flatten(1).abs().sum(1)


def torch_case(name, params, x, y, unit):
    """The reference value of a case, in the case's own words."""
    clean = torch_logits(params, x)
    start = unit[0] * torch.as_tensor(RADIUS)
    if name == "iga_clean":
        return torch_triplet(params, x, y).mean()
    if name == "iga":
        step = 2 * RADIUS / 3
        moved = torch_ascend(lambda m: torch_triplet(params, m, y), x.detach(), start, RADIUS, step, 3)
        return torch_triplet(params, moved, y).mean()
    if name == "atex":
        g = torch_grad(clean[torch.arange(len(y)), y].sum(), x).detach().flatten(1)
        g = g / g.norm(dim=1, keepdim=True)
        total = 0
        for draw in unit * torch.as_tensor(RADIUS):
            noise = draw.flatten(1)
            noise = (noise - (noise * g).sum(1, keepdim=True) * g).view_as(x)
            moved = F.log_softmax(torch_logits(params, x.detach() + noise), 1)
            total = total + F.kl_div(moved, F.softmax(clean.detach() / 2.0, 1), reduction="batchmean")
        return total / len(unit)
    if name in ("ig_norm", "ig_sum_norm"):
        beta = 0.3

        def objective(moved, points):
            norm = torch_path_norm(params, x.detach(), moved, y, points)
            if name == "ig_norm":
                return norm
            return F.cross_entropy(torch_logits(params, moved), y, reduction="none") + beta * norm

        moved = torch_ascend(lambda m: objective(m, 2), x.detach(), start, RADIUS, 0.1, 2)
        value = objective(moved, 3).mean()
        return value if name == "ig_norm" else value - F.cross_entropy(clean, y)
    assert name == "curvature"
    gradient = torch_grad(F.cross_entropy(clean, y, reduction="sum"), x)
    z = gradient.detach().sign().flatten(1)
    z = (z / z.norm(dim=1, keepdim=True)).view_as(x)
    moved = (x.detach() + 0.7 * z).requires_grad_()
    other = torch_grad(F.cross_entropy(torch_logits(params, moved), y, reduction="sum"), moved)
    return (other - gradient).flatten(1).square().sum(1).mean()


def jax_case(name, params, x, y, unit, fn=logits_fn):
    ball, start = Ball(RADIUS), Draws(start=RADIUS * unit[0])
    ig = {"steps": 2, "path_steps": 3, "attack_path_steps": 2, "step_size": 0.1}
    iga = input_gradient_spatial_alignment
    return {
        "iga_clean": lambda: iga(fn, params, x, y, ball, steps=0),
        "iga": lambda: iga(fn, params, x, y, ball, start, steps=3),
        "atex": lambda: atex(fn, params, x, y, ball, Draws(start=RADIUS * unit), samples=2, temperature=2.0),
        "ig_norm": lambda: ig_norm(fn, params, x, y, ball, start, **ig),
        "ig_sum_norm": lambda: ig_norm(fn, params, x, y, ball, start, beta=0.3, **ig),
        "curvature": lambda: curvature(fn, params, x, y, h=0.7),
    }[name]()


CASES = ("iga_clean", "iga", "atex", "ig_norm", "ig_sum_norm", "curvature")


@pytest.mark.parametrize("name", CASES)
def test_value_and_parameter_gradient_equal_pytorch(name):
    params, x, y, unit = problem()
    tparams = {k: torch.from_numpy(v).requires_grad_() for k, v in params.items()}
    tx = torch.from_numpy(x).requires_grad_()
    expected = torch_case(name, tparams, tx, torch.from_numpy(y), torch.from_numpy(unit))
    expected_gradient = torch.autograd.grad(expected, list(tparams.values()), allow_unused=True)

    with jax.enable_x64(True):

        def run(params):
            value, logits, aux = jax_case(name, params, x, y, unit)
            return value, (logits, aux)

        params = {k: jnp.asarray(v) for k, v in params.items()}
        (value, (logits, aux)), gradient = jit(jax.value_and_grad(run, has_aux=True))(params)
        np.testing.assert_allclose(value, expected.item(), rtol=1e-9)
        for key, reference in zip(tparams, expected_gradient, strict=True):
            reference = np.zeros_like(params[key]) if reference is None else reference.numpy()
            error = np.linalg.norm(gradient[key] - reference)
            assert error <= 1e-8 * np.linalg.norm(reference) + 1e-12, (key, error)
        # logits and aux are those of the clean pass, whatever else was run
        np.testing.assert_allclose(logits, torch_logits(tparams, tx).detach().numpy(), rtol=1e-10)
        np.testing.assert_allclose(aux["mean"], logits_fn(params, x)[1]["mean"], rtol=1e-12)


def random_call(name, params, x, y, key, slots):
    ball, draws = Ball(RADIUS.astype(x.dtype)), Draws(key, slots)
    if name == "iga":
        return input_gradient_spatial_alignment(separate, params, x, y, ball, draws, steps=1)
    if name == "atex":
        return atex(separate, params, x, y, ball, draws, samples=2)
    return ig_norm(separate, params, x, y, ball, draws, steps=1, path_steps=2)


@pytest.mark.parametrize("name", ["iga", "atex", "ig_norm"])
def test_random_numbers_follow_the_slot_and_not_the_place_in_the_batch(name):
    params, x, y, _ = problem()
    key, slots, order = jax.random.key(3), np.array([7, 2, 9, 4]), np.array([2, 0, 3, 1])
    with jax.enable_x64(True):
        run = jit(lambda *batch: random_call(name, params, *batch)[0])
        value = run(x, y, key, slots)
        np.testing.assert_allclose(run(x[order], y[order], key, slots[order]), value, rtol=1e-12)
        assert not np.isclose(run(x, y, key, slots + 1), value, rtol=1e-6)
        assert not np.isclose(run(x, y, jax.random.key(4), slots), value, rtol=1e-6)


def test_atex_draws_are_different():
    params, x, y, _ = problem()

    def value(samples):
        return atex(separate, params, x, y, Ball(0.1), Draws(jax.random.key(0)), samples=samples)[0]

    with jax.enable_x64(True):
        one, two = (jit(value, static_argnums=0)(samples) for samples in (1, 2))
        assert not np.isclose(one, two, rtol=1e-4)


def test_atex_moves_at_right_angles_to_the_gradient():
    params, x, y, unit = problem()

    def run():
        seen = []

        def recording(params, v):
            seen.append(v)
            return separate(params, v)

        atex(recording, params, x, y, Ball(RADIUS), Draws(start=RADIUS * unit), samples=2)
        gradient = jax.grad(lambda v: jnp.sum(separate(params, v)[0][np.arange(N), y]))(x)
        assert len(seen) == 3  # one clean pass, one for each draw
        return jnp.stack(seen[1:]), gradient, orthogonal(unit[0], jnp.zeros_like(x))

    with jax.enable_x64(True):
        moved, gradient, without = jax.device_get(jit(run)())
    np.testing.assert_array_equal(without, unit[0])  # a zero gradient forbids nothing
    delta, gradient = (moved - x).reshape(2, N, -1), gradient.reshape(N, -1)
    assert np.max(np.abs(np.sum(delta * gradient, axis=-1))) < 1e-10
    # nothing but the component along the gradient was taken away
    removed = (RADIUS * unit).reshape(2, N, -1) - delta
    cosine = np.sum(removed * gradient, -1) / np.linalg.norm(removed, axis=-1)
    np.testing.assert_allclose(np.abs(cosine) / np.linalg.norm(gradient, axis=-1), 1, rtol=1e-10)


def test_atex_takes_no_second_derivative():
    params, x, y, unit = problem()

    @jax.custom_jvp
    def slope(t):
        return jax.nn.sigmoid(t)

    slope.defjvp(lambda primals, tangents: (slope(*primals), jnp.nan * tangents[0]))
    act = jax.custom_jvp(jax.nn.softplus)
    act.defjvp(lambda primals, tangents: (act(*primals), slope(*primals) * tangents[0]))

    def network(activation):
        weights = params["dense"][: SIDE * SIDE * CHANNELS]
        return lambda p, v: (activation(v.reshape(len(v), -1) * p) @ weights, {})

    def gradient(name, activation):
        run = jit(jax.grad(lambda p: jax_case(name, p, x, y, unit, network(activation))[0]))
        return run(jnp.linspace(0.5, 1.5, SIDE * SIDE * CHANNELS))

    with jax.enable_x64(True):
        expected = gradient("atex", jax.nn.softplus)
        np.testing.assert_allclose(gradient("atex", act), expected, rtol=1e-10, atol=1e-14)
        assert np.all(np.isnan(gradient("curvature", act)))  # the probe does catch second derivatives


def test_curvature_of_a_linear_model_is_that_of_the_softmax_alone():
    _, x, y, _ = problem()
    rng = np.random.default_rng(5)

    def linear(p, v):
        return v.reshape(len(v), -1) @ p, ()

    with jax.enable_x64(True):
        w = rng.normal(size=(SIDE * SIDE * CHANNELS, CLASSES))
        # ∇L = W (p − e_y): the one-hot part cancels, W Δp is left.
        rows = x.reshape(N, -1)
        p = np.exp(rows @ w) / np.exp(rows @ w).sum(1, keepdims=True)
        z = np.sign((p - np.eye(CLASSES)[y]) @ w.T)
        moved = (rows + 0.4 * z / np.sqrt(rows.shape[1])) @ w
        q = np.exp(moved) / np.exp(moved).sum(1, keepdims=True)
        expected = np.mean(np.sum(((q - p) @ w.T) ** 2, axis=1))
        run = jit(lambda w: curvature(linear, w, x, y, h=0.4)[0])
        np.testing.assert_allclose(run(w), expected, rtol=1e-9)
        # logits that move together do not move the loss: no curvature at all
        flat = np.repeat(w[:, :1], CLASSES, axis=1)
        assert run(flat) < 1e-20


def test_integrated_gradients_sum_to_the_difference_of_the_losses():
    params, x, y, unit = problem()
    moved = x + RADIUS * unit[0]
    with jax.enable_x64(True):
        difference = cross_entropy(separate(params, moved)[0], y)
        difference = difference - cross_entropy(separate(params, x)[0], y)
        run = jit(integrated_gradients, static_argnums=(0, 5))
        errors = []
        for points in (5, 10):
            attribution = run(separate, params, x, moved, y, points)
            errors.append(attribution.sum((1, 2, 3)) - difference)
        np.testing.assert_array_less(np.abs(errors[1]), 0.1 * np.abs(difference))
        # The right Riemann sum errs by c/m + O(1/m²): extrapolated, the difference is hit.
        np.testing.assert_allclose(2 * errors[1] - errors[0], 0, atol=3e-3 * np.abs(difference).min())


def test_inner_maximisation_ascends_and_stays_in_the_ball():
    params, x, y, unit = problem()
    start = RADIUS * unit[0]

    def run(steps):
        seen = []

        def recording(params, v):
            seen.append(v)
            return separate(params, v)

        where, options = (Ball(RADIUS), Draws(start=start)), {"path_steps": 1, "step_size": 0.2, "beta": 0.1}
        value, _, _ = ig_norm(recording, params, x, y, *where, steps=steps, **options)
        return value, seen[-1]  # the penalty is the last thing computed: at x' itself

    with jax.enable_x64(True):
        (still, first), (climbed, last) = jax.device_get([jit(lambda s=steps: run(s))() for steps in (0, 2)])
    np.testing.assert_allclose(first, x + start)
    assert climbed > still
    assert not np.allclose(last, first)
    assert np.all(np.abs(last - x) <= RADIUS * (1 + 1e-12))


@pytest.mark.parametrize("name", ["iga", "atex", "ig_sum_norm", "curvature"])
def test_finite_where_gradients_vanish(name):
    params, x, y, unit = problem()
    params = {k: jnp.asarray(v, jnp.float32) for k, v in params.items()} | {"dense": jnp.zeros((75, CLASSES))}
    x, unit = jnp.asarray(x, jnp.float32), jnp.asarray(unit, jnp.float32)
    value, gradient = jit(jax.value_and_grad(lambda p: jax_case(name, p, x, y, unit, separate)[0]))(params)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_refusals_say_what_is_missing():
    params, x, y, unit = problem()
    x, unit = jnp.asarray(x, jnp.float32), jnp.asarray(unit, jnp.float32)
    ball = Ball(0.1)
    with pytest.raises(ValueError, match=r"pass Draws\(key=…\), or Draws\(start=…\)"):
        input_gradient_spatial_alignment(logits_fn, params, x, y, ball, steps=1)
    with pytest.raises(ValueError, match=r"pass Draws\(key=…\), or Draws\(start=…\)"):
        atex(logits_fn, params, x, y, ball, Draws())
    with pytest.raises(ValueError, match=r"start must have x's shape \(4, 5, 5, 2\), got \(2, 4, 5, 5, 2\)"):
        ig_norm(logits_fn, params, x, y, ball, Draws(start=unit), steps=1, path_steps=1)
    with pytest.raises(ValueError, match=r"shape \(1, 4, 5, 5, 2\) \(samples first\), got \(4, 5, 5, 2\)"):
        atex(logits_fn, params, x, y, ball, Draws(start=unit[0]))
    with pytest.raises(ValueError, match="radius must be positive, got"):
        ig_norm(logits_fn, params, x, y, Ball(0.0), Draws(start=unit[0]), steps=1, path_steps=1)
