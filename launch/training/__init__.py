"""The one training loop and what it stands on: programs, sharding, checkpoints, optimisers, keys, hosts."""
