"""Run by test_measurements.py with 2 fake CPU devices: prints, as JSON, an evaluation on one of them and on both.

float64; five images in batches of four, so that the last batch is mostly padding.
"""

import functools
import json
import sys
import tempfile

import jax
import pytest

from launch.training import sharding
from tests.robustgrad_jax.stages import test_measurements


def main():
    result = {}
    layout = sharding.layout
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "layout", functools.partial(layout, devices=jax.devices()[:count]))
            options = test_measurements.options(perturbations=("rps", "aam"), curves=("insertion",))
            result[str(count)] = test_measurements.measured(folder, options)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True), test_measurements.images_in_double():
        main()
