"""Evaluation of attributions, compiled for a TPU slice: one program a batch, in which nothing is exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from launch.training import means, sharding
from robustgrad_jax import models, training
from robustgrad_jax.attributions import explainers
from robustgrad_jax.measures import evaluation, under_attack
from robustgrad_jax.measures.evaluation import Compare, Subject
from tests.aot.compiling import TPU, built, machine_of, only_with_system

pytestmark = only_with_system
N, SIDE, STD = 24, 8, (0.2, 0.2, 0.2)


@pytest.fixture(scope="module")
def case():
    """A network, its attribution, and shapes of its variables and of a batch on eight chips."""
    layout = sharding.layout(devices=machine_of(TPU).devices)
    model = models.create("lenet", num_classes=10)
    subject = Subject(model, training.Normalized((0.5,) * 3, STD), explainers.Explainer("gradient", {}))
    variables = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, SIDE, SIDE, 3))))

    def at(tree):
        """Shapes on the chips: the images of a batch divided, all else on every chip."""
        split = NamedSharding(layout.mesh, P("data"))
        where = lambda leaf: split if leaf.shape[:1] == (N,) else layout.replicated
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where(leaf)), tree)

    columns = {"label": np.int32, "slot": np.int32, "mask": np.bool_}
    batch = {name: jax.ShapeDtypeStruct((N,), dtype) for name, dtype in columns.items()}
    batch["image"] = jax.ShapeDtypeStruct((N, SIDE, SIDE, 3), np.uint8)
    return subject, at(variables), at(batch), at


def test_a_whole_attack(case):
    subject, variables, batch, _ = case
    attack = under_attack.Attack("aam", 8.0, steps=100)
    whole = jax.jit(under_attack.attacked(subject, subject, attack, std=STD, seed=0))
    made = built(machine_of(TPU), whole, variables, batch)
    assert " while(" in made.text
    # the range that attacked images are clipped to, before the loop: a minimum and a maximum over the whole batch
    assert [(found.kind, found.bytes, found.times) for found in made.module.collectives] == [("all-reduce", 4, 1)] * 2


def test_all_draws_of_random_perturbations(case):
    """The range that perturbed images are clipped to is that of the whole batch: a minimum and a maximum, once."""
    subject, variables, batch, at = case
    clean = evaluation.clean(subject)
    assert len(built(machine_of(TPU), jax.jit(clean), variables, batch).module.collectives) == 2
    measure = evaluation.random_perturbation_similarity(
        subject, std=STD, radii=(4.0, 16.0), compare=Compare(("pcc",)), seed=0
    )
    batch = batch | {"once": at(jax.eval_shape(clean, variables, batch))}
    made = built(machine_of(TPU), means._draws, measure, variables, batch, repeats=10)
    assert " while(" in made.text
    assert made.module.collectives == []
