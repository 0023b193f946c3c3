from types import SimpleNamespace

import pytest
from absl import flags
from hypothesis import example, given, settings
from hypothesis import strategies as st
from ml_collections import config_dict, config_flags

from launch.stages import SettingError
from launch.training import duration

SIZES = dict(examples=1000, batch_size=128)


@pytest.mark.parametrize(
    ("value", "steps"),
    [
        ("1000 steps", 1000),
        ("1 step", 1),
        ("0 steps", 0),
        ("1e3 steps", 1000),
        ("90 epochs", 703),  # 90 * 1000 / 128 = 703.125: not 90 whole epochs of 7 or 8 batches
        ("1 epoch", 8),  # 7.8125
        ("0.5 epochs", 4),  # 3.90625
        (".5epochs", 4),
        ("  2   epochs ", 16),  # 15.625
        ("1e6 examples", 7812),  # 7812.5, a tie: to even
        ("1 example", 1),  # at least one
        ("0.001 epochs", 1),
        ("0 epochs", 0),
    ],
)
def test_to_steps(value, steps):
    assert duration.to_steps(value, **SIZES) == steps


def test_decimal_fractions_are_exact():
    # 0.29 * 50000 / 125 is 115.99999999999999 in binary floating point; the product in decimals is 116.
    assert duration.to_steps("0.29 epochs", examples=50_000, batch_size=125) == 116
    assert duration.to_steps("1.1 epochs", examples=15, batch_size=11) == 2  # 1.5 exactly, a tie: to even


@pytest.mark.parametrize(
    "value",
    [
        "",
        "90",
        "epochs",
        "90 hours",
        "3 epochs 10 steps",
        "3 epochs, 10 steps",
        "nan epochs",
        "inf steps",
        "1e epochs",
    ],
)
def test_other_forms_are_refused(value):
    with pytest.raises(ValueError, match=r"one number and one of epochs, steps, examples"):
        duration.to_steps(value, **SIZES)


@pytest.mark.parametrize("value", [90, 1.5, None, ("3 epochs",)])
def test_not_a_string(value):
    with pytest.raises(TypeError, match="add the unit"):
        duration.to_steps(value, **SIZES)


def test_out_of_range():
    with pytest.raises(ValueError, match="negative"):
        duration.to_steps("-1 epochs", **SIZES)
    with pytest.raises(ValueError, match="whole number of steps"):
        duration.to_steps("2.5 steps", **SIZES)
    with pytest.raises(ValueError, match="batch_size=0"):
        duration.to_steps("2 epochs", examples=10, batch_size=0)
    with pytest.raises(ValueError, match="examples=0"):
        duration.to_steps("2 epochs", examples=0, batch_size=4)


@pytest.mark.parametrize(
    "value", ["1e999999999 steps", "1e-999999999 epochs", "9" * 100 + " examples", "1e" + "9" * 5000 + " steps"]
)
def test_too_many_digits(value):
    with pytest.raises(ValueError, match="has too many digits"):
        duration.to_steps(value, **SIZES)
    with pytest.raises(SettingError, match=r"^warmup: the duration .* has too many digits"):
        duration.check(SimpleNamespace(warmup=value), "warmup")


def test_unit_changes_on_the_command_line(monkeypatch):
    argv = ["program", "--config.train.duration=20 steps"]
    monkeypatch.setattr("sys.argv", argv)  # where config_flags looks for overrides
    values = flags.FlagValues()
    config = config_dict.ConfigDict({"train": {"duration": "300 epochs"}})
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values)
    values(argv)
    assert duration.to_steps(holder.value.train.duration, **SIZES) == 20


@settings(deadline=60_000, max_examples=300, derandomize=True)
@given(
    st.text(max_size=20)
    | st.tuples(
        st.text("0123456789.eE+-", max_size=12) | st.floats().map(repr) | st.integers().map(str),
        st.sampled_from(["", " ", "\t"]),
        st.sampled_from(["steps", "step", "epochs", "examples", "fortnights", "nan epochs", ""]),
    ).map("".join)
    | st.none()
    | st.floats()
    | st.binary(max_size=3)
)
@example("9" * 100_000 + "x")
@example("1e18 steps")
@example("1e9 epochs")
def test_anything_is_steps_or_refused_by_the_name_of_its_field(value):
    try:
        duration.check(SimpleNamespace(eval_every=value), "eval_every")
    except SettingError as error:
        assert error.name == "eval_every" and str(error).startswith("eval_every: ") and str(error).isprintable()
        return
    assert 0 <= duration.to_steps(value, examples=1, batch_size=1) < 2**31


def test_a_least_length():
    owner = SimpleNamespace(duration="0 epochs", milestones=("1 steps", "-1 steps"))
    with pytest.raises(SettingError, match=r"^duration='0 epochs': must be at least 1 step$"):
        duration.check(owner, "duration", least=1)
    with pytest.raises(SettingError, match=r"^milestones: the duration '-1 steps' is negative$"):
        duration.check(owner, "milestones")
