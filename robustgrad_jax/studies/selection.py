"""The weight of each method, chosen on validation images by one rule: `python -m robustgrad_jax.studies.selection DIR`.

DIR is a sweep that trained every method at several weights and plainly, and measured validation images
(`configs/robustgrad/cifar10_comparison.py:select`). The rule: of the weights that cost at most two points of validation
accuracy against plain training, the one whose input gradients stay most alike under random perturbation (RPS, Pearson);
where all cost more, the one that costs least.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch.processes import commands
from launch.reports import runs

PLAIN = "none"
COST = 0.02  # of validation accuracy
ACCURACY, SIMILARITY = "val/accuracy", "gradient/rps-8/pcc"
_METHOD = "regularizer.name"


@dataclass(frozen=True)
class Candidate:
    """A method at one weight.

    Attributes:
      method: name of the regulariser.
      weight: what its member of the sweep sets besides.
      accuracy: of validation images, in [0, 1].
      similarity: mean Pearson correlation of heat maps under random perturbation, in [-1, 1].
    """

    method: str
    weight: Mapping[str, Any]
    accuracy: float
    similarity: float


def choose(candidates: Iterable[Candidate], *, cost: float = COST) -> dict[str, Candidate]:
    """The best weight of each method, in the order in which methods come.

    Args:
      candidates: plain training among them.
      cost: how much accuracy a weight may cost against plain training.

    Raises:
      ReportError: plain training is missing.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.method, []).append(candidate)
    if PLAIN not in groups:
        raise runs.ReportError(f"no run of {PLAIN!r} to compare with; found {', '.join(map(repr, groups)) or 'none'}")
    least = max(candidate.accuracy for candidate in groups[PLAIN]) - cost
    return {method: _best(group, least) for method, group in groups.items()}


def _best(group: Sequence[Candidate], least: float) -> Candidate:
    accurate = [candidate for candidate in group if candidate.accuracy >= least]
    if not accurate:
        return max(group, key=lambda candidate: candidate.accuracy)
    return max(accurate, key=lambda candidate: candidate.similarity)


def read(folder: Path) -> list[Candidate]:
    """The finished members of a sweep.

    Raises:
      ReportError: there is no run in the folder, a member is not finished, or it did not measure validation images.
    """
    candidates = []
    for run in (run for study in runs.read(folder) for run in study.compared):
        if run.status != runs.FINISHED:
            raise runs.ReportError(f"{run.path} is {run.status}; run the sweep's command again")
        if missing := [key for key in (ACCURACY, SIMILARITY) if key not in run.result]:
            measured = "evaluation.split='val' with RPS of the gradient at ε = 8"
            raise runs.ReportError(
                f"{run.path}/result.json has no {', '.join(missing)}; the sweep must measure {measured}"
            )
        if run.config.get("evaluation.split") != "val":
            raise runs.ReportError(f"{run.path} measured test images; a weight is chosen on evaluation.split='val'")
        weight = {key: value for key, value in (run.overrides or {}).items() if key != _METHOD}
        result = run.result
        candidates.append(Candidate(run.config[_METHOD], weight, result[ACCURACY], result[SIMILARITY]))
    return candidates


def table(candidates: Sequence[Candidate], chosen: Mapping[str, Candidate]) -> str:
    """Markdown: a line for each candidate, those chosen marked."""
    lines = ["| method | weight | validation accuracy | RPS ε = 8, PCC | |", "|---|---|---:|---:|---|"]
    for candidate in candidates:
        weights = ", ".join(f"{key.removeprefix('regularizer.')} {value:g}" for key, value in candidate.weight.items())
        mark = "chosen" if chosen[candidate.method] == candidate else ""
        cells = (candidate.method, weights, f"{candidate.accuracy:.3f}", f"{candidate.similarity:.4f}", mark)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


@commands.ending()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=Path, help="the folder of the sweep")
    candidates = read(parser.parse_args(argv).dir)
    print(table(candidates, choose(candidates)))


if __name__ == "__main__":
    main()
