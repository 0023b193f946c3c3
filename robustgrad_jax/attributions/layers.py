"""Grad-CAM: how much a named intermediate of the network counts for a class's logit."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.extend.core import Literal

from launch.networks import dtypes
from robustgrad_jax.attributions.gradients import check
from robustgrad_jax.callables import check_classes
from robustgrad_jax.gradients import class_directions


def grad_cam(model, variables, x: Array, y: Array, *, layer: str, resize: bool = False) -> Array:
    """Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): max(0, Σ_c mean(∂g/∂A_c) A_c) of a layer's maps A.

    Args:
      model: any (variables, x) -> (logits, out).
      variables: all its variables.
      x: (n, h, w, c). y: int (n,).
      layer: name of a spatial intermediate in `out`, A (n, h', w', k): usually the last, such as resnet's layer4_1 or
        lenet's conv22.
      resize: bilinearly to x's height and width, as torch.nn.functional.interpolate does.

    Returns:
      (n, h', w', 1), or (n, h, w, 1) where resized; not negative.

    Raises:
      ValueError: the model has no such layer (the message lists the valid ones), it has no spatial axes, or the logits
        are not computed from it. TypeError, ValueError for x and y as in `gradient`.
    """
    check(x, y)
    maps, score_gradient = map(dtypes.wide, _value_and_gradient(lambda x: model.apply(variables, x), x, y, layer))
    weights = jnp.mean(score_gradient, axis=(1, 2), keepdims=True)
    cam = jax.nn.relu(jnp.sum(weights * maps, axis=-1, keepdims=True))
    if not resize:
        return cam
    return jax.image.resize(cam, (*x.shape[:3], 1), "bilinear", antialias=False)


def _value_and_gradient(apply: Callable, x: Array, y: Array, layer: str) -> tuple[Array, Array]:
    """A layer's value and the gradient of class y's logit with respect to it, both (n, h', w', k).

    The program is traced and run with zeros added where the layer is computed: their gradient is the layer's. So any
    model that returns its intermediates will do, without hooks.
    """
    traced, shapes = jax.make_jaxpr(apply, return_shape=True)(x)
    jaxpr = traced.jaxpr
    leaves, structure = jax.tree.flatten(shapes)
    logits_at, named = jax.tree.unflatten(structure, range(len(leaves)))
    _check_layer(layer, shapes[1])
    logits_var, layer_var = jaxpr.outvars[logits_at], jaxpr.outvars[named[layer]]

    def tapped(zeros):
        values = dict(zip(jaxpr.constvars, traced.consts, strict=True))
        depends = {layer_var}  # what is computed from the layer
        put = lambda var, value: values.__setitem__(var, value + zeros if var is layer_var else value)
        put(jaxpr.invars[0], x)
        for equation in jaxpr.eqns:
            inputs = [v.val if isinstance(v, Literal) else values[v] for v in equation.invars]
            if any(v in depends for v in equation.invars if not isinstance(v, Literal)):
                depends.update(equation.outvars)
            primitive = equation.primitive
            outputs = primitive.bind(*inputs, **primitive.get_bind_params(equation.params))
            for var, value in zip(equation.outvars, outputs if primitive.multiple_results else [outputs], strict=True):
                put(var, value)
        if logits_var not in depends:
            raise ValueError(f"grad_cam: the model's logits are not computed from out[{layer!r}]")
        return values[logits_var], values[layer_var]

    shape = shapes[1][layer]
    logits, pullback, value = jax.vjp(tapped, jnp.zeros(shape.shape, shape.dtype), has_aux=True)
    check_classes(y, logits)
    return value, pullback(class_directions(y, logits))[0]


def _check_layer(layer: str, out: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    spatial = [name for name, leaf in out.items() if getattr(leaf, "ndim", 0) == 4]
    if layer not in spatial:
        problem = "unknown layer" if layer not in out else "no spatial axes in layer"
        raise ValueError(f"grad_cam: {problem} {layer!r}; valid names: {', '.join(map(repr, spatial))}")
