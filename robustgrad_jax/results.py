"""What the numbers of a result mean; see `launch.reports.metrics`."""

import re
from functools import partial

from launch.reports.metrics import Direction, Level, Metric, declare

_TITLES = {
    "pcc": "PCC",
    "ssim": "SSIM",
    "mse": "MSE",
    "ssim_published": "SSIM (published)",
    "mse_published": "MSE (published)",
    "sumnorm_ssim": "SSIM, sum 1",
    "sumnorm_mse": "MSE, sum 1",
    "top_k": "top-k",
}
_KINDS = {"rps": "RPS", "aam": "AAM", "top_k": "top-k attack", "pgd": "PGD"}
_TERMS = ("l2", "cosine", "hessian", "iga", "atex", "ig_norm", "curvature")
_CONDITION = re.compile(r"(?P<kind>.+?)-(?P<radius>[\d.e+-]*\d)(?P<curve>-insertion)?")


def metric_title(name: str) -> str:
    """How a metric is printed: "target_pcc" -> "target PCC"."""
    before, target, metric = name.rpartition("target_")
    return target.replace("_", " ") + _TITLES.get(metric, metric.replace("_", " "))


def condition_title(group: str) -> str:
    """The printed name of a condition: "aam-8" -> "AAM ε=8"; "aam-8-insertion" for its curve."""
    match = _CONDITION.fullmatch(group)
    if not match:
        return group.replace("_", " ")
    kind = _KINDS.get(match["kind"], match["kind"].replace("_", " "))
    curve = "insertion, order of " if match["curve"] else ""
    return f"{curve}{kind} ε={match['radius']}"


def _of_attributions() -> dict[str, Metric]:
    """The metrics "ATTRIBUTION/CONDITION/METRIC"."""
    key, metric = "{attribution}/{condition}/", partial(Metric, table="{attribution}", condition="{condition}")
    metrics: dict[str, tuple[Direction, Level, str]] = {
        f"{key}cosine": ("up", "main", "cosine similarity of the heat maps before and after"),
        f"{key}pcc": ("up", "main", "Pearson correlation of the heat maps before and after"),
        f"{key}ssim": ("up", "main", "structural similarity of the heat maps before and after"),
        f"{key}ssim_published": ("up", "normal", "structural similarity as the code of Joo et al. 2023 computes it"),
        f"{key}spearman": ("up", "normal", "rank correlation of the heat maps before and after"),
        f"{key}top_k": ("up", "normal", "share of the most important pixels that stay among them"),
        f"{key}mse": ("down", "normal", "mean squared difference of the heat maps before and after"),
        f"{key}mse_published": ("down", "normal", "squared difference of the heat maps, summed over pixels"),
        f"{key}sumnorm_ssim": ("up", "normal", "SSIM (published) of the heat maps divided by their sums"),
        f"{key}sumnorm_mse": ("down", "normal", "MSE (published) of the heat maps divided by their sums"),
        f"{key}signed_cosine": ("up", "normal", "cosine similarity of the attributions themselves"),
        f"{key}accuracy": ("up", "normal", "share of the perturbed images that are classified correctly"),
        f"{key}area": ("up", "main", "mean probability of the true class as the most important pixels are inserted"),
        f"{key}max_sensitivity": ("down", "main", "largest relative change of the attribution (Yeh et al. 2019)"),
        f"{key}average_sensitivity": ("down", "normal", "mean relative change of the attribution (Yeh et al. 2019)"),
        f"{key}local_lipschitz": ("down", "normal", "largest change of the attribution over that of the image"),
        f"{key}relative_input_stability": ("down", "normal", "largest relative change over that of the image"),
        f"{key}infidelity": (
            "down",
            "normal",
            "squared error of the change of the logit that the attribution predicts",
        ),
        f"{key}logits_change": ("down", "normal", "mean squared change of the logits"),
        f"{key}nonfinite": ("down", "detail", "images whose attribution is not finite"),
        f"{key}examples": ("neither", "detail", "images measured"),
    }
    declared = {  # the pattern of deletion comes before the one of all areas
        "{attribution}/{condition:deletion}/area": metric(
            metric_title("area"), "down", help="as insertion, with the pixels removed", level="main"
        )
    }
    for pattern, (direction, level, text) in metrics.items():
        declared[pattern] = metric(metric_title(pattern.rpartition("/")[2]), direction, help=text, level=level)
    target = metric("target {metric}", "down", help="similarity to what the attack aims at", level="detail")
    mse = metric("target MSE", "up", help="distance from what the attack aims at", level="detail")
    errors = {f"{key}target_{name}": mse for name in ("mse", "mse_published", "sumnorm_mse")}
    return declared | errors | {f"{key}target_{{metric}}": target}


def _of_the_network() -> dict[str, Metric]:
    bound = partial(Metric, table="Upper bound", level="detail")
    return {
        "test/accuracy": Metric("accuracy", "up", level="main", help="of the clean test images"),
        "test/cross_entropy": Metric("cross-entropy", "down", help="of the clean test images"),
        "val/accuracy": Metric("validation accuracy", "up", help="of the checkpoint that is measured"),
        "val/cross_entropy": Metric("validation cross-entropy", "down", help="of the checkpoint that is measured"),
        "best_step": Metric("best step", level="detail", digits=0),
        "test/examples": Metric("test images", level="detail", digits=0),
        "val/examples": Metric("validation images", level="detail", digits=0),
        "upper-bound/l2": bound("‖∇g(x) − ∇g(x')‖²", "down"),
        "upper-bound/cosine_distance": bound("cosine distance", "down"),
        "upper-bound/gradient_norm": bound("‖∇g(x')‖"),
        "upper-bound/hessian_product_norm": bound("‖Hz‖", "down"),
        "upper-bound/bound": bound("‖Hz‖ / ‖∇g(x')‖", "down"),
        "upper-bound/hessian_frobenius": bound("‖H‖ (Frobenius)", "down"),
        "upper-bound/hessian_published": bound("‖H‖ (published)", "down"),
        "upper-bound/accuracy": bound("accuracy", "up"),
        "upper-bound/nonfinite": bound("not finite", "down", digits=0),
        "upper-bound/examples": bound("images", digits=0),
        "upper-bound/{metric}": bound("{metric}"),
    }


def _of_training() -> dict[str, Metric]:
    """Metrics of the curves of a training."""
    return {
        "{stage:classifier}/val/accuracy": Metric("validation accuracy", "up"),
        "{stage:classifier}/val/cross_entropy": Metric("validation cross-entropy", "down"),
        "{stage:classifier}/train/accuracy": Metric("training accuracy", "up"),
        "{stage:classifier}/train/cross_entropy": Metric("training cross-entropy", "down"),
        f"{{stage:classifier}}/train/{{term:{'|'.join(_TERMS)}}}": Metric(
            "{term}", "down", help="a term of the regulariser, without its weight"
        ),
    }


describe = declare(
    {**_of_the_network(), **_of_training(), **_of_attributions()},
    names={"condition": condition_title, "metric": metric_title},
)
