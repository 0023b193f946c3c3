"""An experiment that declares its metrics, as far as a report needs one."""

from launch.reports.metrics import Metric, declare


def condition(part: str) -> str:
    """ "rps-8" -> "RPS ε=8"."""
    kind, _, radius = part.partition("-")
    return f"{kind.upper()} ε={radius}" if radius else kind


describe = declare(
    {
        "test/accuracy": Metric("test accuracy", "up", level="main"),
        "test/cross_entropy": Metric("test cross-entropy", "down"),
        "{attribution}/{condition}/pcc": Metric(
            "PCC", "up", table="{attribution}", condition="{condition}", level="main", help="Pearson correlation"
        ),
        "{attribution}/{condition}/mse": Metric("MSE", "down", table="{attribution}", condition="{condition}"),
        "{benchmark}/{query}/recall_at_{k}": Metric("R@{k}", "up", "%", digits=1, table="{benchmark}", row="{query}"),
        "{method}/wga": Metric("WGA", "up", table="Methods", row="{method}", level="main"),
        "best_step": Metric("best step", level="detail"),
        "test/examples": Metric("test examples", digits=0, level="detail"),
    },
    names={
        "condition": condition,
        "method": {"erm": "ERM", "tldr": "TLDR"},
        "query": {"image": "image only", "phi": "φ", "rtd": "φ + RTD", "oracle": "the target's caption"},
    },
    references={"query": ["oracle"]},
)
