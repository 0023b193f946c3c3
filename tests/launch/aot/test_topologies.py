"""Names of topologies; the compilers themselves are used in tests/aot."""

import pytest

from launch.aot import topologies
from launch.aot.topologies import GPUS, TPUS, TopologyError, topology


@pytest.mark.parametrize("name", ["v5e", "v5e:16", "v5e:2x", "v7:2x2", "h100", "h100x0", "b200x8", "", "h100x8,a100x8"])
def test_unknown_names_list_the_valid_ones(name):
    with pytest.raises(TopologyError) as caught:
        topology(name)
    message = str(caught.value)
    assert repr(name) in message and all(kind in message for kind in (*TPUS, *GPUS)) and "\n" not in message


@pytest.mark.parametrize(
    "name, part", [("v5e:2x4", "TPU's compiler"), ("v5p:2x2x2", "TPU's"), ("h100x8", "XLA's compiler for CUDA")]
)
def test_a_missing_compiler_is_one_line_that_says_what_to_install(name, part, monkeypatch):
    monkeypatch.setattr(topologies, "find_spec", lambda name: None)
    with pytest.raises(TopologyError, match=rf"^topology '{name}' needs {part}.*pip install -e '\.\[aot\]'$"):
        topology(name)


def test_every_gpu_is_described():
    for kind in GPUS:
        text = topologies._target(kind)
        assert text.count("{") == text.count("}") and f"NVIDIA {GPUS[kind].title}" in text
