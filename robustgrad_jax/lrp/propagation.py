"""Layer-wise relevance propagation (Bach et al. 2015) for every model of the package.

The true class's logit is passed back through the network, layer by layer, each sharing what it gets among its
inputs by the rule (`robustgrad_jax.lrp.rules`) that a composite, a table layer kind -> rule, names for it. The names
and defaults of the composites are zennit's (Anders et al. 2021, arXiv 2106.13200), as are the results, with its
canonisers: batch norm merged into the convolution before it, residual sums shared by contribution.

    table = {**lrp.create("epsilon_plus"), "first": lrp_rules.flat(), "max_pool": my_rule}
    relevance = lrp.relevance(model, variables, x, y, table)
"""

import inspect
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array
from jax.core import Tracer

from robustgrad_jax.lrp import layers as lrp_layers
from robustgrad_jax.lrp import rules as lrp_rules
from robustgrad_jax.lrp.layers import Layer, Network, Residual, merge_batch_norm
from robustgrad_jax.lrp.rules import Call, Rule

__all__ = ["BOXES", "DEFAULTS", "NAMES", "create", "merge_batch_norm", "relevance"]

Bound = Array | float | None

# The rules of the kinds that a composite does not name.
DEFAULTS: Mapping[str, Rule] = {
    "activation": lrp_rules.pass_through,
    "average_pool": lrp_rules.norm(),
    "flatten": lrp_rules.gradient,
    "max_pool": lrp_rules.gradient,
    "sum": lrp_rules.norm(),
}


def _epsilon(*, epsilon: float = 1e-6) -> dict[str, Rule]:
    return {"conv": lrp_rules.epsilon(epsilon), "dense": lrp_rules.epsilon(epsilon)}


def _epsilon_plus(*, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> dict[str, Rule]:
    return {"conv": lrp_rules.zplus(stabilizer), "dense": lrp_rules.epsilon(epsilon)}


def _epsilon_alpha2_beta1(*, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> dict[str, Rule]:
    return {"conv": lrp_rules.alpha_beta(2.0, 1.0, stabilizer), "dense": lrp_rules.epsilon(epsilon)}


def _epsilon_flat(*, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> dict[str, Rule]:
    return {**_epsilon(epsilon=epsilon), "first": lrp_rules.flat(stabilizer)}


def _epsilon_plus_flat(*, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> dict[str, Rule]:
    return {**_epsilon_plus(epsilon=epsilon, stabilizer=stabilizer), "first": lrp_rules.flat(stabilizer)}


def _epsilon_alpha2_beta1_flat(*, epsilon: float = 1e-6, stabilizer: float = 1e-6) -> dict[str, Rule]:
    return {**_epsilon_alpha2_beta1(epsilon=epsilon, stabilizer=stabilizer), "first": lrp_rules.flat(stabilizer)}


def _epsilon_plus_box(
    *, low: Bound = None, high: Bound = None, epsilon: float = 1e-6, stabilizer: float = 1e-6
) -> dict[str, Rule]:
    return {**_epsilon_plus(epsilon=epsilon, stabilizer=stabilizer), "first": _box(low, high, stabilizer)}


def _with_gamma(rule: Callable[[float, float], Rule]) -> Callable[..., dict[str, Rule]]:
    """The composite with one of the gamma rules, (gamma, stabilizer) -> rule, for convolutions."""

    def composite(
        *,
        low: Bound = None,
        high: Bound = None,
        epsilon: float = 1e-6,
        gamma: float = 0.25,
        stabilizer: float = 1e-6,
    ) -> dict[str, Rule]:
        first = _box(low, high, stabilizer)
        return {**_epsilon(epsilon=epsilon), "first": first, "conv": rule(gamma, stabilizer)}

    return composite


def _box(low: Bound, high: Bound, stabilizer: float) -> Rule:
    if low is None or high is None:
        raise ValueError(
            "a composite with box needs low and high, the bounds of x in its own units: for pixels in [0, 1] before "
            "normalisation, (0 - mean) / std and (1 - mean) / std per channel"
        )
    return lrp_rules.zbox(low, high, stabilizer)


_COMPOSITES: dict[str, Callable[..., dict[str, Rule]]] = {
    "epsilon": _epsilon,
    "epsilon_flat": _epsilon_flat,
    "epsilon_plus": _epsilon_plus,
    "epsilon_plus_flat": _epsilon_plus_flat,
    "epsilon_plus_box": _epsilon_plus_box,
    "epsilon_gamma_box": _with_gamma(lrp_rules.gamma),
    "epsilon_plain_gamma_box": _with_gamma(lrp_rules.plain_gamma),
    "epsilon_alpha2_beta1": _epsilon_alpha2_beta1,
    "epsilon_alpha2_beta1_flat": _epsilon_alpha2_beta1_flat,
}
NAMES = tuple(_COMPOSITES)
BOXES = tuple(name for name, make in _COMPOSITES.items() if "low" in inspect.signature(make).parameters)


def create(name: str, **options) -> dict[str, Rule]:
    """The composite called `name` (one of `NAMES`): a table layer kind -> rule, ready to use or to change.

    The first part of a name is the rule of dense layers, the second that of convolutions; in the flat ones, and with
    box, the layer that reads the image has its own.

    Args:
      name: of the composite.
      options: epsilon (1e-6) of the epsilon rule; all but `epsilon` take stabilizer (1e-6), which is added to the
        other rules' denominators; those with gamma take gamma (0.25), those of `BOXES` need low and high, the bounds
        of x, numbers or arrays that broadcast to (h, w, c).

    Raises:
      ValueError: the name or an option is unknown (the message lists the valid ones), or a value is not allowed.
    """
    if name not in _COMPOSITES:
        raise ValueError(f"unknown composite {name!r}; valid names: {', '.join(map(repr, NAMES))}")
    known = inspect.signature(_COMPOSITES[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"composite {name!r} has no option {', '.join(unknown)}; valid options: {', '.join(known)}")
    return _COMPOSITES[name](**options)


def relevance(
    model: nn.Module,
    variables: Mapping,
    x: Array,
    y: Array,
    composite: str | Mapping[str, Rule] = "epsilon_plus",
    **options,
) -> Array:
    """Relevance of every input value for the logit of class y, (n, h, w, c).

    Pure; to be jitted by the caller; `jax.vmap` over y shares one forward pass among the classes; differentiable
    with respect to x and the variables, through the denominators too.

    Args:
      model: one of the package's networks (`robustgrad_jax.models`). ReLU is what the rules were made for; other
        activations pass relevance on just the same.
      variables: {"params": …, "batch_stats": …}; batch norm is taken in evaluation mode and merged.
      x: (n, h, w, c) normalised images. y: (n,) classes, integers.
      composite: one of `NAMES`, or a table layer kind -> rule. Kinds are conv, dense, activation, max_pool,
        average_pool, sum, flatten, and "first" for the layer that reads the image, which goes before its ordinary
        kind. `DEFAULTS` has the rules of kinds without weights, for those that a table does not name.
      options: of a composite given by name; see `create`.

    Returns:
      As a rule conserves relevance, the sum over an image is the logit, less what biases and stabilisers absorb.

    Raises:
      ValueError: an unknown composite or option; a table that names a layer kind the model lacks, or has no rule for
        one of its kinds; x or y of the wrong shape, y outside the classes (NaN where y is traced).
      TypeError: the model is not one of the package's, or y not of integers.
    """
    x, y = jnp.asarray(x), _checked_labels(x, y)
    params = merge_batch_norm(model, variables)
    dtype = jnp.result_type(x, *jax.tree.leaves(params))
    network = lrp_layers.layers(model, jax.tree.map(lambda p: p.astype(dtype), params))
    if isinstance(composite, str):
        composite = create(composite, **options)
    elif options:
        raise ValueError(f"options ({', '.join(options)}) go with a composite's name; a table has its own")
    rules = _rules(network, composite)
    logits, calls = _forward(network, x.astype(dtype))
    return _backward(calls, rules, _start(logits, y))


def _checked_labels(x: Array, y: Array) -> Array:
    y = jnp.asarray(y)
    if jnp.ndim(x) != 4 or y.shape != jnp.shape(x)[:1]:
        raise ValueError(f"relevance takes x (n, h, w, c) and y (n,), got shapes {jnp.shape(x)} and {y.shape}")
    if not jnp.issubdtype(y.dtype, jnp.integer):
        raise TypeError(f"relevance takes classes as integers, got {y.dtype}")
    return y


def _start(logits: Array, y: Array) -> Array:
    """The logit of class y in its place, zeros elsewhere; (n, classes)."""
    classes = logits.shape[-1]
    inside = (y >= 0) & (y < classes)
    if not isinstance(inside, Tracer) and not inside.all():
        raise ValueError(f"classes go from 0 to {classes - 1}, got {int(y[jnp.argmin(inside)])}")
    chosen = jnp.arange(classes) == y[:, None]
    return jnp.where(inside[:, None], jnp.where(chosen, logits, 0), jnp.nan)


# the table and the network


def _rules(network: Network, table: Mapping[str, Rule]) -> Callable[[Layer], Rule]:
    """The rule of each layer, after checking that the table and the network fit."""
    first = network[0]
    present = {layer.kind for layer in _flattened(network)}
    if missing := sorted(set(table) - present - {"first"}):
        raise ValueError(
            f"the composite names layer kinds that the model lacks: {', '.join(missing)}; "
            f"it has first, {', '.join(sorted(present))}"
        )
    table = {**DEFAULTS, **table}
    needed = {layer.kind for layer in _flattened(network) if not (layer is first and "first" in table)}
    if missing := sorted(needed - set(table)):
        raise ValueError(f"the composite has no rule for the model's layer kinds {', '.join(missing)}")
    return lambda layer: table["first"] if layer is first and "first" in table else table[layer.kind]


def _flattened(network: Network) -> list[Layer]:
    layers = []
    for node in network:
        layers += [*node.branch, *node.shortcut, node.sum] if isinstance(node, Residual) else [node]
    return layers


# the two passes; a residual's record is (calls of the branch, calls of the shortcut, the sum's call)


def _forward(network: Network, x: Array) -> tuple[Array, list]:
    calls = []
    for node in network:
        if isinstance(node, Residual):
            branch, shortcut = _forward(node.branch, x), _forward(node.shortcut, x)
            last = lrp_rules.call(node.sum, (branch[0], shortcut[0]))
            calls.append((branch[1], shortcut[1], last))
        else:
            last = lrp_rules.call(node, x)
            calls.append(last)
        x = last.y
    return x, calls


def _backward(calls: list, rules: Callable[[Layer], Rule], relevance: Array) -> Array:
    for call in reversed(calls):
        if isinstance(call, Call):
            relevance = rules(call.layer)(call, relevance)
        else:
            branch, shortcut, total = call
            shares = rules(total.layer)(total, relevance)
            if not isinstance(shares, tuple):
                raise TypeError(
                    f"the rule for sum must return a pair of arrays like call.x, got {type(shares).__name__}"
                )
            relevance = _backward(branch, rules, shares[0]) + _backward(shortcut, rules, shares[1])
    return relevance
