"""The meaning of the numbers of a result; see `launch.reports.metrics`."""

from launch.reports.metrics import Metric, declare

METHODS = {
    "erm": "ERM",
    "zero_shot": "zero-shot CLIP",
    "class_balanced": "class-balanced last layer (validation images)",
    "afr": "AFR (training images)",
    "dfr": "DFR (validation images with groups)",
    "projected_images": "DFR on projected validation images",
    "tldr": "TLDR, chosen by validation WGA",
    "tldr_class_balanced": "TLDR, chosen by class-balanced accuracy",
    "no_gap": "without the gap constraint",
    "no_clip_filter": "without the CLIP filter",
    "no_classifier_filter": "without the classifier filter",
    "no_filters": "without filters",
    "mlp_projector": "MLP projector",
}
WITH_IMAGES = (
    "zero_shot",
    "class_balanced",
    "afr",
    "dfr",
    "projected_images",
)  # they see what words stand in for: not in competition


def method_title(name: str) -> str:
    """A method's name as it is printed: "no_gap_class_balanced" -> "without the gap constraint, chosen by …"."""
    if name in METHODS:
        return METHODS[name]
    base = name.removesuffix("_class_balanced")
    title = METHODS.get(base, base.replace("_", " "))
    return title if base == name else f"{title}, chosen by class-balanced accuracy"


def _projector(title: str, direction, text: str, **options) -> Metric:
    return Metric(title, direction, table="Projector, on validation images", help=text, **options)


describe = declare(
    {
        "projector/gap_norm": _projector("‖G W‖", "down", "what is left of the gap's directions", level="detail"),
        "projector/gap_norm_relative": _projector(
            "‖G W‖ / ‖G‖‖W‖", "down", "what is left of the gap's directions, relative", level="detail"
        ),
        "projector/nmse": _projector("squared error / variance", "down", "of the features, 1 − R²", digits=3),
        "projector/accuracy": _projector("accuracy", "up", "of the classifier on its features", digits=3),
        "projector/accuracy_projected": _projector(
            "accuracy, projected", "up", "of its head on projected embeddings", digits=3
        ),
        "projector/accuracy_retained": _projector("accuracy retained", "up", "the second over the first", digits=3),
        "words/{list}": Metric("words of {list}", level="detail", digits=0, help="that the filters keep"),
        "{stage}/val/accuracy": Metric("validation accuracy", "up", digits=3),
        "{stage}/val/wga": Metric("validation WGA", "up", digits=3),
        "{method}/wga": Metric(
            "WGA", "up", row="{method}", digits=3, level="main", help="accuracy within the worst group"
        ),
        "{method}/mean": Metric("mean", "up", row="{method}", digits=3, help="accuracy over all test images"),
        "{method}/weighted_mean": Metric(
            "mean, training-weighted",
            "up",
            row="{method}",
            digits=3,
            help="accuracies of the groups, weighted by their share of the training images",
        ),
        "{method}/class_balanced": Metric(
            "class-balanced", "up", row="{method}", digits=3, help="mean of the classes' accuracies"
        ),
        "{method}/group/{class}/{value}": Metric("{class} with {value}", "up", row="{method}", digits=3),
    },
    names={"method": method_title},
    references={"method": WITH_IMAGES},
)
