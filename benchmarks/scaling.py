"""Make docs/scaling.md's table: what steps need and cost on TPU slices and on eight H100, by their compilers.

    python -m benchmarks.scaling [--only REGEX] [--cache runs/scaling] [--effort -1]

Each row is one `python -m launch.compile`, kept as JSON in the cache, so that the command goes on where it was stopped;
a row whose command has changed is compiled again. Data and weights are not needed: CLIPs of published size are folders
with a config and a tokenizer, images for CLIP are links to one small picture.
"""

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
from PIL import Image

from launch.aot import table, topologies
from launch.aot.cost import Array, Cost, cost
from launch.aot.hlo import Collective
from launch.aot.programs import lower
from launch.files import load_json, write_atomically
from launch.training.program import Pass
from rtd_jax import retrieval

PAGE = Path(__file__).parent.parent / "docs" / "scaling.md"
BEGIN, END = "<!-- begin: make scaling -->", "<!-- end: make scaling -->"
PUBLISHED = ("v5e:2x4", "v5p:2x2x2", "h100x8")
_IMAGES = 5000
_MERGES = 48_894  # of CLIP's vocabulary: 512 symbols, these, and the two ends


@dataclass(frozen=True)
class Setting:
    """A config at some topologies.

    Attributes:
      title: in the page.
      config: file below configs/.
      overrides: of the config; "{cache}" is the cache's folder.
      topologies: that it is compiled for.
      grid: of a sweep, "" for one run.
      only: see `launch.compile`.
    """

    title: str
    config: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    topologies: Sequence[str] = PUBLISHED
    grid: str = ""
    only: str = ""

    def command(self, topology: str, cache: Path, effort: float) -> list[str]:
        """The arguments of `launch.compile`."""
        overrides = {key: str(value).format(cache=cache) for key, value in self.overrides.items()}
        config = [f"--config=configs/{self.config}", *(f"--config.{key}={value}" for key, value in overrides.items())]
        return [*config, f"--topology={topology}", f"--effort={effort:g}", f"--only={self.only}", f"--grid={self.grid}"]

    def programs(self, topology: str, cache: Path, effort: float) -> list[Mapping[str, Any]]:
        """What `launch.compile` leaves of each program."""
        partly = cache / "partly.json"
        partly.unlink(missing_ok=True)
        command = [sys.executable, "-m", "launch.compile", *self.command(topology, cache, effort), f"--json={partly}"]
        done = subprocess.run(command, cwd=PAGE.parent.parent, stdout=subprocess.DEVNULL)
        if not partly.exists():  # what does not fit has status 1, and its row
            sys.exit(f"{self.title} on {topology} could not be compiled (status {done.returncode}); see above")
        return load_json(partly)["programs"]


@dataclass(frozen=True)
class Search:
    """A search in a gallery of float32 that lies on the devices of some topologies; no config has one so large.

    Attributes:
      title: in the page.
      rows, dim: of the gallery.
      queries, k: that are searched for at once, and how many rows each finds.
      topologies: that it is compiled for.
    """

    title: str
    rows: int
    dim: int
    queries: int
    k: int
    topologies: Sequence[str]

    def command(self, topology: str, cache: Path, effort: float) -> list[str]:
        """What decides the result."""
        del cache
        return [repr(self), topology, f"{effort:g}"]

    def programs(self, topology: str, cache: Path, effort: float) -> list[Mapping[str, Any]]:
        """A chunk's search, as often as a device has chunks, and the merge at the end."""
        del cache
        jax.config.update("jax_platforms", "cpu")  # nothing runs
        jax.config.update("jax_exec_time_optimization_effort", effort)
        target = topologies.topology(topology)
        found = retrieval.program(self.rows, self.dim, self.queries, self.k, target.devices)
        calls = {"search": -(-self.rows // (len(target.devices) * retrieval.CHUNK)), "merge": 1}
        passes = [Pass(f"Retrieval: {name}", one.jitted, one.arguments, calls[name]) for name, one in found.items()]
        return [
            table.as_json(table.CompiledRow(one.name, topology, one.calls, cost(one.program, one.arguments, target)))
            for one in lower(passes)
        ]


_RTD = {
    **{"clip": "{cache}/ViT-B-32", "model.dtype": "bfloat16", "rtd.batch_size": 512, "phi.batch_size": 512},
    **{"rtd.restrict_vocabulary": False, "model.unroll": False, "phi.unit_inputs": False},
}
_CLIP = {
    **{
        "init_from": "{cache}/ViT-L-14",
        "batch_size": 4096,
        "data.path": "{cache}/captions.jsonl",
    },
    **{"data.val_examples": 64, "data.test_examples": 64},
}
_BIGG = {"clip": "{cache}/ViT-bigG-14", "sharding.model": 4}
SETTINGS = (
    Setting("LeNet, l2_cosine, 128", "robustgrad/cifar10_lenet.py", only="Classifier$|gradient, aam-8"),
    Setting(
        "LeNet, l2_cosine, 128, pmap", "robustgrad/cifar10_lenet.py", {"sharding.mode": "pmap"}, only="Classifier$"
    ),
    Setting("tldr on Scenes", "tldr/scenes.py", only="Heads: [^,]*$"),
    Setting("16 LeNets, l2_cosine, 128", "robustgrad/cifar10_lenet.py", {}, PUBLISHED, "seed=0:16", "Classifiers$"),
    Setting("RTD, ViT-B/32, 512", "rtd/scenes.py", _RTD, only="Tuning$|Phi$"),
    Setting("RTD, ViT-B/32, 512, pmap", "rtd/scenes.py", _RTD | {"sharding.mode": "pmap"}, only="Tuning$"),
    Setting("ResNet-18, l2_cosine, 128", "robustgrad/cifar10_resnet18.py", only="Classifier$"),
    Setting("ResNet-50, ERM, 32", "tldr/waterbirds_resnet50.py", {"clip.source": "embedded:scenes"}, only="Erm$"),
    Setting(
        "1,024 LeNets, l2_cosine, 128", "robustgrad/cifar10_lenet.py", {}, ("v5e:16x16",), "seed=0:1024", "Classifiers$"
    ),
    Setting("CLIP ViT-L/14, 4,096", "clip/finetune.py", _CLIP, ("v5e:4x8", "v5p:2x4x4"), only="ClipTraining$"),
    Setting("RTD, ViT-bigG/14, 512, model=4", "rtd/scenes.py", _RTD | _BIGG, ("v5e:4x4",), only="Tuning$"),
    Search("10⁷ rows of 768, 1,024 queries", 10**7, 768, 1024, 50, ("v5e:4x4", "h100x8")),
    Search("10⁸ rows of 768, 1,024 queries", 10**8, 768, 1024, 50, ("v5e:16x16",)),
)


def checkpoint(name: str, folder: Path) -> None:
    """A folder with the config of a published CLIP, a tokenizer of its size, and a file of weights without any."""
    from clip_jax.config import VARIANTS
    from clip_jax.files import config_files
    from clip_jax.tokenizer import build

    config = VARIANTS[name]
    build(["a $"], context_length=config.text.context_length).save(folder)
    known = load_json(folder / "vocab.json")
    symbols = [word for word, place in sorted(known.items(), key=lambda item: item[1]) if place < 512]
    start, end = sorted(known, key=known.__getitem__)[-2:]
    firsts, lasts = symbols[:256], symbols[256:]
    merges = [(a, b) for a in firsts for b in (*firsts, *lasts)][:_MERGES]
    words = [*symbols, *(a + b for a, b in merges), start, end]
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps({word: place for place, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    (folder / "config.json").write_text(json.dumps(config_files.to_huggingface(config)))
    (folder / "model.safetensors").touch()


def prepare(cache: Path) -> None:
    """Write the stand-ins for checkpoints and for images with captions."""
    for name in ("ViT-B/32", "ViT-L/14", "ViT-bigG/14"):
        folder = cache / name.replace("/", "-")
        if not (folder / "model.safetensors").exists():
            checkpoint(name, folder)
    images, captions = cache / "images", cache / "captions.jsonl"
    if not captions.exists():
        images.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(images / "0.png")
        for number in range(1, _IMAGES):
            (images / f"{number}.png").hardlink_to(images / "0.png")
        lines = (json.dumps({"image": f"images/{n}.png", "caption": "a photo"}) for n in range(_IMAGES))
        write_atomically(captions, "\n".join(lines) + "\n")


def rows(setting: Setting | Search, topology: str, cache: Path, effort: float) -> list[table.CompiledRow]:
    """The programs of a setting for a topology, from the cache or compiled now."""
    file = cache / (re.sub(r"\W+", "-", f"{setting.title} {topology}") + ".json")
    kept = load_json(file) if file.exists() else {}
    command = setting.command(topology, cache, effort)
    if kept.get("command") != command:
        print(" ".join(command), file=sys.stderr, flush=True)
        kept = {"command": command, "programs": setting.programs(topology, cache, effort)}
        write_atomically(file, json.dumps(kept, indent=1) + "\n")
    return [_row(setting, one) for one in kept["programs"]]


def _row(setting: Setting | Search, kept: Mapping[str, Any]) -> table.CompiledRow:
    """A row as `table.as_json` wrote it."""
    values = {name: kept[name] for name in Cost.__dataclass_fields__}
    values["needed"] = float("nan") if kept["needed"] is None else kept["needed"]
    values["collectives"] = [Collective(**one) for one in kept["collectives"]]
    values["largest"] = [Array(**one) for one in kept["largest"]]
    return table.CompiledRow(
        f"{kept['program']}: {setting.title}", kept["topology"], kept["calls"] or 0, Cost(**values)
    )


def chosen(pattern: str) -> Iterator[tuple[Setting | Search, str]]:
    """The settings that a regular expression selects, by title or topology, with each topology."""
    for setting in SETTINGS:
        for topology in setting.topologies:
            if re.search(pattern, f"{setting.title} {topology}"):
                yield setting, topology


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression of title and topology; leaves the page")
    parser.add_argument("--cache", type=Path, default=Path("runs/scaling"))
    parser.add_argument("--effort", type=float, default=-1.0)
    args = parser.parse_args()
    cache = args.cache.absolute()
    cache.mkdir(parents=True, exist_ok=True)
    prepare(cache)
    found = [row for setting, topology in chosen(args.only) for row in rows(setting, topology, cache, args.effort)]
    text = table.text(found)
    print(text)
    if not args.only:
        page = PAGE.read_text()
        head, tail = page.partition(BEGIN)[0], page.partition(END)[2]
        write_atomically(PAGE, f"{head}{BEGIN}\n\n{text}\n{END}{tail}")


if __name__ == "__main__":
    main()
