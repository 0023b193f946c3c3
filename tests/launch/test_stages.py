"""Stages: what counts for a key, what is found in fields, numbers of programs, and settings from configs."""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from launch import stages
from launch.stages import (
    File,
    SettingError,
    Stage,
    children,
    describe,
    free,
    numbers,
    require,
    require_known,
    section,
    settings,
    stackable,
    stacked_numbers,
    walk,
    with_numbers,
)


@dataclass(frozen=True)
class Rate:
    """A section of a config."""

    peak: float = stackable(0.1)
    name: str = "adam"

    def __post_init__(self):
        require(self.peak > 0, self, "peak", "must be above 0")
        require_known(self, "name", ("adam", "sgd"))


@dataclass(frozen=True)
class Table(Stage):
    rows: int = 3
    file: File | None = None
    workers: int = free(0)


@dataclass(frozen=True)
class Net(Stage):
    table: Table = Table()
    rate: Rate = Rate()
    penalty: float = stackable(0.5, off_at_zero=True)
    noise: float = stackable(0.0, argument=False)
    seed: int = stackable(0)
    layers: tuple[int, ...] = (4, 2)


@dataclass(frozen=True)
class Report(Stage):
    parts: tuple[Stage, ...] = ()
    named: Mapping[str, Stage] = field(default_factory=dict)
    plain: "Holder | None" = None


@dataclass(frozen=True)
class Holder:
    stage: Stage
    number: float = 1.0


# -- keys -------------------------------------------------------------------------------------


def test_a_key_has_the_name_of_the_class_and_all_that_counts():
    one = Net()
    assert one.key.startswith("net-") and len(one.key) == len("net-") + 16
    assert one.key == Net().key == Net(table=Table()).key == replace(Net(seed=3), seed=0).key
    others = [
        Net(table=Table(rows=4)),
        Net(rate=Rate(name="sgd")),
        Net(rate=Rate(peak=0.2)),
        Net(penalty=0.0),
        Net(noise=1.0),
        Net(seed=1),
        Net(layers=(4, 3)),
        Net(layers=(4,)),
    ]
    assert len({one.key} | {other.key for other in others}) == 1 + len(others)
    assert Table(workers=8).key == Table().key and Net(table=Table(workers=8)).key == one.key  # free


def test_a_key_does_not_depend_on_how_a_number_is_written():
    assert Net(penalty=2).key == Net(penalty=2.0).key == Net(penalty=np.float64(2)).key
    assert Net(layers=[4, 2]).key == Net(layers=(4.0, np.int32(2))).key == Net().key
    assert Net(penalty=2).key != Net(penalty="2").key
    assert Table(rows=True).key != Table(rows=1).key


def test_the_stack_key_leaves_out_stackable_numbers():
    one = Net()
    for other in (Net(seed=5), Net(penalty=0.7), Net(noise=2.0), Net(rate=Rate(peak=3.0))):
        assert other.stack_key == one.stack_key and other.key != one.key
    assert Net(penalty=0.0).stack_key != one.stack_key  # switches a part of the program off
    assert Net(rate=Rate(name="sgd")).stack_key != one.stack_key
    assert Net(table=Table(rows=4)).stack_key != one.stack_key
    assert Report(parts=(Net(seed=1),)).stack_key == Report(parts=(Net(seed=2),)).stack_key


def test_another_version_or_class_is_another_key():
    @dataclass(frozen=True)
    class Versioned(Stage):
        VERSION: ClassVar[int] = 2

    other = type("Versioned", (Versioned,), {"VERSION": 3, "__qualname__": Versioned.__qualname__})
    assert other().key != Versioned().key and describe(Versioned())["version"] == 2

    @dataclass(frozen=True)
    class Inner:
        x: int = 1

    @dataclass(frozen=True)
    class Twin:
        x: int = 1

    assert describe(Inner()) != describe(Twin())


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (np.zeros(2), r"Net\.layers: a ndarray has no key; take numbers, strings, File"),
        (float("nan"), r"Net\.layers: nan is not finite"),
        ((1.0, float("inf")), r"Net\.layers: inf is not finite"),
        (len, r"Net\.layers: a builtin_function_or_method has no key"),
        (Rate, r"Net\.layers: a type has no key"),
    ],
)
def test_what_has_no_key_is_refused_with_the_field(value, problem):
    with pytest.raises((TypeError, ValueError), match=problem):
        _ = Net(layers=value).key


def test_a_file_counts_by_its_content(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("a b")
    before = Table(file=File(str(path))).key
    path.rename(tmp_path / "moved.txt")
    assert Table(file=File(str(tmp_path / "moved.txt"))).key == before  # by content, not by place
    path.write_text("a c")
    assert Table(file=File(str(path))).key != before
    path.write_text("a b")
    os.utime(path, (1, 1))
    assert Table(file=File(str(path))).key == before  # not by time
    with pytest.raises(FileNotFoundError, match="nowhere: no such file or folder"):
        _ = Table(file=File(str(tmp_path / "nowhere"))).key


def test_a_large_file_counts_by_size_and_time(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "_LARGE", 10)
    path = tmp_path / "weights"
    path.write_bytes(b"x" * 11)
    os.utime(path, ns=(5, 5))
    before = File(str(path)).digest()
    path.write_bytes(b"y" * 11)
    os.utime(path, ns=(5, 5))
    assert File(str(path)).digest() == before
    os.utime(path, ns=(5, 6))
    changed = File(str(path)).digest()
    path.write_bytes(b"y" * 12)
    os.utime(path, ns=(5, 6))
    assert len({before, changed, File(str(path)).digest()}) == 3


def test_a_folder_counts_by_names_and_contents(tmp_path):
    digest = lambda: File(str(tmp_path / "clip")).digest()
    (tmp_path / "clip/deep").mkdir(parents=True)
    (tmp_path / "clip/a").write_text("1")
    (tmp_path / "clip/deep/b").write_text("2")
    seen = [digest()]
    (tmp_path / "clip/deep/b").write_text("3")
    seen.append(digest())
    (tmp_path / "clip/deep/b").rename(tmp_path / "clip/b")
    seen.append(digest())
    (tmp_path / "clip/c").write_text("")
    seen.append(digest())
    assert len(set(seen)) == 4 and digest() == seen[-1]


# -- stages in fields -------------------------------------------------------------------------


def test_children_are_found_in_tuples_mappings_and_dataclasses():
    parts = (Table(rows=1), Net(seed=1))
    named = {"b": Table(rows=2), "a": Net(seed=2)}
    whole = Report(parts=parts, named=named, plain=Holder(Table(rows=5)))
    assert list(children(whole)) == [*parts, *named.values(), Table(rows=5)]
    assert list(children(Table())) == []


def test_walk_has_each_key_once_and_what_is_needed_first():
    shared = Table(rows=7)
    one, two = Net(table=shared, seed=1), Net(table=replace(shared, workers=4), seed=2)
    whole = Report(parts=(one, two, one), plain=Holder(shared))
    assert [stage.key for stage in walk(whole)] == [shared.key, one.key, two.key, whole.key]
    assert Report(parts=(one, two)).key != Report(parts=(two, one)).key
    assert Report(named={"a": one, "b": two}).key == Report(named={"b": two, "a": one}).key
    assert Report(plain=Holder(one)).key != Report(plain=Holder(two)).key


# -- numbers ----------------------------------------------------------------------------------


def test_numbers_are_the_stackable_fields_with_those_of_plain_dataclasses():
    assert numbers(Net()) == {"rate.peak": 0.1, "penalty": 0.5, "seed": 0}  # noise: argument=False
    assert numbers(Report(parts=(Net(),))) == {}  # those of other stages are results by now
    assert stacked_numbers([Net(seed=1), Net(seed=2, penalty=0.25)]) == {
        "rate.peak": [0.1, 0.1],
        "penalty": [0.5, 0.25],
        "seed": [1, 2],
    }
    assert stacked_numbers([Net(noise=1.0), Net(noise=2.0)])["noise"] == [1.0, 2.0]  # they differ in it


def test_with_numbers_gives_the_stage_with_others():
    one = Net()
    _ = one.key, one.stack_key
    other = with_numbers(one, {"rate.peak": 3.0, "seed": 4})
    assert other == Net(rate=Rate(peak=3.0), seed=4) and other.key == Net(rate=Rate(peak=3.0), seed=4).key
    assert one == Net() and other.stack_key == one.stack_key
    assert with_numbers(one, {"noise": 2.0}).noise == 2.0
    assert with_numbers(one, {}) == one
    for name in ("sed", "rat.peak"):
        with pytest.raises(ValueError, match=f"Net has no number '{name.split('.')[0]}'"):
            with_numbers(one, {name: 1})
    with pytest.raises(ValueError, match="Rate has no number 'top'"):
        with_numbers(one, {"rate.top": 1})


def test_numbers_may_be_traced():
    """One program for all: the stage is rebuilt inside, and its checks do not look at tracers."""
    traced = []

    @jax.jit
    def program(values):
        traced.append(1)
        own = with_numbers(Net(), values)
        return own.rate.peak * own.penalty + own.seed

    for one in (Net(), Net(seed=3, penalty=0.25, rate=Rate(peak=2.0))):
        expected = one.rate.peak * one.penalty + one.seed
        assert float(program(numbers(one))) == pytest.approx(expected)
    assert len(traced) == 1


# -- settings ---------------------------------------------------------------------------------

CONFIG = ConfigDict(
    {
        "seed": 7,
        "other": 1,
        "net": {"rate": {"peak": 2, "name": "sgd"}, "penalty": 1, "layers": [3, 1]},
        "deep": {"net": {"rate": {"peak": 0.5}}},
    }
)


@pytest.mark.parametrize("kind", [ConfigDict, FrozenConfigDict, lambda config: config.to_dict()])
def test_settings_come_from_a_section(kind):
    config = kind(CONFIG)
    one = settings(Net, config, "net", seed=config["seed"], table=Table(rows=9))
    assert one == Net(Table(rows=9), Rate(2.0, "sgd"), 1.0, seed=7, layers=(3, 1))
    assert isinstance(one.rate.peak, float) and isinstance(one.layers, tuple)
    assert settings(Net, config, "deep.net").rate == Rate(0.5)
    assert settings(Net, config, seed=1).seed == 1 and settings(Net, config).seed == 7  # the top level: only its fields
    assert settings(Net, config, "net", skip=("rate", "layers")) == Net(penalty=1.0)


@pytest.mark.parametrize(
    ("change", "path", "problem"),
    [
        ({"net.rate.peak": -1}, "net", r"^net\.rate\.peak=-1\.0: must be above 0$"),
        ({"net.rate.name": "lion"}, "net", r"^net\.rate\.name='lion'; valid names: 'adam', 'sgd'$"),
        ({"net.colour": 1}, "net", r"^net\.colour: no such setting; net has table, rate, penalty, noise, seed, layers"),
        ({"net.rate.top": 1}, "net", r"^net\.rate\.top: no such setting; net\.rate has peak, name"),
        ({"deep.net.rate.peak": 0}, "deep.net", r"^deep\.net\.rate\.peak=0\.0: must be above 0"),
        ({}, "shallow", r"^shallow: no such section; Net is read from it"),
        ({}, "deep.nets", r"^deep\.nets: no such section"),
    ],
)
def test_settings_that_are_refused_have_their_path(change, path, problem):
    config = ConfigDict(CONFIG.to_dict())
    with config.unlocked():
        for name, value in change.items():
            *folders, last = name.split(".")
            part = config
            for folder in folders:
                part = part[folder]
            part[last] = value
    with pytest.raises(SettingError, match=problem) as refused:
        settings(Net, config, path)
    assert refused.value.name in str(refused.value)


def test_a_setting_that_is_missing_is_named():
    @dataclass(frozen=True)
    class Needs:
        name: str
        count: int = 1

    with pytest.raises(SettingError, match=r"^part\.name: missing, and it has no default"):
        settings(Needs, {"part": {"count": 2}}, "part")
    with pytest.raises(SettingError, match=r"^name: missing"):
        settings(Needs, {})
    assert settings(Needs, {"part": {"count": 2}}, "part", name="x") == Needs("x", 2)


def test_sections_nest_and_names_of_tuples_are_checked_one_by_one():
    with pytest.raises(SettingError, match=r"^a\.b\.c=1: no") as refused, section("a"), section("b"), section(""):
        raise SettingError("c", "=1: no")
    assert refused.value.name == "a.b.c" and refused.value.problem == "=1: no"

    @dataclass(frozen=True)
    class Names:
        names: tuple[str, ...]

    require_known(Names(("x", "y")), "names", ("x", "y", "z"))
    with pytest.raises(SettingError, match=r"^names has 'w'; valid names: 'x', 'y'"):
        require_known(Names(("x", "w")), "names", ("x", "y"))


def test_stages_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Net().seed = 3
