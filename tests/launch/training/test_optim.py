"""Optimisers and schedules against torch.optim, torch.optim.lr_scheduler and clip_grad_norm_, in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl import logging
from ml_collections import config_dict

from launch.stages import with_numbers
from launch.training import duration, optim
from tests.sections import read

torch = pytest.importorskip("torch")

TOTAL = 8
to_steps = functools.partial(duration.to_steps, examples=100, batch_size=50)  # 2 steps an epoch

OPTIMIZERS = {
    "sgd": (dict(name="sgd"), lambda p, **k: torch.optim.SGD(p, **k)),
    "momentum": (dict(name="sgd", momentum=0.9), lambda p, **k: torch.optim.SGD(p, momentum=0.9, **k)),
    "nesterov": (
        dict(name="sgd", momentum=0.8, nesterov=True),
        lambda p, **k: torch.optim.SGD(p, momentum=0.8, nesterov=True, **k),
    ),
    # An eps as large as the gradients: its place, inside or outside the root, shows.
    "adam": (
        dict(name="adam", b1=0.8, b2=0.95, eps=0.1),
        lambda p, **k: torch.optim.Adam(p, betas=(0.8, 0.95), eps=0.1, **k),
    ),
    "adam_defaults": (dict(name="adam"), lambda p, **k: torch.optim.Adam(p, **k)),
    "adamw": (
        dict(name="adamw", b1=0.8, b2=0.95, eps=0.1),
        lambda p, **k: torch.optim.AdamW(p, betas=(0.8, 0.95), eps=0.1, **k),
    ),
}


def _warm(o, then, w):
    warmup = torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / w, end_factor=1, total_iters=w - 1)
    return torch.optim.lr_scheduler.SequentialLR(o, [warmup, then], milestones=[w])


SCHEDULES = {
    "constant": (dict(name="constant"), lambda o: torch.optim.lr_scheduler.ConstantLR(o, factor=1.0)),
    "step": (
        dict(name="step", milestones=("1 epoch", "5 steps"), factor=0.1),
        lambda o: torch.optim.lr_scheduler.MultiStepLR(o, milestones=[2, 5], gamma=0.1),
    ),
    "cosine": (
        dict(name="cosine", final=0.0),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL),
    ),
    "cosine_final": (
        dict(name="cosine", final=0.25),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL, eta_min=0.25 * 0.05),
    ),
    "warm_constant": (
        dict(name="constant", warmup="2 epochs"),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / 4, total_iters=3),
    ),
    "warm_cosine": (
        dict(name="cosine", warmup="3 steps"),
        lambda o: _warm(o, torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=TOTAL - 3), 3),
    ),
    "warm_step": (
        dict(name="step", warmup="3 steps", milestones=("2 steps", "5 steps"), factor=0.5),
        lambda o: torch.optim.lr_scheduler.ChainedScheduler(
            [
                torch.optim.lr_scheduler.LinearLR(o, start_factor=1 / 3, total_iters=2),
                torch.optim.lr_scheduler.MultiStepLR(o, milestones=[2, 5], gamma=0.5),
            ]
        ),
    ),
}


def _config(optimizer=None, schedule=None, **fields):
    base = dict(name="sgd", learning_rate=0.05, weight_decay=0.0)
    return config_dict.ConfigDict({**base, **(optimizer or {}), **fields, "schedule": schedule or {"name": "constant"}})


def _problem():
    rng = np.random.default_rng(0)
    params = {"dense": {"bias": rng.normal(size=3), "kernel": rng.normal(size=(4, 3))}}
    return params, rng.normal(size=(TOTAL, 6, 4)), rng.normal(size=(TOTAL, 6, 3))


def _loss(p, x, y):
    return jnp.sum((jnp.tanh(x @ p["dense"]["kernel"] + p["dense"]["bias"]) - y) ** 2)


def _train(config, params, xs, ys):
    """Parameters after every step of a nonlinear regression, and the learning rates used."""
    tx, schedule = read(optim.Optimizer, config, "optimizer").create(total_steps=TOTAL, to_steps=to_steps)

    @jax.jit
    def step(p, state, x, y):
        updates, state = tx.update(jax.grad(_loss)(p, x, y), state, p)
        return optax.apply_updates(p, updates), state

    p = jax.tree.map(jnp.asarray, params)
    state, history = tx.init(p), []
    for x, y in zip(xs, ys, strict=True):
        p, state = step(p, state, x, y)
        history.append(jax.tree.map(np.asarray, p["dense"]))
    return history, [float(schedule(i)) for i in range(TOTAL)]


def _train_torch(make, make_schedule, params, xs, ys, *, clip_norm=0.0, weight_decay=0.0, decayed=("bias", "kernel")):
    p = {k: torch.tensor(v, requires_grad=True) for k, v in params["dense"].items()}
    groups = [{"params": [v], "weight_decay": weight_decay if k in decayed else 0.0} for k, v in p.items()]
    optimizer = make(groups, lr=0.05)
    schedule = make_schedule(optimizer)
    history, rates = [], []
    for x, y in zip(torch.tensor(xs), torch.tensor(ys), strict=True):
        optimizer.zero_grad()
        ((torch.tanh(x @ p["kernel"] + p["bias"]) - y) ** 2).sum().backward()
        if clip_norm:
            torch.nn.utils.clip_grad_norm_(list(p.values()), clip_norm)
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        history.append({k: v.detach().numpy().copy() for k, v in p.items()})
    return history, rates


def _assert_same(ours, theirs):
    np.testing.assert_allclose(ours[1], theirs[1], rtol=1e-10, atol=1e-15)
    for a, b in zip(ours[0], theirs[0], strict=True):
        for name in b:
            np.testing.assert_allclose(a[name], b[name], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize(
    ("optimizer", "schedule"),
    [(o, s) for o in ("momentum", "adam", "adamw") for s in SCHEDULES]
    + [("sgd", "warm_step"), ("nesterov", "step"), ("adam_defaults", "constant")],
)
def test_training_matches_torch(optimizer, schedule):
    fields, make = OPTIMIZERS[optimizer]
    schedule_fields, make_schedule = SCHEDULES[schedule]
    data = _problem()
    with jax.enable_x64(True):
        config = _config(fields, schedule_fields, clip_norm=0.5, weight_decay=0.1)
        ours = _train(config, *data)
    _assert_same(ours, _train_torch(make, make_schedule, *data, clip_norm=0.5, weight_decay=0.1))


@pytest.mark.parametrize("clip_norm", [0.0, 2.0, 1e6])  # off, active in some steps only, never reached
@pytest.mark.parametrize("optimizer", ["momentum", "adam", "adamw"])
def test_decay_mask_and_clipping_match_torch(optimizer, clip_norm):
    fields, make = OPTIMIZERS[optimizer]
    data = _problem()
    with jax.enable_x64(True):
        ours = _train(_config(fields, weight_decay=0.3, clip_norm=clip_norm, decay_mask=(".*/kernel",)), *data)
    theirs = _train_torch(
        make, SCHEDULES["constant"][1], *data, weight_decay=0.3, clip_norm=clip_norm, decayed=("kernel",)
    )
    _assert_same(ours, theirs)


def test_traced_numbers_train_as_concrete_ones():
    """A sweep of rate, decay, momentum and clipping under one vmap equals its members trained alone."""
    params, xs, ys = _problem()
    members = [(0.05, 0.1, 0.9, 0.5), (0.02, 0.0, 0.5, 0.0), (0.1, 0.3, 0.0, 2.0)]

    names = ("learning_rate", "weight_decay", "momentum", "clip_norm")

    def config(*member):
        c = _config(schedule=dict(name="cosine", warmup="2 steps"))
        c.update(dict(zip(names, member, strict=False)))
        return c

    def train(member):
        traced = with_numbers(read(optim.Optimizer, config(), "optimizer"), dict(zip(names, member, strict=True)))
        tx, _ = traced.create(total_steps=TOTAL, to_steps=to_steps)
        p = jax.tree.map(jnp.asarray, params)
        state = tx.init(p)
        for x, y in zip(xs, ys, strict=True):
            updates, state = tx.update(jax.grad(_loss)(p, x, y), state, p)
            p = optax.apply_updates(p, updates)
        return p["dense"]

    with jax.enable_x64(True):
        together = jax.jit(jax.vmap(train))(tuple(jnp.asarray(x) for x in zip(*members, strict=True)))
        apart = [_train(config(*member), params, xs, ys)[0][-1] for member in members]
    for i, alone in enumerate(apart):
        for name in alone:
            np.testing.assert_allclose(together[name][i], alone[name], rtol=1e-10, atol=1e-12)


def test_match():
    params = {"conv1": {"kernel": 0, "bias": 0}, "head": [{"kernel": 0}]}
    assert optim.match(params, (".*/kernel",)) == {
        "conv1": {"kernel": True, "bias": False},
        "head": [{"kernel": True}],
    }
    assert optim.match(params, ("head/0/.*", "conv1/bias"))["conv1"] == {"kernel": False, "bias": True}
    assert not any(jax.tree.leaves(optim.match(params, ())))
    with pytest.raises(ValueError, match=r"'kernel' matches no .* conv1/bias, conv1/kernel, head/0/kernel"):
        optim.match(params, ("kernel",))  # the whole path counts


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_decay_mask_without_a_match_fails_at_init(weight_decay):
    config = _config(weight_decay=weight_decay, decay_mask=(".*", "batch_norm/.*"))
    tx, _ = read(optim.Optimizer, config, "optimizer").create(total_steps=TOTAL, to_steps=to_steps)
    with pytest.raises(ValueError, match=r"batch_norm/\.\*"):
        tx.init({"kernel": jnp.zeros(2)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (_config(name="lamb"), "optimizer.name='lamb'; valid names: 'sgd', 'adam', 'adamw'"),
        (_config(schedule=dict(name="poly")), "schedule.name='poly'; valid names: 'constant', 'step', 'cosine'"),
        (_config(learning_rates=1.0), "optimizer.learning_rates: no such setting; optimizer has name, learning_rate"),
        (
            _config(schedule=dict(name="step", milestone=("1 epoch",))),
            "schedule.milestone: no such setting; .*milestones",
        ),
        ({"name": "sgd", "learning_rate": 0.1}, "optimizer.weight_decay: missing"),
        (_config(learning_rate=-0.1), "learning_rate=-0.1: must be a number, at least 0"),
        (_config(b1=1.0), "b1=1.0: must be a number, from 0 to below 1"),
        (_config(weight_decay="0.1"), "weight_decay='0.1': must be a number"),
        (_config(nesterov=True), "nesterov=True needs a momentum"),
        (_config(decay_mask=".*"), "must be a tuple"),
        (_config(decay_mask=("(",)), r"'\(' is not a regular expression"),
        (_config(schedule=dict(name="step")), r"milestones=\(\): 'step' needs"),
        (_config(schedule=dict(name="step", milestones="1 epoch")), "milestones='1 epoch': must be a tuple"),
        (_config(schedule=dict(name="step", milestones=("3 epochs", "6 steps"))), r"must increase.*\(6, 6\)"),
        (_config(schedule=dict(name="step", milestones=("5 steps", "2 steps"))), "must increase"),
        (_config(schedule=dict(name="cosine", warmup="2 hours")), "cannot read the duration '2 hours'"),
    ],
)
def test_errors(config, message):
    with pytest.raises(ValueError, match=message):
        read(optim.Optimizer, config, "optimizer").create(total_steps=TOTAL, to_steps=to_steps)


def test_milestone_beyond_the_end_warns(monkeypatch):
    warnings = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: warnings.append(message % args))
    config = _config(schedule=dict(name="step", milestones=("1 epoch", "40 epochs")))
    _, schedule = read(optim.Optimizer, config, "optimizer").create(total_steps=TOTAL, to_steps=to_steps)
    assert warnings == ["milestone '40 epochs' (step 80) is never reached: training has 8 steps"]
    np.testing.assert_allclose(float(schedule(TOTAL)), 0.005, rtol=1e-6)


def test_config_may_be_frozen_and_updates_need_params():
    config = config_dict.FrozenConfigDict(_config(weight_decay=0.1))
    tx, _ = read(optim.Optimizer, config, "optimizer").create(total_steps=TOTAL, to_steps=to_steps)
    params = {"kernel": jnp.ones(2, jnp.bfloat16)}
    state = tx.init(params)
    updates, _ = tx.update(params, state, params)
    assert updates["kernel"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="needs the parameters"):
        tx.update(params, state)
