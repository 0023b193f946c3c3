"""Run by test_suite.py with 2 fake CPU devices: prints, as JSON, an evaluation on one of them and on both.

float64; five images in batches of four, so that the last batch is mostly padding.
"""

import json
import sys
import tempfile

import jax

from launch.run import Run
from launch.training import sharding
from tests.robustgrad_jax import test_suite


def main():
    found = {}
    for count in (1, 2):
        layout = sharding.layout(devices=jax.devices()[:count])
        with tempfile.TemporaryDirectory() as folder:
            config = test_suite.config(perturbations=("rps", "aam"), curves=("insertion",))
            run = Run.open(folder, config)
            found[str(count)] = test_suite.measured(run, layout)
            run.close()
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    with jax.enable_x64(True):
        main()
