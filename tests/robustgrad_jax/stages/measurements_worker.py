"""Run by test_measurements.py with 2 fake CPU devices: prints, as JSON, an evaluation on one of them and on both.

On both also with every loop inside a program, as on accelerators. float64; five images in batches of four, so that the
last batch is mostly padding.
"""

import functools
import json
import sys
import tempfile

import jax
import pytest

from launch.networks import loops
from launch.training import sharding
from tests.robustgrad_jax.stages import test_measurements


def main():
    result = {}
    layout = sharding.layout
    for name, count, in_program in (("1", 1, False), ("2", 2, False), ("2 in programs", 2, True)):
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sharding, "layout", functools.partial(layout, devices=jax.devices()[:count]))
            patch.setattr(loops, "in_program", lambda *trees, chosen=in_program: chosen)
            options = test_measurements.options(perturbations=("rps", "aam"), curves=("insertion",))
            result[name] = test_measurements.measured(folder, options)
    json.dump(result, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True), test_measurements.images_in_double():
        main()
