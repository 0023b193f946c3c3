"""Whatever --grid holds, it is members or a `SweepError` that points at a column, in good time."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from launch.sweeps import search, space
from launch.sweeps.members import SweepError
from tests.launch import sweep_toy

KNOWN = space.fields(sweep_toy.get_config())
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
