"""What is measured on the test set against the same numbers from PyTorch and numpy, given the same draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch import keys, loop, sharding
from launch.data import Arrays, feed
from robustgrad_jax import evaluation, models
from robustgrad_jax.regularizers import alignment

torch = pytest.importorskip("torch")
ssim = pytest.importorskip("torchmetrics.functional.image").structural_similarity_index_measure
from benchmarks import torch_robustgrad as reference  # noqa: E402

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
    batch = feed.materialise(batch, batch[sharding.RESIDENT])
    return (batch["image"].astype(jnp.float64) / 255 - MEAN) / STD, batch["label"]


def means(split, variables, fn, **options):
    layout = sharding.layout()
    batches = feed.eval_batches(split, batch_size=BATCH)
    resident = layout.replicate(feed.resident(split))
    return loop.masked_means(layout, fn, variables, batches, resident=resident, **options)


def model():
    return models.create("lenet", num_classes=CLASSES)


def draws(kind, stream, shape, radius):
    """Every draw of every image: (draw, image, h, w, c)."""
    slots = jnp.arange(N)
    return [
        np.asarray(alignment.draw_noise(kind, keys.stream(SEED, stream, d), slots, shape, radius, jnp.float64))
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
    wanted = {k: [] for k in ("cosine", "pcc", "ssim", "mse", "gradient_cosine", "accuracy")}
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
            wanted["gradient_cosine"].append(flat_cosine(before.numpy(), after.numpy()))
            wanted["accuracy"].append(float(logits.argmax() == y))
    assert clipped > 50
    radii = (RADIUS / 2, RADIUS)
    fn = evaluation.random_perturbation_similarity(model(), prepare, std=STD, radii=radii, seed=SEED)
    found = means(split, variables, fn, repeats=DRAWS, once=evaluation.clean_maps(model(), prepare))
    assert found.pop("examples") == N
    half, full = ({k: found[f"rps-{radius:g}/{k}"] for k in wanted} for radius in radii)
    assert full == pytest.approx({k: np.mean(v) for k, v in wanted.items()}, rel=1e-6)
    assert 0.01 < full["cosine"] < 0.99  # a perturbation that can be seen
    assert full["cosine"] < half["cosine"]


def test_upper_bound_study(case):
    theirs, variables, split, x = case
    directions = draws("gaussian", "upper_bound", x.shape, 1.0)
    scale = RADIUS / (255 * STD)
    wanted = {k: [] for k in ("l2", "cosine_distance", "gradient_norm", "hessian_product_norm", "bound", "squared")}
    for i, (image, y) in enumerate(zip(x, split.labels, strict=True)):
        source = gradient(theirs, image, y)[0][0].numpy()
        for direction in directions:
            z = scale * direction[i]
            other = gradient(theirs, image + z, y)[0][0].numpy()
            along = np.linalg.norm(product(theirs, image, y, z))
            wanted["l2"].append(((source - other) ** 2).sum())
            wanted["cosine_distance"].append((1 - flat_cosine(source, other)) / 2)
            wanted["gradient_norm"].append(np.linalg.norm(other))
            wanted["hessian_product_norm"].append(along)
            wanted["bound"].append(along / np.linalg.norm(other))
            wanted["squared"].append((product(theirs, image, y, direction[i]) ** 2).sum())
    fn = evaluation.upper_bound(model(), prepare, std=STD, radius=RADIUS, seed=SEED)
    found = means(split, variables, fn, repeats=DRAWS, finish=evaluation.hutchinson)
    # the estimate of ‖H‖_F: the root of each image's mean over draws, then the mean over images
    squared = np.reshape(wanted.pop("squared"), (N, DRAWS))
    frobenius = np.sqrt(squared.mean(1)).mean()
    assert abs(frobenius - np.sqrt(squared).mean()) > 1e-3 * frobenius  # the order of the two matters here
    assert found.pop("examples") == N
    assert found == pytest.approx(
        {k: np.mean(v) for k, v in wanted.items()} | {"hessian_frobenius": frobenius}, rel=1e-6
    )


def test_padding_has_no_influence(case):
    """The rows that fill up the last batch repeat its last example: the clipping range does not move."""
    _, variables, split, _ = case
    batches = list(feed.eval_batches(split, batch_size=BATCH))
    np.testing.assert_array_equal(batches[-1]["row"], [N - 1] * BATCH)
    np.testing.assert_array_equal(batches[-1]["mask"], [True, False, False, False])
    fn = evaluation.random_perturbation_similarity(model(), prepare, std=STD, radii=(RADIUS,), seed=SEED)
    once = evaluation.clean_maps(model(), prepare)
    resident = jax.tree.map(jnp.asarray, feed.resident(split))

    @jax.jit
    def run(batch):
        batch = batch | {sharding.RESIDENT: resident}
        return fn(variables, batch | {"once": once(variables, batch)}, 0)

    padded = run(batches[-1])
    alone = run({"row": np.array([N - 1], np.int32), "slot": np.array([N - 1], np.int32)})
    for key, value in alone.items():
        np.testing.assert_allclose(padded[key][0], value[0], rtol=1e-9, err_msg=key)
