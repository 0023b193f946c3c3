"""What a run refuses, it refuses before its folder is touched; the corrected command works there."""

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from launch import train
from launch.run import Run
from launch.stages import SettingError, Stage, require_number, setting, settings
from launch.store import Store

READS = []


@dataclass(frozen=True)
class Numbers(Stage):
    """A file's numbers; not kept."""

    KEPT = False

    path: str

    def preflight(self, store):
        store.get(self)

    def make(self, store):
        READS.append(self.path)
        with open(self.path) as file:
            return [float(line) for line in file]


@dataclass(frozen=True)
class Mean(Stage):
    """The mean of at most so many numbers."""

    numbers: Numbers
    most: int

    def __post_init__(self):
        require_number(self, "most", least=1)

    def preflight(self, store):
        if self.most > len(store.get(self.numbers)):
            raise SettingError("most", f"={self.most}: there are {len(store.get(self.numbers))}")

    def make(self, store):
        values = store.get(self.numbers)[: self.most]
        return {"mean": sum(values) / len(values)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command on tmp_path/"run", with overrides."""
    READS.clear()
    (tmp_path / "numbers").write_text("1\n2\n6\n")
    plan = lambda config: settings(Mean, config, numbers=Numbers(setting(config, "path", str)))
    monkeypatch.setattr(train, "module_of", lambda name: SimpleNamespace(plan=plan))

    def execute(**overrides):
        config = ConfigDict({"experiment": "mean", "path": str(tmp_path / "numbers"), "most": 3} | overrides)
        return train.execute(config, str(tmp_path / "run"))

    return execute


@pytest.mark.parametrize(
    ("overrides", "error", "text"),
    [
        ({"most": 0}, SettingError, "^most=0: must be a number, at least 1$"),
        ({"most": 4}, SettingError, "^most=4: there are 3$"),
        ({"path": "/no/such"}, FileNotFoundError, "/no/such"),
    ],
)
def test_a_refused_run_leaves_nothing_and_a_corrected_one_works(run, tmp_path, overrides, error, text):
    with pytest.raises(error, match=text):
        run(**overrides)
    assert not (tmp_path / "run").exists()
    assert run() == {"mean": 3.0}


def test_a_refused_change_leaves_a_finished_run_as_it_was(run, tmp_path):
    run()
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(SettingError):
        run(most=4)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before
    assert run(most=2) == {"mean": 1.5}


def test_what_is_read_for_the_check_is_not_read_again(run):
    run()
    assert len(READS) == 1


def test_a_finished_run_needs_its_files_no_longer(run, tmp_path):
    run()
    (tmp_path / "numbers").unlink()
    assert run() == {"mean": 3.0} and len(READS) == 1
    assert Run(tmp_path / "run").is_finished(ConfigDict({"experiment": "mean", "most": 2})) is False


def test_only_what_is_missing_is_looked_at(tmp_path):
    (tmp_path / "numbers").write_text("1\n")
    store, root = Store(tmp_path / "store"), Mean(Numbers(str(tmp_path / "numbers")), 1)
    store.get(root)
    (tmp_path / "numbers").unlink()
    train.preflight(root, Store(tmp_path / "store"))
