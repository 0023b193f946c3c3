"""Every field of every config, set to values that nobody can mean: refused in one line by name, or one of a short list.

What is accepted is accepted on purpose: `ACCEPTED` says why.
"""

import contextlib
import importlib
import math
import re
import signal
import time

import pytest
from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict

from launch.data import DataSet, Spec
from launch.reading import InputError
from launch.run import flatten
from launch.stages import SettingError
from launch.train import module_of
from tests.commands import ROOT
from tests.rtd_jax.benchmarks.test_data import make_circo, make_cirr, make_fashioniq, make_genecis
from tests.rtd_jax.test_plan import paths

CONFIGS = sorted(p.relative_to(ROOT) for p in (ROOT / "configs").glob("**/*.py") if p.stem != "__init__")
# The configs whose fields get all values; the fields of the others, which share their plan, get some.
IN_FULL = {
    "configs/robustgrad/digits_lenet.py",
    "configs/tldr/scenes.py",
    "configs/rtd/scenes.py",
    "configs/clip/base.py",
    "configs/tldr/words.py",
}
HANG = 60  # seconds for one plan, on however loaded a machine

TEXTS = ("", " ", "nosuch", "a\0b", "a\nb", "x" * 10_000, "\udcff", 3, None, (), b"x")
DURATIONS = ("", "-3 steps", "0 epochs", "nan epochs", "1e999999999 steps", "1e18 steps", "3 fortnights", "7" * 9999, 3)
FLOATS = (math.nan, math.inf, -math.inf, -1, 0, 1e300, "nosuch", None, (1,))
INTS = (*FLOATS, 10**12, 10**30, 1.5)
TUPLES = ((), (math.nan,), (-1,), (1e300,), ("",), ("nosuch", "nosuch"), ("\udcff",), (None,), ((),), "nosuch", None, 1)

_WEIGHTS = r"(.*\.)?(learning_rate|weight_decay|clip_norm|momentum|factor|final|b1|b2|eps)"
_REGULARIZER = r"regularizer\.((hessian|iga|atex|ig_norm|curvature)\.weight|(l2|cosine)_weight|radius|ig_norm\.beta)"
# (fields, values, why)
ACCEPTED = (
    (_WEIGHTS, (0,), "switches a part off, or is the paper's"),
    (_REGULARIZER, (0,), "switches a part off"),
    (r"(.*\.)?(seed|evaluation_seed|junk_seed|workers)", (0,), "the default"),
    (r"(.*\.)?log_every", (0,), "never"),
    (r"(.*\.)?steps_per_call", (0,), "by device and network"),
    (r"(.*\.)?(eval_every|checkpoint_every|warmup)", ("0 epochs",), "at the end; none"),
    (r"(erm|pretrain)\.duration", ("0 epochs",), "a classifier that is trained already"),
    (r"data\.(train|test)_examples|evaluation\.((attack_)?examples|references|top_k|pictures)", (0,), "all, or none"),
    (r"data\.val_examples|loop\.best_metric", (0, ""), "nothing is validated, or chosen"),
    (r"data\.(crop_padding|image_size|correlation)|words\.(junk|contested)|erm\.held_out", (0,), "none, or as stored"),
    (r"attribute_(weight|until)|projector\.(ridge|gap_rows)|gap\.gap_rows", (0,), "off"),
    (r"regularizer\.(iga|ig_norm)\.steps", (0,), "without ascent"),
    (r"phi\.(noise|dropout)|rtd\.objective\.noise", (0,), "none"),
    (r"phi\.dropout", (-1,), "the published one"),
    (r"(data|backbone)\.(mean|std)", ((),), "the data set's own"),
    (r"evaluation\.(attributions|composites|perturbations|metrics|curves|sensitivity|benchmarks)", ((),), "none"),
    (r"evaluation\.(genecis_tasks|attacked)", ((),), "none, or all"),
    (r"baselines|ablations|retrain\.grid\..*|phi\.phrases|.*\.milestones", ((),), "none, or the setting's own"),
    (r"(.*\.)?decay_mask", ((),), "decays nothing"),
    (r"(.*\.)?(init_from|load|tokenizer_from|source|base_url|key_variable|classes|cache|log)", ("",), "none"),
    (r"data\.(val_|test_)?path|data\.images|evaluation\.grad_cam_layer", ("",), "the usual place, or the last one"),
    (r"llm\.(temperature|max_tokens|retries)|rounds", (0, -1, None), "the endpoint's own"),
    # A name that only the endpoint or the hub knows; a folder that is made.
    (r"llm\.(model|key_variable)|data\.cache|log", (" ", "nosuch", "a\nb"), "known elsewhere"),
    # Read only where another setting asks for it: the type is checked, what it names is not looked for.
    (r"(data|gap|captions|images|triplets)\.(val_|test_)?(path|images|column|matcher)", TEXTS, "not read"),
    (r"data\.(image|caption)_column|evaluation\.(roots|genecis_images)\..*", TEXTS, "not read"),
    (r"evaluation\.grad_cam_layer|phi\.phrases", (*TEXTS, ("",), ("nosuch", "nosuch")), "not read"),
    (r"(phi|rtd)\.optimizer\.decay_mask", (("",), ("nosuch", "nosuch")), "compared with the network in preflight"),
)


def hostile(value, *, full):
    """Values that a field with this value cannot have, some of them unless `full`."""
    if isinstance(value, bool):
        found = (math.nan, "yes", None, (), 2)
    elif isinstance(value, int | float):
        found = INTS if isinstance(value, int) else FLOATS
    elif isinstance(value, tuple):
        found = TUPLES
    else:
        found = DURATIONS if re.search(r"\d (step|epoch|example)", value) else TEXTS
    return found if full else (found[0], found[len(found) // 2])


def accepted(name, value):
    """Whether a value may be accepted for a field."""
    same = lambda known: (type(known) is type(value) and known == value) or (known == value == 0)
    return any(re.fullmatch(names, name) and any(map(same, values)) for names, values, _ in ACCEPTED)


@contextlib.contextmanager
def watched():
    """A plan that hangs ends in TimeoutError."""

    def end(number, frame):
        raise TimeoutError(f"no answer within {HANG} seconds")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(HANG)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def problem_of(plan, base, name, value):
    """What is wrong with the answer to a value; "" if nothing is."""
    config = ConfigDict(base)
    *sections, last = name.split(".")
    part = config
    for section in sections:
        part = part[section]
    with part.ignore_type():
        part[last] = value
    try:
        with watched():
            assert plan(FrozenConfigDict(config)).key
    except (SettingError, InputError) as error:
        text = str(error)
        named = name in text or (last in text and text.startswith(name.split(".")[0]))
        return "" if named and "\n" not in text and text.isprintable() else f"says {text!r}"
    except Exception as error:
        return f"ends in {type(error).__name__}: {error}"
    return "" if accepted(name, value) else "is accepted"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """What the configs without data of their own need, so that their plans are whole."""
    folder = tmp_path_factory.mktemp("files")
    make_cirr(folder / "cirr", "val")
    make_circo(folder / "circo", "val")
    make_fashioniq(folder / "fashioniq")
    make_genecis(folder / "genecis")
    (folder / "captions.txt").write_text("\n".join(f"a dog {i}" for i in range(30)))
    row = '{{"reference_caption": "a {0}", "conditioning_caption": "is {0}", "target_caption": "b {0}"}}\n'
    (folder / "triplets.jsonl").write_text("".join(row.format(i) for i in range(30)))
    (folder / "pairs.csv").write_text("image,caption\n" + "".join(f"{i}.png,a dog {i}\n" for i in range(3000)))
    return folder


def base_of(path, folder):
    """The config of a file, with data."""
    config = importlib.import_module(".".join(path.with_suffix("").parts)).get_config()
    if path.parts[1] == "rtd":
        config.update_from_flattened_dict(paths(folder))
    if path.name == "words.py":
        config.llm.model = "model"
    if path.name == "finetune.py":
        config.init_from, config.data.path = "embedded:scenes", str(folder / "pairs.csv")
        config.model.dtype = "float32"
    return config


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_no_field_takes_what_it_cannot_use(path, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging, "info", lambda *_: None)
    spec = DataSet.spec
    known = {"cifar10": (32, 32, 3), "fashion_mnist": (28, 28, 1), "imagenet100": (224, 224, 3), "idx": (28, 28, 1)}

    def spec_of(data):  # these are not on this machine
        shape = known.get(data.name)
        names = tuple(map(str, range(10)))
        return Spec(shape, names, 40_000, data.val_examples or 5000, 10_000, True) if shape else spec(data)

    monkeypatch.setattr(DataSet, "spec", spec_of)
    config = base_of(path, files)
    plan, base = module_of(config.experiment).plan, config.to_dict()
    assert plan(FrozenConfigDict(config)).key
    problems, begun = [], time.perf_counter()
    for name, old in flatten(config).items():
        if name == "experiment" or isinstance(old, ConfigDict):
            continue
        for value in hostile(old, full=path.as_posix() in IN_FULL):
            if type(value) is type(old) and value == old:
                continue
            if problem := problem_of(plan, base, name, value):
                problems.append(f"{name}={value!r:.60}: {problem:.300}")
    assert not problems, f"{time.perf_counter() - begun:.0f} s\n" + "\n".join(problems)
    assert not list(tmp_path.iterdir())
