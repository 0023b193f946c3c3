"""The evaluation of a CLIP that devices share: what one device measures, without a whole copy anywhere."""

import json

import pytest

from tests.clip_jax.training.evaluation_worker import evaluate
from tests.commands import finish, start


def test_a_split_clip_is_measured_where_it_lies():
    worker = start("-m", "tests.clip_jax.training.evaluation_worker", devices=4)
    alone = evaluate()
    found = json.loads(finish(worker).splitlines()[-1])
    for name, most in (("whole", 1.0), ("model", 0.85), ("fsdp", 0.3)):
        for tower in ("images", "texts"):
            assert found[name].pop(tower) <= most
        assert found[name] == pytest.approx({key: alone[key] for key in found[name]}, rel=1e-4, abs=1e-5)
