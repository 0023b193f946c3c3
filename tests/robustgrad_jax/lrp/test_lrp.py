"""Relevance propagation: rules against loops over single contributions, whole networks against what must hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.networks import activations, cnn, pooling
from robustgrad_jax import lrp, models
from robustgrad_jax.lrp import layers as lrp_layers
from robustgrad_jax.lrp import propagation
from robustgrad_jax.lrp import rules as lrp_rules

BOUNDS = {"low": np.array([-2.0, -2.5, -3.0]), "high": np.array([2.0, 2.5, 3.0])}
OPTIONS = {name: BOUNDS if name in lrp.BOXES else {} for name in lrp.NAMES}
TINY = 1e-13  # stabilisers that do not show


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def residual(activation=jax.nn.relu, *, bottleneck=False, imagenet_stem=False):
    return cnn.ResNet(5, activation, (1, 1), bottleneck, imagenet_stem)


NETWORKS = {
    "lenet": lambda activation=jax.nn.relu: cnn.LeNet(5, activation),
    "basic": residual,
    "basic, 7x7 stem": functools.partial(residual, imagenet_stem=True),
    "bottleneck": functools.partial(residual, bottleneck=True),
    "bottleneck, 7x7 stem": functools.partial(residual, bottleneck=True, imagenet_stem=True),
}


def example(model, *, bias=True, side=8, seed=0):
    """(variables, x, y): random float64 parameters of every kind; without `bias`, the network is homogeneous."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    rng = np.random.default_rng(seed)

    def leaf(path, shape):
        name = path[-1].key
        if name in ("bias", "mean"):
            return jnp.asarray(0.1 * rng.normal(size=shape.shape) * bias)
        if name in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 1.5, shape.shape))
        return jnp.asarray(rng.normal(size=shape.shape) * np.prod(shape.shape[:-1]) ** -0.5)

    variables = jax.tree_util.tree_map_with_path(leaf, shapes)
    return variables, jnp.asarray(rng.normal(size=(2, side, side, 3)).clip(-2, 2)), jnp.asarray([3, 1])


def relevance_of(model, variables, x, y, composite="epsilon_plus", **options):
    """`lrp.relevance`, compiled: one operation at a time would compile each of them."""
    run = jax.jit(lambda variables, x, y: lrp.relevance(model, variables, x, y, composite, **options))
    return run(variables, x, y)


def exact(name, network):
    """The composite with stabilisers too small to absorb anything."""
    stabilisers = {"epsilon": TINY} if name == "epsilon" else {"epsilon": TINY, "stabilizer": TINY}
    table = lrp.create(name, **stabilisers, **OPTIONS[name])
    if network != "lenet":
        table |= {"sum": lrp_rules.norm(TINY), "average_pool": lrp_rules.norm(TINY)}
    return table


# the networks as layers


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layers_compute_the_models_logits(name):
    model = NETWORKS[name](functools.partial(activations.softplus, beta=3.0))
    variables, x, _ = example(model)

    def run(network, x):
        for node in network:
            if isinstance(node, lrp_layers.Residual):
                x = node.sum.forward((run(node.branch, x), run(node.shortcut, x)))
            else:
                x = node.forward(x)
        return x

    def both(variables, x):
        network = lrp_layers.layers(model, lrp.merge_batch_norm(model, variables))
        return run(network, x), model.apply(variables, x)[0]

    ours, wanted = jax.jit(both)(variables, x)
    assert np.abs(wanted).max() > 0.01
    np.testing.assert_allclose(ours, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", models.NAMES)
def test_every_model_has_relevance_of_its_inputs_shape(name):
    model = models.create(name, num_classes=4)
    x = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    relevance = lambda variables, x, y: lrp.relevance(model, variables, x, y, "epsilon_alpha2_beta1_flat")
    assert jax.eval_shape(relevance, variables, x, jnp.zeros(2, int)).shape == x.shape
    # as many convolutions and dense layers as the variables have kernels
    kernels = [s.shape for path, s in jax.tree_util.tree_leaves_with_path(variables) if path[-1].key == "kernel"]
    flattened = lambda v: propagation._flattened(lrp_layers.layers(model, lrp.merge_batch_norm(model, v)))
    ours = jax.eval_shape(lambda v: [layer.kernel for layer in flattened(v) if layer.kernel is not None], variables)
    assert sorted(kernel.shape for kernel in ours) == sorted(kernels)


def test_merging_leaves_networks_without_batch_norm_alone():
    model = NETWORKS["lenet"]()
    variables, *_ = example(model)
    merged = lrp.merge_batch_norm(model, variables)
    jax.tree.map(np.testing.assert_array_equal, merged, dict(variables["params"]))


# rules, one contribution at a time


def by_loops(rule, x, w, b, relevance, **options):
    """Relevance of x (i,) from that of the outputs (o,): w (i, o), b (o,), straight from the formulas."""
    sign = lambda v: 1.0 if v >= 0 else -1.0
    stab = lambda v: v + 1e-6 * sign(v)
    shares = np.zeros_like(x)
    for j, r in enumerate(relevance):
        c = x * w[:, j]
        pos, neg = c.clip(0), c.clip(max=0)
        bias_pos, bias_neg = max(b[j], 0), min(b[j], 0)
        if rule == "epsilon":
            shares += c / stab(c.sum() + b[j]) * r
        elif rule == "zplus":
            shares += pos / stab(pos.sum() + bias_pos) * r
        elif rule == "alpha_beta":
            shares += (3 * pos / stab(pos.sum() + bias_pos) - 2 * neg / stab(neg.sum() + bias_neg)) * r
        elif rule == "gamma":
            own, bias_own = (pos, bias_pos) if c.sum() + b[j] > 0 else (neg, bias_neg)
            shares += (c + 0.3 * own) / stab((c + 0.3 * own).sum() + b[j] + 0.3 * bias_own) * r
        elif rule == "plain_gamma":
            c = x * (w[:, j] + 0.3 * w[:, j].clip(0))
            shares += c / stab(c.sum() + b[j] + 0.3 * bias_pos) * r
        elif rule == "zbox":
            c = c - options["low"] * w[:, j].clip(0) - options["high"] * w[:, j].clip(max=0)
            shares += c / stab(c.sum()) * r
        elif rule == "flat":
            seen = options["seen"][:, j]
            shares += seen / (seen.sum() + 1e-6) * r
    return shares


def rules():
    return {
        "epsilon": lrp_rules.epsilon(),
        "zplus": lrp_rules.zplus(),
        "alpha_beta": lrp_rules.alpha_beta(3.0, 2.0),
        "gamma": lrp_rules.gamma(0.3),
        "plain_gamma": lrp_rules.plain_gamma(0.3),
        "zbox": lrp_rules.zbox(**BOUNDS),
        "flat": lrp_rules.flat(),
    }


@pytest.mark.parametrize("nonnegative", [False, True])
@pytest.mark.parametrize("name", ["epsilon", "zplus", "alpha_beta", "gamma", "plain_gamma", "zbox", "flat"])
@pytest.mark.parametrize("kind", ["conv", "dense"])
def test_rules_by_loops_over_contributions(kind, name, nonnegative):
    rng = np.random.default_rng(0)
    shape, kernel = {"conv": ((2, 5, 4, 3), (3, 3, 3, 4)), "dense": ((2, 3), (3, 4))}[kind]
    params = {"kernel": jnp.asarray(rng.normal(size=kernel)), "bias": jnp.asarray(rng.normal(size=4))}
    build = functools.partial(lrp_layers._conv, stride=2) if kind == "conv" else lrp_layers._dense
    layer = build({"it": params}, "it", nonnegative=nonnegative)
    x = jnp.asarray(rng.normal(size=shape))
    if nonnegative:
        x = jnp.maximum(x, 0)
    call = lrp_rules.call(layer, x)
    relevance = rng.normal(size=call.y.shape)
    ours = rules()[name](call, jnp.asarray(relevance))
    # the layer as a matrix: the derivatives of its outputs, and whether an output sees an input at all
    outputs = call.y[0].size
    matrix = lambda f: np.asarray(jax.jacobian(f)(x[:1])).reshape(outputs, -1).T
    w, b = matrix(layer.forward), np.broadcast_to(params["bias"], call.y[0].shape).ravel()
    seen = (matrix(lambda x: layer.product(x, jnp.ones_like(layer.kernel))) > 0).astype(float)
    per_pixel = {key: np.broadcast_to(bound, shape[1:]).ravel() for key, bound in BOUNDS.items()}
    for image in range(2):
        flat_x, flat_r = np.asarray(x[image]).ravel(), relevance[image].ravel()
        wanted = by_loops(name, flat_x, w, b, flat_r, seen=seen, **per_pixel)
        np.testing.assert_allclose(np.ravel(ours[image]), wanted, rtol=1e-9, atol=1e-9)


def test_sums_and_average_pools_share_by_contribution():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 2, 3, 3, 4))
    total = lrp_layers.Layer("sum", "sum", lambda pair: pair[0] + pair[1])
    relevance = rng.normal(size=a.shape)
    shares = lrp_rules.norm(TINY)(lrp_rules.call(total, (jnp.asarray(a), jnp.asarray(b))), relevance)
    np.testing.assert_allclose(shares[0], a / (a + b) * relevance, rtol=1e-8)
    np.testing.assert_allclose(shares[1], b / (a + b) * relevance, rtol=1e-8)
    pool = lrp_layers.Layer("average_pool", "pool", lambda x: x.mean((1, 2)))
    shares = lrp_rules.norm(TINY)(lrp_rules.call(pool, jnp.asarray(a)), relevance[:, 0, 0])
    np.testing.assert_allclose(shares, a / a.sum((1, 2), keepdims=True) * relevance[:, :1, :1], rtol=1e-8)


def test_max_pooling_gives_all_to_the_winner():
    pool = lrp_layers.Layer("max_pool", "pool", functools.partial(pooling.max_pool, window=2))
    x = jnp.asarray([[1.0, 5.0], [2.0, 3.0]]).reshape(1, 2, 2, 1)
    shares = lrp.DEFAULTS["max_pool"](lrp_rules.call(pool, x), jnp.full((1, 1, 1, 1), 7.0))
    np.testing.assert_array_equal(shares.ravel(), [0, 7, 0, 0])


# whole networks


@pytest.mark.parametrize("network", ["lenet", "bottleneck, 7x7 stem"])
def test_epsilon_is_input_x_gradient_of_a_relu_network(network):
    """Ancona et al. 2018, proposition 1: with epsilon -> 0, ReLU, biases or not."""
    model = NETWORKS[network]()
    variables, x, y = example(model, side=16)
    relevance = relevance_of(model, variables, x, y, exact("epsilon", network))
    logit = lambda x: model.apply(variables, x)[0][jnp.arange(len(y)), y].sum()
    wanted = x * jax.jit(jax.grad(logit))(x)
    np.testing.assert_allclose(relevance, wanted, rtol=0, atol=1e-7 * np.abs(wanted).max())


CONSERVED = [("lenet", name) for name in lrp.NAMES] + [
    ("bottleneck, 7x7 stem", name) for name in ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat")
]


@pytest.mark.parametrize(("network", "composite"), CONSERVED)
def test_relevance_is_conserved_without_biases(network, composite):
    model = NETWORKS[network](functools.partial(activations.softplus, beta=3.0))
    variables, x, y = example(model, bias=False, side=16)
    relevance = relevance_of(model, variables, x, y, exact(composite, network))
    logits = jax.jit(model.apply)(variables, x)[0]
    wanted = np.asarray(logits)[np.arange(2), y]
    assert np.abs(wanted).min() > 1e-3
    # The epsilon rule's shares grow by orders of magnitude and cancel in the sum: rounding is relative to them.
    error = np.abs(relevance.sum((1, 2, 3)) - wanted)
    assert (error < 1e-6 * np.abs(wanted) + 1e-12 * np.abs(relevance).sum((1, 2, 3))).all()


def test_knowing_that_inputs_are_not_negative_changes_nothing():
    """ReLU as the package's own against the same function unrecognised, which takes the way for signed inputs."""
    known, unknown = NETWORKS["basic"](), NETWORKS["basic"](lambda x: jax.nn.relu(x))
    variables, x, y = example(known)
    network = [lrp_layers.layers(m, lrp.merge_batch_norm(m, variables)) for m in (known, unknown)]
    assert [sum(layer.nonnegative for layer in propagation._flattened(n)) for n in network] == [6, 0]
    names = ("epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1")

    def maps(model):
        run = lambda x: [lrp.relevance(model, variables, x, y, name, **OPTIONS[name]) for name in names]
        return jax.jit(run)(x)

    for a, b in zip(maps(known), maps(unknown), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max())


def test_negative_activations_are_propagated_by_their_sign():
    """SiLU goes below 0: the whole network, layer by layer in numpy, for LeNet's two dense layers under zplus."""
    model = NETWORKS["lenet"](jax.nn.silu)
    variables, x, y = example(model)
    table = {"conv": lrp_rules.gradient, "dense": lrp_rules.zplus()}
    relevance = relevance_of(model, variables, x, y, {**table, "activation": lrp_rules.gradient})
    logits, out = jax.jit(model.apply)(variables, x)
    params = jax.tree.map(np.asarray, variables["params"])
    pooled, hidden = np.asarray(out["pool2"]).reshape(2, -1), np.asarray(out["fc1"])
    assert (hidden < 0).any() and (pooled < 0).any()

    def below(x, layer, relevance):
        layer = params[layer]
        return np.stack(
            [by_loops("zplus", a, layer["kernel"], layer["bias"], r) for a, r in zip(x, relevance, strict=True)]
        )

    r = below(hidden, "fc2", np.asarray(logits) * np.eye(5)[np.asarray(y)])
    before = pooled @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    r = below(pooled, "fc1", r * np.asarray(jax.vmap(jax.grad(jax.nn.silu))(before.ravel())).reshape(r.shape))
    pooled_of = lambda x: model.apply(variables, x)[1]["pool2"].reshape(2, -1)
    wanted = jax.jit(lambda x, r: jax.vjp(pooled_of, x)[1](r)[0])(x, jnp.asarray(r))
    np.testing.assert_allclose(relevance, wanted, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("composite", ["epsilon_plus", "epsilon_gamma_box", "epsilon_alpha2_beta1_flat"])
def test_relevance_is_differentiable(composite):
    """A directional derivative of a function of the map, as attacks take it, against central differences."""
    model = NETWORKS["basic"](functools.partial(activations.softplus, beta=3.0))
    variables, x, y = example(model)
    weights, direction = np.random.default_rng(1).normal(size=(2, *x.shape))
    score = jax.jit(lambda x: (lrp.relevance(model, variables, x, y, composite, **OPTIONS[composite]) * weights).sum())
    ours = (jax.jit(jax.grad(score))(x) * direction).sum()
    step = 1e-6
    wanted = (score(x + step * direction) - score(x - step * direction)) / (2 * step)
    assert abs(wanted) > 1e-4
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_all_classes_at_once():
    model = NETWORKS["lenet"]()
    variables, x, _ = example(model)
    labels = jnp.asarray([[0, 4], [2, 2], [1, 3]])
    relevance = jax.jit(lambda y: lrp.relevance(model, variables, x, y, "epsilon_alpha2_beta1"))
    together = jax.jit(jax.vmap(relevance))(labels)
    for y, ours in zip(labels, together, strict=True):
        np.testing.assert_allclose(ours, relevance(y), rtol=1e-9, atol=1e-12)
    assert np.abs(together[0] - together[2]).max() > 1e-3


def test_a_table_of_ones_own():
    """Everything by gradient: the true class's logit times its input gradient."""
    model = NETWORKS["basic"]()
    variables, x, y = example(model)
    kinds = ("conv", "dense", "activation", "sum", "average_pool")
    relevance = relevance_of(model, variables, x, y, dict.fromkeys(kinds, lrp_rules.gradient))
    logit = lambda x: model.apply(variables, x)[0][jnp.arange(len(y)), y]
    wanted = jax.jit(lambda x: jax.grad(lambda x: logit(x).sum())(x) * logit(x)[:, None, None, None])(x)
    np.testing.assert_allclose(relevance, wanted, rtol=1e-8, atol=1e-12)


# bad input


def test_unknown_composites_and_options_list_those_that_exist():
    with pytest.raises(ValueError, match="unknown composite 'deep_taylor'") as error:
        lrp.create("deep_taylor")
    assert all(name in str(error.value) for name in lrp.NAMES)
    with pytest.raises(ValueError, match="has no option gamma; valid options: epsilon, stabilizer"):
        lrp.create("epsilon_plus", gamma=0.5)
    with pytest.raises(ValueError, match="needs low and high"):
        lrp.create("epsilon_gamma_box", low=0.0)


def test_tables_that_do_not_fit_the_model():
    model = NETWORKS["lenet"]()
    variables, x, y = example(model)
    relevance = functools.partial(lrp.relevance, model, variables, x, y)
    with pytest.raises(ValueError, match="lacks: attention, sum; it has first, activation, conv, dense"):
        relevance({**lrp.create("epsilon"), "sum": lrp_rules.norm(), "attention": lrp_rules.norm()})
    with pytest.raises(ValueError, match="no rule for the model's layer kinds dense"):
        relevance({"conv": lrp_rules.zplus()})
    with pytest.raises(ValueError, match="rule zplus is for conv and dense layers; 'pool2'"):
        relevance({**lrp.create("epsilon"), "max_pool": lrp_rules.zplus()})
    with pytest.raises(ValueError, match=r"options \(epsilon\) go with a composite's name"):
        relevance(lrp.create("epsilon"), epsilon=1e-3)
    with pytest.raises(ValueError, match=r"zbox: low of shape \(2,\) does not broadcast to images \(8, 8, 3\)"):
        relevance("epsilon_gamma_box", low=np.zeros(2), high=1.0)
    block = NETWORKS["basic"]()
    with pytest.raises(TypeError, match="rule for sum must return a pair"):
        relevance_of(block, example(block)[0], x, y, {**lrp.create("epsilon"), "sum": lrp_rules.pass_through})


def test_values_that_rules_do_not_allow():
    for rule, option in (
        ("epsilon", "epsilon"),
        ("zplus", "stabilizer"),
        ("zbox", "stabilizer"),
        ("norm", "stabilizer"),
    ):
        bounds = {"low": 0.0, "high": 1.0} if rule == "zbox" else {}
        with pytest.raises(ValueError, match=f"{option} must be > 0"):
            getattr(lrp_rules, rule)(**{option: 0.0}, **bounds)
    with pytest.raises(ValueError, match="alpha - beta = 1"):
        lrp_rules.alpha_beta(2.0, 0.5)
    with pytest.raises(ValueError, match="gamma must be >= 0"):
        lrp_rules.gamma(-0.1)


def test_wrong_inputs():
    model = NETWORKS["basic"]()
    variables, x, y = example(model)
    with pytest.raises(ValueError, match=r"got shapes \(2, 8, 8, 3\) and \(3,\)"):
        lrp.relevance(model, variables, x, jnp.zeros(3, int))
    with pytest.raises(TypeError, match="classes as integers"):
        lrp.relevance(model, variables, x, jnp.zeros(2))
    with pytest.raises(ValueError, match="classes go from 0 to 4, got -1"):
        lrp.relevance(model, variables, x, jnp.asarray([0, -1]))
    traced = jax.jit(lambda y: lrp.relevance(model, variables, x, y))(jnp.asarray([5, 1]))
    assert np.isnan(traced[0]).all() and np.isfinite(traced[1]).all()
    with pytest.raises(ValueError, match="need params, batch_stats; missing: batch_stats"):
        lrp.merge_batch_norm(model, {"params": variables["params"]})
    params = {k: v for k, v in variables["params"].items() if k != "layer2_0"}
    with pytest.raises(ValueError, match="no 'layer2_0' where the model has one; they have conv1"):
        lrp.relevance(model, {**variables, "params": params}, x, y)
    with pytest.raises(TypeError, match="not of Dense"):
        lrp.relevance(cnn.nn.Dense(3), variables, x, y)
