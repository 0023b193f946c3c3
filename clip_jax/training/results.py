"""What the metrics of CLIP's training mean, for reports."""

from launch.reports.metrics import Metric, declare

describe = declare(
    {
        "test/zero_shot/{task}": Metric("{task}", "up", table="Zero-shot accuracy", level="main"),
        "test/{direction}_recall_at_{k:[0-9]+}": Metric(
            "R@{k}, {direction}", "up", level="main", help="share of queries with a match among the k nearest"
        ),
        "test/gap_norm": Metric("modality gap", help="distance between the mean image and the mean text embedding"),
        "test/paired_cosine": Metric("paired cosine", help="mean cosine of an image and its captions"),
        "test/modality_accuracy": Metric("modality accuracy", help="of a linear classifier of image against text"),
        "test/images": Metric("test images", digits=0, level="detail"),
        "best_step": Metric("best step", digits=0, level="detail"),
        "val/recall": Metric("validation R@1", "up", help="mean of both directions; chooses the best checkpoint"),
        "val/{direction}_recall_at_{k:[0-9]+}": Metric("validation R@{k}, {direction}", "up", level="detail"),
        "train/contrastive": Metric("contrastive loss", "down"),
        "train/attributes": Metric("loss on attributes", "down", level="detail"),
        "train/logit_scale": Metric("inverse temperature"),
        "train/{direction}_accuracy": Metric("accuracy in the batch, {direction}", "up", level="detail"),
    },
    names={"direction": {"image_to_text": "image to text", "text_to_image": "text to image"}},
)
