"""What only shows with the data is refused before anything is trained, and before the run has a folder."""

import pytest

from launch import train
from launch.stages import SettingError
from tests.rtd_jax import tiny


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"checkpoint_dtype": "foo"}, r"^checkpoint_dtype='foo'; valid names: "),
        ({"rtd__objective__negatives": "none"}, r"^rtd\.objective\.negatives='none'; valid names: "),
        ({"rtd__objective__temperature": 0.0}, r"^rtd\.objective\.temperature=0\.0: must be above 0"),
        ({"rtd__batch_size": 4096}, r"^rtd\.batch_size=4096: more than the \d+ examples to train on"),
        ({"phi__batch_size": 4096}, r"^phi\.batch_size=4096: more than the \d+ examples to train on"),
        ({"rtd__objective__accumulation": 7}, r"^rtd\.objective\.accumulation=7: rtd\.batch_size=\d+ does not divide"),
        ({"rtd__optimizer__decay_mask": ("nosuch",)}, r"^rtd\.optimizer\.decay_mask: 'nosuch' matches no"),
        ({"phi__optimizer__decay_mask": ("nosuch",)}, r"^phi\.optimizer\.decay_mask: 'nosuch' matches no"),
        ({"phi__loop__eval_every": "1e9 epochs"}, r"^phi\.loop\.eval_every: the duration .* is .* steps"),
        ({"evaluation__scenes__gallery": 10**6}, r"^evaluation\.scenes: .*distinct"),
    ],
)
def test_a_setting_that_does_not_fit_the_data(tmp_path, fields, text):
    with pytest.raises(SettingError, match=text):
        train.execute(tiny.config(**fields), str(tmp_path / "run"))
    assert not list(tmp_path.iterdir())


def test_files_that_are_too_small(tmp_path):
    (tmp_path / "captions.txt").write_text("".join(f"a red dog {i}\n" for i in range(20)))
    config = tiny.config(captions__source="file", captions__path=str(tmp_path / "captions.txt"))
    config.captions.val_examples = 20
    with pytest.raises(SettingError, match=r"^captions\.val_examples=20 of 20 captions leave none to train on"):
        train.execute(config, str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
