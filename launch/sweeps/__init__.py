"""Sweeps: their members, their folder, and the executors that train them."""
