"""A sweep divided among devices, evenly or with fillers, against the same sweep on one."""

import json

from tests.commands import finish, start


def test_the_same_heads_on_any_number_of_devices():
    found = json.loads(finish(start("-m", "tests.tldr_jax.devices_worker", devices=8)).splitlines()[-1])
    assert found["devices"] == 8
    one, two, eight = found["split"]
    assert one["share"] == one["whole"] == [2, 3, 1]
    assert two["whole"] == [2, 3, 1] and two["share"] == [1, 3, 1]  # a projector each
    assert eight["whole"] == [2, 3, 8] and eight["share"] == [2, 3, 1]  # nothing divides by 8: filled up
    assert found["moved"] > 0.1  # members differ: equality says something
    assert max(found["errors"]) < 1e-5
