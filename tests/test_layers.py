"""How the house is built: who may import whom, and how long a file and a function may be."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

METHODS = {"robustgrad_jax", "tldr_jax", "rtd_jax"}
# package -> the packages of ours that it may import besides itself
ALLOWED = {
    "configs": set(),
    "launch": set(),
    "clip_jax": set(),
    "robustgrad_jax": {"launch"},
    "tldr_jax": {"launch", "clip_jax"},
    "rtd_jax": {"launch", "clip_jax"},
}
# The ground floor: how files are read and written. It imports nothing of ours but itself.
GROUND = ("launch.reading", "launch.files")
# Training CLIP stands on `launch`; the port itself, useful alone, on the ground floor only.
TRAINING, TRAINING_MAY = ("clip_jax.training",), {"launch"}
OURS = set(ALLOWED) | {"benchmarks", "tests"}
FOREIGN = {"torch", "torchvision", "tensorflow"}  # for tests and benchmarks, not for the packages
FILE_LINES, FUNCTION_LINES, FOLDER_FILES = 400, 60, 12
# Of a package that has stages, the modules that may know them; the rooms of mathematics stand below.
KNOW_STAGES = {"stages", "experiment", "results", "runs", "search", "studies", "__init__"}


def files() -> list[Path]:
    found = [p for package in ALLOWED for p in sorted((ROOT / package).rglob("*.py"))]
    return [p.relative_to(ROOT) for p in found]


def module(path: Path) -> str:
    """launch/data/__init__.py -> launch.data"""
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imported(source: str, path: Path) -> set[str]:
    """The dotted names that a file imports, wherever in it; relative imports count from its own package."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(path.parts[: len(path.parts) - node.level]) if node.level else ""
            start = ".".join(filter(None, (package, node.module)))
            names |= {f"{start}.{alias.name}" for alias in node.names}
    return names


def is_below(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def is_training(name: str) -> bool:
    return is_below(name, TRAINING)


def forbidden(source: str, path: Path) -> set[str]:
    """What a file may not import: by its package, and the training of CLIP where the file is not part of it."""
    own, trains = path.parts[0], is_training(module(path))
    allowed = ALLOWED[own] | {own} | (TRAINING_MAY if trains else set())
    names = imported(source, path)
    if is_below(module(path), GROUND):
        return {name for name in names if name.split(".")[0] in OURS | FOREIGN and not is_below(name, GROUND)}
    if own == "clip_jax":
        names = {name for name in names if not is_below(name, GROUND)}
    found = {name.split(".")[0] for name in names} & ((OURS | FOREIGN) - allowed)
    return found | {name for name in names if own == "clip_jax" and not trains and is_training(name)}


def knows_stages(path: Path) -> bool:
    """Whether a file may import the stages of its package: those on top of the mathematics."""
    package = module(path).split(".")
    return package[0] not in METHODS or len(package) == 1 or package[1] in KNOW_STAGES


def imported_stages(source: str, path: Path) -> set[str]:
    """The modules with stages, or on top of them, that a file imports from its own package."""
    tops = {f"{path.parts[0]}.{name}" for name in KNOW_STAGES - {"__init__", "results"}}
    return {name for name in imported(source, path) if any(name == top or name.startswith(f"{top}.") for top in tops)}


def folders() -> list[Path]:
    """The folders with Python files: of the packages, and of their tests."""
    tests = [path.relative_to(ROOT) for path in (ROOT / "tests").rglob("*.py")]
    return sorted({path.parent for path in [*files(), *tests]})


def function_lengths(source: str) -> dict[str, int]:
    """Lines of every function without its docstring: what has to be read to follow it."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            lengths[node.name] = lines
    return lengths


def test_every_package_of_the_tree_is_known():
    packages = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    assert packages <= OURS, "a new package needs a line in ALLOWED"
    assert {"configs", "launch", "robustgrad_jax"} <= packages


@pytest.mark.parametrize("path", files(), ids=str)
def test_imports_run_one_way(path):
    assert not forbidden((ROOT / path).read_text(), path)


@pytest.mark.parametrize(
    "path, source, found",
    [
        ("launch/a.py", "def f():\n    from robustgrad_jax.models import create", {"robustgrad_jax"}),
        ("launch/a.py", "import launch.run\nfrom . import loop", set()),
        ("configs/a.py", "from launch import loop\nfrom configs import demo", {"launch"}),
        ("robustgrad_jax/a.py", "import tldr_jax.x as y, launch", {"tldr_jax"}),
        ("rtd_jax/a.py", "import clip_jax\nimport launch\nimport tests.commands", {"tests"}),
        ("clip_jax/a.py", "import launch\nimport torch.nn.functional as F", {"launch", "torch"}),
        ("clip_jax/a.py", "from launch import files, run\nfrom launch.reading import jsons", {"launch"}),
        ("clip_jax/a.py", "from launch import files as atomic\nfrom launch.reading import jsons", set()),
        ("launch/reading/a.py", "from launch.reading import text\nfrom launch import stages", {"launch.stages"}),
        ("launch/files.py", "from launch.reading import jsons\nimport clip_jax", {"clip_jax"}),
        ("clip_jax/training/experiment.py", "from launch import loop\nfrom clip_jax.training import data", set()),
        ("clip_jax/training/data.py", "import launch.data\nimport rtd_jax", {"rtd_jax"}),
        ("clip_jax/a.py", "from clip_jax import training, model", {"clip_jax.training"}),
        ("clip_jax/a.py", "from .training import data", {"clip_jax.training.data"}),
    ],
)
def test_what_counts_as_forbidden(path, source, found):
    assert forbidden(source, Path(path)) == found


def test_every_module_imports_without_torch_and_tensorflow():
    """In a process of its own, where either import fails."""
    program = (
        "import sys, json, importlib\n"
        "class Absent:\n"  # not `sys.modules[name] = None`, which scipy takes for the module
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {sorted(FOREIGN)}: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "try:\n    import torch\nexcept ImportError: print('blocked')\n"
    )
    modules = [module(path) for path in files()]
    assert "launch.data" in modules and "robustgrad_jax.models" in modules
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(modules)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("blocked")


def test_importing_starts_no_backend():
    """`jax.distributed.initialize` has to come before JAX's first look at its devices: no module may look."""
    program = (
        "import sys, json, importlib\n"
        "for name in json.loads(sys.argv[1]): importlib.import_module(name)\n"
        "from jax._src import xla_bridge\n"
        "print(json.dumps(list(xla_bridge._backends)))\n"
    )
    if importlib.util.find_spec("jax._src.xla_bridge") is None:
        pytest.skip("this JAX keeps its backends elsewhere")
    modules = [module(path) for path in files()]
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(modules)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


@pytest.mark.parametrize("path", files(), ids=str)
def test_lengths(path):
    source = (ROOT / path).read_text()
    assert len(source.splitlines()) <= FILE_LINES
    if path.parts[0] != "configs":  # a config is one flat list of fields
        long = {name: lines for name, lines in function_lengths(source).items() if lines > FUNCTION_LINES}
        assert not long


@pytest.mark.parametrize("path", [path for path in files() if not knows_stages(path)], ids=str)
def test_mathematics_imports_no_stage(path):
    assert not imported_stages((ROOT / path).read_text(), path)


@pytest.mark.parametrize(
    "path, source, found",
    [
        ("rtd_jax/phi/lincir.py", "from rtd_jax import losses, stages", {"rtd_jax.stages"}),
        (
            "rtd_jax/phi/lincir.py",
            "from rtd_jax.stages import Phi\nfrom launch.stages import Stage",
            {"rtd_jax.stages.Phi"},
        ),
        ("tldr_jax/words/text.py", "import tldr_jax.experiment", {"tldr_jax.experiment"}),
        ("tldr_jax/words/text.py", "from launch import stages", set()),
    ],
)
def test_what_counts_as_a_stage(path, source, found):
    assert imported_stages(source, Path(path)) == found
    assert not knows_stages(Path(path)) and knows_stages(Path("rtd_jax/experiment.py"))


@pytest.mark.parametrize("folder", folders(), ids=str)
def test_folders_are_small(folder):
    assert len(list((ROOT / folder).glob("*.py"))) <= FOLDER_FILES


def test_class_names_are_unique():
    places: dict[str, list[str]] = {}
    for path in files():
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path))
    assert {"Stage", "Classifier"} <= places.keys()
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_function_lengths():
    body = "\n".join("    x = 1" for _ in range(70))
    source = f'def f():\n    """Two\n    lines."""\n    x = 2\n\n\nclass C:\n    async def g(self):\n{body}\n'
    assert function_lengths(source.replace("    x = 1", "        x = 1")) == {"f": 2, "g": 71}
