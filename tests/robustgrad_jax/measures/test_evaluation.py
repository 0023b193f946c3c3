"""What is measured on the test set against the same numbers from PyTorch and numpy, given the same draws."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.data import Arrays, feed
from launch.training import keys, sharding
from launch.training.means import masked_means
from robustgrad_jax import attacks, callables, gradients, metrics, models
from robustgrad_jax.gradients import Draws
from robustgrad_jax.measures import evaluation, under_attack
from robustgrad_jax.measures.evaluation import Compare, Subject
from robustgrad_jax.measures.under_attack import Attack

torch = pytest.importorskip("torch")
ssim = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
from benchmarks.pytorch import robustgrad as reference  # noqa: E402

N, BATCH, SIDE, CLASSES, DRAWS, SEED = (
    5,
    4,
    12,
    4,
    2,
    11,
)  # the last batch holds one image and three repeats of it
MEAN, STD = np.array([0.4, 0.5, 0.6]), np.array([0.2, 0.3, 0.25])
RADIUS = 48.0  # large, so that clipping matters


@pytest.fixture(scope="module")
def case():
    """The same LeNet on both sides, five images as a split, and as normalised arrays."""
    torch.manual_seed(0)
    theirs = reference.create("lenet", num_classes=CLASSES, image_size=SIDE).double().eval()
    with torch.no_grad():  # ten times the initial weights of the dense layers: curvature worth measuring
        for layer in (theirs.fc1, theirs.fc2):
            layer.weight.mul_(10)
    rng = np.random.default_rng(0)
    # a contrast of its own for every image: the last one's range is far narrower than the first four's
    images = (rng.integers(0, 256, (N, SIDE, SIDE, 3)) * np.linspace(1, 0.3, N)[:, None, None, None]).astype(np.uint8)
    split = Arrays(images, rng.integers(0, CLASSES, N).astype(np.int32))
    x = (images / 255 - MEAN) / STD
    with jax.enable_x64(True):
        variables = models.from_torch("lenet", {k: v.numpy() for k, v in theirs.state_dict().items()})
        yield theirs, variables, split, x


def prepare(batch):
    batch = feed.materialize(batch, batch[sharding.RESIDENT])
    return (batch["image"].astype(jnp.float64) / 255 - MEAN) / STD, batch["label"]


def means(split, variables, fn, **options):
    layout = sharding.layout()
    batches = feed.eval_batches(split, batch_size=BATCH)
    resident = layout.replicate(feed.resident(split))
    return masked_means(layout, fn, variables, batches, resident=resident, **options)


def model():
    return models.create("lenet", num_classes=CLASSES)


def gradient_of(model, variables, x, y, slots=None):
    return gradients.input_gradient(lambda v, x: (model.apply(v, x)[0], None), variables, x, y)[0]


def subject(attribute=gradient_of):
    return Subject(model(), prepare, attribute)


def draws(kind, stream, shape, radius):
    """Every draw of every image: (draw, image, h, w, c)."""
    slots = jnp.arange(N)
    return [
        np.asarray(gradients.draw_noise(kind, keys.stream(SEED, stream, d), slots, shape, radius, jnp.float64))
        for d in range(DRAWS)
    ]


def gradient(theirs, x, y, graph=False):
    """∇g of one normalised image (h, w, c), and the tensors it came from."""
    xt = torch.tensor(x.transpose(2, 0, 1)[None]).requires_grad_()
    logits = theirs(xt)
    (found,) = torch.autograd.grad(logits[0, y], xt, create_graph=graph)
    return found, xt, logits


def product(theirs, x, y, direction):
    """Hv by double backward, (c, h, w)."""
    found, xt, _ = gradient(theirs, x, y, graph=True)
    along = torch.tensor(direction.transpose(2, 0, 1)[None])
    return torch.autograd.grad((found * along).sum(), xt)[0][0].numpy()


def flat_cosine(a, b):
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))


def test_accuracy(case):
    theirs, variables, split, x = case
    with torch.no_grad():
        logits = theirs(torch.tensor(np.moveaxis(x, -1, 1)))
    y = torch.tensor(split.labels, dtype=torch.int64)
    found = means(split, variables, evaluation.accuracy(model(), prepare))
    assert found["cross_entropy"] == pytest.approx(torch.nn.functional.cross_entropy(logits, y).item(), rel=1e-9)
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert found["examples"] == N


def test_random_perturbation_similarity(case):
    """Image by image and draw by draw; perturbed images clipped to what their batch spans, unpadded."""
    theirs, variables, split, x = case
    noise = draws("uniform", "rps", x.shape, RADIUS / (255 * STD))
    names = ("cosine", "pcc", "ssim", "mse", "mse_published", "sumnorm_mse", "signed_cosine")
    wanted = {k: [] for k in (*names, "accuracy")}
    clipped = 0
    for i, (image, y) in enumerate(zip(x, split.labels, strict=True)):
        batch = x[i // BATCH * BATCH : i // BATCH * BATCH + BATCH]
        before = gradient(theirs, image, y)[0][0]
        for draw in noise:
            perturbed = np.clip(image + draw[i], batch.min(), batch.max())
            clipped += (perturbed != image + draw[i]).sum()
            after, _, logits = gradient(theirs, perturbed, y)
            after = after[0]
            a, b = (m / m.max() for m in (before.abs().sum(0), after.abs().sum(0)))
            wanted["cosine"].append(flat_cosine(a.numpy(), b.numpy()))
            wanted["pcc"].append(np.corrcoef(a.numpy().ravel(), b.numpy().ravel())[0, 1])
            wanted["ssim"].append(ssim(a[None, None], b[None, None], data_range=1.0).item())
            wanted["mse"].append(((a - b) ** 2).mean().item())
            wanted["mse_published"].append(torch.nn.functional.mse_loss(a, b, reduction="sum").item())
            of_sum = [m / (m.abs().sum() + 1e-8) for m in (a, b)]
            wanted["sumnorm_mse"].append(torch.nn.functional.mse_loss(*of_sum, reduction="sum").item())
            wanted["signed_cosine"].append(flat_cosine(before.numpy(), after.numpy()))
            wanted["accuracy"].append(float(logits.argmax() == y))
    assert clipped > 50
    radii = (RADIUS / 2, RADIUS)
    case_ = subject()
    fn = evaluation.random_perturbation_similarity(case_, std=STD, radii=radii, compare=Compare(names), seed=SEED)
    found = means(split, variables, fn, repeats=DRAWS, once=evaluation.clean(case_))
    assert found.pop("examples") == N
    assert all(found[f"rps-{radius:g}/nonfinite"] == 0 for radius in radii)
    half, full = ({k: found[f"rps-{radius:g}/{k}"] for k in wanted} for radius in radii)
    assert full == pytest.approx({k: np.mean(v) for k, v in wanted.items()}, rel=1e-6)
    assert 0.01 < full["cosine"] < 0.99  # a perturbation that can be seen
    assert full["cosine"] < half["cosine"]


def test_upper_bound_study(case):
    theirs, variables, split, x = case
    directions = draws("gaussian", "upper_bound", x.shape, 1.0)
    scale = RADIUS / (255 * STD)
    names = ("l2", "cosine_distance", "gradient_norm", "hessian_product_norm", "bound", "pcc", "accuracy")
    wanted = {k: [] for k in (*names, "squared")}
    for i, (image, y) in enumerate(zip(x, split.labels, strict=True)):
        source = gradient(theirs, image, y)[0][0].numpy()
        batch = x[i // BATCH * BATCH : i // BATCH * BATCH + BATCH]
        for direction in directions:
            z = scale * direction[i]
            moved = np.clip(image + z, batch.min(), batch.max())
            assert (moved != image + z).any()
            other, _, logits = gradient(theirs, moved, y)
            other = other[0].numpy()
            maps = [np.abs(g).sum(0).ravel() for g in (source, other)]
            wanted["pcc"].append(np.corrcoef(*maps)[0, 1])
            wanted["accuracy"].append(float(logits.argmax() == y))
            along = np.linalg.norm(product(theirs, image, y, z))
            wanted["l2"].append(((source - other) ** 2).sum())
            wanted["cosine_distance"].append((1 - flat_cosine(source, other)) / 2)
            wanted["gradient_norm"].append(np.linalg.norm(other))
            wanted["hessian_product_norm"].append(along)
            wanted["bound"].append(along / np.linalg.norm(other))
            wanted["squared"].append((product(theirs, image, y, direction[i]) ** 2).sum())
    fn = evaluation.upper_bound(model(), prepare, std=STD, radius=RADIUS, compare=Compare(("pcc",)), seed=SEED)
    finish = partial(evaluation.hutchinson, radius=RADIUS, draws=DRAWS)
    found = means(split, variables, fn, repeats=DRAWS, finish=finish)
    # the estimate of ‖H‖_F: the root of each image's mean over draws, then the mean over images
    squared = np.reshape(wanted.pop("squared"), (N, DRAWS))
    frobenius = np.sqrt(squared.mean(1)).mean()
    assert abs(frobenius - np.sqrt(squared).mean()) > 1e-3 * frobenius  # the order of the two matters here
    assert found.pop("examples") == N and found.pop("nonfinite") == 0
    # what the published code calls the norm: the products with the noise itself, their sum over draws divided by ε
    along = np.reshape(wanted["hessian_product_norm"], (N, DRAWS))
    norms = {"hessian_frobenius": frobenius, "hessian_published": np.sqrt((along**2).sum(1) / RADIUS).mean()}
    assert found == pytest.approx({k: np.mean(v) for k, v in wanted.items()} | norms, rel=1e-6)


def test_padding_has_no_influence(case):
    """The rows that fill up the last batch repeat its last example: the clipping range does not move."""
    _, variables, split, _ = case
    batches = list(feed.eval_batches(split, batch_size=BATCH))
    np.testing.assert_array_equal(batches[-1]["row"], [N - 1] * BATCH)
    np.testing.assert_array_equal(batches[-1]["mask"], [True, False, False, False])
    fn = evaluation.random_perturbation_similarity(
        subject(), std=STD, radii=(RADIUS,), compare=Compare(("cosine", "pcc")), seed=SEED
    )
    once = evaluation.clean(subject())
    resident = jax.tree.map(jnp.asarray, feed.resident(split))

    @jax.jit
    def run(batch):
        batch = batch | {sharding.RESIDENT: resident}
        return fn(variables, batch | {"once": once(variables, batch)}, 0)

    padded = run(batches[-1])
    alone = run({"row": np.array([N - 1], np.int32), "slot": np.array([N - 1], np.int32)})
    for key, value in alone.items():
        np.testing.assert_allclose(padded[key][0], value[0], rtol=1e-9, err_msg=key)


def attack(kind="aam", **options):
    """Without clipping, so that an image does not depend on its batch."""
    return Attack(**dict(kind=kind, radius=RADIUS, steps=3, gamma=0.5, top_k=10, clip=False) | options)


def attacked(subject, through, attack):
    return under_attack.attacked(subject, through, attack, std=STD, seed=SEED)


@pytest.mark.parametrize("kind", ["aam", "mass_center"])
def test_under_attack(case, kind):
    """The numbers of a test set, from images that were attacked one by one."""
    theirs, variables, split, x = case
    case_, attacked_by = subject(), attack(kind)
    names = ("cosine", "pcc", "mse", "top_k", "signed_cosine")
    compare = Compare(names, top_k=10)
    fn = under_attack.under_attack(case_, attacked_by, compare=compare, curve_steps=4)
    once = attacked(case_, case_, attacked_by)
    found = means(split, variables, fn, once=once, compile_once=False)

    logits_fn, attribution_fn = case_.logits_fn(variables), lambda x, y: gradient_of(model(), variables, x, y)
    wanted = {key: [] for key in (*names, "accuracy", "logits_change", "area", "target_pcc")}
    for i, (image, y) in enumerate(zip(x, split.labels, strict=True)):
        slot, one, label = jnp.asarray([i]), jnp.asarray(image[None]), jnp.asarray([y])
        draws = Draws(keys.stream(SEED, kind), slot)
        moved = np.asarray(attacked_by(logits_fn, attribution_fn, one, label, std=STD, draws=draws))[0]
        assert np.abs(moved - image).max() > 0 and (np.abs(moved - image) <= RADIUS / 255 / STD * (1 + 1e-9)).all()
        before, _, clean_logits = gradient(theirs, image, y)
        after, _, logits = gradient(theirs, moved, y)
        a, b = ((m[0].abs().sum(0) / m[0].abs().sum(0).max()).numpy() for m in (before, after))
        wanted["cosine"].append(flat_cosine(a, b))
        wanted["pcc"].append(np.corrcoef(a.ravel(), b.ravel())[0, 1])
        wanted["mse"].append(((a - b) ** 2).mean())
        wanted["top_k"].append(len(set(np.argsort(-a.ravel())[:10]) & set(np.argsort(-b.ravel())[:10])) / 10)
        wanted["signed_cosine"].append(flat_cosine(before[0].numpy(), after[0].numpy()))
        wanted["accuracy"].append(float(logits.argmax() == y))
        wanted["logits_change"].append(((logits - clean_logits) ** 2).mean().item())
        target = np.ones((SIDE, SIDE))
        target[2:-2, 2:-2] = 0
        wanted["target_pcc"].append(np.corrcoef(b.ravel(), target.ravel())[0, 1])
        curve = metrics.insertion_curve(logits_fn, one, label, jnp.asarray(b[None]), 4)
        wanted["area"].append(float(metrics.area(curve)[0]))
    wanted = {key: np.mean(value) for key, value in wanted.items()}
    group = f"{kind}-{RADIUS:g}"
    area, target = wanted.pop("area"), wanted.pop("target_pcc")
    assert found[f"{group}-insertion/area"] == pytest.approx(area, rel=1e-6)
    assert {key: found[f"{group}/{key}"] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert (f"{group}/target_pcc" in found) == (kind == "aam")
    if kind == "aam":
        assert found[f"{group}/target_pcc"] == pytest.approx(target, rel=1e-5)
    assert found[f"{group}/nonfinite"] == 0 and found["examples"] == N


@pytest.mark.parametrize("kind", under_attack.ATTACKS)
def test_attacked_images_stay_in_the_range_of_their_batch(case, kind):
    _, variables, split, _ = case
    batch = next(iter(feed.eval_batches(split, batch_size=BATCH))) | {
        sharding.RESIDENT: jax.tree.map(jnp.asarray, feed.resident(split))
    }
    free, held = (
        attacked(subject(), subject(), attack(kind, radius=255.0, clip=clip))(variables, batch)
        for clip in (False, True)
    )
    low, high = held["x"].min(), held["x"].max()
    assert free["moved"].min() < low and free["moved"].max() > high
    assert held["moved"].min() >= low and held["moved"].max() <= high
    assert np.abs(held["moved"] - held["x"]).max() > 0.1


def test_the_attack_is_one_program_inside_jit(case):
    """What accelerators run, against the loop over compiled steps that a CPU runs."""
    _, variables, split, _ = case
    case_ = subject()
    run = attacked(case_, case_, attack(clip=True))
    batch = next(iter(feed.eval_batches(split, batch_size=BATCH))) | {
        sharding.RESIDENT: jax.tree.map(jnp.asarray, feed.resident(split))
    }
    found, wanted = jax.jit(run)(variables, batch), run(variables, batch)
    np.testing.assert_allclose(found["moved"], wanted["moved"], rtol=0, atol=1e-9)
    assert np.abs(found["moved"] - found["x"]).max() > 0.1


def test_relu_is_attacked_through_a_smooth_copy_and_measured_as_it_is(case):
    _, variables, split, _ = case
    relu = models.create("lenet", num_classes=CLASSES, activation="relu")
    case_ = Subject(relu, prepare, gradient_of)
    through = Subject(attacks.smoothed(relu, 20.0), prepare, gradient_of)
    batch = next(iter(feed.eval_batches(split, batch_size=BATCH))) | {
        sharding.RESIDENT: jax.tree.map(jnp.asarray, feed.resident(split))
    }
    found = attacked(case_, through, attack())(variables, batch)
    x, y = prepare(batch)
    smooth = models.create("lenet", num_classes=CLASSES, activation="softplus", beta=20.0)
    moved = attack()(
        callables.logits_of(smooth, variables),
        lambda x, y: gradient_of(smooth, variables, x, y),
        x,
        y,
        std=STD,
        draws=Draws(slots=batch["slot"]),
    )
    np.testing.assert_allclose(found["moved"], moved, rtol=0, atol=1e-9)
    np.testing.assert_allclose(found["after"]["attribution"], gradient_of(relu, variables, moved, y), atol=1e-9)


def test_curves_and_sensitivity(case):
    """What their own modules give for the whole set at once; the draws belong to the images, not to the batches."""
    _, variables, split, x = case
    case_, x, y = subject(), jnp.asarray(x), jnp.asarray(split.labels)
    logits_fn, attribution_fn = case_.logits_fn(variables), jax.jit(lambda x, y: gradient_of(model(), variables, x, y))
    heatmap = metrics.heatmap(attribution_fn(x, y))
    found = means(split, variables, evaluation.curves(case_, names=("insertion", "deletion"), steps=4))
    for name, fn in (("insertion", metrics.insertion_curve), ("deletion", metrics.deletion_curve)):
        points = np.asarray(fn(logits_fn, x, y, heatmap, 4)).mean(1)
        assert [found[f"{name}/{i}"] for i in range(4)] == pytest.approx(list(points), rel=1e-9)
        assert found[f"{name}/area"] == pytest.approx(((points[1:] + points[:-1]) / 2).mean(), rel=1e-9)

    names = ("max_sensitivity", "local_lipschitz", "infidelity")
    fn = evaluation.sensitivities(case_, std=STD, radius=8.0, names=names, samples=3, seed=SEED)
    found = means(split, variables, fn)
    noise = np.stack(
        [
            gradients.draw_noise(
                "uniform",
                jax.random.fold_in(keys.stream(SEED, "sensitivity"), draw),
                jnp.arange(N),
                x.shape,
                jnp.asarray(8 / 255 / STD),
                x.dtype,
            )
            for draw in range(3)
        ]
    )
    clean, norm = attribution_fn(x, y), lambda a: np.linalg.norm(np.reshape(a, (N, -1)), axis=1)
    moved = np.stack([norm(attribution_fn(x + z, y) - clean) for z in noise])
    assert found["sensitivity-8/max_sensitivity"] == pytest.approx((moved / norm(clean)).max(0).mean(), rel=1e-6)
    steps = np.stack([norm(z) for z in noise])
    assert found["sensitivity-8/local_lipschitz"] == pytest.approx((moved / steps).max(0).mean(), rel=1e-6)
    logit = lambda x: np.asarray(logits_fn(x))[np.arange(N), split.labels]
    error = [np.sum(z * clean, axis=(1, 2, 3)) - (logit(x) - logit(x - z)) for z in noise]
    assert found["sensitivity-8/infidelity"] == pytest.approx(np.square(error).mean(), rel=1e-6)


def broken(model, variables, x, y, slots):
    """NaN somewhere in the attribution of class 0's images; zero for class 1's."""
    found = gradient_of(model, variables, x, y)
    found = found.at[:, 3, 4, 0].set(jnp.where(y == 0, jnp.nan, found[:, 3, 4, 0]))
    return jnp.where((y == 1)[:, None, None, None], 0, found)


def test_attributions_that_are_not_finite_are_counted_and_never_averaged_away(case):
    _, variables, split, _ = case
    labels = np.array([0, 1, 2, 0, 2], np.int32)
    split, case_ = Arrays(split.images, labels), subject(broken)
    names = tuple(name for name in evaluation.SIMILARITIES if name != "ssim_published")  # its range is the batch's
    blocks = {
        "rps-48": (
            evaluation.random_perturbation_similarity(
                case_, std=STD, radii=(48.0,), compare=Compare(names, 10), seed=SEED
            ),
            {"repeats": 2, "once": evaluation.clean(case_), "finish": evaluation.count_nonfinite},
            names,
        ),
        "aam-48": (
            under_attack.under_attack(case_, attack(), compare=Compare(names, 10), curve_steps=4),
            {"once": attacked(case_, case_, attack()), "compile_once": False},
            names,
        ),
        "insertion": (evaluation.curves(case_, names=("insertion",), steps=4), {}, ("area", "2")),
        "sensitivity-8": (
            evaluation.sensitivities(case_, std=STD, radius=8.0, names=evaluation.SENSITIVITIES, samples=2, seed=0),
            {},
            evaluation.SENSITIVITIES,
        ),
    }
    whole = Arrays(split.images, np.array([1, 1, 2, 1, 2], np.int32))  # of one size: nothing is compiled again
    for group, (fn, options, keys_) in blocks.items():
        found = means(split, variables, fn, **options)
        assert found[f"{group}/nonfinite"] * N == pytest.approx(2), group
        assert all(np.isnan(found[f"{group}/{key}"]) for key in keys_), group
        found = means(whole, variables, fn, **options)  # images of zero attribution have a number
        assert found[f"{group}/nonfinite"] == 0
        assert all(np.isfinite(found[f"{group}/{key}"]) for key in keys_), group
