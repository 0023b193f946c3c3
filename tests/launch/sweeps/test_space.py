"""The language of --grid: what it means, by tables written by hand, and where its errors point."""

import itertools

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict, config_dict

from launch.sweeps import search, space
from launch.sweeps.members import SweepError
from tests.launch import sweep_toy

KNOWN = space.fields(sweep_toy.get_config())


def members(text: str, seed: int = 0) -> list[dict]:
    return space.expand(space.parse(text, KNOWN), seed)


def test_fields_and_their_types():
    kinds = {key: field.kind for key, field in KNOWN.items()}
    assert kinds["x"] is float and kinds["seed"] is int and kinds["flag"] is bool and kinds["free"] is int
    assert kinds["nested.names"] is tuple and "nested" not in kinds


@pytest.mark.parametrize(
    "text, expected",
    [
        ("x=1", [{"x": 1.0}]),
        ("x=1,2.5,1e-3;", [{"x": 1.0}, {"x": 2.5}, {"x": 0.001}]),
        (" x = 1 ,  2 ", [{"x": 1.0}, {"x": 2.0}]),
        ("seed=0:3", [{"seed": 0}, {"seed": 1}, {"seed": 2}]),
        ("seed=7,3:-1:-2", [{"seed": 7}, {"seed": 3}, {"seed": 1}]),
        ("x=1:3", [{"x": 1.0}, {"x": 2.0}]),
        ("flag=true,False", [{"flag": True}, {"flag": False}]),
        ("free=-3", [{"free": -3}]),
        ("ending=10 steps,1:2", [{"ending": "10 steps"}, {"ending": "1:2"}]),
        ("ending='','a;b&c,d=1',don't,~/x", [{"ending": e} for e in ("", "a;b&c,d=1", "don't", "~/x")]),
        ('ending="it\'s",3', [{"ending": "it's"}, {"ending": "3"}]),
        ("nested.radii=(1,2.5),(16,),()", [{"nested.radii": r} for r in ((1.0, 2.5), (16.0,), ())]),
        ("nested.names=(a,'b, c'),[d]", [{"nested.names": n} for n in (("a", "b, c"), ("d",))]),
        ("x=1,2 & seed=5,6", [{"x": 1.0, "seed": 5}, {"x": 2.0, "seed": 6}]),
        (
            "x=1,2 & seed=5,6; flag=true,false",
            [{"x": x, "seed": s, "flag": f} for (x, s), f in itertools.product([(1.0, 5), (2.0, 6)], [True, False])],
        ),
    ],
)
def test_what_a_grid_means(text, expected):
    found = members(text)
    assert found == expected
    assert [[type(v) for v in m.values()] for m in found] == [[type(v) for v in m.values()] for m in expected]


@pytest.mark.parametrize(
    "text, column, message",
    [
        ("", 1, "expected key=values"),
        ("x=1;;seed=2", 5, "expected key=values"),
        ("x", 1, "expected key=values, got 'x'"),
        ("seed=1;x=", 10, "expected a value"),
        ("x=1,,2", 5, "expected a value"),
        ("seed=1;nested.raet=1", 8, "unknown config key 'nested.raet'; did you mean 'nested.rate'?"),
        ("nested=1", 1, "'nested' is a group of fields; sweep one of them: nested.names, nested.radii, nested.rate"),
        ("nested.sizes=(1,2)", 1, "write a tuple there"),
        ("seed=1,2.5", 8, "2.5 is not an integer"),
        ("seed=one", 6, "'one' is not an integer"),
        ("free=a", 6, "'a' is not an integer"),
        ("seed=true", 6, "'true' is not an integer"),
        ("x=fast", 3, "'fast' is not a finite number"),
        ("x=1;seed=3 & nested.rate=nan", 26, "nan is not a finite number"),
        ("flag=1", 6, "is not true or false"),
        ("nested.radii=3", 14, "'3' is not a tuple"),
        ("nested.radii=(3,a)", 17, "'a' is not a finite number"),
        ("nested.radii=(3", 14, "the bracket is not closed"),
        ("x=1)", 4, "')' closes no bracket"),
        ("nested.radii=(3]", 16, "']' closes no bracket"),
        ("ending='a", 8, "the quote is not closed"),
        ("ending='a'b", 8, "'a'b is not one quoted string"),
        ("x=1;x=2", 5, "x appears twice"),
        ("x=1,1.0", 3, "x takes 1.0 twice"),
        ("seed=3:3", 6, "the range 3:3 is empty"),
        ("seed=0:3:0", 6, "the range 0:3:0 is empty"),
        ("x=1 & seed=1,2", 1, "same number of values of each field, got x 1, seed 2"),
        ("x=~exp(1,2,3)", 3, "random values are ~uniform(low,high,count) or ~log(low,high,count)"),
        ("x=~log(0,2,3)", 8, "a low above 0"),
        ("x=~log(2,1,3)", 8, "low must be less than high, got 2.0 and 1.0"),
        ("x=~log(1,2,0)", 12, "at least 1 and at most 1,000,000, got 0"),
        ("x=~log(1)", 8, "takes low, high and a count, got 1"),
        ("x=~log(1,2)", 3, "needs a count"),
        ("x=1,~log(1,2,3)", 3, "random values cannot be listed"),
        ("seed=~uniform(1,2.5,3)", 17, "2.5 is not an integer"),
        ("ending=~log(1,2,3)", 8, "only numbers can be drawn; the field takes a string"),
    ],
)
def test_errors_show_the_column(text, column, message):
    with pytest.raises(SweepError) as error:
        members(text)
    lines = str(error.value).split("\n")
    assert lines[0].startswith(f"--grid, column {column}: ") and message in str(error.value)
    assert lines[1] == f"  {text}" and lines[2] == " " * (column + 1) + "^"


def test_an_unknown_key_lists_those_there_are():
    with pytest.raises(SweepError, match=r"valid keys: .*ending, .*nested\.names, .*x"):
        members("steps=1")


def test_draws_fill_their_interval_evenly():
    """Against the distribution functions: values sorted, mapped to [0, 1], are close to an even spacing."""
    for text, cdf in (
        ("x=~uniform(-2,6,400)", lambda v: (v + 2) / 8),
        ("x=~log(1e-4,1e-1,400)", lambda v: np.log(v / 1e-4) / np.log(1e3)),
    ):
        values = np.sort([m["x"] for m in members(text)])
        assert len(values) > 350 and np.all((cdf(values) >= 0) & (cdf(values) <= 1))
        even = (np.arange(len(values)) + 0.5) / len(values)
        assert np.abs(cdf(values) - even).max() < 1.63 / np.sqrt(len(values))  # Kolmogorov-Smirnov at 1 %


@pytest.mark.parametrize(
    "distribution, shares",
    [
        ("uniform", [0.25, 0.25, 0.25, 0.25]),
        ("log", np.log([1.5 / 0.5, 2.5 / 1.5, 3.5 / 2.5, 4.5 / 3.5]) / np.log(4.5 / 0.5)),
    ],
)
def test_whole_draws(distribution, shares):
    """Every whole number stands for the interval of length 1 around it, those at the ends too."""
    found = members(f"seed=~{distribution}(1,4,2000) & x=~uniform(0,1,2000)")  # x keeps equal ones apart
    counts = np.bincount([m["seed"] for m in found], minlength=5)[1:]
    expected = len(found) * np.asarray(shares)
    assert len(found) > 1900 and ((counts - expected) ** 2 / expected).sum() < 16.3  # chi squared at 0.1 %
    assert all(type(m["seed"]) is int for m in found)


def test_equal_draws_count_once():
    found = [m["seed"] for m in members("seed=~uniform(1,4,200)")]
    assert sorted(found) == [1, 2, 3, 4]


def test_draws_depend_on_seed_and_key_alone():
    alone = members("x=~log(1,9,4)", seed=3)
    assert members("x=~log(1,9,4)", seed=3) == alone != members("x=~log(1,9,4)", seed=4)
    assert members("x=~log(1,9,6)", seed=3)[:4] == alone
    both = members("x=~log(1,9,4) & nested.rate=~log(1,9,4)", seed=3)
    assert [{"x": m["x"]} for m in both] == alone
    assert all(m["x"] != m["nested.rate"] for m in both)
    assert len(members("x=~log(1,9,4); nested.rate=~log(1,9,3)")) == 12


def test_overrides_from_a_config_are_checked_like_a_grid():
    check = lambda **overrides: space.check({k.replace("__", "."): v for k, v in overrides.items()}, KNOWN, "here")
    found = check(x=2, nested__radii=[1, 2], flag=np.bool_(True), seed=np.int64(3))
    assert found == {"x": 2.0, "nested.radii": (1.0, 2.0), "flag": True, "seed": 3}
    assert [type(v) for v in found.values()] == [float, tuple, bool, int]
    for wrong in ({"x": "2"}, {"x": float("inf")}, {"seed": 2.0}, {"flag": 1}, {"seed": True}, {"ending": None}):
        with pytest.raises(SweepError, match=r"here: .* is not "):
            check(**wrong)
    with pytest.raises(SweepError, match="here: unknown config key 'y'"):
        check(y=1)


def test_product_merges_and_refuses_what_is_set_twice():
    assert space.product([{"a": 1}, {"a": 2}], [{"b": 3}]) == [{"a": 1, "b": 3}, {"a": 2, "b": 3}]
    with pytest.raises(SweepError, match="b: swept twice"):
        space.product([{"a": 1, "b": 0}], [{"b": 3}])


def test_tuples_of_mixed_or_unknown_elements_are_read_by_their_look():
    config = ConfigDict({"mixed": (1, "a"), "empty": (), "unset": config_dict.placeholder(tuple)})
    known = space.fields(config)
    found = space.expand(space.parse("mixed=(2.5,true,b,(1,2)); empty=(1,2); unset=('1',)", known), 0)
    assert found == [{"mixed": (2.5, True, "b", (1, 2)), "empty": (1, 2), "unset": ("1",)}]


def test_a_long_range_is_quick():
    grid = space.parse("seed=0:200000", KNOWN)
    assert len(space.expand(grid, 0)) == 200_000  # in a second; quadratic, it took an hour


# -- whatever --grid holds, it is members or a `SweepError` that points at a column, in good time ---------------------

FUZZ = settings(deadline=60_000, max_examples=150, derandomize=True, suppress_health_check=[HealthCheck.too_slow])

keys = st.sampled_from([*KNOWN, "nested", "nosuch", "", "x y", "nested.rate.rate"])
WORDS = """1 -1 1e999 nan inf 0:3 0:16000 3:0 1:9:0 0:99999999999 -5:5:2 true 'a' "b 'c (1,2) (1,(2) [3) (,) ()
~log(1e-4,1e-1,8) ~log(0,1,3) ~log(1,inf,3) ~ ~log( ~uniform(1,2,-3) ~uniform(2,1,3) ~uniform(0,1,99999999999)
~uniform(nan,1,2) ~normal(0,1,2) ~uniform(1) é"""
words = st.sampled_from([*WORDS.split(), "a\0b", "\udcff"])
values = st.lists(words | st.text(max_size=8), min_size=1, max_size=4).map(",".join)
terms = st.tuples(keys, st.sampled_from(["=", "==", " = ", "", ":"]), values).map("".join)
grids = st.lists(terms, max_size=4).flatmap(
    lambda parts: st.lists(st.sampled_from(";&,|"), min_size=len(parts), max_size=len(parts)).map(
        lambda marks: "".join(part + mark for part, mark in zip(parts, marks, strict=True))
    )
)


@FUZZ
@given(grids | st.text(max_size=60))
@example("seed=0:20000;x=0:20000")
@example("x=" + "(" * 5000)
@example("x=" + ",".join(map(str, range(5000))))
@example("seed=" + "9" * 5000)
@example("x=" + "9" * 400)
@example("nested.radii=(" + "1," * 5000 + ")")
def test_a_grid_is_members_or_refused_with_a_column(text):
    try:
        grid = space.parse(text, KNOWN)
        members = space.expand(grid, 0)
        search.dimensions(grid)
    except SweepError as error:
        assert str(error).startswith(("--grid, column ", "--grid: "))
        return
    assert members and len({tuple(member.items()) for member in members}) == len(members)
    for member in members[:20]:
        assert space.check(member, KNOWN, "again") == member


def test_sixteen_thousand_seeds_are_listed_at_once():
    members = space.expand(space.parse("seed=0:16000", KNOWN), 0)
    assert [member["seed"] for member in members] == list(range(16_000))


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "1", None, (1,), 10**400], ids=lambda value: f"{value!s:.9}"
)
def test_values_of_a_sweep_function_have_the_type_of_their_field(value):
    with pytest.raises(SweepError, match="sweep"):
        space.check({"x": value}, KNOWN, "sweep(), member 0")
