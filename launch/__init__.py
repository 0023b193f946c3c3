"""The shared layer: entry point, training loop, run directory, checkpoints, sharding, data, optimisers."""
