"""An experiment that declares its metrics, as far as a report needs one."""

from launch.reports.metrics import Metric, declare

describe = declare(
    {
        "test/accuracy": Metric("test accuracy", "up", level="main"),
        "test/cross_entropy": Metric("test cross-entropy", "down"),
        "test/examples": Metric("test examples", digits=0, level="detail"),
    }
)
